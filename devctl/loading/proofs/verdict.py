"""The proofs of a load: what each says, and whether it holds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from devctl.loading.proofs.watch import block_of
from devctl.placement.judge import shorten

if TYPE_CHECKING:
    from devctl.loading.proofs.compare import Difference
    from devctl.loading.proofs.copies import Copied
    from devctl.loading.proofs.places import Misplaced, Ties
    from devctl.loading.proofs.reference import Verification
    from devctl.loading.run.smoke import Smoke


class ProofName(StrEnum):
    """What is proven."""

    TENSORS = "tensors"
    """Every parameter and buffer is where the map says."""
    TIES = "ties"
    """Tied tensors are one, but where the map splits them."""
    OUTPUTS = "outputs"
    """No output has a NaN or an infinity."""
    REPEAT = "repeat"
    """A second forward gives the same bits."""
    COPIES = "copies"
    """Bytes arrive unchanged from every accelerator at every other."""
    REFERENCE = "reference"
    """The outputs are those that the CPU computes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The outcome of one proof.

    Attributes:
        said: what was found, a line.
        block: the first block that is wrong; None where none is, or none is known.
    """

    name: ProofName
    passed: bool
    said: str
    block: str | None = None


def judge_proofs(
    *,
    tensors: int,
    misplaced: Sequence[Misplaced],
    ties: Ties,
    smoke: Smoke,
    copies: Sequence[Copied],
    verification: Verification | None,
    blocks: Collection[str],
) -> tuple[Proof, ...]:
    """Every proof that was made, in the order in which they are told."""
    found = [_places(tensors, misplaced, blocks)]
    if ties.shared or ties.copied or ties.untied:
        found.append(_ties(ties, blocks))
    found += [_outputs(smoke), _repeat(smoke)]
    if copies:
        found.append(_copies(copies))
    if verification is not None:
        found.append(_reference(verification))
    return tuple(found)


def _places(tensors: int, misplaced: Sequence[Misplaced], blocks: Collection[str]) -> Proof:
    return Proof(
        name=ProofName.TENSORS,
        passed=not misplaced,
        said=f"{tensors} looked up, {len(misplaced)} misplaced",
        block=block_of(misplaced[0].name, blocks) if misplaced else None,
    )


def _ties(ties: Ties, blocks: Collection[str]) -> Proof:
    parts = [f"{ties.shared} shared"] if ties.shared else []
    if ties.copied:
        parts.append(f"{len(ties.copied)} copied, as the map splits them: {shorten(ties.copied)}")
    if ties.untied:
        parts.append(f"{len(ties.untied)} no longer one tensor: {shorten(ties.untied)}")
    return Proof(
        name=ProofName.TIES,
        passed=not ties.untied,
        said=", ".join(parts),
        block=block_of(ties.untied[0].partition(" = ")[0], blocks) if ties.untied else None,
    )


def _outputs(smoke: Smoke) -> Proof:
    said = f"NaN or infinite: {', '.join(smoke.nonfinite)}" if smoke.nonfinite else "all finite"
    return Proof(
        name=ProofName.OUTPUTS,
        passed=not smoke.nonfinite,
        said=_since(said, smoke.nonfinite_block),
        block=smoke.nonfinite_block,
    )


def _repeat(smoke: Smoke) -> Proof:
    repeated = smoke.repeated
    if repeated.bit_equal:
        said = "a second forward gave the same bits"
    else:
        within = f"within the {repeated.allowed:g} of an accelerator" if repeated.steady else "which it should not"
        said = f"a second forward differs, {within}: {_apart(repeated.worst)}"
    return Proof(name=ProofName.REPEAT, passed=repeated.steady, said=_since(said, repeated.block), block=repeated.block)


def _copies(copies: Sequence[Copied]) -> Proof:
    wrong = [copied for copied in copies if copied.changed]
    if wrong:
        lines = [f"{c.source} → {c.target} changed {c.changed} of {c.nbytes} bytes" for c in wrong]
        said = shorten(list(dict.fromkeys(lines)))
    else:
        pairs = {(copied.source, copied.target) for copied in copies}
        said = f"{len(pairs)} ways between accelerators, no bit changed in {max(c.nbytes for c in copies)} bytes"
    return Proof(name=ProofName.COPIES, passed=not wrong, said=said)


def _reference(verification: Verification) -> Proof:
    allowed = verification.tolerance
    wrong = verification.first_wrong
    output = verification.worst_output
    block = None
    if wrong is not None:
        block = wrong.block
        said = f"{wrong.block} is the first wrong block: {_apart(wrong.worst)}, allowed {allowed.block:g}"
    elif output is not None and output.is_too_much:
        said = f"every block alone agrees, the outputs do not: {_apart(output)}, allowed {allowed.outputs:g}"
    elif not verification.passed:
        said = "nothing could be compared"
    else:
        whole = " and the outputs" if output is not None else ""
        said = f"{verification.blocks} blocks{whole} agree with the CPU, {_most(verification)}"
    if left := verification.not_compared:
        said += f"; {len(left)} not compared: {shorten(left, most=1)}"
    return Proof(name=ProofName.REFERENCE, passed=verification.passed, said=said, block=block)


def _most(verification: Verification) -> str:
    allowed = verification.tolerance
    found = verification.worst_block
    output = verification.worst_output
    if (found is None or not found.worst.absolute) and (output is None or not output.absolute):
        return "bit by bit"
    most = [] if found is None else [f"{found.block} by at most {_size(found.worst)}, allowed {allowed.block:g}"]
    if output is not None:
        most.append(f"{output.name} by at most {_size(output)}, allowed {allowed.outputs:g}")
    return "; ".join(most)


def _apart(difference: Difference | None) -> str:
    if difference is None or difference.absolute is None:
        return f"{'' if difference is None else difference.name + ' '}not finite, or of another shape"
    return f"{difference.name} by {_size(difference)}"


def _size(difference: Difference) -> str:
    relative = "" if difference.relative is None else f" (relative {difference.relative:.2g})"
    return f"{difference.absolute:.2g}{relative}"


def _since(said: str, block: str | None) -> str:
    return said if block is None else f"{said}; first in {block}"
