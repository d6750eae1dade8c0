"""What the variables that choose devices and folders hide, or fail to say. Pure: variables and an inventory in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches

from devctl.inventory.records import Accelerator, Hidden, Inventory, Vendor
from devctl.placement.placement import SEGMENTS
from devctl.planning.allocator import unheeded
from devctl.planning.examining.findings import Finding, broken, note
from devctl.planning.examining.private import Private

CHOOSING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
"""Variables that list devices by index or UUID."""

_READ = (
    *CHOOSING,
    "CUDA_DEVICE_ORDER",
    "ZE_AFFINITY_MASK",
    "ONEAPI_DEVICE_SELECTOR",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "DEVCTL_CACHE_DIR",
    "DEVCTL_DRIVER_TIMEOUT",
    "DEVCTL_DEBUG",
)
"""Variables that devctl, CUDA, HIP or the hub's library read, whose misspellings nobody reports."""

_OTHERS = re.compile(
    "NVIDIA_VISIBLE_DEVICES|(ASCEND|ASCEND_RT|HABANA|MUSA|GAUDI|TPU|MLU|AMD|DCU|ILUVATAR|CNCL)_VISIBLE_DEVICES"
    "|HF_HUB_.*|HF_TOKEN_.*|HF_.*_(TIMEOUT|CACHE|HOME|TOKEN|PATH)|_DEVCTL_COMPLETE"
)
"""Variables that look like those, and that others read."""

_NOT_READ = {
    "CUDA_DEVICES": "CUDA_VISIBLE_DEVICES",
    "CUDA_VISIBLE_GPUS": "CUDA_VISIBLE_DEVICES",
    "CUDA_GPUS": "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICES_VISIBLE": "CUDA_VISIBLE_DEVICES",
    "VISIBLE_DEVICES": "CUDA_VISIBLE_DEVICES",
    "VISIBLE_CUDA_DEVICES": "CUDA_VISIBLE_DEVICES",
    "GPU_VISIBLE_DEVICES": "CUDA_VISIBLE_DEVICES",
    "ROCM_VISIBLE_DEVICES": "ROCR_VISIBLE_DEVICES",
    "TRANSFORMERS_CACHE": "HF_HUB_CACHE",
    "PYTORCH_TRANSFORMERS_CACHE": "HF_HUB_CACHE",
    "PYTORCH_PRETRAINED_BERT_CACHE": "HF_HUB_CACHE",
    "HUGGINGFACE_HOME": "HF_HOME",
    "HF_CACHE": "HF_HUB_CACHE",
    "HF_HUB_HOME": "HF_HOME",
    "HF_CACHE_DIR": "HF_HUB_CACHE",
    "HF_OFFLINE": "HF_HUB_OFFLINE",
}
"""Names that people set and nobody reads (transformers did read three of them, before its release 5)."""

_LIKENESS = 0.93
"""How much of a name has to be right to be taken for a misspelling."""

_ON_PURPOSE = re.compile(r"\s*(|-1|none|void|NoDevFiles)\s*", re.IGNORECASE)
"""What people, schedulers and containers write to hide every GPU."""

_YES = ("1", "ON", "YES", "TRUE")
"""How huggingface_hub reads a variable that says yes."""

_ORDERS = ("FASTEST_FIRST", "PCI_BUS_ID")

_MOST_TOLD = 48
"""Characters of a value that are told."""


def judge_allocator(environment: Mapping[str, str], torch: str | None) -> list[Finding]:
    """Whether torch, of that version, is told to leave no gaps by a variable that it does not heed for this."""
    variable = unheeded(environment, torch)
    if variable is None:
        return []
    setting = SEGMENTS.partition("=")[2]
    text = f"says {setting}, which torch {torch or 'of a version that is not known'} does not heed here"
    return [note(variable, text, f"set {SEGMENTS}, and no other variable of torch's allocator")]


def judge_variables(environment: Mapping[str, str], inventory: Inventory, private: Private) -> list[Finding]:
    """What variables hide, what of them is read otherwise than it is written, and which nobody reads."""
    found: list[Finding] = []
    for variable in CHOOSING:
        if variable in environment:
            found += _choice(variable, environment[variable], inventory, private)
    order = environment.get("CUDA_DEVICE_ORDER")
    if order is not None and order not in _ORDERS:
        text = f"CUDA ignores {_quoted(order, private)}"
        hint = f"it takes {' or '.join(_ORDERS)}, in capitals"
        nvidia = any(a.vendor is Vendor.NVIDIA for a in inventory.accelerators)
        found.append(_wrong("CUDA_DEVICE_ORDER", text, hint, matters=nvidia))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if environment.get(name, "").upper() in _YES:
            found.append(note(name, "nothing is downloaded from the hub", "leave the variable out to download"))
    found += _container(environment.get("NVIDIA_VISIBLE_DEVICES"), environment, inventory)
    return found + _nobody_reads(environment, inventory)


def _choice(variable: str, value: str, inventory: Inventory, private: Private) -> list[Finding]:
    of = (Vendor.NVIDIA,) if variable == "CUDA_VISIBLE_DEVICES" else ()
    boards = [a for a in inventory.accelerators if a.vendor in (*of, Vendor.AMD) and a.mig is None and a.fault is None]
    hidden = [board for board in boards if board.hidden is Hidden.ENVIRONMENT]
    hides = _hides(boards, hidden) if hidden else ""
    see_all = "leave the variable out to see them"
    said = next((n.partition(": ")[2] for n in inventory.notes if n.startswith(f"{variable}: ")), None)
    if _ON_PURPOSE.fullmatch(value):
        return [note(variable, f"{_quoted(value, private)} hides every GPU", see_all)] if hidden else []
    if (wrong := _misread(value)) is not None:
        hint = "write the indices or UUIDs with commas, like 0,2"
        text = f"{_quoted(value, private)} is {wrong}{f'; it {hides}' if hides else ''}"
        return [_wrong(variable, text, hint, matters=bool(boards))]
    if said is not None:
        return [_wrong(variable, private.hide(said), "`devctl list` shows which there are", matters=bool(boards))]
    return [note(variable, hides, see_all)] if hides else []


def _hides(boards: list[Accelerator], hidden: list[Accelerator]) -> str:
    names = ", ".join(dict.fromkeys(board.name or "of an unknown name" for board in hidden))
    return f"hides {len(hidden)} of {len(boards)} boards ({names})"


def _misread(value: str) -> str | None:
    """How CUDA reads ``value`` otherwise than it is written; None where it does not.

    It takes the digits that an entry begins with, and stops at the first entry that begins with none.
    """
    if value.strip().startswith(("GPU-", "MIG-")):
        mixed = [each for each in value.split(",") if each.strip() and not each.strip().startswith(("GPU-", "MIG-"))]
        return (
            "a mixture of UUIDs and others, of which CUDA takes none behind the first that is no UUID"
            if mixed
            else None
        )
    for entry in value.split(","):
        digits = re.match(r"\s*[+-]?[0-9]+", entry)
        if digits is None:
            if entry.strip():
                return "no list of indices or UUIDs: CUDA sees nothing from the first entry on that is neither"
            continue
        if entry[digits.end() :].strip():
            return f"read as {digits[0].strip()}, where an entry goes on behind its digits"
    return None


def _wrong(variable: str, text: str, hint: str, *, matters: bool) -> Finding:
    """Broken where there are boards to be chosen from."""
    return broken(variable, text, hint) if matters else note(variable, text, hint)


def _container(value: str | None, environment: Mapping[str, str], inventory: Inventory) -> list[Finding]:
    """NVIDIA_VISIBLE_DEVICES is for the runtime that starts a container: within, it hides nothing."""
    if value is None or "CUDA_VISIBLE_DEVICES" in environment or value.strip() in ("", "all", "void", "none"):
        return []
    named = [entry for entry in value.split(",") if entry.strip()]
    boards = [a for a in inventory.accelerators if a.vendor is Vendor.NVIDIA and a.mig is None]
    if len(boards) <= len(named):
        return []
    text = f"names {len(named)} of {len(boards)} boards, and hides none: only what starts a container reads it"
    return [note("NVIDIA_VISIBLE_DEVICES", text, "set CUDA_VISIBLE_DEVICES to choose among them")]


def _nobody_reads(environment: Mapping[str, str], inventory: Inventory) -> list[Finding]:
    """Variables that are set and have no effect, by names that are nearly those of others."""
    found = []
    for name in sorted(environment):
        meant = _NOT_READ.get(name) or _meant(name)
        if meant is None:
            continue
        # whoever set the right one too knows
        hint = f"leave it out: {meant} is set as well" if meant in environment else f"is {meant} meant?"
        text = "is set, and nobody reads it"
        # a name that people may have for their own ends is no mistake for sure
        misspelt = name not in _NOT_READ or ("CUDA" in name and "VISIBLE" in name)
        chooses = misspelt and meant in CHOOSING and meant not in environment and bool(inventory.accelerators)
        found.append(broken(name, text, hint) if chooses else note(name, text, hint))
    return found


def _meant(name: str) -> str | None:
    if name in _READ or _OTHERS.fullmatch(name):
        return None
    close = get_close_matches(name.upper().strip(), _READ, n=1, cutoff=_LIKENESS)
    return close[0] if close else None


def _quoted(value: str, private: Private) -> str:
    return repr(private.hide(value)[:_MOST_TOLD])
