"""The disks under the folders that matter."""

import os
import shutil
from pathlib import Path

from devctl.inventory.records import Disk


def hf_cache() -> Path:
    """Where Hugging Face keeps downloaded models: HF_HUB_CACHE, HF_HOME/hub, or the user's cache folder."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    home = Path(os.environ.get("HF_HOME") or cache_home / "huggingface").expanduser()
    return home / "hub"


def probe(use: str, path: Path) -> Disk:
    """The file system that ``path`` is on, or would be on once it is made."""
    existing = next((p for p in (path, *path.parents) if p.exists()), path)
    try:
        usage = shutil.disk_usage(existing)
    except OSError as error:
        return Disk(use=use, path=str(path), total=None, free=None, fault=error.strerror or str(error))
    return Disk(use=use, path=str(path), total=usage.total, free=usage.free)
