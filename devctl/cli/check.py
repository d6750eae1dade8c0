"""``devctl check``: does this machine meet what a job asks for?"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from devctl.cli.options import Json
from devctl.cli.show import streams
from devctl.devices import Device
from devctl.errors import RefusedError, UsageError
from devctl.units import parse_size

if TYPE_CHECKING:
    from devctl.inventory.requirements import Verdict

_T = TypeVar("_T")


class IdFormat(StrEnum):
    """How `--select` names GPUs."""

    INDEX = "index"
    UUID = "uuid"
    JSON = "json"


def check(
    model: Annotated[
        str | None, typer.Argument(help="With --map: the model, to know the bytes of a plain map's layers.")
    ] = None,
    *,
    gpus: Annotated[
        int | None, typer.Option(min=0, help="How many GPUs must qualify (1 if others ask of GPUs).")
    ] = None,
    gpu_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Free memory of each, like 40GiB.")] = None,
    total_gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Free memory of all usable GPUs together.")
    ] = None,
    ram: Annotated[str | None, typer.Option(metavar="SIZE", help="RAM that can be had, under cgroup limits.")] = None,
    disk: Annotated[
        list[str] | None, typer.Option(metavar="PATH=SIZE", help="Free space at PATH; may be given several times.")
    ] = None,
    compute_capability: Annotated[
        str | None, typer.Option(metavar="X.Y", help="At least this CUDA compute capability of each.")
    ] = None,
    driver: Annotated[str | None, typer.Option(metavar="VERSION", help="At least this driver version.")] = None,
    cuda: Annotated[
        str | None, typer.Option(metavar="VERSION", help="The driver can run at least this CUDA version.")
    ] = None,
    idle: Annotated[bool, typer.Option("--idle", help="No process on each.")] = False,
    p2p: Annotated[bool, typer.Option("--p2p", help="They can read and write each other's memory.")] = False,
    select: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Print the N best GPUs that qualify, for CUDA_VISIBLE_DEVICES: most free memory first, then fewest "
            "processes, least busy, PCI order.",
        ),
    ] = None,
    format_: Annotated[IdFormat, typer.Option("--format", help="How --select names them.")] = IdFormat.INDEX,
    map_: Annotated[
        Path | None,
        typer.Option(
            "--map", metavar="FILE", help="A device map or plan document ('-': stdin): does it still fit here?"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Refuse (exit code 3), with every reason, unless this machine meets all that is asked.

    Options on GPUs say what a GPU must offer to count; --gpus or --select say how many must count.
    """
    from devctl.inventory import take_inventory
    from devctl.inventory.requirements import Finding, Requirements, Verdict, disk_use, judge, parse_version

    wanted = Requirements(
        gpus=gpus,
        select=select,
        gpu_memory=_parsed("--gpu-memory", _size, gpu_memory),
        total_gpu_memory=_parsed("--total-gpu-memory", _size, total_gpu_memory),
        ram=_parsed("--ram", _size, ram),
        disks=tuple(_disk(text) for text in disk or ()),
        compute_capability=_parsed("--compute-capability", parse_version, compute_capability),
        driver=_parsed("--driver", parse_version, driver),
        cuda=_parsed("--cuda", parse_version, cuda),
        idle=idle,
        p2p=p2p,
    )
    if model is not None and map_ is None:
        raise UsageError(f"MODEL {model!r} is only for --map", hint="write --map map.json MODEL")
    if wanted == Requirements() and map_ is None:
        raise UsageError("nothing to check", hint="say what the job needs, like --gpus 2 --gpu-memory 40GiB")
    used, problems = (None, ()) if map_ is None else _used(map_, model)

    inventory = take_inventory(folders=tuple((disk_use(path), path) for path, _ in wanted.disks))
    verdict = judge(inventory, wanted)
    if used is not None:
        from devctl.inventory.map_fits import judge_map
        from devctl.placement.budget import as_here

        used = {as_here(device, inventory): size for device, size in used.items()}
        wrong = tuple(Finding(requirement=f"--map {map_}", met=False, found=problem) for problem in problems)
        verdict = Verdict(findings=verdict.findings + wrong + judge_map(inventory, used), selected=verdict.selected)
    _show(verdict, select is not None, IdFormat.JSON if json else format_, inventory.cuda_order_certain)


def _show(verdict: "Verdict", selecting: bool, format_: IdFormat, order_certain: bool) -> None:
    from devctl.cli.show import check as show_check

    if format_ is IdFormat.JSON:
        streams.answer(show_check.to_json(verdict))
    elif verdict.ok and selecting:
        if format_ is IdFormat.INDEX and not order_certain:
            streams.message("the order of the GPUs is not certain here", "use --format uuid")
        streams.answer(show_check.ids(verdict.selected, uuid=format_ is IdFormat.UUID))
    elif verdict.ok:
        streams.answer(show_check.lines(verdict))
    unmet = tuple(str(finding) for finding in verdict.findings if not finding.met)
    if unmet:
        number = f"{len(unmet)} of {len(verdict.findings)}" if len(verdict.findings) > 1 else "the"
        raise RefusedError(
            f"refused: {number} requirement{'s are' if len(verdict.findings) > 1 else ' is'} not met", findings=unmet
        )


def bytes_per_device(model: str, device_map: Mapping[str, Device]) -> tuple[dict[Device, int], tuple[str, ...]]:
    """The bytes of ``model`` that ``device_map`` puts on each device, and why the map is not one for this model.

    Raises:
        ModelError: the model can't be read.
    """
    from devctl.cli import gather
    from devctl.placement import placement

    _, tree = gather.tree(gather.Request(model=model))
    # which devices are here is a question of its own, with an answer for each
    findings = placement.validate(tree, device_map, tuple(device_map.values()))
    findings += placement.find_faults(tree, device_map)
    return placement.bytes_per_device(tree, device_map), findings


def _used(path: Path, model: str | None) -> tuple[dict[Device, int | None], tuple[str, ...]]:
    from devctl.cli.map_file import read_map_file

    file = read_map_file(path)
    devices = dict.fromkeys(file.device_map.values())
    if model is not None:
        sizes, problems = bytes_per_device(model, file.device_map)
        return {**devices, **sizes}, problems
    # a plan may name devices that hold nothing; they need not be there
    return {**devices, **{device: size for device, size in (file.used or {}).items() if size or device in devices}}, ()


def _disk(text: str) -> tuple[Path, int]:
    path, equals, size = text.rpartition("=")
    if not equals or not path:
        raise UsageError(f"--disk {text!r} is not PATH=SIZE", hint="write it like --disk /data=200GiB")
    parsed = _parsed("--disk", _size, size)
    assert parsed is not None, "only None is parsed to None"
    return Path(path).expanduser(), parsed


def _size(text: str) -> int:
    # a gate that takes 40 for 40 bytes, where 40GiB was meant, lets everything through
    if not text.strip()[-1:].isalpha():
        raise ValueError(f"{text!r} has no unit; write it like {text.strip() or 40}GiB")
    return parse_size(text)


def _parsed(option: str, parse: Callable[[str], _T], text: str | None) -> _T | None:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
