"""What `devctl check` found, for people and programs."""

from collections.abc import Sequence

from devctl.errors import UsageError
from devctl.inventory.records import Accelerator, label
from devctl.inventory.requirements import Verdict


def lines(verdict: Verdict) -> str:
    """A line a requirement, all of them met."""
    return "".join(f"ok: {finding}\n" for finding in verdict.findings)


def ids(selected: Sequence[Accelerator], *, uuid: bool) -> str:
    """The GPUs as CUDA_VISIBLE_DEVICES takes them, best first, on one line.

    Raises:
        UsageError: one of them has no such name.
    """
    names = [accelerator.uuid if uuid else accelerator.cuda_index for accelerator in selected]
    for accelerator, name in zip(selected, names, strict=True):
        if name is None:
            other = "index" if uuid else "uuid"
            raise UsageError(
                f"{label(accelerator)} has no {'UUID' if uuid else 'index'} to select it by",
                hint=f"use --format {other}, or --format json for all that is known",
            )
    return ",".join(str(name) for name in names) + "\n"
