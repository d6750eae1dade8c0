"""Several accelerators on a machine that has none: a backend of torch written in Python.

``sim:0``, ``sim:1``, … are devices to torch and accelerate: a tensor on one can't be used with a tensor on another, and
has to be copied. Each keeps its numbers in a tensor on the CPU, where they are computed, so that a result can differ
from one device's only if something was copied wrongly, forgotten, or run twice. Each has an account of the bytes that
live on it, and may be given a limit. What it does not show: anything of streams, kernels or peer copies, what a kernel
takes for itself and gives back, and how an allocator rounds and fragments.
"""

import weakref
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

MOST = 8
aten = torch.ops.aten
_COPIES = {aten._to_copy.default, aten.copy_.default}
_INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default}
"""What takes indices that are on the CPU, as it does on CUDA."""


@dataclass
class Record:
    """What happened on the devices.

    Attributes:
        copies: (from, to, bytes) of every copy between two devices, by "cpu" or index.
        ran: the device of each operation, in order.
        weights: the device of each operation that used a parameter, in order.
    """

    copies: list = field(default_factory=list)
    ran: list = field(default_factory=list)
    weights: list = field(default_factory=list)

    def clear(self):
        for what in (self.copies, self.ran, self.weights):
            what.clear()

    def crossings(self):
        """How often execution went from one device's weights to another's."""
        return sum(1 for here, there in zip(self.weights, self.weights[1:], strict=False) if here != there)


record = Record()


class Memory:
    """The account of what lives on each device: whole storages, from the first tensor of one to the end of the last.

    Attributes:
        limit: the most bytes that each device may hold; None for any.
        live: bytes that each holds, by index.
        peak: the most that each held since ``begin``.
    """

    def __init__(self):
        self.limit = None
        self.live = defaultdict(int)
        self.peak = {}
        self._storages = {}

    def begin(self):
        """Forget the peaks."""
        self.peak = dict(self.live)

    def hold(self, tensor, index):
        """Count the storage of ``tensor``, which is new, on a device.

        Raises:
            torch.OutOfMemoryError: the device may not hold so much; said as CUDA's allocator says it, for a simulated
                device is a GPU in devctl's words.
        """
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        if self.limit is not None and self.live[index] + size > self.limit:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / 2**20:.2f} MiB. GPU {index} has a total capacity of "
                f"{self.limit / 2**20:.2f} MiB of which {(self.limit - self.live[index]) / 2**20:.2f} MiB is free."
            )

        def died(_):
            del self._storages[key]
            self.live[index] -= size

        self._storages[key] = weakref.ref(storage, died)
        self.live[index] += size
        self.peak[index] = max(self.peak.get(index, 0), self.live[index])


memory = Memory()


class SimTensor(torch.Tensor):
    """A tensor on a simulated device; ``inner`` has its numbers."""

    @staticmethod
    def __new__(cls, value, index=None, requires_grad=False):
        if index is None:  # accelerate makes parameters anew as type(param)(value, requires_grad=…)
            return torch.nn.Parameter(value, requires_grad=requires_grad)
        memory.hold(value, index)
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=torch.device("sim", index),
            requires_grad=requires_grad,
        )
        made.inner = value
        return made

    def data_ptr(self):
        return self.inner.data_ptr()  # accelerate tells tied weights by it

    def untyped_storage(self):
        return self.inner.untyped_storage()

    def __repr__(self):
        return f"{self.inner!r} on {self.device}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return dispatch(func, args, kwargs or {})


def bare(value):
    """The tensor on the CPU that has the numbers of a simulated one."""
    return value.inner if isinstance(value, SimTensor) else value


def place_of(value):
    return value.device.index if isinstance(value, SimTensor) else str(value.device.type)


def leaves(value):
    """What tuples, lists and dicts hold, one after the other; torch's own walk takes most of a run's time."""
    if isinstance(value, tuple | list):
        return [leaf for each in value for leaf in leaves(each)]
    if isinstance(value, dict):
        return [leaf for each in value.values() for leaf in leaves(each)]
    return [value]


def mapped(change, value):
    """The same tuples, lists and dicts, with ``change`` of what they hold."""
    if isinstance(value, tuple | list):
        return type(value)([mapped(change, each) for each in value])
    if isinstance(value, dict):
        return {name: mapped(change, each) for name, each in value.items()}
    return change(value)


def dispatch(func, args, kwargs):
    """Run an operation on the CPU, once its operands are found to be on one device; the result is there too."""
    if func.overloadpacket is aten.to:  # within inference_mode it comes whole
        with Mode():
            return func.decompose(*args, **kwargs)
    operands = [value for value in leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    given = kwargs.get("device")
    asked = torch.device(given) if given is not None else None
    if func in _COPIES:
        target = operands[0] if func is aten.copy_.default else asked
        source = operands[-1]
        there = place_of(target) if isinstance(target, torch.Tensor) else None
        if there is None:
            there = place_of(source) if asked is None else asked.index if asked.type == "sim" else asked.type
        if place_of(source) != there and "meta" not in (there, place_of(source)):
            record.copies.append((place_of(source), there, source.numel() * source.element_size()))
    elif asked is not None:
        there = (asked.index or 0) if asked.type == "sim" else asked.type
    else:
        # on a real device, too, a number on the CPU is taken along
        checked = operands[:1] if func in _INDEXING else [value for value in operands if value.dim()]
        places = {place_of(value) for value in checked or operands[:1]}
        if len(places) > 1:
            raise RuntimeError(f"Expected all tensors to be on the same device, found {places} in {func}")
        there = next(iter({place_of(v) for v in operands if isinstance(v, SimTensor)} | places), "cpu")
        if isinstance(there, int) and func is not aten.detach.default:
            record.ran.append(there)
            if any(getattr(value, "_is_param", False) for value in operands):
                record.weights.append(there)
    if asked is not None and asked.type == "sim":
        kwargs = kwargs | {"device": torch.device("cpu")}

    if func is aten.histc.default:  # which counts integers on accelerators only
        counted = func(bare(args[0]).float(), *args[1:], **kwargs)
        return SimTensor(counted.to(args[0].dtype), there) if isinstance(there, int) else counted.to(args[0].dtype)

    result = func(*mapped(bare, args), **mapped(bare, kwargs))
    owners = {id(value.inner): value for value in operands if isinstance(value, SimTensor)}

    def dress(value):
        if not isinstance(value, torch.Tensor) or not isinstance(there, int):
            return value
        if id(value) in owners:
            return owners[id(value)]
        # a view of a tensor that is none of inference_mode is none either
        with torch.inference_mode(value.is_inference() and not (func.is_view and not operands[0].is_inference())):
            return SimTensor(value, there)

    return mapped(dress, result)


class Mode(TorchDispatchMode):
    """Sees the operations that have no simulated operand yet: factories, and copies from the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        device = kwargs.get("device")
        operands = leaves((args, kwargs))
        simulated = any(isinstance(value, SimTensor) for value in operands)
        if simulated or (device is not None and torch.device(device).type == "sim"):
            return dispatch(func, args, kwargs)
        return func(*args, **kwargs)


class Held(TorchDispatchMode):
    """Counts on a device what operations on the CPU make."""

    def __init__(self, index):
        super().__init__()
        self.index = index

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in leaves(out):
            if isinstance(value, torch.Tensor):
                memory.hold(value, self.index)
        return out


class Functions(TorchFunctionMode):
    """Does on the CPU what torch decides by the device before it asks the mode above.

    What it makes from Python's numbers is copied then. Attention is that which the CPU would choose: of a device that
    torch does not know it writes the scores out.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is scaled_dot_product_attention and isinstance(args[0], SimTensor):
            index = place_of(args[0])
            given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
            if {place_of(value) for value in given} != {index}:
                raise RuntimeError("Expected all tensors to be on the same device, in attention")
            with Held(index):
                return SimTensor(func(*mapped(bare, args), **mapped(bare, kwargs)), index)
        return func(*args, **kwargs)


class _Module(_DummyBackendModule):
    def device_count(self):
        return MOST

    def get_amp_supported_dtype(self):
        return [torch.float32]


def register():
    """Give torch the devices, for the rest of this process."""
    _setup_privateuseone_for_python_backend("sim", backend_module=_Module())


@contextmanager
def running(limit=None):
    """Operations within may use the devices, up to ``limit`` bytes on each; yields the record of what happens."""
    record.clear()
    memory.limit = limit
    memory.begin()
    with Mode(), Functions():
        yield record
