"""Models that tests of loading spoil, and where they look for what is left behind."""

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny

WEIGHTS = "model.safetensors"
PICKLE = "pytorch_model.bin"


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Where temporary folders are made during a test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def model(tmp_path):
    return tiny.save("llama", tmp_path / "model")


@pytest.fixture
def sharded(tmp_path):
    model_class, config = tiny.CONFIGS["llama"]()
    torch.manual_seed(0)
    model_class(config).save_pretrained(tmp_path / "model", max_shard_size="50KB")
    return tmp_path / "model"


@pytest.fixture
def pickled(model):
    torch.save(load_file(model / WEIGHTS), model / PICKLE)
    (model / WEIGHTS).unlink()
    return model
