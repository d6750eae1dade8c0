"""What held-out architectures really hold, beside what is predicted: ``python -m tests.benchmarks.truth [NAME ...]``.

No test tunes the tracer on these. The meter is not the profiler that other tables use: a dispatch mode adds up the
storages that are alive, and where the system resets it, the kernel's count of the process' pages says what no tensor
holds. A row is data: to add one, add it to ``ROWS``.
"""

import argparse
import ctypes
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from devctl.errors import DevctlError
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, Workload, peak_bytes
from devctl.models.inputs import batch_of, inputs_of
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from tests.small_models import of_class

UNDER, OVER = 0.02, 0.10
"""By how much a prediction may be under the truth, and over it where no note says that it is a bound or an estimate."""

_LONG = 16_384
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
    "num_hidden_layers": 4,
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A model and what it does.

    Attributes:
        kind: of the question: "plain", "bf16 experts", "image", "16k".
        class_name: of transformers.
        own: what its config has beside small sizes.
    """

    kind: str
    class_name: str
    own: dict = field(default_factory=dict)
    tokens: int = 1024
    batch: int = 1
    dtype: str = "float32"

    @property
    def name(self):
        return f"{self.class_name} {self.kind}"


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
}

_WIDE = {"hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 4}
"""Wide enough for what a kernel takes for itself, which no tensor holds, to be little beside the tensors."""
_LONGER = {"max_position_embeddings": 2048}
_SEES = {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 4}
_PLAIN = {
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

ROWS = (
    *(
        Row(kind="plain", class_name=name, own={"max_position_embeddings": 2048, **_WIDE, **own})
        for name, own in _PLAIN.items()
    ),
    *(Row(kind="bf16 experts", class_name=name, own=_WIDE, dtype="bfloat16") for name in _EXPERTS),
    *(Row(kind="bf16 experts, short", class_name=name, dtype="bfloat16", tokens=24) for name in _EXPERTS),
    *(Row(kind="image", class_name=name, own=own) for name, own in _SEEING.items()),
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


def compare(row):
    """Predict and measure ``row``.

    Raises:
        DevctlError: it can't be traced.
    """
    model_class, config = of_class(row.class_name, **row.own)
    config.dtype = row.dtype
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        skeleton = read_skeleton(resolve(str(Path(folder))))
    asked = Workload(context_length=row.tokens, new_tokens=2, batch_size=row.batch, kernels=Kernels.CPU)
    footprint = trace_footprint(skeleton, asked)
    torch.manual_seed(0)
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
        pages=pages(lambda: run(model, asked, media=media)),
        notes=footprint.notes,
    )


def run(model, workload, tokens=None, media=None):
    """Do the workload for real, or the same with a prompt of ``tokens``; one that takes images is given ``media``."""
    prompt = tokens or workload.context_length - workload.new_tokens
    ids = torch.ones((workload.batch_size, prompt), dtype=torch.long)
    with torch.no_grad():
        if model.main_input_name == "pixel_values":
            # the pixels are made within: they are in the device's memory as long as the model runs
            model(**{name: value.to(model.dtype, copy=True) for name, value in media.items()})
            return
        if not model.can_generate():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
            return
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=workload.new_tokens + 1
        )


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of rows' names; all rows by default")
    names = parser.parse_args().names
    mib = 2**20
    print("| model | workload | predicted MiB | storages | pages | error | holds | notes |")
    print("|---|---|---:|---:|---:|---:|---|---|")
    for row in ROWS:
        if names and not any(name in row.name for name in names):
            continue
        try:
            found = compare(row)
        except DevctlError as error:
            print(f"| {row.class_name} | {row.kind} | {error.message} |", flush=True)
            continue
        cells = (found.predicted, found.storages, found.pages or 0)
        numbers = " | ".join(f"{cell / mib:.2f}" for cell in cells)
        verdict = "yes" if found.holds else "NO"
        notes = "; ".join(found.notes)
        print(f"| {row.class_name} | {row.kind} | {numbers} | {found.error:+.1%} | {verdict} | {notes} |", flush=True)


if __name__ == "__main__":
    main()
