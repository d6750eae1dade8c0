"""Requirements and maps, held against inventories of a few bytes."""

from dataclasses import replace
from pathlib import Path

import pytest

from devctl.devices import Device
from devctl.inventory.map_fits import judge_map
from devctl.inventory.records import (
    Accelerator,
    Disk,
    Driver,
    Health,
    Hidden,
    Host,
    Inventory,
    LinkPath,
    Links,
    MigInstance,
    Process,
    Vendor,
)
from devctl.inventory.requirements import Requirements, disk_use, judge, parse_version

HOST = Host(cpu="x", cores_physical=1, cores_logical=2, ram_total=100, ram_available=60)


def gpu(n, free=50, **facts):
    known = {
        "device": Device.gpu(n),
        "index": n,
        "cuda_index": n,
        "name": "G",
        "uuid": f"GPU-{n}",
        "memory_total": 80,
        "memory_free": free,
        "compute_capability": "8.0",
        "processes": (),
        "utilization": 0,
        "memory_used": 0,
        "health": Health(),
    }
    return Accelerator(**{**known, **facts})


def box(*gpus, p2p=(), **facts):
    count = range(len(gpus))
    links = Links(
        accelerators=tuple(count),
        path=tuple(tuple(LinkPath.SYSTEM for _ in count) for _ in count),
        nvlinks=tuple(tuple(0 for _ in count) for _ in count),
        p2p=tuple(tuple({i, j} in p2p for j in count) for i in count),
    )
    driver = Driver(vendor=Vendor.NVIDIA, version="550.54.15", cuda="12.4")
    return Inventory(**{"accelerators": gpus, "host": HOST, "disks": (), "links": links, "drivers": (driver,), **facts})


def lines(inventory, **wanted):
    return [str(finding) for finding in judge(inventory, Requirements(**wanted)).findings if not finding.met]


def selected(inventory, **wanted):
    return [a.index for a in judge(inventory, Requirements(**wanted)).selected]


def test_gpus_are_counted():
    two = box(gpu(0), gpu(1))
    assert lines(two, gpus=2) == []
    assert lines(two, gpus=3) == ["--gpus 3: 2 usable, 3 wanted"]
    assert lines(box(), gpus=0) == []


def test_why_others_do_not_count_is_said():
    lost = gpu(1, device=None, fault="GPU is lost")
    away = gpu(2, device=None, hidden=Hidden.ENVIRONMENT)
    assert lines(box(gpu(0), lost, away), gpus=3) == [
        "--gpus 3: 1 usable, 3 wanted; nvidia 1: GPU is lost; nvidia 2: hidden (environment)"
    ]


def test_a_driver_at_fault_is_why_there_are_none():
    broken = box(drivers=(Driver(vendor=Vendor.NVIDIA, version=None, cuda=None, fault="not loaded"),))
    assert lines(broken, gpus=1) == ["--gpus 1: 0 usable, 1 wanted; nvidia driver: not loaded"]


def test_free_memory_of_each():
    three = box(gpu(0, 50), gpu(1, 10), gpu(2, None))
    assert lines(three, gpu_memory=50) == []
    assert lines(three, gpu_memory=20, gpus=2) == [
        "--gpu-memory 20 B: 1 of 3 usable GPUs has enough, 2 wanted; cuda:1: 10 B free; cuda:2: unknown",
    ]


def test_unknown_memory_is_not_enough():
    assert lines(box(gpu(0, None)), gpu_memory=0)


def test_requirements_must_be_met_by_the_same_gpu():
    two = box(gpu(0, 10), gpu(1, 50, processes=(Process(pid=7, name="python", memory=1),)))
    assert lines(two, gpu_memory=20) == []
    assert lines(two, idle=True) == []
    assert lines(two, gpu_memory=20, idle=True) == [
        "all of --gpu-memory 20 B --idle: 0 of 2 usable GPUs have what is asked of each, 1 wanted"
    ]


def test_idle_names_the_processes():
    busy = box(gpu(0, processes=(Process(pid=7, name="python", memory=1), Process(pid=9, name=None, memory=None))))
    assert "cuda:0: python 7 + process 9" in lines(busy, idle=True)[0]
    assert "processes unknown" in lines(box(gpu(0, processes=None)), idle=True)[0]


def test_every_unmet_requirement_has_its_line():
    found = lines(
        box(gpu(0, 10, compute_capability="7.5")),
        gpus=2,
        gpu_memory=20,
        total_gpu_memory=100,
        ram=61,
        disks=((Path("/d"), 5),),
        compute_capability=(8, 0),
        driver=(560,),
        cuda=(12, 5),
        p2p=True,
    )
    assert [line.partition(":")[0] for line in found] == [
        "--gpus 2",
        "--gpu-memory 20 B",
        "--compute-capability 8.0",
        "--p2p",
        "--total-gpu-memory 100 B",
        "--ram 61 B",
        "--disk /d=5 B",
        "--driver 560",
        "--cuda 12.5",
    ]


@pytest.mark.parametrize(
    ("wanted", "met"),
    [((550,), True), ((550, 54), True), ((550, 54, 15), True), ((550, 55), False), ((551,), False), ((99,), True)],
)
def test_driver_versions(wanted, met):
    assert (lines(box(), driver=wanted) == []) is met


@pytest.mark.parametrize(("wanted", "met"), [((12,), True), ((12, 4), True), ((12, 10), False), ((13,), False)])
def test_cuda_versions_are_numbers_not_text(wanted, met):
    assert (lines(box(), cuda=wanted) == []) is met


def test_compute_capability_is_a_number_not_text():
    assert lines(box(gpu(0, compute_capability="10.0")), compute_capability=(9, 0)) == []
    assert lines(box(gpu(0, compute_capability=None)), compute_capability=(9, 0))


def test_no_driver_meets_no_version():
    assert lines(box(drivers=()), driver=(1,)) == ["--driver 1: no driver"]
    assert lines(box(drivers=()), cuda=(1,)) == ["--cuda 1: no driver"]


def test_total_memory_counts_a_shared_pool_once_and_hidden_gpus_not_at_all():
    pooled = [gpu(n, 60, memory_pool="host") for n in (0, 1)]
    machine = box(*pooled, gpu(2, 5), gpu(3, 9, device=None, hidden=Hidden.ENVIRONMENT))
    assert lines(machine, total_gpu_memory=65) == []
    assert lines(machine, total_gpu_memory=66) == ["--total-gpu-memory 66 B: 65 B free on all usable GPUs"]


def test_total_memory_says_what_it_does_not_know():
    assert lines(box(gpu(0, 5), gpu(1, None)), total_gpu_memory=6) == [
        "--total-gpu-memory 6 B: 5 B free on all usable GPUs; unknown: cuda:1"
    ]


def test_ram_and_disks():
    disk = Disk(use=disk_use(Path("/d")), path="/d", total=9, free=4)
    machine = box(disks=(disk,))
    assert lines(machine, ram=60, disks=((Path("/d"), 4),)) == []
    assert lines(machine, ram=61, disks=((Path("/d"), 5),)) == [
        "--ram 61 B: 60 B available",
        "--disk /d=5 B: 4 B free",
    ]
    unknown = box(host=replace(HOST, ram_available=None), disks=(replace(disk, free=None, fault="Permission denied"),))
    assert lines(unknown, ram=0, disks=((Path("/d"), 0),)) == ["--ram 0 B: unknown", "--disk /d=0 B: Permission denied"]


def test_peers():
    three = box(gpu(0), gpu(1), gpu(2), p2p=({0, 2},))
    assert lines(three, gpus=2, p2p=True) == []
    assert lines(three, p2p=True) == ["--p2p: no 3 GPUs that qualify all reach each other's memory"]
    assert selected(three, select=2, p2p=True) == [0, 2]
    assert lines(box(gpu(0)), p2p=True) == []
    assert lines(box(), p2p=True) == ["--p2p: 0 usable, 1 wanted"]


def test_peers_are_the_best_that_qualify():
    four = box(gpu(0, 10), gpu(1, 40), gpu(2, 30), gpu(3, 20), p2p=({0, 1}, {2, 3}, {1, 3}))
    assert selected(four, select=2, p2p=True) == [1, 3]
    assert selected(four, select=2, p2p=True, gpu_memory=15) == [1, 3]
    assert lines(four, select=2, p2p=True, gpu_memory=25)


def test_selection_is_best_first():
    machine = box(
        gpu(0, 10),
        gpu(1, 50, processes=(Process(pid=1, name=None, memory=1),)),
        gpu(2, 50, utilization=9),
        gpu(3, 50),
        gpu(4, None),
    )
    assert selected(machine, select=5) == [3, 2, 1, 0, 4]
    assert selected(machine, select=1) == [3]


def test_selection_needs_all_requirements():
    assert selected(box(gpu(0)), select=1, ram=61) == []
    assert lines(box(gpu(0), gpu(1, 10)), select=2, gpu_memory=20)[0].startswith("--gpu-memory 20 B: 1 of 2")


def test_more_may_be_asked_for_than_selected():
    assert selected(box(gpu(0), gpu(1), gpu(2)), gpus=3, select=2) == [0, 1]
    assert lines(box(gpu(0), gpu(1)), gpus=3, select=2)


def test_one_mig_instance_can_be_selected_and_two_cannot():
    shown = gpu(0, 5, mig=MigInstance(parent="GPU-0", gpu_instance=7, compute_instance=0))
    named = replace(shown, device=None, hidden=Hidden.MIG_LIMIT, memory_free=9, uuid="MIG-2", cuda_index=None)
    machine = box(shown, named)
    assert [a.uuid for a in judge(machine, Requirements(select=1)).selected] == ["MIG-2"]
    assert lines(machine, select=2)
    assert lines(machine, gpus=2), "a process gets one instance"


@pytest.mark.parametrize("text", ["", "x", "12.x", "-1", "1..2", "１２", "12.4 beta"])
def test_malformed_versions(text):
    with pytest.raises(ValueError, match="not a version"):
        parse_version(text)


def test_a_map_fits():
    used = {Device.gpu(0): 50, Device.gpu(1): None, Device.cpu(): 60, Device.disk(): 999}
    assert all(finding.met for finding in judge_map(box(gpu(0), gpu(1, None)), used))


def test_a_map_that_no_longer_fits_says_by_how_much():
    used = {Device.gpu(0): 51, Device.gpu(1): 51, Device.cpu(): 61}
    found = [str(finding) for finding in judge_map(box(gpu(0), gpu(1, None)), used)]
    assert found == [
        "cuda:0: needs 51 B of 50 B free, 1 B short",
        "cuda:1: needs 51 B, free memory unknown",
        "cpu: needs 61 B of 60 B free, 1 B short",
    ]


def test_devices_of_a_map_that_are_not_here():
    machine = box(gpu(0), gpu(1, device=None, fault="GPU is lost"))
    found = [str(f) for f in judge_map(machine, {Device.gpu(1): 1, Device.xpu(): None, Device.mps(): None})]
    assert found[0] == "cuda:1: is not here; here are cuda:0; nvidia 1: GPU is lost"
    assert [line.partition(":")[0] for line in found[1:]] == ["xpu", "mps"]
    assert "no usable GPU is here" in str(judge_map(box(), {Device.gpu(0): 1})[0])


def test_devices_that_share_a_memory_must_fit_together():
    unified = box(gpu(0, 60, memory_pool="host"))
    assert [f.met for f in judge_map(unified, {Device.gpu(0): 30, Device.cpu(): 30})] == [True, True, True]
    found = judge_map(unified, {Device.gpu(0): 40, Device.cpu(): 30})
    assert [f.met for f in found] == [True, True, False]
    assert str(found[2]) == "cuda:0 + cpu (one memory): needs 70 B of 60 B free, 10 B short"


def test_a_device_without_a_number_is_the_first():
    assert judge_map(box(gpu(0)), {Device.from_str("cuda"): 50})[0].met
