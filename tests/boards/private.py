"""What must not leave the box: its name, users, paths, addresses, and what tells one board from another."""

from __future__ import annotations

import contextlib
import getpass
import os
import platform
import re
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SHORTEST = 3
"""Letters of a name that is looked for; a shorter one would be found within words."""

_COMMON = frozenset({"root", "user", "users", "localhost", "admin", "ubuntu", "cuda", "disk", "cpu", "gpu", "home"})
"""Names that tell nothing, and stand in messages for other reasons."""

_SECRET = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)

_HEX = r"[0-9a-fA-F]"
_UUID = re.compile(
    rf"\b(?:(?:GPU|MIG)-){{0,2}}{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}\b(?:/\d+/\d+)?"
)
_SHORT_UUID = re.compile(r"\b(?:GPU|MIG)-[0-9a-fA-F][0-9a-fA-F-]{3,}(?:/\d+/\d+)?")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)]+")
_MAIL = re.compile(r"\b[\w.+-]+@[\w-]+\.[\w.-]+\b")
_MAC = re.compile(r"\b(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}\b")
_IP = re.compile(r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w.])")
_IP6 = re.compile(r"(?<![\w:])(?=(?:[0-9a-fA-F]*:){3})[0-9a-fA-F:]*[0-9a-fA-F](?![\w:])")
_PATH = re.compile(r"(?<![\w<>/.~-])~?/(?:[^\s'\"`<>|:;,()\[\]{}/]+/?)+")
_WINDOWS = re.compile(r"(?<!\w)(?:[A-Za-z]:\\|\\\\)(?:[^\s'\"`<>|:;,()\[\]{}\\]+\\?)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Private:
    """What is looked for.

    Attributes:
        words: what stands for each of them, by the word.
    """

    words: Mapping[str, str]

    def clean(self, text: str) -> str:
        """``text`` without anything private; what stood there is told by its kind, like "<path>"."""
        for pattern, stands in ((_URL, "<address>"), (_MAIL, "<mail>")):
            text = pattern.sub(stands, text)
        for word, stands in sorted(self.words.items(), key=lambda pair: -len(pair[0])):
            text = re.sub(_around(word, stands), stands, text, flags=re.IGNORECASE)
        for pattern, stands in (
            (_UUID, "<uuid>"),
            (_SHORT_UUID, "<uuid>"),
            (_MAC, "<address>"),
            (_IP, "<address>"),
            (_IP6, "<address>"),
            (_PATH, "<path>"),
            (_WINDOWS, "<path>"),
        ):
            text = pattern.sub(stands, text)
        return "".join(character if character.isprintable() else " " for character in text)

    def cleaned(self, value: Any) -> Any:
        """The same of every text within JSON values, the names of keys too."""
        if isinstance(value, str):
            return self.clean(value)
        if isinstance(value, Mapping):
            return {self.clean(key): self.cleaned(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.cleaned(each) for each in value]
        return value


def of_this_box(environment: Mapping[str, str] | None = None) -> Private:
    """What is private here: the names of host and user, the folders that paths begin with, and secrets."""
    environment = os.environ if environment is None else environment
    words: dict[str, str] = {}
    for name in _host_names():
        words |= _word(name, "<host>") | _word(name.partition(".")[0], "<host>")
    for name in _user_names(environment):
        words |= _word(name, "<user>")
    for variable, value in environment.items():
        if _SECRET.search(variable) and len(value) >= 8:
            words[value] = "<secret>"
    for folder in (Path.home(), Path.cwd()):
        if len(str(folder)) > 2:
            words[str(folder)] = "<path>"
    return Private(words=words)


def _around(word: str, stands: str) -> str:
    """What is taken out with a word: of a folder what is in it, of a host its domain."""
    more = {"<path>": r"(?:[/\\][^\s'\"`<>|:;,()\[\]{}]*)?", "<host>": r"(?:\.[A-Za-z0-9-]+)*"}.get(stands, "")
    return rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9]){more}"


def _word(name: str, stands: str) -> dict[str, str]:
    is_told = len(name) >= _SHORTEST and name.casefold() not in _COMMON and not name.isdecimal()
    return {name: stands} if is_told else {}


def _host_names() -> Iterable[str]:
    yield from {socket.gethostname(), platform.node(), os.environ.get("HOSTNAME", "")}


def _user_names(environment: Mapping[str, str]) -> Iterable[str]:
    yield from (environment[name] for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER") if environment.get(name))
    with contextlib.suppress(OSError, KeyError, ImportError):
        yield getpass.getuser()
