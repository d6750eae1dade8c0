"""Weights that stay on disk: what has to be written for them, and where."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from devctl.devices import Device
from devctl.errors import RefusedError, UsageError
from devctl.models.files.checkpoint import stored_tensors
from devctl.models.files.headers import renamed
from devctl.models.files.resolve import ModelSource
from devctl.models.skeleton import Skeleton, empty_model
from devctl.models.tree import TensorKind, counted_bytes, tensors
from devctl.placement.strategy import device_of
from devctl.reading import read_bytes
from devctl.units import format_bytes

LARGER_FOLDER = "give a folder on a larger disk with --offload-folder"


def bytes_to_write(
    source: ModelSource, skeleton: Skeleton, device_map: Mapping[str, Device], *, random_weights: bool
) -> int:
    """Bytes that ``from_pretrained`` writes for the weights left on disk.

    What a safetensors file has as the model wants it is read from there. The rest is written: random weights, those of
    pickles, and those that transformers converts as it loads, as it does with most models' experts.
    """
    size = counted_bytes(skeleton.tree)
    on_disk = {
        t.name: size[t.name]
        for t in tensors(skeleton.tree.root)
        if t.kind is TensorKind.PARAMETER and device_of(t.name, device_map) == Device.disk()
    }
    stored = {} if random_weights or not on_disk else stored_tensors(source)
    if stored and skeleton.tree.quantisation is None:
        known = [t.name for t in tensors(skeleton.tree.root) if t.persistent]
        there = renamed(empty_model(skeleton), stored, known).values()
        as_they_are = {new for new, converted in there if not converted}
        return sum(nbytes for name, nbytes in on_disk.items() if name not in as_they_are)
    return sum(on_disk.values())


@contextmanager
def offload_folder(needed: int, parent: Path | None) -> Iterator[Path]:
    """A new folder for ``needed`` bytes of weights left on disk, within ``parent``, else among the temporary files.

    It is removed afterwards, and so is ``parent`` if it was made for it. Whatever else is in ``parent`` is left alone.

    Raises:
        UsageError: ``parent`` can't be made or written to.
        RefusedError: it has less space.
    """
    try:
        try:
            temporary, lock = _new_folder(parent)
        except OSError as error:
            chosen = parent or "among the temporary files"
            raise UsageError(
                f"cannot use the offload folder {chosen}: {error.strerror}",
                hint="give one that can be written to with --offload-folder",
            ) from None
        with lock, temporary as name:
            _reclaim(Path(name).parent)
            free = shutil.disk_usage(name).free
            if free < needed:
                raise RefusedError(
                    f"the offload folder {parent or name} may need {format_bytes(needed)}, its disk has "
                    f"{format_bytes(free)} free",
                    hint=LARGER_FOLDER,
                )
            yield Path(name)
    finally:
        if parent is not None:
            _remove_made(parent)


_PREFIX = "devctl-offload-"

_MADE = ".devctl-made"
"""In a folder that was made for a load: how many folders were. Loads that share it can't tell who is the last."""

_TRIES = 10


def _new_folder(parent: Path | None) -> tuple[tempfile.TemporaryDirectory[str], contextlib.ExitStack]:
    """A new folder, and its lock, which the system lets go of however this process ends.

    Raises:
        OSError: it can't be made.
    """
    for _ in range(_TRIES):
        try:
            if parent is not None:
                _make(parent)
            temporary = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent)
        except FileNotFoundError:  # a load that has just ended removed what it had made
            continue
        lock = _locked(Path(temporary.name))
        if lock is not None:
            return temporary, lock
        temporary.cleanup()  # somebody else took it for left behind, before it was locked
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _make(parent: Path) -> None:
    made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    parent.mkdir(parents=True, exist_ok=True)
    if made:
        with contextlib.suppress(FileExistsError), (parent / _MADE).open("x", encoding="ascii") as file:
            file.write(str(len(made)))


def _remove_made(parent: Path) -> None:
    """Remove ``parent``, and those above it that were made with it, if nobody has anything there."""
    with contextlib.suppress(OSError, ValueError):
        mark = parent / _MADE
        if mark.is_symlink() or [path.name for path in parent.iterdir()] != [_MADE]:
            return
        made = int(read_bytes(mark, 20))
        if made < 1 or (os.name == "posix" and mark.stat().st_uid != os.geteuid()):
            return
        mark.unlink()
        for folder in (parent, *parent.parents)[:made]:
            folder.rmdir()


def _reclaim(parent: Path) -> None:
    """Remove what loads that were killed left in ``parent``: folders of ours that nobody has locked."""
    for path in parent.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if os.name == "posix" and path.lstat().st_uid == os.geteuid() and (lock := _locked(path, reclaiming=True)):
                with lock:
                    shutil.rmtree(path, ignore_errors=True)


def _locked(folder: Path, *, reclaiming: bool = False) -> contextlib.ExitStack | None:
    """``folder``, locked until the value is closed; None where another process has it, or it has gone."""
    held = contextlib.ExitStack()
    try:
        import fcntl
    except ImportError:  # a system without such locks, where nothing is reclaimed either
        return held
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        there = os.path.samestat(os.fstat(descriptor), folder.lstat())
    except OSError as error:
        # a file system that has no locks: nothing of it is reclaimed, and nothing of ours by others
        there = error.errno not in (errno.EWOULDBLOCK, errno.ENOENT) and not reclaiming
    if there:
        return held
    held.close()
    return None
