"""Running commands on invented machines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CONFIGS
from tests.inventory.conftest import machine, nvml_folder  # noqa: F401 - fixtures


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """Folder of a config of two small layers, made for 256 tokens: answers that trace many texts are soon found."""
    folder = tmp_path_factory.mktemp("short") / "llama"
    folder.mkdir()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256}
    tiny = json.loads((CONFIGS / "tiny-llama" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(tiny | sizes | heads))
    return folder


@pytest.fixture(scope="session")
def thin(tmp_path_factory):
    """Folder of a config of `CONFIGS` with fewer layers, of the same widths: ``thin("llama-3.1-8b", 2)``."""

    def write(name, layers):
        config = json.loads((CONFIGS / name / "config.json").read_text())
        if "layer_types" in config:
            config["layer_types"] = config["layer_types"][:layers]
        folder = tmp_path_factory.mktemp("thin") / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
        return folder

    return write


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Folder of a config of a small model that ranks can share, by its name: ``small("llama")``."""
    from tests.sharded import SHARDED

    def write(name, **own):
        model_class, config = SHARDED[name]()
        config = type(config)(**{**config.to_dict(), **own})
        config.architectures, config.dtype = [model_class.__name__], "float32"
        folder = tmp_path_factory.mktemp("small") / name
        config.save_pretrained(folder)
        return folder

    return write


@pytest.fixture
def ran(devctl, monkeypatch):
    """Runs a command in this process, whatever devices its environment chose: ``ran("check", "--gpus", 2).code``."""
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return devctl


@pytest.fixture
def started(nvml_folder, tmp_path):  # noqa: F811
    """Starts a command as a process of its own on a machine: ``started(boxes.eight(), "list")``."""
    root = Path(__file__).parents[2]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}

    def start(text, /, *arguments, **options):
        (tmp_path / "machine").write_text(text)
        return subprocess.Popen(
            [sys.executable, "-m", "devctl", *arguments],
            env={
                **environment,
                "LD_LIBRARY_PATH": str(nvml_folder),
                "FAKE_NVML": str(tmp_path / "machine"),
                "PYTHONPATH": str(root),
                "TERM": "xterm",
                **options.pop("env", {}),
            },
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options},
        )

    return start
