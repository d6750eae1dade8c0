"""What `devctl check` found, for people and programs."""

from collections.abc import Sequence

from devctl.cli.show.streams import clean
from devctl.errors import RefusedError, UsageError
from devctl.inventory.gpus_fit import nameable
from devctl.inventory.records import Accelerator, label
from devctl.inventory.requirements import Verdict


def lines(verdict: Verdict) -> str:
    """A line a requirement, all of them met."""
    return "".join(f"ok: {clean(str(finding))}\n" for finding in verdict.findings)


def ids(selected: Sequence[Accelerator], *, uuid: bool) -> str:
    """The GPUs as CUDA_VISIBLE_DEVICES takes them, best first, on one line.

    Raises:
        UsageError: one of them has no index.
        RefusedError: one of them has no UUID, or none that CUDA could read.
    """
    names = [accelerator.uuid if uuid else accelerator.cuda_index for accelerator in selected]
    for accelerator, name in zip(selected, names, strict=True):
        if uuid and not nameable(accelerator.uuid):
            raise RefusedError(
                f"{label(accelerator)} has no UUID to select it by",
                hint="use --format index, or --format json for all that is known",
            )
        if name is None:
            raise UsageError(
                f"{label(accelerator)} has no index to select it by",
                hint="use --format uuid, or --format json for all that is known",
            )
    return ",".join(str(name) for name in names) + "\n"
