"""Bytes that torch's allocator of the CPU gives out and takes back while something runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any, TypeVar

_Result = TypeVar("_Result")


def counted(work: Callable[[], _Result]) -> tuple[_Result, int | None]:
    """What ``work`` returns, and the most bytes that it held at a time beside what was there before.

    torch's allocators tell a profiler of every allocation. Its older profiler only lists them, about a microsecond
    each; to start the newer one takes longer than the forward of a small model.

    Returns:
        None for the bytes where torch has no such profiler.
    """
    import torch
    from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

    begin: Any = getattr(torch.autograd, "_enable_profiler_legacy", None)
    end: Any = getattr(torch.autograd, "_disable_profiler_legacy", None)
    if begin is None or end is None:
        return work(), None
    # neither shapes, nor stacks, nor modules, nor operations are counted: memory is
    begin(ProfilerConfig(ProfilerState.CPU, False, True, False, False, False, _ExperimentalConfig()))
    try:
        result = work()
    finally:
        events = end()
    changes = (change for of_thread in events for change in _changes(of_thread))
    return result, max(accumulate(changes, initial=0))


def _changes(events: Iterable[Any]) -> Iterator[int]:
    """Bytes given out or, negative, taken back by a thread; without files that are mapped, outside of any operation."""
    operations = 0
    mapped: Counter[int] = Counter()
    for event in events:
        match event.kind():
            case "push":
                operations += 1
            case "pop":
                operations -= 1
            case "memory_alloc":
                change = event.cpu_memory_usage()
                if change > 0 and not operations:
                    mapped[change] += 1
                elif change < 0 and mapped[-change]:
                    mapped[-change] -= 1
                else:
                    yield change
