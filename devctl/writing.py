"""Files that are written whole or not at all, and where they are."""

import contextlib
import os
import stat
from pathlib import Path

from devctl.errors import OutputError, UsageError

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


def expanded(path: str | Path) -> Path:
    """``path`` with the user's folder for a "~" in front, as shells have it: "~nobody" stays where nobody has one."""
    # not Path.expanduser, which raises then
    return Path(os.path.expanduser(path))  # noqa: PTH111


def hub_cache() -> Path:
    """Where Hugging Face keeps downloaded models: HF_HUB_CACHE, HF_HOME/hub, or the user's cache folder.

    As huggingface_hub's ``constants.py`` has it: HUGGINGFACE_HUB_CACHE is the older name, and variables are expanded.
    """
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if cache := os.environ.get(name):
            return _expanded(cache)
    cache_home = _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = _expanded(os.environ.get("HF_HOME") or cache_home / "huggingface")
    return home / "hub"


def _expanded(path: str | Path) -> Path:
    return expanded(os.path.expandvars(path))


def write_whole(path: Path, text: str) -> None:
    """Write a whole file as UTF-8, or leave what was there and nothing beside it.

    A link is followed; a pipe or device is written to. A file that was there keeps its mode, a new one has what the
    umask leaves of 0o666.

    Raises:
        UsageError: the folder is missing or not ours, or the path is a folder.
        OutputError: it could not be written, for instance because the disk is full.
    """
    try:
        mode = _mode(path)
        if mode is not None and not stat.S_ISREG(mode):
            path.write_text(text, encoding="utf-8")
        else:
            _replace(path.resolve(), text, mode)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise _not_there(path, error) from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}") from None


def require_folder(path: Path) -> None:
    """Refuse, before anything is found out that would be written to ``path``, one whose folder is not there.

    Raises:
        UsageError: as `write_whole` would.
    """
    try:
        os.stat(path.parent)  # noqa: PTH116 - a path of which a part is a file is told as such
    except (FileNotFoundError, NotADirectoryError) as error:
        raise _not_there(path, error) from None
    except OSError:  # what else there may be is seen when it is written
        return


def _not_there(path: Path, error: OSError) -> UsageError:
    hint = "give another place for it"
    if isinstance(error, FileNotFoundError) and not path.parent.is_dir():
        hint = f"make the folder {path.parent}, or {hint}"
    elif isinstance(error, IsADirectoryError):
        hint = "give the name of a file, not of a folder"
    return UsageError(f"cannot write {path}: {error.strerror}", hint=hint)


def _mode(path: Path) -> int | None:
    """``st_mode`` of what ``path`` leads to; None of what is not there."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _replace(path: Path, text: str, mode: int | None) -> None:
    # a name of its own, since that of the file may be as long as names can be
    import secrets  # and what it needs, which no answer on stdout does

    temporary = path.parent / f".devctl-{secrets.token_hex(8)}"
    # the system takes the umask off: asking for the umask would mean setting it, for all threads
    descriptor = os.open(temporary, _NEW, 0o666 if mode is None else stat.S_IMODE(mode))
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if mode is not None:
                temporary.chmod(stat.S_IMODE(mode))
            file.write(text)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
