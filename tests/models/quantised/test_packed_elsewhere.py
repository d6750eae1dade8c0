"""Checkpoints that transformers can't load, or whose method is not counted: their size all the same, and a note."""

import json

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from devctl.errors import ModelError
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import Purpose, read_skeleton
from devctl.models.tree import sizes
from tests import small_models
from tests.marks import one_in

FP8 = torch.float8_e4m3fn


def read(path, **options):
    return read_skeleton(resolve(str(path)), **options).tree


def saved(folder, model=None):
    """A small Llama in bfloat16, in sizes that pack evenly, or ``model``."""
    if model is None:
        model = t.LlamaForCausalLM(
            t.LlamaConfig(
                vocab_size=64,
                hidden_size=64,
                intermediate_size=128,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
            )
        )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def moe(folder):
    return saved(
        folder,
        t.Qwen3MoeForCausalLM(
            t.Qwen3MoeConfig(
                vocab_size=64,
                hidden_size=64,
                intermediate_size=128,
                moe_intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                num_experts=4,
                num_experts_per_tok=2,
            )
        ),
    )


def one():
    return torch.ones(())


def nvfp4(weight):
    rows, columns = weight.shape
    return {
        "weight": torch.zeros(rows, columns // 2, dtype=torch.uint8),
        "weight_scale": torch.zeros(rows, columns // 16).to(FP8),
        "weight_scale_2": one(),
        "input_scale": one(),
    }


def fp8(weight):
    return {"weight": torch.zeros(weight.shape).to(FP8), "weight_scale": one(), "input_scale": one()}


def fp8_blocks(weight):
    rows, columns = (-(-n // 128) for n in weight.shape)
    return {"weight": torch.zeros(weight.shape).to(FP8), "weight_scale": torch.ones(rows, columns)}


def fp8_rows(weight):
    return {"weight": torch.zeros(weight.shape).to(FP8), "weight_scale": torch.ones(weight.shape[0], 1)}


def mxfp4(weight):
    rows, columns = weight.shape
    return {
        "weight": torch.zeros(rows, columns // 2, dtype=torch.uint8),
        "weight_scale": torch.zeros(rows, columns // 32, dtype=torch.uint8),
    }


def awq(weight):
    rows, columns = weight.shape
    return {
        "weight": torch.zeros(rows // 2, columns, dtype=torch.uint8),
        "weight_scale": torch.zeros(rows, columns // 32, dtype=torch.bfloat16),
        "pre_quant_scale": torch.zeros(columns, dtype=torch.bfloat16),
    }


ALGORITHMS = {
    "NVFP4": nvfp4,
    "FP8": fp8,
    "FP8_PB_WO": fp8_blocks,
    "FP8_PER_CHANNEL_PER_TOKEN": fp8_rows,
    "MXFP4": mxfp4,
    "W4A16_AWQ": awq,
}


def pack(folder, how, excluded=(), under="model.layers"):
    """Rewrite the Linears of the blocks of a checkpoint as ``how`` packs them; returns the bytes in its file."""
    tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        linear = name.startswith(under) and value.dim() == 2 and "norm" not in name
        if linear and module not in excluded and not module.endswith("mlp.gate"):
            tensors |= {f"{module}.{key}": tensor for key, tensor in how(value).items()}
        else:
            tensors[name] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def beside(folder, algorithm, **more):
    quantization = {"quant_algo": algorithm, "exclude_modules": ["lm_head"], "kv_cache_quant_algo": None, **more}
    text = json.dumps({"producer": {"name": "modelopt", "version": "0.33.0"}, "quantization": quantization})
    (folder / "hf_quant_config.json").write_text(text)


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_buffers(tree):
    """Bytes of what a checkpoint has: buffers that are not saved are the model's own."""
    return sizes(tree)[""] - sum(tensor.nbytes for tensor in tree.index.tensors if not tensor.persistent)


# ModelOpt


@pytest.mark.parametrize("algorithm", one_in(2, ALGORITHMS))
@pytest.mark.parametrize("of", ["dense", "experts"])
def test_modelopts_packed_weights_are_counted(tmp_path, algorithm, of):
    folder = saved(tmp_path) if of == "dense" else moe(tmp_path)
    there = pack(folder, ALGORITHMS[algorithm])
    beside(folder, algorithm, group_size={"NVFP4": 16, "W4A16_AWQ": 32}.get(algorithm))
    tree = read(folder)
    if of == "experts":  # the router is no Linear in transformers, and is left out by name elsewhere
        assert any(
            "experts" in tensor.name and tensor.dtype in ("uint8", "float8_e4m3fn") for tensor in tree.index.tensors
        )
    assert without_buffers(tree) == there
    assert tree.quantisation == f"modelopt {algorithm.lower()}"
    assert not [note for note in tree.notes if "the checkpoint holds" in note]
    assert f"transformers {t.__version__} does not load modelopt {algorithm.lower()} weights" in tree.notes[0]
    assert sizes(read(folder / "config.json"))[""] == sizes(tree)[""]


def test_excluded_modules_stay_as_they_are(tmp_path):
    folder = saved(tmp_path)
    kept = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(3) for name in "qkvo"]
    kept += [f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")]
    there = pack(folder, nvfp4, kept)
    beside(folder, "NVFP4", exclude_modules=["lm_head", "*.self_attn*", "model.layers.1.mlp"])
    assert without_buffers(read(folder)) == there


def test_names_of_the_checkpoint_are_those_that_are_excluded(tmp_path):
    """NemotronH's checkpoints say ``backbone``, and transformers ``model``."""
    config = {
        "model_type": "nemotron_h",
        "architectures": ["NemotronHForCausalLM"],
        "dtype": "bfloat16",
        "hidden_size": 64,
        "intermediate_size": 64,
        "vocab_size": 64,
        "num_hidden_layers": 2,
        "hybrid_override_pattern": "*-",
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    beside(tmp_path, "FP8")
    all_packed = sizes(read(tmp_path))[""]
    beside(tmp_path, "FP8", exclude_modules=["lm_head", "backbone.layers.0.mixer.q_proj"])
    assert sizes(read(tmp_path))[""] - all_packed == 64 * 64 - 8


def test_a_mixed_model_has_each_layer_in_its_own(tmp_path):
    folder = saved(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    layers = {}
    for name in sorted(tensors):
        module = name.removesuffix(".weight")
        how = "NVFP4" if ".mlp." in name else "FP8" if ".q_proj" in name else None
        if how is not None:
            layers[module] = {"quant_algo": how, "group_size": 16}
            packed = ALGORITHMS[how](tensors.pop(name))
            tensors |= {f"{module}.{key}": tensor for key, tensor in packed.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    beside(folder, "MIXED_PRECISION", quantized_layers=layers)
    there = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert without_buffers(read(folder)) == there


IN_CONFIG = {
    "quant_method": {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"], "producer": {}},
    "nested": {"quant_method": "modelopt", "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}},
    "another name": {"quant_method": "modelopt_fp4", "quant_algo": "NVFP4", "ignore": ["lm_head"]},
    "the producer alone": {"producer": {"name": "modelopt"}, "quant_algo": "NVFP4", "ignore": ["lm_head"]},
    "bits alone": {
        "quant_method": "modelopt",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16}}},
    },
}


@pytest.mark.parametrize("settings", IN_CONFIG.values(), ids=IN_CONFIG)
def test_a_config_may_say_it_itself(tmp_path, settings):
    folder = saved(tmp_path)
    there = pack(folder, nvfp4)
    configure(folder, quantization_config=settings)
    tree = read(folder)
    assert (without_buffers(tree), tree.quantisation) == (there, "modelopt nvfp4")


def test_the_kv_cache_is_told(tmp_path):
    beside(saved(tmp_path), "NVFP4", kv_cache_quant_algo="FP8")
    assert (
        "the checkpoint is made for a KV cache in fp8: --kv-dtype counts with one"
        in read(tmp_path / "config.json").notes
    )


def test_an_algorithm_that_is_not_known_is_read_off_the_files(tmp_path):
    folder = saved(tmp_path)
    there = pack(folder, nvfp4)
    beside(folder, "NVFP3_OF_TOMORROW")
    tree = read(folder)
    assert without_buffers(tree) == there
    assert "sizes of what is quantised are those of the checkpoint's files" in tree.notes
    note = read(folder / "config.json").notes[-1]
    assert note.startswith(
        "the checkpoint's quantisation (modelopt) is not counted, devctl does not know ModelOpt's NVFP3_"
    )
    assert note.endswith("sizes are those of bfloat16, which may be 2 to 8 times what the packed weights take")


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"quantization": 3}', "\udcff"])
def test_a_file_that_says_nothing_is_noted(tmp_path, text):
    (saved(tmp_path) / "hf_quant_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    (note,) = read(tmp_path / "config.json").notes
    assert note.startswith("hf_quant_config.json ")


def test_a_plain_checkpoint_is_what_it_is_whatever_the_file_says(tmp_path):
    folder = saved(tmp_path)
    before = read(folder)
    beside(folder, "NVFP4")
    assert read(folder) == before


@pytest.mark.parametrize("algorithm", ["FP8", "NVFP4"])
def test_load_refuses_what_transformers_would_take_for_plain(devctl, tmp_path, algorithm):
    folder = saved(tmp_path)
    pack(folder, ALGORITHMS[algorithm])
    beside(folder, algorithm)
    done = devctl("load", folder, "--map", "cpu")
    assert done.code == 4
    assert f"does not load modelopt {algorithm.lower()} weights: it would take them for plain ones" in done.err
    with pytest.raises(ModelError):
        read(folder, purpose=Purpose.LOAD)
    assert devctl("load", folder, "--map", "cpu", "--load-format", "dummy").code == 0


# methods that are not counted


def hqq(weight):
    return {
        "W_q": torch.zeros(weight.numel() // 2, dtype=torch.uint8),
        "scale": torch.zeros(weight.shape[0], 2),
        "group": one(),
    }


def mlx(weight):
    rows, columns = weight.shape
    return {
        "weight": torch.zeros(rows, columns // 8, dtype=torch.int32).view(torch.uint32),
        "scales": torch.zeros(rows, columns // 32, dtype=torch.bfloat16),
        "biases": torch.zeros(rows, columns // 32, dtype=torch.bfloat16),
    }


def exl3(weight):
    return {
        "trellis": torch.zeros(weight.numel() * 3 // 16, dtype=torch.int16),
        "suh": torch.zeros(weight.shape[1]).half(),
    }


UNCOUNTED = {
    "hqq": ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}, hqq, "4"),
    "quark": ({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}}, fp8, "2"),
    "aqlm": ({"quant_method": "aqlm", "nbits_per_codebook": 16, "num_codebooks": 1, "in_group_size": 8}, hqq, "8"),
    "vptq": ({"quant_method": "vptq", "config_for_layers": {}}, exl3, None),
    "spqr": ({"quant_method": "spqr", "bits": 3, "beta1": 16, "beta2": 16}, hqq, "5.33"),
    "exl2": ({"quant_method": "exl2", "bits": 5.0}, exl3, "3.2"),
    "exl3": ({"quant_method": "exl3", "bits": 3.0}, exl3, "5.33"),
    "unnamed": ({"group_size": 32, "bits": 4}, mlx, "4"),
    "torchao of no size": (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "IntxWeightOnlyConfig"}}},
        hqq,
        None,
    ),
}


@pytest.mark.parametrize(("settings", "how", "times"), one_in(4, UNCOUNTED.values()), ids=UNCOUNTED)
def test_the_files_bytes_are_the_size_and_without_them_a_note_says_how_far_off_it_may_be(
    tmp_path, settings, how, times
):
    folder = saved(tmp_path)
    there = pack(folder, how)
    configure(folder, quantization_config=settings)
    tree = read(folder)
    assert without_buffers(tree) == there
    assert "sizes of what is quantised are those of the checkpoint's files" in tree.notes
    assert not [note for note in tree.notes if "the checkpoint holds" in note]
    bare = read(folder / "config.json")
    (note,) = (n for n in bare.notes if "is not counted" in n)
    if times is None:
        assert note.endswith("sizes are those of bfloat16, which may be 2 to 8 times what the packed weights take")
    else:
        assert f"sizes are those of bfloat16, up to {times} times what weights of " in note


def test_mlx_says_it_under_a_name_of_its_own(tmp_path):
    folder = saved(tmp_path)
    there = pack(folder, mlx)
    configure(folder, quantization={"group_size": 32, "bits": 4})
    tree = read(folder)
    assert (without_buffers(tree), tree.quantisation) == (there, "mlx")
    assert "does not load mlx weights" in tree.notes[0]


def test_experts_in_files_of_their_own_are_counted_where_the_model_fuses_them(tmp_path):
    folder = moe(tmp_path)
    there = pack(folder, mlx)
    configure(folder, quantization={"group_size": 32, "bits": 4})
    assert without_buffers(read(folder)) == there


def test_layers_that_the_model_does_not_build_do_not_count(tmp_path):
    folder = saved(tmp_path)
    there = pack(folder, hqq)
    configure(folder, quantization_config=UNCOUNTED["hqq"][0])
    tensors = load_file(folder / "model.safetensors")
    extra = {f"model.layers.3.{name}": torch.zeros(64, 64, dtype=torch.uint8) for name in ("mlp.up.W_q", "eh_proj.W_q")}
    save_file(tensors | extra, folder / "model.safetensors", metadata={"format": "pt"})
    tree = read(folder)
    assert without_buffers(tree) == there


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        ("int4_weight_only", 4),
        ("int8_weight_only", 8),
        ("float8_dynamic_activation_float8_weight", 8),
        ("int8_dynamic_activation_int4_weight", 8),  # four bits in an int8 each
    ],
)
def test_torchaos_strings_are_counted_by_their_bits_and_refused_by_transformers(tmp_path, kind, bits):
    folder = saved(tmp_path)
    configure(folder, quantization_config={"quant_method": "torchao", "quant_type": kind})
    tree = read(folder / "config.json")
    linears = [t for t in tree.index.tensors if t.dtype in ("int8", "uint8")]
    assert linears
    assert all(t.nbytes * 8 == t.shape[0] * t.shape[1] * bits for t in linears)
    assert f"no longer reads torchao's '{kind}': a quant_type that is a string is refused" in tree.notes[0]


HOSTILE = {
    "no list of names": {"quant_algo": "NVFP4", "exclude_modules": "lm_head"},
    "names that are none": {"quant_algo": "NVFP4", "exclude_modules": [None, 3, ["a"], "[", "*", "re:("]},
    "layers that are none": {"quant_algo": "MIXED_PRECISION", "quantized_layers": [1]},
    "a layer that is none": {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"model.layers.0.mlp.up_proj": 3}},
    "an algorithm that is a list": {"quant_algo": ["NVFP4"]},
    "an algorithm that is a number": {"quant_algo": 4},
    "a group that is text": {"quant_algo": "NVFP4", "group_size": "16"},
    "a group of less than none": {"quant_algo": "NVFP4", "group_size": -1},
    "a group beyond all": {"quant_algo": "NVFP4", "group_size": 2**60},
    "a cache that is a list": {"quant_algo": "FP8", "kv_cache_quant_algo": [1]},
    "bits that are a list": {"quant_algo": None, "config_groups": {"g": {"weights": {"num_bits": [8]}}}},
    "groups that are none": {"quant_algo": None, "config_groups": [1]},
}


@pytest.mark.parametrize("settings", one_in(3, HOSTILE.values()), ids=HOSTILE)
@pytest.mark.parametrize("where", ["file", "config"])
def test_settings_that_are_none_are_counted_or_noted(tmp_path, settings, where):
    folder = saved(tmp_path)
    if where == "file":
        beside(folder, settings["quant_algo"], **{k: v for k, v in settings.items() if k != "quant_algo"})
    else:
        configure(folder, quantization_config={"quant_method": "modelopt", **settings})
    tree = read(folder / "config.json")
    assert sizes(tree)[""] > 0
    assert tree.notes or not settings["quant_algo"]


def test_gptqs_rules_for_single_modules_are_told(tmp_path):
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"+:.*down.*": {"bits": 8}}}
    configure(saved(tmp_path), quantization_config=settings)
    assert 'gptq\'s rules for single modules ("dynamic") are not counted' in read(tmp_path / "config.json").notes[0]


def test_nothing_is_off_where_nothing_is_quantised(tmp_path):
    tree = read(small_models.save("llama", tmp_path))
    assert (tree.quantisation, tree.notes) == (None, ())
