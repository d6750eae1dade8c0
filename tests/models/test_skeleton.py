"""The tree beside the real model, and configs that can't be read."""

import json

import pytest
import torch

from devctl.errors import ModelError, UsageError
from devctl.models.files.resolve import SourceKind, resolve
from devctl.models.skeleton import read_skeleton, tree_of
from devctl.models.tree import sizes, tensors, walk
from tests import own_code, small_models
from tests.conftest import CONFIGS
from tests.marks import one_in

GIB = 2**30


@pytest.mark.parametrize(
    ("name", "gib"),
    one_in(
        4, [("llama-3.1-8b", 14.96), ("llama-3.1-70b", 131.42), ("llama-3.1-405b", 755.96), ("mixtral-8x7b", 86.99)]
    ),
)
def test_published_sizes(name, gib):
    assert sizes(read_skeleton(resolve(str(CONFIGS / name))).tree)[""] / GIB == pytest.approx(gib, abs=0.01)


@pytest.mark.parametrize("name", one_in(4, small_models.TINY))
def test_the_tree_has_the_tensors_of_the_loaded_model(name, checkpoint):
    skeleton = read_skeleton(resolve(str(checkpoint(name))))
    model = skeleton.model_class.from_pretrained(checkpoint(name))
    real = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    found = {t.name: t for t in tensors(skeleton.tree.root)}
    assert found.keys() == real.keys()
    for key, tensor in real.items():
        assert found[key].nbytes == tensor.nbytes
        assert found[key].shape == tuple(tensor.shape)
        assert found[key].dtype == str(tensor.dtype).removeprefix("torch.")
    assert {key for key, t in found.items() if t.persistent} == set(model.state_dict())
    # ties and shared modules are counted once, as storage is
    storages = {t.untyped_storage().data_ptr(): t.nbytes for t in real.values() if t.nbytes}
    assert sizes(skeleton.tree)[""] == sum(storages.values())


def test_sizes_of_every_module(checkpoint):
    tree = read_skeleton(resolve(str(checkpoint("llama")))).tree
    size = sizes(tree)
    for module in walk(tree.root):
        below = [t for t in tensors(tree.root) if t.name.startswith(module.name)]
        assert size[module.name] == sum(t.nbytes for t in below)


def test_a_module_registered_twice_is_counted_once():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch.nn.Linear(3, 5, bias=False)
            self.inner = torch.nn.ModuleDict({"second": self.first})
            self.all_tied_weights_keys = {}
            self._no_split_modules = None

    tree = tree_of(Twice(), torch.float32)
    assert [(t.name, t.same_as) for t in tensors(tree.root)] == [
        ("first.weight", None),
        ("inner.second.weight", "first.weight"),
    ]
    assert sizes(tree) == {
        "": 60,
        "first": 60,
        "first.weight": 60,
        "inner": 0,
        "inner.second": 0,
        "inner.second.weight": 0,
    }


def test_no_weight_is_read(checkpoint, tmp_path):
    for path in checkpoint("llama").iterdir():
        (tmp_path / path.name).write_bytes(b"not weights" if path.suffix == ".safetensors" else path.read_bytes())
    assert read_skeleton(resolve(str(tmp_path))).tree.root == read_skeleton(resolve(str(checkpoint("llama")))).tree.root


# dtype


def write(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def llama(folder, **changes):
    config = json.loads((CONFIGS / "llama-3.1-8b" / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "head_dim": 8}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 4} | changes
    return write(folder, **{key: value for key, value in config.items() if value is not None})


def test_dtype_is_the_configs(tmp_path):
    assert read_skeleton(resolve(str(llama(tmp_path, dtype="float16")))).tree.dtype == "float16"


def test_dtype_may_be_given(tmp_path):
    skeleton = read_skeleton(resolve(str(llama(tmp_path))), dtype="float32")
    assert skeleton.tree.dtype == "float32"
    assert next(tensors(skeleton.tree.root)).dtype == "float32"


def test_dtype_is_the_checkpoints_where_the_config_has_none(tmp_path):
    small_models.save("llama", tmp_path, dtype=torch.float16)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    write(tmp_path, **config)
    skeleton = read_skeleton(resolve(str(tmp_path)))
    assert skeleton.tree.dtype == "float16"
    assert skeleton.tree.notes == ()


@pytest.mark.parametrize("files", ["safetensors", "shards", "bin"])
def test_the_file_that_decides_is_the_one_that_is_loaded(tmp_path, files):
    """And not a stray one beside it, whatever its name and state."""
    import transformers
    from safetensors.torch import save_file

    model_class, config = small_models.TINY["llama"]()
    model = model_class(config).to(torch.float16)
    model.save_pretrained(tmp_path, max_shard_size="50KB" if files == "shards" else "5GB")
    if files == "bin":
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    assert len(list(tmp_path.glob("*.safetensors"))) == {"safetensors": 1, "shards": 3, "bin": 0}[files]
    save_file({"x": torch.zeros(1)}, tmp_path / "consolidated.safetensors")
    (tmp_path / "adapter.safetensors").write_bytes(b"broken")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    write(tmp_path, **config)
    tree = read_skeleton(resolve(str(tmp_path))).tree
    assert (tree.dtype, tree.notes) == ("float16", ())
    assert transformers.LlamaForCausalLM.from_pretrained(tmp_path).dtype == torch.float16


def test_dtype_falls_back_to_float32_with_a_note(tmp_path):
    tree = read_skeleton(resolve(str(llama(tmp_path, dtype=None)))).tree
    assert tree.dtype == "float32"
    assert tree.notes == ("neither the config nor a checkpoint at hand names a dtype: planned in float32",)


@pytest.mark.parametrize("dtype", ["int8", "nonsense"])
def test_other_dtypes_are_refused(tmp_path, dtype):
    with pytest.raises(UsageError, match="not a floating dtype"):
        read_skeleton(resolve(str(llama(tmp_path))), dtype=dtype)


def test_modules_kept_in_float32_are_noted():
    tree = read_skeleton(resolve(str(CONFIGS / "t5-11b")), dtype="float16").tree
    assert tree.notes == (
        "wo stay in float32 when loaded: 6.00 GiB more than the float16 sizes that transformers plans with",
    )
    assert tree.index.held[""] - tree.index.nbytes[""] == 6 * 2**30


# classes


def test_the_first_architecture_is_the_class(tmp_path):
    assert read_skeleton(resolve(str(llama(tmp_path)))).model_class.__name__ == "LlamaForCausalLM"


def test_without_architectures_it_is_the_base_model(tmp_path):
    skeleton = read_skeleton(resolve(str(llama(tmp_path, architectures=None))))
    assert skeleton.model_class.__name__ == "LlamaModel"
    assert "names no architecture" in skeleton.tree.notes[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("AutoModelForSequenceClassification", "LlamaForSequenceClassification"), ("LlamaModel", "LlamaModel")],
)
def test_the_class_may_be_given(tmp_path, name, expected):
    assert read_skeleton(resolve(str(llama(tmp_path))), model_class=name).model_class.__name__ == expected


@pytest.mark.parametrize("name", one_in(3, ["Nonsense", "LlamaConfig", "logging"]))
def test_other_classes_are_refused(tmp_path, name):
    with pytest.raises(UsageError, match="no model class"):
        read_skeleton(resolve(str(llama(tmp_path))), model_class=name)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A model that comes with its own code."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return own_code.save(tmp_path / "own")


def test_remote_code_is_not_run_unless_trusted(own):
    with pytest.raises(ModelError, match="Python code of its own") as raised:
        read_skeleton(resolve(str(own)))
    assert "--trust-remote-code" in raised.value.hint


@pytest.mark.parametrize("name", ["", "config.json"])
def test_remote_code_that_is_trusted(own, name):
    tree = read_skeleton(resolve(str(own / name)), trust_remote_code=True).tree
    assert tree.class_name == "OwnModel"
    assert sizes(tree)[""] == 80


def test_remote_code_beside_a_config_of_another_name(own):
    (own / "config.json").rename(own / "mine.json")
    with pytest.raises(UsageError, match="beside a file called config"):
        read_skeleton(resolve(str(own / "mine.json")), trust_remote_code=True)


# what can't be read


def test_kinds_of_source(tmp_path):
    folder = llama(tmp_path)
    assert resolve(str(folder)).kind is SourceKind.DIRECTORY
    config = folder / "config.json"
    assert resolve(str(config)).kind is SourceKind.CONFIG
    other = config.rename(folder / "mine.json")
    assert read_skeleton(resolve(str(other))).tree.class_name == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("nothing", "broken JSON: Expecting value at line 1, column 1"),
        ('{"model_type": "llama",', "broken JSON"),
        ("[1]", "not a model config: it is a list, not an object"),
        ("{}", "does not say its model_type"),
        ('{"model_type": "nonsense"}', "does not know the model type 'nonsense'"),
        ('{"model_type": 3}', "not a model config: its model_type is 3"),
        ('{"model_type": ["x"]}', 'its model_type is ["x"]'),
        ('{"model_type": "llama", "architectures": [5]}', "its architectures is [5]"),
        ('{"model_type": "llama", "architectures": 5}', "its architectures is 5"),
        ('{"model_type": "llama", "auto_map": 5}', "its auto_map is 5"),
        ('{"model_type": "llama", "architectures": ["PreTrainedModel"]}', "has no class 'PreTrainedModel'"),
        ('{"model_type": "llama", "dtype": "int8"}', "the config's dtype "),
        ("[" * 100_000, "is no config: "),
        ('{"a": ' + "9" * 5000 + "}", "is no config: "),
        ('{"model_type": "llama", "architectures": ["Nonsense"]}', "has no class 'Nonsense'"),
        ('{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": "x"}', "config.json"),
        (
            '{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 33}',
            "config.json: The hidden size (33)",
        ),
    ],
)
def test_configs_that_can_not_be_read(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError) as raised:
        read_skeleton(resolve(str(tmp_path)))
    assert said in raised.value.message
    assert "\n" not in raised.value.message


def test_a_config_that_is_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="not text"):
        read_skeleton(resolve(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "MODEL is empty"),
        ("~no-such-user/x", "cannot look at ~no-such-user/x"),
        ("a" * 300, "cannot look at aaa"),
        ("a\0b", "neither a file or folder here nor a model id"),
        ("https://hub.example/org/name", "is an address"),
    ],
)
def test_names_that_are_no_model(name, said):
    with pytest.raises(ModelError, match=said):
        resolve(name)


def test_a_revision_is_for_the_hub(tmp_path):
    with pytest.raises(UsageError, match="has no --revision"):
        resolve(str(llama(tmp_path)), revision="main")


@pytest.mark.parametrize("name", ["./absent", "/absent/model", "a/b/c", "absent.json", "~/absent-model"])
def test_paths_that_are_not_there(name):
    with pytest.raises(ModelError, match="no such file or folder"):
        resolve(name)


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(ModelError, match=r"has no config\.json"):
        resolve(str(tmp_path))
