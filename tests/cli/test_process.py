"""devctl as a process: pipes, terminals, signals and full disks."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import CONFIGS, DEVCTL

TINY = CONFIGS / "tiny-llama"


def run(*args, **options):
    return subprocess.run([DEVCTL, *args], capture_output=True, text=True, check=False, timeout=120, **options)


def in_terminal(*args, columns=80):
    """What a terminal of ``columns`` would get, stdout and stderr together."""
    parent, child = pty.openpty()
    import fcntl
    import struct
    import termios

    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")} | {"TERM": "xterm-256color"}
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


@pytest.mark.parametrize("command", [[], ["list"], ["plan"], ["load"]])
def test_help(command):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    if not command:
        for code in ("0 done", "1 unexpected", "2 wrong usage", "3 the honest no", "4 the model", "5 loading", "130"):
            assert code in done.stdout


def test_a_full_disk():
    with open("/dev/full", "w") as full:  # noqa: PTH123
        for command in (["list"], ["list", "--json"], ["plan", TINY, "--max-memory", "cpu=1GB"]):
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


def test_no_color_is_honoured():
    assert "\x1b[3" not in run("list", env=os.environ | {"NO_COLOR": "1"}).stdout


def test_output_that_is_not_utf8():
    done = run(
        "plan", TINY, "--max-memory", "cpu=2MB", env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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
    deadline = time.monotonic() + 60
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


def test_a_bug_asks_for_a_report(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import devctl.cli.list as l\nl.take_inventory = lambda **_: 1 / 0\n")
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run("list", env=env)
    assert done.returncode == 1
    assert "unexpected failure: ZeroDivisionError" in done.stderr
    assert "please report it" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("list", env=env | {"DEVCTL_DEBUG": "1"}).stderr
