"""Small models of many architectures on two ranks, beside themselves in one process: what ``over_ranks.json`` says.

In stages each rank has some of the layers, shared it has a part of every one.

``python -m tests.distributed.sweep`` writes the rows of the installed transformers anew, ``… LlamaForCausalLM`` those
of some classes; ``test_sweep.py`` compares. Each class is built and run in forks of this process, which has torch and
transformers imported. Its weights are far larger than those of a new model, so that a wrong mask or position is seen.
"""

import json
import os
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import transformers
from transformers.distributed import DistributedConfig  # type: ignore[attr-defined]
from transformers.utils import logging

import devctl.models
from devctl.distributed.pipeline import cut, generate
from devctl.errors import first_line
from devctl.models.over_ranks import Outcome
from devctl.placement.parallel.records import Stage, Stages
from tests import small_models

TABLE = Path(devctl.models.__file__).with_name("over_ranks.json")
LAYERS = 4
CUTS = ((1, 3), (3, 1), (2, 2))
PROMPTS = ((1, 5), (2, 24))
"""(sequences, tokens): fewer and more than the window of those that slide."""
NEW_TOKENS = 6
NEAR = 1e-4
"""By which share of the largest logit they may differ; what is wrong differs by far more."""
SECONDS = 90
_FACTOR = re.compile("multiplier|scal")

_NAMES = """
AfmoeForCausalLM ApertusForCausalLM ArceeForCausalLM AriaTextForCausalLM BambaForCausalLM BitNetForCausalLM
BloomForCausalLM CohereForCausalLM Cohere2ForCausalLM Cohere2MoeForCausalLM CwmForCausalLM DeepseekV2ForCausalLM
DeepseekV3ForCausalLM DeepseekV32ForCausalLM DiffLlamaForCausalLM DogeForCausalLM Dots1ForCausalLM Emu3ForCausalLM
Ernie4_5ForCausalLM Ernie4_5_MoeForCausalLM Exaone4ForCausalLM ExaoneMoeForCausalLM FalconForCausalLM
FalconH1ForCausalLM FlexOlmoForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM Gemma3nForCausalLM
Gemma4ForCausalLM GlmForCausalLM Glm4ForCausalLM Glm4MoeForCausalLM Glm4MoeLiteForCausalLM GlmMoeDsaForCausalLM
GPT2LMHeadModel GPTNeoXForCausalLM GptOssForCausalLM GraniteForCausalLM GraniteSWAForCausalLM GraniteMoeForCausalLM
GraniteMoeSWAForCausalLM GraniteMoeHybridForCausalLM GraniteMoeSharedForCausalLM HeliumForCausalLM
HunYuanDenseV1ForCausalLM HunYuanMoEV1ForCausalLM HyperCLOVAXForCausalLM Jais2ForCausalLM JetMoeForCausalLM
KimiLinearForCausalLM LagunaForCausalLM Lfm2ForCausalLM Lfm2MoeForCausalLM LlamaForCausalLM Llama4ForCausalLM
LongcatFlashForCausalLM MambaForCausalLM Mamba2ForCausalLM MellumForCausalLM MiMoV2FlashForCausalLM MiniCPM3ForCausalLM
MiniMaxForCausalLM MiniMaxM2ForCausalLM MinistralForCausalLM Ministral3ForCausalLM MistralForCausalLM
Mistral4ForCausalLM MixtralForCausalLM NanoChatForCausalLM NemotronForCausalLM OlmoForCausalLM Olmo2ForCausalLM
Olmo3ForCausalLM OlmoHybridForCausalLM OlmoeForCausalLM OPTForCausalLM PersimmonForCausalLM PhiForCausalLM
Phi3ForCausalLM PhimoeForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM Qwen3_5ForCausalLM
Qwen3_5MoeForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM SeedOssForCausalLM SmolLM3ForCausalLM
SolarOpenForCausalLM StableLmForCausalLM Starcoder2ForCausalLM VaultGemmaForCausalLM YoutuForCausalLM
Zamba2ForCausalLM ZayaForCausalLM
"""
CLASSES = _NAMES.split()

OWN = {
    **dict.fromkeys(
        (
            "DeepseekV2ForCausalLM",
            "DeepseekV32ForCausalLM",
            "Glm4MoeLiteForCausalLM",
            "GlmMoeDsaForCausalLM",
            "LongcatFlashForCausalLM",
            "MiniCPM3ForCausalLM",
            "Mistral4ForCausalLM",
            "YoutuForCausalLM",
        ),
        small_models._DEEPSEEK,
    ),
    "Dots1ForCausalLM": {"n_shared_experts": 1, "n_group": 2, "topk_group": 1},
    "ZayaForCausalLM": {"num_experts_per_tok": 1},
    "DeepseekV3ForCausalLM": {**small_models._DEEPSEEK, "n_group": 2, "topk_group": 1},
    "Mamba2ForCausalLM": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
}
"""What their configs need beside small sizes."""


class CannotBuildError(Exception):
    """A class of which no small model is made: it is left out of the table."""


def build(class_name, tied=None):
    """A small model whose layers do much."""
    try:
        own = {"num_hidden_layers": LAYERS, "use_cache": True, **OWN.get(class_name, {})}
        if tied is not None:  # the other way: with windows on the later layers alone, where a config can say so
            known = getattr(transformers, class_name).config_class().to_dict()
            windows = {"use_sliding_window": True, "max_window_layers": LAYERS // 2, "sliding_window": 8}
            own |= windows if windows.keys() <= known.keys() else {}
        model_class, config = small_models.of_class(class_name, **own)
        if getattr(config, "sliding_window", None):
            config.sliding_window = 8
        # of few layers, a pattern of a full one in six would have none
        kinds = [*dict.fromkeys(getattr(type(config)(), "layer_types", None) or ())]
        if len(kinds) > len(set(getattr(config, "layer_types", None) or ())):
            config.layer_types = [kinds[layer % len(kinds)] for layer in range(LAYERS)]
        for name, value in config.to_dict().items():
            # what is neutral unless a config says otherwise would hide that a later stage does it again
            if _FACTOR.search(name) and type(value) in (int, float) and value == 1:
                setattr(config, name, 1.5)
        if tied is not None:
            config.tie_word_embeddings = tied
        torch.manual_seed(0)
        model = model_class(config).eval()
        made = generate(model, prompt(*PROMPTS[0]), 2, lambda: None)
        assert made.ids
    except Exception as error:
        raise CannotBuildError(first_line(error)) from error
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.dim() > 1:
                tensor.normal_(0, 0.15, generator=generator)
    return model


def prompt(rows, length):
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(3, 200, (rows, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def stages_of(counts):
    found, end = [], 0
    for number, count in enumerate(counts):
        rest = dict.fromkeys(("used", "state", "activations", "overhead", "budget"), 0)
        layers = (end, end + count)
        found.append(Stage(stage=number, host="a", devices=("cpu",), layers=layers, **rest))
        end += count
    return Stages(container="model.layers", stages=tuple(found))


def forked(act, answer):
    """A fork that does ``act``, and writes down what comes of it."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    try:
        found = act()
    except CannotBuildError as error:
        found = {"left out": str(error)}
    except BaseException as error:  # noqa: BLE001 - a model's own code may raise anything
        if os.environ.get("DEVCTL_DEBUG"):
            traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {first_line(error)}"}
    answer.write_text(json.dumps(found))
    os._exit(0)


def wait_for(pids):
    """Wait for all; those that take too long are killed. Whether none did."""
    end = time.monotonic() + SECONDS
    left = set(pids)
    while left:
        for pid in [*left]:
            if os.waitpid(pid, os.WNOHANG)[0]:
                left.discard(pid)
        if left and time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            return False
        time.sleep(0.01)
    return True


def one_process(class_name, folder):
    """Save the models, and what they make in one process."""
    torch.set_num_threads(1)
    usual = build(class_name)
    tied = bool(usual.config.get_text_config().tie_word_embeddings)
    for name, model in (("usual", usual), ("other", build(class_name, not tied))):
        model.save_pretrained(folder / name)
        # as it is loaded: some round what they keep
        again = type(model).from_pretrained(folder / name, dtype=torch.float32).eval()
        made = [generate(again, prompt(*each), NEW_TOKENS, lambda: None) for each in PROMPTS]
        torch.save([(each.ids, each.logits) for each in made], folder / f"{name}.pt")
    return {"class": type(usual).__name__}


def in_stages(class_name, folder, rank, ways):
    """What two ranks make of the same, beside it: the first difference, None where there is none."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=30))
    for name, counts in ways:
        config = DistributedConfig(tp_size=2) if counts is None else DistributedConfig(pp_size=2)
        with cut(stages_of(counts or CUTS[0])):
            model = getattr(transformers, class_name).from_pretrained(
                folder / name, dtype=torch.float32, distributed_config=config
            )
        if counts is None and not any(hasattr(tensor, "to_local") for tensor in model.parameters()):
            return {"error": "it has no plan by which its layers are shared"}
        expected = torch.load(folder / f"{name}.pt")
        for each, (ids, logits) in zip(PROMPTS, expected, strict=True):
            made = generate(model, prompt(*each), NEW_TOKENS, lambda: None)
            layers = "all layers" if counts is None else f"layers {'+'.join(map(str, counts))}"
            where = f"{layers}, {each[0]} × {each[1]} tokens"
            if name == "other":
                where += ", the head tied and the windows set the other way than usual"
            apart = (made.logits - logits).abs().amax(dim=(0, 2))
            near = NEAR * logits.abs().max()
            wrong = next((step for step in range(NEW_TOKENS) if not apart[step] <= near), None)
            if wrong is not None:
                return {"wrong": f"{where}: the logits of token {wrong + 1} differ by {float(apart[wrong]):.2g}"}
            if made.ids != tuple(map(tuple, ids)):
                return {"wrong": f"{where}: other tokens"}
    return {}


def try_class(class_name):
    """The row of a class; None where it can't be built."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = folder / "alone.json"
        if not wait_for([forked(lambda: one_process(class_name, folder), alone)]):
            return None
        found = json.loads(alone.read_text())
        if "class" not in found:
            print(f"  left out: {found}", file=sys.stderr)
            return None
        return {
            "stages": on_ranks(class_name, folder, [*(("usual", counts) for counts in CUTS), ("other", (2, 2))]),
            "shared": on_ranks(class_name, folder, [("usual", None), ("other", None)]),
        }


def on_ranks(class_name, folder, ways):
    """What comes out of the ways."""
    (folder / "store").unlink(missing_ok=True)
    answers = [folder / f"rank-{rank}.json" for rank in range(2)]
    for answer in answers:
        answer.unlink(missing_ok=True)
    in_time = wait_for([forked(lambda r=r: in_stages(class_name, folder, r, ways), answers[r]) for r in range(2)])
    rows = [json.loads(each.read_text()) if each.exists() else {} for each in answers]
    if why := next((row["wrong"] for row in rows if "wrong" in row), None):
        return {"outcome": str(Outcome.WRONG), "why": why}
    errors = [row["error"] for row in rows if "error" in row]
    errors.sort(key=lambda text: "gloo" in text)  # a connection that is lost is the other's fault
    if errors or not in_time:
        why = errors[0] if errors else f"it hangs for {SECONDS} s"
        return {"outcome": str(Outcome.ERROR), "why": re.sub(r"/\S+", "…", why)[:200]}
    return {"outcome": str(Outcome.EXACT)}


def main(names):
    table = Path(names.pop(0)) if names[:1] == ["--table"] and names.pop(0) else TABLE
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kept = json.loads(table.read_text())["transformers"]
    rows = kept.setdefault(transformers.__version__, {})
    for class_name in names or CLASSES:
        if not hasattr(transformers, class_name):
            continue
        start = time.monotonic()
        row = try_class(class_name)
        print(f"{class_name}: {row} ({time.monotonic() - start:.1f} s)", file=sys.stderr, flush=True)
        if row is None:
            rows.pop(class_name, None)
        else:
            rows[class_name] = row
        kept[transformers.__version__] = dict(sorted(rows.items()))
        table.write_text(json.dumps({"transformers": kept}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
