"""``devctl plan`` for hardware that is not here, and for a part of what is."""

import json

import pytest

from devctl.inventory.catalogue import boards
from devctl.inventory.document import to_document
from devctl.inventory.hypothetical import parse_devices
from devctl.planning import machine
from tests.conftest import CONFIGS

LLAMA = CONFIGS / "llama-3.1-8b"


@pytest.fixture(autouse=True)
def _nobody_looks_at_this_machine(monkeypatch):
    def take():
        raise AssertionError("the machine is not asked")

    monkeypatch.setattr(machine, "take_inventory", take)


def budgets(done):
    """Each device of the summary, and what it may hold."""
    rows = [line.split("  ") for line in done.err.splitlines() if " of " in line]
    return {row[0]: next(cell for cell in row if " of " in cell).partition(" of ")[2] for row in rows}


def test_sizes_are_meant_as_they_are(devctl, tmp_path):
    given = devctl("plan", LLAMA, "--devices", "24GiB,8GiB,cpu=64GiB")
    assert given.code == 0
    assert budgets(given) == {"cuda:0": "24.0 GiB", "cuda:1": "8.00 GiB", "cpu": "64.0 GiB"}
    assert "note:" not in given.err
    assert (
        given.out == devctl("plan", LLAMA, "--max-memory", "0=24GiB,1=8GiB,cpu=64GiB", "--machine", empty(tmp_path)).out
    )


def empty(tmp_path):
    return box(tmp_path, "disk")


def box(tmp_path, text):
    path = tmp_path / "box.json"
    path.write_text(json.dumps(to_document(parse_devices(text))))
    return path


def test_boards_by_name(devctl):
    done = devctl("plan", LLAMA, "--devices", "2xRTX4090,1xT4,cpu=64GiB,disk")
    assert set(json.loads(done.out).values()) == {0, 1, 2}
    assert budgets(done) == {"cuda:0": "23.5 GiB", "cuda:1": "23.5 GiB", "cuda:2": "14.6 GiB", "cpu": "64.0 GiB"}


def test_without_ram_nothing_goes_there(devctl):
    done = devctl("plan", LLAMA, "--devices", "8GiB,disk")
    assert set(json.loads(done.out).values()) == {0, "disk"}
    assert "no memory is given for cpu" in done.err
    assert "unknown" not in done.err


def test_a_mac(devctl):
    done = devctl("plan", LLAMA, "--devices", "M3 Max 64GB")
    assert json.loads(done.out) == {"": "mps"}
    assert "cpu is left out: a GPU here shares its memory" in done.err


def test_max_memory_is_for_the_devices_that_it_names(devctl):
    done = devctl("plan", LLAMA, "--devices", "2x8GiB", "--max-memory", "1=6GiB,cpu=9GiB")
    assert budgets(done) == {"cuda:0": "8.00 GiB", "cuda:1": "6.00 GiB", "cpu": "9.00 GiB"}


def test_a_part_of_a_machine(devctl, tmp_path):
    path = tmp_path / "plan.json"
    done = devctl("plan", LLAMA, "--devices", "8GiB,9GiB,10GiB,cpu=9GiB", "--visible", "2,0", "--report", path)
    assert budgets(done) == {"cuda:0": "10.0 GiB", "cuda:1": "8.00 GiB", "cpu": "9.00 GiB"}
    assert "note: run with CUDA_VISIBLE_DEVICES=2,0\n" in done.err
    assert "run with CUDA_VISIBLE_DEVICES=2,0" in json.loads(path.read_text())["notes"]
    machine = box(tmp_path, "8GiB,9GiB,10GiB,cpu=10GiB")
    there = devctl("plan", LLAMA, "--machine", machine, "--visible", "2,0")
    assert budgets(there) == {"cuda:0": "10.0 GiB", "cuda:1": "8.00 GiB", "cpu": "9.00 GiB"}
    less = devctl("plan", LLAMA, "--machine", machine, "--visible", "2", "--max-memory", "0=20GiB,1=9GiB")
    assert "note: the machine has no cuda:1" in less.err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--devices", "xyz9"], "--devices: 'xyz9' is no board known here, and no size"),
        (["--devices", "A100"], "--devices: 'A100' may be A100 40GB, A100 80GB or A100 80GB PCIe: say which"),
        (["--devices", ""], "--devices: nothing in it"),
        (["--devices", "H100,MI300X"], "--devices: no one build of torch drives H100 SXM and MI300X"),
        (["--devices", "disk"], "no device has a known amount of memory"),
        (["--devices", "T4", "--machine", "box.json"], "--devices and --machine both say what to plan for"),
        (["--devices", "T4", "--max-memory", "1=1GiB"], "--max-memory: cuda:1 is not among the devices given"),
        (["--devices", "T4", "--max-memory", "0"], "--max-memory: '0' is not DEVICE=SIZE"),
        (["--devices", "2xT4", "--visible", "0,2"], "--visible: 2 is not there; the machine has cuda:0, cuda:1"),
        (["--devices", "2xT4", "--visible", "1,1"], "--visible: 1 is given twice"),
        (["--devices", "2xT4", "--visible", "first"], "--visible: 'first' is no accelerator's id"),
        (["--devices", "2xT4", "--visible", ""], "--visible: '' is no accelerator's id"),
    ],
)
def test_what_can_not_be_planned_for(devctl, args, said):
    done = devctl("plan", LLAMA, *args)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len(done.err.splitlines()) <= 2


def test_the_way_to_the_boards_is_said(devctl):
    assert "`devctl plan --devices help` lists the boards" in devctl("plan", LLAMA, "--devices", "RTX 4091").err


def test_the_boards_need_no_model(devctl, monkeypatch):
    done = devctl("plan", "--devices", "help")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].split() == ["NAME", "USABLE", "BANDWIDTH", "LINK", "SOURCE"]
    assert len(lines) == len(boards()) + 1  # nothing is folded for a pipe
    source = next(line for line in lines if line.startswith("H100 SXM")).split("  ")[-1]
    assert source == "NVIDIA H100 datasheet; CUDA, 79.10 GiB in stas00/the-art-of-debugging"
    assert devctl("plan", "some/model", "--devices", "help").out == done.out
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, devctl("plan", "--devices", "help").out.splitlines())) <= 80
