"""Values that are looked up at TAB."""

import os

import pytest

from devctl.completion import values
from devctl.completion.entry import table
from devctl.completion.values import KINDS, accelerators, look, models, paths
from devctl.inventory.probes import disk


def words(kind, begun):
    return [word for word, _ in look(kind, begun, table()).offers]


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(values, "accelerators", lambda: ("cuda:0", "cuda:1"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        ("2xH20", ["2xH20", "2xH20-3e", "2xH200"]),
        ("2xh200", ["2xH200"]),
        ("H200,2xMI325", ["H200,2xMI325X"]),
        ("a:2xH200;b:MI325", ["a:2xH200;b:MI325X"]),
        ("cp", ["cpu="]),
        ("H200,cpu=1GiB,d", ["H200,cpu=1GiB,disk"]),
        ("cpu=1GiB,c", []),
        ("a:T4,cpu=1GiB;b:c", ["a:T4,cpu=1GiB;b:cpu="]),
        ("GB1", ["GB10"]),
        ("1xGB1", ["1xGB10"]),
        ("2xGB1", []),
        ("T4,GB1", []),
        ("cpu=1GiB,GB1", ["cpu=1GiB,GB10"]),
        ("a:GB10;b:GB1", ["a:GB10;b:GB10"]),
        ("24GiB", []),
        ("nonsense", []),
    ],
)
def test_devices_are_boards_with_a_count_in_a_list_of_one_host_or_several(begun, expected):
    assert words("devices", begun) == expected


def test_nothing_begun_is_every_board_and_help():
    found = words("devices", "")
    assert found[:3] == ["help", "cpu=", "disk"]
    assert set(table()["boards"]) < set(found)
    assert words("devices", "8")[-1].startswith("8x")


def test_boards_alone_are_with_all():
    assert words("boards", "al") == ["all"]
    assert words("boards", "T4,al") == []
    assert words("boards", "T4,H200") == ["T4,H200"]


def test_keys_are_devices_that_are_here(two):
    assert words("budgets", "") == ["0=", "1=", "cpu=", "disk="]
    assert words("budgets", "0=1GiB,") == ["0=1GiB,1=", "0=1GiB,cpu=", "0=1GiB,disk="]
    assert words("budgets", "0=1") == []
    assert words("speeds", "l") == ["link="]
    assert words("ids", "0,") == ["0,1"]


def test_maps_are_devices_and_files_of_json(two, here):
    for name in ("map.json", "plan.txt"):
        (here / name).write_text("{}")
    assert words("maps", "") == ["cpu", "cuda:0", "cuda:1", "map.json"]
    assert words("maps", "cuda") == ["cuda:0", "cuda:1"]
    assert words("json", "m") == ["map.json"]


def test_models_are_those_of_the_hubs_cache_that_were_fetched_and_folders(here):
    hub = disk.hf_cache()
    for name, snapshots in (
        ("a--b", ["1"]),
        ("solo", ["1"]),
        ("not--yet", []),
        ("evil;rm -rf", ["1"]),
        ("x\ny", ["1"]),
    ):
        for snapshot in (*snapshots, ""):
            (hub / f"models--{name}" / "snapshots" / snapshot).mkdir(parents=True, exist_ok=True)
    (hub / "datasets--c--d/snapshots/1").mkdir(parents=True)
    (here / "folder").mkdir()
    (here / "weights.gguf").write_text("")
    assert list(models()) == ["a/b", "solo"]
    assert words("models", "") == ["a/b", "solo", "folder/", "hf/", "weights.gguf"]
    assert words("models", "A/") == ["a/b"]
    assert words("models", "./f") == ["./folder/"]
    assert words("models", "~/f") == ["~/folder/"]
    assert words("models", "$HOME/f") == ["$HOME/folder/"]


def test_no_cache_and_no_folder_offer_nothing(here):
    assert list(models()) == []
    assert words("models", "nowhere/") == []
    assert list(paths("\x00/", "")) == []


def test_names_that_a_terminal_would_obey_are_no_candidates(here):
    for name in ("ok.json", "a\x1b[2J.json", "b\n::error::.json", "c\u202e.json", "d\u2028.json"):
        (here / name).write_text("")
    assert words("json", "") == ["ok.json"]


def test_what_is_hidden_is_offered_where_it_is_asked_for(here):
    (here / ".git").mkdir()
    (here / "a").mkdir()
    (here / "a" / "link.json").symlink_to("/nowhere")
    assert words("json", "") == ["a/"]
    assert words("json", ".g") == [".git/"]
    assert words("json", "a/") == ["a/link.json"]


def test_hosts_are_a_file_or_a_job(here, monkeypatch):
    (here / "hosts").write_text("")
    assert words("hosts", "@h") == ["@hosts"]
    assert words("hosts", "s") == []
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert words("hosts", "s") == ["slurm:"]
    assert words("hosts", "") == ["@", "slurm:"]


def test_accelerators_are_those_that_the_kernel_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(values.sys, "platform", "linux")
    assert accelerators(tmp_path) == ()
    for node, simds in ((0, 0), (1, 304), (2, 304)):
        folder = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{node}"
        folder.mkdir(parents=True)
        (folder / "properties").write_text(f"cpu_cores_count 0\nsimd_count {simds}\n")
    assert accelerators(tmp_path) == ("cuda:0", "cuda:1")
    for bus in ("0000:17:00.0", "0000:18:00.0", "0000:19:00.0"):
        (tmp_path / "proc/driver/nvidia/gpus" / bus).mkdir(parents=True)
    assert accelerators(tmp_path) == ("cuda:0", "cuda:1", "cuda:2")
    for value, number in (("2", 1), ("0,1", 2), ("", 0), ("-1", 0), ("0,1,2,3,4", 3)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert len(accelerators(tmp_path)) == number


def test_every_kind_is_known_and_an_unknown_one_is_nothing(here):
    for kind in KINDS:
        look(kind, "", table())
        look(kind, "\x00\x1b[;,:=@~$", table())
    assert words("nonsense", "") == []


def test_the_hubs_cache_is_the_inventorys(here, monkeypatch):
    assert disk.hf_cache() == values.hub_cache() == here / "hf/hub"
    monkeypatch.setenv("HF_HUB_CACHE", "$HOME/other")
    assert disk.hf_cache() == values.hub_cache() == here / "other"
    assert os.environ["HOME"] in str(values.hub_cache())
