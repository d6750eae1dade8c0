"""What softmax takes on an accelerator, by dtype and every way to call it; as measured on an H100 with torch 2.11."""

from pathlib import Path

import pytest
import torch
import transformers

from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, Workload, peak_bytes
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.fake_tensors import FakeWorld
from devctl.models.tracing.recorder import Event, Recorder
from devctl.models.tracing.trace import trace_footprint

F = torch.nn.functional
FLOAT = torch.float32
WAYS = {
    "functional": lambda scores: F.softmax(scores, dim=-1, dtype=FLOAT),
    "functional, by place": lambda scores: F.softmax(scores, -1, 3, FLOAT),
    "by name": lambda scores: F.softmax(input=scores, dim=-1, dtype=FLOAT),
    "torch": lambda scores: torch.softmax(scores, -1, FLOAT),
    "method": lambda scores: scores.softmax(-1, dtype=FLOAT),
    "special": lambda scores: torch.special.softmax(scores, -1, dtype=FLOAT),
    "module": lambda scores: torch.nn.Softmax(-1)(scores.float()),
    "log, functional": lambda scores: F.log_softmax(scores, dim=-1, dtype=FLOAT),
    "log, method": lambda scores: scores.log_softmax(-1, FLOAT),
}


def made(call, dtype: torch.dtype, kernels: Kernels) -> list[int]:
    """Bytes of what a call made that was given 1000 scores."""
    world = FakeWorld(Workload(context_length=8, kernels=kernels))
    with world.entered():
        scores = torch.empty((10, 100), dtype=dtype)
    recorder = Recorder([scores], length=8, most=100)
    with world.entered(recorder=recorder):
        out = call(scores)
    assert (out.dtype, tuple(out.shape)) == (FLOAT, (10, 100))
    return [recorder.storages[number].nbytes for event, number in recorder.phase.events if event is Event.BORN]


@pytest.mark.parametrize("way", WAYS)
def test_float16_alone_is_read_without_a_copy(way: str) -> None:
    copies = 2 if way == "module" else 1
    assert made(WAYS[way], torch.float16, Kernels.ACCELERATOR) == [4000] * copies
    assert made(WAYS[way], torch.bfloat16, Kernels.ACCELERATOR) == [4000] * 2
    assert made(WAYS[way], torch.float16, Kernels.CPU) == [4000] * 2


def test_softmax_that_gives_what_it_reads_makes_one_storage() -> None:
    assert made(lambda scores: F.softmax(scores, dim=-1), FLOAT, Kernels.ACCELERATOR) == [4000]


@pytest.mark.parametrize(("dtype", "mebibytes"), [("float16", 832.1), ("bfloat16", 960.1)])
def test_bloom_takes_what_it_took_on_a_board(dtype: str, mebibytes: float, tmp_path: Path) -> None:
    """2048 tokens of a prompt and a new one, beside the weights."""
    config = transformers.BloomConfig(hidden_size=1024, n_head=16, n_layer=4, vocab_size=8192)
    config.architectures = ["BloomForCausalLM"]
    config.save_pretrained(tmp_path)
    found = trace_footprint(read_skeleton(resolve(str(tmp_path)), dtype=dtype), Workload(context_length=2049))
    assert peak_bytes(found) / 2**20 == pytest.approx(mebibytes, rel=0.001)
