"""``devctl list`` as people and programs see it."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from devctl.cli.show import inventory as show_inventory
from devctl.cli.show.inventory import columns
from devctl.inventory import Inventory
from devctl.inventory.probes import host
from tests.inventory import boxes
from tests.inventory.boxes import GIB
from tests.marks import one_in


def test_a_row_per_device(machine, ran):
    machine(boxes.eight())
    result = ran("list")
    assert (result.code, result.err) == (0, "")
    rows = result.out.splitlines()
    assert rows[0].split() == ["DEVICE", "NAME", "FREE", "TOTAL", "BUSY", "TEMP", "POWER"]
    assert " ".join(rows[1].split()) == "cuda:0 NVIDIA H100 80GB HBM3 78.0 GiB 80.0 GiB 5% 41°C 72 W"
    assert re.search(r"^driver +nvidia 550.54.15, CUDA 12.4$", result.out, re.MULTILINE)
    assert re.search(r"^cuda:0 +X +NV18\*( +NV18\*){6}$", result.out, re.MULTILINE)
    assert re.search(r"^cpu .* GiB$", result.out, re.MULTILINE)
    assert result.out.count("disk ") == 2


@pytest.mark.parametrize(
    ("box", "words"),
    one_in(
        4,
        [
            (boxes.one_lost(), "nvidia 1 .*GPU is lost"),
            (boxes.system(init=18), "driver .*kernel module and library are of different versions"),
            (boxes.system(init=9), "driver .*not loaded"),
            (boxes.gb10(), r"NVIDIA GB10 \(shares the host's memory\) +[0-9.]+ GiB"),
            (boxes.system() + boxes.board(memory=3), "H100 80GB HBM3 +– +–"),
            (boxes.mig_box(), r"nvidia 1 +NVIDIA A100-SXM4-80GB \(split by MIG\)"),
            (boxes.mixed(), "note: .*CUDA_DEVICE_ORDER=PCI_BUS_ID"),
        ],
    ),
)
def test_every_fault_is_shown_beside_the_rest_and_is_no_failure(machine, ran, box, words):
    machine(box)
    result = ran("list")
    assert result.code == 0
    assert re.search(words, result.out)
    assert re.search(r"^cpu ", result.out, re.MULTILINE)


def test_processes_are_listed_once(machine, ran):
    machine(boxes.mig_box())
    assert re.findall(r"^(\S.*?) +– +4242 +4.00 GiB$", ran("list").out, re.MULTILINE) == ["cuda:0"]


def test_an_invisible_gpu_is_shown(machine, ran, monkeypatch):
    machine(boxes.eight())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    out = ran("list").out
    assert re.search(r"^nvidia 0 .*hidden by the environment", out, re.MULTILINE)
    assert re.search(r"^cuda:0 +NVIDIA H100 80GB HBM3 +75.0 GiB", out, re.MULTILINE)


def test_a_pipe_gets_no_colour_and_no_folding(machine, ran, tmp_path, monkeypatch):
    machine(boxes.eight())
    long = tmp_path / ("x" * 100) / ("y" * 100)
    monkeypatch.setenv("HF_HUB_CACHE", str(long))
    out = ran("list").out
    assert "\033" not in out
    assert str(long) in out


def test_columns_are_honoured(machine, ran, monkeypatch):
    machine(boxes.eight())
    monkeypatch.setenv("COLUMNS", "80")
    assert max(map(len, ran("list").out.splitlines())) <= 80


def test_json_holds_to_the_shipped_schema(machine, ran):
    machine(boxes.one_lost())
    result = ran("list", "--json")
    document = json.loads(result.out)
    jsonschema.validate(document, json.loads((files("devctl.inventory") / "schema.json").read_text(encoding="utf-8")))
    assert document["accelerators"][1]["fault"] == "GPU is lost"
    assert document["accelerators"][3]["memory_total"] == 80 * GIB


@pytest.mark.parametrize(("only", "shown"), [("gpu", "cuda:0"), ("cpu", "cpu"), ("disk", "disk")])
def test_only(machine, ran, only, shown):
    machine(boxes.system() + boxes.board())
    rows = [line.split()[0] for line in ran("list", "--only", only).out.splitlines()[1:]]
    assert shown in rows
    assert set(rows) <= {shown, "driver"}


def test_an_unknown_part_is_wrong_usage(ran):
    assert ran("list", "--only", "tpu").code == 2


def test_the_offload_folder(ran, tmp_path):
    assert f"{tmp_path / 'offload'} (offload folder" in ran("list", "--offload-folder", tmp_path / "offload").out


@pytest.mark.parametrize("seconds", ["0", "-1", "0.05", "50ms", "2d", "25h", "nan", "inf"])
def test_ticks_that_are_too_short_or_no_time_are_wrong_usage(ran, seconds):
    result = ran("list", "--watch", seconds)
    assert result.code == 2
    assert "--watch" in result.err


def test_watching_and_measuring_exclude_each_other(ran):
    assert ran("list", "--watch", "1", "--benchmark").code == 2


def test_watching_prints_a_document_a_line_until_interrupted(started, tmp_path):
    process = started(boxes.system() + boxes.board(used=0), "list", "--json", "--watch", "100ms", "--only", "gpu")
    first = json.loads(process.stdout.readline())
    (tmp_path / "machine").write_text(boxes.system() + boxes.board(used=GIB))
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert first["accelerators"][0]["memory_used"] == 0
    assert lines[-1]["accelerators"][0]["memory_used"] == GIB
    assert lines[0]["taken_at"] < lines[1]["taken_at"]
    assert all(json.loads(line)["kind"] == "devctl.inventory" for line in out.splitlines())


def on_a_terminal(started, text, *arguments, until, **options):
    """What the command writes to a terminal until it has written ``until``; then Ctrl-C."""
    screen, end = pty.openpty()
    process = started(text, *arguments, stdin=end, stdout=end, text=False, **options)
    os.close(end)
    seen = b""
    deadline = time.monotonic() + 60
    while not until(seen) and time.monotonic() < deadline:
        seen += os.read(screen, 65536)
    process.send_signal(signal.SIGINT)
    try:
        while chunk := os.read(screen, 65536):
            seen += chunk
    except OSError:  # the other end is closed
        pass
    os.close(screen)
    err = process.stderr.read()
    process.stderr.close()
    return seen.decode(), process.wait(timeout=60), err


SCREEN, SCREEN_BEFORE = "\033[?1049h", "\033[?1049l"


def test_watching_redraws_in_place_on_a_screen_of_its_own(started):
    box = boxes.system() + boxes.board()
    seen, code, err = on_a_terminal(
        started, box, "list", "--watch", "0.1", until=lambda text: text.count(b"\033[H") >= 3
    )
    assert (code, err) == (130, b"")
    assert seen.startswith(SCREEN)
    assert seen.count("\033[H") >= 3, "the cursor goes to the top again"
    assert re.search(r"[0-2][0-9]:[0-5][0-9]:[0-5][0-9], every 0\.1 s; q leaves", seen)
    assert seen.rstrip().endswith("\033[?25h" + SCREEN_BEFORE), "and what was there is shown when it is over"


class Watched:
    """``list --watch`` on a terminal whose keys and modes a test has in its hands."""

    def __init__(self, started, *arguments, rows=40, **options):
        self.screen, self.end = pty.openpty()
        self.resize(rows)
        self.modes = termios.tcgetattr(self.end)
        box = boxes.system() + boxes.board()
        # of a group of its own, whose parent is of another in the same session: one whose parents are gone never stops
        options = {"process_group": 0, **options}
        self.process = started(
            box, "list", "--watch", *arguments, stdin=self.end, stdout=self.end, text=False, **options
        )
        self.seen = b""

    def resize(self, rows, columns=100):
        fcntl.ioctl(self.end, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def until(self, text, more=0):
        deadline = time.monotonic() + 30
        while self.seen.count(text) <= more and time.monotonic() < deadline:
            if select.select([self.screen], [], [], 1)[0]:
                self.seen += os.read(self.screen, 65536)
        assert self.seen.count(text) > more, self.seen

    def end_of_it(self):
        """The exit code, and what was written to stderr; the terminal is as it was."""
        code = self.process.wait(timeout=30)
        while select.select([self.screen], [], [], 0.1)[0]:
            self.seen += os.read(self.screen, 65536)
        assert termios.tcgetattr(self.end) == self.modes
        assert self.seen.rstrip().endswith(("\033[?25h" + SCREEN_BEFORE).encode())
        err = self.process.stderr.read()
        for each in (self.screen, self.end):
            os.close(each)
        self.process.stderr.close()
        return code, err


@pytest.mark.parametrize("key", one_in(3, [b"q", b"Q", b"\x04"]))
def test_a_key_leaves_at_once_and_the_terminal_is_as_it_was(started, key):
    watched = Watched(started, "3600")
    watched.until(b"H100")
    assert not termios.tcgetattr(watched.end)[3] & (termios.ECHO | termios.ICANON), "keys are heard and not shown"
    os.write(watched.screen, b"xyz" + key)
    assert watched.end_of_it() == (0, b"")


@pytest.mark.parametrize(
    ("number", "code"),
    one_in(2, [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGQUIT, -3)]),
)
def test_whatever_ends_it_leaves_the_terminal_as_it_was(started, number, code):
    watched = Watched(started, "3600")
    watched.until(b"H100")
    watched.process.send_signal(number)
    assert watched.end_of_it() == (code, b"")


def test_a_look_that_fails_is_told_on_the_screen_that_was_there_before(started, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import devctl.cli.list as l\n"
        "from devctl.errors import UsageError\n"
        "looks = iter([l.take_inventory])\n"
        "def look(**more):\n"
        "    for each in looks:\n"
        "        return each(**more)\n"
        "    raise UsageError('it is gone')\n"
        "l.take_inventory = look\n"
    )
    path = os.pathsep.join((str(tmp_path), str(Path(__file__).parents[2])))
    watched = Watched(started, "0.1", env={"PYTHONPATH": path})
    assert watched.end_of_it() == (2, b"devctl: it is gone\n")


def test_it_can_be_stopped_and_goes_on_with_a_screen_again(started):
    watched = Watched(started, "0.2")
    watched.until(b"H100")
    watched.process.send_signal(signal.SIGTSTP)
    watched.until(SCREEN_BEFORE.encode())
    os.waitid(os.P_PID, watched.process.pid, os.WSTOPPED | os.WNOWAIT)
    assert termios.tcgetattr(watched.end) == watched.modes, "as it was, for the shell"
    watched.process.send_signal(signal.SIGCONT)
    watched.until(SCREEN.encode(), more=1)
    os.write(watched.screen, b"q")
    assert watched.end_of_it() == (0, b"")


def test_a_terminal_that_is_too_low_is_told_and_one_that_grows_shows_more(started):
    watched = Watched(started, "3600", rows=5)
    watched.until(b"more lines, for which the terminal is too low")
    assert b"working directory" not in watched.seen
    watched.resize(60)
    watched.process.send_signal(signal.SIGWINCH)
    watched.until(b"working directory")
    os.write(watched.screen, b"q")
    assert watched.end_of_it() == (0, b"")


def test_without_a_keyboard_there_is_no_q(started):
    screen, end = pty.openpty()
    process = started(
        boxes.system(),
        "list",
        "--watch",
        "0.1",
        stdin=subprocess.DEVNULL,
        stdout=end,
        stderr=subprocess.PIPE,
        text=False,
    )
    os.close(end)
    seen = b""
    while b"Ctrl-C leaves" not in seen:
        seen += os.read(screen, 65536)
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(OSError):
        while os.read(screen, 65536):
            pass
    os.close(screen)
    assert process.wait(timeout=30) == 130
    process.stderr.close()


def test_a_dumb_terminal_gets_table_after_table(started):
    seen, code, _ = on_a_terminal(
        started, boxes.system() + boxes.board(), "list", "--watch", "0.1",
        until=lambda text: text.count(b"H100") >= 2, env={"TERM": "dumb"},
    )  # fmt: skip
    assert code == 130
    assert "\033" not in seen


def test_a_terminal_gets_bold_headers_unless_told_not_to(started):
    box = boxes.system() + boxes.board()
    seen, _, _ = on_a_terminal(started, box, "list", until=lambda text: b"cpu " in text)
    assert "\033[1mDEVICE" in seen
    seen, _, _ = on_a_terminal(started, box, "list", until=lambda text: b"cpu " in text, env={"NO_COLOR": "1"})
    assert "\033[1m" not in seen


@pytest.mark.parametrize(
    "arguments", one_in(2, [["list"], ["list", "--json"], ["check", "--gpus", "1"], ["check", "--help"]])
)
def test_no_framework_is_imported(started, arguments):
    process = started(boxes.eight(), *arguments, env={"PYTHONPROFILEIMPORTTIME": "1"})
    _, err = process.communicate(timeout=30)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in err.splitlines() if "|" in line}
    assert "typer" in imported
    assert not imported & {"torch", "transformers", "accelerate", "pydantic", "numpy"}
    assert "rich" not in imported


def test_a_reader_that_goes_away_is_no_noise(started):
    process = started(boxes.eight(), "list", "--json", "--watch", "0.1")
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


def test_columns_fold_one_column_and_align_the_rest():
    text = columns(
        ["A", "NAME", "N"], [["x", "a name that is long", "1"], ["yy", "b"]], left=2, wrap=1, width=24, styled=False
    )
    assert text.splitlines() == ["A   NAME               N", "x   a name that is     1", "    long", "yy  b"]


def test_columns_count_wide_characters():
    text = columns(["NAME", "N"], [["数据", "1"], ["abcde", "2"]], left=1)
    assert text.splitlines() == ["NAME   N", "数据   1", "abcde  2"]


def test_columns_dim_and_embolden_only_when_asked():
    styled = columns(["A"], [["x"], ["y"]], left=1, styled=True, dim={1})
    assert styled.splitlines() == ["\033[1mA\033[0m", "x", "\033[2my\033[0m"]


def test_a_machine_without_a_gpu_says_so():
    nothing = Inventory(accelerators=(), host=host.UNKNOWN, disks=())
    assert show_inventory.to_text(nothing, width=80, styled=False) == "no GPU was found\n"
