"""What a run of layers takes, held against sums in the head and the footprint's own peak."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.models.footprint import BlockFootprint, peak_beside_weights
from devctl.models.tree import Module, Tensor, TensorKind
from devctl.placement.parallel.costs import Costs, Handed, RangeMax
from devctl.placement.parallel.layers import layers_of
from tests.marks import examples
from tests.placement.parallel.models import decoder, footprint


def costs(tree, **more):
    return Costs(tree, layers_of(tree), **more)


def test_the_first_stage_has_the_embedding_and_the_last_the_norm_and_the_head():
    found = costs(decoder([10, 20, 30], embed=3, norm=1, head=5))
    assert [found.load(*run).used for run in ((0, 1), (1, 2), (2, 3), (0, 3))] == [13, 20, 36, 69]
    assert found.load(1, 2, overhead=7).most == 27


def test_a_tied_embedding_is_on_both_ends_once_each():
    found = costs(decoder([10, 20, 30], embed=3, head=3, tied=True))
    assert [found.load(*run).used for run in ((0, 1), (1, 2), (2, 3), (0, 3))] == [13, 20, 33, 63]


def test_what_has_no_weights_is_on_every_stage():
    found = costs(decoder([10, 20], rotary=2))
    assert [found.load(*run).used for run in ((0, 1), (1, 2), (0, 2))] == [12, 22, 32]


def test_bytes_of_a_rank_may_be_said():
    tree = decoder([10, 20], embed=4)
    half = {name: size // 2 for name, size in tree.index.held.items()}
    assert costs(tree, held=half).load(0, 2).used == 17


@given(
    sizes=st.lists(st.integers(0, 9), min_size=2, max_size=6),
    embed=st.integers(0, 9),
    head=st.integers(0, 9),
    tied=st.booleans(),
    data=st.data(),
)
def test_stages_together_hold_the_model_and_the_tied_weight_once_more(sizes, embed, head, tied, data):
    tree = decoder(sizes, embed=embed, head=head, norm=1, tied=tied)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes) - 1)))) if len(sizes) > 1 else []
    ends = [*cuts, len(sizes)]
    found = costs(tree)
    whole = sum(found.load(a, b).used for a, b in zip([0, *cuts], ends, strict=True))
    assert whole == tree.index.held[""] + (embed if tied and cuts else 0)


def test_what_is_received_lives_as_long_as_the_layers_run():
    blocks = footprint([(4, 6, 10, 3), (4, 6, 10, 3)])
    found = costs(decoder([0, 0]), footprint=blocks, handed=Handed(prefill=5, decode=1))
    load = found.load(1, 2)
    # in prefill 4 of state and 10 + 5; in the last step 6 and 3 + 1
    assert (load.state, load.activations) == (6, 13)


def test_what_the_embedding_made_is_not_counted_where_it_is_received():
    blocks = footprint([(0, 0, 10, 9), (0, 0, 15, 11)])
    apart = tuple(
        replace(b, apart=(("model.embed_tokens", -5, -1),)) if b.name == "model.layers.1" else b for b in blocks.blocks
    )
    found = costs(decoder([0, 0]), footprint=replace(blocks, blocks=apart), handed=Handed(prefill=5, decode=1))
    assert found.load(1, 2).activations == 15


def test_every_stage_holds_the_logits_and_what_chooses_a_token():
    blocks = footprint([(0, 0, 1, 1), (0, 0, 1, 1)], head=(30, 30), always=(0, 40), output=20)
    found = costs(decoder([0, 0]), footprint=blocks)
    assert [found.load(*run).activations for run in ((0, 1), (1, 2))] == [40, 40]
    quiet = costs(decoder([0, 0]), footprint=replace(blocks, blocks=blocks.blocks[1:]), handed=Handed(prefill=3))
    # two hidden states beside the logits, or what the head takes beside one
    assert [quiet.load(*run).activations for run in ((0, 1), (1, 2))] == [26, 33]


SMALL = st.integers(0, 20)


@settings(max_examples=examples(60))
@given(
    layers=st.lists(st.tuples(SMALL, SMALL, SMALL, SMALL), min_size=1, max_size=5),
    around=st.tuples(*[st.tuples(SMALL, SMALL)] * 3),
    again=st.lists(SMALL, min_size=5, max_size=5),
    output=SMALL,
    handed=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    apart=st.booleans(),
)
def test_a_run_takes_what_its_blocks_do(layers, around, again, output, handed, apart):
    embed, head, always = around
    found = footprint(layers, embed=embed, head=head, always=always, output=output)
    blocks = []
    for block in found.blocks:
        at = block.name.removeprefix("model.layers.")
        more = {"again": again[int(at)]} if at.isdecimal() else {}
        blocks.append(replace(block, **more))
    if apart and len(layers) > 1:  # the last layer is given what the first keeps
        blocks[-2] = replace(blocks[-2], apart=(("model.layers.0", 7, 2),))
    hidden = Handed(prefill=handed[0], decode=handed[1])
    tree = decoder([0] * len(layers))
    of = costs(tree, footprint=replace(found, blocks=tuple(blocks)), handed=hidden)
    for first in range(len(layers)):
        for end in range(first + 1, len(layers) + 1):
            there = [*blocks[:1], *(blocks[1:2] if first == 0 else [])]
            there += [_beside(b, hidden) for b in blocks[2 + first : 2 + end]]
            there += [_beside(blocks[-1], hidden)] if end == len(layers) else []
            state = sum(b.state for b in there)
            handing = output + max(sum(b.prompt_state for b in there) + 2 * hidden.prefill, state + 2 * hidden.decode)
            peak = max(peak_beside_weights(there), handing)
            load = of.load(first, end)
            assert (load.state, load.activations) == (state, max(0, peak - state))
            assert of.most(first, end) == load.most


def _beside(block: BlockFootprint, hidden: Handed) -> BlockFootprint:
    return replace(
        block,
        prefill=block.prefill + hidden.prefill,
        decode=block.decode + hidden.decode,
        again=block.again + hidden.prefill if block.again else 0,
    )


def test_what_is_held_while_weights_are_made_counts():
    tree = decoder([10, 20, 30], embed=1)

    def made(module):
        parameters = tuple(replace(t, loading=t.nbytes) for t in module.parameters)
        return replace(module, parameters=parameters, children=tuple(map(made, module.children)))

    found = costs(replace(tree, root=made(tree.root)))
    assert [found.load(*run).loading for run in ((0, 2), (1, 2), (0, 3))] == [51, 40, 91]
    assert found.most(0, 2) == 51


def test_a_tied_weight_that_is_stored_twice_is_held_twice_while_loading():
    tree = decoder([10, 10], embed=4, head=4, tied=True)

    def stored(module: Module) -> Module:
        head = module.name == "lm_head"
        parameters = tuple(replace(t, loading=4) if head else t for t in module.parameters)
        return replace(module, parameters=parameters, children=tuple(map(stored, module.children)))

    found = costs(replace(tree, root=stored(tree.root)))
    assert [found.load(*run).loading for run in ((0, 1), (1, 2))] == [14, 18]


@pytest.mark.parametrize("values", [[3], [1, 2], [5, 1, 4], [2, 7, 1, 8, 2, 8, 1]])
def test_the_most_of_a_range(values):
    found = RangeMax(values)
    for first in range(len(values)):
        for end in range(first + 1, len(values) + 1):
            assert found.most(first, end) == max(values[first:end])


def test_layers_that_share_a_tensor_hold_it_on_each_stage():
    tree = decoder([10, 10, 10])

    def shared(module):
        at = module.name
        parameters = tuple(
            Tensor(
                name=t.name,
                kind=TensorKind.PARAMETER,
                nbytes=t.nbytes,
                shape=t.shape,
                dtype=t.dtype,
                same_as="model.layers.0.w" if at == "model.layers.2" else None,
            )
            for t in module.parameters
        )
        return replace(module, parameters=parameters, children=tuple(map(shared, module.children)))

    found = costs(replace(tree, root=shared(tree.root)))
    assert [found.load(*run).used for run in ((0, 1), (1, 3), (0, 3), (2, 3))] == [10, 20, 20, 10]
