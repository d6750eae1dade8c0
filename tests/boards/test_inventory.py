"""devctl's list beside what nvidia-smi and torch would tell, on invented boards behind the stand-in driver."""

import pytest

from tests.boards.records import MIB, Verdict
from tests.boards.steps import inventory
from tests.boards.steps.inventory import (
    ask_smi,
    beside_smi,
    beside_torch,
    checks,
    listed,
    parse_smi,
    processes,
    settings,
)
from tests.inventory import boxes
from tests.inventory.boxes import GIB
from tests.marks import one_in


def smi(number, **fields):
    """What nvidia-smi tells of a board of `boxes`."""
    facts = {
        "uuid": boxes.uuid(number),
        "name": "NVIDIA H100 80GB HBM3",
        "pci.bus_id": boxes.bus(number),
        "driver_version": "550.54.15",
        "memory.total": str(80 * GIB // MIB),
        "memory.free": str(78 * GIB // MIB),
        "memory.used": "1024",
        "compute_cap": "9.0",
        "mig.mode.current": None,
        "ecc.errors.uncorrected.volatile.total": None,
    }
    return {**facts, **fields}


def torch_facts(number, **facts):
    """What torch tells of it."""
    known = {
        "name": "NVIDIA H100 80GB HBM3",
        "total": 79 * GIB,
        "capability": "9.0",
        "uuid": boxes.uuid(number).removeprefix("GPU-"),
        "bus": f"0:{0x17 + number:02x}",
        "free": 78 * GIB,
        "total of mem_get_info": 79 * GIB,
    }
    return {**known, **facts}


def wrong(rows):
    return [(row.subject, row.claim) for row in rows if row.verdict in (Verdict.MISSED, Verdict.FAILED)]


@pytest.fixture
def two(machine):
    machine(boxes.system() + boxes.board(0) + boxes.board(1))


@pytest.mark.usefixtures("two")
def test_what_both_tell_alike_is_met_and_what_neither_tells_is_skipped():
    rows = list(beside_smi(listed(), [smi(0), smi(1)]))
    assert wrong(rows) == []
    met = {row.claim for row in rows if row.verdict is Verdict.MET}
    assert {"boards", "driver", "UUID", "name", "bus", "compute capability", "memory in all", "memory free"} <= met
    assert {row.claim for row in rows if row.verdict is Verdict.SKIPPED} == {"MIG", "uncorrected ECC errors"}


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("field", "value", "claim"),
    one_in(
        4,
        [
            ("name", "NVIDIA H200", "name"),
            ("pci.bus_id", "00000000:99:00.0", "bus"),
            ("memory.total", "1", "memory in all"),
            ("memory.free", "1", "memory free"),
            ("memory.used", "9999", "memory used"),
            ("compute_cap", "8.0", "compute capability"),
            ("mig.mode.current", "Enabled", "MIG"),
            ("uuid", "GPU-00000009-1111-2222-3333-444444444444", "UUID"),
        ],
    ),
)
def test_each_field_that_differs_is_missed(field, value, claim):
    assert ("board 1", claim) in wrong(beside_smi(listed(), [smi(0), smi(1, **{field: value})]))


@pytest.mark.usefixtures("two")
def test_free_memory_that_moved_is_explained():
    rows = beside_smi(listed(), [smi(0, **{"memory.free": str(78 * GIB // MIB - 3)}), smi(1)])
    assert wrong(rows) == []


def test_processes_that_compute_are_among_those_that_are_listed(machine):
    machine(boxes.system() + boxes.board(0) + boxes.board(1) + boxes.process(board=1, pid=77, bytes=GIB))
    told = [{"gpu_uuid": boxes.uuid(1), "pid": "77"}, {"gpu_uuid": boxes.uuid(1), "pid": None}]
    rows = list(processes(listed(), told))
    assert [row.why for row in rows] == ["0 by nvidia-smi, 0 by devctl", "1 by nvidia-smi, 1 by devctl"]
    assert wrong(rows) == []
    assert wrong(processes(listed(), [{"gpu_uuid": boxes.uuid(0), "pid": "77"}])) == [("board 0", "processes")]


@pytest.mark.usefixtures("two")
def test_torchs_numbers_are_devctls():
    rows = list(beside_torch("as it is", listed(), [torch_facts(0), torch_facts(1)]))
    assert wrong(rows) == []
    assert [row.why for row in rows if row.claim == "memory in all"] == ["the driver keeps the rest from CUDA"] * 2


@pytest.mark.usefixtures("two")
def test_boards_in_another_order_are_missed():
    swapped = [torch_facts(1), torch_facts(0)]
    assert wrong(beside_torch("x", listed(), swapped)) == [
        ("x, cuda:0", "the same board"),
        ("x, cuda:1", "the same board"),
    ]
    by_bus = [{**facts, "uuid": None} for facts in swapped]
    assert len(wrong(beside_torch("x", listed(), by_bus))) == 2
    untold = [{**facts, "uuid": None, "bus": None} for facts in swapped]
    assert wrong(beside_torch("x", listed(), untold)) == []


@pytest.mark.usefixtures("two")
def test_a_board_that_torch_does_not_see_or_that_is_much_smaller_is_missed():
    assert wrong(beside_torch("x", listed(), [torch_facts(0)])) == [("x", "boards that torch can use")]
    small = torch_facts(0, total=60 * GIB, **{"total of mem_get_info": 60 * GIB})
    assert ("x, cuda:0", "memory in all") in wrong(beside_torch("x", listed(), [small, torch_facts(1)]))


@pytest.mark.usefixtures("two")
def test_settings_change_what_is_listed():
    found = dict(settings(listed()))
    backwards = listed(found["PCI order, backwards"])
    assert wrong(beside_torch("x", backwards, [torch_facts(1), torch_facts(0)])) == []
    last = listed(found["fastest first, the last"])
    assert wrong(beside_torch("x", last, [torch_facts(1)])) == []


def test_a_box_without_boards_has_settings_all_the_same(machine):
    machine(boxes.system())
    assert dict(settings(listed()))["fastest first, the last"]["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.slow
@pytest.mark.usefixtures("two")
def test_checks_hold_on_two_boards():
    rows = list(checks(2))
    assert wrong(rows) == []
    assert wrong(checks(1)) == [("devctl check", "a board more")]


def test_nvidia_smi_is_read_line_by_line():
    text = "GPU-1, NVIDIA L4, [N/A]\nbroken line\nGPU-2, NVIDIA L4, 3\n"
    assert parse_smi(text, ("uuid", "name", "x")) == [
        {"uuid": "GPU-1", "name": "NVIDIA L4", "x": None},
        {"uuid": "GPU-2", "name": "NVIDIA L4", "x": "3"},
    ]


def test_an_nvidia_smi_that_knows_fewer_fields_is_asked_for_each(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "*ecc*) echo 'Field is not a valid field to query.'; exit 2;;\n"
        "--query-gpu=uuid) echo GPU-1;;\n"
        "--query-gpu=name) echo 'NVIDIA L4';;\n"
        "*) echo 5;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (board,) = ask_smi()
    assert (board["uuid"], board["name"], board["memory.free"]) == ("GPU-1", "NVIDIA L4", "5")
    assert board["ecc.errors.uncorrected.volatile.total"] is None


def test_without_nvidia_smi_that_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(inventory.NoAnswerError, match="nvidia-smi can't be run: No such file"):
        ask_smi()
