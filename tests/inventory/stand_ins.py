"""Builds the stand-ins for NVIDIA's libraries with the machine's C compiler."""

import shutil
import subprocess
from pathlib import Path

SOURCES = {"libnvidia-ml.so.1": "fake_nvml.c", "libcuda.so.1": "fake_cuda.c"}


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def build(folder: Path, name: str = "libnvidia-ml.so.1") -> Path:
    """The library ``name``, with the file name and the soname that the loader is asked for."""
    cc = compiler()
    assert cc is not None, "callers skip without a compiler"
    source = Path(__file__).with_name(SOURCES[name])
    options = ["-shared", "-fPIC", "-O1", "-fvisibility=hidden", f"-Wl,-soname,{name}"]
    subprocess.run([cc, *options, "-o", str(folder / name), str(source)], check=True)
    return folder / name
