"""What is asked, as frozen values that are checked where they are made.

A value that can't be meant is a `UsageError`, which names it as the command line does (``--batch-size``); `devctl.api`
names the keyword instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from os import PathLike
from typing import TYPE_CHECKING, TypeVar

from devctl.devices import Device
from devctl.errors import UsageError, did_you_mean
from devctl.inventory.records import Inventory
from devctl.models import attention, decoding
from devctl.models.images import Images, parse_images
from devctl.models.quantised.quantise import Quantize
from devctl.placement.parallel.tensor import Ranks
from devctl.placement.strategy import Strategy

if TYPE_CHECKING:
    import torch

_Enum = TypeVar("_Enum", bound=StrEnum)

MOST_TOKENS = 2**22
"""Tokens of a context that are counted, at most; and sequences of a batch, and runs."""


MOST_RANKS = 4096
"""Ranks that share a model, at most."""

_SHORT_NAMES = {
    "fp64": "float64",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "half": "float16",
    "double": "float64",
    "fp8": "float8_e4m3fn",
}
"""What dtypes are called for short; of those of eight bits keys and values are kept in one only."""


_QUANTISED = {
    "int8": (Quantize.INT8, Quantize.EETQ_INT8, Quantize.TORCHAO_INT8, Quantize.QUANTO_INT8),
    "int4": (Quantize.NF4, Quantize.TORCHAO_INT4, Quantize.QUANTO_INT4),
    "int2": (Quantize.QUANTO_INT2,),
    "float8": (Quantize.FP8, Quantize.FBGEMM_FP8, Quantize.TORCHAO_FLOAT8, Quantize.QUANTO_FLOAT8),
}
_QUANTISED |= {
    "8bit": _QUANTISED["int8"],
    "8-bit": _QUANTISED["int8"],
    "4bit": _QUANTISED["int4"],
    "4-bit": _QUANTISED["int4"],
    "fp8": _QUANTISED["float8"],
    "float8_e4m3fn": _QUANTISED["float8"],
    **{str(each): (each,) for each in Quantize if str(each) not in ("int8", "fp8")},
}
"""What is called so of the methods that quantise: several, of which one has to be named."""


class _DtypeName(StrEnum):
    """Torch's names of dtypes, which may be given by their short ones, and in capitals."""

    @classmethod
    def _missing_(cls, value: object) -> StrEnum | None:
        name = value.strip().lower().removeprefix("torch.") if isinstance(value, str) else ""
        wanted = _SHORT_NAMES.get(name, name)
        return next((member for member in cls if member == wanted), None)


class Dtype(_DtypeName):
    """Dtypes that a model can be built in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT64 = "float64"


class KvDtype(_DtypeName):
    """Dtypes that keys and values can be kept in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FP8 = "float8_e4m3fn"
    INT8 = "int8"


class Objective(StrEnum):
    """What `optimal` is best in."""

    HEADROOM = "headroom"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """Which model, built how.

    Attributes:
        model: a folder, a config.json, a model id on the hub, or a live ``torch.nn.Module``.
        dtype: auto is the checkpoint's own.
        model_class: a class of transformers; None is the config's first architecture.
        trust_remote_code: run Python code that the model brings.
        revision: branch, tag or commit, of a model on the hub.
        quantize: as ``from_pretrained`` would quantise the weights while loading.
        cache: keep the module tree and footprints for the next time, and use those that were kept.
        adapters: folders or ids of adapters that PEFT loads beside it.

    Raises:
        UsageError: there is no such dtype or method, or a live module is to be built anew.
    """

    model: str | torch.nn.Module
    dtype: str = Dtype.AUTO
    model_class: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    quantize: Quantize | str | None = None
    cache: bool = True
    adapters: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", one_of(Dtype, self.dtype, "--dtype"))
        if self.quantize is not None:
            object.__setattr__(self, "quantize", one_of(Quantize, self.quantize, "--quantize"))
        if not self.is_live:
            return
        changed = {
            "--dtype": self.dtype != Dtype.AUTO,
            "--model-class": self.model_class is not None,
            "--revision": self.revision is not None,
            "--quantize": self.quantize is not None,
            "--adapter": bool(self.adapters),
        }
        if wrong := [option for option, is_given in changed.items() if is_given]:
            raise UsageError(f"{wrong[0]}: a module that is there already is not built anew", hint="leave it out")

    @property
    def is_live(self) -> bool:
        """Whether the model is a module in this process."""
        return not isinstance(self.model, str)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineRequest:
    """Which machine, and how much of it.

    Attributes:
        devices: hardware that is not here, like "4xH100,cpu=512GiB,disk".
        file: a file that ``devctl list --json`` wrote; "-" is standard input.
        inventory: a machine that is known. Without any of the three, this machine, now.
        max_memory: entries like "0=10GiB,cpu=30GiB"; None is what the machine has free.
        keeps_others: whether devices that those do not name may hold what they have free, instead of nothing.
        visible: ids of the accelerators to plan with, like "0,2".
        reserve: entries like "1GiB", "10%" or "0=2GiB", kept free.
        speed: None where it does not matter how fast the machine is; else entries like "0=2TB,link=25GB", bytes a
            second, for what is not as measured, or as the board's own.

    Raises:
        UsageError: two of them say what to plan for.
    """

    devices: str | None = None
    file: str | PathLike[str] | None = None
    inventory: Inventory | None = None
    max_memory: tuple[str, ...] | None = None
    keeps_others: bool = False
    visible: str | None = None
    reserve: tuple[str, ...] | None = None
    speed: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.devices, self.file, self.inventory)) > 1:
            raise UsageError("--devices and --machine both say what to plan for: leave out one")

    @property
    def is_here(self) -> bool:
        """Whether it is this machine."""
        return self.devices is None and self.file is None and self.inventory is None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRequest:
    """What the model should do.

    Attributes:
        context_length: tokens of a sequence, those that are generated among them; None counts the weights alone.
        batch_size: sequences at once.
        new_tokens: tokens that are generated; None is one.
        kv_dtype: what keys and values are kept in; None is the model's.
        overhead: what the libraries of each GPU take, like "512MiB"; None is what is usual.
        attn_implementation: how the model attends; None is what transformers chooses.
        padding: whether several sequences are of mixed lengths, and padded to the longest.
        decode: how tokens are chosen: config (what the model's files say, else greedy), greedy, sample, beam:N.
        prefill_chunk_size: tokens of the prompt that are read at once; None is what the model's files say, else all.
        images: how many images of what size each sequence carries, like "2x448x448", height before width, or "0"; None
            is one of the size that the model's config has, in a model that sees.

    Raises:
        UsageError: a number is too small or too large, or there is no such dtype or attention.
    """

    context_length: int | None = None
    batch_size: int = 1
    new_tokens: int | None = None
    kv_dtype: KvDtype | str | None = None
    overhead: str | None = None
    attn_implementation: str | None = None
    padding: bool = True
    decode: str | None = None
    prefill_chunk_size: int | None = None
    images: str | Images | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", images_of(self.images))
        if self.attn_implementation is not None:
            attention.checked(self.attn_implementation, "--attn-implementation")
        if self.decode is not None:
            object.__setattr__(self, "decode", decoding.checked(self.decode))
        if self.kv_dtype is not None:
            object.__setattr__(self, "kv_dtype", one_of(KvDtype, self.kv_dtype, "--kv-dtype"))
        _require_countable(self.context_length or 0)
        least = {
            "--context-length": (self.context_length, 1),
            "--batch-size": (self.batch_size, 1),
            "--new-tokens": (self.new_tokens, 0),
            "--prefill-chunk-size": (self.prefill_chunk_size, 1),
        }
        for option, (number, lowest) in least.items():
            require_between(option, number, lowest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByStrategy:
    """Find a map as ``strategy`` does."""

    strategy: Strategy = Strategy.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class Fastest:
    """Find the map with the least predicted time for a token, on a machine whose speeds are asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FillContext:
    """Find the best map for as many sequences of so many ``tokens`` as fit; if not one does, for the longest."""

    tokens: int

    def __post_init__(self) -> None:
        if self.tokens < 2:
            raise UsageError(f"--target-context {self.tokens}: it is at least 2")
        _require_countable(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeMap:
    """Find nothing: say what this map does."""

    device_map: Mapping[str, Device]


Goal = ByStrategy | Fastest | FillContext | JudgeMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ByRanks:
    """Let so many ranks share the model, each on an accelerator of its own.

    Attributes:
        size: ranks, with tensor parallelism.
        experts: ranks that have experts of their own, with expert parallelism; None for none.

    Raises:
        UsageError: there is nobody to share it with, or a number of ranks that transformers does not take.
    """

    size: int
    experts: int | None = None

    def __post_init__(self) -> None:
        require_between("--tp", self.size, 2, MOST_RANKS)
        if self.experts is not None and self.experts != self.size:
            raise UsageError(
                f"--ep {self.experts}: transformers needs as many ranks with experts of their own as share a layer",
                hint=f"give --ep {self.size}, or other numbers for both",
            )

    @property
    def ranks(self) -> Ranks:
        """The same as the planner has it."""
        return Ranks(size=self.size, experts=self.experts or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """What fits in vLLM, started so.

    Attributes:
        utilisation: the share of each accelerator's memory that it may take; None is what it takes by itself.
        batched_tokens, sequences: that a step has, at most; None is what it takes by itself.
        tp: ranks that share every layer; None for one.
        ep: ranks that share experts out: as many, or None for none.

    Raises:
        UsageError: a number is too small or too large.
    """

    utilisation: float | None = None
    batched_tokens: int | None = None
    sequences: int | None = None
    tp: int | None = None
    ep: int | None = None

    def __post_init__(self) -> None:
        share = self.utilisation
        if share is not None and not 0 < share <= 1:
            raise UsageError(f"--gpu-memory-utilization {share:g}: it is above 0, and at most 1")
        require_between("--max-num-batched-tokens", self.batched_tokens, 1)
        require_between("--max-num-seqs", self.sequences, 1)
        require_between("--tp", self.tp, 2, MOST_RANKS)
        if self.ep is not None and self.ep != self.tp:
            raise UsageError(
                f"--ep {self.ep}: vLLM shares experts out to as many ranks as share a layer",
                hint=f"give --ep {self.tp}, or other numbers for both",
            )

    @property
    def expert_parallel(self) -> bool:
        """Whether experts are shared out whole."""
        return self.ep is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plan may do that fits.

    Attributes:
        offload: leave bytes off the accelerators.
        disk: leave bytes on disk.
    """

    offload: bool = True
    disk: bool = True


def names_hosts(devices: str | None) -> bool:
    """Whether the text of ``--devices`` is about hosts: "a:4xH100;b:2xA100"."""
    return devices is not None and (":" in devices or ";" in devices)


def one_of(kind: type[_Enum], value: str, option: str) -> _Enum:
    """The member of ``kind`` that ``value`` names.

    Raises:
        UsageError: it names none.
    """
    try:
        return kind(value)
    except ValueError:
        raise UsageError(f"{option} {not_one(kind, str(value))}") from None


def not_one(kind: type[StrEnum], value: str) -> str:
    """Why ``value`` is no member of ``kind``, and what was probably meant."""
    said = value.strip().lower().removeprefix("torch.")
    methods = [str(each) for each in _QUANTISED.get(said, ())]
    either = " or ".join(filter(None, (", ".join(methods[:-1]), *methods[-1:])))
    if kind is Dtype and methods:
        return f"{value!r} is no dtype that weights are built in: quantised, they are {either}, by --quantize"
    if kind is Quantize and methods:
        return f"{value!r} may be {either}: say which" if len(methods) > 1 else f"{value!r} is called {either}"
    short = [name for name, whole in _SHORT_NAMES.items() if issubclass(kind, _DtypeName) and whole in list(kind)]
    return f"{value!r} is not one of {', '.join(kind)}{did_you_mean(said, [*kind, *short])}"


def images_of(value: str | Images | None) -> Images | None:
    """The images that ``value`` says.

    Raises:
        UsageError: it says none.
    """
    if value is None or isinstance(value, Images):
        return value
    try:
        return parse_images(str(value))
    except ValueError as error:
        raise UsageError(f"--images {error}") from None


def require_between(option: str, number: int | None, least: int, most: int = MOST_TOKENS) -> None:
    """Refuse a ``number`` that is too small, or larger than anything that is counted; None is not given.

    Raises:
        UsageError: naming ``option``.
    """
    if number is not None and number < least:
        raise UsageError(f"{option} {number}: it is at least {least}")
    if number is not None and number > most:
        raise UsageError(f"{option} {number:.3g}: it is at most {most}" if number < 2**63 else f"{option} is too large")


def _require_countable(tokens: int) -> None:
    if tokens > MOST_TOKENS:
        raise UsageError(f"{tokens:,} tokens are more than devctl counts", hint=f"it counts up to {MOST_TOKENS:,}")
