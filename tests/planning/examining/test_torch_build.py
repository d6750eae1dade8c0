"""Does a torch build drive the boards that are here?"""

from dataclasses import replace

import pytest

from devctl.devices import Device
from devctl.inventory.probes.host import UNKNOWN
from devctl.inventory.records import HOST_POOL, Accelerator, Driver, Hidden, Inventory, Vendor
from devctl.planning.examining.findings import Level
from devctl.planning.examining.private import Private
from devctl.planning.examining.torch_build import Torch, judge_torch, parse_torch

CU128 = Torch(
    version="2.9.0+cu128",
    cuda="12.8",
    architectures=("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"),
)
CPU = Torch(version="2.9.0+cpu", sees=0)
ROCM = Torch(version="2.9.0+rocm6.4", hip="6.4.43482", architectures=("gfx90a", "gfx942"))


def board(index=0, **facts):
    known = {"name": "NVIDIA H100 80GB HBM3", "uuid": f"GPU-{index}", "compute_capability": "9.0"}
    known |= {"device": Device.gpu(index), "memory_total": None, "memory_free": None}
    return Accelerator(index=index, **{**known, **facts})


def amd(index=0, **facts):
    return board(
        index,
        **{"vendor": Vendor.AMD, "name": "AMD MI300X", "compute_capability": None, "architecture": "gfx942", **facts},
    )


def machine(*boards, driver="550.54.15", cuda="12.4"):
    drivers = (Driver(vendor=Vendor.NVIDIA, version=driver, cuda=cuda),) if driver else ()
    return Inventory(accelerators=boards, host=UNKNOWN, disks=(), drivers=drivers)


def judged(torch, inventory):
    return {f.subject: (f.level, f.text, f.next_step) for f in judge_torch(torch, inventory, Private())}


def test_a_build_for_the_cpu_alone_is_broken_where_there_are_boards():
    level, text, step = judged(CPU, machine(board(), board(1)))["torch build"]
    assert level is Level.BROKEN
    assert text == ("2.9.0+cpu is built for the CPU alone, and there are 2 boards (NVIDIA H100 80GB HBM3)")
    assert step.startswith("install a torch that is built for CUDA 12.4 or older")


def test_a_build_for_the_cpu_alone_is_right_where_there_is_no_board():
    assert judged(CPU, machine(driver=None)) == {}


def test_a_build_for_the_cpu_alone_is_no_fault_where_every_board_is_hidden_on_purpose():
    hidden = board(device=None, hidden=Hidden.ENVIRONMENT)
    assert judged(CPU, machine(hidden))["torch build"][0] is Level.NOTE


def test_a_board_at_fault_asks_nothing_of_torch():
    assert judged(CPU, machine(board(device=None, fault="GPU is lost"))) == {}


@pytest.mark.parametrize(
    ("driver", "cuda", "level"),
    [
        ("570.26", "12.8", Level.OK),
        ("580.65.06", "13.0", Level.OK),
        ("550.54.15", "12.4", Level.NOTE),
        ("470.57.02", "11.4", Level.BROKEN),
        ("550.54.15", None, Level.NOTE),
    ],
)
def test_a_driver_is_held_against_the_cuda_that_torch_is_built_for(driver, cuda, level):
    found, text, step = judged(CU128, machine(board(), driver=driver, cuda=cuda))["driver"]
    assert found is level
    assert driver in text
    assert "12.8" in text
    if level is Level.BROKEN:
        assert "525.60.13 or newer" in step
        assert "CUDA 11.4 or older" in step


def test_a_driver_that_drives_is_not_called_too_old():
    found = judged(replace(CU128, sees=1), machine(board(), driver="470.57.02", cuda="11.4"))
    assert found["driver"][0] is Level.NOTE


def test_a_board_that_torch_has_no_kernels_for_is_broken_and_others_are_not():
    kepler = board(1, name="Tesla K80", compute_capability="3.7")
    found = judged(CU128, machine(board(), kepler, driver="570.26", cuda="12.8"))
    assert found["cuda:0"][0] is Level.OK
    level, text, step = found["cuda:1"]
    assert level is Level.BROKEN
    assert "Tesla K80, of compute capability 3.7: torch has no kernels for it" in text
    assert "7.0, 7.5, 8.0, 8.6, 9.0, 10.0, 12.0 and PTX of 12.0" in text
    assert "compute capability 3.7" in step


def test_boards_that_are_alike_are_told_of_once():
    assert "cuda:0, cuda:1" in judged(CU128, machine(board(), board(1)))


def test_ptx_is_slow_where_the_driver_compiles_it_and_broken_where_it_is_too_old():
    torch = replace(CU128, architectures=("compute_80",))
    assert judged(torch, machine(board(), driver="570.26", cuda="12.8"))["cuda:0"][0] is Level.NOTE
    assert judged(torch, machine(board(), driver="550.54.15", cuda="12.4"))["cuda:0"][0] is Level.BROKEN
    assert judged(torch, machine(board(), driver="550.54.15", cuda=None))["cuda:0"][0] is Level.NOTE


def test_a_board_that_a_variable_hides_is_judged_by_its_own_name():
    found = judged(CU128, machine(board(device=None, hidden=Hidden.ENVIRONMENT, compute_capability="3.5")))
    assert found["nvidia 0"][0] is Level.BROKEN


def test_what_tells_nothing_of_kernels_is_not_known():
    for torch, it in ((replace(CU128, architectures=()), board()), (CU128, board(compute_capability=None))):
        level, text, _ = judged(torch, machine(it))["cuda:0"]
        assert level is Level.NOTE
        assert "could not be found out" in text
    assert judged(replace(ROCM, architectures=()), machine(amd(), driver=None))["cuda:0"][0] is Level.NOTE


@pytest.mark.parametrize(("sees", "level"), [(2, Level.OK), (0, Level.BROKEN), (1, Level.BROKEN), (3, Level.BROKEN)])
def test_torch_has_to_see_what_the_driver_shows(sees, level):
    torch = replace(CU128, sees=sees, said="CUDA initialization: unknown\nerror of /home/alice/x")
    found, text, _ = judged(torch, machine(board(), board(1), driver="570.26", cuda="12.8"))["torch devices"]
    assert found is level
    assert ("unknown error of ~" in text) == (level is Level.BROKEN)


def test_nothing_is_said_of_numbers_where_the_reason_is_told_already():
    assert "torch devices" not in judged(replace(CU128, sees=0), machine(board(), driver="470.57.02", cuda="11.4"))


def test_a_build_for_amd_is_held_against_amds_architectures():
    found = judged(ROCM, machine(amd(), amd(1, architecture="gfx1100", name="RX 7900"), driver=None))
    assert found["cuda:0"][0] is Level.OK
    assert found["cuda:1"][0] is Level.BROKEN
    assert judged(CPU, machine(amd(), driver=None))["torch build"][0] is Level.BROKEN


def test_the_graphics_of_a_processor_ask_for_no_other_torch():
    graphics = amd(memory_pool=HOST_POOL, architecture="gfx1036")
    assert judged(CPU, machine(graphics, driver=None))["torch build"][0] is Level.NOTE
    assert judged(ROCM, machine(graphics, driver=None))["cuda:0"][0] is Level.NOTE
    intel = board(vendor=Vendor.INTEL, device=Device.from_str("xpu:0"), compute_capability=None)
    assert judged(CPU, machine(intel, driver=None))["torch build"][0] is Level.NOTE


def test_apples_gpu_needs_a_build_for_metal():
    mac = board(vendor=Vendor.APPLE, device=Device.mps(), compute_capability=None, name="Apple M3")
    assert judged(CPU, machine(mac, driver=None))["torch build"][0] is Level.BROKEN
    built = replace(CPU, mps=True, sees_mps=True)
    assert judged(built, machine(mac, driver=None))["torch build"][0] is Level.OK
    assert judged(replace(built, sees_mps=False), machine(mac, driver=None))["torch devices"][0] is Level.BROKEN


def test_one_build_for_two_vendors_is_held_against_one_of_them():
    both = machine(board(), amd(1, device=None, hidden=Hidden.OTHER_BUILD), driver="570.26", cuda="12.8")
    assert all(level is Level.OK for level, _, _ in judged(CU128, both).values())


@pytest.mark.parametrize(
    "build",
    [
        {},
        {"version": 7, "cuda": ["12.8"], "hip": {}, "architectures": "sm_90", "mps": "yes"},
        {"version": "", "cuda": "", "architectures": [1, None, {"a": []}]},
        {"version": "x" * 100_000, "cuda": "not a version", "architectures": ["sm_99999999999"]},
    ],
)
@pytest.mark.parametrize("devices", [None, {}, {"cuda": "two", "mps": 1, "said": 3}, {"cuda": -1}, {"cuda": True}])
def test_what_a_process_tells_of_another_kind_counts_as_untold(build, devices):
    torch = parse_torch(build, devices)
    assert torch.sees is None
    judge_torch(torch, machine(board(), amd(1)), Private())
