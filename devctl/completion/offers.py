"""What may be written at one place of a command line. Pure, but for the values that `values` looks up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Table = Mapping[str, Any]
"""``commands.json``: ``commands`` by name ("" is devctl itself), ``boards``, and those of them that are ``alone``."""

OPEN = ("=", "/", ",", ":", "@")
"""How a value ends that something has to follow: no space is set behind it."""


class Offer(NamedTuple):
    """One candidate: the whole word, and a line on what it is."""

    word: str
    help: str = ""


class Offers(NamedTuple):
    """What may be written.

    Attributes:
        kind: "words", or "files" or "folders", which a shell completes itself; the paths among ``offers`` then too.
    """

    kind: str
    offers: tuple[Offer, ...]


Look = Callable[[str, str, Table], Offers]
"""Looks up values: of a kind, that begin with a text."""

NOTHING = Offers("words", ())


def offers(table: Table, words: Sequence[str], current: str, look: Look) -> Offers:
    """What may stand where ``current`` has been begun, behind ``words`` (without the program's name)."""
    commands = table["commands"]
    name, rest = _command(commands, words)
    if name is None:
        return NOTHING
    command = commands[name]
    place = _place(command, rest)
    taking, begun, before = _taking(command, place, current)
    if taking is not None:
        return _values(taking, begun, before, table, look)
    if not place.only_arguments and current.startswith("-"):
        return NOTHING if "=" in current else _options(command, place, current)
    if name == "":
        names = [Offer(each, of["help"]) for each, of in commands.items() if each]
        return Offers("words", tuple(offer for offer in names if offer.word.startswith(current)))
    return NOTHING if current else _options(command, place, current)


def _taking(command: Mapping[str, Any], place: _Place, current: str) -> tuple[Mapping[str, Any] | None, str, str]:
    """The option or argument whose value is begun, what of it has been typed, and what stands before that."""
    if place.pending is not None:
        return place.pending, current, ""
    if not place.only_arguments and current.startswith("-") and current != "-":
        option, equals, begun = current.partition("=")
        found = _option(command, option) if equals else None
        return (found if found is not None and found["takes"] else None), begun, f"{option}="
    if place.arguments < len(command["arguments"]) and current != "-":
        return command["arguments"][place.arguments], current, ""
    return None, "", ""


class _Place(NamedTuple):
    """Where a command line has come to.

    Attributes:
        pending: the option that takes the next word.
        arguments: how many have been given.
        only_arguments: whether "--" said that no option follows.
    """

    pending: Mapping[str, Any] | None
    arguments: int
    given: frozenset[str]
    only_arguments: bool


def _command(commands: Mapping[str, Any], words: Sequence[str]) -> tuple[str | None, Sequence[str]]:
    """The command that is asked for, and what follows it; "" where none is yet, None where it is none."""
    for number, word in enumerate(words):
        if not word.startswith("-"):
            return (word if word in commands and word else None), words[number + 1 :]
    return "", words


def _place(command: Mapping[str, Any], words: Sequence[str]) -> _Place:
    pending: Mapping[str, Any] | None = None
    arguments, only_arguments = 0, False
    given: set[str] = set()
    for word in words:
        if pending is not None:
            pending = None
        elif only_arguments or not word.startswith("-") or word == "-":
            arguments += 1
        elif word == "--":
            only_arguments = True
        else:
            option, equals, _ = word.partition("=")
            found = _option(command, option)
            if found is not None:
                given.update(found["names"])
                pending = found if found["takes"] and not equals else None
    return _Place(pending, arguments, frozenset(given), only_arguments)


def _option(command: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((option for option in command["options"] if name in option["names"]), None)


def _options(command: Mapping[str, Any], place: _Place, current: str) -> Offers:
    found = []
    for option in command["options"]:
        if place.given.isdisjoint(option["names"]) or option["repeated"]:
            names = [name for name in option["names"] if name.startswith(current)]
            # the short name of one is offered where nothing longer has been begun
            found += [Offer(name, option["help"]) for name in names if name.startswith("--") or current == name]
    return Offers("words", tuple(found))


def _values(of: Mapping[str, Any], begun: str, before: str, table: Table, look: Look) -> Offers:
    """Values of an option or argument; ``before`` is what of the word is no part of the value."""
    if of["values"]:
        low = begun.casefold()
        found = Offers("words", tuple(Offer(each) for each in of["values"] if each.casefold().startswith(low)))
    elif of["kind"]:
        found = look(of["kind"], begun, table)
    else:
        found = NOTHING
    return Offers(found.kind, tuple(Offer(before + word, help_) for word, help_ in found.offers))
