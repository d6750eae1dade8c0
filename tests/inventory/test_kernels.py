"""Which boards a build of CUDA code runs on, and with which drivers."""

import pytest

from devctl.inventory.kernels import LEAST_DRIVERS, Kernels, Runs, kernels_for, least_driver, listed, runs

BINARIES = ("sm_50", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ("9.0", BINARIES, Kernels.BINARY),
        ("8.9", BINARIES, Kernels.BINARY),  # of sm_86
        ("8.0", BINARIES, Kernels.BINARY),
        ("6.1", BINARIES, Kernels.NONE),
        ("5.2", BINARIES, Kernels.BINARY),
        ("3.7", BINARIES, Kernels.NONE),
        ("12.0", BINARIES, Kernels.NONE),
        ("10.0", BINARIES, Kernels.NONE),
        ("12.0", (*BINARIES, "compute_90"), Kernels.PTX),
        ("12.1", ("sm_120",), Kernels.BINARY),
        ("12.0", ("sm_121",), Kernels.NONE),
        ("8.6", ("sm_87",), Kernels.NONE),
        ("8.6", ("compute_86",), Kernels.PTX),
        ("8.6", ("compute_87",), Kernels.NONE),
        ("7.0", ("compute_75", "compute_50"), Kernels.PTX),
        ("9.0", ("sm_90a",), Kernels.BINARY),
        ("9.1", ("sm_90a",), Kernels.NONE),
        ("10.0", ("compute_90a",), Kernels.NONE),
        ("10.3", ("sm_100f",), Kernels.BINARY),
        ("12.0", ("sm_100f",), Kernels.NONE),
        ("12.0", ("compute_100f",), Kernels.NONE),
        ("9.0", (), Kernels.NONE),
        ("9.0", ("gfx942", "sm_", "sm_9", "", "sm_90 evil"), Kernels.NONE),
        ("nine", BINARIES, None),
    ],
)
def test_a_binary_runs_on_its_major_from_its_minor_on_and_ptx_on_all_that_is_later(capability, architectures, expected):
    assert kernels_for(capability, architectures) is expected


@pytest.mark.parametrize(
    ("built_for", "driver", "driver_cuda", "expected"),
    [
        ("12.4", "550.54.15", "12.4", Runs.FULLY),
        ("12.4", "580.65.06", "13.0", Runs.FULLY),
        ("11.8", "580.65.06", "13.0", Runs.FULLY),
        ("12.8", "550.54.15", "12.4", Runs.WITHIN_MAJOR),
        ("12.8", "525.60.13", "12.0", Runs.WITHIN_MAJOR),
        ("12.8", "525.60.12", "12.0", Runs.NOT),
        ("12.1", "470.57.02", "11.4", Runs.NOT),
        ("13.0", "570.26", "12.8", Runs.NOT),
        ("11.8", "450.80.02", "11.0", Runs.WITHIN_MAJOR),
        # the library of a compatibility package runs it, whatever the kernel's module
        ("12.8", "470.57.02", "12.8", Runs.FULLY),
        ("12.8", None, "11.4", Runs.NOT),
        ("12.8", None, "12.4", Runs.UNKNOWN),
        ("12.8", "550.54.15", None, Runs.UNKNOWN),
        ("12.8", "470.57.02", None, Runs.NOT),
        ("12.8", "odd", None, Runs.UNKNOWN),
        ("99.0", "550.54.15", "12.4", Runs.NOT),
        ("odd", "550.54.15", "12.4", Runs.UNKNOWN),
    ],
)
def test_a_driver_runs_what_is_older_and_within_its_major_what_is_newer(built_for, driver, driver_cuda, expected):
    assert runs(built_for, driver, driver_cuda) is expected


def test_windows_has_its_own_numbers():
    assert runs("12.8", "528.32", "12.0", windows=True) is Runs.NOT
    assert runs("12.8", "528.33", "12.0", windows=True) is Runs.WITHIN_MAJOR
    assert (least_driver("11.8"), least_driver("11.8", windows=True)) == ("450.80.02", "452.39")
    assert least_driver("10.2") is None


def test_the_table_has_a_row_for_each_major_in_order():
    assert list(LEAST_DRIVERS) == sorted(LEAST_DRIVERS)
    assert all(least_driver(f"{major}.0") == pair[0] for major, pair in LEAST_DRIVERS.items())


def test_architectures_as_a_person_reads_them():
    assert listed(("sm_75", "sm_90a", "sm_120", "compute_120")) == "7.5, 9.0a, 12.0 and PTX of 12.0"
    assert listed(("compute_90",)) == "PTX of 9.0"
    assert listed(()) == ""
