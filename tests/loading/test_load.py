"""Loading and running small real checkpoints, split over cpu and disk."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from devctl.devices import Device
from devctl.errors import LoadError, ModelError, RefusedError
from devctl.loading import loader, smoke
from devctl.loading.loader import LoadFormat
from devctl.loading.measure import device_bytes
from devctl.loading.proof import find_places
from devctl.models.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import TensorKind, sizes, tensors, walk
from devctl.placement import Budgets
from devctl.placement.placement import disjoint, make_placement

CPU, DISK = Device.cpu(), Device.disk()


def load(folder, device_map, offload, *, load_format=LoadFormat.AUTO, dtype="auto"):
    source = resolve(str(folder))
    skeleton = read_skeleton(source, dtype=dtype)
    device_map = device_map(skeleton.tree) if callable(device_map) else device_map
    told = []
    model, notes = loader.load(
        source, skeleton, device_map, load_format=load_format, folder=offload, on_progress=told.append
    )
    return model, notes, skeleton.tree, device_map, told


def every_other_block(tree):
    """Blocks in turn on the disk and on the CPU, the rest on the CPU."""
    blocks = [m.name for m in walk(tree.root) if m.name.rpartition(".")[2].isdecimal() and not m.name.endswith(".0")]
    return disjoint(tree, {"": CPU} | dict.fromkeys(blocks[::2], DISK))


def run(model, folder, new_tokens=4):
    tokenizer, _ = smoke.load_tokenizer(resolve(str(folder)))
    return smoke.run(model, tokenizer, device=CPU, prompt=None, new_tokens=new_tokens)


@pytest.mark.parametrize("name", ["llama", "llama-tied", "mixtral", "t5", "whisper", "vit", "bert", "gpt2", "clip"])
def test_split_over_cpu_and_disk(name, checkpoint, tmp_path):
    folder = checkpoint(name)
    model, notes, tree, device_map, told = load(folder, every_other_block, tmp_path)
    places = find_places(model, device_map)
    assert notes == ()
    assert places.misplaced == ()
    assert {device for device, _ in places.measured} == {CPU, DISK}
    placement = make_placement(tree, device_map, Budgets(devices=(), given=True), strategy=None)
    on_disk = {d.device: d for d in device_bytes(placement, places)}[DISK]
    assert on_disk.measured == on_disk.predicted > 0
    parameters = [t for t in tensors(tree.root) if t.kind is TensorKind.PARAMETER]
    assert sum(told) == sum(sizes(tree)[t.name] for t in parameters)

    ran = run(model, folder)
    assert ran.nonfinite == ()
    whole, *_ = load(folder, {"": CPU}, None)
    inputs, _ = smoke.make_inputs(whole, None, "")
    forward = {**inputs, **smoke._decoder_inputs(whole, inputs)}
    with torch.inference_mode():
        expected, found = whole(**forward), model(**forward)
    for (key, a), (_, b) in zip(smoke._floats(expected, ""), smoke._floats(found, ""), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", ["llama", "mixtral", "t5", "whisper"])
def test_generate(name, checkpoint):
    model, *_ = load(checkpoint(name), {"": CPU}, None)
    made = run(model, checkpoint(name), new_tokens=5).generated
    assert made.tokens == 5
    assert made.tokens_per_second == 5 / made.seconds
    assert made.text is None


def test_a_model_that_does_not_generate(checkpoint):
    model, *_ = load(checkpoint("vit"), {"": CPU}, None)
    ran = run(model, checkpoint("vit"))
    assert ran.generated is None
    assert [(i.name, i.shape) for i in ran.inputs] == [("pixel_values", (1, 3, 32, 32))]


def test_a_real_model_with_its_tokenizer(minilm, tmp_path):
    device_map = {"embeddings": CPU, "pooler": DISK} | {f"encoder.layer.{i}": DISK if i % 2 else CPU for i in range(6)}
    model, notes, _, _, _ = load(minilm, device_map, tmp_path)
    assert notes == ()
    assert find_places(model, device_map).misplaced == ()
    tokenizer, trouble = smoke.load_tokenizer(resolve(str(minilm)))
    assert trouble == ()
    inputs, origin = smoke.make_inputs(model, tokenizer, "a cat sits on a mat")
    assert origin == "tokenizer"
    assert inputs["input_ids"][0, 0] == tokenizer.cls_token_id

    def embed(text):
        with torch.inference_mode():
            hidden = model(**smoke.make_inputs(model, tokenizer, text)[0]).last_hidden_state
        return torch.nn.functional.normalize(hidden.mean(dim=1), dim=-1)[0]

    cat, kitten, tax = embed("a cat sits on a mat"), embed("a kitten rests on a rug"), embed("income tax law")
    assert cat @ kitten > 0.4 > cat @ tax  # it is the trained model, not noise


def test_a_map_with_a_key_above_another(checkpoint, tmp_path):
    tiny_layers = checkpoint("llama")
    device_map = {"": CPU, "model.layers": DISK, "model.layers.1": CPU}
    model, _, _, _, _ = load(tiny_layers, device_map, tmp_path)
    assert find_places(model, device_map).misplaced == ()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_modules_kept_in_float32_take_what_the_note_says(dtype, checkpoint):
    model, _, tree, device_map, _ = load(checkpoint("t5"), {"": CPU}, None, dtype=dtype)
    measured = dict(find_places(model, device_map).measured)[CPU]
    extra = sum(t.nbytes for t in tensors(tree.root) if "wo.weight" in t.name) if dtype == "float16" else 0
    assert measured == sizes(tree)[""] + extra
    assert bool(tree.notes) == bool(extra)


# dummy weights


@pytest.mark.parametrize("name", ["llama", "llama-tied", "mixtral", "t5", "whisper", "vit", "bert", "mamba", "gpt-oss"])
@pytest.mark.parametrize("split", [False, True])
def test_dummy_weights(name, split, checkpoint, tmp_path):
    config = checkpoint(name) / "config.json"
    split = every_other_block if split else {"": CPU}
    model, notes, tree, device_map, _ = load(config, split, tmp_path, load_format=LoadFormat.DUMMY)
    places = find_places(model, device_map)
    assert notes == ()
    assert places.misplaced == ()
    assert sum(size for _, size in places.measured) == sizes(tree)[""]
    assert run(model, config).nonfinite == ()


def test_dummy_weights_are_random_and_the_same_each_time(checkpoint):
    config = checkpoint("llama") / "config.json"

    def weights():
        model, *_ = load(config, {"": CPU}, None, load_format=LoadFormat.DUMMY)
        return model.state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[key], second[key]) for key in first)
    matrix = first["model.layers.0.mlp.up_proj.weight"]
    assert 0.01 < matrix.std() < 0.03
    assert not torch.equal(matrix, first["model.layers.1.mlp.up_proj.weight"])
    assert first["model.norm.weight"].eq(1).all()


# proofs that fail


def test_a_tensor_that_was_moved_is_found(checkpoint, tmp_path):
    model, _, _, device_map, _ = load(checkpoint("llama"), every_other_block, tmp_path)
    assert device_map["model.layers.1"] == DISK
    claimed = {**device_map, "model.layers.1": CPU, "lm_head": DISK}
    wrong = {m.name: m for m in find_places(model, claimed).misplaced}
    assert "lm_head.weight" in wrong
    assert "model.layers.1.mlp.up_proj.weight" in wrong
    assert wrong["lm_head.weight"].expected == DISK
    assert wrong["lm_head.weight"].actual == CPU


def test_a_tensor_without_data_is_found(checkpoint):
    model, _, _, device_map, _ = load(checkpoint("llama"), {"": CPU}, None)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to("meta"))
    (wrong,) = find_places(model, device_map).misplaced
    assert (wrong.name, wrong.actual) == ("lm_head.weight", None)


def spoil(folder, target, change):
    """Copy a checkpoint, with its weights changed."""
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    weights = load_file(target / "model.safetensors")
    change(weights)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def test_nan_weights_are_found(checkpoint, tmp_path):
    def change(weights):
        weights["lm_head.weight"][0, 0] = float("nan")

    folder = spoil(checkpoint("llama"), tmp_path, change)
    model, *_ = load(folder, {"": CPU}, None)
    assert run(model, folder).nonfinite == ("logits",)


def test_missing_weights_are_noted(checkpoint, tmp_path):
    folder = spoil(checkpoint("llama"), tmp_path, lambda weights: weights.pop("lm_head.weight"))
    _, notes, *_ = load(folder, {"": CPU}, None)
    assert notes == ("not in the checkpoint, so random: lm_head.weight",)


def test_a_model_whose_code_raises_is_named(checkpoint):
    model, *_ = load(checkpoint("llama"), {"": CPU}, None)
    model.model.layers[2].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(LoadError, match=r"failed in model\.layers\.2\.mlp\.up_proj of LlamaForCausalLM: RuntimeError"):
        run(model, checkpoint("llama"))


# checkpoints that can't be loaded


@pytest.mark.parametrize("keep", [0, 5, 100, 20_000])
def test_a_checkpoint_that_is_cut_off(keep, checkpoint, tmp_path):
    for path in checkpoint("llama").iterdir():
        data = path.read_bytes()
        (tmp_path / path.name).write_bytes(data[:keep] if path.suffix == ".safetensors" else data)
    with pytest.raises(ModelError, match="corrupt or cut off"):
        load(tmp_path, {"": CPU}, None)


def test_a_config_has_no_weights(checkpoint):
    with pytest.raises(ModelError, match="config without weights") as raised:
        load(checkpoint("llama") / "config.json", {"": CPU}, None)
    assert "--load-format dummy" in raised.value.hint


def test_a_folder_without_weights(checkpoint, tmp_path):
    (tmp_path / "config.json").write_text((checkpoint("llama") / "config.json").read_text())
    with pytest.raises(ModelError, match="has no weights"):
        load(tmp_path, {"": CPU}, None)


def test_a_checkpoint_of_other_shapes(checkpoint, tmp_path):
    folder = spoil(checkpoint("llama"), tmp_path, lambda weights: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    with pytest.raises(ModelError, match="do not fit its config"):
        load(folder, {"": CPU}, None)


@pytest.mark.parametrize(("embed", "head"), [(CPU, DISK), (DISK, CPU)])
def test_why_ties_must_not_be_split_by_the_disk(embed, head, checkpoint, tmp_path):
    device_map = {"model.embed_tokens": embed, "model.layers": CPU, "model.norm": CPU, "lm_head": head}
    device_map["model.rotary_emb"] = CPU
    with pytest.raises(LoadError, match=r"KeyError: 'lm_head\.weight'|ValueError: weight is on the meta device"):
        run(load(checkpoint("llama-tied"), device_map, tmp_path)[0], checkpoint("llama-tied"))


# offload folders


def test_the_temporary_offload_folder_is_removed():
    with loader.offload_folder(10, None) as folder:
        (folder / "x").write_text("x")
    assert not folder.exists()


def test_a_given_offload_folder_is_made_and_kept(tmp_path):
    with loader.offload_folder(10, tmp_path / "a" / "b") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "a" / "b" / "x").exists()


def test_an_offload_folder_without_space(tmp_path):
    with pytest.raises(RefusedError, match=r"may need 1024 TiB") as raised, loader.offload_folder(2**50, tmp_path):
        pass
    assert "--offload-folder" in raised.value.hint


def test_an_offload_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RefusedError, match="cannot make"), loader.offload_folder(1, tmp_path / "file"):
        pass


# devices


def test_torch_on_a_cpu_box_uses_no_gpu():
    assert loader.unusable([CPU, DISK]) == ()
    (finding,) = loader.unusable([Device.gpu(63)])
    assert "can't use cuda:63" in finding


def test_the_main_device(checkpoint, tmp_path):
    whole, _, _, device_map, _ = load(checkpoint("llama"), {"": CPU}, None)
    assert loader.main_device(whole, device_map) == CPU
    split, _, _, device_map, _ = load(checkpoint("llama"), every_other_block, tmp_path)
    assert loader.main_device(split, device_map) == CPU
    split._hf_hook.execution_device = 1  # as accelerate has it for a GPU
    assert loader.main_device(split, device_map) == Device.gpu(1)
