"""The file systems under the folders that matter."""

import os
import re
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from devctl.inventory.probes import mounts
from devctl.inventory.probes.mounts import Mount
from devctl.inventory.probes.pci import SYS, read
from devctl.inventory.records import Disk, DiskKind
from devctl.writing import hub_cache

_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}
_NETWORK = re.compile(
    r"nfs4?|cifs|smb3?|smbfs|afpfs|9p|virtiofs|ceph|lustre|beegfs|gpfs|glusterfs|afs|wekafs|panfs|orangefs"
    r"|fuse\.(sshfs|ceph\S*|glusterfs|s3fs|gcsfuse|rclone|blobfuse2?|juicefs|mount-s3|lustre|davfs2?)"
)


_BLOCK_NAMES = (
    ("nvme", DiskKind.NVME),
    ("vd|xvd", DiskKind.VIRTUAL),  # what a hypervisor says of rotation is a default, not a fact
    ("nbd|rbd|drbd", DiskKind.NETWORK),
    ("zram|ram", DiskKind.MEMORY),
)


def hf_cache() -> Path:
    """Where Hugging Face keeps downloaded models."""
    return hub_cache()


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists: where it would be made."""
    for folder in (path, *path.parents):
        try:
            folder.stat()
        except OSError:
            continue
        return folder
    return path


def probe(use: str, path: Path, all_mounts: Sequence[Mount], sys: Path = SYS, *, must_be_there: bool = False) -> Disk:
    """The file system that ``path`` is on, or would be on once it is made; a fault where it ``must_be_there``."""
    try:
        path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would show another path than the user gave
        if must_be_there and not stat.S_ISDIR(path.stat().st_mode):
            return Disk(use=use, path=str(path), total=None, free=None, fault="is no folder")
        existing = nearest_existing(path)
        usage = shutil.disk_usage(existing)
    except (OSError, ValueError) as error:  # a path with a NUL in it is a ValueError
        fault = (error.strerror if isinstance(error, OSError) else None) or str(error)
        return Disk(use=use, path=str(path), total=None, free=None, fault=fault)
    mount = mount_of(str(existing.resolve()), all_mounts)
    return Disk(
        use=use,
        path=str(path),
        total=usage.total,
        free=usage.free,
        mount=mount.point if mount else None,
        filesystem=mount.filesystem if mount else None,
        kind=disk_kind(mount, sys) if mount else None,
    )


def mounted() -> tuple[Mount, ...]:
    """Everything that is mounted."""
    if found := mounts.probe():
        return found
    import psutil

    return tuple(
        Mount(point=part.mountpoint, filesystem=part.fstype, source=part.device)
        for part in psutil.disk_partitions(all=True)
    )


def mount_of(path: str, all_mounts: Sequence[Mount]) -> Mount | None:
    """The mount that ``path``, absolute and free of links, lies under: the longest, and of equals the last."""
    best = None
    for mount in all_mounts:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def disk_kind(mount: Mount, sys: Path = SYS) -> DiskKind | None:
    """What ``mount`` lies on, down through partitions, LVM and RAID; None where that can't be told."""
    if mount.filesystem in _MEMORY:
        return DiskKind.MEMORY
    if _NETWORK.fullmatch(mount.filesystem):
        return DiskKind.NETWORK
    if mount.source.startswith("/dev/"):
        # /dev/mapper names are links to dm-N; the number of the mount is right whatever the name
        numbered = sys / "dev/block" / (mount.number or "-")
        named = sys / "class/block" / mount.source.removeprefix("/dev/")
        return _block_kind(numbered if numbered.exists() else named)
    return None


def _block_kind(device: Path, depth: int = 0) -> DiskKind | None:
    device = device.resolve()
    if depth > 8 or not device.exists():
        return None
    try:
        under = sorted((device / "slaves").iterdir())
    except OSError:
        under = []
    if under:
        kinds = {_block_kind(slave, depth + 1) for slave in under}
        return kinds.pop() if len(kinds) == 1 else DiskKind.HDD if DiskKind.HDD in kinds else None
    if (device / "partition").exists():
        device = device.parent
    for name, kind in _BLOCK_NAMES:
        if re.match(name, device.name):
            return kind
    return {"1": DiskKind.HDD, "0": DiskKind.SSD}.get(read(device / "queue/rotational") or "")
