"""The Makefile's targets, without running them."""

import importlib.util
import re
from pathlib import Path

MAKEFILE = Path(__file__).parents[1] / "Makefile"
TEXT = MAKEFILE.read_text(encoding="utf-8")


def test_every_target_that_is_promised_has_a_rule():
    (promised,) = re.findall(r"^\.PHONY: (.+)$", TEXT, flags=re.M)
    rules = set(re.findall(r"^([\w-]+):", TEXT, flags=re.M))
    assert set(promised.split()) <= rules


def test_benchmarks_are_scripts():
    (names,) = re.findall(r"^BENCHMARKS := (.+)$", TEXT, flags=re.M)
    there = {path.stem for path in (MAKEFILE.parent / "tests" / "benchmarks").glob("[a-z]*.py")}
    assert set(names.split()) == there - {"list", "published", "engine_runs"}
    assert all(importlib.util.find_spec(f"tests.benchmarks.{name}") for name in names.split())
