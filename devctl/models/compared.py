"""Whether devctl's own maps are known to be those of the transformers that is installed, without importing it.

What decides is the planner's source, told apart by a digest: those of the releases that devctl's tests compare are
written here, and what a first plan found out about another one is kept beside the module trees.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from devctl.models.cache import load_comparison, store_comparison

_PLANNER = "integrations/accelerate.py"
_TOOLS = ("clean_device_map", "get_max_layer_size")
"""What the planner calls of ``accelerate/utils/modeling.py``; the rest of that file does not matter."""

KNOWN_PLANNERS = frozenset(
    {
        "6940521448b4376c8bd00862bd39895193085600673642bff9e19f2637011c81",  # 5.22, 5.23, 5.24
        "863ddc3c52c533b2666d11cb66a3a00e90e26c2c0b2f8f065561aa62a9dd2623",  # 5.18 to 5.21: annotations differ
    }
)
KNOWN_TOOLS = frozenset(
    {
        "df88d4928cdd14bd4fdf0a80c5e8876267fa607d0982e1961809a68c0059ef14",  # 1.7 to 1.15
    }
)
KNOWN_QUANTIZERS = frozenset(
    {
        "da339541deaf6e7e84d50f99a14c43665ccd6ca520695fe2e5f7d85fb207aa63",  # 5.23
        "f0608227339a60fc231d97d71e3d6a2d7975187b6839087c5dd69790ad04a9b7",  # 5.24
    }
)
"""Of all of ``transformers/quantizers``, which count the bytes of a quantised model and scale its budgets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannerSource:
    """Digests of the code that decides where ``from_pretrained`` puts a model.

    Attributes:
        planner: of the planner's file.
        tools: of what it calls in accelerate.
        quantizers: of the quantizers' files; None for a model that is not quantised.
    """

    planner: str
    tools: str
    quantizers: str | None

    @property
    def is_known(self) -> bool:
        """Whether devctl's tests compare this very code."""
        return (
            self.planner in KNOWN_PLANNERS
            and self.tools in KNOWN_TOOLS
            and (self.quantizers is None or self.quantizers in KNOWN_QUANTIZERS)
        )


def planner_source(*, quantised: bool) -> PlannerSource | None:
    """The installed code, found as an import would find it, and read; None where it is not as it used to be."""
    try:
        transformers, accelerate = _folder("transformers"), _folder("accelerate")
        tools = (accelerate / "utils" / "modeling.py").read_text(encoding="utf-8")
        quantizers = sorted((transformers / "quantizers").glob("*.py")) if quantised else []
        return PlannerSource(
            planner=_digest((transformers / _PLANNER).read_bytes()),
            tools=_digest(*(_function(tools, name).encode() for name in _TOOLS)),
            quantizers=_digest(*(path.read_bytes() for path in quantizers)) if quantised else None,
        )
    except (OSError, ValueError, ImportError):
        return None


def is_compared(key: str | None, *, quantised: bool) -> bool:
    """Whether a plan of the tree kept under ``key`` may be devctl's own, without the installed planner being asked.

    Takes a millisecond or two. What was found out about this model goes before what is known of the release.
    """
    source = planner_source(quantised=quantised)
    if key is None or source is None:
        return False
    kept = load_comparison(_comparison_key(key, source))
    return source.is_known if kept is None else kept


def keep_comparison(key: str | None, *, quantised: bool, equal: bool) -> None:
    """Keep what a comparison of the tree kept under ``key`` came to, until the installed planner is another one."""
    source = planner_source(quantised=quantised)
    if key is not None and source is not None:
        store_comparison(_comparison_key(key, source), equal=equal)


def _comparison_key(key: str, source: PlannerSource) -> str:
    parts = ["planner", key, source.planner, source.tools, source.quantizers]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"no package {package}")
    return Path(spec.submodule_search_locations[0])


def _function(text: str, name: str) -> str:
    """The source of a function at the top of a module.

    Raises:
        ValueError: there is none.
    """
    start = text.index(f"\ndef {name}(")
    ends = (text.find(f"\n{word} ", start + 1) for word in ("def", "class"))
    return text[start : min((end for end in ends if end > 0), default=len(text))]


def _digest(*parts: bytes) -> str:
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()
