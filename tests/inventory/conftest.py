"""The stand-in NVML, loaded once for all tests of a process."""

import ctypes
import sys

import pytest

from devctl.inventory.probes import nvidia
from tests.inventory import stand_ins


@pytest.fixture(scope="session")
def nvml_folder(tmp_path_factory):
    """The folder with the stand-in ``libnvidia-ml.so.1``, for LD_LIBRARY_PATH."""
    if stand_ins.compiler() is None or sys.platform != "linux":
        pytest.skip("no C compiler, or no Linux, to build the stand-in NVML with")
    folder = tmp_path_factory.mktemp("nvml")
    stand_ins.build(folder)
    return folder


@pytest.fixture
def machine(nvml_folder, tmp_path, monkeypatch):
    """Sets which invented boards NVML shows in this process; none, as without a library, when the test is over."""
    # a library that is loaded already is found by its name, whatever the search path
    ctypes.CDLL(str(nvml_folder / "libnvidia-ml.so.1"), mode=ctypes.RTLD_GLOBAL)

    # a process that asks for this one finds it so
    monkeypatch.setenv("LD_LIBRARY_PATH", str(nvml_folder))

    def describe(text):
        (tmp_path / "machine").write_text(text)
        monkeypatch.setenv("FAKE_NVML", str(tmp_path / "machine"))

    return describe


@pytest.fixture
def probe(machine, tmp_path):
    """What the NVIDIA probe finds on a machine: ``probe(boxes.eight(), CUDA_VISIBLE_DEVICES="1")``."""

    def run(text, **environment):
        machine(text)
        return nvidia.probe(environment, tmp_path / "sys")

    return run


@pytest.fixture(scope="session")
def cuda_folder(tmp_path_factory):
    if stand_ins.compiler() is None or sys.platform != "linux":
        pytest.skip("no C compiler, or no Linux, to build the stand-in CUDA driver with")
    folder = tmp_path_factory.mktemp("cuda")
    stand_ins.build(folder, "libcuda.so.1")
    return folder


@pytest.fixture(scope="session")
def cuda_library(cuda_folder):
    loaded = ctypes.CDLL(str(cuda_folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
    loaded.fake_copied.restype = ctypes.c_longlong
    return loaded
