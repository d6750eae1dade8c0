"""The scripts that shells are given, and how each is answered. What a shell runs or sets in a line is quoted here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from devctl.completion.offers import OPEN, Offer, Offers

SCRIPTS = {"bash": "devctl.bash", "zsh": "_devctl", "fish": "devctl.fish", "pwsh": "devctl.ps1"}
"""The file of each shell's script, as the shell wants it to be called."""

_FOLDER = Path(__file__).with_name("scripts")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SPECIAL = re.compile(r"([^\w@%+=:,./~-])")
"""What a shell would take for something else, but for "~" in front."""

_HELP = 80
"""Characters of a help that are shown beside a candidate."""


class Begun(NamedTuple):
    """What has been typed.

    Attributes:
        words: whole ones, without the program's name.
        current: the one that is begun, as it is without quotes.
        raw: the same as it was typed.
    """

    words: tuple[str, ...]
    current: str
    raw: str = ""


def script(shell: str) -> str:
    """The script of ``shell``, whole."""
    return (_FOLDER / SCRIPTS[shell]).read_text(encoding="utf-8")


def begun(shell: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Begun | None:
    """What has been typed, as the shell's script hands it over; None where it is another script's way."""
    if shell in ("zsh", "fish"):
        # the words, and the one that is begun last, each an argument
        return Begun(tuple(arguments[:-1]), arguments[-1]) if arguments else None
    if shell == "bash" and "COMP_WORDS" in environment and "_DEVCTL_LINE" not in environment:
        return _by_words(environment["COMP_WORDS"], environment.get("COMP_CWORD", ""))
    if "_DEVCTL_LINE" not in environment:
        return None
    return _by_line(environment["_DEVCTL_LINE"])


def _by_line(line: str) -> Begun:
    """A line up to the cursor, as a POSIX shell reads it; variables that are set for the command are passed over."""
    words, raw = _words(line)
    while len(words) > 1 and re.match(r"[A-Za-z_]\w*=", words[0]):
        words = words[1:]
    return Begun(tuple(words[1:-1]), words[-1] if len(words) > 1 else "", raw)


def _words(line: str) -> tuple[list[str], str]:
    """The words of ``line``, the last of which is begun and may be empty; and how that last one was typed."""
    words: list[str] = []
    word, quote, start, inside, position = "", "", 0, False, 0
    while position < len(line):
        letter = line[position]
        if quote != "'" and letter == "\\":
            position += 1
            keeps = quote == '"' and line[position : position + 1] not in ('"', "\\", "$", "`")
            word += ("\\" if keeps else "") + line[position : position + 1]
            inside = True
        elif quote:
            if letter == quote:
                quote = ""
            else:
                word += letter
        elif letter in "'\"":
            quote, inside = letter, True
        elif letter.isspace():
            if inside:
                words.append(word)
            word, inside, start = "", False, position + 1
        else:
            word, inside = word + letter, True
        position += 1
    return [*words, word], line[start:]


def _by_words(text: str, number: str) -> Begun | None:
    """Typer's way: bash's words joined by lines, of which "=" is one, and the number of the one that is begun."""
    words = text.split("\n") if "\n" in text else _split(text)
    if not number.isdecimal() or len(number) > 6 or not words:
        return None
    words = [*words, ""][: int(number) + 1]
    joined: list[str] = []
    for word in words:
        if joined and (word == "=" or joined[-1].endswith("=")) and joined[-1].startswith("--"):
            joined[-1] += word
        else:
            joined.append(word)
    return Begun(tuple(joined[1:-1]), joined[-1] if len(joined) > 1 else "", joined[-1])


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # a quote is open
        return text.split()


def answer(shell: str, found: Offers, typed: Begun, environment: Mapping[str, str]) -> str:
    """What the shell's script reads: how to go on in the first line, then a candidate a line, with a help behind a tab.

    What has a control character in it is no candidate, so that none begins a line.
    """
    offers = [offer for offer in found.offers if not _UNPRINTABLE.search(offer.word)]
    lines = _ANSWERS[shell](Offers(found.kind, tuple(offers)), typed, environment)
    return "".join(f"{line}\n" for line in lines)


def _bash(found: Offers, typed: Begun, environment: Mapping[str, str]) -> list[str]:
    """Words as bash sets them in: quoted, and without what stands before the last of its own breaks."""
    if found.kind != "words":
        return [found.kind]
    opened = _open_quote(typed.raw)
    breaks = environment.get("_DEVCTL_BREAKS", environment.get("COMP_WORDBREAKS", "=:"))
    cut = 0
    if not opened:
        cut = max(
            (typed.current.rfind(each) + 1 for each in breaks if each in "=:@" and each in typed.current), default=0
        )
    lower = typed.current[:cut].casefold()
    words = [o.word[cut:] for o in found.offers if o.word[:cut].casefold() == lower]
    quoted = [_in_quotes(word, opened) if opened else _quoted(word) for word in words]
    kind = "open" if words and all(word.endswith(OPEN) for word in words) else "words"
    return [kind, *quoted]


def _open_quote(raw: str) -> str:
    quote, escaped = "", False
    for letter in raw:
        if escaped:
            escaped = False
        elif letter == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
    return quote


def _quoted(word: str) -> str:
    start = "~" if word.startswith("~") else ""
    return start + _SPECIAL.sub(r"\\\1", word[len(start) :])


def _in_quotes(word: str, quote: str) -> str:
    return word.replace("'", "'\\''") if quote == "'" else re.sub(r'(["\\$`])', r"\\\1", word)


def _zsh(found: Offers, typed: Begun, _: Mapping[str, str]) -> list[str]:
    """zsh quotes words itself; it completes files itself as well."""
    return [found.kind, *(_with_help(offer) for offer in (found.offers if found.kind == "words" else ()))]


def _fish(found: Offers, typed: Begun, _: Mapping[str, str]) -> list[str]:
    """fish quotes words itself; files are given to it, since it does not complete them behind ``--option=``."""
    return [found.kind, *map(_with_help, found.offers)]


def _pwsh(found: Offers, typed: Begun, _: Mapping[str, str]) -> list[str]:
    """Words as PowerShell sets them in."""
    words = [Offer(_for_pwsh(word), help_) for word, help_ in found.offers]
    return [found.kind, *map(_with_help, words)]


def _for_pwsh(word: str) -> str:
    return word if re.fullmatch(r"[\w./\\:~+=-]+", word) else "'" + word.replace("'", "''") + "'"


def _with_help(offer: Offer) -> str:
    text = _UNPRINTABLE.sub(" ", offer.help)
    return f"{offer.word}\t{text if len(text) <= _HELP else text[: _HELP - 1] + '…'}" if text else offer.word


_ANSWERS: dict[str, Callable[[Offers, Begun, Mapping[str, str]], list[str]]] = {
    "bash": _bash,
    "zsh": _zsh,
    "fish": _fish,
    "pwsh": _pwsh,
}
