"""What a model in a GGUF file keeps between steps, by the keys of its header and llama.cpp's rules for them.

Rules as read in llama.cpp's source: ``llama_hparams`` (``n_embd_k_gqa``, ``n_embd_r``, ``set_swa_pattern``),
``llama_kv_cache``, ``llama_kv_cache_iswa`` and ``llama_model::create_memory``. An architecture that is not in the
tables has rules of its own there, or none that are known here: nothing is guessed for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from devctl.models.gguf.files import GgufModel
from devctl.models.gguf.header import Value
from devctl.models.gguf.types import TYPES, BlockType, bytes_of

CACHE_TYPES: Mapping[str | None, BlockType] = {
    None: TYPES[1],
    "float16": TYPES[1],
    "bfloat16": TYPES[30],
    "float32": TYPES[0],
    "int8": TYPES[8],
}
"""What llama.cpp keeps keys and values in, by torch's name of the dtype: F16 where nothing is said, Q8_0 for int8."""

_CELLS = 256
"""Tokens that a cache's length is a multiple of."""

_BATCH = 512
"""Tokens that are computed at once (``--ubatch-size``), which a cache with a window has room for besides."""

_NAMES = """
    apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell command-r dbrx deci
    deepseek deepseek2 dots1 ernie4_5 ernie4_5-moe exaone falcon gemma glm4 glm4moe gpt2 gptneox granite granitemoe grok
    hunyuan-dense hunyuan-moe internlm2 jais llama minicpm minicpm3 minimax-m2 mistral3 mpt nemotron olmo olmo2 olmoe
    openelm orion phi2 phi3 phimoe plamo plm qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl qwen3vlmoe refact
    seed_oss smollm3 stablelm starcoder starcoder2 xverse
"""

_ATTENTION = frozenset(_NAMES.split())
"""Architectures whose every layer attends, and keeps the keys and values of the whole context."""

_PERIODS = {"gemma2": 2, "gemma3": 6, "gemma3n": 5, "cohere2": 4, "gpt-oss": 2, "llama4": 4}
"""Architectures in which only one of so many layers attends to the whole context, the last of them."""

_WINDOWS = {"gemma2": 4096, "llama4": 8192}
"""Tokens of their windows, where the header does not have to say."""

_BY_LAYER = frozenset({"gemma4"})
"""Architectures whose header says of each layer whether it has a window."""

_RECURRENT = frozenset({"mamba", "mamba2"})
"""Architectures whose every layer keeps a state of one size, and no keys and values."""

_BOTH = frozenset({"falcon-h1"})
"""Architectures whose every layer keeps both."""

_WITHOUT_HEADS = frozenset({"jamba", "granitehybrid", "lfm2", "lfm2moe"})
"""Architectures in which layers without heads for keys keep a state of one size."""

_INTERVAL = frozenset({"qwen3next", "qwen35", "qwen35moe"})
"""Architectures in which only one of so many layers attends, the last of them."""

_GEMMA3N_LAYERS = 20
"""Layers of gemma3n with keys and values of their own; those behind them use these."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerState:
    """What one layer keeps for each sequence.

    Attributes:
        keys: elements of a token's keys.
        values: elements of its values; 0 where they are part of the keys.
        window: tokens that it attends to; None for all.
        fixed: bytes whatever the context.
    """

    keys: int = 0
    values: int = 0
    window: int | None = None
    fixed: int = 0

    def nbytes(self, context_length: int, batch_size: int, kept_in: BlockType) -> int:
        """Bytes for so many sequences of so many tokens."""
        cells = padded(context_length)
        if self.window is not None:
            cells = padded(min(cells, self.window + _BATCH))
        row = bytes_of(kept_in, self.keys) + bytes_of(kept_in, self.values)
        return batch_size * (cells * row + self.fixed)


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """What every layer keeps.

    Attributes:
        notes: what is counted at most.
    """

    layers: tuple[LayerState, ...]
    notes: tuple[str, ...] = ()

    def refusal(self, kept_in: BlockType) -> str | None:
        """Why keys and values can't be kept in this type; None where they can."""
        for number, layer in enumerate(self.layers):
            for width in (layer.keys, layer.values):
                if width % kept_in.elements:
                    of = kept_in.elements
                    return f"{kept_in.name} has blocks of {of}, and layer {number} keeps {width} numbers a token"
        return None


def padded(tokens: int) -> int:
    """Cells of a cache for so many tokens."""
    return -(-tokens // _CELLS) * _CELLS


class _UnknownError(Exception):
    """The header does not say what a rule asks for."""


def states_of(model: GgufModel, layers: int) -> States | str:
    """What each of the ``layers`` of ``model`` keeps, or why that is not known."""
    architecture = model.architecture
    rules = (*_ATTENTION, *_PERIODS, *_BY_LAYER, *_RECURRENT, *_BOTH, *_WITHOUT_HEADS, *_INTERVAL)
    if architecture not in rules:
        return f"how llama.cpp's {architecture} keeps its state is not known here"
    keys = _Keys(model, layers)
    try:
        return _states(architecture, keys, layers)
    except _UnknownError as error:
        return str(error)


def _states(architecture: str, keys: _Keys, layers: int) -> States:
    recurs = _recurs(architecture, keys, layers)
    fixed = _fixed(keys) if any(recurs) else 0
    if architecture in _RECURRENT:
        return States(layers=(LayerState(fixed=fixed),) * layers)
    windows, notes = _windows(architecture, keys, layers)
    own = _own_layers(architecture, keys, layers)
    found = []
    for number, attention in enumerate(_attentions(architecture, keys, windows)):
        keeps = number < own and (not recurs[number] or architecture in _BOTH)
        found.append(
            LayerState(
                keys=attention[0] if keeps else 0,
                values=attention[1] if keeps else 0,
                window=windows[number],
                fixed=fixed if recurs[number] else 0,
            )
        )
    if len({state.values for state in found if state.values}) > 1:
        notes = (*notes, "values are counted as with flash attention, which llama.cpp takes where a device has it")
    if keys.optional("nextn_predict_layers", 0):
        notes = (*notes, "layers that predict tokens ahead are counted as all others: llama.cpp may leave them out")
    return States(layers=tuple(found), notes=notes)


def _attentions(architecture: str, keys: _Keys, windows: Sequence[int | None]) -> list[tuple[int, int]]:
    """Elements of a token's keys and of its values, layer by layer."""
    heads = keys.by_layer("attention.head_count")
    kv_heads = keys.by_layer("attention.head_count_kv", heads)
    first = next((count for count in heads if count), 0)
    width = keys.required("embedding_length") // first if first else 0
    key, value = keys.optional("attention.key_length", width), keys.optional("attention.value_length", width)
    if architecture == "deepseek2" and keys.optional("attention.key_length_mla", 0):
        value = 0  # which are part of the keys
    if not any(kv_heads) or not key:
        raise _UnknownError("by its header no layer keeps keys: its attention.head_count or its key_length is 0")
    narrow = key, value
    if architecture in _BY_LAYER:
        narrow = keys.optional("attention.key_length_swa", key), keys.optional("attention.value_length_swa", value)
    found = []
    for count, window in zip(kv_heads, windows, strict=True):
        of_key, of_value = (key, value) if window is None else narrow
        found.append((count * of_key, count * of_value))
    return found


def _windows(architecture: str, keys: _Keys, layers: int) -> tuple[list[int | None], tuple[str, ...]]:
    """The window of each layer, and what to know of them."""
    name, pattern = "attention.sliding_window", "attention.sliding_window_pattern"
    window = keys.optional(name, _WINDOWS.get(architecture, 0))
    whole: list[int | None] = [None] * layers
    if architecture == "llama4":
        window = _WINDOWS[architecture] if window else 0
    if architecture in _BY_LAYER:
        has_one = keys.flags(pattern)
        if any(has_one) and not window:
            raise _UnknownError(f"its header has no {name}")
        return [window if each else None for each in has_one], ()
    if architecture not in _PERIODS:
        told = ("its sliding window is not counted: every layer as for the whole context",) if window else ()
        return whole, told
    if not window:
        return whole, ()
    period = keys.optional(pattern, _PERIODS[architecture])
    if period < 1:
        raise _UnknownError(f"its {pattern} is {period}")
    return [None if number % period == period - 1 else window for number in range(layers)], ()


def _own_layers(architecture: str, keys: _Keys, layers: int) -> int:
    """How many layers, from the first on, have keys and values of their own."""
    if architecture == "gemma3n":
        return _GEMMA3N_LAYERS
    shared = keys.optional("attention.shared_kv_layers", 0) if architecture in _BY_LAYER else 0
    return layers - shared


def _recurs(architecture: str, keys: _Keys, layers: int) -> list[bool]:
    """Which layers keep a state of one size."""
    if architecture in _RECURRENT or architecture in _BOTH:
        return [True] * layers
    if architecture in _WITHOUT_HEADS:
        return [not count for count in keys.by_layer("attention.head_count_kv")]
    if architecture in _INTERVAL:
        interval = keys.optional("full_attention_interval", 4)
        if interval < 1 or keys.has("attention.recurrent_layers"):
            raise _UnknownError("which of its layers attend is not said as it is known here")
        nextn = keys.optional("nextn_predict_layers", 0)
        return [number < layers - nextn and (number + 1) % interval != 0 for number in range(layers)]
    return [False] * layers


def _fixed(keys: _Keys) -> int:
    """Bytes of the state of one size, for a sequence: in float32, whatever keys and values are in."""
    if keys.has("shortconv.l_cache"):
        return 4 * keys.required("embedding_length") * max(keys.required("shortconv.l_cache") - 1, 0)
    conv, inner = keys.required("ssm.conv_kernel"), keys.required("ssm.inner_size")
    state, groups = keys.required("ssm.state_size"), keys.optional("ssm.group_count", 0)
    return 4 * (max(conv - 1, 0) * (inner + 2 * groups * state) + state * inner)


class _Keys:
    """The sizes in the header of a model."""

    def __init__(self, model: GgufModel, layers: int) -> None:
        self._model = model
        self._layers = layers

    def has(self, name: str) -> bool:
        return self._model.key(name) is not None

    def required(self, name: str) -> int:
        return self._size(name, self._model.key(name))

    def optional(self, name: str, default: int) -> int:
        value = self._model.key(name)
        return default if value is None else self._size(name, value)

    def by_layer(self, name: str, default: Sequence[int] | None = None) -> Sequence[int]:
        """A size for each layer, from one or an array of them."""
        value = self._model.key(name)
        if value is None and default is not None:
            return default
        if not isinstance(value, tuple):
            return [self._size(name, value)] * self._layers
        if len(value) != self._layers:
            raise _UnknownError(f"its {name} has {len(value)} numbers, and it has {self._layers} layers")
        return [self._size(name, each) for each in value]

    def flags(self, name: str) -> Sequence[bool]:
        """A flag for each layer."""
        value = self._model.key(name)
        if not isinstance(value, tuple) or len(value) != self._layers:
            raise _UnknownError(f"its {name} is not said layer by layer")
        return [bool(each) for each in value]

    def _size(self, name: str, value: Value | None) -> int:
        if value is None:
            raise _UnknownError(f"its header has no {name}")
        if type(value) is not int or not 0 <= value < 2**31:
            raise _UnknownError(f"its {name} is no size")
        return value
