"""What `load` must not call a pass: weights that are absent, files of other folders, RAM that is not there."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from devctl.devices import Device
from devctl.errors import RefusedError
from devctl.inventory.probes import host
from devctl.loading.weights.dummy import bytes_beside, dummy_weights
from devctl.loading.weights.ram import LIBRARIES, host_need
from devctl.models.files.index import read_index
from devctl.planning.gates import require_ram
from devctl.planning.model import open_skeleton
from devctl.planning.request import ModelRequest
from tests import small_models
from tests.conftest import CONFIGS
from tests.marks import one_in

MIB = 2**20
TINY = CONFIGS / "tiny-llama"
CPU = Device.cpu()


@pytest.fixture
def model(tmp_path):
    """A checkpoint of its own, to be spoiled."""
    return small_models.save("llama", tmp_path / "model")


def change(folder, spoil):
    weights = load_file(folder / "model.safetensors")
    spoil(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# Absent weights


def test_a_checkpoint_of_one_tensor_is_no_pass(devctl, model):
    change(model, lambda weights: [weights.pop(name) for name in sorted(weights)[1:]])
    done = devctl("load", model, "--map", "cpu")
    assert (done.code, done.out) == (4, "")
    assert "lack 38 of the 39 tensors of LlamaForCausalLM: model.embed_tokens.weight, model.layers.0" in done.err
    assert "--allow-missing" in done.err
    assert devctl("load", model, "--map", "cpu", "--allow-missing").code == 0


@pytest.mark.parametrize(
    "name", one_in(3, ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"])
)
def test_every_weight_counts(devctl, model, name):
    change(model, lambda weights: weights.pop(name))
    done = devctl("load", model, "--map", "cpu")
    assert done.code == 4
    assert "lack 1 of the " in done.err
    assert name in done.err


def test_a_tied_weight_is_not_absent(devctl, tmp_path):
    folder = small_models.save("gpt2", tmp_path / "gpt2")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors"), "which is the embeddings"
    assert devctl("load", folder, "--map", "cpu").code == 0


def test_what_a_class_lets_a_checkpoint_leave_out_is_not_absent(devctl, model, monkeypatch):
    from transformers import LlamaForCausalLM

    change(model, lambda weights: weights.pop("lm_head.weight"))
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_missing", [r"lm_head\.weight"])
    assert devctl("load", model, "--map", "cpu").code == 0


def test_dummy_weights_are_never_absent(devctl):
    done = devctl("load", TINY, "--load-format", "dummy", "--allow-missing", "--map", "cpu")
    assert (done.code, done.out) == (2, "")
    assert "--load-format dummy reads no weights: leave out --allow-missing" in done.err


# Shards


OUTSIDE = (
    "../model.safetensors",
    "a/../../model.safetensors",
    "/etc/passwd",
    "..",
    "..\\model.safetensors",
    "C:\\x.safetensors",
    "C:x",
    "\\\\host\\share\\x",
    "",
    "a\x00b",
)


@pytest.mark.parametrize("name", one_in(3, OUTSIDE))
@pytest.mark.parametrize("command", ["plan", "load"])
def test_a_shard_outside_of_the_folder_is_refused(devctl, model, name, command):
    shutil.copy(model / "model.safetensors", model.parent / "model.safetensors")
    weights = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, name)}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((model / "config.json").read_text())
    config.pop("dtype", None)  # so that a plan asks the weights
    (model / "config.json").write_text(json.dumps(config))
    done = devctl(command, model, *(["--map", "cpu"] if command == "load" else ["--devices", "1GiB"]))
    assert (done.code, done.out) == (4, "")
    assert ("which is not in its folder" if name.strip("\0ab") else "which is no file's name") in done.err


def test_a_shard_in_a_folder_below_is_one(tmp_path):
    (tmp_path / "index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"w": "part/one.safetensors", "v": "./two.safetensors"}})
    )
    assert read_index(tmp_path / "index.json") == {"w": "part/one.safetensors", "v": "./two.safetensors"}


# RAM


def opened(path, random_weights=False, **asked):
    return open_skeleton(ModelRequest(model=str(path), **asked), random_weights=random_weights)


def test_what_is_mapped_from_files_needs_no_ram(model):
    source, skeleton = opened(model)
    need = host_need(source, skeleton, {"": CPU}, random_weights=False, forward=7)
    assert (need.beside, need.forward, need.libraries) == (0, 7, LIBRARIES)
    assert need.mapped == sum(tensor.nbytes for tensor in load_file(model / "model.safetensors").values())
    assert need.made < 10_000, "buffers that the model computes"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_is_converted_does(model, dtype):
    source, skeleton = opened(model, dtype=dtype)
    need = host_need(source, skeleton, {"": CPU}, random_weights=False, forward=0)
    whole = sum(tensor.nbytes for tensor in load_file(model / "model.safetensors").values())
    assert need.mapped == 0
    assert whole // 2 <= need.made < whole // 2 + 10_000


def test_what_is_read_from_pickles_does(model):
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()
    source, skeleton = opened(model)
    assert host_need(source, skeleton, {"": CPU}, random_weights=False, forward=0).mapped == 0


def test_what_is_not_on_the_cpu_does_not(model):
    source, skeleton = opened(model)
    need = host_need(source, skeleton, {"": Device.gpu(0)}, random_weights=False, forward=0)
    assert (need.made, need.mapped, need.anonymous) == (0, 0, LIBRARIES)


def test_weights_that_are_made_up_take_what_they_have():
    source, skeleton = opened(TINY, random_weights=True)
    tree = skeleton.tree
    names = {t.name: t for t in small_models_tensors(tree)}
    need = host_need(source, skeleton, {"": CPU}, random_weights=True, forward=0)
    assert need.made >= sum(t.nbytes for t in names.values())
    assert bytes_beside(tree, names) == need.beside
    largest = max(t.nbytes for t in names.values())
    elsewhere = host_need(source, skeleton, {"": Device.disk()}, random_weights=True, forward=0)
    assert (elsewhere.made, elsewhere.beside) == (0, need.beside + largest)


def small_models_tensors(tree):
    from devctl.models.tree import tensors

    return list(tensors(tree.root))


def test_a_large_dummy_tensor_takes_no_more_than_it_has():
    from tests.trees import tree

    shape = tree({"a": {"w": 4}})
    tensor = next(iter(small_models_tensors(shape)))
    large = replace(tensor, shape=(2049, 2048), dtype="float32", nbytes=2049 * 2048 * 4)
    root = replace(shape.root, children=(replace(shape.root.children[0], parameters=(large,)),))
    made = dummy_weights(replace(shape, root=root))[large.name][...]
    assert made.shape == (2049, 2048)
    assert made.untyped_storage().nbytes() == large.nbytes
    small = dummy_weights(shape)[tensor.name]
    assert small[...].untyped_storage().nbytes() == tensor.nbytes, "none of another's numbers"
    assert made.flatten()[2**22 :].equal(made.flatten()[: 2048 * 2049 - 2**22]), "they begin anew"


def test_more_than_a_limit_is_refused_before_anything_is_loaded(devctl, monkeypatch):
    real = host.probe()
    monkeypatch.setattr(host, "probe", lambda: replace(real, ram_available=150 * MIB, ram_limit=900 * MIB))
    done = devctl("load", TINY, "--load-format", "dummy", "--map", "cpu")
    assert (done.code, done.out) == (3, "")
    first, *lines = done.err.splitlines()
    assert first.endswith("of RAM beside mapped files, and 150 MiB can be had")
    assert [line.split(":")[0] for line in lines[:2]] == ["  - weights on the CPU that are made up", "  - making them"]
    assert "the libraries: 96.0 MiB" in done.err


def test_more_mapped_than_there_is_ram_is_a_note(devctl, monkeypatch, model):
    need = LIBRARIES + 3 * MIB
    real = host.probe()
    monkeypatch.setattr(host, "probe", lambda: replace(real, ram_available=need))
    monkeypatch.setattr("devctl.loading.weights.ram.HostNeed.anonymous", property(lambda self: need - 1))
    done = devctl("load", model, "--map", "cpu")
    assert done.code == 0, done.err
    assert "are mapped from their files" in done.out


def test_unknown_ram_refuses_nothing():
    require_ram({"all": 2**50}, None)
    require_ram({"all": 5}, 5)
    with pytest.raises(RefusedError, match=r"needs 6 B of RAM .*, and 5 B can be had"):
        require_ram({"all": 6}, 5)
