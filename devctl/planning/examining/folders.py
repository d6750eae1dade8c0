"""The folders that models and answers are kept in: is there room, and may they be read and written?"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from devctl.errors import UsageError
from devctl.inventory.probes import disk
from devctl.inventory.records import Disk, DiskKind
from devctl.models.cache import cache_folder
from devctl.planning.examining.findings import Finding, broken, note, ok
from devctl.units import format_bytes

LITTLE = 10 * 2**30
"""Free bytes that a model of some billion parameters does not fit in."""


_KINDS = {
    DiskKind.NVME: "an NVMe disk",
    DiskKind.SSD: "an SSD",
    DiskKind.HDD: "a spinning disk",
    DiskKind.VIRTUAL: "a virtual disk",
    DiskKind.NETWORK: "a network",
    DiskKind.MEMORY: "a disk in memory",
}


def judge_folders(environment: Mapping[str, str]) -> list[Finding]:
    """The hub's cache and devctl's own, by the variables that name them: their paths are not told."""
    mounted = disk.mounted()
    hub = disk.hf_cache()
    name = named_by(environment, ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"))
    found = [_hub(hub, disk.probe("hf cache", hub, mounted), name)]
    own = named_by(environment, ("DEVCTL_CACHE_DIR", "XDG_CACHE_HOME"))
    try:
        folder = cache_folder()
    except UsageError as error:
        return [*found, broken("devctl cache", error.message.partition("=")[0] + " names no folder", error.hint)]
    return [*found, _own(folder, disk.probe("devctl cache", folder, mounted), own)]


def named_by(environment: Mapping[str, str], variables: tuple[str, ...]) -> str:
    """Which variable says where a folder is, in words."""
    return next((f"by {name}" for name in variables if environment.get(name)), "in the user's cache folder")


def _hub(folder: Path, found: Disk, name: str) -> Finding:
    subject = "hub cache"
    trouble = _trouble(folder)
    if trouble is not None:
        return broken(subject, f"{name}: {trouble}", "make it a folder of your own, or name another one by HF_HOME")
    if found.fault is not None or found.free is None:
        return broken(subject, f"{name}: {found.fault or 'its space is unknown'}", "name another one by HF_HOME")
    text = f"{name}: {_models(folder)}, {format_bytes(found.free)} free{_kind(found)}"
    if owner := _of_another(folder):
        return note(subject, f"{text}; {owner}, and nothing can be downloaded to it", "name one of your own by HF_HOME")
    if found.free < LITTLE:
        return note(subject, text, "remove models with `hf cache`, or name a folder on another disk by HF_HOME")
    if found.kind is DiskKind.MEMORY:
        return note(subject, f"{text}: what is kept there takes RAM", "name a folder on a disk by HF_HOME")
    return ok(subject, text)


def _own(folder: Path, found: Disk, name: str) -> Finding:
    subject = "devctl cache"
    hint = "name a folder of your own by DEVCTL_CACHE_DIR; without one each plan builds its model anew"
    trouble = _trouble(folder)
    if trouble is not None or found.fault is not None or found.free is None:
        return note(subject, f"{name}: {trouble or found.fault or 'its space is unknown'}", hint)
    if hasattr(os, "geteuid") and folder.exists() and folder.stat().st_uid != os.geteuid():
        return note(subject, f"{name}: it belongs to another user, and is not used", hint)
    if _of_another(folder):
        return note(subject, f"{name}: it can't be written", hint)
    return ok(subject, f"{name}: {format_bytes(found.free)} free{_kind(found)}")


def _trouble(folder: Path) -> str | None:
    """Why ``folder`` is of no use at all, if so; one that can be made is."""
    existing = disk.nearest_existing(folder)
    try:
        if not stat.S_ISDIR(existing.stat().st_mode):
            return "something else than a folder is in its place"
    except (OSError, ValueError) as error:
        return f"it can't be looked at: {getattr(error, 'strerror', None) or error}"
    if existing == folder and not os.access(folder, os.R_OK | os.X_OK):
        return "it can't be read by this user"
    return None


def _of_another(folder: Path) -> str | None:
    """Why ``folder``, or the one that it would be made in, can't be written; None where it can."""
    existing = disk.nearest_existing(folder)
    if os.access(existing, os.W_OK | os.X_OK):
        return None
    another = hasattr(os, "geteuid") and existing.stat().st_uid != os.geteuid()
    what = "it" if existing == folder else "the folder that it would be made in"
    return f"{what} belongs to another user" if another else f"{what} can't be written"


def _models(folder: Path) -> str:
    try:
        number = sum(1 for each in folder.iterdir() if each.name.startswith("models--"))
    except OSError:
        return "no models yet"
    return f"{number} model{'' if number == 1 else 's'}"


def _kind(found: Disk) -> str:
    return f", on {_KINDS[found.kind]}" if found.kind is not None else ""
