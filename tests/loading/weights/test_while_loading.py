"""What real loads hold for a while beside their weights, counted as torch allocates it, and the same as predicted."""

import json
import math
import weakref
from concurrent.futures import Future
from unittest import mock

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from devctl.devices import Device
from devctl.models.cache import dump_tree, parse_tree
from devctl.models.files.resolve import resolve
from devctl.models.quantised.quantise import Quantize
from devctl.models.skeleton import Purpose, read_skeleton
from devctl.placement.placement import loaded_beside
from tests.marks import one_in

GPU = Device.gpu(0)

COMPUTED = 1024
"""Bytes of the steps in which a model computes its buffers, the frequencies of positions."""

SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}


def llama(**own):
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, "intermediate_size": 256, **own}))


def mixtral():
    config = transformers.MixtralConfig(**SMALL, intermediate_size=256, num_local_experts=8)
    return transformers.MixtralForCausalLM(config)


def qwen3_moe():
    config = transformers.Qwen3MoeConfig(
        **SMALL, intermediate_size=128, moe_intermediate_size=128, num_experts=16, num_experts_per_tok=2, head_dim=16
    )
    return transformers.Qwen3MoeForCausalLM(config)


def gpt_oss():
    config = transformers.GptOssConfig(**SMALL, intermediate_size=128, num_local_experts=8, head_dim=16)
    return transformers.GptOssForCausalLM(config)


def saved(model, folder, dtype=torch.bfloat16):
    model.to(dtype).save_pretrained(folder)
    return folder


def packed_in_mxfp4(folder):
    """The experts of a saved gpt-oss as its publisher packs them: two in a byte, a byte of scale for 32."""
    path = folder / "model.safetensors"
    packed = {}
    for name, tensor in load_file(path).items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, inputs, outputs = tensor.shape
            shape = experts, outputs, inputs // 32
            packed[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
            packed[f"{name}_scales"] = torch.full(shape, 127, dtype=torch.uint8)
        else:
            packed[name] = tensor
    save_file(packed, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


class Allocated(TorchDispatchMode):
    """The bytes of whole storages that operations make, from the first tensor of one to the end of the last."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = {}

    def hold(self, tensor):
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key not in self.known and tensor.device.type == "cpu":

            def died(_):
                del self.known[key]
                self.live -= nbytes

            self.known[key] = weakref.ref(storage, died)
            self.live += nbytes
            self.peak = max(self.peak, self.live)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operands = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
        given = {x.untyped_storage()._cdata for x in operands}
        result = func(*args, **(kwargs or {}))
        for made in tree_flatten(result)[0]:
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in given:
                self.hold(made)
        return result


def measured(folder, *, as_accelerator, dtype="bfloat16"):
    """The most bytes that a load allocates.

    On an accelerator every tensor of a file is copied to it, all of them before the first is converted; on the CPU
    what needs no other dtype is mapped from its file, and is nobody's allocation.
    """
    found = Allocated()

    def read(pool, tensor, device=None, dtype=None, **_):
        with mock.patch.object(Allocated, "hold"):
            source = tensor[...]
        value = source.to(dtype=dtype, copy=as_accelerator)
        done = Future()
        done.set_result(value)
        return done

    model_class = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    with mock.patch("transformers.core_model_loading.spawn_materialize", read), found:
        loaded = model_class.from_pretrained(folder, dtype=dtype)
    assert all(p.device.type == "cpu" for p in loaded.parameters())
    return found.peak - COMPUTED


def predicted(folder, purpose=Purpose.LOAD, **asked):
    tree = read_skeleton(resolve(str(folder)), purpose=purpose, **asked).tree
    assert parse_tree(dump_tree(tree)) == tree, "kept as it is"
    return tree.index.held[""] + loaded_beside(tree, {"": GPU}).get(GPU, 0)


def largest(folder, **asked):
    return max(t.nbytes for t in read_skeleton(resolve(str(folder)), **asked).tree.index.tensors)


@pytest.mark.parametrize("make", one_in(2, [llama, mixtral, qwen3_moe, gpt_oss]))
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_load_holds_no_more_than_predicted(make, stored, tmp_path):
    folder = saved(make(), tmp_path, stored)
    most = predicted(folder, dtype="bfloat16")
    there = measured(folder, as_accelerator=True)
    assert there <= most <= 1.1 * there + largest(folder, dtype="bfloat16")
    assert measured(folder, as_accelerator=False) <= most


def test_unpacked_experts_hold_no_more_than_predicted(tmp_path):
    folder = packed_in_mxfp4(saved(gpt_oss(), tmp_path))
    most = predicted(folder, dtype="bfloat16")
    there = measured(folder, as_accelerator=True)
    assert there <= most <= 1.1 * there + largest(folder, dtype="bfloat16", purpose=Purpose.LOAD)
    assert measured(folder, as_accelerator=False) <= most


@pytest.mark.parametrize(("make", "parts"), [(mixtral, 2 * 8 * 64 * 256 * 2), (qwen3_moe, 2 * 16 * 64 * 128 * 2)])
def test_experts_take_the_parts_of_one_layer_once_more(make, parts, tmp_path):
    folder = saved(make(), tmp_path)
    of_checkpoint, of_config = (
        read_skeleton(resolve(str(path)), dtype="bfloat16").tree for path in (folder, folder / "config.json")
    )
    assert loaded_beside(of_checkpoint, {"": GPU}) == {GPU: parts}
    # without a file, it is taken to have experts one by one, as the published ones do
    assert loaded_beside(of_config, {"": GPU}) == {GPU: parts}


def test_what_is_read_as_it_is_takes_nothing_beside(tmp_path):
    for folder in (saved(llama(), tmp_path / "llama"), saved(gpt_oss(), tmp_path / "gpt-oss")):
        assert loaded_beside(read_skeleton(resolve(str(folder))).tree, {"": GPU}) == {}


def test_a_tied_weight_that_is_stored_twice_is_held_twice_until_it_is_tied(tmp_path):
    folder = saved(llama(tie_word_embeddings=True), tmp_path)
    stored = load_file(folder / "model.safetensors")
    assert loaded_beside(read_skeleton(resolve(str(folder))).tree, {"": GPU}) == {}
    twice = {**stored, "lm_head.weight": stored["model.embed_tokens.weight"].clone()}
    save_file(twice, folder / "model.safetensors", metadata={"format": "pt"})
    assert loaded_beside(read_skeleton(resolve(str(folder))).tree, {"": GPU}) == {GPU: 256 * 64 * 2}
    assert measured(folder, as_accelerator=True) <= predicted(folder)
    # two that differ stay two: that is not for a while
    save_file({**twice, "lm_head.weight": twice["lm_head.weight"] + 1}, folder / "model.safetensors", {"format": "pt"})
    tree = read_skeleton(resolve(str(folder))).tree
    assert tree.untied == {"lm_head.weight"}
    assert loaded_beside(tree, {"": GPU}) == {}


@pytest.mark.parametrize("how", one_in(5, list(Quantize)))
def test_quantising_holds_the_plain_weight_beside_the_packed_one(how, tmp_path):
    folder = saved(llama(hidden_size=256), tmp_path)
    tree = read_skeleton(resolve(str(folder)), dtype="bfloat16", quantize=how).tree
    made = [t for t in tree.index.tensors if t.loading]
    if how is Quantize.MXFP4:
        assert not made, "it quantises gpt-oss's experts alone"
        return
    assert made
    for tensor in made:
        assert tensor.loading >= math.prod(tensor.shape) * 2


def test_quantising_to_fp8_takes_what_transformers_takes(tmp_path):
    from transformers.integrations.finegrained_fp8 import Fp8Quantize
    from transformers.quantizers.auto import AutoHfQuantizer

    folder = saved(llama(hidden_size=256), tmp_path)
    tree = read_skeleton(resolve(str(folder)), dtype="bfloat16", quantize=Quantize.FP8).tree
    weight = next(t for t in tree.index.tensors if t.name.endswith("0.mlp.gate_proj.weight"))
    quantizer = AutoHfQuantizer.from_config({"quant_method": "fp8"}, pre_quantized=False)
    found = Allocated()
    with found:
        plain = torch.ones(weight.shape, dtype=torch.bfloat16)
        Fp8Quantize(quantizer).convert({weight.name: plain})
    assert found.peak <= weight.nbytes + weight.loading <= 1.1 * found.peak
