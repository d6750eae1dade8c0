"""The one gate to NVML, and its error numbers."""

from __future__ import annotations

from typing import Any

from devctl.inventory.probes import pci

# NVML's error numbers (nvml.h), by number so that reading this module needs no NVML
NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND, FUNCTION_NOT_FOUND = 3, 4, 9, 12, 13
GPU_IS_LOST, RESET_REQUIRED, VERSION_MISMATCH = 15, 16, 18

NO_ANSWER = -1
"""None of NVML's: it said nothing."""

UNKNOWN = 999
"""NVML_ERROR_UNKNOWN: what an answer that makes no sense is taken for."""


def words(error: Any) -> str:
    """What NVML says of an ``NVMLError``; its number where that is no text."""
    try:
        return str(error)
    except UnicodeDecodeError:
        return f"NVML error {error.value}"


class Nvml:
    """The one gate to NVML. An answer is a value, or None where the board does not know; a fault is kept.

    Args:
        library: the ``pynvml`` module, initialised.
        subject: what is asked about: a board's handle, or nothing for the whole machine.
        fault: why the board can't be asked.
    """

    def __init__(self, library: Any, *subject: Any, fault: str | None = None) -> None:
        self.library, self.subject, self.fault = library, subject, fault
        self.refused: int | None = None
        self.words = ""

    def ask(self, function: str, *arguments: Any) -> Any:
        """What NVML's ``function`` says of the board; None where it says nothing, ``refused`` holding why.

        A board that is gone is asked nothing more, each question may take seconds: that error becomes ``fault``.
        """
        self.refused = None
        if self.fault is not None:
            return None
        try:
            return getattr(self.library, function)(*self.subject, *arguments)
        except self.library.NVMLError as error:
            self.refused = error.value
            self.words = words(error)
            if self.subject and error.value in (GPU_IS_LOST, RESET_REQUIRED):
                self.fault = self.words
        except UnicodeDecodeError:
            # a board whose firmware is damaged can have a name that is no text
            self.refused = NOT_SUPPORTED
        except (MemoryError, OverflowError, ValueError, TypeError) as error:
            # a broken driver may say that there are four billion of something
            self.refused = UNKNOWN
            self.words = f"an answer that makes no sense: {error or type(error).__name__}"
        return None

    def bus_id(self, function: str, *arguments: Any) -> str | None:
        """The bus id in the answer of ``function``, as /sys writes it."""
        answer = self.ask(function, *arguments)
        try:
            return None if answer is None else pci.normal_bus_id(answer.busId)
        except UnicodeDecodeError:
            return None

    @property
    def handle(self) -> Any:
        """The board's."""
        return self.subject[0]
