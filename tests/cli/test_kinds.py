"""What people hand over in a model's place: planned, or called what it is, with the next command to type."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters import write_safetensors
from tests.hub import point_at, serve

BOX = ("--devices", "1GiB,cpu=1GiB")


@pytest.fixture
def own(checkpoint, tmp_path):
    """A copy of a model's folder, to be spoilt."""
    return shutil.copytree(checkpoint("llama"), tmp_path / "own")


def refused(devctl, path, *options):
    result = devctl("plan", path, *BOX, *options)
    assert (result.code, result.out) == (4, ""), result.err
    return result.err


def test_a_file_of_weights_stands_for_the_folder_of_its_model(devctl, own):
    whole = devctl("plan", own, *BOX)
    assert devctl("plan", own / "model.safetensors", *BOX).out == whole.out
    torch.save({}, own / "pytorch_model.bin")
    assert devctl("plan", own / "pytorch_model.bin", *BOX).out == whole.out


def test_a_shard_stands_for_the_folder_of_its_model(devctl, own):
    whole = devctl("plan", own, *BOX)
    weights = load_file(own / "model.safetensors")
    (own / "model.safetensors").unlink()
    save_file(weights, own / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    assert devctl("plan", own / "model-00001-of-00001.safetensors", *BOX).out == whole.out


def test_a_file_that_its_folders_model_is_not_read_from_does_not_stand_for_it(devctl, own):
    shutil.copy(own / "model.safetensors", own / "model.fp16.safetensors")
    said = refused(devctl, own / "model.fp16.safetensors")
    assert "is not what the model in its folder is read from" in said
    assert f"give the folder: {own}" in said


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.weight"], "is a safetensors file (1 tensor, 16 B in F32) without a config.json beside it"),
        (["base_model.model.q_proj.lora_A.weight"], "is a file of LoRA weights (1 tensor, 16 B in F32) without"),
        (["lora_unet_mid.lora_down.weight"], "is a file of LoRA weights"),
        (["model.diffusion_model.out.0.bias"], "is a diffusion model in a single file"),
    ],
)
def test_a_file_of_weights_alone_is_called_what_it_is(devctl, tmp_path, names, said):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in names})
    assert said in refused(devctl, path)


def test_a_file_of_weights_that_is_broken_or_a_pickle_ends_in_a_line(devctl, tmp_path):
    for name, data, said in (
        ("a.safetensors", b"\x08", "is cut off, or no safetensors file"),
        ("b.safetensors", b"\xff" * 100, "is cut off, or no safetensors file"),
        ("c.bin", b"never opened", "a pickle, which is not opened"),
        ("d.ckpt", b"never opened", "a pickle, which is not opened"),
    ):
        (tmp_path / name).write_bytes(data)
        found = refused(devctl, tmp_path / name)
        assert said in found
        assert len(found.splitlines()) <= 2


def test_the_old_layout_of_sentence_transformers_names_its_transformer(devctl, own, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    own.rename(old / "0_Transformer")
    said = refused(devctl, old)
    assert "is a model of sentence-transformers in its old layout: its transformer is in 0_Transformer" in said
    assert f"`devctl plan {old}/0_Transformer`" in said
    assert devctl("plan", old / "0_Transformer", *BOX).code == 0


def test_modules_of_sentence_transformers_name_it_and_lead_nowhere_else(devctl, own, tmp_path):
    kind = "sentence_transformers.models.Transformer"
    old = tmp_path / "old"
    old.mkdir()
    shutil.copytree(own, old / "inner")
    (old / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "inner", "type": kind}]))
    assert f"`devctl plan {old}/inner`" in refused(devctl, old)
    for path in (str(own), "../own", "..", "", 3, None):
        (old / "modules.json").write_text(json.dumps([{"path": path, "type": kind}]))
        assert "has no config.json" in refused(devctl, old)
    for text in ("[", "3", "{}", '[{"path": 1}]', "[" * 100_000):
        (old / "modules.json").write_text(text)
        assert "has no config.json" in refused(devctl, old)


def test_a_folder_of_checkpoints_names_the_last(devctl, own, tmp_path):
    for number in (2, 500, 1000):
        shutil.copytree(own, tmp_path / "run" / f"checkpoint-{number}")
    said = refused(devctl, tmp_path / "run")
    assert "has no config.json; 3 folders in it have one, like checkpoint-1000" in said
    assert f"`devctl plan {tmp_path}/run/checkpoint-1000`" in said


def test_weights_without_a_config_are_called_so(devctl, own):
    (own / "config.json").unlink()
    (own / "consolidated.00.pth").write_bytes(b"")
    for each in own.glob("*.index.json"):
        each.unlink()
    said = refused(devctl, own)
    assert "has no config.json beside its weights (consolidated.00.pth and 1 more)" in said
    assert len(said.splitlines()) == 2


def test_an_index_stands_for_its_folder(devctl, own):
    names = list(load_file(own / "model.safetensors"))
    index = own / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}))
    done = devctl("plan", index, *BOX)
    assert done.code == 0, done.err
    (own / "config.json").unlink()
    assert "has no config.json, and model.safetensors.index.json, which names" in refused(devctl, index)


def test_an_index_alone_says_what_is_missing(devctl, tmp_path):
    index = {"metadata": {}, "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    said = refused(devctl, tmp_path)
    assert "which names 2 tensors in 2 files, 2 of which are not there" in said
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    assert "is no index of a checkpoint" in refused(devctl, tmp_path)


def test_an_index_beside_shards_that_are_not_there_is_planned_by_the_config_and_said_so(devctl, own):
    names = list(load_file(own / "model.safetensors"))
    (own / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    result = devctl("plan", own, *BOX)
    assert result.code == 0
    assert "1 of the 1 files that model.safetensors.index.json names are not in" in result.err


def newer(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "changes", [{"model_type": "llama9"}, {"architectures": ["Llama9ForCausalLM"], "model_type": "llama"}]
)
def test_of_a_model_that_transformers_does_not_know_the_headers_are_told(devctl, own, changes):
    newer(own, **changes)
    weights = load_file(own / "model.safetensors")
    weights["vision.blocks.0.w"], weights["vision.blocks.1.w"] = torch.zeros(1024), torch.zeros(512)
    weights["top"] = torch.zeros(8, dtype=torch.float16)
    save_file(weights, own / "model.safetensors")
    said = refused(devctl, own)
    total = sum(tensor.nbytes for tensor in weights.values())
    assert (
        f"its files hold {len(weights)} tensors, {total / 1024:.0f} KiB: {(total - 16) / 1024:.0f} KiB in F32" in said
    )
    assert "16 B in F16" in said
    assert "vision.blocks: 6.00 KiB, 2 of them, the largest 4.00 KiB" in said
    assert "the model itself: 16 B" in said
    assert "a newer transformers may" in said


def test_of_a_model_that_transformers_does_not_know_a_few_modules_are_told(devctl, own):
    newer(own, model_type="llama9")
    entries = {f"m{at}.w": {"dtype": "F32", "shape": [1], "data_offsets": [4 * at, 4 * at + 4]} for at in range(30)}
    write_safetensors(own / "model.safetensors", entries)
    said = refused(devctl, own)
    assert "and 18 more" in said
    (own / "model.safetensors").write_bytes(b"\x08")
    assert "is cut off" in refused(devctl, own)
    (own / "model.safetensors").unlink()
    assert "does not know the model type 'llama9'" in refused(devctl, own)


def test_of_such_a_model_on_the_hub_headers_alone_are_fetched(devctl, own, tmp_path, monkeypatch):
    newer(own, model_type="llama9")
    with serve() as hub:
        hub.repos["org/newer"] = own
        point_at(hub, tmp_path, monkeypatch)
        assert "its files hold" in refused(devctl, "org/newer")
        assert hub.ranges


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="it has no pipes")
def test_pipes_by_the_names_of_these_kinds_are_not_waited_for(devctl, tmp_path):
    for name in ("model_index.json", "adapter_config.json", "modules.json", "model.safetensors.index.json"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        os.mkfifo(folder / name)
        assert refused(devctl, folder)
