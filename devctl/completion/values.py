"""Values that are looked up when they are asked for: boards, devices, models of the hub's cache, files.

No driver is asked, and nothing is read but names: a TAB takes less than what it would keep from typing.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from devctl.completion.offers import Offer, Offers, Table
from devctl.writing import expanded, hub_cache

_ROOT = Path("/")

_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

MOST = 2000
"""Candidates at most: a folder may have a million files."""


def look(kind: str, begun: str, table: Table) -> Offers:
    """Values of ``kind`` that begin with ``begun``; of an unknown kind none."""
    if kind in ("files", "folders"):
        return Offers(kind, tuple(paths(begun, "" if kind == "files" else None)))
    looked_up = _KINDS.get(kind)
    return Offers("words", () if looked_up is None else tuple(looked_up(begun, table)))


def accelerators(root: Path = _ROOT) -> tuple[str, ...]:
    """Devices that the kernel shows, by the names that frameworks have for them; no driver is asked.

    NVIDIA's kernel module has a folder for each of its boards, AMD's compute driver a node with its number of SIMDs.
    """
    if sys.platform == "darwin":
        return ("mps",) if os.uname().machine == "arm64" else ()
    number = len(_names(root / "proc/driver/nvidia/gpus"))
    if not number:
        nodes = root / "sys/class/kfd/kfd/topology/nodes"
        number = sum(1 for node in _names(nodes) if _has_simds(nodes / node / "properties"))
    for variable in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        if (chosen := os.environ.get(variable)) is not None:
            number = min(number, sum(1 for each in chosen.split(",") if each.strip() and each.strip() != "-1"))
    return tuple(f"cuda:{n}" for n in range(number))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - a path's own way takes its time
    except OSError:
        return []


def _has_simds(properties: Path) -> bool:
    try:
        text = properties.read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return re.search(r"^simd_count [1-9]", text, re.MULTILINE) is not None


def models() -> Iterator[str]:
    """Ids of models in the hub's cache that have a snapshot, in the order of their names."""
    cache = hub_cache()
    for name in _names(cache):
        model = name.removeprefix("models--").replace("--", "/")
        if name.startswith("models--") and _MODEL_ID.fullmatch(model) and _names(cache / name / "snapshots"):
            yield model


def paths(begun: str, *suffixes: str | None) -> Iterator[Offer]:
    """Folders, and files that end with one of ``suffixes``, that begin with ``begun``, written as that is.

    Args:
        suffixes: "" is any file; None is no file.
    """
    head, slash, tail = begun.rpartition("/")
    folder = expanded(os.path.expandvars(head + slash)) if slash else Path()
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, _is_folder(entry)) for entry in entries)
    except (OSError, ValueError):
        return
    for name, is_folder in found:
        hidden = name.startswith(".") and not tail.startswith(".")
        wanted = is_folder or any(suffix is not None and name.endswith(suffix) for suffix in suffixes)
        if wanted and not hidden and name.startswith(tail) and not _UNPRINTABLE.search(name):
            yield Offer(f"{head}{slash}{name}{'/' if is_folder else ''}")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _model(begun: str, _: Table) -> Iterator[Offer]:
    if not begun.startswith((".", "/", "~", "$")):
        yield from (Offer(model, "in the hub's cache") for model in models() if _begins(model, begun))
    yield from paths(begun, ".json", ".gguf")


def _map(begun: str, _: Table) -> Iterator[Offer]:
    yield from (Offer(device) for device in ("cpu", *accelerators()) if device.startswith(begun))
    yield from paths(begun, ".json")


def _json(begun: str, _: Table) -> Iterator[Offer]:
    yield from paths(begun, ".json")


def _hosts(begun: str, _: Table) -> Iterator[Offer]:
    if begun.startswith("@"):
        yield from (Offer(f"@{word}") for word, _ in paths(begun[1:], ""))
        return
    known = [Offer("@", "a hostfile")]
    if "SLURM_JOB_ID" in os.environ:
        known.append(Offer("slurm:", "those of this job"))
    yield from (offer for offer in known if offer.word.startswith(begun))


_LAST = re.compile(r"(?s)(.*[,;])?(.*)")


def _boards(begun: str, table: Table) -> Iterator[Offer]:
    """Boards, separated by commas, or "all"."""
    head, tail = _split(begun)
    yield from (Offer(head + name) for name in (*(() if head else ("all",)), *table["boards"]) if _begins(name, tail))


def _devices(begun: str, table: Table) -> Iterator[Offer]:
    """Like 2xH100,cpu=64GiB,disk, and of several hosts like a:2xH100;b:4xA100."""
    head, tail = _split(begun)
    host = re.match(r"[\w.-]+:", tail)
    if host is not None:
        head, tail = head + host[0], tail[host.end() :]
    here = head.rpartition(";")[2]
    if not begun:
        yield Offer("help", "the boards that are known")
    for name, said in (("cpu=", "RAM, like cpu=64GiB"), ("disk", "with layers on disk")):
        if name.startswith(tail) and name.rstrip("=") not in re.split(r"[,:=]", here):
            yield Offer(head + name, said)
    count = re.match(r"([0-9]+)[xX×]?", tail)
    number, tail = (f"{count[1]}x", tail[count.end() :]) if count else ("", tail)
    # a chip that shares the RAM of its machine takes no other beside it
    beside = number not in ("", "1x") or any(
        e and not e.startswith(("cpu", "disk")) for e in here.split(":")[-1].split(",")
    )
    names = (name for name in table["boards"] if not (beside and name in table["alone"]))
    yield from (Offer(f"{head}{number}{name}") for name in names if _begins(name, tail))


def _budgets(begun: str, _: Table) -> Iterator[Offer]:
    yield from _keys(begun, (*_indices(), "cpu", "disk"))


def _speeds(begun: str, _: Table) -> Iterator[Offer]:
    yield from _keys(begun, (*_indices(), "link", "disk"))


def _ids(begun: str, _: Table) -> Iterator[Offer]:
    head, tail = _split(begun)
    free = [index for index in _indices() if index not in head.split(",")]
    yield from (Offer(head + index) for index in free if index.startswith(tail))


def _indices() -> tuple[str, ...]:
    return tuple(device.partition(":")[2] for device in accelerators() if ":" in device)


def _keys(begun: str, names: tuple[str, ...]) -> Iterator[Offer]:
    head, tail = _split(begun)
    given = [each.partition("=")[0] for each in head.split(",")]
    yield from (Offer(f"{head}{name}=") for name in names if name not in given and f"{name}=".startswith(tail))


def _split(begun: str) -> tuple[str, str]:
    """What stands before the entry of a list that has been begun, and that entry."""
    match = _LAST.fullmatch(begun)
    return (match[1] or "", match[2]) if match else ("", begun)


def _begins(name: str, begun: str) -> bool:
    return name.casefold().startswith(begun.casefold())


_KINDS: dict[str, Callable[[str, Table], Iterator[Offer]]] = {
    "models": _model,
    "maps": _map,
    "json": _json,
    "hosts": _hosts,
    "boards": _boards,
    "devices": _devices,
    "budgets": _budgets,
    "speeds": _speeds,
    "ids": _ids,
}
KINDS = frozenset({*_KINDS, "files", "folders"})
"""What ``commands.json`` may name."""
