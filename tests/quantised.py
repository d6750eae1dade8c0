"""Small quantised models, and stand-ins for the libraries that quantise them where those are not installed."""

import contextlib
import importlib.util
import json
import sys
import types
from unittest import mock

import torch
import transformers as t
import transformers.integrations.bitsandbytes
from safetensors.torch import load_file, save_file
from torch import nn

from devctl.models.files.resolve import resolve
from tests import small_models


def compressed(form, weights, activations=None, status="compressed", ignore=("lm_head",)):
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": status,
        "ignore": list(ignore),
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"symmetric": True, "dynamic": False, **weights},
                "input_activations": activations,
                "output_activations": None,
            }
        },
    }


_FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
_INT4 = {"num_bits": 4, "type": "int"}

COMPRESSED = {
    "int4 groups": compressed("pack-quantized", {**_INT4, "strategy": "group", "group_size": 32}),
    "int4 zero points": compressed(
        "pack-quantized", {**_INT4, "symmetric": False, "strategy": "group", "group_size": 32}
    ),
    "int4 channels": compressed(
        "pack-quantized", {**_INT4, "strategy": "channel"}, ignore=["re:.*down_proj", "lm_head"]
    ),
    "float8 channels": compressed(
        "float-quantized", {**_FLOAT8, "strategy": "channel"}, {**_FLOAT8, "strategy": "token", "dynamic": True}
    ),
    "float8 tensors": compressed(
        "float-quantized", {**_FLOAT8, "strategy": "tensor"}, {**_FLOAT8, "strategy": "tensor", "dynamic": False}
    ),
    "float8 blocks": compressed(
        "float-quantized",
        {**_FLOAT8, "strategy": "block", "block_structure": [16, 32]},
        {**_FLOAT8, "strategy": "group", "group_size": 32, "dynamic": True},
    ),
    "int8 channels": compressed(
        "int-quantized",
        {"num_bits": 8, "type": "int", "strategy": "channel"},
        {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
    ),
    "nvfp4": compressed(
        "nvfp4-pack-quantized",
        {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        {
            "num_bits": 4,
            "type": "float",
            "symmetric": True,
            "strategy": "tensor_group",
            "group_size": 16,
            "dynamic": "local",
        },
    ),
    "not compressed": compressed("dense", {**_FLOAT8, "strategy": "channel"}, status="frozen"),
}

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32}

MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]}

CHECKPOINTS = {
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [64, 64]},
    "fp8 by tensor": {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None},
    "fbgemm": {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]},
    "mxfp4": {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
    "bitnet": {"quant_method": "bitnet"},
    "bitnet auto": {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"},
    "eetq": {"quant_method": "eetq"},
    "metal": {"quant_method": "metal", "bits": 4, "group_size": 64},
    "higgs": {"quant_method": "higgs", "bits": 4, "group_size": 64, "hadamard_size": 64},
    "bnb 4-bit": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True},
    "bnb 8-bit": {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["lm_head", "o_proj"]},
}
"""``quantization_config`` of checkpoints that transformers' own planner can be asked about here."""


def write(folder, model, settings=None, dtype="bfloat16"):
    """Write the config of the model called ``model``, quantised as ``settings`` say; returns the folder."""
    model_class, config = small_models.WIDE[model]()
    config.architectures = [model_class.__name__]
    data = json.loads(config.to_json_string()) | {"dtype": dtype}
    if settings is not None:
        data["quantization_config"] = settings
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(data))
    return folder


def installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # its stand-in is there already
        return True


@contextlib.contextmanager
def _stands_in(**modules):
    """Puts modules in sys.modules, and takes these out again, not those that are imported meanwhile."""
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


class _Linear4bit(nn.Linear):
    def __init__(self, inputs, outputs, bias=True, *_, **__):
        super().__init__(inputs, outputs, bias)
        self.weight.requires_grad_(False)


class _Linear8bitLt(_Linear4bit):
    pass


@contextlib.contextmanager
def bitsandbytes():
    """The library, or what transformers uses of it to plan: two classes of Linear."""
    if installed("bitsandbytes"):
        yield
        return
    library = types.ModuleType("bitsandbytes")
    library.nn = types.SimpleNamespace(Linear4bit=_Linear4bit, Linear8bitLt=_Linear8bitLt)
    with (
        _stands_in(bitsandbytes=library),
        mock.patch.object(transformers.integrations.bitsandbytes, "bnb", library, create=True),
    ):
        yield


@contextlib.contextmanager
def torchao():
    """The library, or what transformers uses of it to plan: the names of its configurations."""
    if installed("torchao"):
        yield importlib.import_module("torchao.quantization")
        return
    library = types.ModuleType("torchao.quantization")
    library.FqnToConfig = type("FqnToConfig", (), {})
    library.fqn_matches_fqn_config = lambda *_: False
    for name in ("Int8WeightOnlyConfig", "Int4WeightOnlyConfig", "Float8WeightOnlyConfig"):
        setattr(library, name, type(name, (), {}))
    with (
        _stands_in(**{"torchao": types.ModuleType("torchao"), "torchao.quantization": library}),
        mock.patch.object(t.TorchAoConfig, "post_init", lambda _: None),
        mock.patch.object(t.TorchAoConfig, "to_dict", lambda _: {"quant_method": "torchao"}),
    ):
        yield library


def on_the_fly(name):
    """transformers' configuration for a value of ``--quantize``, made as its user would."""
    with torchao() as ao:
        made = {
            "int8": lambda: t.BitsAndBytesConfig(load_in_8bit=True),
            "nf4": lambda: t.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
            "fp4": lambda: t.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
            "fp8": t.FineGrainedFP8Config,
            "mxfp4": t.Mxfp4Config,
            "fbgemm-fp8": t.FbgemmFp8Config,
            "eetq-int8": t.EetqConfig,
            "torchao-int8": lambda: t.TorchAoConfig(ao.Int8WeightOnlyConfig()),
            "torchao-int4": lambda: t.TorchAoConfig(ao.Int4WeightOnlyConfig()),
            "torchao-float8": lambda: t.TorchAoConfig(ao.Float8WeightOnlyConfig()),
            "quanto-int8": lambda: t.QuantoConfig("int8"),
            "quanto-int4": lambda: t.QuantoConfig("int4"),
            "quanto-int2": lambda: t.QuantoConfig("int2"),
            "quanto-float8": lambda: t.QuantoConfig("float8"),
        }
        return made[name]()


PLAIN = ("embed", "lm_head", "norm", "router", ".gate.")
"""Parts of the names of what stays as it is."""


def packed(folder, name, settings, dtype):
    """A checkpoint of the wide model called ``name``, as the method packs it; its numbers are of no interest."""
    model_class, config = small_models.WIDE[name]()
    torch.manual_seed(0)
    model_class(config).to(getattr(torch, dtype)).save_pretrained(folder)
    plain, made = load_file(folder / "model.safetensors"), {}
    for key, value in plain.items():
        if settings["quant_method"] == "mxfp4" and key.endswith("_proj"):
            experts, inputs, outputs = value.shape
            made[f"{key}_blocks"] = torch.zeros(experts, outputs, inputs // 32, 16, dtype=torch.uint8)
            made[f"{key}_scales"] = torch.full((experts, outputs, inputs // 32), 127, dtype=torch.uint8)
        elif settings["quant_method"] == "fp8" and value.dim() == 2 and not any(part in key for part in PLAIN):
            block = settings["weight_block_size"]
            shape = () if block is None else tuple(-(-n // b) for n, b in zip(value.shape, block, strict=True))
            made[key] = value.to(torch.float8_e4m3fn)
            made[f"{key}_scale_inv"] = torch.ones(shape)
        else:
            made[key] = value
    assert made.keys() != plain.keys()
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return resolve(str(folder))
