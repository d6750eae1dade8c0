"""The host and the disks: parsers on text, kinds of block devices on a folder of small files."""

import os
from collections import namedtuple

import psutil
import pytest

from devctl.inventory.probes import cgroup, disk, host
from devctl.inventory.probes.mounts import Mount
from devctl.inventory.records import DiskKind, NumaNode

ROOT = Mount(point="/", filesystem="ext4", source="/dev/sda1", number="8:1")
DATA = Mount(point="/data", filesystem="nfs4", source="server:/export", number="0:52")


def test_the_cgroups_limit_is_what_can_be_used(monkeypatch):
    monkeypatch.setattr(cgroup, "probe", lambda mounts: cgroup.Limits(memory=1 << 20, memory_available=1000, cpus=1.5))
    found = host.probe()
    assert (found.ram_total, found.ram_limit, found.ram_available, found.cpu_quota) == (1 << 20, 1 << 20, 1000, 1.5)
    assert found.ram_total_system == psutil.virtual_memory().total
    assert found.ram_available_system > 1 << 20


def test_without_a_limit_it_is_the_machines(monkeypatch):
    monkeypatch.setattr(cgroup, "probe", lambda mounts: cgroup.Limits())
    found = host.probe()
    assert (found.ram_total, found.ram_limit) == (psutil.virtual_memory().total, None)
    assert found.ram_available == found.ram_available_system
    assert found.cores_usable == len(os.sched_getaffinity(0))


def test_a_limit_above_the_machine_does_not_add_memory(monkeypatch):
    monkeypatch.setattr(cgroup, "probe", lambda mounts: cgroup.Limits(memory=1 << 59, memory_available=1 << 59))
    assert host.probe().ram_total == psutil.virtual_memory().total


def test_memory_that_cannot_be_read_is_a_fault(monkeypatch):
    def fails():
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(host, "parse_meminfo", lambda text: None)
    monkeypatch.setattr(psutil, "virtual_memory", fails)
    found = host.probe()
    assert "meminfo" in found.fault
    assert (found.ram_total_system, found.swap_total) == (None, None)
    assert found.cores_logical


MEMINFO = {"MemTotal": 1000, "MemFree": 10, "MemAvailable": 900, "SwapTotal": 50, "SwapFree": 0}


def meminfo(**sizes):
    return "".join(f"{name}:  {size} kB\n" for name, size in {**MEMINFO, **sizes}.items() if size is not None)


def test_meminfo():
    assert host.parse_meminfo(meminfo()) == (1000 * 1024, 900 * 1024, 50 * 1024, 0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        meminfo(MemAvailable=None),
        meminfo(SwapFree=None),
        meminfo(MemAvailable=1001),
        meminfo(MemAvailable=0),
        meminfo(MemTotal="many"),
        meminfo(MemTotal=-5),
        meminfo(MemTotal=10**400),
    ],
)
def test_where_meminfo_does_not_say_psutil_is_asked(monkeypatch, text):
    assert host.parse_meminfo(text) is None
    monkeypatch.setattr(host, "read", lambda path: text)
    found, known = host.probe(), psutil.virtual_memory()
    assert (found.ram_total_system, found.swap_total) == (known.total, psutil.swap_memory().total)
    assert 0 < found.ram_available_system <= known.total


def test_without_swap_that_can_be_read_the_memory_is_told(monkeypatch):
    def fails():
        raise OSError("/proc/vmstat")

    monkeypatch.setattr(host, "parse_meminfo", lambda text: None)
    monkeypatch.setattr(psutil, "swap_memory", fails)
    found = host.probe()
    assert found.ram_total_system == psutil.virtual_memory().total
    assert (found.swap_total, found.fault) == (None, None)


def test_this_host_is_what_psutil_says(monkeypatch):
    monkeypatch.setattr(cgroup, "probe", lambda mounts: cgroup.Limits())
    found = host.probe()
    assert (found.ram_total, found.swap_total) == (psutil.virtual_memory().total, psutil.swap_memory().total)
    assert (found.cores_logical, found.cores_physical) == (psutil.cpu_count(), psutil.cpu_count(logical=False))


def test_threads_of_a_core_are_one_core(tmp_path):
    for cpu, core in enumerate(["0,2", "1,3", "0,2", "1,3"]):
        topology = tmp_path / f"devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "core_cpus_list").write_text(core + "\n")
    (tmp_path / "devices/system/cpu/cpufreq").mkdir()
    assert host.physical_cores(tmp_path) == 2
    assert host.physical_cores(tmp_path / "none") is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("processor : 0\nmodel name\t: AMD EPYC 9654\n", "AMD EPYC 9654"),
        ("processor : 0\nBogoMIPS : 50\n", None),
        ("model name :\nmodel name : Second\n", "Second"),
        ("", None),
    ],
)
def test_cpuinfo(text, name):
    assert host.parse_cpuinfo(text) == name


def test_numa_nodes(tmp_path):
    for node in (0, 1, 10):
        folder = tmp_path / f"devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(f"{node}-{node + 1}\n")
        (folder / "meminfo").write_text(
            f"Node {node} MemTotal:       1024 kB\nNode {node} MemFree:     x kB\ngarbage\n"
        )
    (tmp_path / "devices/system/node/has_cpu").write_text("0\n")
    nodes = host.numa_nodes(tmp_path)
    assert [node.id for node in nodes] == [0, 1, 10]
    assert nodes[1] == NumaNode(id=1, cpus="1-2", memory_total=1 << 20, memory_free=None)


def test_no_numa_nodes_are_unknown(tmp_path):
    assert host.numa_nodes(tmp_path) is None


def test_the_longest_mount_wins_and_a_name_is_no_folder():
    assert disk.mount_of("/data/x", (ROOT, DATA)) is DATA
    assert disk.mount_of("/database", (ROOT, DATA)) is ROOT
    assert disk.mount_of("/data", (DATA, ROOT)) is DATA
    assert disk.mount_of("/", (ROOT,)) is ROOT
    assert disk.mount_of("/x", (DATA,)) is None


def test_the_later_of_equal_mounts_covers_the_earlier():
    cover = DATA._replace(filesystem="tmpfs")
    assert disk.mount_of("/data/x", (DATA, cover)) is cover


def block(sys, name, number, *, rotational="0", partition_of=None, slaves=()):
    folder = sys / "devices" / (f"{partition_of}/{name}" if partition_of else name)
    (folder / "slaves").mkdir(parents=True)
    if partition_of:
        (folder / "partition").write_text("1\n")
    else:
        (folder / "queue").mkdir()
        (folder / "queue/rotational").write_text(f"{rotational}\n")
    for slave in slaves:
        (folder / "slaves" / slave).symlink_to(sys / "class/block" / slave)
    for kind, link in (("dev/block", number), ("class/block", name)):
        (sys / kind).mkdir(parents=True, exist_ok=True)
        (sys / kind / link).symlink_to(folder)


@pytest.mark.parametrize(
    ("name", "rotational", "kind"),
    [
        ("sda", "1", DiskKind.HDD),
        ("sda", "0", DiskKind.SSD),
        ("nvme0n1", "0", DiskKind.NVME),
        ("vda", "1", DiskKind.VIRTUAL),
        ("zram0", "0", DiskKind.MEMORY),
        ("nbd3", "0", DiskKind.NETWORK),
        ("sda", "what", None),
    ],
)
def test_kinds_of_disks(tmp_path, name, rotational, kind):
    block(tmp_path, name, "8:0", rotational=rotational)
    assert disk.disk_kind(ROOT._replace(source=f"/dev/{name}", number="8:0"), tmp_path) is kind


def test_a_partition_is_of_its_disks_kind(tmp_path):
    block(tmp_path, "sda", "8:0", rotational="1")
    block(tmp_path, "sda1", "8:1", partition_of="sda")
    assert disk.disk_kind(ROOT, tmp_path) is DiskKind.HDD


def test_a_volume_is_of_the_kind_below_it(tmp_path):
    block(tmp_path, "nvme0n1", "259:0")
    block(tmp_path, "nvme0n1p2", "259:2", partition_of="nvme0n1")
    block(tmp_path, "dm-0", "253:0", slaves=["nvme0n1p2"])
    assert disk.disk_kind(ROOT._replace(source="/dev/mapper/vg-root", number="253:0"), tmp_path) is DiskKind.NVME


def test_a_mixed_volume_is_as_slow_as_its_slowest(tmp_path):
    block(tmp_path, "sda", "8:0", rotational="1")
    block(tmp_path, "nvme0n1", "259:0")
    block(tmp_path, "md0", "9:0", slaves=["sda", "nvme0n1"])
    assert disk.disk_kind(ROOT._replace(source="/dev/md0", number="9:0"), tmp_path) is DiskKind.HDD


@pytest.mark.parametrize(
    ("filesystem", "kind"),
    [("tmpfs", DiskKind.MEMORY), ("nfs4", DiskKind.NETWORK), ("fuse.gcsfuse", DiskKind.NETWORK), ("overlay", None)],
)
def test_kinds_of_file_systems(tmp_path, filesystem, kind):
    assert disk.disk_kind(Mount(point="/", filesystem=filesystem, source=filesystem), tmp_path) is kind


def test_a_folder_that_is_not_there_yet_is_on_the_disk_it_would_be_made_on(tmp_path):
    found = disk.probe("hf cache", tmp_path / "not/yet", disk.mounted())
    assert (found.path, found.fault) == (str(tmp_path / "not/yet"), None)
    assert found.free > 0
    assert found.mount and found.filesystem


def test_a_disk_that_cannot_be_asked_is_a_fault(tmp_path, monkeypatch):
    def fails(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("shutil.disk_usage", fails)
    found = disk.probe("x", tmp_path, ())
    assert (found.fault, found.free) == ("Permission denied", None)


def test_a_working_directory_that_was_removed_is_a_fault(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert disk.probe("working directory", gone.__class__(), ()).fault == "No such file or directory"


def test_free_is_what_an_ordinary_user_may_write(tmp_path):
    found = disk.probe("x", tmp_path, ())
    usage = os.statvfs(tmp_path)
    assert abs(found.free - usage.f_bavail * usage.f_frsize) < 1 << 30


def test_without_mountinfo_psutil_is_asked(monkeypatch):
    part = namedtuple("part", "mountpoint fstype device")
    monkeypatch.setattr("devctl.inventory.probes.mounts.probe", lambda: ())
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: [part("/", "apfs", "/dev/disk3s1")])
    assert disk.mounted() == (Mount(point="/", filesystem="apfs", source="/dev/disk3s1"),)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HF_HUB_CACHE": "/c", "HF_HOME": "/h"}, "/c"),
        ({"HUGGINGFACE_HUB_CACHE": "/older", "HF_HOME": "/h"}, "/older"),
        ({"HF_HOME": "$XDG_CACHE_HOME/h", "XDG_CACHE_HOME": "/x"}, "/x/h/hub"),
        ({"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/h/hub"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
    ],
)
def test_hf_cache(monkeypatch, environment, expected):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(disk.hf_cache()) == expected
