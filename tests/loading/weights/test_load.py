"""Loading and running small real checkpoints, split over cpu and disk."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from devctl.devices import Device
from devctl.errors import LoadError, ModelError, RefusedError, UsageError
from devctl.loading.measure import device_bytes
from devctl.loading.proofs.compare import floats
from devctl.loading.proofs.places import find_places
from devctl.loading.run import generating, smoke, timing
from devctl.loading.run.inputs import prepare
from devctl.loading.weights import loader, offload
from devctl.loading.weights.loader import LoadFormat
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import TensorKind, sizes, tensors, walk
from devctl.placement.judge import disjoint
from tests import small_models
from tests.marks import one_in, slow

CPU, DISK = Device.cpu(), Device.disk()


def load(folder, device_map, offload, *, load_format=LoadFormat.AUTO, dtype="auto", allow_missing=False):
    source = resolve(str(folder))
    skeleton = read_skeleton(source, dtype=dtype)
    device_map = device_map(skeleton.tree) if callable(device_map) else device_map
    told = []
    model, notes = loader.load(
        source,
        skeleton,
        device_map,
        load_format=load_format,
        folder=offload,
        on_progress=told.append,
        allow_missing=allow_missing,
    )
    return model, notes, skeleton.tree, device_map, told


def every_other_block(tree):
    """Blocks in turn on the disk and on the CPU, the rest on the CPU."""
    blocks = [m.name for m in walk(tree.root) if m.name.rpartition(".")[2].isdecimal() and not m.name.endswith(".0")]
    return disjoint(tree, {"": CPU} | dict.fromkeys(blocks[::2], DISK))


def prepared(folder, *, prompt=None, new_tokens=4, trust_remote_code=False, model_class=None):
    source = resolve(str(folder))
    skeleton = read_skeleton(source, model_class=model_class, trust_remote_code=trust_remote_code)
    return prepare(source, skeleton, prompt=prompt, new_tokens=new_tokens, trust_remote_code=trust_remote_code)


def run(model, folder, new_tokens=4):
    return smoke.run(model, prepared(folder, new_tokens=new_tokens), device=CPU, new_tokens=new_tokens)


@pytest.mark.parametrize(
    "name", ["llama-tied", *slow("mixtral", "t5", "llama", "whisper", "vit", "bert", "gpt2", "clip")]
)
def test_split_over_cpu_and_disk(name, checkpoint, tmp_path):
    folder = checkpoint(name)
    model, notes, tree, device_map, told = load(folder, every_other_block, tmp_path)
    places = find_places(model, device_map)
    assert notes == ()
    assert places.misplaced == ()
    assert {device for device, _ in places.measured} == {CPU, DISK}
    bytes_on = {d.device: d for d in device_bytes(tree, device_map, CPU, places)}
    assert bytes_on.keys() == {CPU, DISK}
    assert all(each.measured == each.predicted > 0 for each in bytes_on.values())
    parameters = [t for t in tensors(tree.root) if t.kind is TensorKind.PARAMETER]
    assert sum(told) == sum(sizes(tree)[t.name] for t in parameters)

    ran = run(model, folder)
    assert ran.nonfinite == ()
    whole, *_ = load(folder, {"": CPU}, None)
    inputs = prepared(folder).tensors
    forward = {**inputs, **smoke._decoder_inputs(whole, inputs)}
    with torch.inference_mode():
        expected, found = whole(**forward), model(**forward)
    for (key, a), (_, b) in zip(floats(expected), floats(found), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", one_in(4, ["llama", "mixtral", "t5", "whisper"]))
def test_generate(name, checkpoint):
    model, *_ = load(checkpoint(name), {"": CPU}, None)
    made = run(model, checkpoint(name), new_tokens=5).generated
    assert made.tokens == 5
    assert 0 < made.first_token_seconds.median < made.seconds.median
    between = made.seconds.median - made.first_token_seconds.median
    assert made.decode_tokens_per_second.median == 4 / between
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
    given = prepared(minilm, prompt="a cat sits on a mat")
    assert (given.source, given.notes) == ("tokenizer", ())
    assert given.tensors["input_ids"][0, 0] == given.tokenizer.cls_token_id

    def embed(text):
        with torch.inference_mode():
            hidden = model(**prepared(minilm, prompt=text).tensors).last_hidden_state
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


@pytest.mark.parametrize(
    "name", one_in(2, ["llama-tied", "t5", "gpt-oss", *slow("llama", "mixtral", "whisper", "vit", "bert", "mamba")])
)
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
    with pytest.raises(ModelError, match=r"lack 1 of the \d+ tensors of LlamaForCausalLM: lm_head\.weight"):
        load(folder, {"": CPU}, None)
    _, notes, *_ = load(folder, {"": CPU}, None, allow_missing=True)
    assert notes == ("not in the checkpoint, so random: lm_head.weight",)


def test_a_model_whose_code_raises_is_named(checkpoint):
    model, *_ = load(checkpoint("llama"), {"": CPU}, None)
    model.model.layers[2].mlp.up_proj.weight = torch.nn.Parameter(torch.zeros(3, 3))
    with pytest.raises(LoadError, match=r"failed in model\.layers\.2\.mlp\.up_proj of LlamaForCausalLM: RuntimeError"):
        run(model, checkpoint("llama"))


# checkpoints that can't be loaded


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


@pytest.mark.parametrize("text", ["", "{", '{"weight_map": 5}', '{"weight_map": {}}', "[]"])
def test_a_broken_index(checkpoint, tmp_path, text):
    folder = spoil(checkpoint("llama"), tmp_path, lambda weights: None)
    (folder / "model.safetensors.index.json").write_text(text)
    load(folder, {"": CPU}, None)  # the whole file comes first
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="is no index of a checkpoint"):
        load(folder, {"": CPU}, None)


def test_sharded_and_pickled_checkpoints(tmp_path):
    model_class, config = small_models.TINY["llama"]()
    torch.manual_seed(0)
    model = model_class(config)
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    config.architectures = [model_class.__name__]
    config.save_pretrained(tmp_path / "bin")
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    for name in ("shards", "bin"):
        loaded, notes, _, device_map, _ = load(tmp_path / name, every_other_block, tmp_path / "offload" / name)
        assert notes == ()
        assert find_places(loaded, device_map).misplaced == ()
        assert run(loaded, tmp_path / name).nonfinite == ()


# inputs


def describe(folder, **options):
    return {name: tuple(value.shape) for name, value in prepared(folder, **options).tensors.items()}


def save_config(folder, model_class, config):
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("name", "model_class", "expected"),
    one_in(
        3,
        [
            ("llama", None, {"input_ids": (1, 16), "attention_mask": (1, 16)}),
            ("t5", "AutoModel", {"input_ids": (1, 16), "attention_mask": (1, 16)}),
            ("whisper", "AutoModel", {"input_features": (1, 16, 100)}),
            ("vit", None, {"pixel_values": (1, 3, 32, 32)}),
            ("clip", None, {"input_ids": (1, 16), "attention_mask": (1, 16), "pixel_values": (1, 3, 32, 32)}),
            ("mamba", None, {"input_ids": (1, 16), "attention_mask": (1, 16)}),
        ],
    ),
)
def test_inputs_by_modality(name, model_class, expected, checkpoint):
    assert describe(checkpoint(name), model_class=model_class) == expected
    skeleton = read_skeleton(resolve(str(checkpoint(name))), model_class=model_class)
    model = skeleton.model_class.from_pretrained(checkpoint(name))
    given = prepared(checkpoint(name), model_class=model_class)
    assert smoke.run(model, given, device=CPU, new_tokens=0).nonfinite == ()


def test_more_modalities(tmp_path):
    import transformers as t

    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    ast = t.ASTConfig(**text, max_length=64, num_mel_bins=32)
    wav = t.Wav2Vec2Config(**text, conv_dim=[8] * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
    vision = t.ViTConfig(**text, image_size=48, patch_size=8)
    gpt2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    encdec = t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        vision, t.GPT2Config(**gpt2, add_cross_attention=True, is_decoder=True)
    )
    blip = t.BlipConfig(
        text_config={
            **text,
            "vocab_size": 99,
            "encoder_hidden_size": 32,
            "bos_token_id": 1,
            "sep_token_id": 2,
            "eos_token_id": 2,
        },
        vision_config={**text, "image_size": 48, "patch_size": 8},
    )
    for model_class, config, expected in (
        (t.ASTModel, ast, {"input_values": (1, 64, 32)}),
        (t.Wav2Vec2Model, wav, {"input_values": (1, 16_000)}),
        (t.VisionEncoderDecoderModel, encdec, {"pixel_values": (1, 3, 48, 48)}),
        (
            t.BlipForConditionalGeneration,
            blip,
            {"input_ids": (1, 16), "attention_mask": (1, 16), "pixel_values": (1, 3, 48, 48)},
        ),
    ):
        folder = save_config(tmp_path / model_class.__name__, model_class, config)
        assert describe(folder) == expected
        model, *_ = load(folder / "config.json", {"": CPU}, None, load_format=LoadFormat.DUMMY)
        assert run(model, folder / "config.json", new_tokens=2).nonfinite == ()


@pytest.mark.parametrize(
    ("name", "config", "settings"),
    [
        ("PerceiverForOpticalFlow", "PerceiverConfig", {"num_cross_attention_heads": 1}),
        ("BarkModel", "BarkConfig", {}),
        ("Kosmos2ForConditionalGeneration", "Kosmos2Config", {}),
    ],
)
def test_inputs_that_are_not_known_are_told_before_loading(tmp_path, name, config, settings):
    import transformers

    folder = save_config(tmp_path, getattr(transformers, name), getattr(transformers, config)(**settings))
    with pytest.raises(LoadError, match=f"no inputs are known for {name}"):
        prepared(folder)


@pytest.mark.parametrize(("where", "expected"), [("generation_config", 0), ("config", 0), ("neither", 7)])
def test_the_start_of_a_decoder_may_be_token_0(where, expected, checkpoint):
    model, *_ = load(checkpoint("t5"), {"": CPU}, None)
    model.generation_config.decoder_start_token_id = 0 if where == "generation_config" else None
    model.config.decoder_start_token_id = 0 if where == "config" else None
    model.generation_config.bos_token_id = 7
    assert generating.decoder_start(model) == expected


def test_the_models_own_generation_settings_do_not_matter(checkpoint):
    model, *_ = load(checkpoint("llama"), {"": CPU}, None)
    model.generation_config.update(do_sample=True, temperature=0.7, num_beams=4, num_return_sequences=2)
    model.generation_config.eos_token_id = []
    assert run(model, checkpoint("llama"), new_tokens=3).generated.tokens == 3


def test_more_tokens_than_the_model_takes(checkpoint):
    with pytest.raises(UsageError, match="--max-new-tokens 64: this model takes at most 64"):
        prepared(checkpoint("llama"), new_tokens=64)
    assert prepared(checkpoint("vit"), new_tokens=10**9).source == "random"


TOKENIZER = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path(__file__).with_name("ran").touch()
Path({marker!r}).touch()
class Own(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("trusted", [False, True])
def test_a_tokenizers_own_code_runs_only_when_trusted(trusted, checkpoint, minilm, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to run the code"))
    folder = spoil(checkpoint("bert"), tmp_path, lambda weights: None)
    for name in ("tokenizer.json", "special_tokens_map.json"):
        (folder / name).write_bytes((minilm / name).read_bytes())
    marker = tmp_path / "marker"
    (folder / "own.py").write_text(TOKENIZER.format(marker=str(marker)))
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": [None, "own.Own"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    given = prepared(folder, trust_remote_code=trusted)
    assert marker.exists() == trusted
    assert given.source == "tokenizer" or not trusted


# offload folders


def test_the_temporary_offload_folder_is_removed():
    with offload.offload_folder(10, None) as folder:
        (folder / "x").write_text("x")
    assert not folder.exists()


def test_an_offload_folder_without_space(tmp_path):
    with pytest.raises(RefusedError, match=r"may need 1024 TiB") as raised, offload.offload_folder(2**50, tmp_path):
        pass
    assert "--offload-folder" in raised.value.hint


def test_an_offload_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot use the offload folder"), offload.offload_folder(1, tmp_path / "file"):
        pass


def test_an_offload_folder_that_can_not_be_written():
    with pytest.raises(UsageError, match="cannot use the offload folder"), offload.offload_folder(1, Path("/proc")):
        pass


def test_an_offload_folder_that_fills_up(checkpoint, monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("transformers.integrations.accelerate.save_file", full)
    with pytest.raises(LoadError, match=r"cannot write to the offload folder .*: .* No space left") as raised:
        load(checkpoint("llama") / "config.json", every_other_block, tmp_path, load_format=LoadFormat.DUMMY)
    assert "--offload-folder" in raised.value.hint


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


def test_only_the_gpus_in_use_are_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index: {0: 1, 1: 0, 2: 1}[index])
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    timing.synchronize(Device.gpu(0))
    assert waited == [0, 2]


def test_boards_that_only_the_driver_counts_are_not_waited_for(monkeypatch):
    def reserved(index):
        if index:  # as torch's allocator says it of boards in MIG mode that NVML shows
            raise RuntimeError(f"Invalid device argument {index}: did you call init?")
        return 1

    waited = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "memory_reserved", reserved)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    timing.synchronize(Device.gpu(0))
    assert waited == [0]


@pytest.fixture
def part(monkeypatch, request):
    """CUDA's part of torch, or XPU's, where two devices are counted; what it is asked, in order."""
    device, asked = request.param, []
    module = {"cuda": torch.cuda, "xpu": torch.xpu}[device]
    monkeypatch.setattr(module, "device_count", lambda: 2)
    monkeypatch.setattr(module, "init", lambda: asked.append("init"))
    monkeypatch.setattr(module, "get_device_properties", asked.append)
    return device, module, asked


@pytest.mark.parametrize("part", ["cuda", "xpu"], indirect=True)
def test_a_device_that_torch_can_use_is_one_that_it_begins_and_knows(part):
    device, _, asked = part
    assert loader.unusable([Device.from_str(f"{device}:1")]) == ()
    assert asked == ["init", 1]
    (line,) = loader.unusable([Device.from_str(f"{device}:2")])
    assert line.endswith(f"can't use {device}:2: is it a build for this hardware?")


@pytest.mark.parametrize("part", ["cuda", "xpu"], indirect=True)
def test_a_driver_that_torch_can_not_begin_with_is_no_device(part, monkeypatch):
    device, module, asked = part

    def too_old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nUpdate it")

    monkeypatch.setattr(module, "init", too_old)
    (line,) = loader.unusable([Device.from_str(f"{device}:0")])
    assert line.endswith(f"can't use {device}:0: The NVIDIA driver on your system is too old (found version 11040).")
    assert not asked


@pytest.mark.parametrize("part", ["cuda"], indirect=True)
@pytest.mark.parametrize(
    ("begins", "error"),
    [
        (True, RuntimeError("device >= 0 && device < num_gpus INTERNAL ASSERT FAILED at CUDAContext.cpp, device=1")),
        (True, AssertionError("Invalid device id")),
        (False, torch.cuda.DeferredCudaCallError("CUDA call failed lazily: device < num_gpus INTERNAL ASSERT\nat:")),
    ],
)
def test_a_board_of_the_driver_that_cuda_does_not_have_is_no_device(part, monkeypatch, begins, error):
    device, module, _ = part

    def fails(*_):
        raise error

    monkeypatch.setattr(module, "get_device_properties" if begins else "init", fails)
    (line,) = loader.unusable([Device.from_str(f"{device}:1")])
    assert line.endswith(
        "can't use cuda:1: CUDA has fewer devices than the driver shows, as of boards in MIG mode: name what to use in "
        "CUDA_VISIBLE_DEVICES"
    )
