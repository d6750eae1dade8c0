"""What ``generate`` is told besides its inputs, as far as that decides on memory: by a model's files, or who asks.

Suppressed and forced tokens cost at most one more copy of the scores, and are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from devctl.errors import ModelError, UsageError, did_you_mean

Settings = tuple[tuple[str, bool | int | float | str], ...]
"""Settings of generate by name, in order; those that are as in a greedy generate are left out."""

CACHE_BITS = "cache_nbits"
"""Our name of the bits of a value in a quantised cache, which transformers has in a config within."""

CONFIG, GREEDY, SAMPLE = "config", "greedy", "sample"
MOST_BEAMS = 1024

_FLAGS = ("do_sample", "use_cache", "renormalize_logits", "remove_invalid_values")
_COUNTS = ("num_beams", "num_return_sequences", "top_k", "no_repeat_ngram_size", "max_cache_len", "prefill_chunk_size")
_SHARES = ("temperature", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff", "repetition_penalty")
_GREEDY: Mapping[str, Any] = {
    "do_sample": False,
    "use_cache": True,
    "renormalize_logits": False,
    "remove_invalid_values": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 50,
    "no_repeat_ngram_size": 0,
    "temperature": 1.0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    # of old releases, for sliding windows: generate has them without
    "cache_implementation": "hybrid",
}
_OF_SAMPLING = frozenset({"top_k", *_SHARES} - {"repetition_penalty"})
_CACHES = ("static", "offloaded", "offloaded_static", "quantized", "dynamic", "hybrid")
_OLD_CACHES = {
    "sliding_window": "static",
    "hybrid_chunked": "static",
    "offloaded_hybrid": "offloaded_static",
    "offloaded_hybrid_chunked": "offloaded_static",
}
"""Old names that transformers still takes, each with what it is now; "hybrid" is the one that it forgets."""
_NOT_COUNTED = {
    "prompt_lookup_num_tokens": "prompt lookup",
    "assistant_early_exit": "assisted decoding",
    "use_mtp": "assisted decoding",
    "assistant_model": "assisted decoding",
    "compile_config": "torch.compile",
    "penalty_alpha": "contrastive search",
    "dola_layers": "DoLa decoding",
    "constraints": "constrained beams",
    "force_words_ids": "constrained beams",
    "guidance_scale": "classifier-free guidance",
    "watermarking_config": "watermarks",
    "sequence_bias": "a sequence bias",
    "output_scores": "scores that are kept",
    "output_logits": "logits that are kept",
    "output_attentions": "attentions that are kept",
    "output_hidden_states": "hidden states that are kept",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How tokens are chosen and what is kept for the next ones.

    Attributes:
        settings: what is counted.
        uncounted: what is asked for and not counted, in a few words each.
    """

    settings: Settings = ()
    uncounted: tuple[str, ...] = field(default=())


def checked(decode: str) -> str:
    """``decode``, which can be meant.

    Raises:
        UsageError: it is none of config, greedy, sample and beam:N.
    """
    if decode in (CONFIG, GREEDY, SAMPLE):
        return decode
    found = re.fullmatch(r"beam:([0-9]{1,9})", decode, re.ASCII)
    if found is None:
        meant = did_you_mean(decode, (CONFIG, GREEDY, SAMPLE))
        raise UsageError(f"--decode {decode!r} is not one of config, greedy, sample, beam:N{meant}", hint="like beam:4")
    if not 2 <= int(found[1]) <= MOST_BEAMS:
        raise UsageError(f"--decode {decode}: from 2 to {MOST_BEAMS} beams are counted")
    return f"beam:{int(found[1])}"


def decoding(decode: str, told: Mapping[str, Any]) -> Decoding:
    """What generate does when it is asked for ``decode``, of a model whose files say ``told``.

    Raises:
        ModelError: the files say what can't be meant.
    """
    ways = () if decode == CONFIG else ("do_sample", "num_beams", "num_return_sequences")
    asked = dict(_known({name: value for name, value in told.items() if name not in ways}))
    if decode == SAMPLE:
        asked["do_sample"] = True
    elif decode.startswith("beam:"):
        asked["num_beams"] = int(decode.removeprefix("beam:"))
    if asked.get("cache_implementation") == "dynamic":
        del asked["cache_implementation"]
    packed = told.get("cache_config")
    if asked.get("cache_implementation") == "quantized" and isinstance(packed, dict):
        bits = packed.get("nbits")
        asked |= {CACHE_BITS: bits} if isinstance(bits, int) and 1 <= bits <= 8 else {}
    if not asked.get("do_sample"):
        asked = {name: value for name, value in asked.items() if name not in _OF_SAMPLING}
    settings = tuple(sorted((name, value) for name, value in asked.items() if value != _GREEDY.get(name)))
    return Decoding(settings=settings, uncounted=tuple(dict.fromkeys(_uncounted(told, decode))))


def parse_settings(data: Any) -> Settings:
    """Settings from a document, which has them by name.

    Raises:
        ValueError: it does not, or one is none that is counted.
    """
    if not isinstance(data, dict):
        raise ValueError("settings of generate are an object")
    told = {name: value for name, value in data.items() if name != CACHE_BITS}
    try:
        known = dict(_known(told))
    except ModelError as error:
        raise ValueError(error.message) from None
    if known.keys() != told.keys():
        raise ValueError(f"{min(told.keys() - known.keys())} is not counted")
    if (bits := data.get(CACHE_BITS)) is not None:
        if type(bits) is not int or not 1 <= bits <= 8:
            raise ValueError(f"{CACHE_BITS} is {bits!r}")
        known[CACHE_BITS] = bits
    return tuple(sorted(known.items()))


def _known(told: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in told.items():
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in _FLAGS:
            good = isinstance(value, bool)
        elif name in _COUNTS:
            least = 0 if name in ("top_k", "no_repeat_ngram_size") else 1
            good = isinstance(value, int) and number and least <= value < 2**31
        elif name in _SHARES:
            good = number and 0 <= value < float("inf")
        elif name == "cache_implementation":
            good = isinstance(value, str)
            if good and value not in (*_CACHES, *_OLD_CACHES):
                continue  # transformers says what is wrong
        else:
            continue
        if not good:
            raise ModelError(
                f"the generation config's {name} is {str(value)[:80]!r}",
                hint="it is in generation_config.json, or in config.json where there is none",
            )
        yield name, _OLD_CACHES.get(value, value) if name == "cache_implementation" else value


def _uncounted(told: Mapping[str, Any], decode: str) -> Iterator[str]:
    for name, what in _NOT_COUNTED.items():
        value = told.get(name)
        if value and not (name == "guidance_scale" and value == 1):
            yield what
    if decode == CONFIG and isinstance(groups := told.get("num_beam_groups"), int) and groups > 1:
        yield "groups of beams"
    cache = told.get("cache_implementation")
    if cache in ("static", "offloaded_static", *_OLD_CACHES):
        yield "torch.compile, which generate uses with a static cache on a GPU"


def words(settings: Settings) -> str:
    """What is counted, in a few words."""
    given = dict(settings)
    beams = given.pop("num_beams", 1)
    samples = given.pop("do_sample", False)
    rest = [f"{name} {str(value).lower() if isinstance(value, bool) else value}" for name, value in given.items()]
    what = f"{beams} beams" if beams != 1 else ""
    if samples:
        what += " that are sampled" if what else "sampling"
    what = what or "greedy"
    return f"{what} ({', '.join(rest)})" if rest else what
