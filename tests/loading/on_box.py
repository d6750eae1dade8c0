"""Small models on a simulated box of two equal accelerators: what runs out of memory, and what was predicted.

``python -m tests.loading.on_box`` prints a table, ``--json`` the figures that the tests read. The box has some MiB
where a real one has GiB, and beside them a CPU that weights may be offloaded to. Its limit follows from the model: with
"halfway" each accelerator may hold the mean of what the fullest one holds with the weights alone and with the workload
beside them, both spread as evenly as ``optimal`` can; with "enough" as much as the second, and a two-hundredth, which
a prediction may lack. Every plan runs under the limit, so that a byte too many ends it.

Measured is the most that lives on a device while the model works. The kernels are the CPU's, which is what the plan
is told; for the same reason a mixture of experts does not gather them in decode, as it would on an accelerator.

Offloaded weights are brought for one part of a block after another. How many those are is counted beside the most that
the block needs, though the part that needs the most may not be the largest: "brought" says how many.
"""

import argparse
import gc
import json
import sys
from contextlib import nullcontext

from tests.loading.on_simulated import CPU, GPUS, none, run_all  # isort: skip - sets what transformers reads

import torch

from devctl.loading.run import out_of_memory
from devctl.loading.weights import loader
from devctl.loading.weights.loader import LoadFormat
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Kernels, Workload
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from devctl.placement import Strategy, place
from devctl.placement.budget import Budgets
from devctl.placement.runtime import Runtime, brought_at_most, main_of
from tests import simulated, small_models

BOX = GPUS[:2]
ROOMY = 2**40
MIB = 2**20

WORK = Workload(context_length=192, batch_size=2, new_tokens=6, kernels=Kernels.CPU)
"""What a model is asked to do; one that does not generate reads a prompt of this length."""


def _with_slack(nbytes):
    return nbytes + nbytes // 200


def work(model, device):
    """The tokens that the model makes of its prompt."""
    new = WORK.new_tokens if model.can_generate() else 0
    shape = (WORK.batch_size, WORK.context_length - new)
    ids = torch.randint(1, 1000, shape, generator=torch.Generator().manual_seed(0)).to(device)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not new:
        with torch.no_grad():
            return simulated.bare(model(**given).logits).argmax(-1).tolist()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    model._optimize_model_for_decode = nullcontext
    # a step more than tokens: generate does not run the model on its last one
    return simulated.bare(model.generate(**given, do_sample=False, max_new_tokens=new + 1)).tolist()


class Case:
    """A model, and what each plan for it comes to."""

    def __init__(self, name, folder):
        self.source = resolve(str(small_models.save(name, folder, small_models.BOXED)))
        self.skeleton = read_skeleton(self.source)
        self.runtime = Runtime(footprint=trace_footprint(self.skeleton, WORK), overhead={})
        self.expected = work(self.load({"": CPU}), "cpu")

    def load(self, device_map):
        model, _ = loader.load(
            self.source, self.skeleton, device_map, load_format=LoadFormat.AUTO, folder=None, on_progress=none
        )
        return model

    def placed(self, strategy, limit, *, counted):
        budgets = Budgets(devices=(*((gpu, limit) for gpu in BOX), (CPU, ROOMY)), given=True)
        return place(self.skeleton.tree, budgets, strategy, None, self.runtime if counted else None)

    def fullest(self, *, counted):
        """Bytes on the fullest accelerator when they are as evenly spread as can be."""
        placement = self.placed(Strategy.OPTIMAL, ROOMY, counted=counted)
        return max(use.total for use in placement.devices if use.device in BOX)

    def outcome(self, placement, limit):
        """What came of running the model as it is placed."""
        device_map = dict(placement.device_map)
        told = {
            "limit": limit,
            "fits": placement.fits,
            "offloaded": placement.offloaded,
            "predicted": {str(use.device): use.total for use in placement.devices if use.device in BOX},
            "brought": {str(main_of(device_map)): brought_at_most(self.skeleton.tree, device_map)},
        }
        with simulated.running(limit):
            try:
                model = self.load(device_map)
                simulated.memory.begin()
                offloaded = model.device.type == "meta"  # else it is where a user's inputs go
                main = f"sim:{loader.main_device(model, device_map).id}"
                tokens = work(model, main if offloaded else model.device)
            except torch.OutOfMemoryError as error:
                device, asked = out_of_memory.parse(str(error))
                out_of_memory.release(error)
                return told | {"out": str(device), "asked": asked}
            finally:
                model = None
                gc.collect()
        measured = {str(gpu): simulated.memory.peak.get(gpu.id, 0) for gpu in BOX}
        return told | {"out": None, "measured": measured, "same_tokens": tokens == self.expected}


def outcomes(name, folder):
    """Of ``auto`` by weights alone, and of every strategy by weights and workload; plans that are alike run once."""
    case = Case(name, folder)
    weights, needed = case.fullest(counted=False), case.fullest(counted=True)
    halfway = (weights + needed) // 2
    told = {"model": name, "box": "halfway", "strategies": [str(Strategy.AUTO)], "counted": False}
    yield told | case.outcome(case.placed(Strategy.AUTO, halfway, counted=False), halfway)
    for box, limit, strategies in (("halfway", halfway, Strategy), ("enough", _with_slack(needed), [Strategy.OPTIMAL])):
        plans = {}
        for strategy in strategies:
            placement = case.placed(strategy, limit, counted=True)
            plans.setdefault(placement.device_map, (placement, []))[1].append(str(strategy))
        for placement, names in plans.values():
            told = {"model": name, "box": box, "strategies": names, "counted": True}
            yield told | case.outcome(placement, limit)


def table(found):
    """The outcomes as Markdown, in MiB."""
    yield "| model | box | limit | by weights, auto | by workload | offloaded | cuda:0 | measured | cuda:1 | measured |"
    yield "|---|---|---:|---|---|---:|---:|---:|---:|---:|"
    for case in (case for case in found if case["counted"]):
        auto = next(c for c in found if c["model"] == case["model"] and not c["counted"])
        failed = f"out on {auto['out']}, asked for {auto['asked'] / MIB:.2f}" if case["box"] == auto["box"] else ""
        cells = []
        for device, predicted in case["predicted"].items():
            if case["out"]:
                cells += [f"{predicted / MIB:.2f}", "out" if case["out"] == device else ""]
                continue
            measured = case["measured"][device]
            error = f" ({predicted / measured - 1:+.1%})" if measured else ""
            cells += [f"{predicted / MIB:.2f}", f"{measured / MIB:.2f}{error}"]
        limit, offloaded = (f"{case[what] / MIB:.2f}" for what in ("limit", "offloaded"))
        row = (case["model"], case["box"], limit, failed, ", ".join(case["strategies"]), offloaded, *cells)
        yield f"| {' | '.join(row)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(small_models.BOXED))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = run_all(arguments.names, outcomes)
    if arguments.json:
        json.dump(found, sys.stdout)
    else:
        print("\n".join(table(found)))


if __name__ == "__main__":
    main()
