"""Trees of decoders that a reader can add up in the head, and what runs in them."""

from devctl.models.footprint import BlockFootprint, Footprint, Workload
from tests.trees import tree

WORKLOAD = Workload(context_length=8, new_tokens=2)


def decoder(sizes, *, embed=0, norm=0, head=0, rotary=0, tied=False, **more):
    """embed_tokens, layers, norm and rotary_emb below model, and lm_head; the rotary's is a buffer."""
    layers = {f"{number}:Block": {"w": size} for number, size in enumerate(sizes)}
    parts = {"embed_tokens": {"w": embed}, "layers": layers, "norm": {"w": norm}, "rotary_emb": {"_inv": rotary}}
    return tree(
        {"model": parts, "lm_head": {"w": head}},
        no_split=["Block"],
        ties=[("lm_head.w", "model.embed_tokens.w")] if tied else [],
        **more,
    )


def footprint(layers, *, embed=(0, 0), head=(0, 0), always=(0, 0), output=0):
    """What blocks need: (prompt_state, state, prefill, decode) of each layer, (prefill, decode) of what is around."""

    def block(name, prefill, decode, prompt_state=0, state=0, again=0):
        return BlockFootprint(
            name=name, prompt_state=prompt_state, state=state, prefill=prefill, decode=decode, again=again
        )

    blocks = [block("", *always), block("model.embed_tokens", *embed)]
    blocks += [block(f"model.layers.{at}", p, d, prompt, state) for at, (prompt, state, p, d) in enumerate(layers)]
    blocks += [block("lm_head", *head)]
    return Footprint(workload=WORKLOAD, blocks=tuple(blocks), output=output)
