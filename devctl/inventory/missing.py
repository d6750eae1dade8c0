"""Why accelerators that a machine has can't be used, in words. Pure: an inventory in, lines out."""

from collections.abc import Sequence

from devctl.inventory.records import Accelerator, Hidden, Inventory, Vendor, label

_MAKERS = {Vendor.NVIDIA: "NVIDIA", Vendor.AMD: "AMD", Vendor.INTEL: "Intel", Vendor.APPLE: "Apple"}

_VARIABLES = {
    Vendor.NVIDIA: "CUDA_VISIBLE_DEVICES",
    Vendor.AMD: "ROCR_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES",
    Vendor.INTEL: "ZE_AFFINITY_MASK",
}

_MOST_NAMED = 4
"""Accelerators that a line names, at most."""


def missing(inventory: Inventory) -> tuple[str, ...]:
    """A line for each reason for which an accelerator of ``inventory`` is not there to be planned with.

    Accelerators that no framework drives, as a processor's own graphics, are told where there is no other. What the
    inventory itself notes about its accelerators comes last.
    """
    found: list[str] = []
    told = set()
    for driver in inventory.drivers:
        if driver.fault is not None and driver.vendor in _MAKERS:
            told.add(driver.fault)
            found.append(f"no {_MAKERS[driver.vendor]} GPU is counted: {driver.fault}")
    unusable = [accelerator for accelerator in inventory.accelerators if accelerator.device is None]
    faults = dict.fromkeys(a.fault for a in unusable if a.fault is not None and a.fault not in told)
    found += [f"{_are([a for a in unusable if a.fault == fault], 'left out')}: {fault}" for fault in faults]
    for vendor, variable in _VARIABLES.items():
        if hidden := [a for a in unusable if a.vendor is vendor and a.hidden is Hidden.ENVIRONMENT]:
            found.append(f"{_are(hidden, 'hidden')} by {variable}")
    unsupported = [a for a in unusable if a.hidden is Hidden.UNSUPPORTED]
    if unsupported and len(unusable) == len(inventory.accelerators):
        found.append(f"{_are(unsupported, 'left out')}: torch has no device for it")
    return (*found, *inventory.notes)


def _are(accelerators: Sequence[Accelerator], what: str) -> str:
    names = [label(accelerator) for accelerator in accelerators]
    if len(names) > _MOST_NAMED:
        names = [*names[: _MOST_NAMED - 1], f"{len(names) - _MOST_NAMED + 1} more"]
    together = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"{together} {'is' if len(accelerators) == 1 else 'are'} {what}"
