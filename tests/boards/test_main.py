"""The command line, and a whole slice in real processes on devices that are none."""

import json
import os
import subprocess
import sys
import time

import jsonschema
import psutil
import pytest

from tests.boards import __main__ as boards
from tests.boards import cards
from tests.boards.models import FAMILIES
from tests.boards.records import SECTIONS, TARGETS, Box
from tests.boards.slices import Exit
from tests.boards.steps import STEPS
from tests.boards.test_page import SCHEMA


@pytest.fixture
def command(capsys):
    """Runs the command line in this process: its exit code, stdout and stderr."""

    def run(*arguments):
        try:
            code = boards.main(arguments)
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_a_dry_run_lists_every_step_and_imports_no_torch():
    code = (
        "import sys; from tests.boards.__main__ import main; code = main(['--dry-run'])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    assert sorted(line.split()[0] for line in lines) == sorted(step.name for step in STEPS)
    assert last.startswith(f"{len(STEPS)} steps, about ")


def test_a_dry_run_shows_what_is_asked_for(command):
    code, out, _ = command("--dry-run", "--only", "edge/", "--only", "overhead")
    assert code == 0
    assert {line.split("/")[0] for line in out.splitlines()[:-1]} == {"edge", "overhead"}


def test_steps_are_all_different_and_each_goes_into_a_slice():
    assert len({step.name for step in STEPS}) == len(STEPS)
    assert {step.section for step in STEPS} <= set(SECTIONS)
    assert all(step.seconds <= 8 * 60 - boards.MARGIN for step in STEPS), "--minutes 8 is what is meant"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "nothing"], "--only nothing: no step has that in its name"),
        (["--again", "nothing"], "--again nothing: no step has that in its name"),
        (["--minutes", "0"], "--minutes 0: it can be 1 to 1440"),
        (["--minutes", "nan"], "--minutes nan: it can be"),
        (["--minutes", "many"], "invalid float value"),
        (["--what"], "unrecognized arguments"),
    ],
)
def test_what_can_not_be_meant_is_refused(command, arguments, said):
    code, _, err = command(*arguments)
    assert code == 2
    assert said in err


def test_without_a_board_it_says_so_and_exits_3(command, monkeypatch, tmp_path):
    box = Box(boards=(), versions={}, problem="torch 2.9.1+cpu is built without CUDA")
    monkeypatch.setattr(boards, "find_box", lambda *_: box)
    code, out, err = command("--out", str(tmp_path / "evidence"))
    assert (code, out) == (3, "")
    assert err.splitlines() == ["no board: torch 2.9.1+cpu is built without CUDA", "list the steps with --dry-run"]
    assert not (tmp_path / "evidence").exists()


def test_a_package_that_is_missing_is_named_with_what_installs_it(monkeypatch):
    there = cards.find_spec
    monkeypatch.setattr(cards, "find_spec", lambda name: None if name in ("pynvml", "typer") else there(name))
    assert cards.describe().problem == "packages are missing: pip install typer nvidia-ml-py"


def test_torch_without_cuda_is_told(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = cards.describe()
    assert (found.boards, found.problem) == ((), f"torch {torch.__version__} is built without CUDA")
    assert found.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_a_folder_that_can_not_be_written_to_is_refused_before_anything_runs(command, tmp_path):
    (tmp_path / "evidence").write_text("a file")
    code, _, err = command("--out", str(tmp_path / "evidence"))
    assert code == 2
    assert "it can't be written to" in err


def test_steps_run_with_torchs_allocator_as_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "max_split_size_mb:32")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = boards.environment(tmp_path)
    assert not {"PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"} & set(found)
    assert found["CUDA_VISIBLE_DEVICES"] == "1"


def test_ctrl_c_while_the_box_is_looked_at_ends_quietly(command, monkeypatch, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(boards, "find_box", interrupted)
    assert command("--out", str(tmp_path))[::2] == (130, "interrupted\n")


def test_the_page_of_how_to_run_it_names_what_there_is():
    text = (boards.CHECKOUT / "docs" / "boards.md").read_text(encoding="utf-8")
    assert f"{sum(map(len, FAMILIES.values()))} small architectures" in text
    assert all(f"| {section} |" in text for section in SECTIONS)
    assert all(f"| {target} |" in text for target in TARGETS)


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (Exit(code=-11, said="Segmentation fault"), "it ended with -11 (Segmentation fault)"),
        (Exit(code=None), "it did not answer in 120 s (no word)"),
    ],
)
def test_a_driver_that_ends_or_hangs_is_no_board(monkeypatch, ended, said):
    monkeypatch.setattr(boards, "run_apart", lambda *_: (ended, ""))
    assert said in boards.find_box("cuda", {}).problem


@pytest.mark.slow
def test_a_process_is_ended_with_all_that_it_started(tmp_path):
    tells = "import os, subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {!r}]); time.sleep(60)"
    grandchild = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    ended, _ = boards.run_apart([sys.executable, "-c", tells.format(grandchild)], 8, dict(os.environ))
    assert ended.code is None
    pid = int((tmp_path / "pid").read_text())
    while is_running(pid):  # until the signal has arrived
        time.sleep(0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="the system tells it on Linux alone")
def test_a_step_ends_with_a_runner_that_is_killed(tmp_path):
    pid = tmp_path / "pid"
    step = (
        "import os, pathlib, time; from tests.boards.child import end_with_parent; end_with_parent(); "
        f"pathlib.Path({str(tmp_path / 'new')!r}).write_text(str(os.getpid())); "
        f"os.rename({str(tmp_path / 'new')!r}, {str(pid)!r}); time.sleep(60)"
    )
    runner = (
        f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {step!r}], start_new_session=True).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", runner])
    while not pid.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    while is_running(int(pid.read_text())):
        time.sleep(0.01)


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_last_words_are_those_of_the_exception():
    said = "Traceback (most recent call last):\n  File 'x'\n    raise\nValueError: what was wrong\n\n"
    assert boards.last_words(said) == "ValueError: what was wrong"
    assert boards.last_words("") == ""


@pytest.mark.slow
def test_a_slice_on_devices_that_are_none_writes_its_evidence_and_goes_on(tmp_path):
    """Three processes deep, as on a real box: the runner, the step, and what the step asks."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "tests.boards", "--on", "simulated", "--out", str(tmp_path), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )

    first = run("--only", "overhead/", "--only", "real/")
    assert first.returncode == 0, first.stderr
    (document,) = tmp_path.glob("*.json")
    found = json.loads(document.read_text())
    jsonschema.validate(found, SCHEMA)
    assert found["simulated"] is True
    by_name = {step["name"]: step for step in found["steps"]}
    assert len(by_name) == len(STEPS)
    assert by_name["overhead/context"]["status"] == "done"
    assert found["counts"]["met"] > 0
    assert found["counts"]["failed"] == 0, by_name["overhead/context"]["rows"]
    assert [row["verdict"] for row in by_name["real/minilm"]["rows"]] in (["skipped"], [])
    assert "every step that was asked for was tried" in first.stderr
    assert "proves nothing about a board" in document.with_suffix(".md").read_text()
    second = run("--only", "overhead/")
    assert second.returncode == 0
    assert "overhead/context:" not in second.stderr, "it is done"
