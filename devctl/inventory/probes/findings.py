"""What one vendor's probe hands over."""

from dataclasses import dataclass

from devctl.inventory.records import NO_LINKS, Accelerator, Driver, Links


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """One vendor's part of an inventory; ``links`` counts positions in these ``accelerators``."""

    accelerators: tuple[Accelerator, ...] = ()
    driver: Driver | None = None
    links: Links = NO_LINKS
    order_certain: bool = True
    notes: tuple[str, ...] = ()
