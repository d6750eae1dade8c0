"""How a model attends: what transformers calls ``attn_implementation``, and which of them a class has."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from devctl.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

EAGER, SDPA, FLEX = "eager", "sdpa", "flex_attention"
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
NAMES = (SDPA, EAGER, *FLASH, FLEX)

_KERNEL = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w.-]+)?(?::\w+)?", re.ASCII)


def is_kernel(name: str) -> bool:
    """Whether it is the id of a kernel on the hub, like "kernels-community/flash-attn3"."""
    return _KERNEL.fullmatch(name) is not None


def is_flash(name: str) -> bool:
    """Whether it is flash attention, of a package or of the hub. A kernel of the hub is taken to be."""
    return name in FLASH or is_kernel(name)


def checked(name: str, option: str) -> str:
    """``name``, which is one that transformers may know.

    Raises:
        UsageError: it is not.
    """
    if name not in NAMES and not is_kernel(name):
        raise UsageError(
            f"{option} {name!r} is not one of {', '.join(NAMES)}{did_you_mean(name, NAMES)}",
            hint="or the id of a kernel on the hub, like kernels-community/flash-attn3",
        )
    return name


def chosen(name: str, has: Collection[str], class_name: str) -> str:
    """What transformers runs a class with that is asked for ``name``: the same, or the flash attention that it is for.

    Args:
        has: what the class has, as `of_class` says.

    Raises:
        UsageError: the class has neither.
    """
    if name in has:
        return name
    kernels = [each for each in has if is_kernel(each)]
    if is_flash(name) and kernels:
        return kernels[0]
    if is_kernel(name) and any(each in FLASH for each in has):
        return name
    raise UsageError(f"--attn-implementation {name}: {class_name} has none, it has {', '.join(has) or 'no choice'}")


def of_class(model_class: type[PreTrainedModel]) -> tuple[str, ...]:
    """The implementations that ``model_class`` has, from what it says of itself, the plainest first.

    A class that is for certain kernels of flash attention is given no other.
    """
    found = [EAGER]
    if getattr(model_class, "_supports_sdpa", False):
        found.append(SDPA)
    if getattr(model_class, "_supports_flash_attn", False):
        found += getattr(model_class, "_compatible_flash_implementations", None) or FLASH
    if getattr(model_class, "_supports_flex_attn", False):
        found.append(FLEX)
    return tuple(found)


def of_config(config: PreTrainedConfig) -> str | None:
    """What the text part of a model that was built of ``config`` attends with; None where it does not say."""
    found = getattr(config.get_text_config(decoder=True), "_attn_implementation", None)
    return found if isinstance(found, str) else None


def same(one: str, other: str) -> bool:
    """Whether both are one attention: for one that is not installed, transformers takes a kernel of the hub."""
    return one == other or (is_flash(one) and is_flash(other) and is_kernel(one) != is_kernel(other))


@contextmanager
def without_packages() -> Iterator[None]:
    """Let a model be built that names a flash attention whose package, or board, is not here."""
    from transformers import PreTrainedModel

    original = PreTrainedModel._check_and_adjust_attn_implementation

    def adjusted(self: Any, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        if attn_implementation is None or not is_flash(attn_implementation):
            return original(self, attn_implementation, *args, **kwargs)
        has = of_class(type(self))
        if not any(is_flash(each) for each in has):
            raise ValueError(f"{type(self).__name__} has no flash attention")
        return attn_implementation if is_kernel(attn_implementation) else chosen(attn_implementation, has, "")

    PreTrainedModel._check_and_adjust_attn_implementation = adjusted  # type: ignore[method-assign]
    try:
        yield
    finally:
        PreTrainedModel._check_and_adjust_attn_implementation = original  # type: ignore[method-assign]
