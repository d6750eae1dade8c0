"""From a device map to a dispatched model, through ``from_pretrained``.

Imports torch and transformers, inside functions.
"""

from __future__ import annotations

import logging
import pickle
import re
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devctl.devices import Device, DeviceMap, DeviceType
from devctl.errors import DevctlError, LoadError, ModelError, first_line
from devctl.loading.run import out_of_memory
from devctl.loading.weights import checkpoint_fits
from devctl.loading.weights.dummy import dummy_weights
from devctl.loading.weights.hooks import hooks_of
from devctl.loading.weights.offload import LARGER_FOLDER
from devctl.models.files.index import DOWNLOAD_AGAIN
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.files.weights import whole_weights
from devctl.models.tree import ModuleTree, counted_bytes
from devctl.placement.document import normal
from devctl.placement.judge import disjoint, shorten
from devctl.placement.placement import bytes_per_device, to_hf

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.distributed.configuration_utils import DistributedConfig

    from devctl.models.skeleton import Skeleton


class LoadFormat(StrEnum):
    """Where the weights come from."""

    AUTO = "auto"
    """The checkpoint."""
    DUMMY = "dummy"
    """Random numbers: no weight is read or downloaded."""


_TRY_DUMMY = "give the folder of a checkpoint, or try the placement with --load-format dummy"

Progress = Callable[[int], None]
"""Told the bytes of each tensor once it is loaded."""


def unusable(devices: Collection[Device]) -> tuple[str, ...]:
    """Why torch can't use some of ``devices``, which the machine has; a line each.

    It begins CUDA where they are of it, as what comes after does, and makes a context on none.
    """
    import torch

    faults = ((device, _fault_of(device)) for device in devices)
    return tuple(f"torch {torch.__version__} can't use {device}: {fault}" for device, fault in faults if fault)


_OTHER_BUILD = "is it a build for this hardware?"
_FEWER = (
    "CUDA has fewer devices than the driver shows, as of boards in MIG mode: name what to use in CUDA_VISIBLE_DEVICES"
)


def _fault_of(device: Device) -> str | None:
    """Why torch can't use ``device``; None where it can."""
    import torch

    parts: dict[DeviceType, Any] = {DeviceType.GPU: torch.cuda, DeviceType.XPU: torch.xpu}
    if (part := parts.get(device.type)) is None:
        usable = device.type is not DeviceType.MPS or torch.backends.mps.is_available()
        return None if usable else _OTHER_BUILD
    index = device.id or 0
    if index >= part.device_count():
        return _OTHER_BUILD
    try:
        # a driver may be too old, or not answer; and torch counts boards that NVML shows, of which CUDA may have few
        part.init()
        part.get_device_properties(index)
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        text = first_line(error)
        return _FEWER if re.search(r"num_gpus|Invalid device id", text) else text
    return None


def local_copy(source: ModelSource) -> ModelSource:
    """``source`` with its weights on this machine, all of them there and whole; a model of the hub as its folder.

    Raises:
        ModelError: there are no weights, they can't be downloaded, or a file is missing, cut off or broken.
    """
    return _local_copy(source)[0]


def _local_copy(source: ModelSource) -> tuple[ModelSource, tuple[str, ...]]:
    """The same, and the tensors that its index names and no file has."""
    if source.kind is SourceKind.CONFIG:
        raise ModelError(f"{source.location} is a config without weights", hint=_TRY_DUMMY)
    folder, nowhere = whole_weights(source)
    if source.kind is SourceKind.DIRECTORY:
        return source, nowhere
    return ModelSource(kind=SourceKind.DIRECTORY, location=str(folder), config_path=source.config_path), nowhere


def load(
    source: ModelSource,
    skeleton: Skeleton,
    device_map: Mapping[str, Device],
    *,
    load_format: LoadFormat,
    folder: Path | None,
    on_progress: Progress,
    allow_missing: bool = False,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load the model on ``device_map``.

    Args:
        folder: where weights go that stay on disk and can't be read from the checkpoint as they are.
        on_progress: told the bytes of each tensor as it arrives.
        allow_missing: leave weights random that the checkpoint does not have.

    Returns:
        The model in evaluation mode, and notes on what the checkpoint did not have.

    Raises:
        ModelError: there are no weights, some are absent, or they are corrupt.
        LoadError: out of memory, or out of disk.
    """
    import torch

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
        nowhere: tuple[str, ...] = ()
    else:
        local, nowhere = _local_copy(source)
        location = local.location
        checkpoint_fits.require_unneeded(skeleton, device_map, nowhere, location)
    # it warns of every offload that the map asks for
    logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)
    predicted = bytes_per_device(tree, device_map)
    with _progress(counted_bytes(tree), on_progress), out_of_memory.on_device("while loading", predicted):
        try:
            loaded: Any = skeleton.model_class.from_pretrained(location, **arguments)
        except ImportError as error:
            raise ModelError(
                f"{tree.class_name} needs a package that does not work here: {first_line(error)}"
            ) from error
        except Exception as error:  # transformers' and accelerate's own code, and that of the model
            if out_of_memory.is_out_of_memory(error):
                raise
            failure = _explained(error, source, folder)
            out_of_memory.release(error)
            raise failure from error
    model, info = loaded
    _share_ties_on_disk(model, tree)
    # the buffers of dummy weights are not missing: the model makes them itself
    if load_format is LoadFormat.DUMMY:
        return model, ()
    notes = checkpoint_fits.require_fit(skeleton, device_map, model, info, source.location, allow_missing=allow_missing)
    if nowhere:
        notes += (f"named by the index, in no file, and not of {type(model).__name__}: {shorten(nowhere)}",)
    return model, notes


def load_stage(
    source: ModelSource,
    skeleton: Skeleton,
    distributed: DistributedConfig,
    names: frozenset[str],
    *,
    on_progress: Progress,
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Load one rank's part of the model, in a process group that is there already.

    Args:
        source: a folder on this machine.
        names: the tensors that are of this rank.
        on_progress: told the bytes of each tensor as it arrives.

    Returns:
        The part in evaluation mode, and notes on what the checkpoint has too much.

    Raises:
        ModelError: weights are absent or corrupt.
        LoadError: out of memory, or a connection to another rank broke.
    """
    import torch

    tree = skeleton.tree
    local, nowhere = _local_copy(source)
    checkpoint_fits.require_unneeded(skeleton, {"": Device.cpu()}, nowhere, local.location)
    with _progress(counted_bytes(tree), on_progress):
        try:
            loaded: Any = skeleton.model_class.from_pretrained(
                local.location,
                config=skeleton.config,
                dtype=getattr(torch, tree.dtype),
                distributed_config=distributed,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # told below, with names, instead of in a log
            )
        except Exception as error:  # transformers' own code, and that of the process group
            if out_of_memory.is_out_of_memory(error):
                raise
            raise _explained(error, source, None) from error
    model, info = loaded
    info = {**info, "missing_keys": [name for name in info["missing_keys"] if name in names]}
    return model, checkpoint_fits.require_fit(skeleton, {"": Device.cpu()}, model, info, source.location)


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
    import torch.serialization
    from safetensors import SafetensorError

    text = first_line(error)
    if isinstance(error, SafetensorError):
        if "serializ" in text and "deserializ" not in text.lower():
            return LoadError(f"cannot write to the offload folder {folder}: {text}", hint=LARGER_FOLDER)
        return ModelError(f"a safetensors file of {source.location} is corrupt or cut off: {text}", hint=DOWNLOAD_AGAIN)
    if isinstance(error, pickle.UnpicklingError) and (code := re.search(r"GLOBAL (\S+)", str(error))):
        return ModelError(
            f"the pickled weights of {source.location} run code to be read ({code[1]}), which is refused",
            hint="give safetensors; if you trust whoever made it, load it with torch and save_pretrained it anew",
        )
    if any(frame.filename == torch.serialization.__file__ for frame in traceback.extract_tb(error.__traceback__)):
        reason = re.search(r"WeightsUnpickler error: (.+)", str(error))
        why = reason[1] if reason else text
        return ModelError(f"the pickled weights of {source.location} are corrupt: {why[:200]}", hint=DOWNLOAD_AGAIN)
    if isinstance(error, OSError) and error.errno is None:  # how transformers says that there is no such file
        return ModelError(f"{source.location} has no weights to load: {text}", hint=_TRY_DUMMY)
    return LoadError(f"loading {source.location} failed: {type(error).__name__}: {text}")


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


def to_device(device: torch.device | int | str) -> Device:
    """A device of torch or accelerate in our words."""
    return normal(DeviceMap.from_hf({"": device})[""])
