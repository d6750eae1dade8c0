"""What CUDA and the driver are asked, with torch's answers made up and the driver's from its stand-in."""

import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.boards import cards
from tests.boards.asking import Ask
from tests.boards.cards import CudaCard, Held, NoSegmentsError
from tests.boards.pretended import PretendedCard
from tests.boards.records import MIB, Board, Verdict
from tests.boards.steps import overhead
from tests.inventory import boxes
from tests.inventory.boxes import GIB

torch = pytest.importorskip("torch")
TOTAL = 79 * GIB


@pytest.fixture
def cuda(monkeypatch):
    """A torch that has two boards; what it is told is kept."""
    told = []
    facts = SimpleNamespace(name="NVIDIA H100 80GB HBM3", total_memory=TOTAL, major=9, minor=0)
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_properties": lambda index: facts,
        "mem_get_info": lambda index: (70 * GIB, TOTAL),
        "memory_allocated": lambda index: 3,
        "max_memory_allocated": lambda index: 5,
        "memory_reserved": lambda index: 7,
        "max_memory_reserved": lambda index: 11,
        "reset_peak_memory_stats": lambda index: told.append(("forget", index)),
        "memory_stats": lambda index: {"num_alloc_retries": 13},
        "memory_snapshot": lambda: [{"device": 0, "is_expandable": False}, {"device": 1, "is_expandable": True}],
        "empty_cache": lambda: told.append(("empty",)),
        "synchronize": lambda index: told.append(("wait", index)),
        "set_per_process_memory_fraction": lambda share, index: told.append(("share", round(share, 3), index)),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(torch.cuda.memory, "_set_allocator_settings", lambda text: told.append(("set", text)))
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device, **keys: told.append(("tried", device)) or empty(0))
    return told


@pytest.mark.usefixtures("cuda")
def test_a_card_asks_torch_by_its_number():
    card = CudaCard(1)
    assert (card.place, card.total(), card.free()) == ("cuda:1", TOTAL, 70 * GIB)
    assert (card.allocated(), card.peak(), card.reserved_now(), card.reserved_peak()) == (3, 5, 7, 11)
    assert card.retries() == 13
    assert card.overhead() == 720 << 20


def test_a_limit_is_a_share_of_the_board_and_ends(cuda):
    with pytest.raises(RuntimeError), CudaCard(1).limited(TOTAL // 4):
        raise RuntimeError("out of memory")
    assert cuda == [("empty",), ("share", 0.25, 1), ("share", 1.0, 1)]


def test_segments_that_grow_are_tried_and_none_is_left_to_what_comes_next(cuda):
    with pytest.raises(RuntimeError), CudaCard(1).segments(expandable=True):
        cuda.append("within")
        raise RuntimeError("out of memory")
    assert cuda == [
        ("empty",),
        ("set", "expandable_segments:True"),
        ("tried", "cuda:1"),
        ("empty",),
        "within",
        ("set", "expandable_segments:False"),
        ("empty",),
    ]


def test_by_default_is_set_too(cuda):
    with CudaCard(0).segments(expandable=False):
        pass
    off = ("set", "expandable_segments:False")
    assert cuda == [("empty",), off, off, ("empty",)]


def test_a_system_without_segments_that_grow_says_so_and_is_left_as_it_was(cuda):
    with pytest.raises(NoSegmentsError, match="no expandable segments on this system"):
        CudaCard(0).segments(expandable=True).__enter__()
    assert cuda[-2:] == [("set", "expandable_segments:False"), ("empty",)]


@pytest.mark.usefixtures("cuda")
def test_what_was_there_before_is_remembered(machine):
    machine(boxes.system() + boxes.board(0, used=3 * GIB) + boxes.board(1))
    first, second = cards.open_cards()
    assert (first.before, first.room(), second.before) == (3 * GIB, 76 * GIB, GIB)


@pytest.mark.usefixtures("cuda")
def test_a_process_that_the_driver_knows_is_told_by_its_figure(machine):
    other = boxes.process(board=0, pid=1, bytes=9 * GIB)
    machine(boxes.system() + boxes.board() + other + boxes.process(board=0, pid=os.getpid(), bytes=2 * GIB))
    assert CudaCard(0).held() == Held(nbytes=2 * GIB, how="the driver's figure of this process")


@pytest.mark.usefixtures("cuda")
def test_within_a_container_the_boards_own_figure_tells(machine):
    machine(boxes.system() + boxes.board(used=5 * GIB) + boxes.process(board=0, pid=4_000_000, bytes=4 * GIB))
    assert CudaCard(0, before=GIB).held() == Held(
        nbytes=4 * GIB, how="the board's used memory, less what was used before"
    )
    assert CudaCard(0).held().nbytes is None, "nobody looked before"


@pytest.mark.usefixtures("cuda")
def test_a_driver_that_tells_nothing_is_said(machine):
    machine(boxes.system())
    assert CudaCard(0, before=GIB).held().nbytes is None
    assert cards.open_cards()[0].room() == TOTAL


@pytest.mark.usefixtures("cuda")
def test_a_box_is_described_without_what_tells_it_from_another(machine):
    machine(boxes.system() + boxes.board(0) + boxes.board(1))
    found = cards.describe()
    assert found.name == "2x NVIDIA H100 80GB HBM3"
    assert [(board.memory, board.compute_capability) for board in found.boards] == [(TOTAL, "9.0")] * 2
    assert found.versions["driver of nvidia"] == "550.54.15"
    assert not found.simulated
    assert boxes.uuid(0) not in str(found)


def test_the_constant_of_a_board_is_the_line_of_the_table():
    board = Board(name="NVIDIA L40S", memory=44 * GIB, compute_capability="8.9")
    enough = overhead.constant(522 << 20, 528 << 20, board)
    assert (enough.verdict, enough.why) == (Verdict.MET, 'for the table: "8.9": 528 * 2**20,  # NVIDIA L40S, 522')
    assert enough.target == "enough", "300 MiB too little would do for a process, and not for this"
    assert overhead.constant(529 << 20, 528 << 20, board).verdict is Verdict.MISSED, "too little"
    assert overhead.constant(200 << 20, 528 << 20, board).verdict is Verdict.MISSED, "much too much"


class Worked(PretendedCard):
    """A board whose process holds 684 MiB for itself, and 32 MiB of workspace in 64 MiB that its allocator reserved."""

    place = "cpu"

    def running(self):
        return nullcontext()

    def allocated(self):
        return 32 * MIB

    def reserved_now(self):
        return 64 * MIB

    def free(self):
        return self.total() - (684 + 64 + 9) * MIB

    def held(self):
        return Held(nbytes=(684 + 64) * MIB, how="made up")

    def overhead(self):
        return 720 * MIB


@pytest.mark.parametrize(("is_told", "measured"), [(True, 684 + 32), (False, 684 + 9 + 32)])
def test_a_workspace_that_torch_allocated_counts_once(monkeypatch, is_told, measured):
    if not is_told:
        monkeypatch.setattr(Worked, "held", lambda self: Held(nbytes=None, how="not told"))
    rows = list(overhead.context(Ask(cards=(Worked(0),), folder=Path(), checkout=Path())))
    assert rows[-1].measured == measured * MIB
    assert rows[-1].verdict is (Verdict.MET if is_told else Verdict.MISSED), "725 MiB are more than 720"
