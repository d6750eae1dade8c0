"""What attention makes on an accelerator, beside what an H100's allocator counted."""

import json
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from devctl.models.footprint import Kernels
from devctl.models.tracing.fake_tensors import Guesses, KnownIntegers
from devctl.models.tracing.fused_attention import Given, Kernel, attention, choose
from devctl.models.tracing.recorder import Event, Recorder

ROWS = json.loads((Path(__file__).parent / "attention_h100.json").read_text(encoding="utf-8"))["rows"]
OF_HANDLES = 64 * 1024
"""Bytes that cuDNN takes for a step of one query, and others for flags: not followed."""


def made(shape, strides, dtype):
    return torch.empty_strided(shape, strides, dtype=getattr(torch, dtype))


def ran(kernels, query, key, value, mask=None, **options):
    """The kernel that is chosen, the bytes at the most, and what comes out."""
    tensors = [query, key, value, *([] if mask is None else [mask])]
    recorder = Recorder(tensors, length=1024, most=1000, on_accelerator=True)
    given = Given(query, key, value, mask, options.get("is_causal", False), options.get("enable_gqa", False))
    with KnownIntegers(query.fake_mode, Guesses(), tokens=1, recorder=recorder):
        out = attention(kernels, query, key, value, mask, **options)
    alive = most = 0
    for event, number in recorder.phase.events:
        alive += recorder.storages[number].nbytes * {Event.BORN: 1, Event.DIED: -1}.get(event, 0)
        most = max(most, alive)
    return choose(kernels, given), most, out


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[1]}, {row[0]}")
def test_a_kernel_is_chosen_and_takes_what_it_did_on_an_h100(row):
    _, dtype, query, key, value, mask, options, kernel, nbytes, strides = row
    with FakeTensorMode():
        *leading, heads, length, size = value
        values = torch.empty(*leading, length, heads, size, dtype=getattr(torch, dtype)).transpose(-2, -3)
        if value == key[0]:
            values = made(*key, dtype)
        given = None if mask is None else made(*mask[1:], mask[0])
        chosen, most, out = ran(
            Kernels.ACCELERATOR_CUDNN, made(*query, dtype), made(*key, dtype), values, given, **options
        )
    assert chosen is Kernel(kernel)
    # the allocator counts whole blocks, of which a large one is up to 1 MiB larger than what was asked for
    assert most == pytest.approx(nbytes, rel=0.005, abs=OF_HANDLES)
    assert list(out.stride()) == strides


def tensors(dtype="bfloat16", heads=8, keys=8, length=64, size=64):
    with FakeTensorMode():
        query = torch.empty(1, length, heads, size, dtype=getattr(torch, dtype)).transpose(1, 2)
        key = torch.empty(1, length, keys, size, dtype=getattr(torch, dtype)).transpose(1, 2)
    return query, key, key


@pytest.mark.parametrize(
    ("kernels", "dtype", "masked", "expected"),
    [
        (Kernels.ACCELERATOR, "bfloat16", False, Kernel.FLASH),
        (Kernels.ACCELERATOR, "bfloat16", True, Kernel.EFFICIENT),
        (Kernels.ACCELERATOR, "float32", False, Kernel.EFFICIENT),
        (Kernels.ACCELERATOR_CUDNN, "bfloat16", True, Kernel.CUDNN),
        (Kernels.ACCELERATOR_CUDNN, "float32", True, Kernel.EFFICIENT),
        (Kernels.ACCELERATOR_BEFORE_8, "bfloat16", False, Kernel.PLAIN),
        (Kernels.ACCELERATOR_BEFORE_8, "float16", False, Kernel.EFFICIENT),
        (Kernels.ACCELERATOR_BEFORE_8, "float32", True, Kernel.EFFICIENT),
    ],
)
def test_boards_differ_in_the_kernels_that_they_have(kernels, dtype, masked, expected):
    query, key, value = tensors(dtype)
    mask = query.new_empty((1, 1, 64, 64), dtype=torch.bool) if masked else None
    assert ran(kernels, query, key, value, mask)[0] is expected


def test_cudnn_takes_no_more_than_the_kernels_that_are_counted_where_it_is_not_known():
    for shares, keys in ((False, 8), (True, 2)):
        for masked in (False, True):
            query, key, value = tensors(keys=keys, length=77)
            mask = query.new_empty((1, 1, 77, 77), dtype=torch.bool) if masked else None
            most = [
                ran(kernels, query, key, value, mask, enable_gqa=shares)[1]
                for kernels in (Kernels.ACCELERATOR_CUDNN, Kernels.ACCELERATOR, Kernels.ACCELERATOR_BEFORE_8)
            ]
            assert most == sorted(most)
