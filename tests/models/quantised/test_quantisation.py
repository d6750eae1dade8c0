"""Bytes of quantised models, what is said of them, and what can't be counted."""

import json
import math

import pytest
import torch
import transformers

from devctl.errors import UsageError
from devctl.models.files.resolve import resolve
from devctl.models.quantised.methods import METHODS
from devctl.models.quantised.quantise import ON_THE_FLY, Quantize
from devctl.models.skeleton import Purpose, read_skeleton
from devctl.models.tree import sizes, tensors
from tests import quantised, small_models
from tests.conftest import CONFIGS
from tests.marks import one_in
from tests.upstream import any_environment

GIB = 2**30


def read(folder, model="llama", settings=None, **options):
    return read_skeleton(resolve(str(quantised.write(folder, model, settings))), **options)


def real(folder, name, settings, **options):
    """One of the real configs, quantised as its checkpoint on the hub is."""
    config = json.loads((CONFIGS / name / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    return read_skeleton(resolve(str(folder)), **options).tree


def by_name(tree, part="q_proj"):
    first = f"model.layers.0.self_attn.{part}."
    return {
        t.name.removeprefix(first): (t.nbytes, t.shape, t.dtype) for t in tensors(tree.root) if t.name.startswith(first)
    }


# sizes that are published


def test_gpt_oss_120b(tmp_path):
    """60.8 GiB on the hub, 3.34 of them scales that transformers plans without."""
    tree = real(tmp_path, "gpt-oss-120b", quantised.MXFP4)
    scales = 36 * 128 * 3 * 2880 * 2880 // 32
    biases_are_wider = 36 * 128 * 3 * 2880 * 2
    rotary = sum(t.nbytes for t in tensors(tree.root) if not t.persistent)
    assert sizes(tree)[""] + scales - biases_are_wider - rotary == 65_248_815_744
    assert tree.notes == (
        "mxfp4 weights need a GPU of compute capability 7.5 with triton and kernels; elsewhere transformers unpacks "
        "them to bfloat16: 218 GiB in all",
        "mxfp4 weights hold 3.34 GiB more once loaded than transformers plans with: 60.8 GiB in all",
    )


def test_deepseek_v3(tmp_path):
    """688.6 GB on the hub: another layer, embeddings and head are those of its multi-token prediction."""
    tree = real(tmp_path, "deepseek-v3", quantised.FP8)
    size = sizes(tree)
    prediction = size["model.layers.60"] + 2 * size["model.embed_tokens"] + 2 * 7168 * 7168
    assert size[""] + prediction == pytest.approx(688.6e9, rel=0.001)
    assert size[""] == pytest.approx(673.2e9, rel=0.001)


@pytest.mark.parametrize(("method", "gigabytes"), [("awq", 5.73), ("gptq", 5.74)])
def test_llama_of_4_bits(tmp_path, method, gigabytes):
    tree = real(tmp_path, "llama-3.1-8b", {"quant_method": method, "bits": 4, "group_size": 128})
    assert sizes(tree)[""] / 1e9 == pytest.approx(gigabytes, abs=0.01)


# tensors, name by name: those that the libraries make of a Linear of 128 by 128 with a bias


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            quantised.GPTQ,
            {
                "qweight": (8192, (16, 128), "int32"),
                "qzeros": (256, (4, 16), "int32"),
                "scales": (1024, (4, 128), "float16"),
                "g_idx": (512, (128,), "int32"),
                "bias": (256, (128,), "float16"),
            },
        ),
        (
            quantised.GPTQ | {"bits": 8, "group_size": -1},
            {
                "qweight": (16384, (32, 128), "int32"),
                "qzeros": (128, (1, 32), "int32"),
                "scales": (256, (1, 128), "float16"),
                "g_idx": (512, (128,), "int32"),
                "bias": (256, (128,), "float16"),
            },
        ),
        (
            quantised.AWQ,
            {
                "qweight": (8192, (128, 16), "int32"),
                "qzeros": (256, (4, 16), "int32"),
                "scales": (1024, (4, 128), "float16"),
                "bias": (256, (128,), "float16"),
            },
        ),
        (
            {"quant_method": "auto-round", "bits": 4, "group_size": 64, "packing_format": "auto_round:auto_awq"},
            {
                "qweight": (8192, (128, 16), "int32"),
                "qzeros": (128, (2, 16), "int32"),
                "scales": (512, (2, 128), "float16"),
                "bias": (256, (128,), "float16"),
            },
        ),
        (
            {"quant_method": "quanto", "weights": "int4"},
            {
                "weight": (8192, (128, 128), "uint8"),
                "bias": (256, (128,), "bfloat16"),
                "input_scale": (2, (), "bfloat16"),
                "output_scale": (2, (), "bfloat16"),
            },
        ),
        (
            quantised.COMPRESSED["int4 groups"],
            {
                "weight_packed": (8192, (128, 16), "int32"),
                "weight_shape": (16, (2,), "int64"),
                "weight_scale": (1024, (128, 4), "bfloat16"),
                "bias": (256, (128,), "bfloat16"),
            },
        ),
        (
            quantised.COMPRESSED["int4 zero points"],
            {
                "weight_packed": (8192, (128, 16), "int32"),
                "weight_shape": (16, (2,), "int64"),
                "weight_scale": (1024, (128, 4), "bfloat16"),
                "weight_zero_point": (512, (128, 4), "int8"),
                "bias": (256, (128,), "bfloat16"),
            },
        ),
        (
            quantised.COMPRESSED["float8 tensors"],
            {
                "weight": (16384, (128, 128), "float8_e4m3fn"),
                "weight_scale": (2, (1,), "bfloat16"),
                "input_scale": (2, (1,), "bfloat16"),
                "bias": (256, (128,), "bfloat16"),
            },
        ),
        (
            quantised.COMPRESSED["float8 blocks"],
            {
                "weight": (16384, (128, 128), "float8_e4m3fn"),
                "weight_scale": (64, (8, 4), "bfloat16"),
                "bias": (256, (128,), "bfloat16"),
            },
        ),
        (
            quantised.COMPRESSED["nvfp4"],
            {
                "weight_packed": (8192, (128, 64), "uint8"),
                "weight_scale": (1024, (128, 8), "float8_e4m3fn"),
                "weight_global_scale": (4, (1,), "float32"),
                "input_global_scale": (4, (1,), "float32"),
                "bias": (256, (128,), "bfloat16"),
            },
        ),
    ],
)
def test_tensors_of_a_linear(tmp_path, settings, expected):
    assert by_name(read(tmp_path, settings=settings).tree) == expected


@pytest.mark.parametrize("settings", [quantised.GPTQ, quantised.AWQ, quantised.COMPRESSED["int8 channels"]])
def test_the_head_and_the_embeddings_are_left_out(tmp_path, settings):
    tree = read(tmp_path, settings=settings).tree
    plain = read(tmp_path / "plain").tree
    assert sizes(tree)["lm_head"] == sizes(plain)["lm_head"]
    assert sizes(tree)["model.embed_tokens"] == sizes(plain)["model.embed_tokens"]
    assert sizes(tree)["model.layers"] < sizes(plain)["model.layers"]


def test_gptq_of_some_modules(tmp_path):
    settings = quantised.GPTQ | {"modules_in_block_to_quantize": [["self_attn.k_proj"], ["mlp.up_proj"]]}
    tree = read(tmp_path, settings=settings).tree
    assert "qweight" in by_name(tree, "k_proj")
    assert "weight" in by_name(tree, "q_proj")


def test_auto_round_of_some_modules(tmp_path):
    kept = {"model.layers.0.self_attn.q_proj": {"bits": 16}}
    tree = read(tmp_path, settings={"quant_method": "auto-round", "bits": 4, "extra_config": kept}).tree
    assert "weight" in by_name(tree, "q_proj")
    assert "qweight" in by_name(tree, "k_proj")
    assert tree.notes == ("auto-round's own rules for single modules are counted only where its config has them",)


def test_the_settings_of_a_text_model_count(tmp_path):
    """As in Llava: the config of the whole has none."""
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=64),
        vision_config={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
    )
    config.architectures = ["LlavaForConditionalGeneration"]
    data = json.loads(config.to_json_string())
    data["text_config"]["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(data))
    assert read_skeleton(resolve(str(tmp_path))).tree.quantisation == "fp8"


# what is said


@pytest.mark.parametrize("quantize", one_in(5, Quantize))
def test_what_each_value_stands_for(quantize, tmp_path):
    tree = read(tmp_path, "gpt-oss" if quantize is Quantize.MXFP4 else "llama", quantize=quantize).tree
    assert tree.quantisation == quantize
    assert tree.notes[0] == f"--quantize {quantize} stands for {ON_THE_FLY[quantize].written}"
    assert tree.budget_share == (0.9 if quantize.startswith(("int8", "nf4", "fp4", "torchao", "quanto")) else 1.0)
    plain = read(tmp_path / "plain", "gpt-oss" if quantize is Quantize.MXFP4 else "llama").tree
    if quantize is not Quantize.EETQ_INT8:  # transformers plans it in bfloat16
        assert sizes(tree)[""] < sizes(plain)[""]


@pytest.mark.parametrize("quantize", sorted(set(Quantize) - {name for name in Quantize if "-" in name}))
def test_what_is_written_is_python(quantize):
    """The configuration that the note tells of is the one that is planned."""
    written = ON_THE_FLY[quantize].written.partition(", with")[0]
    name = written.partition("(")[0]
    config = eval(written, {name: getattr(transformers, name)})  # noqa: S307 - our own text
    expected = ON_THE_FLY[quantize].settings
    assert {key: value for key, value in config.to_dict().items() if key in expected} == expected


def test_nf4_holds_more_than_is_planned(tmp_path):
    tree = read(tmp_path, quantize=Quantize.NF4).tree
    linears = [t for t in tensors(tree.root) if t.dtype == "uint8"]
    assert len(linears) == 4 * 7
    extra = sum(4 * math.ceil(2 * t.nbytes / 64) + 64 for t in linears)
    total = sizes(tree)[""]
    assert tree.index.held[""] == total + extra
    kib = f"{extra / 1024:.1f} KiB"
    assert tree.notes[1:] == (
        f"nf4 weights hold {kib} more once loaded than transformers plans with: "
        f"{(total + extra) / 1024:.0f} KiB in all",
        "transformers plans with 90% of every budget for nf4 weights",
    )


@pytest.mark.parametrize(
    ("double", "wide", "narrow"),
    [
        # of a Linear: a table of 16 float32, and a float32 for each block of 64 weights
        (False, 4 * (7 * 64 + 4 * (256 + 128 + 128 + 256 + 3 * 512)), 7 * 64 + 4 * (4 * 1 + 3 * 2)),
        # … or a byte for each, a float32 for each 256 blocks, a table of 256 float32 and an offset
        (
            True,
            4 * (7 * (64 + 1024 + 4) + (256 + 128 + 128 + 256 + 3 * 512) + 4 * (1 + 1 + 1 + 1 + 3 * 2)),
            7 * (64 + 1024 + 4) + (4 * 1 + 3 * 2) + 4 * 7,
        ),
    ],
    ids=["once", "twice"],
)
def test_what_bitsandbytes_keeps_beside_4_bits(double, wide, narrow):
    """The queries of the wide model have 128 × 128 weights, 256 blocks; of the narrow one 8 × 8, and a layer 8 × 10."""
    settings = {"load_in_4bit": True, "bnb_4bit_use_double_quant": double}
    small = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=10, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    for config, hidden in ((small_models.WIDE["llama"]()[1], wide), (small, narrow)):
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config)
        counting = METHODS["bitsandbytes_4bit"](model, settings, torch.bfloat16)
        assert len(counting.planned) == 7 * config.num_hidden_layers
        assert counting.all_hidden == hidden


def test_eetq_holds_less_than_is_planned(tmp_path):
    tree = read(tmp_path, quantize=Quantize.EETQ_INT8).tree
    assert " less once loaded than transformers plans with" in tree.notes[1]
    assert tree.index.held[""] < sizes(tree)[""]


def test_nothing_to_quantise(tmp_path):
    tree = read(tmp_path, quantize=Quantize.MXFP4).tree
    assert tree.notes[1] == "LlamaForCausalLM has no module that mxfp4 quantises: its size is as without"


def test_compressed_tensors_unpack(tmp_path):
    tree = read(tmp_path, settings=quantised.COMPRESSED["float8 tensors"]).tree
    assert tree.notes[0].startswith("compressed-tensors unpacks the weights at the first forward: ")
    # they are held with two bytes a weight then, and no scales
    linears = [t for t in tensors(tree.root) if t.name.endswith(".weight") and t.dtype == "float8_e4m3fn"]
    scales = [t for t in tensors(tree.root) if "_scale" in t.name]
    assert linears
    assert tree.index.held[""] == sizes(tree)[""] + sum(t.nbytes for t in linears) - sum(t.nbytes for t in scales)


def test_a_dtype_that_the_method_decides(tmp_path):
    folder = quantised.write(tmp_path, "llama", quantised.CHECKPOINTS["fbgemm"], dtype="float16")
    tree = read_skeleton(resolve(str(folder))).tree
    assert tree.dtype == "bfloat16"
    assert tree.notes[0] == "fbgemm_fp8 models are built in bfloat16 only"


# what can't be counted


@pytest.mark.parametrize(
    ("settings", "said"),
    one_in(
        5,
        [
            ({"quant_method": "aqlm"}, "(aqlm) is not counted, devctl can't count aqlm"),
            ({"quant_method": "no-such"}, "(no-such) is not counted, devctl can't count no-such"),
            ({"bits": 4}, "(unnamed) is not counted, devctl can't count a method without a name"),
            ({"quant_method": 5}, "(5) is not counted"),
            (quantised.GPTQ | {"bits": "four"}, "its bits or group_size is no number"),
            ({"quant_method": "fp8", "weight_block_size": [1, 2, 3]}, "weight_block_size must be a tuple"),
            ({"quant_method": "quanto", "weights": "int3"}, "quanto has no weights 'int3'"),
            (
                {"quant_method": "torchao", "quant_type": {"default": {"_type": "FqnToConfig"}}},
                "FqnToConfig says no one size",
            ),
            ({"quant_method": "torchao"}, "torchao's quant_type says no one size"),
            (quantised.compressed("marlin-24", {"num_bits": 4}), "format 'marlin-24' of 4 bits"),
            (quantised.compressed("int-quantized", {"num_bits": 8, "strategy": "odd"}), "strategy 'odd'"),
            (quantised.compressed("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": 0}), "Error"),
            ({"quant_method": "compressed-tensors", "config_groups": 5}, "AttributeError"),
        ],
    ),
)
def test_settings_that_are_not_counted(tmp_path, settings, said):
    tree = read(tmp_path, settings=settings).tree
    plain = read(tmp_path / "plain").tree
    assert sizes(tree) == sizes(plain)
    assert (tree.quantisation, tree.budget_share) == (None, 1.0)
    *others, note = tree.notes
    assert note.startswith("the checkpoint's quantisation (")
    assert said in note
    assert ": sizes are those of bfloat16, " in note
    assert note.endswith((" times what the packed weights take", " bits take"))
    assert all("transformers" in other for other in others)


def test_gptq_without_known_blocks(tmp_path):
    (note,) = read(tmp_path, "t5", quantised.GPTQ).tree.notes
    assert "T5ForConditionalGeneration has no blocks of a known name" in note


def test_what_can_not_be_quantised_on_the_fly(tmp_path):
    (note,) = read(tmp_path, "gpt-oss", quantize=Quantize.FP8).tree.notes
    assert note.startswith("--quantize fp8 is not counted, FP8Experts does not support bias")


def test_a_checkpoint_that_is_quantised_already(tmp_path):
    with pytest.raises(UsageError, match=r"is quantised already \(gptq\): leave out --quantize"):
        read(tmp_path, settings=quantised.GPTQ, quantize=Quantize.NF4)


# as it is loaded here


@pytest.mark.parametrize("purpose", [Purpose.LOAD, Purpose.RANDOM])
@pytest.mark.parametrize("settings", [quantised.GPTQ, quantised.FP8, quantised.MXFP4])
def test_what_is_not_loaded_quantised_here(tmp_path, settings, purpose):
    tree = read(tmp_path, settings=settings, purpose=purpose).tree
    assert sizes(tree) == sizes(read(tmp_path / "plain").tree)
    method = settings["quant_method"]
    assert tree.notes == (
        f"the checkpoint's quantisation ({method}) is not counted, it is not loaded quantised here: sizes are those of "
        "bfloat16",
    )


def test_what_is_loaded_quantised_here(tmp_path):
    with any_environment():
        tree = read(tmp_path, settings=quantised.FP8, purpose=Purpose.LOAD).tree
    assert tree.quantisation == "fp8"


def test_reading_leaves_transformers_as_it_was(tmp_path):
    from transformers.integrations import fbgemm_fp8, hub_kernels

    before = hub_kernels.get_kernel, fbgemm_fp8.get_quantize_fp8_per_row
    read(tmp_path, settings=quantised.CHECKPOINTS["eetq"])
    assert (hub_kernels.get_kernel, fbgemm_fp8.get_quantize_fp8_per_row) == before
