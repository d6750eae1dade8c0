"""Quantised checkpoints that transformers unpacks as it loads them here: what is predicted is what is loaded."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import devctl
from devctl.devices import Device
from devctl.loading.proofs.places import find_places
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import Purpose, read_skeleton
from devctl.placement.placement import bytes_per_device
from devctl.units import format_bytes
from tests import quantised, small_models

CPU = Device.cpu()
PLAIN = ("embed", "lm_head", "norm", "router", ".gate.")
"""Parts of the names of what stays as it is."""

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or torch.xpu.is_available(), reason="transformers keeps them packed on an accelerator"
)


def packed(folder, name, settings, dtype):
    """A checkpoint of the wide model called ``name``, as the method packs it; its numbers are of no interest."""
    model_class, config = small_models.WIDE[name]()
    torch.manual_seed(0)
    model_class(config).to(getattr(torch, dtype)).save_pretrained(folder)
    plain, made = load_file(folder / "model.safetensors"), {}
    for key, value in plain.items():
        if settings["quant_method"] == "mxfp4" and key.endswith("_proj"):
            experts, inputs, outputs = value.shape
            made[f"{key}_blocks"] = torch.zeros(experts, outputs, inputs // 32, 16, dtype=torch.uint8)
            made[f"{key}_scales"] = torch.full((experts, outputs, inputs // 32), 127, dtype=torch.uint8)
        elif settings["quant_method"] == "fp8" and value.dim() == 2 and not any(part in key for part in PLAIN):
            block = settings["weight_block_size"]
            shape = () if block is None else tuple(-(-n // b) for n, b in zip(value.shape, block, strict=True))
            made[key] = value.to(torch.float8_e4m3fn)
            made[f"{key}_scale_inv"] = torch.ones(shape)
        else:
            made[key] = value
    assert made.keys() != plain.keys()
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return resolve(str(folder))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
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
    source = packed(tmp_path, name, settings, dtype)
    skeleton = read_skeleton(source, purpose=Purpose.LOAD)
    model, _ = loader.load(
        source, skeleton, {"": CPU}, load_format=LoadFormat.AUTO, folder=None, on_progress=lambda _: None
    )
    loaded = dict(find_places(model, {"": CPU}).measured)[CPU]
    assert bytes_per_device(skeleton.tree, {"": CPU})[CPU] == loaded
    plan = read_skeleton(source).tree
    assert bytes_per_device(plan, {"": CPU})[CPU] < loaded / 1.5  # packed, as on hardware that it is made for
    assert f"elsewhere transformers unpacks them to {dtype}: {format_bytes(loaded)} in all" in plan.notes[0]


@pytest.mark.parametrize(("machine", "mib", "fits"), [("cpu", 1, False), ("cpu", 2, True), ("1xH100", 1, True)])
def test_a_plan_without_an_accelerator_has_room_for_what_is_unpacked(machine, mib, fits, tmp_path):
    """It is 0.7 MiB packed, and 1.26 MiB unpacked."""
    packed(tmp_path, "llama", quantised.CHECKPOINTS["fp8"], "bfloat16")
    hardware = f"{machine}={mib}MiB" if machine == "cpu" else f"{machine},cpu={mib}MiB"
    plan = devctl.plan(str(tmp_path), hardware)
    assert plan.fits is fits
    if not fits:
        assert plan.refusal.message.endswith("without an accelerator, transformers unpacks fp8 weights to bfloat16")
        assert plan.refusal.findings == ("cpu is given 1.26 MiB, 261 KiB more than the 1.00 MiB that it may hold",)
    kept = devctl.plan(str(tmp_path), hardware)  # the second time, of a tree that was kept
    assert kept.refusal == plan.refusal
