"""Does the torch that is installed drive the boards that are here? Pure: facts and an inventory in, findings out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from devctl.inventory.kernels import Kernels, Runs, kernels_for, least_driver, listed, runs
from devctl.inventory.records import HOST_POOL, Accelerator, Driver, Hidden, Inventory, Vendor, label
from devctl.planning.examining.findings import Finding, Level, broken, note, ok
from devctl.planning.examining.private import Private

_GET = "choose one at https://pytorch.org/get-started/locally"


@dataclass(frozen=True, slots=True, kw_only=True)
class Torch:
    """What torch says of its build and of what it sees.

    Attributes:
        cuda, hip, xpu: which release of CUDA, ROCm or oneAPI it was built for.
        architectures: boards that it has kernels for, as the compiler calls them.
        sees: how many boards it shows as "cuda"; None where it could not be asked.
        said: what it says of boards that it can't use; private.
    """

    version: str
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None
    mps: bool = False
    architectures: tuple[str, ...] = ()
    sees: int | None = None
    sees_xpu: int | None = None
    sees_mps: bool | None = None
    said: str | None = None

    @property
    def built_for(self) -> str:
        """In words."""
        gpus = {"CUDA": self.cuda, "ROCm": self.hip, "oneAPI": self.xpu}
        return next((f"{name} {release}" for name, release in gpus.items() if release), "the CPU alone")


def parse_torch(build: Mapping[str, Any], devices: Mapping[str, Any] | None) -> Torch:
    """What the process that imports torch told; what is of another kind than it should be counts as untold."""
    seen = devices or {}
    listed_ = build.get("architectures")
    return Torch(
        version=_text(build.get("version")) or "of an unknown version",
        cuda=_text(build.get("cuda")),
        hip=_text(build.get("hip")),
        xpu=_text(build.get("xpu")),
        mps=build.get("mps") is True,
        architectures=tuple(name for name in listed_ if isinstance(name, str)) if isinstance(listed_, list) else (),
        sees=_count(seen.get("cuda")),
        sees_xpu=_count(seen.get("xpu")),
        sees_mps=seen.get("mps") if isinstance(seen.get("mps"), bool) else None,
        said=_text(seen.get("said")),
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def judge_torch(torch: Torch, inventory: Inventory, private: Private, *, windows: bool = False) -> list[Finding]:
    """Whether this build drives the boards of ``inventory``, one finding a question that there is."""
    nvidia, amd = _boards(inventory, Vendor.NVIDIA), _boards(inventory, Vendor.AMD)
    found: list[Finding] = []
    if nvidia:
        found += _nvidia(torch, nvidia, inventory, windows=windows)
    if amd and not (nvidia and torch.hip is None):
        found += _amd(torch, amd)
    for vendor, built, name in ((Vendor.APPLE, torch.mps, "Metal (mps)"), (Vendor.INTEL, bool(torch.xpu), "xpu")):
        if boards := _boards(inventory, vendor):
            found.append(_other(torch, boards, built=built, name=name))
    if all(finding.level is not Level.BROKEN for finding in found):
        found += _counts(torch, inventory, private)
    return found


def _boards(inventory: Inventory, vendor: Vendor) -> list[Accelerator]:
    """The boards that work, and that frameworks can use."""
    without = (Hidden.UNSUPPORTED, Hidden.OTHER_BUILD)
    return [
        a
        for a in inventory.accelerators
        if a.vendor is vendor and a.fault is None and a.hidden not in without and a.mig is None
    ]


def _named(boards: list[Accelerator]) -> str:
    """ "2 boards (NVIDIA T4, NVIDIA H100 80GB HBM3)"."""
    names = ", ".join(dict.fromkeys(board.name or "of an unknown name" for board in boards))
    return f"{len(boards)} board{'s' if len(boards) > 1 else ''} ({names})"


def _on_purpose(boards: list[Accelerator]) -> bool:
    return all(board.hidden is Hidden.ENVIRONMENT for board in boards)


def _nvidia(torch: Torch, boards: list[Accelerator], inventory: Inventory, *, windows: bool) -> list[Finding]:
    driver = next((d for d in inventory.drivers if d.vendor is Vendor.NVIDIA), None)
    if torch.cuda is None:
        newest = f"CUDA {driver.cuda} or older" if driver is not None and driver.cuda else "CUDA"
        text = f"{torch.version} is built for {torch.built_for}, and there are {_named(boards)}"
        if _on_purpose(boards):
            return [note("torch build", f"{text}, which a variable hides")]
        if torch.hip is not None and _boards(inventory, Vendor.AMD):
            return [note("torch build", f"{text}, which it leaves out")]
        return [broken("torch build", text, f"install a torch that is built for {newest}: {_GET}")]
    found, verdict = [], Runs.UNKNOWN
    if driver is not None and driver.fault is None:
        verdict = runs(torch.cuda, driver.version, driver.cuda, windows=windows)
        found.append(_driver(driver, torch, verdict, windows=windows))
    by_kind: dict[tuple[str | None, str | None], list[Accelerator]] = {}
    for board in boards:
        by_kind.setdefault((board.name, board.compute_capability), []).append(board)
    compiles = verdict in (Runs.FULLY, Runs.UNKNOWN)
    return found + [_kernels(torch, alike, compiles=compiles) for alike in by_kind.values()]


def _driver(driver: Driver, torch: Torch, verdict: Runs, *, windows: bool) -> Finding:
    assert torch.cuda is not None
    least = least_driver(torch.cuda, windows=windows)
    it_is = f"{driver.version or 'of an unknown version'} runs CUDA {driver.cuda or 'of an unknown release'}"
    text = f"{it_is}, and torch is built for {torch.cuda}"
    if verdict is Runs.FULLY:
        return ok("driver", text)
    if verdict is Runs.WITHIN_MAJOR:
        only = "CUDA's minor version compatibility: what is compiled from PTX when it is first used does not run"
        return note("driver", f"{text}: by {only}", f"update the driver to one that runs CUDA {torch.cuda}")
    if verdict is Runs.UNKNOWN or torch.sees:
        return note("driver", f"{text}: whether they go together is not known" if not torch.sees else text)
    wanted = f"to {least} or newer" if least else f"to one that runs CUDA {torch.cuda}"
    instead = f", or install a torch that is built for CUDA {driver.cuda} or older: {_GET}" if driver.cuda else ""
    return broken("driver", f"{text}, which it is too old for", f"update the driver {wanted}{instead}")


def _kernels(torch: Torch, boards: list[Accelerator], *, compiles: bool) -> Finding:
    """What torch has for boards that are alike.

    Args:
        compiles: whether the driver can compile this torch's PTX.
    """
    capability = boards[0].compute_capability
    kernels = None if capability is None or not torch.architectures else kernels_for(capability, torch.architectures)
    subject = ", ".join(label(board) for board in boards)
    if kernels is None:
        return _not_known(subject, boards[0])
    it_is = f"{boards[0].name or 'a board'}, of compute capability {capability}"
    has = f"torch {torch.version} is built for {listed(torch.architectures)}"
    if kernels is Kernels.BINARY:
        return ok(subject, f"{it_is}: torch {torch.version} has kernels for it")
    if kernels is Kernels.PTX and compiles:
        return note(
            subject, f"{it_is}: {has}, so that its kernels are compiled when they are first used, which is slow"
        )
    hint = f"install a torch that is built for compute capability {capability}: {_GET}"
    if kernels is Kernels.PTX:
        return broken(
            subject, f"{it_is}: {has}, whose PTX is too new for the driver to compile", f"update it, or {hint}"
        )
    return broken(subject, f"{it_is}: torch has no kernels for it ({has})", hint)


def _not_known(subject: str, board: Accelerator) -> Finding:
    """The board does not say what it is, or torch what it was built for."""
    text = f"{board.name or 'a board'}: whether torch has kernels for it could not be found out"
    return note(subject, text, "`devctl load` of a small model there shows whether it runs")


def _amd(torch: Torch, boards: list[Accelerator]) -> list[Finding]:
    if torch.hip is None:
        text = f"{torch.version} is built for {torch.built_for}, and there are {_named(boards)}"
        if _on_purpose(boards):
            return [note("torch build", f"{text}, which a variable hides")]
        hint = f"install a torch that is built for ROCm: {_GET}"
        # the graphics of a processor are no reason to have bought one
        shared = all(board.memory_pool == HOST_POOL for board in boards)
        return [note("torch build", text, hint) if shared else broken("torch build", text, hint)]
    have = {name.partition(":")[0] for name in torch.architectures}
    found = []
    for board in boards:
        if board.architecture is None or not have:
            found.append(_not_known(label(board), board))
            continue
        it_is = f"{board.name or 'a board'}, {board.architecture}"
        if board.architecture in have:
            found.append(ok(label(board), f"{it_is}: torch {torch.version} has kernels for it"))
        else:
            has = f"torch {torch.version} is built for {', '.join(sorted(have))}"
            hint = f"install a torch that is built for {board.architecture}: {_GET}"
            text = f"{it_is}: torch has no kernels for it ({has})"
            shared = board.memory_pool == HOST_POOL
            found.append(note(label(board), text, hint) if shared else broken(label(board), text, hint))
    return found


def _other(torch: Torch, boards: list[Accelerator], *, built: bool, name: str) -> Finding:
    if built:
        return ok("torch build", f"{torch.version} is built for {name}, and there is {_named(boards)}")
    text = f"{torch.version} is not built for {name}, and there is {_named(boards)}"
    hint = f"install a torch that is: {_GET}"
    if boards[0].vendor is Vendor.APPLE:
        return broken("torch build", text, hint)
    # a processor's graphics are in many machines whose torch has another board, or none, to drive
    return note("torch build", text, hint)


def _counts(torch: Torch, inventory: Inventory, private: Private) -> list[Finding]:
    """Whether torch sees what the drivers show."""
    if torch.sees_mps is False and torch.mps and _boards(inventory, Vendor.APPLE):
        hint = "macOS 12.3 or newer is needed, and no virtual machine"
        return [broken("torch devices", "torch is built for Metal (mps), and says that it is not available", hint)]
    shown = [a for a in inventory.accelerators if a.device is not None and str(a.device).startswith("cuda")]
    if torch.sees is None or (torch.cuda is None and torch.hip is None):
        return []
    if torch.sees == len(shown):
        return [ok("torch devices", f"torch sees {torch.sees} of {len(shown)} GPUs")] if shown else []
    said = "" if torch.said is None else f": {private.hide(' '.join(torch.said.split()))}"
    text = f"torch sees {torch.sees} GPUs, and the driver shows {len(shown)}{said}"
    hint = "look at the driver (`nvidia-smi`, `dmesg`), at what the container was given, and at CUDA_VISIBLE_DEVICES"
    return [broken("torch devices", text, hint)]
