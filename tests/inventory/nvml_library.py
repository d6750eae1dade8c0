"""Builds the stand-in NVML with the machine's C compiler."""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path) -> Path:
    """The library, as the file name and the soname that pynvml asks the loader for."""
    library = folder / "libnvidia-ml.so.1"
    cc = compiler()
    assert cc is not None, "callers skip without a compiler"
    options = ["-shared", "-fPIC", "-O1", "-fvisibility=hidden", f"-Wl,-soname,{library.name}"]
    subprocess.run([cc, *options, "-o", str(library), str(SOURCE)], check=True)
    return library
