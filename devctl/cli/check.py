"""``devctl check``: does this machine meet what a job asks for?"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from devctl.cli.asking import Adapters
from devctl.cli.groups import Json, grouped, refuse_clashes
from devctl.cli.show import streams
from devctl.errors import RefusedError, UsageError
from devctl.planning import clashes
from devctl.writing import expanded

if TYPE_CHECKING:
    from devctl.inventory.requirements import Requirements, Verdict


class IdFormat(StrEnum):
    """How `--select` names GPUs."""

    INDEX = "index"
    UUID = "uuid"
    JSON = "json"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """What is asked of GPUs."""

    PANEL: ClassVar[str] = "GPUs"

    gpus: Annotated[int | None, typer.Option(min=0, metavar="N", help="How many GPUs must qualify; else 1.")] = None
    gpu_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="Free memory of each, like 40GiB.")] = None
    total_gpu_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Free memory of all of them together.")
    ] = None
    compute_capability: Annotated[str | None, typer.Option(metavar="X.Y", help="At least this, of each.")] = None
    driver: Annotated[str | None, typer.Option(metavar="VERSION", help="At least this driver.")] = None
    cuda: Annotated[str | None, typer.Option(metavar="VERSION", help="The driver runs at least this CUDA.")] = None
    idle: Annotated[bool, typer.Option("--idle", help="Nobody on each: no process, memory or work.")] = False
    healthy: Annotated[
        bool,
        typer.Option(
            "--healthy",
            help="No errors, repairs or throttling on each.",
        ),
    ] = False
    p2p: Annotated[bool, typer.Option("--p2p", help="They read and write each other's memory.")] = False
    select: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Print the N best, for CUDA_VISIBLE_DEVICES: healthy ones first, then most free memory, fewest "
            "processes, least busy, PCI order.",
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """What is asked of the host, and of a map."""

    PANEL: ClassVar[str] = "Host and map"

    ram: Annotated[str | None, typer.Option(metavar="SIZE", help="RAM that can be had, under cgroup limits.")] = None
    disk: Annotated[
        list[str] | None, typer.Option(metavar="PATH=SIZE", help="Free space at PATH; may be repeated.")
    ] = None
    map_: Annotated[
        Path | None,
        typer.Option("--map", metavar="FILE", help="Does this map or plan fit here? - is stdin."),
    ] = None
    adapter: Adapters = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """How to tell it."""

    PANEL: ClassVar[str] = "Output"

    format_: Annotated[IdFormat | None, typer.Option("--format", help="How --select names them.  [default: index]")] = (
        None
    )
    json: Json = False


@grouped
def check(
    model: Annotated[
        str | None, typer.Argument(help="With --map: the model, to know the bytes of a plain map's layers.")
    ] = None,
    *,
    gpu: GpuOptions,
    host: HostOptions,
    output: OutputOptions,
) -> None:
    """Say whether this machine meets all that is asked, and why not.

    Options on GPUs say what a GPU must offer to count; --gpus or --select say how many must count.
    """
    from devctl.planning.checking import check_machine
    from devctl.planning.map_file import read_map_file

    refuse_clashes(clashes.OF_CHECK, gpu, output)
    wanted = _requirements(gpu, host)
    if host.adapter and model is None:
        raise UsageError("--adapter is beside a MODEL", hint="give the model, too: --map FILE MODEL --adapter FOLDER")
    request = None
    if model is not None:
        from devctl.planning.request import ModelRequest

        streams.clean_logs()
        request = ModelRequest(model=model, adapters=tuple(host.adapter or ()))
    file = None if host.map_ is None else read_map_file(host.map_)
    verdict, inventory = check_machine(wanted, file, request, called=f"--map {host.map_}")
    _show(
        verdict,
        selecting=gpu.select is not None,
        format_=IdFormat.JSON if output.json else output.format_ or IdFormat.INDEX,
        order_certain=inventory.cuda_order_certain,
    )


def _requirements(gpu: GpuOptions, host: HostOptions) -> "Requirements":
    from devctl.inventory.requirements import Requirements

    return Requirements(
        gpus=gpu.gpus,
        select=gpu.select,
        gpu_memory=gpu.gpu_memory,
        total_gpu_memory=gpu.total_gpu_memory,
        ram=host.ram,
        disks=tuple(_disk(text) for text in host.disk or ()),
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
        cuda=gpu.cuda,
        idle=gpu.idle,
        healthy=gpu.healthy,
        p2p=gpu.p2p,
    )


def _show(verdict: "Verdict", *, selecting: bool, format_: IdFormat, order_certain: bool) -> None:
    from devctl.cli.show import check as show

    if format_ is IdFormat.JSON:
        streams.answer(streams.dumps(verdict.to_document()))
    elif verdict.ok and selecting:
        if format_ is IdFormat.INDEX and not order_certain:
            streams.message("the order of the GPUs is not certain here", "use --format uuid")
        streams.answer(show.ids(verdict.selected, uuid=format_ is IdFormat.UUID))
    elif verdict.ok:
        streams.answer(show.lines(verdict))
    if unmet := verdict.reasons:
        number = f"{len(unmet)} of {len(verdict.findings)}" if len(verdict.findings) > 1 else "the"
        raise RefusedError(
            f"refused: {number} requirement{'s are' if len(verdict.findings) > 1 else ' is'} not met", findings=unmet
        )


def _disk(text: str) -> tuple[Path, str]:
    path, equals, size = text.rpartition("=")
    if not equals or not path:
        raise UsageError(f"--disk {text!r} is not PATH=SIZE", hint="write it like --disk /data=200GiB")
    return expanded(path), size
