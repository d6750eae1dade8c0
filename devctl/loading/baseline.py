"""This load's figures beside those of an earlier one's report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from devctl.errors import RefusedError, UsageError
from devctl.units import format_bytes

if TYPE_CHECKING:
    from devctl.placement.placement import HfDevice

SCHEMA = 1
KIND = "devctl.load"
BASELINE_HINT = "write one with `devctl load MODEL --json > old.json`"
DEFAULT_TOLERANCE = "10%"


class Unit(StrEnum):
    """What a figure counts; more of it is worse, but for a rate."""

    SECONDS = "seconds"
    BYTES = "bytes"
    RATE = "tokens/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure of a load."""

    name: str
    value: float
    unit: Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What was loaded and run: only the same can be compared.

    Attributes:
        model: the last part of its name, as a folder may be elsewhere on another machine.
        inputs: shapes by name.
        max_new_tokens: tokens to generate, where the model generates.
        attention: how the model attends; None where that is not known.
    """

    model: str
    model_class: str
    dtype: str
    load_format: str
    device_map: Mapping[str, HfDevice]
    inputs: Mapping[str, tuple[int, ...]]
    max_new_tokens: int
    attention: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """An earlier report."""

    origin: str
    subject: Subject
    figures: tuple[Figure, ...]


def short_name(model: str) -> str:
    """The last part of a model's name or path."""
    return PurePath(model).name or model


def parse_baseline(document: Any, origin: str) -> Baseline:
    """What an earlier ``devctl load --json`` says.

    Args:
        document: its JSON.
        origin: where it came from, for messages.

    Raises:
        UsageError: it is no such report.
    """
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise UsageError(f"{origin} is no report of `devctl load --json`", hint=BASELINE_HINT)
    if document.get("schema") != SCHEMA:
        raise UsageError(f"{origin} is a report of schema {document.get('schema')!r}; this devctl reads {SCHEMA}")
    try:
        smoke = document["smoke"]
        subject = Subject(
            model=short_name(str(document["model"])),
            model_class=str(document["model_class"]),
            dtype=str(document["dtype"]),
            load_format=str(document["load_format"]),
            device_map=dict(document["device_map"]),
            inputs={i["name"]: tuple(i["shape"]) for i in smoke["inputs"]},
            max_new_tokens=int(document["max_new_tokens"]),
            attention=document.get("attention"),
        )
        return Baseline(origin=origin, subject=subject, figures=figures_of(document))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else f"{error}"
        raise UsageError(f"{origin} is a broken report of `devctl load --json`: {what}", hint=BASELINE_HINT) from None


def figures_of(report: Mapping[str, Any]) -> tuple[Figure, ...]:
    """The figures of a report as JSON has it, those that are known.

    Raises:
        KeyError, TypeError, ValueError: it is no report.
    """

    def figures() -> Iterator[tuple[str, Any, Unit]]:
        smoke, generated = report["smoke"], report["smoke"]["generated"]
        yield "load", report["load_seconds"], Unit.SECONDS
        if generated is None:
            yield "forward", smoke["forward_seconds"]["median"], Unit.SECONDS
        else:
            first, rate = generated["first_token_seconds"], generated["decode_tokens_per_second"]
            yield "first token", first and first["median"], Unit.SECONDS
            yield "decode", rate and rate["median"], Unit.RATE
        yield "host peak", report["host_peak"], Unit.BYTES
        for device in report["devices"]:
            yield f"{device['device']} peak", device["peak"], Unit.BYTES
            yield f"{device['device']} weights", device["measured"], Unit.BYTES

    return tuple(
        Figure(name=n, value=_number(n, value), unit=unit) for n, value, unit in figures() if value is not None
    )


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**63:
        raise ValueError(f"its {name} is {value!r}, which is no figure")
    return float(value)


def parse_tolerance(text: str) -> float:
    """The share that "10%" or "0.1" is.

    Raises:
        UsageError: it is none, or like "10", which may be 10% or ten times as much.
    """
    number, percent = (text[:-1], 100) if text.endswith("%") else (text, 1)
    try:
        share = float(number) / percent
    except ValueError:
        share = -1.0
    if not 0 <= share < float("inf"):
        raise UsageError(f"--tolerance {text!r} is no share", hint="write it like 10%")
    if percent == 1 and share >= 1:
        raise UsageError(f"--tolerance {text!r} may be {text}% or {share:.0%}", hint="write it with a %, like 10%")
    return share


def require_same(baseline: Baseline, now: Subject) -> None:
    """Refuse a baseline of something else.

    Raises:
        UsageError: with the first thing that differs.
    """
    then = baseline.subject
    hint = "compare with a report of the same model, map and inputs"
    for what in ("model", "model_class", "dtype", "load_format", "max_new_tokens", "attention"):
        here, there = getattr(now, what), getattr(then, what)
        if here != there and (what != "attention" or (here and there)):
            name = what.replace("_", " ")
            raise UsageError(f"{baseline.origin} is of another {name}: {there}, and this is {here}", hint=hint)
    places = {**dict.fromkeys(then.device_map), **dict.fromkeys(now.device_map)}
    for key in places:
        there, here = (subject.device_map.get(key, "nowhere of its own") for subject in (then, now))
        if there != here:
            part = key or "the whole model"
            raise UsageError(f"{baseline.origin} is of another map: {part} on {there}, and here on {here}", hint=hint)
    for name, shape in now.inputs.items():
        if then.inputs.get(name) != shape:
            was = then.inputs.get(name)
            there = "no such input" if was is None else "×".join(map(str, was))
            raise UsageError(
                f"{baseline.origin} is of other inputs: {name} {there}, and here {'×'.join(map(str, shape))}", hint=hint
            )


def regressions(then: tuple[Figure, ...], now: tuple[Figure, ...], tolerance: float) -> tuple[str, ...]:
    """A line for every figure that is worse than it was by more than ``tolerance``, a share of what it was."""
    before = {figure.name: figure for figure in then}
    found = []
    for figure in now:
        if (was := before.get(figure.name)) is None:
            continue
        worse = was.value - figure.value if figure.unit is Unit.RATE else figure.value - was.value
        if worse > tolerance * was.value:
            change = f"{(figure.value / was.value - 1) * 100:+.0f}%" if was.value else "from nothing"
            found.append(f"{figure.name}: {_text(was)} then, {_text(figure)} now, {change}")
    return tuple(found)


def require_no_regression(baseline: Baseline, report: Mapping[str, Any], tolerance: float) -> int:
    """Hold this load's report, as JSON has it, against an earlier one's; returns how many figures were compared.

    Raises:
        RefusedError: with a line for every figure that is worse.
    """
    now = figures_of(report)
    if worse := regressions(baseline.figures, now, tolerance):
        many = f"{len(worse)} figures are" if len(worse) > 1 else "1 figure is"
        raise RefusedError(
            f"{many} worse than in {baseline.origin} by more than {percent(tolerance)}",
            findings=worse,
            hint="--repeat and --warmup make figures steadier; --tolerance allows more",
        )
    return len({figure.name for figure in baseline.figures} & {figure.name for figure in now})


def percent(share: float) -> str:
    """A share for people."""
    return f"{share * 100:.10g}%"


def _text(figure: Figure) -> str:
    if figure.unit is Unit.BYTES:
        return format_bytes(int(figure.value))
    if figure.unit is Unit.RATE:
        return f"{figure.value:.3g} tokens/s"
    return f"{figure.value * 1000:.3g} ms" if figure.value < 1 else f"{figure.value:.3g} s"
