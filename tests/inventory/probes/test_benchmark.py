"""Measuring: bounded, and nothing left behind."""

import ctypes
import os
from dataclasses import replace

import pytest

from devctl.devices import Device
from devctl.inventory.probes import benchmark, cuda
from devctl.inventory.records import Accelerator, Disk, Host, Inventory

FIRST = "GPU-" + cuda.format_uuid(b"\xaa" * 16)
HOST = Host(cpu=None, cores_physical=None, cores_logical=None, ram_total=None, ram_available=None)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(benchmark, "READ_BYTES", 8 << 20)


def disk(folder, **facts):
    return replace(Disk(use="x", path=str(folder), total=1 << 40, free=1 << 40, mount="/"), **facts)


def test_reading_is_measured_and_leaves_nothing(tmp_path, small):
    found = benchmark.measure_disk(disk(tmp_path))
    assert found.read_speed > 0
    assert found.fault is None
    assert list(tmp_path.iterdir()) == []


def test_speed_is_bytes_over_seconds(tmp_path):
    ticks = iter(range(100))
    # a clock of one second a look: the first write is past the deadline of two seconds at the third look
    speed = benchmark.read_speed(tmp_path, 4 << 20, lambda: next(ticks))
    assert speed == (4 << 20) // 2


def test_time_bounds_the_bytes(tmp_path):
    written = []
    now = iter([0.0, 0.0, 0.5, 9.0, 10.0, 10.0, 10.5, 19.0, 20.0])

    def clock():
        written.append(None)
        return next(now)

    assert benchmark.read_speed(tmp_path, 1 << 40, clock) == (8 << 20) // 9
    assert len(written) == 8


def test_a_disk_that_is_nearly_full_is_not_filled(tmp_path):
    found = benchmark.measure_disk(disk(tmp_path, free=1 << 20))
    assert (found.read_speed, found.fault) == (None, "too full to measure")


def test_a_folder_that_is_not_ours_is_a_fault(tmp_path, monkeypatch, small):
    def refused(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refused)
    assert benchmark.measure_disk(disk(tmp_path)).fault == "not measured: Permission denied"


def test_a_system_that_cannot_forget_its_cache_measures_nothing(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")
    assert benchmark.read_speed(tmp_path, 1 << 20) is None


def test_a_faulty_disk_is_left_alone(tmp_path):
    broken = disk(tmp_path, fault="gone", free=None)
    assert benchmark.measure_disk(broken) == broken


def test_folders_of_one_file_system_are_measured_once(tmp_path, monkeypatch):
    measured = []

    def fake(found):
        measured.append(found.path)
        return replace(found, read_speed=7)

    monkeypatch.setattr(benchmark, "measure_disk", fake)
    inventory = Inventory(accelerators=(), host=HOST, disks=(disk("/a"), disk("/b"), disk("/c", mount="/c")))
    found = benchmark.measure(inventory)
    assert measured == ["/a", "/c"]
    assert [d.read_speed for d in found.disks] == [7, 7, 7]


def test_copying_to_a_gpu_is_measured_and_gives_all_back(cuda_library, monkeypatch):
    monkeypatch.setattr(cuda, "COPY_BYTES", 1 << 20)
    before = cuda_library.fake_copied()
    speeds = cuda.host_to_device([FIRST, "GPU-of-another-machine"], seconds=0.05)
    assert list(speeds) == [FIRST]
    assert speeds[FIRST] > 0
    assert (1 << 20) < cuda_library.fake_copied() - before <= 65 << 20
    assert cuda_library.fake_alive() == 0


@pytest.mark.parametrize("failure", ["init", "memory"])
def test_what_cannot_be_measured_is_left_out_and_given_back(cuda_library, monkeypatch, failure):
    monkeypatch.setenv("FAKE_CUDA", failure)
    assert cuda.host_to_device([FIRST], seconds=0.05) == {}
    assert cuda_library.fake_alive() == 0


def test_without_a_cuda_driver_nothing_is_measured(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda.host_to_device([FIRST], seconds=1) == {}


def test_gpus_that_cannot_be_used_are_not_touched(monkeypatch):
    asked = []
    monkeypatch.setattr(cuda, "host_to_device", lambda uuids, seconds: asked.append(set(uuids)) or {FIRST: 5})
    shown = Accelerator(device=Device.gpu(0), index=0, name=None, uuid=FIRST, memory_total=None, memory_free=None)
    hidden = replace(shown, device=None, uuid="GPU-hidden")
    found = benchmark.measure(Inventory(accelerators=(shown, hidden), host=HOST, disks=()))
    assert asked == [{FIRST}]
    assert [a.host_to_device for a in found.accelerators] == [5, None]
