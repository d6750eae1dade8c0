"""Module trees and footprints kept between runs, so that a second plan of a model imports no torch."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from devctl import __version__
from devctl.errors import DevctlError, UsageError
from devctl.models import footprint, kept
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.footprint import Footprint, Kernels, Workload, dump_footprint, parse_footprint
from devctl.models.sharding import parse_sharding
from devctl.models.tracing.cpu_scratch import processor
from devctl.models.tree import Module, ModuleTree, Tensor, TensorKind
from devctl.reading import MOST_TEXT, open_file
from devctl.writing import expanded, write_whole

FORMAT = 8
"""Version of an entry; it grows when the tree's shape or the way it is built changes."""


LIMIT = 256 * 2**20
"""Bytes that the entries may have together; those that were not used for longest make room for a new one."""

_OURS = re.compile(r"[0-9a-f]{64}\.json|\.devctl-[0-9a-f]{16}")
"""Names of entries, and of what a killed process left half-written. Whatever else is in the folder stays there."""


_DECIDING = re.compile(r"\.safetensors$|\.bin$|\.index\.json$|^hf_quant_config\.json$")
"""Names of the files beside a config that decide what its model takes."""


def cache_folder(platform: str = sys.platform) -> Path:
    """``DEVCTL_CACHE_DIR``, else ``devctl`` in ``XDG_CACHE_HOME`` or the user's cache folder on ``platform``.

    Raises:
        UsageError: one of these variables names the folder of a user that there is not.
    """
    for name, within in (("DEVCTL_CACHE_DIR", ""), ("XDG_CACHE_HOME", "devctl")):
        if folder := os.environ.get(name):
            path = expanded(folder)
            if str(path).startswith("~"):
                raise UsageError(f"{name}={folder}: there is no such user", hint="name a folder of your own")
            return path / within
    if platform == "darwin":
        return expanded("~/Library/Caches/devctl")
    if platform == "win32":
        return expanded(os.environ.get("LOCALAPPDATA") or "~/AppData/Local") / "devctl" / "Cache"
    return expanded("~/.cache/devctl")


def tree_key(
    source: ModelSource,
    *,
    dtype: str,
    model_class: str | None,
    trust_remote_code: bool,
    quantize: str | None = None,
    unpacked: bool = False,
) -> str | None:
    """What the tree depends on, hashed: the config, what was asked for, and the versions that build it.

    A checkpoint is held against the model once: its files are told apart by names, sizes and times, a hub's by commit.

    Args:
        unpacked: whether it is the tree of what transformers unpacks, where the hardware for packed weights is missing.

    Returns:
        None where more decides: code that comes with the model, or a checkpoint that knows the dtype.

    Raises:
        ModelError: the config can't be read.
    """
    from importlib.metadata import version

    config = source.config
    named = config.get("dtype") or config.get("torch_dtype")
    if trust_remote_code or (dtype == "auto" and not named):
        return None
    parts = [FORMAT, _versions(version), dtype, model_class, quantize, unpacked, config, _files(source)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def footprint_key(
    source: ModelSource,
    workload: Workload,
    *,
    dtype: str,
    model_class: str | None,
    trust_remote_code: bool,
    part: object = None,
) -> str | None:
    """What the footprint depends on, hashed: what the tree does, the workload, and what tells it from a whole one.

    Args:
        part: the shapes of given inputs, or the phase that is traced alone; JSON.

    Returns:
        None where more decides, as for the tree.

    Raises:
        ModelError: the config can't be read.
    """
    tree = tree_key(source, dtype=dtype, model_class=model_class, trust_remote_code=trust_remote_code)
    if tree is None:
        return None
    parts = [tree, footprint.FORMAT, asdict(workload), part]
    if workload.kernels is Kernels.CPU:
        parts += processor()
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.cache
def _versions(look_up: Callable[[str], str]) -> tuple[str, ...]:
    """The versions of what builds a tree, looked up once: one plan asks for many footprints."""
    return (__version__, *(look_up(name) for name in ("transformers", "torch")))


def _files(source: ModelSource) -> list[object]:
    """What tells the checkpoint of ``source`` from another one with the same config."""
    if source.kind is SourceKind.HUB:
        return [source.location, source.revision]
    found = []
    if source.kind is SourceKind.DIRECTORY:
        with contextlib.suppress(OSError):
            for path in sorted(source.config_path.parent.iterdir()):
                if _DECIDING.search(path.name):
                    stat = path.stat()
                    found.append([path.name, stat.st_size, stat.st_mtime_ns])
    return list(found)


def load_tree(key: str) -> ModuleTree | None:
    """The tree kept under ``key``; None if there is none, or it can't be read."""
    try:
        return parse_tree(_load(key))
    except (OSError, ValueError):
        return None


def load_footprint(key: str) -> Footprint | None:
    """The footprint kept under ``key``; None if there is none, or it can't be read."""
    try:
        return parse_footprint(_load(key))
    except (OSError, ValueError):
        return None


def load_comparison(key: str) -> bool | None:
    """What is kept under ``key`` of whether two planners agree; None if nothing is, or it can't be read."""
    try:
        found = json.loads(_load(key))
    except (OSError, ValueError, RecursionError):
        return None
    equal = found.get("equal") if isinstance(found, dict) else None
    return equal if isinstance(equal, bool) else None


def store_comparison(key: str, *, equal: bool) -> None:
    """Keep whether two planners agree under ``key``, as a tree is kept."""
    _store(key, json.dumps({"equal": equal}))


def store_tree(key: str, tree: ModuleTree) -> None:
    """Keep ``tree`` under ``key``, whole or not at all. A cache that can't be written costs time, nothing else."""
    _store(key, dump_tree(tree))


def store_footprint(key: str, found: Footprint) -> None:
    """Keep ``found`` under ``key``, as a tree is kept."""
    _store(key, dump_footprint(found))


def store_untraced(key: str) -> None:
    """Keep under ``key`` that there is no such footprint, as a tree is kept."""
    _store(key, json.dumps({"untraced": True}))


def is_untraced(key: str) -> bool:
    """Whether it is kept under ``key`` that there is no such footprint."""
    try:
        found = json.loads(_load(key))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("untraced") is True


def _load(key: str) -> str:
    path = cache_folder() / f"{key}.json"
    if unusable() is not None:
        raise PermissionError(errno.EPERM, "the cache is not ours alone", str(path))
    with open_file(path) as file:
        if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it is another user's", str(path))
        text, _, digest = file.read(MOST_TEXT).decode().rpartition("\n")
    if digest != _digest(key, text):
        raise ValueError(f"{path} is not what was kept")
    with contextlib.suppress(OSError):  # a folder that can only be read
        os.utime(path)  # used now; file systems often do not keep the time of reading
    return text


def _store(key: str, text: str) -> None:
    folder = cache_folder()
    with contextlib.suppress(OSError, DevctlError):
        if unusable() is not None:
            return
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(folder / f"{key}.json", f"{text}\n{_digest(key, text)}")
        _make_room(folder)


def _digest(key: str, text: str) -> str:
    """What tells that an entry is whole, and the one of its name."""
    return hashlib.sha256(f"{key}\n{text}".encode()).hexdigest()


def unusable() -> str | None:
    """Why the cache is not used, in words: what others can write says what others want. None where it is, or can be.

    A folder of ours that others may look into or write to is closed to them.

    Raises:
        UsageError: as ``cache_folder``.
    """
    folder = cache_folder()
    if not hasattr(os, "geteuid"):
        return None
    try:
        found = folder.stat()
        if found.st_uid != os.geteuid():
            return f"the cache {folder} is not used: it belongs to another user"
        if found.st_mode & 0o077:
            folder.chmod(found.st_mode & 0o700)
        return None
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"the cache {folder} is not used: {error.strerror}"


def _make_room(folder: Path) -> None:
    """Remove the entries that were not used for longest, until the rest is within the limit."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):  # another process was faster
                    stat = entry.stat(follow_symlinks=False)
                    found.append((stat.st_mtime_ns, entry.name, stat.st_size))
    too_much = sum(size for _, _, size in found) - LIMIT
    for _, name, size in sorted(found):
        if too_much <= 0:
            return
        (folder / name).unlink(missing_ok=True)
        too_much -= size


def dump_tree(tree: ModuleTree) -> str:
    """A tree as JSON; modules and tensors are lists, and go by the last part of their names."""
    return json.dumps(
        {
            "format": FORMAT,
            "root": _dump_module(tree.root),
            "class": tree.class_name,
            "dtype": tree.dtype,
            "ties": tree.ties,
            "untied": sorted(tree.untied),
            "no_split": sorted(tree.no_split),
            "unplaced": None if tree.unplaced is None else sorted(tree.unplaced),
            "quantisation": tree.quantisation,
            "budget_share": tree.budget_share,
            "no_offload": sorted(tree.no_offload),
            "unpacked": tree.unpacked,
            "packed_as": tree.packed_as,
            "notes": tree.notes,
            "attention": tree.attention,
            "attentions": tree.attentions,
            "sharding": None if tree.sharding is None else tree.sharding.to_json(),
        },
        separators=(",", ":"),
    )


def parse_tree(text: str) -> ModuleTree:
    """What ``dump_tree`` wrote.

    Raises:
        ValueError: it is not that.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']} is not {FORMAT}")
        return ModuleTree(
            root=_parse_module(data["root"], ""),
            class_name=kept.text(data["class"]),
            dtype=kept.text(data["dtype"]),
            ties=tuple((kept.text(target), kept.text(source)) for target, source in data["ties"]),
            untied=frozenset(kept.texts(data["untied"])),
            no_split=frozenset(kept.texts(data["no_split"])),
            unplaced=None if data["unplaced"] is None else frozenset(kept.texts(data["unplaced"])),
            quantisation=_text_or_none(data["quantisation"]),
            budget_share=_share(data["budget_share"]),
            no_offload=frozenset(kept.texts(data["no_offload"])),
            unpacked=None if data["unpacked"] is None else kept.size(data["unpacked"]),
            packed_as=_text_or_none(data["packed_as"]),
            notes=kept.texts(data["notes"]),
            attention=_text_or_none(data["attention"]),
            attentions=kept.texts(data["attentions"]),
            sharding=None if data["sharding"] is None else parse_sharding(data["sharding"]),
        )
    except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a module tree: {error!r}") from None


def _text_or_none(value: Any) -> str | None:
    return None if value is None else kept.text(value)


def _share(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value <= 1:
        raise ValueError(f"{value!r} is no share")
    return float(value)


def _dump_module(module: Module) -> list[Any]:
    tensors = [
        [t.name.rpartition(".")[2], t.kind, t.nbytes, t.shape, t.dtype, t.persistent, t.same_as, t.held, t.loading]
        for t in (*module.parameters, *module.buffers)
    ]
    return [module.name.rpartition(".")[2], module.class_name, tensors, [_dump_module(c) for c in module.children]]


def _parse_module(data: list[Any], prefix: str) -> Module:
    last, class_name, tensors, children = data
    name = prefix + kept.text(last)
    below = f"{name}." if name else ""
    found = [
        Tensor(
            name=below + kept.text(t[0]),
            kind=TensorKind(t[1]),
            nbytes=kept.size(t[2]),
            shape=tuple(map(kept.size, t[3])),
            dtype=kept.text(t[4]),
            persistent=kept.flag(t[5]),
            same_as=_text_or_none(t[6]),
            held=None if t[7] is None else kept.size(t[7]),
            loading=kept.size(t[8]),
        )
        for t in tensors
    ]
    return Module(
        name=name,
        class_name=kept.text(class_name),
        parameters=tuple(t for t in found if t.kind is TensorKind.PARAMETER),
        buffers=tuple(t for t in found if t.kind is TensorKind.BUFFER),
        children=tuple(_parse_module(child, below) for child in children),
    )
