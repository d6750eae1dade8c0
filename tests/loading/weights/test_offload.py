"""Weights on disk take no memory, no second copy where a file has them, and leave nothing behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import transformers

from tests.conftest import CONFIGS, DEVCTL
from tests.marks import slow

MIB = 2**20
ROOT = Path(__file__).parents[3]


def save_large(folder, *, pickled, layers=12):
    """A Llama of some 16 MiB a layer."""
    config = transformers.LlamaConfig(
        vocab_size=1000,
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=64,
        architectures=["LlamaForCausalLM"],
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    if pickled:
        config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / "pytorch_model.bin")
    else:
        model.save_pretrained(folder)
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted as Linux does")
@pytest.mark.slow
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_on_disk_are_not_in_memory(pickled, tmp_path):
    folder = save_large(tmp_path / "model", pickled=pickled)
    done = subprocess.run(
        [sys.executable, "-m", "tests.loading.run.memory", folder, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["on disk"] > 190 * MIB
    # one layer at a time, and what Python and torch take besides; a pickle stays mapped from its file, which costs no
    # memory that the system could not take back
    bound = told["on the CPU"] + 2 * told["largest layer"] + 32 * MIB
    assert bound < told["on disk"] / 2
    assert told["most of its own" if pickled else "most with mapped files"] < bound
    assert (told["written"] > told["on disk"]) if pickled else (told["written"] == 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def start(folder, tmp_path, *options):
    (tmp_path / "map.json").write_text('{"": "disk"}')
    (tmp_path / "temporary").mkdir()
    return subprocess.Popen(
        [DEVCTL, "load", folder, "--map", tmp_path / "map.json", *options],
        env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    # a signal while random weights are written is in tests/cli/test_process.py
    ("number", "code", "given"),
    slow((signal.SIGINT, 130, False), (signal.SIGTERM, 143, True)),
)
def test_a_signal_while_weights_are_written_leaves_nothing(number, code, given, tmp_path):
    folder = save_large(tmp_path / "model", pickled=True)
    chosen = tmp_path / ("given" if given else "temporary")
    process = start(folder, tmp_path, *(["--offload-folder", chosen] if given else []))
    deadline = time.monotonic() + 240
    while not list(chosen.glob("devctl-offload-*/*")):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "it never began to write"
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert list((tmp_path / "temporary").glob("devctl-*")) == []
    assert not (tmp_path / "given").exists()


@pytest.fixture
def small_files():
    """A limit on the size of files is what a process can give itself: the write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("given", [False, True], ids=["temporary folder", "given folder"])
def test_a_disk_that_fills_up_while_weights_are_written(given, devctl, temporary, small_files, tmp_path):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "theirs").write_text("")
    (tmp_path / "map.json").write_text('{"": "disk"}')
    chosen = ["--offload-folder", tmp_path / "given"] if given else []
    done = devctl("load", CONFIGS / "tiny-llama", "--map", tmp_path / "map.json", "--load-format", "dummy", *chosen)
    assert (done.code, done.out) == (5, ""), done.err
    assert done.err.startswith("devctl: cannot write to the offload folder ")
    assert "File too large" in done.err
    assert "--offload-folder" in done.err
    assert len(done.err.splitlines()) == 2
    assert list(temporary.iterdir()) == []
    assert [path.name for path in (tmp_path / "given").iterdir()] == ["theirs"]
