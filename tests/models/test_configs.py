"""What transformers reads in a config is what is planned: its dtypes, its parts, and code that comes with it."""

import json

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from devctl.errors import ModelError
from devctl.models.files.resolve import resolve
from devctl.models.own_code import ExitedError, contained
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes
from tests import own_code, small_models
from tests.own_code import CODE

INDEX = "model.safetensors.index.json"


def read(path, **options):
    return read_skeleton(resolve(str(path)), **options)


def multimodal(folder, **changes):
    """A small Qwen3-VL, whose config names no dtype for the whole; ``changes`` go into its JSON."""
    config = t.Qwen3VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "deepstack_visual_indexes": [],
            "num_position_embeddings": 16,
        },
    )
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(folder)
    path = folder / "config.json"
    data = json.loads(path.read_text())
    for part in (data, data["text_config"], data["vision_config"]):
        part.pop("dtype", None)
    for key, value in changes.items():
        if key in ("text_config", "vision_config"):
            data[key] |= value
        else:
            data[key] = value
    path.write_text(json.dumps(data))
    return path


# dtypes


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_dtype_of_the_text_alone_is_that_of_a_config_alone(tmp_path, key):
    tree = read(multimodal(tmp_path, text_config={key: "bfloat16"})).tree
    assert tree.dtype == "bfloat16"
    assert tree.notes == (
        "the config names a dtype only for its text_config, and no checkpoint is at hand: planned in bfloat16",
    )


def test_the_texts_dtype_comes_before_that_of_another_part(tmp_path):
    path = multimodal(tmp_path, text_config={"dtype": "bfloat16"}, vision_config={"dtype": "float32"})
    assert read(path).tree.dtype == "bfloat16"
    assert read(multimodal(tmp_path, vision_config={"dtype": "float16"})).tree.dtype == "float16"


def test_the_checkpoints_dtype_comes_before_that_of_a_part(tmp_path):
    multimodal(tmp_path, text_config={"dtype": "bfloat16"})
    config = t.AutoConfig.from_pretrained(tmp_path)
    save_file(
        {name: value.half() for name, value in t.Qwen3VLForConditionalGeneration(config).state_dict().items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    loaded = t.AutoModelForImageTextToText.from_pretrained(tmp_path)
    tree = read(tmp_path).tree
    assert (loaded.dtype, tree.dtype) == (torch.float16, "float16")
    held = {p.data_ptr(): p.numel() * p.element_size() for p in loaded.parameters()}
    assert sum(t.nbytes for t in tree.index.tensors if t.kind == "parameter" and not t.same_as) == sum(held.values())


@pytest.mark.parametrize(
    ("dtype", "built"),
    [
        ({"text_config": "bfloat16", "vision_config": "float16"}, "float32"),
        ({"": "bfloat16", "vision_config": "float16"}, "bfloat16"),
    ],
)
def test_a_dtype_for_each_part_is_that_of_the_whole(tmp_path, dtype, built):
    path = multimodal(tmp_path, dtype=dtype)
    tree = read(path).tree
    assert tree.dtype == built
    assert tree.notes == (
        f"the config names a dtype for each part; transformers takes that of the whole for all: {built}",
    )
    model = t.Qwen3VLForConditionalGeneration(t.AutoConfig.from_pretrained(multimodal(tmp_path / "plain").parent))
    model.save_pretrained(tmp_path)
    multimodal(tmp_path, dtype=dtype)
    assert str(t.AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="auto").dtype) == f"torch.{built}"


def llama(folder, **changes):
    small_models.save("llama", folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("dtype", None)
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_an_index_may_name_the_dtype(tmp_path):
    folder = llama(tmp_path)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"metadata": {"dtype": "float16"}, "weight_map": dict.fromkeys(weights, "model-1.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))
    assert str(t.AutoModelForCausalLM.from_pretrained(folder).dtype) == "torch.float16"
    assert read(folder).tree.dtype == "float16"


def test_eight_bits_are_no_dtype_to_build_in(tmp_path):
    folder = llama(tmp_path)
    weights = load_file(folder / "model.safetensors")
    first = min(weights)
    weights = {
        name: value.to(torch.float8_e4m3fn if name == first else torch.bfloat16) for name, value in weights.items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert str(t.AutoModelForCausalLM.from_pretrained(folder).dtype) == "torch.bfloat16"
    assert read(folder).tree.dtype == "bfloat16"


def test_a_quantised_checkpoint_that_names_no_dtype_computes_in_bfloat16(tmp_path):
    folder = llama(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16]})
    tree = read(folder / "config.json").tree
    assert tree.dtype == "bfloat16"
    assert tree.notes[0] == (
        "neither the config nor a checkpoint at hand names a dtype: planned in bfloat16, which quantised checkpoints "
        "compute in"
    )


def test_else_it_is_float32(tmp_path):
    tree = read(llama(tmp_path) / "config.json").tree
    assert (tree.dtype, tree.notes) == (
        "float32",
        ("neither the config nor a checkpoint at hand names a dtype: planned in float32",),
    )


# parts


def test_a_text_class_of_a_multimodal_model_takes_its_text_config(tmp_path):
    config = t.Gemma3Config(
        text_config={
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "vocab_size": 64,
            "intermediate_size": 24,
            "head_dim": 8,
        },
        vision_config={"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "num_attention_heads": 2},
    )
    model = t.Gemma3ForConditionalGeneration(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    for name in ("Gemma3ForCausalLM", "Gemma3TextModel"):
        loaded = getattr(t, name).from_pretrained(tmp_path)
        skeleton = read(tmp_path, model_class=name)
        assert skeleton.model_class.__name__ == name
        assert len([m for m in skeleton.tree.index.modules.values() if m.class_name == "Gemma3DecoderLayer"]) == 3
        held = {p.data_ptr(): p.numel() * p.element_size() for p in loaded.parameters()}
        planned = sum(
            skeleton.tree.index.nbytes[tensor.name]
            for tensor in skeleton.tree.index.tensors
            if tensor.kind == "parameter"
        )
        assert planned == sum(held.values())


def test_a_text_class_of_which_no_part_is_takes_the_whole(tmp_path):
    with pytest.raises(ModelError, match="BertModel can't be built from this config"):
        read(llama(tmp_path), model_class="BertModel")


def test_an_auto_class_hands_the_quantisation_on(tmp_path):
    """transformers' Auto classes do; the class itself does not look beyond its part."""
    data = {
        "model_type": "qwen3_5",
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]},
        "text_config": {
            "model_type": "qwen3_5_text",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 64,
        },
        "vision_config": {
            "model_type": "qwen3_5",
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
        },
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    auto = read(path, model_class="AutoModelForCausalLM").tree
    assert (auto.class_name, auto.quantisation) == ("Qwen3_5ForCausalLM", "fp8")
    named = read(path, model_class="Qwen3_5ForCausalLM").tree
    assert (named.class_name, named.quantisation) == ("Qwen3_5ForCausalLM", None)
    assert any("transformers does not see that the weights are quantised" in note for note in named.notes)
    assert sizes(auto)[""] < sizes(named)[""]


def test_an_architecture_of_another_name_is_the_class_of_its_kind(tmp_path):
    path = multimodal(tmp_path, architectures=["Qwen3VLOfSomebodyElse"], dtype="bfloat16")
    tree = read(path).tree
    assert tree.class_name == "Qwen3VLForConditionalGeneration"
    assert tree.notes == (
        "transformers has no class Qwen3VLOfSomebodyElse, which the config names: planned as "
        "Qwen3VLForConditionalGeneration, which it has for qwen3_vl",
    )


def test_but_not_where_the_config_lacks_its_parts(tmp_path):
    """What is not in the config would be the class's defaults, and the model another one."""
    path = multimodal(tmp_path, architectures=["Qwen3VLOfSomebodyElse"], dtype="bfloat16")
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data["text_config"] | {key: data[key] for key in ("model_type", "architectures")}))
    with pytest.raises(ModelError, match="has no class 'Qwen3VLOfSomebodyElse'"):
        read(path)


def test_an_architecture_may_be_written_without_a_list(tmp_path):
    assert read(llama(tmp_path, architectures="LlamaModel")).tree.class_name == "LlamaModel"


# code of the model's own

OLD = {
    "no post_init": ("        self.post_init()\n", "", "does not call self.post_init()"),
    "a list of ties": (
        "    config_class = OwnConfig\n",
        '    config_class = OwnConfig\n    _tied_weights_keys = ["body.weight"]\n',
        "its _tied_weights_keys is a list, as transformers 4 had it",
    ),
    "a missing attribute": ("torch.nn.Linear(4, 4)", "torch.nn.Linear(config.absent, 4)", "no attribute 'absent'"),
    "an exit": ("        self.post_init()\n", "        raise SystemExit(3)\n", "can't be built"),
    "a name that is gone": (
        "PreTrainedModel\n\n",
        "PreTrainedModel\nfrom transformers.utils import gone_since_4\n\n",
        "gone_since_4",
    ),
    "an exit while it is imported": ("import torch\n", "import torch, sys\nsys.exit(1)\n", "can't"),
    "a package that is missing": (
        "import torch\n",
        "import torch\nimport no_such_package_here\n",
        "no_such_package_here",
    ),
    "no config": (
        "class OwnConfig(PreTrainedConfig):",
        "class OwnConfig:\n    pass\nclass Other(PreTrainedConfig):",
        "own",
    ),
    "no model": (
        "class OwnModel(PreTrainedModel):\n    config_class = OwnConfig\n    def __init__(self, config):\n"
        "        super().__init__(config)",
        "class OwnModel(torch.nn.Module):\n    def __init__(self, config):\n        super().__init__()",
        "has no model in",
    ),
    "a config that can't be set": (
        '    model_type = "own"\n',
        '    model_type = "own"\n    @property\n    def sub_configs(self):\n        raise ValueError("mine too")\n',
        "mine too",
    ),
    "ties that raise": (
        "    def _init_weights",
        "    @property\n    def _keys_to_ignore_on_load_missing(self):\n        raise ZeroDivisionError('mine')\n"
        "    def _init_weights",
        "mine",
    ),
    "a dtype plan that raises": (
        "    def _init_weights",
        "    def _get_dtype_plan(self, dtype):\n        raise KeyError('plan')\n    def _init_weights",
        "does not work with transformers",
    ),
    "modules that raise": (
        "    def _init_weights",
        "    def named_children(self):\n        raise RuntimeError('children')\n    def _init_weights",
        "children",
    ),
}


@pytest.mark.parametrize(("old", "new", "said"), OLD.values(), ids=OLD)
def test_code_for_another_release_is_the_models_fault(devctl, tmp_path, monkeypatch, old, new, said):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    assert old in CODE
    folder = own_code.save(tmp_path / "own", CODE.replace(old, new), tie_word_embeddings=True)
    own_code.save_weights(folder, "body.weight")
    done = devctl("plan", folder, "--trust-remote-code", "--devices", "1GiB")
    assert done.code == 4, done.err
    assert said in done.err
    assert "bug in devctl" not in done.err
    assert len(done.err.splitlines()) <= 2
    assert done.out == ""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder of a model whose code is ``CODE`` with changes: ``own(old, new)``."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def write(old, new):
        assert old in CODE
        folder = own_code.save(tmp_path / "own", CODE.replace(old, new), vocab_size=9)
        own_code.save_weights(folder, "body.weight", "body.bias")
        return folder

    return write


def test_what_a_models_code_prints_is_not_our_answer(devctl, own):
    folder = own("class OwnConfig", 'print("imported")\nclass OwnConfig')
    (folder / "own.py").write_text(
        (folder / "own.py").read_text().replace("self.post_init()", 'print("made"); self.post_init()')
    )
    done = devctl("plan", folder, "--trust-remote-code", "--devices", "1GiB", "--json")
    assert json.loads(done.out)["model"]["bytes"] == 80
    assert "imported" in done.err
    assert "made" in done.err


def test_an_exit_of_a_models_code_while_it_runs_is_its_own(devctl, own):
    folder = own(
        "    def _init_weights",
        "    def forward(self, input_ids=None, **given):\n        raise SystemExit(7)\n    def _init_weights",
    )
    done = devctl("plan", folder, "--trust-remote-code", "--devices", "1GiB", "--context-length", "20")
    assert done.code == 0
    assert "are not counted: the model's own code calls sys.exit(7)" in done.err
    done = devctl("load", folder, "--trust-remote-code", "--map", "cpu")
    assert done.code == 5
    assert "can't run: the model's own code calls sys.exit(7)" in done.err


def test_a_process_that_is_told_to_terminate_does():
    with pytest.raises(SystemExit), contained():
        raise SystemExit(143)
    with pytest.raises(ExitedError, match=r"sys\.exit\('so'\)"), contained():
        raise SystemExit("so")
