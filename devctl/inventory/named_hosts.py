"""The hosts that an argument names: ``a,b``, ``node[01-04]``, ``@FILE``, ``slurm:``, or files that they wrote."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from devctl.errors import UsageError, first_line
from devctl.inventory.hostfile import Address, parse_hostfile, parse_list
from devctl.inventory.hosts import REMOTE, TIMEOUT, Cluster, ask, from_cluster
from devctl.reading import read_document
from devctl.units import parse_seconds

SLURM, _NODES = "slurm:", "SLURM_JOB_NODELIST"

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_SHORTEST, _LONGEST = 0.1, 3600.0
_MOST_TEXT = 64 * 2**20


def cluster_of(text: str, *, remote: str | None = None, timeout: str | None = None) -> Cluster:
    """What the hosts that ``text`` names have: asked now, or as a document of ``devctl list --hosts`` has it.

    Args:
        remote: what they are asked for; None is `REMOTE`.
        timeout: how long each has to answer, like "20s"; None is `TIMEOUT`.

    Raises:
        UsageError: it names none, or what is no host.
    """
    seconds = TIMEOUT if timeout is None else parse_timeout(timeout)
    if remote is not None and not remote.strip():
        raise UsageError("--remote-command is empty", hint=f"write it like '{REMOTE}'")
    found = _named(text)
    if isinstance(found, Cluster):
        if given := [n for n, v in (("--remote-command", remote), ("--timeout", timeout)) if v is not None]:
            raise UsageError(f"{text} has what the hosts said, and none is asked: leave out {' and '.join(given)}")
        return found
    return ask(found, remote=remote or REMOTE, timeout=seconds)


def _named(text: str) -> tuple[Address, ...] | Cluster:
    try:
        if text.startswith("@"):
            return _of_file(text[1:])
        if text == SLURM:
            nodes = os.environ.get(_NODES, "")
            if not nodes:
                raise UsageError(f"--hosts {SLURM} is for a job of Slurm: {_NODES} is not set", hint="name the hosts")
            return parse_list(nodes)
        return parse_list(text)
    except ValueError as error:
        hint = "a file of hosts is given as @FILE" if "/" in text or Path(text).is_file() else ""
        raise UsageError(f"--hosts {text}: {error}", hint=hint) from None


def _of_file(path: str) -> tuple[Address, ...] | Cluster:
    """The hosts of a hostfile, or of a document that says what they have."""
    try:
        if path == "-":
            text = "" if sys.stdin is None else sys.stdin.read(_MOST_TEXT)
        else:
            text = read_document(Path(path), _MOST_TEXT)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"cannot read the hosts in {path}: {reason}") from None
    if not text.lstrip().startswith("{"):
        return parse_hostfile(text)
    try:
        return from_cluster(json.loads(text))
    except (ValueError, RecursionError) as error:
        hint = "a document has hosts as `devctl list --hosts … --json` writes them; one machine is for --machine"
        raise UsageError(f"--hosts @{path}: {first_line(error)}", hint=hint) from None


def parse_timeout(text: str) -> float:
    """Seconds, of text like "20s", "20" or "2min", as `parse_seconds` reads it.

    Raises:
        UsageError: it is none, or too short or too long.
    """
    try:
        seconds = parse_seconds(text)
    except ValueError:
        seconds = 0.0
    if not _SHORTEST <= seconds <= _LONGEST:
        raise UsageError(f"--timeout {text}: from {_SHORTEST:g}s to {_LONGEST:g}s", hint="write it like 20s")
    return seconds


def checked_name(name: str, origin: str) -> str:
    """``name``, if a host can be called so in a plan.

    Raises:
        UsageError: it can't; ``origin`` says where it is from.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{origin}: {name!r} is no name of a host",
            hint="a host is called by letters, digits, dots and dashes, as on the network; a file is named after it",
        )
    return name


def name_of_file(path: str) -> str:
    """What the host is called whose machine a file describes.

    Raises:
        UsageError: no host can be called so.
    """
    return checked_name(Path(path).stem, f"--machine {path}")
