"""How torch's allocator of an accelerator is set in an environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from devctl.models.whose_kernels import parse_release

_HEARD_BY_ALL = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_NEWER = "PYTORCH_ALLOC_CONF"
_HEARD_SINCE = (2, 11)
"""torch 2.9 takes the newer name's other settings, and forgets this one in silence (pytorch/pytorch issue 183387);
2.11 is the first that was seen to heed it."""


def leaves_gaps(environment: Mapping[str, str], torch: str | None = None) -> bool:
    """Whether torch's allocator leaves the gaps that it leaves by default, as far as these variables tell.

    It does unless it is told ``expandable_segments:True`` by a name that it heeds, and by no other name the contrary.

    Args:
        torch: its version; None where that is not known.
    """
    told = {name: environment[name] for name in (*_HEARD_BY_ALL, _NEWER) if environment.get(name)}
    heeded = [name for name in told if name != _NEWER or (parse_release(torch) or ()) >= _HEARD_SINCE]
    # no such segments in torch's builds for Windows
    return sys.platform == "win32" or not heeded or not all(map(_expands, told.values()))


def unheeded(environment: Mapping[str, str], torch: str | None) -> str | None:
    """The variable that asks to leave no gaps, where torch leaves them all the same; None where there is none such.

    Args:
        torch: its version; None where that is not known.
    """
    asking = [name for name in (*_HEARD_BY_ALL, _NEWER) if _expands(environment.get(name, ""))]
    return asking[0] if asking and leaves_gaps(environment, torch) else None


def _expands(settings: str) -> bool:
    """Whether settings like "garbage_collection_threshold:0.8,expandable_segments:True" say so; the last one counts."""
    values = [
        value.strip()
        for name, _, value in (setting.partition(":") for setting in settings.split(","))
        if name.strip() == "expandable_segments"
    ]
    return bool(values) and values[-1] == "True"


def here() -> bool:
    """Whether it leaves gaps in what this process starts, or imports from now on."""
    import os

    from devctl.planning.examining.packages import version_of

    return leaves_gaps(os.environ, version_of("torch"))
