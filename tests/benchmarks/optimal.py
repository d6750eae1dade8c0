"""What ``optimal`` gains over transformers' own plan, and how long it takes.

The first table asks transformers itself for ``device_map="auto"``, and devctl for ``optimal``, for every model of
tests/configs on every set of devices: bytes offloaded, and the largest used fraction of a GPU over the ideal one, as
if bytes were as fine as dust and spread over all GPUs of the set. "proven" is whether the search knows that no
placement offloads less. The second table is the time that the search takes, and how it grows.
"""

import sys
import time
from fractions import Fraction
from pathlib import Path
from random import Random

from devctl.devices import Device, DeviceMap
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import ModuleTree
from devctl.placement import Placement, Strategy, place
from devctl.placement.budget import from_max_memory, is_accelerator, parse_max_memory
from devctl.placement.optimal.solve import Row, solve
from devctl.placement.placement import make_placement
from devctl.placement.runtime import main_of
from devctl.placement.strategy import device_of
from devctl.units import format_bytes
from tests.upstream import UpstreamError, ask

CONFIGS = Path(__file__).parents[1] / "configs"
BOXES = {
    "1×24": "0=24GiB,cpu=2TiB",
    "2×24": "0=24GiB,1=24GiB,cpu=2TiB",
    "141+24": "0=141GiB,1=24GiB,cpu=2TiB",
    "24+8": "0=24GiB,1=8GiB,cpu=2TiB",
    "4×8": ",".join(f"{i}=8GiB" for i in range(4)) + ",cpu=2TiB",
    "2×80": "0=80GiB,1=80GiB,cpu=2TiB",
    "8×12": ",".join(f"{i}=12GiB" for i in range(8)) + ",cpu=2TiB",
    "8×40": ",".join(f"{i}=40GiB" for i in range(8)) + ",cpu=2TiB",
    "8×100": ",".join(f"{i}=100GiB" for i in range(8)) + ",cpu=2TiB",
}


def theirs(upstream, tree, budgets, given):
    """transformers' own plan, or why there is none."""
    keys = {device.id if device.id is not None else str(device): size for device, size in given.items()}
    try:
        found = upstream.plan("auto", keys)
    except UpstreamError as error:
        return type(error.__cause__).__name__
    return make_placement(tree, dict(DeviceMap.from_hf(found)), budgets, strategy="auto")


def over_ideal(placement: Placement, ideal: Fraction) -> str:
    return f"{float(placement.fullest / ideal):.3f}" if ideal else "–"


def placements() -> None:
    print("| model | GPUs, GiB | auto offloads | optimal offloads | proven | auto / ideal | optimal / ideal |")
    print("|---|---|---|---|---|---|---|")
    for folder in sorted(CONFIGS.iterdir()):
        skeleton = read_skeleton(resolve(str(folder)))
        upstream = ask(skeleton)
        for name, text in BOXES.items():
            given = parse_max_memory([text])
            budgets = from_max_memory(given)
            best = place(skeleton.tree, budgets, Strategy.OPTIMAL)
            auto = theirs(upstream, skeleton.tree, budgets, given)
            room = sum(size for device, size in given.items() if device.id is not None)
            kept = sum(use.used for use in best.devices if use.device.id is not None)
            ideal = Fraction(kept, room)
            proven = not any("are offloaded, and it is not known" in note for note in best.notes)
            if isinstance(auto, Placement):
                runs = can_run(skeleton.tree, auto)
                assert best.offloaded <= auto.offloaded or not runs, (folder.name, name)
                spilled = format_bytes(auto.offloaded) + ("" if runs else " (no room to run them)")
                full = over_ideal(auto, ideal)
            else:
                spilled, full = auto, "–"
            print(
                f"| {folder.name} | {name} | {spilled} | {format_bytes(best.offloaded)} | {'yes' if proven else 'no'} "
                f"| {full} | {over_ideal(best, ideal)} |"
            )


def can_run(tree: ModuleTree, placement: Placement) -> bool:
    """Whether the device that runs the offloaded blocks has room for the largest."""
    devices = dict(placement.device_map)
    main = main_of(devices)
    off = [b.nbytes for b in tree.index.blocks if not on_gpu(device_of(b.names[0], devices))]
    use = next(use for use in placement.devices if use.device == main)
    return use.budget is None or use.used + max(off, default=0) <= use.budget


def on_gpu(device: Device | None) -> bool:
    return device is not None and is_accelerator(device)


def times() -> None:
    mib = 2**20
    random = Random(0)
    print("\n| blocks | GPUs | case | seconds | proven |")
    print("|---|---|---|---|---|")
    for blocks, gpus in ((100, 8), (100, 64), (300, 64), (1000, 8), (1000, 64), (1000, 256)):
        alike = [1000 * mib, *[416 * mib] * (blocks - 3), mib, 1000 * mib]
        unlike = [random.randint(100, 900) * mib for _ in range(blocks)]
        total = sum(alike)
        for case, sizes, budgets in (
            ("alike, fits", alike, [total * 13 // gpus // 10] * gpus),
            ("two kinds of GPU, fits", alike, [total * (11 if i % 2 else 19) // gpus // 10 for i in range(gpus)]),
            ("unlike GPUs, fits", alike, [total * 13 // gpus // 10 + i * mib for i in range(gpus)]),
            ("alike, offloads", alike, [total * 8 // gpus // 10] * gpus),
            ("two kinds of GPU, offloads", alike, [total * (5 if i % 2 else 9) // gpus // 10 for i in range(gpus)]),
            ("unlike GPUs, offloads", alike, [total * 8 // gpus // 10 + i * mib for i in range(gpus)]),
            ("unlike blocks, fits", unlike, [sum(unlike) * 13 // gpus // 10] * gpus),
            ("unlike blocks, offloads", unlike, [sum(unlike) * 8 // gpus // 10] * gpus),
        ):
            start = time.perf_counter()
            best = solve(Row(held=tuple(sizes), moved=tuple(sizes)), budgets, 2 * sum(sizes))
            seconds = time.perf_counter() - start
            open_questions = [
                name
                for name, bound in (
                    ("bytes", best.off_bound),
                    ("fraction", best.fraction_bound),
                    ("moves", best.moves_bound),
                )
                if bound is not None
            ]
            proven = f"all but {', '.join(open_questions)}" if open_questions else "all"
            print(f"| {blocks} | {gpus} | {case} | {seconds:.2f} | {proven} |")


if __name__ == "__main__":
    if "--times" not in sys.argv:
        placements()
    times()
