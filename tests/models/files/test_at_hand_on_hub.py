"""What a checkpoint on the hub decides: asked of a hub on loopback, by its headers alone."""

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from devctl.models.files import weights
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from tests.hub import point_at, serve
from tests.models.files.test_untied import held, other, saved
from tests.models.quantised import test_packed_elsewhere as packed


@pytest.fixture
def hub(tmp_path, monkeypatch):
    weights.hub_headers.cache_clear()
    with serve() as hub:
        point_at(hub, tmp_path / "home", monkeypatch)
        yield hub
    weights.hub_headers.cache_clear()


def read(name):
    return read_skeleton(resolve(name)).tree


def asked(hub, name):
    return [request for request in hub.requests if request.endswith(name)]


def test_both_are_counted_where_only_headers_are_at_hand(hub, tmp_path):
    folder = saved(tmp_path / "t5", **{"lm_head.weight": None, "encoder.embed_tokens.weight": other()})
    hub.repos["org/t5"] = folder
    tree = read("org/t5")
    assert tree.untied == {"lm_head.weight", "encoder.embed_tokens.weight"}
    assert "transformers makes them one only if they are equal, which is not known" in tree.notes[-1]
    assert tree.index.held[""] >= held(folder)


def test_what_is_in_the_cache_is_compared(hub, tmp_path):
    folder = saved(tmp_path / "t5", **{"lm_head.weight": None, "encoder.embed_tokens.weight": other()})
    hub.repos["org/t5"] = folder
    weights.weights_folder(resolve("org/t5"))
    hub.requests.clear()
    tree = read("org/t5")
    assert tree.untied == {"encoder.embed_tokens.weight"}
    assert tree.index.held[""] == held(folder)
    assert not asked(hub, ".safetensors")


def test_without_headers_it_is_the_configs_word(hub, tmp_path, monkeypatch):
    hub.repos["org/t5"] = saved(tmp_path / "t5", **{"lm_head.weight": other()})
    source = resolve("org/t5")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tree = read_skeleton(source).tree
    assert tree.untied == {"lm_head.weight"}
    assert "the config says that embeddings are not tied" in tree.notes[-1]


def test_what_modelopt_did_is_asked_for_where_weights_are_packed(hub, tmp_path):
    folder = packed.saved(tmp_path / "llama")
    hub.repos["org/plain"] = folder
    read("org/plain")
    assert not asked(hub, "hf_quant_config.json")
    other_folder = packed.saved(tmp_path / "packed")
    there = packed.pack(other_folder, packed.nvfp4)
    packed.beside(other_folder, "NVFP4")
    hub.repos["org/packed"] = other_folder
    tree = read("org/packed")
    assert asked(hub, "hf_quant_config.json")
    assert (packed.without_buffers(tree), tree.quantisation) == (there, "modelopt nvfp4")


def test_the_dtype_is_that_of_the_cache_without_a_hub(hub, tmp_path, monkeypatch):
    folder = packed.saved(tmp_path / "llama")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in tensors.items()}, folder / "model.safetensors")
    packed.configure(folder, dtype=None)
    hub.repos["org/llama"] = folder
    source = resolve("org/llama")
    weights.weights_folder(source)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert getattr(torch, read_skeleton(source).tree.dtype) == torch.float16
