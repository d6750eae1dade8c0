"""Files that somebody names: read as files, and not without end."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

MOST_TEXT = 256 * 2**20
"""Bytes of a document that are read; the plan of a model of a million tensors has some 100 MB."""

_WAITS = getattr(os, "O_NONBLOCK", 0)


def open_file(path: Path) -> BufferedReader:
    """The file at ``path`` to read from. A pipe, a socket or a device, which may wait or go on for ever, is none.

    Raises:
        OSError: it can't be opened, or is no file; ``strerror`` says so.
    """
    # a pipe that nobody writes to waits as it is opened
    descriptor = os.open(path, os.O_RDONLY | _WAITS | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, f"it is {_kind(mode)}, not a file", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """All of the file at ``path``.

    Raises:
        OSError: as ``open_file``, or it has more than ``most`` bytes.
    """
    with open_file(path) as file:
        data = file.read(most + 1)  # a file of the kernel may have more than it says
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return data


def read_document(path: Path, most: int = MOST_TEXT) -> str:
    """The text of the file at ``path``, UTF-8, with or without the mark that PowerShell begins its files with.

    Raises:
        OSError: as ``read_bytes``.
        UnicodeDecodeError: it is no text.
    """
    return read_bytes(path, most).decode("utf-8-sig")


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))
    return next((name for is_one, name in kinds if is_one(mode)), "a device")
