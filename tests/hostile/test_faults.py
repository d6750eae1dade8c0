"""A broken part stays a broken part: drivers that fail in any way, numbers of 400 digits, closed streams."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devctl.errors import first_line
from devctl.inventory.probes import nvidia
from devctl.inventory.probes.processes import process_name
from devctl.inventory.take import guarded
from devctl.units import format_bytes
from tests.conftest import CONFIGS
from tests.inventory import boxes, stand_ins
from tests.inventory.boxes import GIB
from tests.marks import one_in, slow

TINY = CONFIGS / "tiny-llama"
DIGITS = "9" * 400
ROOT = Path(__file__).parents[2]


class NVMLError(Exception):
    """As pynvml's, whose words may be no text."""

    def __init__(self, value):
        super().__init__(value)
        self.value = value

    def __str__(self):
        return bytes([0xFF, self.value % 256]).decode() if self.value % 2 else f"Error {self.value}"


class Memory:
    total, free, used, reserved = 80 * GIB, 79 * GIB, 0, GIB


ANSWERS = {
    "nvmlInit": None,
    "nvmlShutdown": None,
    "nvmlDeviceGetCount": 3,
    "nvmlDeviceGetMemoryInfo": Memory,
    "nvmlDeviceGetName": "H100",
    "nvmlSystemGetDriverVersion": "580.1",
}


class Library:
    """Three boards, of which what ``broken`` names fails as it says."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 2

    def __init__(self, broken):
        self.broken = broken

    def __getattr__(self, function):
        def call(*arguments):
            wrong = self.broken.get((function, arguments[0] if arguments else None), self.broken.get((function, None)))
            if isinstance(wrong, BaseException):
                raise wrong
            if wrong is not None:
                return wrong
            return self.answer(function, *arguments)

        return call

    def answer(self, function, board=None, *_):
        if function == "nvmlDeviceGetHandleByIndex":
            return board
        if function == "nvmlDeviceGetUUID":
            return f"GPU-{board}"
        if function not in ANSWERS:
            raise NVMLError(3)
        return ANSWERS[function]


@pytest.fixture
def boards(monkeypatch, tmp_path):
    """What the probe finds with a library in which something is broken."""

    def probe(**broken):
        library = Library({(name, None): wrong for name, wrong in broken.items()})
        monkeypatch.setitem(sys.modules, "pynvml", library)
        return guarded("nvidia", lambda: nvidia.probe({}, tmp_path))

    return probe


def test_a_library_that_does_not_close_loses_nothing(boards):
    assert [a.fault for a in boards(nvmlShutdown=NVMLError(999)).accelerators] == [None] * 3


@pytest.mark.parametrize("error", [NVMLError(998), NVMLError(999)])
def test_an_error_whose_words_are_no_text_is_a_fault_like_others(boards, error):
    found = boards(nvmlInit=error)
    assert "does not answer" in found.driver.fault
    assert [bool(a.fault) for a in boards(nvmlDeviceGetHandleByIndex=error).accelerators] == [True] * 3


@pytest.mark.parametrize("value", [None, "", "x\n::error::y", 7])
def test_boards_without_a_uuid_are_boards(boards, value):
    wrong = NVMLError(999) if value is None else value
    found = boards(nvmlDeviceGetUUID=wrong).accelerators
    assert [(a.fault, a.memory_free) for a in found] == [(None, 79 * GIB)] * 3


FUNCTIONS = (
    "nvmlShutdown",
    "nvmlSystemGetDriverVersion",
    "nvmlSystemGetCudaDriverVersion_v2",
    "nvmlDeviceGetName",
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetMigMode",
    "nvmlDeviceGetMemoryInfo",
    "nvmlDeviceGetUtilizationRates",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetTemperature",
    "nvmlDeviceGetPowerUsage",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetTotalEccErrors",
    "nvmlDeviceGetFieldValues",
    "nvmlDeviceGetNvLinkState",
    "nvmlDeviceGetTopologyCommonAncestor",
    "nvmlDeviceGetP2PStatus",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetNumGpuCores",
)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    "error",
    [NVMLError(1), NVMLError(2), NVMLError(999), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), MemoryError(),
     OverflowError("too large"), ValueError("NULL pointer access"), TypeError("x")],
    ids=lambda error: f"{type(error).__name__}{getattr(error, 'value', '')}",
)  # fmt: skip
def test_one_broken_answer_loses_no_board(boards, function, error):
    assert [a.fault for a in boards(**{function: error}).accelerators] == [None] * 3


class Huge:
    total = free = used = reserved = 2**64 - 1
    gpu = 2**32 - 1


@pytest.mark.parametrize(
    ("function", "value"),
    [
        ("nvmlDeviceGetMemoryInfo", Huge),
        ("nvmlDeviceGetUtilizationRates", Huge),
        ("nvmlDeviceGetCudaComputeCapability", (2**31, -1)),
        ("nvmlSystemGetCudaDriverVersion_v2", 2**31 - 1),
        ("nvmlDeviceGetTemperature", 2**32 - 1),
        ("nvmlDeviceGetPowerUsage", 2**32 - 1),
    ],
)
def test_a_number_that_no_board_has_is_unknown(boards, function, value):
    found = boards(**{function: value})
    first = found.accelerators[0]
    assert first.fault is None
    facts = (first.memory_free, first.utilization, first.compute_capability, found.driver.cuda, first.temperature)
    assert all(fact in (None, 79 * GIB) for fact in (*facts, first.power))
    assert (first.memory_free is None) is (value is Huge and function == "nvmlDeviceGetMemoryInfo")


def test_four_billion_of_something_are_not_asked_for(boards):
    assert len(boards(nvmlDeviceGetCount=2**32 - 1).accelerators) == 256
    mig = boards(nvmlDeviceGetMigMode=(1, 1), nvmlDeviceGetMaxMigDeviceCount=2**32 - 1)
    assert len([a for a in mig.accelerators if a.mig]) == 0


def test_words_that_raise_are_told_by_their_class():
    assert first_line(NVMLError(999)) == "NVMLError"

    def broken():
        raise NVMLError(999)

    assert guarded("nvidia", broken).driver.fault == "could not be looked at: NVMLError: NVMLError"


def test_a_pid_of_any_size_has_no_name():
    assert process_name(2**32 - 1) is None
    assert process_name(2**70) is None


@pytest.fixture(scope="module")
def hostile_nvml(tmp_path_factory):
    if stand_ins.compiler() is None or sys.platform != "linux":
        pytest.skip("no C compiler, or no Linux, to build the stand-in NVML with")
    folder = tmp_path_factory.mktemp("hostile")
    source = Path(__file__).with_name("hostile_nvml.c")
    library = folder / "libnvidia-ml.so.1"
    subprocess.run([stand_ins.compiler(), "-shared", "-fPIC", "-O1", "-o", library, source], check=True)
    return folder


COMMANDS = (
    ["list", "--only", "gpu", "--json"],
    ["check", "--gpus", "1", "--gpu-memory", "10GiB", "--healthy"],
    ["check", "--select", "2", "--format", "uuid"],
    ["check", "--p2p", "--json"],
)


@pytest.mark.parametrize("seed", one_in(4, [*range(4), *slow(*range(4, 12))]))
def test_a_driver_that_answers_at_random(hostile_nvml, seed, tmp_path):
    """A few of the runs that a longer fuzz does; the seed is the only chance in it."""
    chosen = random.Random(seed)
    arguments = COMMANDS[seed % len(COMMANDS)]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(hostile_nvml),
        "HOSTILE_SEED": str(chosen.randrange(2**31)),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "devctl", *arguments], env=environment, capture_output=True, check=False, cwd=tmp_path
    )
    assert done.returncode in ((0,) if arguments[0] == "list" else (0, 3)), done.stderr
    assert b"could not be looked at" not in done.stdout + done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    if "--json" in arguments:
        json.loads(done.stdout)


# Numbers


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "--gpus", DIGITS], 3),
        (["check", "--ram", f"{DIGITS}B"], 2),
        (["check", "--driver", DIGITS], 2),
        (["plan", TINY, "--max-memory", f"{DIGITS}=1GiB"], 2),
        (["plan", TINY, "--max-memory", f"cuda:{DIGITS}=1GiB"], 2),
        (["plan", TINY, "--max-memory", f"{'9' * 5000}=1GiB"], 2),
        (["plan", TINY, "--devices", "1GiB", "--context-length", "5", "--batch-size", DIGITS], 2),
        (["plan", TINY, "--devices", "1GiB", "--visible", DIGITS], 2),
        (["load", TINY, "--load-format", "dummy", "--batch-size", DIGITS], 2),
        (["load", TINY, "--load-format", "dummy", "--repeat", DIGITS], 2),
        (["load", TINY, "--load-format", "dummy", "--map", f"cuda:{DIGITS}"], 2),
        (["list", "--watch", DIGITS], 2),
    ],
)
def test_a_number_of_400_digits_has_its_code(devctl, arguments, code):
    done = devctl(*arguments)
    assert (done.code, done.out) == (code, "")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("value", [10**400, -(10**400), 2**63])
@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "max_position_embeddings", "extra"])
def test_a_config_with_a_number_of_400_digits_is_none(devctl, tmp_path, key, value):
    config = {**json.loads((TINY / "config.json").read_text()), key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = devctl("plan", tmp_path, "--devices", "1GiB")
    assert (done.code, done.out) == (4, "")
    assert f"its {key} is larger than any tensor" in done.err


@pytest.mark.parametrize("value", [-1, 10_001, 10_000_000])
@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "decoder_layers", "num_encoder_layers"])
def test_a_model_has_no_such_number_of_layers(devctl, tmp_path, key, value):
    config = {**json.loads((TINY / "config.json").read_text()), "text_config": {key: value}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = devctl("plan", tmp_path, "--devices", "1GiB")
    assert (done.code, done.out) == (4, "")
    assert f"its {key} is {value} (0 to 10000 can be)" in done.err


def test_layers_that_are_counted_from_the_end_are_no_number_of_layers(devctl, tmp_path):
    config = {**json.loads((TINY / "config.json").read_text()), "vision_feature_layer": -2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert devctl("plan", tmp_path, "--devices", "1GiB").code == 0


@pytest.mark.parametrize("value", [10**400, float("inf"), 2**63])
def test_a_machine_of_another_world_is_none(devctl, tmp_path, machine, value):
    machine(boxes.system() + boxes.board())
    document = json.loads(devctl("list", "--json").out)
    document["accelerators"][0]["power" if isinstance(value, float) else "memory_free"] = value
    (tmp_path / "box.json").write_text(json.dumps(document))
    done = devctl("plan", TINY, "--machine", tmp_path / "box.json")
    assert (done.code, done.out) == (2, "")
    assert "is larger than anything of a machine" in done.err


def test_any_number_of_bytes_can_be_shown():
    assert format_bytes(10**400).endswith(" TiB")
    assert format_bytes(-(10**400)).startswith("-")


# Folders and streams


@pytest.mark.parametrize("name", ["DEVCTL_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_cache_of_nobody_is_wrong_usage(devctl, monkeypatch, name):
    monkeypatch.delenv("DEVCTL_CACHE_DIR", raising=False)
    monkeypatch.setenv(name, "~nobody-at-all/x")
    done = devctl("plan", TINY, "--devices", "1GiB")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"devctl: {name}=~nobody-at-all/x: there is no such user\n")


@pytest.mark.parametrize("name", one_in(3, ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"]))
def test_a_hub_cache_of_nobody_is_shown(devctl, monkeypatch, name):
    monkeypatch.setenv(name, "~nobody-at-all/x")
    assert devctl("list").code == 0
    assert devctl("list", "--offload-folder", "~nobody-at-all/y").code == 0
    assert devctl("plan", "~nobody-at-all/model").code == 4


@pytest.mark.parametrize("arguments", one_in(3, [["--version"], ["list"], ["plan", "--devices", "help"]]))
def test_an_answer_that_nobody_can_read_is_one_line(arguments):
    if shutil.which("sh") is None:
        pytest.skip("no shell to close a stream with")
    command = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "devctl", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "devctl: cannot write to standard output: it is closed\n")
