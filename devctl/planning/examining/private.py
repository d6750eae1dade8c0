"""What a report that people paste in public must not tell: who and where they are, and which board is theirs."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

_IDS = re.compile(
    r"\b(?:GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/_-]*"  # parts of UUIDs, too, which CUDA_VISIBLE_DEVICES may hold
    r"|\b[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}\b"
)
_TOKENS = re.compile(r"\b(?:hf_|ghp_|github_pat_|sk-)[0-9A-Za-z_-]{16,}")
_LOGINS = re.compile(r"[\w.+-]+(?::[^\s@/]*)?@[\w.-]+\w")
_ADDRESSES = re.compile(
    r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w.])|(?:[0-9A-Fa-f]{1,4}:){4,7}[0-9A-Fa-f]{1,4}\b"
)
_HOMES = re.compile(r"(?:[A-Za-z]:)?[/\\](?:home|Users|users)[/\\][^\s/\\:'\",;)\]]+")
_FOLDERS = re.compile(r"(?<![\w/\\.:~…-])~?(?:[A-Za-z]:)?[/\\](?!dev/|proc/|sys/)(?:[^\s/\\:'\",;()\[\]]+[/\\])+")
"""The folders of a path; its last part stays, which is what an error is about."""

_NO_NAMES = frozenset({"root", "localhost", "user", "users", "home", "python", "torch", "cuda", "devctl", "nvidia"})
"""Names that tell nothing of anybody, and that words of errors would be taken for."""

_SHORTEST_NAME = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """Names that are not told.

    Attributes:
        homes: folders of the user, longest first.
        users, hosts: what user and machine are called.
    """

    homes: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    def hide(self, text: str) -> str:
        """``text`` that is not ours (an error, a variable, what a driver says) without what is private.

        Of a path only the last part is left. What it says of devices, versions and symbols stays.
        """
        text = _without_paths(self.hide_certain(text))
        for names, instead in ((self.users, "USER"), (self.hosts, "HOST")):
            for name in names:
                text = re.sub(rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])", instead, text, flags=re.IGNORECASE)
        return text

    def hide_certain(self, text: str) -> str:
        """``text`` without what can't be anything else: homes, UUIDs, tokens, logins and addresses."""
        for home in self.homes:
            text = text.replace(home, "~")
        text = _TOKENS.sub("TOKEN", _HOMES.sub("~", text))
        text = _IDS.sub(lambda found: f"{found[0][:4]}…" if found[0][:4] in ("GPU-", "MIG-") else "UUID", text)
        return _ADDRESSES.sub("ADDRESS", _LOGINS.sub("USER@HOST", text))


def _without_paths(text: str) -> str:
    return _FOLDERS.sub("…/", text)


def private_here(environment: Mapping[str, str]) -> Private:
    """What is private on this machine, of this user."""
    homes = {os.path.expanduser("~"), environment.get("HOME", ""), environment.get("USERPROFILE", "")}  # noqa: PTH111
    users = {environment.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    if hasattr(os, "getuid"):
        import pwd

        with contextlib.suppress(KeyError):  # a container's user may be a number that has no name
            entry = pwd.getpwuid(os.getuid())
            homes.add(entry.pw_dir)
            users.add(entry.pw_name)
            users.add(entry.pw_gecos.partition(",")[0])
    users |= {os.path.basename(home.rstrip("/\\")) for home in homes}  # noqa: PTH119
    with contextlib.suppress(OSError):
        hosts = {socket.gethostname(), environment.get("HOSTNAME", ""), environment.get("COMPUTERNAME", "")}
        hosts |= {host.partition(".")[0] for host in hosts}
        return Private(homes=_longest_first(homes), users=_names(users), hosts=_names(hosts))
    return Private(homes=_longest_first(homes), users=_names(users))


def _longest_first(folders: set[str]) -> tuple[str, ...]:
    kept = {folder.rstrip("/\\") for folder in folders}
    return tuple(sorted((folder for folder in kept if len(folder) > 1 and folder != "~"), key=lambda f: (-len(f), f)))


def _names(names: set[str]) -> tuple[str, ...]:
    kept = {name.strip() for name in names}
    telling = (name for name in kept if len(name) >= _SHORTEST_NAME and name.casefold() not in _NO_NAMES)
    return tuple(sorted(telling, key=lambda name: (-len(name), name)))
