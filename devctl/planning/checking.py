"""Does a machine meet what a job asks for, and does a map still fit it?"""

from __future__ import annotations

from devctl.devices import Device
from devctl.errors import UsageError
from devctl.inventory import Inventory, take_inventory
from devctl.inventory.requirements import Finding, Requirements, Verdict, disk_use, judge
from devctl.planning.map_file import MapFile
from devctl.planning.request import ModelRequest


def check_machine(
    wanted: Requirements,
    file: MapFile | None = None,
    model: ModelRequest | None = None,
    inventory: Inventory | None = None,
    *,
    called: str = "device_map",
) -> tuple[Verdict, Inventory]:
    """Whether the machine meets ``wanted``, and has room for the map of ``file``; and that machine.

    Args:
        model: what the map is of, to know the bytes of its layers; None takes those that the file says.
        inventory: the machine; None is this one, now.
        called: what to call the map.

    Raises:
        UsageError: nothing is asked for, or a model without a map.
        ModelError: the model can't be read.
    """
    if model is not None and file is None:
        raise UsageError(f"MODEL {model.model!r} is only for --map", hint="write --map map.json MODEL")
    if wanted == Requirements() and file is None:
        raise UsageError("nothing to check", hint="say what the job needs, like --gpus 2 --gpu-memory 40GiB")
    used, problems = (None, ()) if file is None else _used(file, model)
    if inventory is None:
        inventory = take_inventory(folders=tuple((disk_use(path), path) for path, _ in wanted.disks))
    verdict = judge(inventory, wanted)
    if used is None:
        return verdict, inventory
    from devctl.inventory.map_fits import judge_map
    from devctl.placement.budget import as_here

    here = {as_here(device, inventory): size for device, size in used.items()}
    wrong = tuple(Finding(requirement=called, met=False, found=problem) for problem in problems)
    findings = verdict.findings + wrong + judge_map(inventory, here)
    return Verdict(findings=findings, selected=verdict.selected), inventory


def _used(file: MapFile, model: ModelRequest | None) -> tuple[dict[Device, int | None], tuple[str, ...]]:
    """The bytes on each device of the map, None where they are not asked for, and why it is not one for the model."""
    devices = dict.fromkeys(file.device_map.values())
    if model is None:
        # a plan may name devices that hold nothing; they need not be there
        said = {device: size for device, size in (file.used or {}).items() if size or device in devices}
        return {**devices, **said}, ()
    from devctl.placement import judge, placement
    from devctl.planning.model import open_model

    tree = open_model(model).tree
    # which devices are here is a question of its own, with an answer for each
    problems = judge.validate(tree, file.device_map, tuple(file.device_map.values()))
    problems += judge.find_faults(tree, file.device_map)
    return {**devices, **placement.bytes_per_device(tree, file.device_map)}, problems
