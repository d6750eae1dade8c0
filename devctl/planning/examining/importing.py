"""Run as a script in a process of its own: imports the frameworks one after the other, and tells what each came to.

Imports nothing of devctl. Each line that it writes begins with the mark that it was given, and holds JSON. Imports may
hang, crash or end the process: whoever reads knows from the line before what was being done.

Usage: python -P importing.py MARK
"""

import importlib
import importlib.util
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

Facts = dict[str, Any]

LONGEST = 7200
"""Seconds; whoever asks waits for less."""

SAID = 2000
"""Characters of an error that are told."""


def main() -> None:
    if hasattr(signal, "alarm"):
        signal.alarm(LONGEST)  # should whoever asked be gone, with nobody to end what hangs
    # what imports print must not come between the lines
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(2, 1)

    def tell(facts: Facts) -> None:
        out.write(sys.argv[1] + json.dumps(facts) + "\n")
        out.flush()

    warnings.simplefilter("ignore")
    for step, look in STEPS.items():
        tell({"step": step, "state": "begun"})
        try:
            found = look()
        except BaseException as error:  # noqa: BLE001 - also what a package raises to end the process
            tell({"step": step, "state": "failed", "said": f"{type(error).__name__}: {error}"[:SAID]})
        else:
            tell(
                {"step": step, "state": "absent"} if found is None else {"step": step, "state": "done", "facts": found}
            )
    out.close()
    # what a framework does when the interpreter ends may hang or crash, too, and says nothing of it
    os._exit(0)


def _there_is(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def look_at_torch() -> Facts | None:
    """torch, and what it was built for."""
    if not _there_is("torch"):
        return None
    import torch

    flags = getattr(torch._C, "_cuda_getArchFlags", None)
    archs = (flags() if flags is not None else None) or ""
    backends = torch.backends
    return {
        "version": str(torch.__version__),
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "xpu": getattr(torch.version, "xpu", None),
        "mps": bool(hasattr(backends, "mps") and backends.mps.is_built()),
        "architectures": archs.split(),
    }


def look_at_devices() -> Facts | None:
    """How many accelerators torch sees, and what it says of those that it does not. Makes no context on any."""
    if "torch" not in sys.modules:
        return None
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        seen = _of_cuda(torch) if torch.cuda.is_available() else 0
    xpu = getattr(torch, "xpu", None)
    backends = torch.backends
    return {
        "cuda": seen,
        "xpu": xpu.device_count() if xpu is not None and xpu.is_available() else 0,
        "mps": bool(hasattr(backends, "mps") and backends.mps.is_available()),
        "said": str(said[0].message)[:SAID] if said else None,
    }


def _of_cuda(torch: Any) -> int:
    """How many devices CUDA itself has. ``torch.cuda.device_count`` may count what NVML shows: boards in MIG mode of
    which CUDA has one instance, or those of a driver that CUDA can't use."""
    count = getattr(torch._C, "_cuda_getDeviceCount", torch.cuda.device_count)
    return int(count())


def _version_of(package: str) -> str | None:
    return str(getattr(sys.modules[package], "__version__", "")) or None


def look_at_transformers() -> Facts | None:
    """transformers, with what needs torch."""
    if not _there_is("transformers"):
        return None
    importlib.import_module("transformers.modeling_utils")
    return {"version": _version_of("transformers")}


def look_at_accelerate() -> Facts | None:
    """accelerate."""
    if not _there_is("accelerate"):
        return None
    importlib.import_module("accelerate")
    return {"version": _version_of("accelerate")}


STEPS: dict[str, Callable[[], Facts | None]] = {
    "torch": look_at_torch,
    "devices": look_at_devices,
    "transformers": look_at_transformers,
    "accelerate": look_at_accelerate,
}

if __name__ == "__main__":
    main()
