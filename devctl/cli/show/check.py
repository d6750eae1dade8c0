"""What `devctl check` found, for people and programs."""

from collections.abc import Sequence

from devctl.cli.show.streams import dumps
from devctl.errors import UsageError
from devctl.inventory.document import to_json_values
from devctl.inventory.records import Accelerator, label
from devctl.inventory.requirements import Verdict

SCHEMA = 1
KIND = "devctl.check"


def to_json(verdict: Verdict) -> str:
    """The verdict as one document."""
    document = {
        "schema": SCHEMA,
        "kind": KIND,
        "ok": verdict.ok,
        "requirements": to_json_values(verdict.findings),
        "selected": to_json_values(verdict.selected),
    }
    return dumps(document)


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
