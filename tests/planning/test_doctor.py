"""What is wrong with an environment: everything together, on invented machines and with invented answers."""

import json
import socket
import sys

import pytest

import devctl
from devctl.inventory.probes.host import UNKNOWN
from devctl.inventory.records import Host
from devctl.planning import doctor
from devctl.planning.doctor import Level, examine, judge_host, judge_planner
from devctl.planning.examining.packages import Owner
from tests.inventory import boxes
from tests.inventory.conftest import machine, nvml_folder  # noqa: F401 - fixtures
from tests.marks import one_in

GIB = 2**30
TORCH = {"version": "2.9.0+cu124", "cuda": "12.4", "hip": None, "mps": False, "architectures": ["sm_80", "sm_90"]}


def answering(torch=TORCH, devices=None, transformers=None):
    """A command that tells what the process that imports would."""
    steps = {"torch": torch, "devices": devices, "transformers": transformers or {"version": "5.24.0"}}
    steps["accelerate"] = {"version": "1.15.0"}
    script = "import json, sys\n"
    for step, facts in steps.items():
        said = {"state": "failed", "said": facts} if isinstance(facts, str) else {"state": "done", "facts": facts}
        if facts is None:
            said = {"state": "absent"}
        script += f"print(sys.argv[1] + json.dumps({{'step': {step!r}, 'state': 'begun'}}))\n"
        script += f"print(sys.argv[1] + json.dumps({{'step': {step!r}, **{said!r}}}))\n"
    return [sys.executable, "-c", script]


@pytest.fixture
def examined(machine, monkeypatch, tmp_path):  # noqa: F811
    """Examines an invented machine: ``examined(boxes.eight(), answering(), VARIABLE="…")``."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "HF_HUB_CACHE", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    # what is installed where the tests run, is their own
    monkeypatch.setattr(doctor, "owners", lambda: (Owner(name="devctl-plan", version=devctl.__version__, ours=True),))

    def run(box, command, **variables):
        machine(box)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return examine(command=command, seconds=300.0)

    return run


def of(found, subject):
    return [finding for finding in found.findings if finding.subject == subject]


def test_a_machine_where_all_is_well(examined):
    found = examined(boxes.eight(), answering(devices={"cuda": 8}))
    assert found.broken == ()
    subjects = [finding.subject for finding in found.findings]
    assert subjects[:4] == ["python", "devctl", "packages", "torch"]
    assert {"driver", "torch devices", "boards", "memory", "hub cache", "devctl cache"} <= set(subjects)
    assert of(found, "boards")[0].text == "8 × NVIDIA H100 80GB HBM3"
    assert of(found, "driver")[0].text == "550.54.15 runs CUDA 12.4, and torch is built for 12.4"
    assert found.to_document()["torch"]["devices"] == 8


def test_every_broken_finding_says_what_to_do(examined):
    box = (
        boxes.system(driver="470.57.02", cuda=11040)
        + boxes.board(0, cc="3.7")
        + boxes.board(1, ecc=3)
        + boxes.board(2, lost=1)
    )
    found = examined(box, answering(devices={"cuda": 0}), CUDA_VISIBLE_DEVICE="1")
    assert {"driver", "CUDA_VISIBLE_DEVICE", "nvidia 2"} <= {finding.subject for finding in found.broken}
    assert "3 uncorrected ECC errors" in str(found.broken)
    assert "torch has no kernels for it" in str(found.broken)
    assert all(finding.next_step for finding in found.broken)
    assert of(found, "boards")[0].text.startswith("2 × NVIDIA H100 80GB HBM3, ")
    assert of(found, "nvidia driver")[0].text == "470.57.02, which runs CUDA 11.4"


@pytest.mark.parametrize(
    ("torch", "text", "step"),
    one_in(
        3,
        [
            (
                "ImportError: undefined symbol",
                "importing torch fails: ImportError: undefined symbol",
                "install torch anew",
            ),
            (None, "is not installed: list and check work without it", "`pip install torch`"),
            ("MemoryError: ", "importing torch fails: MemoryError:", "python -c 'import torch'"),
        ],
    ),
)
def test_a_torch_that_is_not_there_or_does_not_import_keeps_nothing_else_from_being_told(examined, torch, text, step):
    found = examined(boxes.eight(), answering(torch=torch))
    (finding,) = of(found, "torch")
    assert finding.level is Level.BROKEN
    assert text in finding.text
    assert step in finding.next_step
    assert found.torch is None
    assert found.to_document()["torch"] is None
    assert {"boards", "memory", "hub cache", "transformers"} <= {each.subject for each in found.findings}


@pytest.mark.parametrize(
    ("command", "text", "step"),
    one_in(
        4,
        [
            (["-c", "import os; os.kill(os.getpid(), 11)"], "importing torch crashed (SIGSEGV)", "python -c"),
            (["-c", "import time; time.sleep(600)"], "importing torch did not end within 1 s", "try --timeout 2s"),
            (["-c", "import os; os.kill(os.getpid(), 9)"], "importing torch was killed (SIGKILL)", "more memory"),
            (["-c", "print('rubbish')"], "importing torch answered nothing that can be read", "python -c"),
        ],
    ),
)
def test_a_process_that_hangs_crashes_or_is_killed_is_a_finding_and_no_end(command, text, step):
    found = examine(command=[sys.executable, *command], seconds=1.0 if "within" in text else 300.0)
    (finding,) = of(found, "torch")
    assert finding.level is Level.BROKEN
    assert finding.text.startswith(text)
    assert step in finding.next_step
    assert of(found, "accelerate")[0].level is Level.NOTE
    assert of(found, "memory")


def test_devices_that_hang_are_told_apart_from_the_import(over_once_told):
    over_once_told('"devices"')
    script = (
        "import sys, json, time\n"
        f"print(sys.argv[1] + json.dumps({{'step': 'torch', 'state': 'done', 'facts': {TORCH!r}}}))\n"
        "print(sys.argv[1] + json.dumps({'step': 'devices', 'state': 'begun'}), flush=True)\n"
        "time.sleep(600)"
    )
    found = examine(command=[sys.executable, "-c", script], seconds=20.0)
    assert of(found, "torch")[0].level is Level.OK
    assert of(found, "torch devices")[0].text == "asking torch for its devices did not end within 20 s"


def test_a_driver_that_does_not_start_is_broken(examined):
    found = examined(boxes.system(init=9) + boxes.board(), answering(devices={"cuda": 0}))
    (finding,) = of(found, "nvidia driver")
    assert finding.level is Level.BROKEN
    assert "not loaded" in finding.text


def test_a_bad_deadline_of_the_driver_is_a_finding(examined):
    found = examined(boxes.eight(), answering(devices={"cuda": 8}), DEVCTL_DRIVER_TIMEOUT="soon")
    (finding,) = of(found, "machine")
    assert finding.level is Level.BROKEN
    assert "DEVCTL_DRIVER_TIMEOUT" in finding.text
    assert of(found, "hub cache")


def test_a_question_that_breaks_keeps_no_other_from_being_asked(examined, monkeypatch):
    def breaks(*_, **__):
        raise ZeroDivisionError("nobody thought of it")

    for name in ("judge_boards", "judge_variables", "owners", "versions", "judge_planner", "judge_folders"):
        monkeypatch.setattr(doctor, name, breaks)
    found = examined(boxes.eight(), answering(devices={"cuda": 8}))
    assert len(found.broken) == 6
    assert "could not be looked at: ZeroDivisionError: nobody thought of it" in found.broken[0].text
    assert of(found, "memory")


SECRETS = (
    "hostile-user",
    "secret-node",
    "8d1f8b2c-1111",
    "top-secret-job",
    "someone-else",
    "hf_abcdefghijklmnop",
    "10.20.30.40",
)


def test_nothing_private_is_told(examined, monkeypatch, tmp_path):
    home = tmp_path / "hostile-user"
    home.mkdir()
    monkeypatch.setattr(socket, "gethostname", lambda: "secret-node.corp.example")
    said = (
        f"OSError: {home}/.venv/lib/libtorch.so on secret-node (hostile-user): /home/someone-else/top-secret-job/x.so "
        "GPU-8d1f8b2c-1111-2222-3333-444444444444 hf_abcdefghijklmnopqrst 10.20.30.40\n\x1b[2J::error::evil"
    )
    box = (
        boxes.system()
        + boxes.board(0, uuid="GPU-8d1f8b2c-1111-2222-3333-444444444444", name="GPU_of_hostile-user", ecc=1)
        + boxes.board(1)
        + boxes.process(board=0, pid=1, bytes=1)
    )
    found = examined(
        box,
        answering(torch={**TORCH, "version": f"2.9 of {home}"}, devices={"cuda": 7, "said": said}, transformers=said),
        HOME=str(home),
        USER="hostile-user",
        HOSTNAME="secret-node",
        HF_HOME=f"{home}/top-secret-job",
        CUDA_VISIBLE_DEVICES="GPU-8d1f8b2c-1111,/home/someone-else/x",
        CUDA_DEVICE_ORDER=str(home),
        SHELL=f"{home}/bash",
        DEVCTL_CACHE_DIR=f"{home}/cache",
        CUDA_HOME="/home/someone-else/cuda",
    )
    told = json.dumps(found.to_document()) + str(found.findings)
    for secret in SECRETS:
        assert secret not in told, [f for f in found.findings if secret in str(f)]


def test_a_host_that_is_called_as_its_boards_are_hides_none_of_them(examined, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "h100")
    assert "NVIDIA H100 80GB HBM3" in of(examined(boxes.eight(), answering(devices={"cuda": 8})), "boards")[0].text


def test_memory_limits_are_told():
    host = Host(
        cpu="x",
        cores_physical=8,
        cores_logical=16,
        cores_usable=16,
        cpu_quota=2.5,
        ram_total=8 * GIB,
        ram_available=4 * GIB,
        ram_limit=8 * GIB,
        ram_total_system=64 * GIB,
    )
    (finding,) = judge_host(host)
    assert finding.level is Level.NOTE
    assert (
        "limits RAM to 8.00 GiB of the machine's 64.0 GiB and the processor to 2.5 cores' worth of 16" in finding.text
    )
    (free,) = judge_host(
        Host(cpu="x", cores_physical=8, cores_logical=8, cores_usable=8, ram_total=8 * GIB, ram_available=GIB)
    )
    assert (free.level, free.text) == (Level.OK, "1.00 GiB of 8.00 GiB RAM available, 8 of 8 cores")
    assert judge_host(UNKNOWN)[0].level is Level.NOTE


def test_the_planner_is_one_that_was_compared_or_that_is_asked(monkeypatch):
    from devctl.models import compared

    source = compared.planner_source(quantised=True)
    assert source is not None
    assert judge_planner()[0].level is (Level.OK if source.is_known else Level.NOTE)
    monkeypatch.setattr(compared, "KNOWN_PLANNERS", frozenset())
    assert judge_planner()[0].level is Level.NOTE
    monkeypatch.setattr(compared, "planner_source", lambda quantised: None)
    assert "not where devctl looks for it" in judge_planner()[0].text
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert judge_planner() == []


def test_an_unexpected_error_shows_itself_where_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("DEVCTL_DEBUG", "1")

    def breaks():
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "owners", breaks)
    with pytest.raises(ZeroDivisionError):
        examine(command=[sys.executable, "-c", ""])
