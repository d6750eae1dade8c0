"""Everything that is tried, by section. Nothing is imported here that takes time: the list is shown without a board."""

from __future__ import annotations

from tests.boards.records import Step
from tests.boards.steps import edge, inventory, overhead, peaks, placement, real, several, speed

STEPS: tuple[Step, ...] = (
    *inventory.STEPS,
    *overhead.STEPS,
    *peaks.STEPS,
    *edge.STEPS,
    *placement.STEPS,
    *several.STEPS,
    *speed.STEPS,
    *real.STEPS,
)


def find_step(name: str) -> Step:
    """The step called ``name``.

    Raises:
        KeyError: there is none.
    """
    return {step.name: step for step in STEPS}[name]
