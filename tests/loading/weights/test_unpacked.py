"""Quantised checkpoints that transformers unpacks as it loads them here: what is predicted is what is loaded."""

import pytest
import torch

from devctl.devices import Device
from devctl.loading.proofs.places import find_places
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.models.skeleton import Purpose, read_skeleton
from devctl.placement.placement import bytes_per_device
from devctl.units import format_bytes
from tests import quantised
from tests.marks import one_in

CPU = Device.cpu()
pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or torch.xpu.is_available(), reason="transformers keeps them packed on an accelerator"
)


@pytest.mark.parametrize("dtype", one_in(3, ["bfloat16", "float16", "float32"]))
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama", quantised.CHECKPOINTS["fp8"]),
        ("llama", quantised.CHECKPOINTS["fp8 by tensor"]),
        ("mixtral", quantised.CHECKPOINTS["fp8"]),
        ("gpt-oss", quantised.MXFP4),
    ],
    ids=["fp8", "fp8 by tensor", "fp8 experts", "mxfp4"],
)
def test_what_is_unpacked_here_takes_what_is_predicted_and_told(name, settings, dtype, tmp_path):
    source = quantised.packed(tmp_path, name, settings, dtype)
    skeleton = read_skeleton(source, purpose=Purpose.LOAD)
    model, _ = loader.load(
        source, skeleton, {"": CPU}, load_format=LoadFormat.AUTO, folder=None, on_progress=lambda _: None
    )
    loaded = dict(find_places(model, {"": CPU}).measured)[CPU]
    assert bytes_per_device(skeleton.tree, {"": CPU})[CPU] == loaded
    plan = read_skeleton(source).tree
    assert bytes_per_device(plan, {"": CPU})[CPU] < loaded / 1.5  # packed, as on hardware that it is made for
    assert f"elsewhere transformers unpacks them to {dtype}: {format_bytes(loaded)} in all" in plan.notes[0]
