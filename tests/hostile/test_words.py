"""Words of strangers: nothing that a terminal or a log obeys reaches one, whatever field of whatever value it is in."""

import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import types
import typing
from collections.abc import Mapping
from enum import Enum
from fractions import Fraction
from pathlib import Path

import pytest

from devctl.cli.show import check as show_check
from devctl.cli.show import explain as show_explain
from devctl.cli.show import inventory as show_inventory
from devctl.cli.show import load as show_load
from devctl.cli.show import plan as show_plan
from devctl.cli.show import ranks as show_ranks
from devctl.cli.show import streams
from devctl.cli.show.html import plan_html
from devctl.cli.show.svg import plan_svg
from devctl.devices import Device
from devctl.errors import DevctlError, RefusedError
from devctl.inventory.document import to_document
from devctl.inventory.records import Inventory, Links
from devctl.inventory.verdict import Verdict
from devctl.loading.measure import LoadReport
from devctl.models.footprint import Workload
from devctl.placement.device_map import FrozenMap
from devctl.placement.document import PlannedModel
from devctl.placement.explain import Explanation
from devctl.placement.parallel.tensor import TensorParallel
from devctl.placement.pieces import Piece
from devctl.placement.placement import DeviceUse, Placement
from devctl.placement.plan import Comparison, Room, WhatIf
from tests.conftest import CONFIGS
from tests.inventory import boxes
from tests.marks import one_in

ROOT = Path(__file__).parents[2]
TINY = CONFIGS / "tiny-llama"
HOSTILE = "x\x1b]0;title\x07\x1b[2K\rdevctl: ok\n::error::y\n##[error]\x9b31m\u202eabc\u2066\u2028\x7f\x00\t<b>&"
BENIGN = "x" * len(HOSTILE)
BAD = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def filled(kind, text):
    """A value of ``kind`` whose every string, at any depth, is ``text``."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    simple = {
        str: text,
        int: 3,
        float: 1.5,
        bool: False,
        Fraction: Fraction(1, 2),
        Device: Device.cpu(),
        FrozenMap: FrozenMap(((text, Device.cpu()),)),
        Links: Links(),
    }
    if kind in simple:
        return simple[kind]
    if origin in (types.UnionType, typing.Union):
        return filled(next(each for each in inner if each is not types.NoneType), text)
    if origin is tuple:
        return tuple(filled(each, text) for each in ((inner[0],) if inner[-1] is Ellipsis else inner))
    if origin in (dict, Mapping):
        return {filled(inner[0], text): filled(inner[1], text)}
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind))
    assert dataclasses.is_dataclass(kind), kind
    hints = typing.get_type_hints(kind)
    given = {field.name: filled(hints[field.name], text) for field in dataclasses.fields(kind) if field.init}
    return kind(**given | ({"context_length": 9} if kind is Workload else {}))  # which is longer than what is generated


def require_harmless(shown, benign):
    assert not BAD.search(shown), repr(BAD.search(shown))
    assert "::" not in shown
    assert "##[" not in shown
    assert shown.count("\n") == benign.count("\n"), "no line of theirs"


def plan_of(text):
    return filled(PlannedModel, text), filled(Placement, text)


SHOWN = {
    "list": lambda text: show_inventory.to_text(filled(Inventory, text), width=None, styled=False),
    "check": lambda text: show_check.lines(filled(Verdict, text)),
    "plan": lambda text: show_plan.plan_summary(
        *plan_of(text), show_plan.verdict_line(filled(Placement, text), filled(Room, text))
    ),
    "ranks": lambda text: show_ranks.ranks_summary(*plan_of(text), filled(TensorParallel, text), text, text),
    "compare": lambda text: show_plan.comparison(filled(Comparison, text), None),
    "what-if": lambda text: show_plan.what_if_table(filled(WhatIf, text), None),
    "explain": lambda text: show_explain.explanation(filled(Explanation, text), None),
    "load": lambda text: show_load.load_report(filled(LoadReport, text)),
}


@pytest.mark.parametrize("name", SHOWN)
def test_no_field_of_any_value_is_obeyed(name):
    require_harmless(SHOWN[name](HOSTILE), SHOWN[name](BENIGN))


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("name", SHOWN)
def test_nor_where_tables_are_folded(name, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    shown = SHOWN[name](HOSTILE)
    assert not BAD.search(shown)
    assert not [line for line in shown.splitlines() if line.lstrip().startswith(("::", "##["))]
    width = show_inventory.to_text(filled(Inventory, HOSTILE), width=int(columns), styled=True)
    assert not BAD.search(re.sub("\x1b\\[[0-9;]*m", "", width))


@pytest.mark.parametrize(
    "error", [DevctlError(HOSTILE, hint=HOSTILE), RefusedError(HOSTILE, findings=(HOSTILE,) * 2, hint=HOSTILE)]
)
def test_errors(capsys, error):
    streams.error(error)
    lines = capsys.readouterr().err
    require_harmless(lines, "\n" * (2 + len(getattr(error, "findings", ()))))
    streams.message(HOSTILE, HOSTILE)
    require_harmless(capsys.readouterr().err, "\n\n")


@pytest.mark.parametrize("write", [streams.answer, streams.say])
def test_what_comes_past_the_gate_is_still_harmless(capsys, write):
    write(f"\x1b[1mbold\x1b[0m {HOSTILE}\n")
    told = capsys.readouterr()
    assert not BAD.search(told.out + told.err)


class Terminal:
    """A stream that somebody looks at."""

    def isatty(self):
        return True


def test_a_terminal_keeps_our_styles_and_no_other_sequence():
    assert streams._harmless("\x1b[1mbold\x1b[0m\x1b[2K\x1b]0;x\x07", Terminal()) == "\x1b[1mbold\x1b[0m␛[2K␛]0;x␇"


@pytest.mark.parametrize("text", ["model.layers.0-39", "naïve 模型", "12% of 3 GiB", "a:b#c"])
def test_other_text_stays_as_it_is(text):
    assert streams.clean(text) == text


def test_documents_are_escaped(capsys):
    streams.answer(streams.dumps(to_document(filled(Inventory, HOSTILE))))
    shown = capsys.readouterr().out
    assert not BAD.search(shown)
    assert json.loads(shown)["notes"] == [HOSTILE]
    assert not [line for line in shown.splitlines() if line.lstrip().startswith(("::", "##["))]


def test_pictures():
    model, placement = plan_of(HOSTILE)
    use = DeviceUse(device=Device.cpu(), used=3, budget=9, modules=(HOSTILE,))
    placement = dataclasses.replace(placement, devices=(use,))
    pieces = (filled(Piece, HOSTILE),)
    for drawn in (plan_svg(model, placement, pieces), plan_html(model, placement, pieces)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", drawn)
        assert not re.search("&#(x1b|27|8238|8294|155|127|0);", drawn, re.IGNORECASE)
        assert "<b>&<" not in drawn
        assert not [line for line in drawn.splitlines() if line.lstrip().startswith("::")]


@pytest.mark.parametrize(
    "arguments",
    one_in(
        3,
        [
            [HOSTILE],
            ["plan", HOSTILE],
            ["plan", TINY, "--devices", HOSTILE],
            ["plan", TINY, "--max-memory", HOSTILE],
            ["plan", TINY, "--strategy", HOSTILE],
            ["plan", TINY, "--dtype", HOSTILE],
            ["plan", TINY, "--model-class", HOSTILE],
            ["plan", TINY, "--map", HOSTILE.replace("\x00", "")],
            ["plan", TINY, f"--{HOSTILE}"],
            ["check", "--ram", HOSTILE],
            ["check", "--disk", f"/{HOSTILE}=1GiB"],
            ["check", "--cuda", HOSTILE],
            ["list", "--offload-folder", HOSTILE.replace("\x00", "")],
            ["load", TINY, "--map", HOSTILE.replace("\x00", "")],
        ],
    ),
)
def test_arguments(devctl, arguments):
    done = devctl(*arguments)
    assert not BAD.search(done.out + done.err)
    assert "::" not in done.err
    assert done.err.count("\n") <= 4


@pytest.mark.parametrize(
    "key",
    one_in(
        4,
        [
            "model_type",
            "architectures",
            "torch_dtype",
            "dtype",
            "quantization_config",
            "hidden_act",
            "auto_map",
            "_name_or_path",
        ],
    ),
)
def test_configs(devctl, tmp_path, key):
    values = {
        "architectures": [HOSTILE],
        "quantization_config": {"quant_method": HOSTILE},
        "auto_map": {HOSTILE: HOSTILE},
    }
    config = {**json.loads((TINY / "config.json").read_text()), key: values.get(key, HOSTILE)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = devctl("plan", tmp_path, "--devices", "1GiB", "--context-length", "8")
    assert not BAD.search(done.out + done.err), done
    assert not [line for line in done.err.splitlines() if line.lstrip().startswith("::")]


def test_what_libraries_log(capsys):
    factory = logging.getLogRecordFactory()
    logger, handler = logging.getLogger("a library"), logging.StreamHandler(sys.stderr)
    logger.addHandler(handler)
    try:
        streams.clean_logs()
        logger.warning("the class is '%s'", HOSTILE)
    finally:
        logging.setLogRecordFactory(factory)
        logger.removeHandler(handler)
    require_harmless(capsys.readouterr().err, "\n")


def test_tracebacks(devctl, tmp_path, monkeypatch):
    monkeypatch.setenv("DEVCTL_DEBUG", "1")
    config = json.loads((TINY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "dtype": HOSTILE, "model_type": HOSTILE}))
    done = devctl("plan", tmp_path, "--devices", "1GiB")
    assert (done.code, done.out) == (4, "")
    assert "Traceback" in done.err
    require_harmless(done.err, done.err)  # whose lines are those of the code


def test_plan_documents(devctl, tmp_path):
    document = {
        "schema": 1,
        "kind": "devctl.plan",
        "model": {"class": HOSTILE, "dtype": HOSTILE, "quantisation": HOSTILE},
        "device_map": {HOSTILE: "cpu"},
        "devices": [{"device": "cpu", "used": 1, "modules": [HOSTILE * 2]}],
    }
    for change in (
        {},
        {"device_map": {"": HOSTILE}},
        {"schema": HOSTILE},
        {"devices": [{"device": HOSTILE, "used": 1}]},
    ):
        (tmp_path / "plan.json").write_text(json.dumps({**document, **change}))
        for arguments in (["check", "--map", tmp_path / "plan.json"], ["check", "--map", tmp_path / "plan.json", TINY],
                          ["load", TINY, "--load-format", "dummy", "--map", tmp_path / "plan.json"]):  # fmt: skip
            done = devctl(*arguments)
            assert done.code in (2, 3)
            assert not BAD.search(done.out + done.err), done


def test_boards_and_drivers(machine, devctl):
    machine(
        boxes.system(driver="580.1\x1b[31m")
        + boxes.board(name="H100\x1b]0;x\x07::error::y")
        + boxes.board(1, uuid="GPU-\x1b[2K")
    )
    for arguments in (
        ["list"],
        ["check", "--gpus", 9],
        ["check", "--driver", 999],
        ["check", "--select", 1, "--format", "uuid"],
    ):
        done = devctl(*arguments)
        assert not BAD.search(done.out + done.err), done
    done = devctl("check", "--select", 2, "--format", "uuid")
    assert (done.code, done.out) == (3, "")


def test_a_working_directory(tmp_path):
    folder = tmp_path / "a\x1b[31m\n::error::b"
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", "devctl", "list"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not BAD.search(done.stdout + done.stderr)
    assert not [line for line in done.stdout.splitlines() if line.lstrip().startswith("::")]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion(shell):
    words = f"devctl plan {HOSTILE} --strategy {HOSTILE}".replace("\x00", "")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "_DEVCTL_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": words,
        "COMP_CWORD": "2",
        "_TYPER_COMPLETE_ARGS": words,
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": "x",
    }
    done = subprocess.run(
        [sys.executable, "-m", "devctl"], env=environment, capture_output=True, text=True, check=False
    )
    assert not BAD.search(done.stdout + done.stderr)
