"""Batches whose sequences are of mixed lengths."""

import pytest

from devctl.models.footprint import Kernels, Workload, peak_bytes
from devctl.models.tracing.trace import trace_footprint
from devctl.planning.model import open_model
from devctl.planning.request import ModelRequest
from tests import metered, small_models
from tests.conftest import CONFIGS
from tests.marks import slow

BATCH = Workload(context_length=320, new_tokens=2, batch_size=3, padded=True)


@pytest.mark.parametrize("dtype", ["float32", *slow("bfloat16")])
@pytest.mark.parametrize("name", ["llama", *slow("bert", "gemma3")])
def test_a_padded_batch_is_predicted(name, dtype):
    assert -0.02 <= metered.error(name, BATCH, dtype=dtype) <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2", "gpt-oss", "mistral", "qwen3-moe", "t5", "bart", "phi3", "gpt_neox"])
def test_a_padded_batch_of_other_architectures_is_predicted(name):
    assert -0.02 <= metered.error(name, BATCH) <= 0.1


@pytest.fixture(scope="module")
def footprints():
    """Of which each is traced once."""
    return open_model(ModelRequest(model=str(CONFIGS / "tiny-llama"), cache=False)).footprints


def of(footprints, batch, *, padded=True, how="of"):
    workload = Workload(context_length=256, batch_size=batch, padded=padded, kernels=Kernels.CPU)
    return getattr(footprints, how)(workload)


def test_padding_costs_a_mask(footprints):
    assert peak_bytes(of(footprints, 2)) > peak_bytes(of(footprints, 2, padded=False))


def test_one_sequence_is_never_padded(footprints):
    assert of(footprints, 1) == of(footprints, 1, padded=False)
    assert not of(footprints, 1).workload.padded


@pytest.mark.parametrize("batch", [1, 2, *slow(3, 7)])
@pytest.mark.parametrize("padded", [False, True])
def test_the_line_through_two_batches_is_as_traced(footprints, batch, padded):
    line, traced = (of(footprints, batch, padded=padded, how=how) for how in ("scaled", "of"))
    assert line.workload == traced.workload
    assert peak_bytes(line) == pytest.approx(peak_bytes(traced), rel=0.001)


@pytest.mark.slow
def test_a_batch_that_is_too_large_to_trace_is_on_the_line(footprints):
    workload = Workload(context_length=2**19, batch_size=4, padded=True)
    assert footprints.of(workload).workload.batch_size == 4


def test_images_are_not_padded():
    workload = Workload(context_length=8, batch_size=2, new_tokens=0, padded=True)
    assert not trace_footprint(small_models.skeleton("vit"), workload).workload.padded
