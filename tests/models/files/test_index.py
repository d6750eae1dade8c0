"""An index that is none, or names what no file has."""

import json

import pytest
from safetensors.torch import load_file, save_file

from devctl.errors import ModelError
from devctl.models.files import index
from tests import small_models
from tests.marks import one_in

NAME = "model.safetensors.index.json"


@pytest.fixture
def sharded(tmp_path):
    small_models.build(small_models.TINY["llama"]).save_pretrained(tmp_path / "model", max_shard_size="50KB")
    return tmp_path / "model"


def change(folder, **entries):
    found = json.loads((folder / NAME).read_text())
    found |= entries
    (folder / NAME).write_text(json.dumps({key: value for key, value in found.items() if value != "gone"}))


MALFORMED = {
    "empty": "",
    "not JSON": "{",
    "not text": b"\xff\xfe\x00",
    "a list": "[]",
    "null": "null",
    "no weight_map": '{"metadata": {}}',
    "no metadata": '{"weight_map": {"a": "b.safetensors"}}',
    "metadata null": '{"metadata": null, "weight_map": {"a": "b.safetensors"}}',
    "metadata a list": '{"metadata": [], "weight_map": {"a": "b.safetensors"}}',
    "weight_map null": '{"metadata": {}, "weight_map": null}',
    "weight_map a list": '{"metadata": {}, "weight_map": ["a"]}',
    "weight_map a number": '{"metadata": {}, "weight_map": 3}',
    "weight_map empty": '{"metadata": {}, "weight_map": {}}',
    "a file that is a number": '{"metadata": {}, "weight_map": {"a": 3}}',
    "a file that is null": '{"metadata": {}, "weight_map": {"a": null}}',
    "a file that is a list": '{"metadata": {}, "weight_map": {"a": ["b"]}}',
    "a file without a name": '{"metadata": {}, "weight_map": {"a": ""}}',
    "a name with a zero": '{"metadata": {}, "weight_map": {"a": "b\\u0000c"}}',
    "a file elsewhere": '{"metadata": {}, "weight_map": {"a": "../b.safetensors"}}',
    "a file of the root": '{"metadata": {}, "weight_map": {"a": "/b.safetensors"}}',
    "nested": "[" * 100_000,
    "a number of many digits": '{"metadata": {}, "weight_map": ' + "9" * 10_000 + "}",
}


@pytest.mark.parametrize("text", one_in(5, MALFORMED.values()), ids=MALFORMED)
def test_what_is_no_index_is_told_with_its_name_by_plan_and_load(devctl, sharded, text):
    (sharded / NAME).write_bytes(text if isinstance(text, bytes) else text.encode())
    for command in (("plan", sharded, "--devices", "1GiB"), ("load", sharded, "--map", "cpu")):
        done = devctl(*command)
        assert done.code == 4, done.err
        assert f"{sharded / NAME} is no index of a checkpoint: " in done.err
        assert "download it again" in done.err
        assert len(done.err.splitlines()) == 2
        assert done.out == ""


def test_a_huge_index_is_not_read(sharded, monkeypatch):
    monkeypatch.setattr(index, "MOST_INDEX", 100)
    with pytest.raises(ModelError, match=r"no index of a checkpoint: it has more than [\d,]+ bytes"):
        index.read_index(sharded / NAME)


def test_a_name_longer_than_a_file_may_have_is_of_no_file(devctl, sharded):
    change(sharded, weight_map={"a": "x" * 5000})
    done = devctl("load", sharded, "--map", "cpu")
    assert done.code == 4
    assert "lacks xxx" in done.err


def test_a_broken_index_beside_the_whole_file_is_not_looked_at(devctl, sharded):
    whole = {}
    for path in sorted(sharded.glob("*.safetensors")):
        whole |= load_file(path)
    save_file(whole, sharded / "model.safetensors", metadata={"format": "pt"})
    (sharded / NAME).write_text("{")
    assert devctl("plan", sharded, "--devices", "1GiB").code == 0
    assert devctl("load", sharded, "--map", "cpu").code == 0


@pytest.fixture(params=["cpu", "disk"])
def where(request, tmp_path):
    """A map of the whole model, as ``--map`` takes it."""
    if request.param == "cpu":
        return "cpu"
    (tmp_path / "map.json").write_text('{"": "disk"}')
    return tmp_path / "map.json"


def with_extra(folder, name):
    found = json.loads((folder / NAME).read_text())
    found["weight_map"][name] = next(iter(found["weight_map"].values()))
    (folder / NAME).write_text(json.dumps(found))


def test_a_tensor_that_is_in_no_file_and_of_no_module_is_noted(devctl, sharded, where):
    with_extra(sharded, "mtp.fc.weight")
    done = devctl("load", sharded, "--map", where)
    assert done.code == 0, done.err
    assert "named by the index, in no file, and not of LlamaForCausalLM: mtp.fc.weight" in done.out


def without(folder, name):
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if tensors.pop(name, None) is not None:
            save_file(tensors, path, metadata={"format": "pt"})


def test_a_tensor_that_is_in_no_file_and_that_a_module_needs_is_absent(devctl, sharded, where):
    without(sharded, "model.norm.weight")
    done = devctl("load", sharded, "--map", where)
    assert done.code == 4
    assert "lack model.norm.weight, which the index names and no file has" in done.err


def test_a_tied_weight_that_is_in_no_file_is_read_under_its_other_name(devctl, tmp_path):
    folder = tmp_path / "tied"
    small_models.build(small_models.TINY["llama-tied"]).save_pretrained(folder, max_shard_size="50KB")
    with_extra(folder, "lm_head.weight")
    assert devctl("load", folder, "--map", "cpu").code == 0
    (tmp_path / "map.json").write_text('{"": "disk"}')
    done = devctl("load", folder, "--map", tmp_path / "map.json")  # where the index is believed
    assert done.code == 4
    assert "lack lm_head.weight" in done.err
