"""What can be wrong with a checkpoint: one or two lines, an exit code, and nothing left behind."""

import json
import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.loading.conftest import PICKLE, WEIGHTS
from tests.marks import one_in

SHARDS = "model.safetensors.index.json"


@pytest.fixture
def fails(devctl, temporary, tmp_path):
    """Loads a model on each of three maps, which has to fail in one way: ``fails(folder, 4)`` gives what is said."""

    def check(folder, code):
        said = set()
        before = sorted(path.name for path in folder.iterdir())
        for name, device_map in (
            ("cpu", {"": "cpu"}),
            ("disk", {"": "disk"}),
            ("both", {"": "cpu", "model.layers": "disk"}),
        ):
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(device_map))
            done = devctl("load", folder, "--map", path)
            assert done.code == code, done.err
            assert done.out == ""
            assert len(done.err.splitlines()) <= 2
            assert "Traceback" not in done.err
            assert list(temporary.iterdir()) == []
            said.add(done.err.replace(str(folder), "MODEL"))
        assert sorted(path.name for path in folder.iterdir()) == before
        assert len(said) == 1, said
        return said.pop()

    return check


def change(folder, how):
    weights = load_file(folder / WEIGHTS)
    how(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


# files


@pytest.mark.parametrize("keep", one_in(3, [0, 5, 100, 20_000]))
def test_a_file_that_is_cut_off(keep, model, fails):
    cut(model / WEIGHTS, keep)
    said = fails(model, 4)
    assert said.startswith("devctl: MODEL/model.safetensors is cut off")
    assert f"{keep:,} bytes" in said
    assert "download it again" in said


@pytest.mark.parametrize(
    "spoil",
    one_in(
        3,
        [
            lambda data: data[:8] + b"x" * 100 + data[108:],
            lambda data: data + b"more",
            lambda data: data.replace(b'"data_offsets":[', b'"data_offsexx":[', 1),
            lambda data: data[:8] + data[8:].replace(b"{", b"[", 1),
        ],
    ),
    ids=["not JSON", "too long", "no offsets", "no object"],
)
def test_a_corrupt_file(spoil, model, fails):
    (model / WEIGHTS).write_bytes(spoil((model / WEIGHTS).read_bytes()))
    assert fails(model, 4).startswith("devctl: MODEL/model.safetensors is corrupt")


def test_a_pointer_of_git_lfs(model, fails):
    (model / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 218120\n")
    assert "MODEL/model.safetensors is a pointer of Git LFS" in fails(model, 4)


def test_a_missing_shard(sharded, fails):
    (sharded / "model-00002-of-00005.safetensors").unlink()
    said = fails(sharded, 4)
    assert "MODEL lacks model-00002-of-00005.safetensors, which model.safetensors.index.json names" in said


def test_a_shard_that_is_cut_off(sharded, fails):
    cut(sharded / "model-00002-of-00005.safetensors", 10_000)
    assert "MODEL/model-00002-of-00005.safetensors is cut off" in fails(sharded, 4)


def test_an_index_that_names_a_tensor_where_it_is_not(sharded, fails):
    index = json.loads((sharded / SHARDS).read_text())
    index["weight_map"]["model.norm.weight"] = index["weight_map"]["model.embed_tokens.weight"]
    (sharded / SHARDS).write_text(json.dumps(index))
    said = fails(sharded, 4)
    assert "has no model.norm.weight, which model.safetensors.index.json says it has" in said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_a_file_that_may_not_be_read(model, fails):
    (model / WEIGHTS).chmod(0)
    assert "cannot read MODEL/model.safetensors: Permission denied" in fails(model, 4)


# names and shapes


def test_names_that_are_not_the_models(model, fails):
    def rename(weights):
        for name in [name for name in weights if ".mlp." in name]:
            weights[f"other.{name}"] = weights.pop(name)

    change(model, rename)
    said = fails(model, 4)
    assert "are not of LlamaForCausalLM: they lack 12 of its tensors (model.layers.0.mlp.down_proj.weight, " in said
    assert "and 9 more), and have 12 that are not of it (other.model.layers.0.mlp.down_proj.weight, " in said


def test_weights_that_are_missing_and_on_disk(devctl, model, temporary, tmp_path):
    change(model, lambda weights: weights.pop("lm_head.weight"))
    (tmp_path / "map.json").write_text('{"model": "cpu", "lm_head": "disk"}')
    done = devctl("load", model, "--map", tmp_path / "map.json")
    assert done.code == 4
    assert "lack lm_head.weight, which the map puts on disk" in done.err
    assert list(temporary.iterdir()) == []
    done = devctl("load", model, "--map", "cpu", "--allow-missing")
    assert done.code == 0
    assert "not in the checkpoint, so random: lm_head.weight" in done.out
    done = devctl("load", model, "--map", "cpu")
    assert (done.code, done.out) == (4, "")
    assert "lack 1 of the 39 tensors of LlamaForCausalLM: lm_head.weight" in done.err


def test_weights_that_are_not_used_are_noted(devctl, model):
    change(model, lambda weights: weights.update(other=torch.ones(2)))
    done = devctl("load", model, "--map", "cpu")
    assert done.code == 0
    assert "note: in the checkpoint, and not of LlamaForCausalLM: other" in done.out


def test_a_class_with_a_head_of_its_own(devctl, checkpoint):
    other = ["--model-class", "BertForSequenceClassification"]
    assert devctl("load", checkpoint("bert"), "--map", "cpu", *other).code == 4
    done = devctl("load", checkpoint("bert"), "--map", "cpu", *other, "--allow-missing")
    assert done.code == 0
    assert "so random: bert.pooler.dense.bias, bert.pooler.dense.weight, classifier.bias and 1 more" in done.out
    done = devctl("load", checkpoint("bert"), "--map", "cpu", "--model-class", "ViTModel")
    assert done.code == 4


def test_shapes_that_differ(model, fails):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    said = fails(model, 4)
    assert "do not fit its config: model.layers.0.mlp.down_proj.weight is [32, 64] in the checkpoint and " in said
    assert "[32, 96] in the model and 11 more" in said


@pytest.mark.parametrize("where", one_in(2, ["cpu", "disk"]))
def test_the_first_weight_that_is_nan_is_named(where, model, devctl, tmp_path):
    def spoil(weights):
        weights["model.layers.3.mlp.up_proj.weight"][0, 0] = float("nan")
        weights["model.layers.1.mlp.up_proj.weight"][0, 0] = float("inf")

    change(model, spoil)
    (tmp_path / "map.json").write_text(json.dumps({"": "cpu", "model.layers": where}))
    done = devctl("load", model, "--map", tmp_path / "map.json")
    assert done.code == 5
    assert "FAIL NaN or infinite: logits" in done.out
    assert "note: model.layers.1.mlp.up_proj.weight has an infinity among its weights, and so have 1 more" in done.out


def test_outputs_that_overflow_with_finite_weights(model, devctl):
    def enlarge(weights):
        weights["model.norm.weight"] *= 1e38
        weights["lm_head.weight"] *= 1e4

    change(model, enlarge)
    done = devctl("load", model, "--map", "cpu", "--dtype", "float32")
    assert done.code == 5, done.out
    assert "note: every weight is finite" in done.out


# pickles


class Runs:
    """A pickle that runs code as it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_of_pickles_is_loaded(zipped, model, devctl, tmp_path, temporary):
    """Also one without a dtype in its config, and from before pickles were zip archives."""
    config = json.loads((model / "config.json").read_text())
    config.pop("dtype")
    (model / "config.json").write_text(json.dumps(config))
    torch.save(load_file(model / WEIGHTS), model / PICKLE, _use_new_zipfile_serialization=zipped)
    (model / WEIGHTS).unlink()
    (tmp_path / "map.json").write_text('{"": "cpu", "model.layers": "disk"}')
    done = devctl("load", model, "--map", tmp_path / "map.json", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["ok"] is True
    assert list(temporary.iterdir()) == []


def test_a_pickle_that_runs_code_is_refused(pickled, fails, tmp_path):
    torch.save({"x": Runs(tmp_path / "ran")}, pickled / PICKLE)
    said = fails(pickled, 4)
    assert "the pickled weights of MODEL run code to be read (posix.mkdir), which is refused" in said
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", one_in(2, [0, 5_000]))
def test_a_pickle_that_is_cut_off(keep, pickled, fails):
    cut(pickled / PICKLE, keep)
    assert f"MODEL/pytorch_model.bin is cut off: {keep:,} bytes" in fails(pickled, 4)


def test_a_pickle_of_something_else(pickled, fails):
    (pickled / PICKLE).write_bytes(pickle.dumps([1, 2], protocol=2))
    assert "the pickled weights of MODEL are corrupt: " in fails(pickled, 4)
    with zipfile.ZipFile(pickled / PICKLE, "w") as archive:
        archive.writestr("x", "y")
    assert "the pickled weights of MODEL are corrupt: " in fails(pickled, 4)
