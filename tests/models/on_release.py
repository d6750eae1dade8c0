"""What must hold with each release of transformers in the range: run by `test_releases` in a process of its own.

`PYTHONPATH=FOLDER python -m tests.models.on_release` compares plans by the release in FOLDER, and prints how many maps
were those of devctl's transcription, and how many were others.
"""

import json
import random
import re
from collections import Counter
from functools import partial

import accelerate
import transformers

from devctl.models.compared import planner_source
from devctl.models.tree import sizes, tensors
from devctl.models.upstream import ask
from devctl.placement import Installed, place
from devctl.placement.budget import from_max_memory
from devctl.placement.installed import planned_otherwise
from devctl.placement.placement import to_hf
from devctl.placement.strategy import OF_TRANSFORMERS, device_of
from tests import small_models
from tests.placement.greedy.test_parity import MACHINES, random_machine, scaled
from tests.upstream import UpstreamError, to_devices
from tests.upstream import ask as ask_from_pretrained

MODELS = ("llama-tied", "mixtral", "mamba", "deberta", "t5", "whisper")


def compare(name: str) -> Counter[str]:
    """Plan the model on several machines, as installed; every map is what ``from_pretrained`` would use."""
    skeleton = small_models.skeleton(name)
    upstream = ask_from_pretrained(skeleton)
    here = Installed(release=transformers.__version__, ask=partial(ask, skeleton))
    total = sizes(skeleton.tree)[""]
    rng = random.Random(name)
    machines = [scaled(machine, total) for machine in MACHINES.values()]
    machines += [random_machine(rng, total) for _ in range(6)]
    found: Counter[str] = Counter()
    for machine in machines:
        for strategy in OF_TRANSFORMERS:
            placement = place(skeleton.tree, from_max_memory(to_devices(machine)), strategy, installed=here)
            case = f"{name} {strategy} {machine}"
            notes = " ".join(placement.notes)
            try:
                theirs = upstream.plan(strategy, machine)
            except UpstreamError as error:
                assert re.search(r"transformers (\S+ )?raises", notes), f"{case}: {error} without a note"
                found["raised"] += 1
                continue
            mine = to_hf(placement.device_map)
            if mine != theirs:
                assert "transformers loses" in notes, case
                at = {t.name: device_of(t.name, theirs) for t in tensors(skeleton.tree.root)}
                assert all(device in (None, device_of(t, mine)) for t, device in at.items()), case
                found["lost buffers"] += 1
            else:
                found["otherwise" if planned_otherwise(placement.notes) else "equal"] += 1
    return found


def main() -> None:
    total = sum((compare(name) for name in MODELS), Counter())
    source = planner_source(quantised=False)
    about = {"transformers": transformers.__version__, "accelerate": accelerate.__version__}
    print(json.dumps({**about, "known": source is not None and source.is_known, **total}))


if __name__ == "__main__":
    main()
