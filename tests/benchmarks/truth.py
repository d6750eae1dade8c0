"""Predictions beside the truth: ``python -m tests.benchmarks.truth [NAME ...]``.

First the weights of public checkpoints (``published.py``), then what held-out architectures hold beside theirs. No test
tunes the tracer on these. The meter is not the profiler that other tables use: a dispatch mode adds up the storages
that are alive, and where the system resets it, the kernel's count of the process' pages says what no tensor holds. A
row is data: to add one, add it to ``ROWS``. Exits with 1 where a row does not hold.
"""

import argparse
import ctypes
import sys
import tempfile
import weakref
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from devctl.errors import DevctlError
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, Workload, peak_bytes
from devctl.models.inputs import batch_of, inputs_of
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from tests.benchmarks.published import MINILM, OVER, PUBLISHED, UNDER, weigh, weigh_minilm
from tests.small_models import of_class

MIB = 2**20

_LONG = 16_384
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "num_hidden_layers": 4,
}
_STATES = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 16,
    "mamba_n_groups": 2,
    "mamba_d_ssm": 64,
    "mamba_expand": 2,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model and what it does.

    Attributes:
        kind: of the question: "plain", "padded", "beams", "bf16 experts", "image", "16k".
        class_name: of transformers.
        own: what its config has beside small sizes.
        told: what the workload is besides: its attention, whether it is padded, chunks of the prompt.
        generation: what generate is told, where that is not as in a greedy one.
    """

    kind: str
    class_name: str
    own: dict = field(default_factory=dict)
    tokens: int = 1024
    batch: int = 1
    dtype: str = "float32"
    told: dict = field(default_factory=dict)
    generation: dict = field(default_factory=dict)

    @property
    def name(self):
        return f"{self.class_name} {self.kind}"

    @property
    def workload(self):
        return Workload(
            context_length=self.tokens,
            new_tokens=2,
            batch_size=self.batch,
            kernels=Kernels.CPU,
            generation=tuple(sorted(self.generation.items())),
            **self.told,
        )


_LOOPING = {
    "Qwen3NextForCausalLM": _DELTA,
    "Qwen3_5ForCausalLM": _DELTA,
    "Qwen3_5MoeForCausalLM": _DELTA,
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2ForCausalLM": {},
    "MiniMaxForCausalLM": {},
    "MambaForCausalLM": {},
    "FalconMambaForCausalLM": {},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "RwkvForCausalLM": {},
    "RecurrentGemmaForCausalLM": {},
    "OlmoHybridForCausalLM": {},
    "BambaForCausalLM": {**_STATES, "attn_layer_indices": [1]},
    "FalconH1ForCausalLM": _STATES,
    "Zamba2ForCausalLM": {
        "n_mamba_heads": 8,
        "mamba_headdim": 8,
        "mamba_d_state": 16,
        "mamba_ngroups": 2,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "num_mem_blocks": 1,
    },
    "GraniteMoeHybridForCausalLM": {
        **_STATES,
        "layer_types": ["mamba", "attention"] * 2,
        "shared_intermediate_size": 64,
    },
}

_WIDE = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4}
"""Wide enough for what a kernel takes for itself, which no tensor holds, to be little beside the tensors."""
_LONGER = {"max_position_embeddings": 2048}
_SEES = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4}
_PLAIN: dict[str, dict[str, object]] = {
    "Olmo2ForCausalLM": {},
    "GlmForCausalLM": {},
    "CohereForCausalLM": {},
    "StableLmForCausalLM": {},
    "GPTNeoXForCausalLM": {},
    "Gemma3ForCausalLM": {"head_dim": 64, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "ModernBertForMaskedLM": {},
    "DebertaV2ForMaskedLM": {},
    "MT5ForConditionalGeneration": {},
}
_EXPERTS = ("MixtralForCausalLM", "Qwen3MoeForCausalLM", "OlmoeForCausalLM", "GptOssForCausalLM")
_SEEING = {
    "SiglipVisionModel": {**_SEES, "image_size": 224, "patch_size": 16},
    "Dinov2Model": {"hidden_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 336},
    "ViTForImageClassification": {**_SEES, "image_size": 224, "patch_size": 16},
    "BeitForImageClassification": {**_SEES, "image_size": 224, "patch_size": 16},
}

_HELD_OUT: dict[str, dict[str, object]] = {
    "Qwen2ForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "GlmForCausalLM": {},
    "GraniteForCausalLM": {},
    "Starcoder2ForCausalLM": {},
    "OPTForCausalLM": {"ffn_dim": 768, "word_embed_proj_dim": 256},
    "BloomForCausalLM": {},
    "StableLmForCausalLM": {},
    "Cohere2ForCausalLM": {"sliding_window": 256, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "SmolLM3ForCausalLM": {},
}
"""Decoders of many shapes: gated and plain, shared and own keys, positions by rotation, table and distance."""

_WAYS: dict[str, dict[str, Any]] = {
    "padded": {"batch": 2, "told": {"padded": True}},
    "beams": {"generation": {"num_beams": 4}, "tokens": 512},
    "sampled": {"generation": {"do_sample": True}},
    "eager": {"told": {"attention": "eager"}},
    "in chunks": {"told": {"prefill_chunk": 256}},
}
"""What each of those does: its kind, and what a row says of it."""


ROWS = (
    *(
        Row(kind="plain", class_name=name, own={"max_position_embeddings": 2048, **_WIDE, **own})
        for name, own in _PLAIN.items()
    ),
    *(Row(kind="bf16 experts", class_name=name, own=_WIDE, dtype="bfloat16") for name in _EXPERTS),
    *(Row(kind="bf16 experts, short", class_name=name, dtype="bfloat16", tokens=24) for name in _EXPERTS),
    *(Row(kind="image", class_name=name, own=own) for name, own in _SEEING.items()),
    *(
        Row(kind=kind, class_name=name, own={"max_position_embeddings": 2048, **_WIDE, **own}, **way)
        for kind, way in _WAYS.items()
        for name, own in _HELD_OUT.items()
    ),
    *(Row(kind="16k", class_name=name, own=own, tokens=_LONG) for name, own in _LOOPING.items()),
)


class Alive(TorchDispatchMode):
    """The bytes of the storages that are alive, of those that were made while it is active."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self._see(leaf.untyped_storage(), given)
        return out

    def _see(self, storage, given):
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._known or key in given:
            return

        def died(_):
            del self._known[key]
            self.now -= nbytes

        self._known[key] = weakref.ref(storage, died)
        self.now += nbytes
        self.most = max(self.most, self.now)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Bytes beside the weights: predicted, of storages, and of pages (None where they are not counted)."""

    predicted: int
    storages: int
    pages: int | None
    notes: tuple[str, ...]

    @property
    def error(self):
        return self.predicted / self.storages - 1

    @property
    def holds(self):
        is_bound = any("bound" in note or "estimate" in note for note in self.notes)
        return self.error >= -UNDER and (is_bound or self.error <= OVER)


def compare(row, *, with_pages=True):
    """Predict and measure ``row``; its pages are counted in a run of their own, which can be left out.

    Raises:
        DevctlError: it can't be traced.
    """
    model_class, config = of_class(row.class_name, **row.own)
    config.dtype = row.dtype
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        skeleton = read_skeleton(resolve(str(Path(folder))))
    asked = row.workload
    footprint = trace_footprint(skeleton, asked)
    torch.manual_seed(0)
    if asked.attention is not None:
        skeleton.config._attn_implementation = asked.attention
    model = model_class._from_config(skeleton.config, dtype=getattr(torch, row.dtype)).eval()
    media = batch_of(inputs_of(model.config, model_class).media, row.batch)
    run(
        model, asked, tokens=min(64, row.tokens - asked.new_tokens), media=media
    )  # once before: what is made once, like threads
    with Alive() as alive:
        run(model, asked, media=media)
    return Found(
        predicted=peak_bytes(footprint),
        storages=alive.most,
        pages=pages(lambda: run(model, asked, media=media)) if with_pages else None,
        notes=footprint.notes,
    )


def run(model, workload, tokens=None, media=None):
    """Do the workload for real, or the same with a prompt of ``tokens``; one that takes images is given ``media``."""
    prompt = tokens or workload.context_length - workload.new_tokens
    ids = torch.ones((workload.batch_size, prompt), dtype=torch.long)
    mask = torch.ones_like(ids)
    if workload.padded:
        mask[1:, : prompt // 4] = 0
    with torch.no_grad():
        if model.main_input_name == "pixel_values":
            # the pixels are made within: they are in the device's memory as long as the model runs
            model(**{name: value.to(model.dtype, copy=True) for name, value in media.items()})
            return
        if not model.can_generate():
            model(input_ids=ids, attention_mask=mask)
            return
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
        told = {"do_sample": False, "max_new_tokens": workload.new_tokens + 1, **dict(workload.generation)}
        if workload.prefill_chunk is not None:
            told["prefill_chunk_size"] = workload.prefill_chunk
        model.generate(input_ids=ids, attention_mask=mask, **told)


def pages(work):
    """The most bytes of pages that the process held while it did ``work``, beside those before; None if unknown."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work left free is given back first
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name):
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def main():
    """Print both tables; 1 where a row does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of rows' names; all rows by default")
    names = parser.parse_args().names
    failed = [*_weights(names), *_workloads(names)]
    print(f"\nA row holds where it is at most {UNDER:.0%} under what is published or held,")
    print(f"and at most {OVER:.0%} over it, or more where a note calls it a bound or an estimate.")
    print(f"Does not hold: {', '.join(failed) or 'none'}.")
    return 1 if failed else 0


def _named(name, names):
    return not names or any(part in name for part in names)


def _weights(names):
    """Print what public checkpoints weigh; the names of those that do not hold."""
    weighed = [partial(weigh, row) for row in PUBLISHED if _named(row.name, names)]
    if _named(MINILM, names):
        weighed.append(weigh_minilm)
    print("| checkpoint | source | published MiB | planned | loaded | error | holds |")
    print("|---|---|---:|---:|---:|---:|---|")
    for work in weighed:
        found = work()
        if found is None:
            continue
        numbers = " | ".join(
            "" if n is None else f"{n / MIB:.2f}" for n in (found.published, found.planned, found.loaded)
        )
        print(f"| {found.name} | {found.source} | {numbers} | {found.error:+.1%} | {_yes(found.holds)} |", flush=True)
        if not found.holds:
            yield found.name


def _workloads(names):
    """Print what held-out architectures hold beside their weights; the names of those that do not hold."""
    print("\n| model | workload | predicted MiB | storages | pages | error | holds | notes |")
    print("|---|---|---:|---:|---:|---:|---|---|")
    for row in ROWS:
        if not _named(row.name, names):
            continue
        try:
            found = compare(row)
        except DevctlError as error:
            print(f"| {row.class_name} | {row.kind} | {error.message} |", flush=True)
            yield row.name
            continue
        sizes = (found.predicted, found.storages, found.pages)
        numbers = " | ".join("" if size is None else f"{size / MIB:.2f}" for size in sizes)
        holds, notes = _yes(found.holds), "; ".join(found.notes)
        print(f"| {row.class_name} | {row.kind} | {numbers} | {found.error:+.1%} | {holds} | {notes} |", flush=True)
        if not found.holds:
            yield row.name


def _yes(holds):
    return "yes" if holds else "NO"


if __name__ == "__main__":
    sys.exit(main())
