"""Small models of many architectures, half of each on disk, beside themselves on the CPU: what ``sweep.json`` holds.

``python -m tests.loading.sweep`` writes the table anew; ``test_sweep.py`` compares it with what comes out.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from transformers.utils import logging

from devctl.devices import Device
from devctl.errors import DevctlError, first_line
from devctl.loading.proofs.compare import floats
from devctl.loading.proofs.places import find_places
from devctl.loading.run import smoke
from devctl.loading.run.inputs import prepare
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.loading.weights.offload import bytes_to_write
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes
from devctl.placement import Strategy, place
from devctl.placement.budget import Budgets
from devctl.placement.placement import validate
from tests import small

TABLE = Path(__file__).with_name("sweep.json")
CPU, DISK = Device.cpu(), Device.disk()
TOLERANCE = 1e-5

_TEXT = {
    "vocab_size": 256,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "projection_dim": 16,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_BOTH = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 16}
_SPEECH = {"conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}
_DEEPSEEK = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
    "num_key_value_heads": 4,
}
_STAGES = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]}

_PLAIN = """
LlamaForCausalLM MistralForCausalLM MixtralForCausalLM Qwen2ForCausalLM Qwen3ForCausalLM Qwen2MoeForCausalLM
Qwen3MoeForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM PhiForCausalLM Phi3ForCausalLM
PhimoeForCausalLM GPT2LMHeadModel GPTNeoXForCausalLM GPTJForCausalLM GPTBigCodeForCausalLM BloomForCausalLM
OPTForCausalLM FalconForCausalLM MptForCausalLM StableLmForCausalLM Starcoder2ForCausalLM CohereForCausalLM
OlmoForCausalLM Olmo2ForCausalLM OlmoeForCausalLM GraniteForCausalLM GraniteMoeForCausalLM
GptOssForCausalLM GlmForCausalLM NemotronForCausalLM SmolLM3ForCausalLM MambaForCausalLM
FalconMambaForCausalLM RecurrentGemmaForCausalLM CodeGenForCausalLM XGLMForCausalLM BertForMaskedLM
RobertaForMaskedLM DistilBertForMaskedLM AlbertForMaskedLM ElectraForMaskedLM DebertaV2ForMaskedLM MPNetForMaskedLM
ModernBertForMaskedLM ConvBertForMaskedLM FNetForMaskedLM T5ForConditionalGeneration MT5ForConditionalGeneration
BartForConditionalGeneration PegasusForConditionalGeneration MarianMTModel M2M100ForConditionalGeneration
ViTForImageClassification DeiTForImageClassification BeitForImageClassification Dinov2ForImageClassification
CLIPTextModel CLIPVisionModel
"""

MODELS = {
    **{name: {} for name in _PLAIN.split()},
    "DeepseekV2ForCausalLM": _DEEPSEEK,
    "DeepseekV3ForCausalLM": {**_DEEPSEEK, "n_group": 2, "topk_group": 1},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "GPTNeoForCausalLM": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "WhisperForConditionalGeneration": {
        "num_mel_bins": 16,
        "max_source_positions": 50,
        "max_target_positions": 40,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    },
    "CLIPModel": _BOTH,
    "SiglipModel": _BOTH,
    "ConvNextForImageClassification": {**_STAGES, "image_size": 64},
    "ResNetForImageClassification": {**_STAGES, "embedding_size": 8},
    "RegNetForImageClassification": {**_STAGES, "embedding_size": 8, "groups_width": 8},
    "SwinForImageClassification": {
        "num_heads": [1, 2],
        "depths": [1, 2],
        "embed_dim": 16,
        "patch_size": 4,
        "window_size": 4,
    },
    "ASTForAudioClassification": {"max_length": 64, "num_mel_bins": 32},
    "Wav2Vec2ForCTC": _SPEECH,
    "HubertForCTC": _SPEECH,
    "PerceiverForMaskedLM": {"num_latents": 8, "d_latents": 32, "qk_channels": 32, "v_channels": 32},
}
"""By class, what its config needs beside small sizes."""


def try_model(class_name, folder):
    """What came out for one class: a row of the table for each strategy."""
    model_class, config = small.make(class_name, **MODELS[class_name])
    torch.manual_seed(0)
    model_class(config).eval().save_pretrained(folder)
    source = resolve(str(folder))
    skeleton = read_skeleton(source)
    whole = sizes(skeleton.tree)[""]
    budgets = Budgets(devices=((CPU, whole // 2), (DISK, 2**60)), given=True)
    ways = {"load_format": LoadFormat.AUTO, "on_progress": lambda _: None}
    row = {"class": class_name, "bytes": whole}
    try:
        inputs = prepare(source, skeleton, prompt=None, new_tokens=2, trust_remote_code=False)
    except DevctlError as error:
        return row | {str(strategy): f"not run: {error.message}" for strategy in (Strategy.AUTO, Strategy.OPTIMAL)}
    alone, _ = loader.load(source, skeleton, {"": CPU}, folder=None, **ways)
    expected = outputs(alone, inputs)

    def judge(device_map, offload):
        if refused := validate(skeleton.tree, device_map, [CPU, DISK]):
            return f"refused: {refused[0]}"
        try:
            model, _ = loader.load(source, skeleton, device_map, folder=offload, **ways)
            places = find_places(model, device_map)
            ran = smoke.run(model, inputs, device=loader.main_device(model, device_map), new_tokens=2)
            found = outputs(model, inputs)
        except DevctlError as error:
            return f"failed: {error.message.replace(str(folder), class_name)}"
        written = sum(path.stat().st_size for path in offload.iterdir()) > 0
        if written != (bytes_to_write(source, skeleton, device_map, random_weights=False) > 0):
            return "failed: it is not written to the offload folder what was predicted"
        if places.misplaced or ran.nonfinite or found.keys() != expected.keys():
            return f"failed: {places.misplaced[:1]} {ran.nonfinite}"
        apart = max(float((found[key] - expected[key]).abs().max()) for key in expected)
        return "equal" if apart <= TOLERANCE else f"failed: {apart:.2g} apart"

    for strategy in (Strategy.AUTO, Strategy.OPTIMAL):
        placement = place(skeleton.tree, budgets, strategy)
        with tempfile.TemporaryDirectory() as offload:
            row[str(strategy)] = judge(dict(placement.device_map), Path(offload))
        row[f"on disk by {strategy}"] = placement.on_disk
    return row


def outputs(model, inputs):
    """Every floating tensor that a forward gives, by name."""
    with torch.inference_mode():
        given = {**inputs.tensors, **smoke._decoder_inputs(model, inputs.tensors)}
        torch.manual_seed(0)
        return dict(floats(model(**given), "output"))


def rows(names):
    """The rows of ``names``."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    for name in names:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                yield try_model(name, Path(folder))
            except Exception as error:  # noqa: BLE001 - told in the table
                yield {"class": name, "made": f"{type(error).__name__}: {first_line(error)}"}


def as_text(table):
    """The table as it is kept: a row a line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in table) + "\n]\n"


if __name__ == "__main__":
    names = sys.argv[1:] or MODELS
    text = as_text(rows(names))
    sys.stdout.write(text)
    if not sys.argv[1:]:
        TABLE.write_text(text)
