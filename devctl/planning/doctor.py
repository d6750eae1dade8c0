"""What is wrong with this environment: everything that a bug report needs to say, and nothing that is private.

The frameworks are asked in a process of their own (`examining.frameworks`), the drivers as for any inventory. One
question that fails, or finds something broken, keeps no other from being asked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import devctl
from devctl.as_json import to_json_values
from devctl.errors import DevctlError, first_line
from devctl.inventory import Inventory, take_inventory
from devctl.inventory.catalogue import find
from devctl.inventory.records import Accelerator, Driver, Hidden, Host, Vendor, label
from devctl.planning.examining.findings import Finding, Level, broken, note, ok
from devctl.planning.examining.folders import judge_folders
from devctl.planning.examining.frameworks import SECONDS, Question, Step
from devctl.planning.examining.packages import judge_owners, judge_python, judge_versions, owners, versions
from devctl.planning.examining.private import Private, private_here
from devctl.planning.examining.shells import judge_completion
from devctl.planning.examining.torch_build import Torch, judge_torch, parse_torch
from devctl.planning.examining.variables import CHOOSING, judge_allocator, judge_variables
from devctl.planning.progress import reporter
from devctl.units import format_bytes

__all__ = ["Examination", "Finding", "Level", "examine"]

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What was found, in the order in which it is asked: what others rest on comes first.

    Attributes:
        versions: of packages; None for one that is not installed.
        torch: what torch said of itself; None where it is not there, or its import fails.
    """

    findings: tuple[Finding, ...]
    versions: Mapping[str, str | None] = field(default_factory=dict)
    torch: Torch | None = None

    @property
    def broken(self) -> tuple[Finding, ...]:
        """What is to be repaired."""
        return tuple(finding for finding in self.findings if finding.level is Level.BROKEN)

    def to_document(self) -> dict[str, Any]:
        """The same as JSON values; see ``doctor.schema.json``."""
        torch = self.torch
        return {
            "schema": SCHEMA,
            "kind": "devctl.doctor",
            "devctl": devctl.__version__,
            "ok": not self.broken,
            "findings": to_json_values(self.findings),
            "versions": dict(self.versions),
            "torch": None
            if torch is None
            else {
                "version": torch.version,
                "cuda": torch.cuda,
                "hip": torch.hip,
                "xpu": torch.xpu,
                "mps": torch.mps,
                "architectures": list(torch.architectures),
                "devices": torch.sees,
            },
        }


def examine(*, seconds: float = SECONDS, command: Sequence[str] | None = None) -> Examination:
    """Look at what devctl rests on, here. Nothing is raised for what a machine or an installation may be like.

    Args:
        seconds: how long the imports of all frameworks have together.
        command: what imports them, instead of this interpreter.
    """
    environment = os.environ
    private = private_here(environment)
    question = Question(seconds, command)
    try:
        findings: list[Finding] = []
        asked = _Asking(findings, private)
        owned = asked.about("devctl", owners, ())
        asked.add("python", lambda: [judge_python()])
        asked.add("devctl", lambda: [judge_owners(owned, private)])
        known = asked.about("packages", versions, {})
        ours = next(iter(sorted((o for o in owned if o.ours), key=lambda o: o.version != devctl.__version__)), None)
        asked.add("packages", lambda: judge_versions(known, ours))
        with reporter().status("asking the drivers"):
            inventory = asked.about("machine", lambda: _look(environment, private), None)
        with reporter().status("importing torch, transformers and accelerate, in a process of their own"):
            steps = question.answers()
    finally:
        question.close()
    torch = _torch(steps, private)
    asked.add("torch", lambda: judge_steps(steps, seconds, private, [f.subject for f in findings]))
    asked.add("transformers", judge_planner)
    if inventory is not None:
        asked.add("boards", lambda: judge_boards(inventory, private))
        if torch is not None:
            asked.add("torch build", lambda: judge_torch(torch, inventory, private, windows=sys.platform == "win32"))
        asked.add("variables", lambda: judge_variables(environment, inventory, private))
        asked.add("allocator", lambda: judge_allocator(environment, known.get("torch")))
        asked.add("memory", lambda: judge_host(inventory.host))
    asked.add("folders", lambda: judge_folders(environment))
    asked.add("completion", lambda: judge_completion(environment))
    return Examination(
        findings=tuple(_clean(finding, private) for finding in findings),
        versions=known,
        torch=None if torch is None else replace(torch, said=None),
    )


class _Asking:
    """Asks one question after the other. One that breaks, by what nobody thought of, is a finding of its own."""

    def __init__(self, findings: list[Finding], private: Private) -> None:
        self._findings, self._private = findings, private

    def about(self, subject: str, look: Callable[[], Any], otherwise: Any) -> Any:
        """What ``look`` finds, or ``otherwise``."""
        try:
            return look()
        except DevctlError as error:
            text = self._private.hide(error.message)
            self._findings.append(broken(subject, text, self._private.hide(error.hint) or "repair what it names"))
        except Exception as error:  # the other questions must not be lost with it
            text = self._private.hide(f"could not be looked at: {type(error).__name__}: {first_line(error)}")
            hint = "this is a bug in devctl; please report it with the traceback that DEVCTL_DEBUG=1 shows"
            if os.environ.get("DEVCTL_DEBUG"):
                raise
            self._findings.append(broken(subject, text, hint))
        return otherwise

    def add(self, subject: str, look: Callable[[], list[Finding]]) -> None:
        """The findings of ``look``."""
        self._findings += self.about(subject, look, [])


def _clean(finding: Finding, private: Private) -> Finding:
    """``finding`` without what can only be private, should a part of it have come past `Private.hide`."""
    step = finding.next_step
    return replace(
        finding,
        subject=private.hide_certain(finding.subject),
        text=private.hide_certain(finding.text),
        next_step=None if step is None else private.hide_certain(step),
    )


def _look(environment: Mapping[str, str], private: Private) -> Inventory:
    """This machine, with names of boards as they may be told."""
    found = take_inventory(environment=environment)

    def told(name: str | None) -> str | None:
        # a host may be called as its boards are, which are to be told
        return name if name is None or find(name) is not None else private.hide(name)

    return replace(found, accelerators=tuple(replace(a, name=told(a.name)) for a in found.accelerators))


def _torch(steps: Mapping[str, Step], private: Private) -> Torch | None:
    """What torch told, as it may be told."""
    built = steps["torch"].facts
    if built is None:
        return None
    torch = parse_torch(built, steps["devices"].facts)

    def hidden(text: str | None) -> str | None:
        return None if text is None else private.hide(text)

    return replace(
        torch,
        version=private.hide(torch.version),
        cuda=hidden(torch.cuda),
        hip=hidden(torch.hip),
        xpu=hidden(torch.xpu),
        architectures=tuple(map(private.hide, torch.architectures)),
    )


def judge_steps(steps: Mapping[str, Step], seconds: float, private: Private, told: Sequence[str] = ()) -> list[Finding]:
    """What each import came to.

    Args:
        seconds: how long they had.
        told: subjects of which it is told already that they are not installed.
    """
    found: list[Finding] = []
    for name, step in steps.items():
        if not step.reached:
            subject = "torch devices" if name == "devices" else name
            found.append(note(subject, "was not looked at, as what comes before it ended the look"))
        elif step.fault is not None:
            found.append(_fault(name, private.hide(" ".join(step.fault.split())), seconds))
        elif name == "devices":
            continue  # held against what is here by `judge_torch`
        elif step.facts is not None:
            version = step.facts.get("version")
            known = private.hide(version) if isinstance(version, str) else "of an unknown version, which"
            found.append(ok(name, f"{known} imports"))
        elif name not in told:
            text = "is not installed: list and check work without it, plan of a new model and load do not"
            found.append(broken(name, text, f"`pip install {name}`"))
    return found


def _fault(name: str, said: str, seconds: float) -> Finding:
    what = "asking torch for its devices" if name == "devices" else f"importing {name}"
    subject = "torch devices" if name == "devices" else name
    if "did not end within" in said:
        again = f"--timeout {2 * seconds:g}s"
        hint = f"try {again} where the disk is slow; else look at the driver (`nvidia-smi`, `dmesg`)"
    elif "memory runs out" in said:
        hint = "give it more memory: the imports take about 1 GiB"
    elif name == "devices":
        hint = "look at the driver (`nvidia-smi`, `dmesg`)"
    else:
        hint = f"run `python -c 'import {name}'` for all that it says, then install {name} anew"
    if said.startswith(("crashed", "was killed", "did not", "ended", "answered", "wrote", "no process")):
        return broken(subject, f"{what} {said}", hint)
    return broken(subject, f"{what} fails: {said}", hint)


def judge_planner() -> list[Finding]:
    """Whether the planner of the installed transformers is one that devctl's copy was held against."""
    from importlib.util import find_spec

    from devctl.models.compared import planner_source

    subject, asked = "planner", "each first plan of a model asks transformers' own, and takes its map where it differs"
    source = planner_source(quantised=True)
    if source is None:
        if find_spec("transformers") is None or find_spec("accelerate") is None:
            return []  # which is told elsewhere
        return [note(subject, f"that of the installed transformers is not where devctl looks for it: {asked}")]
    if source.is_known:
        return [ok(subject, "devctl's copy was held against that of the installed transformers, map by map")]
    if replace(source, quantizers=None).is_known:
        return [note(subject, f"the installed transformers' quantizers are none that devctl was held against: {asked}")]
    return [note(subject, f"that of the installed transformers is none that devctl was held against: {asked}")]


def judge_boards(inventory: Inventory, private: Private) -> list[Finding]:
    """Drivers and boards at fault, or not well; and what a person has to know of how they are counted."""
    faults = {driver.fault for driver in inventory.drivers if driver.fault}
    found = [
        broken(
            f"{driver.vendor} driver", private.hide(driver.fault), "repair the driver; `devctl list` shows its boards"
        )
        for driver in inventory.drivers
        if driver.fault
    ]
    found += [
        ok(f"{driver.vendor} driver", f"{driver.version or 'of an unknown version'}{_runs(driver)}")
        for driver in inventory.drivers
        if not driver.fault
    ]
    found.append(ok("boards", _seen(inventory)))
    for board in inventory.accelerators:
        if board.vendor is Vendor.OTHER:
            continue
        if board.fault is not None and board.fault not in faults:
            hint = "leave it out by CUDA_VISIBLE_DEVICES, or reset it; `dmesg` says more"
            found.append(broken(label(board), f"{_name(board)}: {private.hide(board.fault)}", hint))
        elif board.mig is None and board.health is not None and board.health.problems:  # an instance has its board's
            said = private.hide(", ".join(board.health.problems))
            hint = "`devctl check --healthy` refuses it; reset or replace it, or look at cooling, power and slot"
            found.append(broken(label(board), f"{_name(board)}: {said}", hint))
    found += [
        note("boards", private.hide(said))
        for said in inventory.notes
        if not said.startswith(tuple(f"{variable}: " for variable in CHOOSING))  # told of the variable itself
    ]
    return found


def _runs(driver: Driver) -> str:
    return f", which runs CUDA {driver.cuda}" if driver.cuda else ""


def _name(board: Accelerator) -> str:
    return board.name or "a board"


def _seen(inventory: Inventory) -> str:
    boards = [a for a in inventory.accelerators if a.mig is None]
    if not boards:
        return "none: plans are for the CPU, or for what --devices names"
    counts: dict[str, int] = {}
    for board in boards:
        counts[_name(board)] = counts.get(_name(board), 0) + 1
    names = ", ".join(f"{number} × {name}" if number > 1 else name for name, number in counts.items())
    unusable = sum(1 for board in boards if board.hidden is Hidden.UNSUPPORTED)
    parts = sum(1 for a in inventory.accelerators if a.mig is not None)
    split = f", in {parts} MIG instances" if parts else ""
    return f"{names}{split}{f'; {unusable} of them of no use to torch' if unusable else ''}"


def judge_host(host: Host) -> list[Finding]:
    """The memory and processor time of this process."""
    if host.fault is not None or host.ram_total is None or host.ram_available is None:
        return [
            note("memory", "how much RAM there is could not be read: no plan can count on it", "use --max-memory cpu=…")
        ]
    cores = f"{host.cores_usable} of {host.cores_logical} cores" if host.cores_logical else "cores unknown"
    quota = "" if host.cpu_quota is None else f", {host.cpu_quota:g} cores' worth of their time"
    text = f"{format_bytes(host.ram_available)} of {format_bytes(host.ram_total)} RAM available, {cores}{quota}"
    of_all = host.ram_total_system
    limits = []
    if host.ram_limit is not None and (of_all is None or host.ram_limit < of_all):
        there = "" if of_all is None else f" of the machine's {format_bytes(of_all)}"
        limits.append(f"RAM to {format_bytes(host.ram_limit)}{there}")
    if host.cpu_quota is not None and host.cores_logical is not None and host.cpu_quota < host.cores_logical:
        limits.append(f"the processor to {host.cpu_quota:g} cores' worth of {host.cores_logical}")
    if limits:
        hint = "plans keep to it; ask the container or job for more (docker --memory, sbatch --mem) if it is too little"
        return [note("memory", f"{text}; a control group limits {' and '.join(limits)}", hint)]
    return [ok("memory", text)]
