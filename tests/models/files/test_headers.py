"""A checkpoint's headers beside the model: real safetensors files, and a hub on loopback."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from devctl.models.files import checkpoint as checkpoint_files
from devctl.models.files.resolve import resolve
from devctl.models.quantised.quantise import Quantize
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import tensors
from tests import quantised, small_models
from tests.marks import one_in


def notes(folder, **options):
    return read_skeleton(resolve(str(folder)), **options).tree.notes


@pytest.mark.parametrize("name", one_in(5, small_models.TINY))
def test_what_was_saved_agrees(name, checkpoint):
    assert not [note for note in notes(checkpoint(name)) if "checkpoint holds" in note]


@pytest.fixture
def llama(tmp_path):
    return small_models.save("llama", tmp_path / "llama")


def change(folder, **changes):
    """Rewrite the weights: a tensor of this size instead, or none."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    for name, shape in changes.items():
        weights.pop(name, None)
        if shape is not None:
            weights[name] = torch.zeros(shape)
    save_file(weights, path)
    return folder


def test_another_dtype_is_no_disagreement(llama):
    assert notes(llama, dtype="float16") == ()


def test_what_is_missing_and_what_is_extra(llama):
    change(llama, **{"lm_head.weight": None, "v_head.weight": (3, 5), "v_head.bias": (5,)})
    count = sum(p.numel() for p in transformers.LlamaForCausalLM(small_models.TINY["llama"]()[1]).parameters())
    assert notes(llama) == (
        f"the checkpoint holds {count - 256 * 32 + 20:,} elements, the model as built {count:,}: 2 of its tensors are "
        "not in the model (v_head.bias, v_head.weight); 1 of its tensors are not in the checkpoint (lm_head.weight)",
    )


def test_many_names_are_cut_short(llama):
    change(llama, **{f"extra.{i}": (1,) for i in range(9)})
    assert "9 of its tensors are not in the model (extra.0, extra.1, extra.2, …)" in notes(llama)[0]


def test_another_shape_is_told_without_names(llama):
    change(llama, **{"lm_head.weight": (300, 32)})
    (note,) = notes(llama)
    assert note.startswith("the checkpoint holds ")
    assert "not in" not in note


def test_what_the_class_ignores_does_not_count(tmp_path):
    config = transformers.DeepseekV3Config(
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        first_k_dense_replace=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=8,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        vocab_size=64,
    )
    transformers.DeepseekV3ForCausalLM(config).save_pretrained(tmp_path)
    assert not notes(change(tmp_path, **{"model.layers.61.eh_proj.weight": (32, 64)}))


def test_experts_are_fused_as_they_are_loaded(tmp_path):
    """The checkpoint has a tensor for each expert, the model one for all: neither counts as missing."""
    folder = small_models.save("mixtral", tmp_path)
    assert any(".experts.0." in name for name in load_file(folder / "model.safetensors"))
    (note,) = notes(change(folder, extra=(1,)))
    assert note.endswith(": 1 of its tensors are not in the model (extra)")


def test_a_base_model_in_a_checkpoint_of_a_larger_one(llama):
    (note,) = notes(llama, model_class="AutoModel")
    assert note.endswith("(lm_head.weight)")


def test_broken_weights_are_noted_and_sizes_are_the_configs(llama):
    whole = read_skeleton(resolve(str(llama))).tree
    (llama / "model.safetensors").write_bytes(b"not weights")
    tree = read_skeleton(resolve(str(llama))).tree
    assert tree.root == whole.root
    (note,) = tree.notes
    assert note.startswith(f"{llama}/model.safetensors is cut off, or no safetensors file: 11 bytes")
    assert note.endswith("sizes are those of the config")


def test_shards_that_are_not_there_are_noted(tmp_path):
    model_class, config = small_models.TINY["llama"]()
    model_class(config).save_pretrained(tmp_path, max_shard_size="50KB")
    assert notes(tmp_path) == ()
    shards = sorted(tmp_path.glob("*.safetensors"))
    for path in shards[1:]:
        path.unlink()
    assert notes(tmp_path) == (
        f"{len(shards) - 1} of the {len(shards)} files that model.safetensors.index.json names are not in {tmp_path}: "
        "sizes are those of the config",
    )


def test_shards_are_read_all(tmp_path):
    model_class, config = small_models.TINY["llama"]()
    model_class(config).save_pretrained(tmp_path, max_shard_size="50KB")
    source = resolve(str(tmp_path))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    built = {t.name for t in tensors(read_skeleton(source).tree.root) if t.persistent}
    assert checkpoint_files.stored_tensors(source).keys() == built
    assert notes(tmp_path) == ()


def test_a_config_alone_has_none(llama):
    change(llama, extra=(1,))
    assert notes(llama / "config.json") == ()


def test_no_weight_is_read(llama):
    path = llama / "model.safetensors"
    length = int.from_bytes(path.read_bytes()[:8], "little") + 8
    size = path.stat().st_size
    with path.open("r+b") as file:  # the same size, with nothing but a hole after the header
        file.truncate(length)
        file.truncate(size)
    assert notes(llama) == ()


@pytest.mark.parametrize(
    ("dtype", "count", "nbytes"),
    [
        ("BF16", 10, 20),
        ("F32", 3, 12),
        ("F8_E4M3", 5, 5),
        ("F8_E8M0", 5, 5),
        ("I32", 2, 8),
        ("BOOL", 2, 2),
        ("F4", 6, 3),
    ],
)
def test_bytes_of_dtypes(dtype, count, nbytes):
    found = checkpoint_files._stored([count], dtype)
    assert (found.count, found.nbytes) == (count, nbytes)


# quantised checkpoints: bytes


@pytest.fixture
def gptq(tmp_path):
    folder = quantised.write(tmp_path, "llama", quantised.GPTQ)
    tree = read_skeleton(resolve(str(folder))).tree
    weights = {t.name: torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for t in tensors(tree.root) if t.persistent}
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_quantised_checkpoint_that_agrees(gptq):
    assert notes(gptq) == ()


def test_a_quantised_checkpoint_of_other_bytes(gptq):
    """Of 8 bits, say, where its config says 4."""
    path = gptq / "model.safetensors"
    weights = load_file(path)
    save_file({n: torch.cat([w, w]) if n.endswith("qweight") else w for n, w in weights.items()}, path)
    (note,) = notes(gptq)
    stored = sum(w.nbytes for w in load_file(path).values())
    assert note.startswith(f"the checkpoint holds {stored / 1024:.0f} KiB, the model as built ")


def test_scales_that_are_not_planned_count(tmp_path):
    """Those of mxfp4 are in the checkpoint, and not in what transformers plans."""
    settings = quantised.CHECKPOINTS["mxfp4"]
    folder = quantised.write(tmp_path, "gpt-oss", settings)
    weights = {}
    for t in tensors(read_skeleton(resolve(str(folder))).tree.root):
        if t.persistent:
            weights[t.name] = torch.zeros(t.shape, dtype=getattr(torch, t.dtype))
            if t.dtype == "uint8":
                weights[f"{t.name}_scales"] = torch.zeros(t.nbytes * 2 // 32, dtype=torch.uint8)
    save_file(weights, folder / "model.safetensors")
    assert not [note for note in notes(folder) if "checkpoint holds" in note]


def test_what_is_quantised_while_loading_is_not_compared(llama):
    assert not [note for note in notes(llama, quantize=Quantize.FP8) if "checkpoint holds" in note]
