"""Nothing waits for ever: drivers that do not answer, and signals at any time."""

import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from devctl.errors import UsageError
from devctl.inventory.probes import nvidia, nvidia_apart
from devctl.inventory.take import Part, take_inventory
from tests.conftest import CONFIGS
from tests.inventory import boxes
from tests.marks import one_in, slow

TINY = CONFIGS / "tiny-llama"
ROOT = Path(__file__).parents[2]
SILENT = boxes.system() + boxes.board(0) + boxes.board(1, silent=1) + boxes.board(2)
WEDGED = boxes.system(silent=1) + boxes.board(0)
AT_ONCE = 60
"""Seconds: far more than any of it takes, on any machine that runs tests, and far less than a driver that hangs."""


@pytest.mark.parametrize(
    "text",
    one_in(
        2,
        [
            boxes.eight(),
            boxes.system()
            + boxes.board(0, mig=1)
            + boxes.mig(0, 0)
            + boxes.mig(0, 1)
            + boxes.board(1, bus="0:01:00.0"),
            boxes.system() + boxes.board(0, handle=15) + boxes.board(1, lost=1) + boxes.board(2, badname=1),
            boxes.system() + boxes.board(0) + boxes.board(1, name="Tesla_T4", cc="7.5"),
            boxes.system(init=9),
            boxes.system(count=999),
        ],
    ),
    ids=["eight", "mig", "faults", "unlike", "no driver", "no count"],
)
@pytest.mark.parametrize("alone", [True, False])
def test_asked_apart_a_driver_says_what_it_says_here(machine, monkeypatch, text, alone):
    machine(text)
    monkeypatch.setattr(nvidia_apart, "_is_alone", lambda: alone)
    question = nvidia_apart.Question({})
    try:
        assert question.findings() == nvidia.probe({})
    finally:
        question.close()


def test_no_process_is_made_where_there_is_no_library(monkeypatch):
    monkeypatch.setattr(nvidia_apart, "_has_library", lambda: False)
    monkeypatch.setattr(nvidia_apart, "_start", lambda *_: pytest.fail("a process was made"))
    assert take_inventory(only=Part.GPU).accelerators == ()


@pytest.mark.parametrize(("alone", "seconds"), [(True, 1.5), *slow((False, 3))])
def test_a_board_that_does_not_answer_loses_no_other(machine, monkeypatch, alone, seconds):
    machine(SILENT)
    monkeypatch.setattr(nvidia_apart, "_is_alone", lambda: alone)
    found = take_inventory(only=Part.GPU, environment={"DEVCTL_DRIVER_TIMEOUT": str(seconds)})
    assert [a.fault for a in found.accelerators] == [None, f"did not answer in {seconds} s", None]
    assert [a.pci_bus_id for a in found.accelerators] == [boxes.bus(n)[4:].lower() for n in range(3)]
    assert [a.device is not None for a in found.accelerators] == [True, False, True]
    assert found.links.accelerators == (0, 1, 2)
    assert not found.cuda_order_certain


@pytest.mark.slow
def test_boards_behind_a_slow_one_are_asked_meanwhile_and_none_is_lost(machine, monkeypatch):
    monkeypatch.setattr(nvidia_apart, "_PATIENCE", 0.05)
    slow = "".join(boxes.board(n, slow=1500 if n in (0, 2) else 0) for n in range(4)) + boxes.pair(
        0, 2, level=10, p2p=0
    )
    machine(boxes.system() + slow)
    found = take_inventory(only=Part.GPU, environment={})
    assert [a.fault for a in found.accelerators] == [None] * 4
    question = nvidia.probe({})
    assert (found.accelerators, found.links, found.notes) == (question.accelerators, question.links, ())


@pytest.mark.slow
def test_silences_of_several_boards_do_not_add_up(machine, monkeypatch):
    begun = []
    ask = nvidia_apart.Question._ask
    monkeypatch.setattr(
        nvidia_apart.Question, "_ask", lambda self, known: (begun.append(len(self._asking)), ask(self, known))
    )
    monkeypatch.setattr(nvidia_apart, "_PATIENCE", 0.05)
    machine(boxes.system() + "".join(boxes.board(n, silent=1) for n in range(4)) + boxes.board(4))
    found = take_inventory(only=Part.GPU, environment={"DEVCTL_DRIVER_TIMEOUT": "5"})
    assert [a.fault for a in found.accelerators] == ["did not answer in 5 s"] * 4 + [None]
    assert max(begun) == 4, "they were not asked at the same time"


def test_a_board_whose_driver_crashes_loses_no_other(machine):
    machine(boxes.system() + boxes.board(0, crash=1) + boxes.board(1) + boxes.board(2, crash=1))
    faults = [a.fault for a in take_inventory(only=Part.GPU, environment={}).accelerators]
    assert faults == ["the driver ended the process that asked it", None, "the driver ended the process that asked it"]


def test_links_that_nobody_tells_lose_no_board(machine):
    machine(boxes.system(unlinked=1) + boxes.board(0) + boxes.board(1))
    found = take_inventory(only=Part.GPU, environment={"DEVCTL_DRIVER_TIMEOUT": "1.5"})
    assert [a.fault for a in found.accelerators] == [None, None]
    assert "the NVIDIA driver could not be asked how its boards are linked: it did not answer in 1.5 s" in found.notes


def test_a_driver_that_does_not_start_is_a_fault(machine):
    machine(WEDGED)
    (driver,) = take_inventory(only=Part.GPU, environment={"DEVCTL_DRIVER_TIMEOUT": "0.5"}).drivers
    assert driver.fault == "the NVIDIA driver did not answer in 0.5 s"


def test_no_process_is_left_behind(machine):
    machine(SILENT)
    take_inventory(only=Part.GPU, environment={"DEVCTL_DRIVER_TIMEOUT": "0.5"})
    until = time.monotonic() + AT_ONCE
    while nvidia_apart._left and time.monotonic() < until:
        nvidia_apart._left[:] = [pid for pid in nvidia_apart._left if not nvidia_apart._has_ended(pid)]
    assert not nvidia_apart._left


def test_a_driver_is_asked_from_any_thread(machine):
    machine(boxes.eight())
    found = []
    thread = threading.Thread(target=lambda: found.extend(take_inventory(only=Part.GPU).accelerators))
    thread.start()
    thread.join()
    assert [a.fault for a in found] == [None] * 8


def test_code_of_ours_that_fails_costs_one_board(machine, monkeypatch):
    machine(boxes.system() + boxes.board(0) + boxes.board(1))
    monkeypatch.setattr(nvidia_apart, "_is_alone", lambda: True)
    read = nvidia._read_board

    def read_but_one(gate, index, *rest):
        return read(gate, index, *rest) if index else 1 / 0

    monkeypatch.setattr(nvidia, "_read_board", read_but_one)
    faults = [a.fault for a in take_inventory(only=Part.GPU, environment={}).accelerators]
    assert faults == ["could not be looked at: ZeroDivisionError: division by zero", None]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e9", "25h"])
def test_a_deadline_is_a_time(value):
    with pytest.raises(UsageError, match="DEVCTL_DRIVER_TIMEOUT"):
        nvidia_apart.deadlines({"DEVCTL_DRIVER_TIMEOUT": value})


def test_deadlines_are_those_that_are_written():
    assert nvidia_apart.deadlines({}) == nvidia_apart.deadlines({"DEVCTL_DRIVER_TIMEOUT": ""}) == (60, 20)
    assert nvidia_apart.deadlines({"DEVCTL_DRIVER_TIMEOUT": "2.5"}) == (2.5, 2.5)
    assert nvidia_apart.deadlines({"DEVCTL_DRIVER_TIMEOUT": "2min"}) == (120, 120)


@pytest.mark.parametrize(
    "arguments", [["--max-memory", "cpu=1GiB"], ["--devices", "2xH100,cpu=1GiB"]], ids=lambda given: given[0]
)
def test_a_plan_that_needs_no_gpu_asks_for_none(started, devctl, arguments):
    devctl("plan", TINY, "--devices", "1GiB")  # what is kept of a model is planned without torch
    process = started(WEDGED, "plan", str(TINY), *arguments)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert json.loads(out)
    assert "did not answer" not in err


def test_a_list_of_the_processor_asks_for_no_gpu(started):
    process = started(WEDGED, "list", "--only", "cpu")
    process.communicate(timeout=AT_ONCE)
    assert process.returncode == 0


COMMANDS = (["list"], ["list", "--watch", "1"], ["check", "--gpus", "1", "--idle"], ["plan", str(TINY)])
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDED = [(COMMANDS[0], SIGNALS[0]), (COMMANDS[1], SIGNALS[1]), (COMMANDS[2], SIGNALS[2]), (COMMANDS[3], SIGNALS[0])]
"""Each command and each signal once."""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("arguments", "number"),
    one_in(3, [*ENDED, *slow(*(each for each in itertools.product(COMMANDS, SIGNALS) if each not in ENDED))]),
    ids=lambda value: " ".join(value) if isinstance(value, list) else value.name,
)
def test_a_signal_ends_what_waits_for_a_driver(started, arguments, number):
    process = started(WEDGED, *arguments)
    asker = child_of(process)
    process.send_signal(number)
    process.communicate(timeout=AT_ONCE)
    assert process.returncode == 128 + number
    assert gone(asker)


SLOW = """
import sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("importing", file=sys.stderr, flush=True)
            while True:
                try:
                    time.sleep(0.01)
                except BaseException:
                    pass  # as callbacks in C do

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, *slow(signal.SIGTERM, signal.SIGHUP)])
def test_a_signal_ends_an_import_that_hears_of_none(started, tmp_path, number):
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "DEVCTL_CACHE_DIR": str(tmp_path / "cache")}
    process = started("", "plan", str(TINY), "--devices", "1GiB", env=environment)
    while process.stderr.readline().strip() != "importing":
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=AT_ONCE)
    assert process.returncode == 128 + number
    assert (out, err) == ("", "devctl: interrupted\n" if number == signal.SIGINT else "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_what_hears_no_hangup_goes_on(started):
    process = started(boxes.system(), "list", "--watch", "1", "--only", "cpu", preexec_fn=ignore_hangups)
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=AT_ONCE)
    assert process.returncode == 128 + signal.SIGTERM


def ignore_hangups():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux'")
def test_what_asks_a_driver_dies_with_devctl(started):
    process = started(WEDGED, "list")
    asker = child_of(process)
    process.kill()
    process.communicate(timeout=AT_ONCE)  # which also says that nobody keeps its streams
    assert gone(asker)


def child_of(process):
    """The process that waits for the driver: a child in a session of its own."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + AT_ONCE
    while time.monotonic() < until:
        for child in children.read_text().split():
            with_session = os.getsid(int(child))
            if with_session == int(child):
                time.sleep(0.1)  # until it has asked to die with its parent
                return int(child)
        time.sleep(0.01)
    pytest.fail("no process asks the driver")


def gone(pid):
    until = time.monotonic() + AT_ONCE
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False
