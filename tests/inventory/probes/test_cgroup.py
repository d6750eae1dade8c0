"""Limits of control groups, on folders of small files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from devctl.inventory.probes import cgroup, mounts
from devctl.inventory.probes.mounts import Mount

V2 = "0 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 0 0:34 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
V1 += "32 0 0:35 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"


@pytest.fixture
def limits(tmp_path):
    """Makes a tree of files and asks for the limits in it."""

    def make(mountinfo, groups, files):
        proc = tmp_path / "proc"
        proc.mkdir(exist_ok=True)
        (proc / "cgroup").write_text(groups)
        for name, text in files.items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return cgroup.probe(mounts.parse_mounts(mountinfo), proc, tmp_path)

    return make


def test_version_2(limits):
    files = {"job/memory.max": "1000\n", "job/memory.current": "300\n", "job/cpu.max": "150000 100000\n"}
    assert limits(V2, "0::/job\n", files) == cgroup.Limits(memory=1000, memory_available=700, cpus=1.5)


def test_version_1(limits):
    files = {
        "memory/job/memory.limit_in_bytes": "1000\n",
        "memory/job/memory.usage_in_bytes": "400\n",
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "cpu/job/cpu.cfs_quota_us": "200000\n",
        "cpu/job/cpu.cfs_period_us": "100000\n",
        "cpu/cpu.cfs_quota_us": "-1\n",
        "cpu/cpu.cfs_period_us": "100000\n",
    }
    found = limits(V1, "4:memory:/job\n1:cpu,cpuacct:/job\n0::/\n", files)
    assert found == cgroup.Limits(memory=1000, memory_available=600, cpus=2.0)


def test_the_tightest_of_nested_groups_wins_and_it_need_not_leave_the_least(limits):
    files = {
        "a/memory.max": "2000\n",
        "a/memory.current": "1900\n",
        "a/b/memory.max": "500\n",
        "a/b/memory.current": "100\n",
        "a/b/c/memory.max": "max\n",
        "a/cpu.max": "50000 100000\n",
        "a/b/cpu.max": "max 100000\n",
    }
    assert limits(V2, "0::/a/b/c\n", files) == cgroup.Limits(memory=500, memory_available=100, cpus=0.5)


def test_a_throttling_limit_counts(limits):
    files = {"job/memory.max": "max\n", "job/memory.high": "800\n", "job/memory.current": "100\n"}
    assert limits(V2, "0::/job\n", files).memory == 800


def test_cache_that_can_be_dropped_is_available(limits):
    files = {
        "job/memory.max": "1000\n",
        "job/memory.current": "900\n",
        "job/memory.stat": "anon 100\ninactive_file 650\nactive_file 150\n",
    }
    assert limits(V2, "0::/job\n", files).memory_available == 750
    files = {
        "memory/job/memory.limit_in_bytes": "1000",
        "memory/job/memory.usage_in_bytes": "900",
        "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 650\n",
    }
    assert limits(V1, "4:memory:/job\n", files).memory_available == 750


def test_more_used_than_allowed_leaves_nothing(limits):
    files = {"job/memory.max": "1000\n", "job/memory.current": "1200\n"}
    assert limits(V2, "0::/job\n", files).memory_available == 0


def test_a_container_that_sees_its_own_group_as_the_root(limits):
    files = {"memory.max": "700\n", "memory.current": "0\n"}
    assert limits(V2, "0::/\n", files).memory == 700
    assert limits(V2, "0::/../../other\n", files).memory == 700


def test_a_container_that_is_told_the_hosts_path(limits):
    mountinfo = "31 0 0:34 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    files = {"memory/memory.limit_in_bytes": "600\n", "memory/memory.usage_in_bytes": "0\n"}
    assert limits(mountinfo, "4:memory:/docker/abc\n", files).memory == 600
    assert limits(mountinfo, "4:memory:/kubepods/x\n", files).memory == 600


@pytest.mark.parametrize("text", ["", "max\n", "garbage\n", "-5\n", "12 34\n", "9223372036854771712\n"])
def test_no_limit_in_a_file_is_none(limits, text):
    assert limits(V2, "0::/job\n", {"job/memory.max": text, "job/memory.current": "5\n"}) == cgroup.Limits()


def test_missing_files_and_no_control_groups_are_no_limit(limits, tmp_path):
    assert limits(V2, "0::/job\n", {}) == cgroup.Limits()
    assert limits("", "", {}) == cgroup.Limits()
    assert cgroup.probe((), tmp_path / "nowhere", tmp_path) == cgroup.Limits()


def test_a_limit_without_its_usage_leaves_all_of_it(limits):
    assert limits(V2, "0::/job\n", {"job/memory.max": "1000\n"}).memory_available == 1000


def test_hybrid_uses_the_hierarchy_that_has_the_controller(limits):
    mountinfo = V1 + "41 0 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    files = {"memory/job/memory.limit_in_bytes": "1000\n", "unified/cgroup.procs": ""}
    assert limits(mountinfo, "4:memory:/job\n0::/\n", files).memory == 1000


def test_ancestors():
    mount = Mount(point="/cg", filesystem="cgroup2", source="cgroup2", root="/")
    assert list(cgroup.ancestors(mount, "/a/b")) == ["/cg/a/b", "/cg/a", "/cg"]
    assert list(cgroup.ancestors(mount, "/../x")) == ["/cg"]


@pytest.mark.parametrize(
    ("text", "cores"),
    [("max 100000", None), ("100000 100000", 1.0), ("50000", 0.5), ("-1 100000", None), ("1 0", None), ("x y", None)],
)
def test_cpu_max(text, cores):
    assert cgroup.parse_cpu_max(text) == cores


@given(st.integers(min_value=0, max_value=(1 << 60) - 1))
def test_limits_are_read_back(number):
    assert cgroup.parse_limit(f"{number}\n") == number


@given(st.text())
def test_any_text_is_parsed(text):
    limit = cgroup.parse_limit(text)
    assert limit is None or limit >= 0
    cores = cgroup.parse_cpu_max(text)
    assert cores is None or cores > 0
    assert cgroup.parse_stat(text, "inactive_file") >= 0
    assert all(path.startswith("/") for path in cgroup.parse_groups(text).values())
    assert all(isinstance(mount.point, str) for mount in mounts.parse_mounts(text))


def test_mountinfo():
    text = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\nbroken line\n"
    assert mounts.parse_mounts(text) == (
        Mount(
            point="/mnt 2",
            filesystem="ext3",
            source="/dev/root",
            root="/mnt1",
            number="98:0",
            options=("rw", "errors=continue"),
        ),
    )
