"""How well an NVIDIA board is: everything is read, then a pure function says what it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from devctl.inventory.probes.nvml import FUNCTION_NOT_FOUND, NOT_SUPPORTED
from devctl.inventory.records import Health

if TYPE_CHECKING:
    from devctl.inventory.probes.nvml import Nvml

# nvml.h: NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, NVML_FI_DEV_GET_GPU_RECOVERY_ACTION
_UNCORRECTED, _VOLATILE, _RECOVERY_FIELD = 1, 0, 230

_RECOVERY = {
    0: "none",
    1: "gpu-reset",
    2: "node-reboot",
    3: "drain-p2p",
    4: "drain-and-reset",
    5: "recover-imex-domain",
    6: "bus-reset",
    7: "system-reboot",
}
"""nvmlDeviceGpuRecoveryAction_t"""

_SLOWED = ((0x20 | 0x40, "heat"), (0x80, "power-brake"))
"""Reasons for lower clocks, of software and hardware; what only keeps a limit that somebody set is none of them."""

_HARDWARE_SLOWDOWN = 0x8

_UNDER_LOAD = 5
"""Percent busy; with less a link may be at a lower generation, to save power."""


class Answer(NamedTuple):
    """What the driver said: a value, or why there is none. Neither is that the board has no such thing."""

    value: Any = None
    error: str | None = None


def read_health(gate: Nvml, utilization: int | None) -> Health | None:
    """The health of a board; None where it is at fault and can't be asked."""
    questions: dict[str, tuple[Any, ...]] = {
        "ecc": ("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE),
        "retirement": ("nvmlDeviceGetRetiredPagesPendingStatus",),
        "rows": ("nvmlDeviceGetRemappedRows",),
        "recovery": ("nvmlDeviceGetFieldValues", [_RECOVERY_FIELD]),
        "width": ("nvmlDeviceGetCurrPcieLinkWidth",),
        "width max": ("nvmlDeviceGetMaxPcieLinkWidth",),
        "generation": ("nvmlDeviceGetCurrPcieLinkGeneration",),
        "generation max": ("nvmlDeviceGetMaxPcieLinkGeneration",),
        "clocks": ("nvmlDeviceGetCurrentClocksThrottleReasons",),
    }
    answers = {name: _ask(gate, *question) for name, question in questions.items()}
    answers["recovery"] = _field(answers["recovery"])
    if answers["clocks"] == Answer():  # newer drivers have it by this name, and may drop the other
        answers["clocks"] = _ask(gate, "nvmlDeviceGetCurrentClocksEventReasons")
    return None if gate.fault else parse_health(answers, utilization)


def _ask(gate: Nvml, function: str, *arguments: Any) -> Answer:
    value = gate.ask(function, *arguments)
    if value is None and gate.refused not in (None, NOT_SUPPORTED, FUNCTION_NOT_FOUND):
        return Answer(error=gate.words)
    return Answer(value=value)


def _field(answer: Answer) -> Answer:
    """The one field that was asked for, which has an error of its own."""
    if answer.value is None:
        return answer
    field = answer.value[0]
    # a driver that does not know a field calls it not supported, or an invalid argument (2)
    if field.nvmlReturn in (2, NOT_SUPPORTED, FUNCTION_NOT_FOUND):
        return Answer()
    return Answer(error=f"error {field.nvmlReturn}") if field.nvmlReturn else Answer(value=field.value.uiVal)


def parse_health(answers: Mapping[str, Answer], utilization: int | None) -> Health:
    """What NVML's answers mean. An error is a problem too: what can't be told can't be promised."""
    problems = [f"{name} can't be told: {answer.error}" for name, answer in _named(answers) if answer.error]
    ecc, retirement = answers["ecc"].value, answers["retirement"].value
    if ecc:
        problems.append(f"{ecc} uncorrected ECC error{'s' if ecc > 1 else ''}")
    if retirement:
        problems.append("memory pages to be retired at the next reset")
    pending, failed = (None, None) if answers["rows"].value is None else map(bool, answers["rows"].value[2:4])
    if pending:
        problems.append("memory rows to be remapped at the next reset")
    if failed:
        problems.append("a memory row could not be remapped")
    action = answers["recovery"].value
    recovery = None if action is None else _RECOVERY.get(action, f"unknown ({action})")
    if action:
        problems.append(f"the driver asks for recovery: {recovery}")
    width, widest = answers["width"].value, answers["width max"].value
    if width is not None and widest is not None and width < widest:
        problems.append(f"its link has {width} of {widest} lanes")
    generation, newest = answers["generation"].value, answers["generation max"].value
    busy = utilization is not None and utilization > _UNDER_LOAD
    if busy and generation is not None and newest is not None and generation < newest:
        problems.append(f"its link is of generation {generation} under load, and could be of {newest}")
    slowed = _slowed(answers["clocks"].value)
    if slowed:
        problems.append(f"its clocks are throttled ({', '.join(slowed)})")
    return Health(
        ecc_uncorrected=ecc,
        retirement_pending=None if retirement is None else bool(retirement),
        remapping_pending=pending,
        remapping_failed=failed,
        recovery_action=recovery,
        link_width=width,
        link_width_max=widest,
        link_generation=generation,
        link_generation_max=newest,
        throttled_by=slowed,
        problems=tuple(problems),
    )


_NAMES = {
    "ecc": "uncorrected ECC errors",
    "retirement": "pending page retirement",
    "rows": "row remapping",
    "recovery": "the recovery action",
    "width": "the link's width",
    "width max": "the link's largest width",
    "generation": "the link's generation",
    "generation max": "the link's newest generation",
    "clocks": "throttling",
}


def _named(answers: Mapping[str, Answer]) -> list[tuple[str, Answer]]:
    return [(_NAMES[name], answer) for name, answer in answers.items()]


def _slowed(reasons: int | None) -> tuple[str, ...] | None:
    if reasons is None:
        return None
    found = tuple(name for bits, name in _SLOWED if reasons & bits)
    return found or (("hardware",) if reasons & _HARDWARE_SLOWDOWN else ())
