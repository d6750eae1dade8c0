"""``devctl load`` of a plan whose layers are on several hosts: how its ranks are started, and what each of them is."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from devctl.cli.asking import seconds
from devctl.cli.groups import given, refuse_clashes
from devctl.cli.show import streams
from devctl.distributed.launch import (
    DEFAULT_PORT,
    Launch,
    Launcher,
    Run,
    lines,
    notes,
)
from devctl.distributed.link import Limits
from devctl.distributed.report import parse_report
from devctl.distributed.start import Ended, run_local, run_ssh
from devctl.errors import LoadError, RefusedError, UsageError
from devctl.placement.document import KIND, SCHEMA, parse_json, require_of_transformers
from devctl.placement.document_shape import require_shape
from devctl.placement.parallel.records import Stages, is_staged, parse_stages
from devctl.planning import clashes
from devctl.planning.map_file import bare_device, parse_map_file, read_text, require_loadable

if TYPE_CHECKING:
    from devctl.planning.request import ModelRequest


_WHERE = "each host needs it at this path; `devctl plan MODEL --hosts …` writes it"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostsOptions:
    """How a plan over several hosts is run."""

    PANEL: ClassVar[str] = "Several hosts"

    launch: Annotated[
        Launch | None,
        typer.Option(
            "--launch",
            help="print each host's line, or start all ranks: local, on this machine, or ssh.",
        ),
    ] = None
    launcher: Annotated[
        Launcher | None,
        typer.Option("--launcher", help="torchrun, slurm, deepspeed or kubernetes, for print."),
    ] = None
    distributed: Annotated[bool, typer.Option("--distributed", help="Be one rank, as the launcher has started it.")] = (
        False
    )
    master_addr: Annotated[
        str | None,
        typer.Option("--master-addr", metavar="HOST", help="Where ranks meet; else on the plan's first host."),
    ] = None
    master_port: Annotated[
        int | None,
        typer.Option(
            "--master-port", metavar="PORT", min=1, max=65535, help="The port there.  [default: 29500; local: any]"
        ),
    ] = None
    join_timeout: Annotated[
        float | None,
        typer.Option(
            "--join-timeout", parser=seconds, metavar="TIME", help="How long ranks wait for others.  [default: 60s]"
        ),
    ] = None
    step_timeout: Annotated[
        float | None,
        typer.Option(
            "--step-timeout",
            parser=seconds,
            metavar="TIME",
            help="How long a step may show nothing.  [default: 120s]",
        ),
    ] = None
    verify_weights: Annotated[
        bool, typer.Option("--verify-weights", help="Compare the bytes that several hosts read.")
    ] = False

    @property
    def limits(self) -> Limits:
        """How long anything may take."""
        default = Limits()
        return Limits(join=self.join_timeout or default.join, step=self.step_timeout or default.step)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPlan:
    """A plan document with stages.

    Attributes:
        path: as it was given.
    """

    path: str
    text: str
    stages: Stages
    model: dict[str, Any]
    shared: dict[str, Any]


def read_staged(argument: str | None) -> StagedPlan | None:
    """The staged plan that ``--map`` names; None where it names none, for what else it may be.

    Raises:
        UsageError: its stages can't be.
    """
    try:
        if argument is None or argument == "-" or not Path(argument).is_file():
            return None
    except OSError:  # a name that no file can have
        return None
    text, origin = read_text(Path(argument), "the plan", _WHERE)
    if '"stages"' not in text:
        return None
    document = parse_json(text, origin)
    # a plain map may have a module of that name, and a document says null of a plan without any
    if not is_staged(document) or document.get("kind") != KIND or document["stages"] is None:
        return None
    if document.get("schema") != SCHEMA:
        raise UsageError(
            f"{origin} is a plan of schema {document.get('schema')!r}; this devctl reads schema {SCHEMA}",
            hint="every host needs the same devctl as the plan was made with",
        )
    require_of_transformers(document, argument)
    planned, shared = document.get("model"), document.get("tensor_parallel")
    if isinstance(planned, dict):
        require_loadable(planned, origin)
    stages = parse_stages(document, origin)
    require_shape(document, origin, may_lack=True)
    return StagedPlan(
        path=argument,
        text=text,
        stages=stages,
        model=planned if isinstance(planned, dict) else {},
        shared=shared if isinstance(shared, dict) else {},
    )


def require_alone(argument: str | None, hosts: HostsOptions) -> None:
    """Refuse options of a plan over several hosts where ``--map`` names no such plan: what can't be read first.

    Raises:
        UsageError: one is given.
        RefusedError: the file is a plan of another engine.
    """
    if argument is not None and given(hosts):
        if argument == "-":
            raise UsageError(
                "--map -: every rank reads the plan from a file of its host", hint="write it to one, and give that"
            )
        try:
            bare_device(argument)
        except ValueError:
            parse_map_file(*read_text(Path(argument), "the plan", _WHERE))
    refuse_clashes(clashes.OF_ONE_HOST, hosts)


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedRun:
    """What of ``load``'s other options a run over several hosts has.

    Attributes:
        arguments: those that each rank is started with, after ``load MODEL --map FILE``.
    """

    model: ModelRequest
    prompt: str | None
    batch_size: int
    padding: bool
    context_length: int | None
    max_new_tokens: int
    decode: str | None
    json: bool
    arguments: tuple[str, ...]


def load_staged(plan: StagedPlan, hosts: HostsOptions, run: StagedRun) -> None:
    """Be a rank of the plan, or start all of them, or say how.

    Raises:
        DevctlError: as `devctl.distributed.worker.run_rank`.
    """
    if hosts.distributed:
        refuse_clashes(clashes.OF_RANK, hosts)
        _be_rank(plan, hosts, run)
        return
    several = len(plan.stages.hosts) > 1
    launch = hosts.launch or (Launch.PRINT if several else Launch.LOCAL)
    clashes.refuse(clashes.OF_LAUNCH, {*given(hosts), f"launch {launch}"})
    from devctl.distributed.checks import require_run  # which the help does without

    require_run(_request(plan, hosts, run), plan.path)
    model, path = str(run.model.model), plan.path
    if launch is Launch.SSH:  # whose lines begin in the home folder of each host
        model, path = _whole(model), _whole(path)
    started = Run(
        stages=plan.stages,
        arguments=("load", model, "--map", path, "--distributed", *run.arguments),
        address=hosts.master_addr,
        port=hosts.master_port or DEFAULT_PORT,
        join=hosts.limits.join,
    )
    if launch is Launch.PRINT:
        launcher = hosts.launcher or Launcher.TORCHRUN
        found = lines(started, launcher)
        for note in notes(started, launcher):
            streams.say(f"note: {streams.clean(note)}\n")
        if hosts.launch is None and hosts.launcher is None:  # nothing is loaded, which is what was asked for
            raise RefusedError(
                f"{plan.path} is a plan for {len(plan.stages.hosts)} hosts, and this is one: each is to run its line",
                findings=tuple(found),
                hint="--launch print gives these lines on stdout, --launch ssh runs them",
            )
        streams.answer("".join(f"{line}\n" for line in found))
        return
    # a rank knows nothing of this terminal: what it found is shown here
    if not run.json:
        started = replace(started, arguments=(*started.arguments, "--json"))
    if launch is Launch.SSH:
        _show(run_ssh(started, hosts.limits, _say), run)
    else:
        _show(run_local(started, hosts.limits, _say, port=hosts.master_port), run)


def _show(ended: Ended, run: StagedRun) -> None:
    """Show the report of rank 0, where it came so far, whether it is a pass or not.

    Raises:
        LoadError: it is none, or there is no report.
    """
    report, beside = parse_report(ended.answer)
    for line in beside:
        _say(line)
    if report is not None:
        _answer(report, run)
    if ended.error is not None:
        raise ended.error
    if report is None:
        raise LoadError("all ended well, and none gave a report", hint="see what is said above, and run it again")


def _answer(report: dict[str, Any], run: StagedRun) -> None:
    from devctl.cli.show.staged import staged_report

    streams.answer(streams.dumps(report) if run.json else staged_report(report))


def _whole(name: str) -> str:
    """The whole path of what is here; else the same, for it may be a name on the hub."""
    try:
        return str(Path.cwd() / name) if Path(name).exists() else name
    except (OSError, ValueError):  # a name that no file can have
        return name


def _say(line: str) -> None:
    streams.say(f"{streams.clean(line)}\n")


def _request(plan: StagedPlan, hosts: HostsOptions, run: StagedRun) -> Any:
    from devctl.distributed.checks import RankRequest

    return RankRequest(
        model=run.model,
        stages=plan.stages,
        plan=plan.text,
        planned=plan.model,
        shared=plan.shared,
        prompt=run.prompt,
        batch_size=run.batch_size,
        padding=run.padding,
        context_length=run.context_length,
        max_new_tokens=run.max_new_tokens,
        decode=run.decode,
        verify_weights=hosts.verify_weights,
    )


def _be_rank(plan: StagedPlan, hosts: HostsOptions, run: StagedRun) -> None:
    from devctl.distributed.seat import find_seat
    from devctl.distributed.worker import run_rank

    seat = find_seat(plan.stages, os.environ, socket.gethostname())
    outcome = run_rank(_request(plan, hosts, run), seat, hosts.limits)
    if outcome.report is not None:
        _answer(outcome.report, run)
    if outcome.refusal is not None:
        raise outcome.refusal


def forwarded(values: Sequence[tuple[str, object, object]]) -> tuple[str, ...]:
    """Options for the ranks, of (name, value, default): those that are given."""
    found: list[str] = []
    for name, value, default in values:
        if value == default:
            continue
        found += [name] if value is True else [name, str(value)]
    return tuple(found)
