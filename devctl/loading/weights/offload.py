"""Weights that stay on disk: what has to be written for them, and where."""

from __future__ import annotations

import contextlib
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
    made: list[Path] = []
    try:
        try:
            if parent is not None:
                made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
                parent.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(prefix="devctl-offload-", dir=parent)
        except OSError as error:
            chosen = parent or "among the temporary files"
            raise UsageError(
                f"cannot use the offload folder {chosen}: {error.strerror}",
                hint="give one that can be written to with --offload-folder",
            ) from None
        with temporary as name:
            free = shutil.disk_usage(name).free
            if free < needed:
                raise RefusedError(
                    f"the offload folder {parent or name} may need {format_bytes(needed)}, its disk has "
                    f"{format_bytes(free)} free",
                    hint=LARGER_FOLDER,
                )
            yield Path(name)
    finally:
        for folder in made:
            with contextlib.suppress(OSError):  # somebody else put something there
                folder.rmdir()
