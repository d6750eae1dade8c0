"""Whose kernels a load is taken to run with."""

import pytest
import torch

from devctl.devices import Device
from devctl.loading.run.expected import kernels_here
from devctl.models.footprint import Kernels


@pytest.mark.parametrize(
    ("capability", "cudnn", "expected"),
    [
        ((9, 0), 91501, Kernels.ACCELERATOR_CUDNN),
        ((9, 0), 91002, Kernels.ACCELERATOR),
        ((9, 0), None, Kernels.ACCELERATOR),
        ((8, 6), 91501, Kernels.ACCELERATOR),
        ((7, 5), 91501, Kernels.ACCELERATOR_BEFORE_8),
    ],
)
def test_they_are_those_of_the_board_with_the_torch_that_is_here(capability, cudnn, expected, monkeypatch):
    monkeypatch.delenv("TORCH_CUDNN_SDPA_DEPRIORITIZED", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability if index == 1 else None)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    assert kernels_here(Device.gpu(1)) is expected


def test_without_such_a_board_they_are_those_that_take_most(monkeypatch):
    assert kernels_here(Device.cpu()) is Kernels.CPU
    assert kernels_here(Device.from_str("mps")) is Kernels.ACCELERATOR
    monkeypatch.setattr(torch.version, "cuda", None)
    assert kernels_here(Device.gpu(0)) is Kernels.ACCELERATOR
