"""Loads small models over simulated devices, and tells what came out as JSON; a process of its own.

Registering the devices changes what ``torch.device(0)`` is, for good: so the tests start this once, and read the
answers.
"""

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # torch's modes are those of one thread

import torch
from accelerate import dispatch_model
from transformers.utils import logging

from devctl.devices import Device
from devctl.loading.measure import device_bytes
from devctl.loading.proofs import places
from devctl.loading.proofs.compare import floats
from devctl.loading.run import smoke
from devctl.loading.run.inputs import prepare
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import is_under, sizes, walk
from devctl.placement import Strategy, place
from devctl.placement.budget import Budgets
from devctl.placement.judge import disjoint, validate
from devctl.placement.placement import bytes_per_device, make_placement, to_hf
from tests import simulated, small_models

MODELS = ("llama", "llama-tied", "mixtral", "gemma2", "phi3", "t5", "bart", "bert")
TOKENS = 3
CPU = Device.cpu()
GPUS = tuple(Device.gpu(index) for index in range(3))


class Sim:
    """What ``smoke.run`` asks of a device: its name to torch."""

    type = "sim"

    def __init__(self, index):
        self.index = index

    def __str__(self):
        return f"sim:{self.index}"


def in_our_words(to_device):
    """A simulated device is told as the GPU of its number, which devctl has a name for."""

    def told(device):
        kind = torch.device(device) if not isinstance(device, int) else torch.device("sim", device)
        return Device.gpu(kind.index or 0) if kind.type == "sim" else to_device(device)

    return told


def maps(tree, turn):
    """(name, map) of strategies over three accelerators, of others over two with CPU and disk, and maps by hand.

    Two of the five strategies on each machine: another model, of the next ``turn``, is placed by other ones.
    """
    whole = sizes(tree)[""]
    three = Budgets(devices=tuple((gpu, int(whole * 0.6)) for gpu in GPUS), given=True)
    less = Budgets(
        devices=((GPUS[0], int(whole * 0.5)), (GPUS[1], int(whole * 0.3)), (CPU, int(whole * 0.3))), given=True
    )
    strategies = [*Strategy]
    for at in (turn, turn + 1):
        strategy, other = strategies[at % 5], strategies[(at + 2) % 5]
        yield f"{strategy} on 3", dict(place(tree, three, strategy).device_map)
        yield f"{other} on 2, cpu, disk", dict(place(tree, less, other).device_map)
    yield "in turn on 3", in_turn(tree, GPUS)
    yield "in turn on cuda:1, cpu, disk", in_turn(tree, (GPUS[1], CPU, Device.disk()))
    if tree.class_name == "LlamaForCausalLM" and tree.ties:
        apart = in_turn(tree, GPUS[:2])
        yield "tie on cuda:0 and cpu", apart | {"lm_head": CPU}
        yield "tie on cpu and cuda:1", apart | {"model.embed_tokens": CPU, "lm_head": GPUS[1]}
        yield "tie on cuda:0 and cuda:1", apart | {"lm_head": GPUS[1]}


def in_turn(tree, turn):
    """Whole blocks on the devices of ``turn``, and the rest, with what is tied, on the first GPU."""
    tied = {name for pair in tree.ties for name in pair}
    blocks = [m.name for m in walk(tree.root) if m.class_name in tree.no_split]
    free = [name for name in blocks if not any(is_under(each, name) for each in tied)]
    given = dict.fromkeys(blocks, GPUS[0]) | {name: turn[i % len(turn)] for i, name in enumerate(free)}
    for module in walk(tree.root):
        if (module.parameters or module.buffers) and not any(is_under(module.name, block) for block in blocks):
            given[module.name] = GPUS[0]
    return {m.name: given[m.name] for m in walk(tree.root) if m.name in given}


def first_float(output):
    return next(value for _, value in floats(output))


def run(model, inputs, device):
    """The logits, and the tokens of a greedy generate, of a model whose inputs go to ``device``."""
    with torch.inference_mode():
        given = {name: value.to(device) for name, value in inputs.tensors.items()}
        simulated.record.clear()
        output = first_float(model(**given, **smoke._decoder_inputs(model, given)))
        counted = (simulated.record.crossings(), len(simulated.record.copies))
        tokens = None
        if model.can_generate():
            begin = {"decoder_start_token_id": 0} if model.config.is_encoder_decoder else {}
            made = model.generate(
                **given, **begin, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS, pad_token_id=0
            )
            tokens = simulated.bare(made).tolist()
    return simulated.bare(output), tokens, counted


def none(_):
    """No progress is shown."""


def cases(name, folder):
    """What came out of each map for the model called ``name``, beside the same model on the CPU alone."""
    source = resolve(str(small_models.save(name, folder)))
    skeleton = read_skeleton(source)
    tree = skeleton.tree
    inputs = prepare(source, skeleton, prompt=None, new_tokens=TOKENS, trust_remote_code=False)
    ways = {"load_format": LoadFormat.AUTO, "on_progress": none}
    alone, _ = loader.load(source, skeleton, {"": CPU}, folder=None, **ways)
    expected, tokens, _ = run(alone, inputs, "cpu")

    def compare(title, device_map, make):
        told = {"model": name, "map": title}
        told["planned"] = make_placement(tree, device_map, Budgets(devices=(), given=True), strategy=None).crossings
        told["predicted"] = {str(d): size for d, size in bytes_per_device(tree, device_map).items()}
        told["refused"] = validate(tree, device_map, [*GPUS, CPU, Device.disk()])
        with simulated.running(), tempfile.TemporaryDirectory() as offload:
            try:
                model = make(Path(offload))
                found_at = places.find_places(model, device_map)
                main = loader.main_device(model, device_map)
                output, found, (crossings, copies) = run(model, inputs, f"sim:{main.id}")
                ran = smoke.run(model, inputs, device=Sim(main.id), new_tokens=2)
            except RuntimeError as error:
                return told | {"failed": str(error).splitlines()[0]}
        used = {each.device: each for each in device_bytes(tree, device_map, main, found_at)}
        return told | {
            "failed": None,
            "misplaced": [f"{m.name}: {m.actual}, not {m.expected}" for m in found_at.misplaced],
            "bytes": {str(device): (each.predicted, each.measured) for device, each in used.items()},
            "main": str(main),
            "apart": float((output - expected).abs().max()),
            "same_tokens": found == tokens,
            "crossings": crossings,
            "copies": copies,
            "nonfinite": ran.nonfinite,
        }

    for title, device_map in maps(tree, MODELS.index(name)):
        yield compare(
            title,
            device_map,
            lambda offload: loader.load(source, skeleton, device_map, folder=offload, **ways)[0],  # noqa: B023
        )
    by_hand = disjoint(tree, in_turn(tree, GPUS))  # accelerate takes a key above another for all of it
    if not set(by_hand) <= {module.name for module in walk(tree.root)}:
        return  # a key that names a tensor is for from_pretrained: accelerate alone does not move it
    whole, _ = loader.load(source, skeleton, {"": CPU}, folder=None, **ways)
    yield compare(
        "dispatch_model, in turn on 3", by_hand, lambda _: dispatch_model(whole, device_map=to_hf(by_hand.items()))
    )


def run_all(names, cases):
    """What ``cases`` of each name tell, given a folder to save the model in; the devices stay registered."""
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    simulated.register()
    places.to_device = loader.to_device = in_our_words(loader.to_device)
    with tempfile.TemporaryDirectory() as folder:
        return [case for name in names for case in cases(name, Path(folder) / name)]


if __name__ == "__main__":
    json.dump(run_all(sys.argv[1:] or MODELS, cases), sys.stdout)
