"""Models that tests of loading spoil, and where they look for what is left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import small_models

WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"


def told_by(script, *arguments):
    """What a script of this folder writes as JSON, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.loading.{script}", *arguments],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made during a test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def saved(tmp_path):
    """Folder of a saved model: ``saved("llava")``."""

    def save(name):
        return small_models.save(name, tmp_path / name, small_models.MODALITIES | small_models.TEXT_ONLY)

    return save


@pytest.fixture
def model(tmp_path):
    return small_models.save("llama", tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    small_models.build(small_models.TINY["llama"]).save_pretrained(tmp_path / "model", max_shard_size="50KB")
    return tmp_path / "model"


@pytest.fixture
def pickled(model):
    torch.save(load_file(model / WEIGHTS), model / PICKLE)
    (model / WEIGHTS).unlink()
    return model
