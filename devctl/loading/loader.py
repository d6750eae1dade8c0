"""From a device map to a dispatched model, through ``from_pretrained``.

Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.devices import Device, DeviceMap, DeviceType
from devctl.errors import DevctlError, LoadError, ModelError, RefusedError, UsageError, first_line
from devctl.loading.dummy import dummy_weights
from devctl.models.checkpoint import DOWNLOAD_AGAIN, weights_file
from devctl.models.resolve import ModelSource, SourceKind
from devctl.models.tree import ModuleTree, counted_bytes
from devctl.placement.document import normal
from devctl.placement.placement import bytes_per_device, disjoint, shorten, to_hf
from devctl.units import format_bytes

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from devctl.models.skeleton import Skeleton


class LoadFormat(StrEnum):
    """Where the weights come from."""

    AUTO = "auto"
    """The checkpoint."""
    DUMMY = "dummy"
    """Random numbers: no weight is read or downloaded."""


_LARGER_FOLDER = "give a folder on a larger disk with --offload-folder"
_TRY_DUMMY = "give the folder of a checkpoint, or try the placement with --load-format dummy"

Progress = Callable[[int], None]
"""Told the bytes of each tensor once it is loaded."""


def unusable(devices: Collection[Device]) -> tuple[str, ...]:
    """Why torch can't use some of ``devices``, which the machine has; a line each."""
    import torch

    count = {DeviceType.GPU: torch.cuda.device_count, DeviceType.XPU: torch.xpu.device_count}
    found = []
    for device in devices:
        if device.type in count:
            usable = (device.id or 0) < count[device.type]()
        else:
            usable = device.type is not DeviceType.MPS or torch.backends.mps.is_available()
        if not usable:
            found.append(f"torch {torch.__version__} can't use {device}: is it a build for this hardware?")
    return tuple(found)


@contextmanager
def offload_folder(needed: int, folder: Path | None) -> Iterator[Path]:
    """A folder for ``needed`` bytes of weights left on disk: ``folder``, or a temporary one that is removed.

    Raises:
        UsageError: ``folder`` can't be made or written to.
        RefusedError: it has less space.
    """
    with tempfile.TemporaryDirectory(prefix="devctl-offload-") as temporary:
        chosen = folder or Path(temporary)
        try:
            chosen.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=chosen).close()
        except OSError as error:
            raise UsageError(f"cannot use the offload folder {chosen}: {error.strerror}") from None
        free = shutil.disk_usage(chosen).free
        if free < needed:
            raise RefusedError(
                f"the offload folder {chosen} may need {format_bytes(needed)}, its disk has {format_bytes(free)} free",
                hint=_LARGER_FOLDER,
            )
        yield chosen


def load(
    source: ModelSource,
    skeleton: Skeleton,
    device_map: Mapping[str, Device],
    *,
    load_format: LoadFormat,
    folder: Path | None,
    on_progress: Progress,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load the model on ``device_map``.

    Args:
        folder: where weights go that stay on disk and can't be read from the checkpoint as they are.
        on_progress: told the bytes of each tensor as it arrives.

    Returns:
        The model in evaluation mode, and notes on what the checkpoint did not have.

    Raises:
        ModelError: there are no weights, or they are corrupt.
        LoadError: out of memory, or out of disk.
    """
    import torch

    if source.kind is SourceKind.CONFIG and load_format is LoadFormat.AUTO:
        raise ModelError(f"{source.location} is a config without weights", hint=_TRY_DUMMY)
    if source.kind is SourceKind.DIRECTORY and load_format is LoadFormat.AUTO:
        weights_file(source.config_path.parent)  # transformers' own words for a broken index help nobody
    tree = skeleton.tree
    arguments: dict[str, Any] = {
        "config": skeleton.config,
        "dtype": getattr(torch, tree.dtype),
        "device_map": to_hf(disjoint(tree, device_map).items()),
        "offload_folder": None if folder is None else str(folder),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # told below, with names, instead of in a log
    }
    if load_format is LoadFormat.DUMMY:
        location, arguments["state_dict"] = None, dummy_weights(tree)
    else:
        location, arguments["revision"] = source.location, source.revision
    # it warns of every offload that the map asks for
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    with _progress(counted_bytes(tree), on_progress), _memory_errors(tree, device_map):
        try:
            loaded: Any = skeleton.model_class.from_pretrained(location, **arguments)
        except Exception as error:  # transformers' and accelerate's own code, and that of the model
            if is_out_of_memory(error):
                raise
            raise _explained(error, source, folder) from error
    model, info = loaded
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, built = mismatched[0]
        more = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
        raise ModelError(
            f"the weights of {source.location} do not fit its config: {name} is {list(stored)} in the checkpoint and "
            f"{list(built)} in the model{more}",
            hint="is it the config of this checkpoint?",
        )
    _share_ties_on_disk(model, tree)
    # the buffers of dummy weights are not missing: the model makes them itself
    missing = [] if load_format is LoadFormat.DUMMY else sorted(info["missing_keys"])
    notes = (f"not in the checkpoint, so random: {shorten(missing)}",) if missing else ()
    return model, notes


def _share_ties_on_disk(model: PreTrainedModel, tree: ModuleTree) -> None:
    """Let a tied tensor be read from where its source is, which transformers forgets when it writes weights to disk."""
    hooks = (hook for module in model.modules() for hook in hooks_of(module))
    maps = (getattr(getattr(hook, "weights_map", None), "dataset", None) for hook in hooks)
    for index in {id(found): found for found in (getattr(each, "index", None) for each in maps) if found}.values():
        for target, source in tree.ties:
            if source in index:
                index.setdefault(target, {"weight_name": source, **index[source]})


def _explained(error: Exception, source: ModelSource, folder: Path | None) -> DevctlError:
    """What a failed ``from_pretrained`` means."""
    from safetensors import SafetensorError

    text = first_line(error)
    if isinstance(error, SafetensorError):
        if "serializ" in text and "deserializ" not in text.lower():
            return LoadError(f"cannot write to the offload folder {folder}: {text}", hint=_LARGER_FOLDER)
        return ModelError(f"a safetensors file of {source.location} is corrupt or cut off: {text}", hint=DOWNLOAD_AGAIN)
    if isinstance(error, OSError) and error.errno is None:  # how transformers says that there is no such file
        return ModelError(f"{source.location} has no weights to load: {text}", hint=_TRY_DUMMY)
    return LoadError(f"loading {source.location} failed: {type(error).__name__}: {text}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the host, had no memory left. torch's allocator for the CPU raises a plain RuntimeError."""
    import torch

    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@contextmanager
def _memory_errors(tree: ModuleTree, device_map: Mapping[str, Device]) -> Iterator[None]:
    """Out of memory, as a line that says where and how much was predicted."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        predicted = ", ".join(f"{format_bytes(n)} on {d}" for d, n in bytes_per_device(tree, device_map).items())
        raise LoadError(
            f"out of memory while loading: {first_line(error)}",
            hint=f"the map puts {predicted}; plan with a smaller --max-memory",
        ) from error


@contextmanager
def _progress(size: Mapping[str, int], on_progress: Progress) -> Iterator[None]:
    """Follow transformers' progress bar over the weights, in bytes."""
    from transformers.utils import logging as bars

    class Follower:
        """Stands in for the bar that transformers would show over (name, conversion) pairs."""

        def __init__(self, items: Any) -> None:
            self.items = items

        def __iter__(self) -> Iterator[Any]:
            for item in self.items:
                yield item
                on_progress(size.get(item[0], 0))

    def hook(factory: Any, args: Any, kwargs: Any) -> Any:
        return Follower(args[0]) if kwargs.get("desc") == "Loading weights" else factory(*args, **kwargs)

    previous = bars.set_tqdm_hook(hook)
    try:
        yield
    finally:
        bars.set_tqdm_hook(previous)


def main_device(model: PreTrainedModel, device_map: Mapping[str, Device]) -> Device:
    """The device on which the loaded model takes its inputs, and runs what is offloaded.

    accelerate's ``dispatch_model`` chooses it, and keeps it in the hook of the model itself; without a hook the whole
    model is on one device.
    """
    for hook in hooks_of(model):
        device = getattr(hook, "execution_device", None)
        if device is not None:
            return to_device(device)
    return next(iter(device_map.values()))


def hooks_of(module: torch.nn.Module) -> list[Any]:
    """accelerate's hooks on ``module``; a sequential one stands for several."""
    hook = getattr(module, "_hf_hook", None)
    return list(getattr(hook, "hooks", [hook]))


def to_device(device: torch.device | int | str) -> Device:
    """A device of torch or accelerate in our words."""
    return normal(DeviceMap.from_hf({"": device})[""])
