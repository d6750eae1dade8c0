"""devctl as a process: pipes, terminals, signals and full disks."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from devctl.cli import app, signals
from tests.conftest import CONFIGS, DEVCTL
from tests.marks import one_in

TINY = CONFIGS / "tiny-llama"


@pytest.fixture(autouse=True, scope="module")
def _kept():
    """The tree of the model is in the cache, so that a process that plans it need not import torch."""
    app(["plan", str(TINY), "--max-memory", "cpu=12MiB"], standalone_mode=False)


def run(*args, **options):
    return subprocess.run([DEVCTL, *args], capture_output=True, text=True, check=False, timeout=120, **options)


def in_terminal(*args, columns=80, **variables):
    """What a terminal of ``columns`` would get, stdout and stderr together."""
    parent, child = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = (
        {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
        | {"TERM": "xterm-256color"}
        | variables
    )
    with subprocess.Popen([DEVCTL, *args], stdin=child, stdout=child, stderr=child, env=env) as process:
        os.close(child)
        output = b""
        while True:
            try:
                chunk = os.read(parent, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not chunk:
                break
            output += chunk
    os.close(parent)
    return process.returncode, output.decode()


def test_version_is_bare():
    import devctl

    assert run("--version").stdout == devctl.__version__ + "\n"


def test_as_a_module():
    done = subprocess.run([sys.executable, "-m", "devctl", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == run("--version").stdout


def test_no_arguments_show_the_help_and_fail():
    done = run()
    assert done.returncode == 2
    assert "Usage: devctl" in done.stdout + done.stderr


@pytest.mark.parametrize("command", one_in(4, [[], ["list"], ["plan"], ["load"]]))
def test_help(command):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    if not command:
        for code in ("0 done", "1 unexpected", "2 wrong usage", "3 the honest no", "4 the model", "5 loading", "130"):
            assert code in done.stdout


def test_a_full_disk():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        plan = ["plan", TINY, "--max-memory", "cpu=1GB"]
        for command in (["list"], ["list", "--json"], plan, ["--help"], ["plan", "--help"]):
            done = subprocess.run([DEVCTL, *command], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
            assert done.returncode == 1
            assert done.stderr == "devctl: cannot write to standard output: No space left on device\n"


def test_a_reader_that_leaves():
    gone, pipe = os.pipe()
    os.close(gone)
    done = subprocess.run([DEVCTL, "list", "--json"], stdout=pipe, stderr=subprocess.PIPE, check=False)
    os.close(pipe)
    assert done.returncode == 1
    assert done.stderr == b""


def test_a_table_fits_the_terminal():
    code, output = in_terminal("list", columns=60)
    assert code == 0
    assert "\x1b[1m" in output
    plain = [line for line in output.replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines() if line]
    assert max(map(len, plain)) <= 60


def test_piped_tables_are_plain_and_whole():
    out = run("list").stdout
    assert "\x1b" not in out
    assert str(os.getcwd()) in out  # noqa: PTH109


@pytest.mark.parametrize(
    "command", one_in(2, [["list"], ["plan", str(TINY), "--max-memory", "cpu=12MiB"]]), ids=" ".join
)
def test_no_color_is_honoured(command):
    _, coloured = in_terminal(*command)
    _, plain = in_terminal(*command, NO_COLOR="1")
    colour = re.compile(r"\x1b\[(1|3[0-9]|9[0-9])m")
    assert colour.search(coloured)
    assert not re.search(r"\x1b\[(3[0-9]|9[0-9])m", plain)


def test_a_plan_in_a_terminal():
    code, output = in_terminal("plan", str(TINY), "--max-memory", "cpu=12MiB")
    assert code == 0
    assert "looking for" in output  # the spinner
    assert '"model.layers.5"' not in output  # the map is for programs
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output)
    table = shown[shown.index("6.15 MiB on disk") :].splitlines()
    assert max(map(len, table)) <= 80


@pytest.mark.slow
def test_a_load_in_a_terminal():
    code, output = in_terminal("load", str(TINY), "--load-format", "dummy", "--max-memory", "cpu=12MiB")
    assert code == 0
    assert re.search(r"loading .*15\.1/15\.1 MiB", output)  # the bar


@pytest.mark.parametrize("closed", ["1", "2"])
def test_closed_streams(closed, tmp_path):
    command = f"exec {closed}>&-; exec {DEVCTL} plan {TINY} --max-memory cpu=12MiB"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)
    if closed == "1":
        assert done.returncode == 1
        assert done.stderr == "devctl: cannot write to standard output: it is closed\n"
    else:
        assert done.returncode == 0
        assert json.loads(done.stdout)["lm_head"] == "disk"


def test_a_full_stderr_spoils_no_answer():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [DEVCTL, "plan", TINY, "--max-memory", "cpu=12MiB"], stdout=subprocess.PIPE, stderr=full, check=False
        )
    assert done.returncode == 0
    assert json.loads(done.stdout)["lm_head"] == "disk"


@pytest.mark.parametrize("columns", one_in(3, ["20", "0", "x"]))
def test_odd_widths_lose_nothing(columns):
    done = run("plan", str(TINY), "--max-memory", "cpu=12MiB", env=os.environ | {"COLUMNS": columns})
    assert done.returncode == 0
    for part in ("cpu", "disk", "8.92 MiB", "of 12.0 MiB", "model", "6.15 MiB on disk"):
        assert part in done.stderr


def test_a_working_directory_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"cd {gone}; rmdir {gone}; {DEVCTL} plan {TINY.absolute()}; {DEVCTL} list"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=True)
    assert '"": "cpu"' in done.stdout
    assert "Traceback" not in done.stderr


def test_output_that_is_not_utf8():
    done = run(
        "plan", TINY, "--max-memory", "cpu=2MB", env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_leaves_nothing_behind(number, code, tmp_path):
    big = tmp_path / "model"
    shutil.copytree(TINY, big)
    config = json.loads((big / "config.json").read_text())
    (big / "config.json").write_text(
        json.dumps(config | {"num_hidden_layers": 64, "hidden_size": 1024, "intermediate_size": 4096})
    )
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [DEVCTL, "load", big, "--load-format", "dummy", "--max-memory", "cpu=1MB"],
        env=os.environ | {"TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not list(temporary.glob("devctl-offload-*/*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "it never began to offload"
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert list(temporary.glob("devctl-*")) == []


INTERRUPTED = """
import time, weakref
import devctl.cli.list as l

class Gone:
    pass

def raises(_):
    raise KeyboardInterrupt

def take_inventory(**_):
    gone = Gone()
    kept = weakref.ref(gone, raises)
    del gone
    time.sleep(60)

l.take_inventory = take_inventory
"""


def test_an_interrupt_within_a_callback_is_not_lost(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    path = os.pathsep.join((str(tmp_path), str(CONFIGS.parents[1])))
    done = run("list", env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 130
    assert done.stderr == "devctl: interrupted\n"


def test_a_bug_asks_for_a_report(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import devctl.cli.list as l\nl.take_inventory = lambda **_: 1 / 0\n")
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(CONFIGS.parents[1])))}
    done = run("list", env=env)
    assert done.returncode == 1
    assert "unexpected failure: ZeroDivisionError" in done.stderr
    assert "please report it" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("list", env=env | {"DEVCTL_DEBUG": "1"}).stderr


def test_a_signal_that_a_framework_makes_another_error_of_ends_it_all_the_same(monkeypatch):
    monkeypatch.setattr(signals, "_heard", [])
    signals.exit_if_ended()
    with pytest.raises(SystemExit):
        signals._unwind(signal.SIGTERM, None)
    with pytest.raises(SystemExit) as ended:
        signals.exit_if_ended()
    assert ended.value.code == 143
