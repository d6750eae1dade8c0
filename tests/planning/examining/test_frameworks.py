"""Frameworks are imported in another process, which may hang, crash, be killed, or say anything."""

import json
import os
import sys
import time

import pytest

from devctl.planning.examining.frameworks import STEPS, Ended, Question, Step, parse_answers
from tests.marks import one_in

MARK = "mark:"
BEGUN = "import sys, json\ndef tell(**facts): print(sys.argv[1] + json.dumps(facts), flush=True)\n"
IN_TORCH = BEGUN + 'tell(step="torch", state="begun")\n'
NOT_REACHED = dict.fromkeys(STEPS[1:], Step(reached=False))


def asked(script, seconds=300.0):
    question = Question(seconds, [sys.executable, "-c", script])
    try:
        return question.answers()
    finally:
        question.close()


def lines(*facts):
    return "".join(f"{MARK}{json.dumps(each)}\n" for each in facts)


@pytest.mark.parametrize(
    ("script", "said"),
    one_in(
        4,
        [
            ("import time; time.sleep(600)", "did not end within 1 s"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (SIGSEGV)"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)", "crashed (SIGABRT)"),
            ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed (SIGKILL)"),
            ("import os; os._exit(7)", "ended the process that imports it (exit code 7)"),
            ("import os; os._exit(0)", "ended the process that imports it (exit code 0)"),
            ("while True: print('rubbish' * 1000)", "wrote without end, and was stopped"),
            ("import os; os.close(1); import time; time.sleep(600)", "did not end within 1 s"),
        ],
    ),
    ids=["hangs", "segfault", "abort", "killed", "leaves", "leaves well", "floods", "closes"],
)
def test_what_an_import_does_to_its_process_is_the_fault_of_that_import(script, said):
    found = asked(IN_TORCH + script, seconds=1.0 if "within" in said else 300.0)
    assert found["torch"].fault.startswith(said)
    assert found["torch"].facts is None
    assert {name: found[name] for name in STEPS[1:]} == NOT_REACHED


@pytest.mark.parametrize(
    "script", one_in(3, ["", "print('rubbish')", "print('mark:{}')", "import sys; sys.stdout.buffer.write(b'\\xff')"])
)
def test_a_process_that_answers_rubbish_answered_nothing(script):
    found = asked(script)
    assert found == {"torch": Step(fault="answered nothing that can be read"), **NOT_REACHED}


def test_rubbish_between_the_lines_is_passed_over():
    text = "rubbish\n" + lines({"step": "torch", "state": "begun"}) + "\x1b[2J" + f"\n{MARK}{{\n{MARK}[]\n{MARK}7\n"
    text += lines({"step": "evil", "state": "done", "facts": {}}, {"step": ["torch"], "state": "done", "facts": {}})
    text += lines({"step": "torch", "state": "done", "facts": {"version": "2.9"}})
    found = parse_answers(text, MARK, Ended(code=-11))
    assert found["torch"] == Step(facts={"version": "2.9"})
    assert found["devices"] == Step(fault="crashed (SIGSEGV)")
    assert not found["transformers"].reached


def test_lines_nested_deeper_than_can_be_read_are_passed_over():
    found = parse_answers(MARK + "[" * 100_000 + "\n", MARK, Ended(code=0))
    assert found["torch"] == Step(fault="answered nothing that can be read")


def test_a_step_that_hangs_leaves_those_before_it(over_once_told):
    over_once_told('"devices"')
    script = (
        IN_TORCH + 'tell(step="torch", state="done", facts={"version": "2.9"}); tell(step="devices", state="begun")\n'
    )
    found = asked(script + "import time; time.sleep(600)", seconds=20.0)
    assert found["torch"].facts == {"version": "2.9"}
    assert found["devices"].fault == "did not end within 20 s"
    assert not found["accelerate"].reached


def test_what_an_import_leaves_running_is_not_waited_for(tmp_path):
    """It holds the pipe that the answers come through, and is ended with its parent."""
    script = IN_TORCH + (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
        "import os; os._exit(3)"
    )
    assert asked(script, seconds=300.0)["torch"].fault == "ended the process that imports it (exit code 3)"
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
                if file.read().rpartition(")")[2].split()[0] == "Z":
                    return
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.1)
    raise AssertionError(f"{pid} still runs")


def test_a_process_that_can_not_be_started_is_a_fault():
    question = Question(5.0, ["/nowhere/python"])
    found = question.answers()
    question.close()
    assert found["torch"].fault.startswith("no process could be started to import it")
    assert not found["devices"].reached


def package(folder, name, text):
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(text)


def really_asked(folder):
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    question = Question(300.0, environment=environment)
    try:
        return question.answers()
    finally:
        question.close()


@pytest.mark.parametrize(
    ("text", "fault"),
    one_in(
        3,
        [
            (
                "raise ImportError('libtorch_cuda.so: undefined symbol: ncclCommShrink')",
                "ImportError: libtorch_cuda.so",
            ),
            ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
            ("raise SystemExit(0)", "SystemExit: 0"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("x = (", "SyntaxError"),
            ("print('rubbish'); import ctypes; ctypes.string_at(0)", "crashed (SIGSEGV)"),
            ("__version__ = '0.0'", "AttributeError"),
        ],
    ),
)
def test_a_torch_that_can_not_be_imported_is_told_by_the_very_script(tmp_path, text, fault):
    package(tmp_path, "torch", text)
    package(tmp_path, "transformers", "")
    (tmp_path / "transformers" / "modeling_utils.py").write_text("")
    package(tmp_path, "accelerate", "__version__ = '1.99'")
    found = really_asked(tmp_path)
    assert found["torch"].fault.startswith(fault)
    if "crashed" not in fault:
        assert found["accelerate"].facts == {"version": "1.99"}


def test_the_frameworks_that_are_installed_are_really_imported_and_no_file_that_lies_about(tmp_path, monkeypatch):
    import torch

    for name in ("torch.py", "accelerate.py", "json.py"):
        (tmp_path / name).write_text("raise ImportError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    found = really_asked("")
    assert {name: step.fault for name, step in found.items()} == dict.fromkeys(STEPS)
    assert found["torch"].facts["version"] == torch.__version__
    assert found["torch"].facts["cuda"] == torch.version.cuda
    assert isinstance(found["devices"].facts["cuda"], int)
    assert found["transformers"].facts["version"]
