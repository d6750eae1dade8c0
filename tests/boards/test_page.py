"""The document and the page: complete, valid and harmless whatever a box says."""

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from tests.boards import __main__ as boards
from tests.boards.page import apart, page, size, value
from tests.boards.records import (
    MIB,
    Board,
    Box,
    Evidence,
    Status,
    Tried,
    Verdict,
    equal,
    explained,
    failed,
    holds,
    near_peak,
    near_process,
    parse_evidence,
    skipped,
    told,
)

KEPT = sorted((Path(boards.__file__).parents[2] / "evidence").glob("*.json"))
SCHEMA = json.loads((Path(boards.__file__).with_name("schema.json")).read_text(encoding="utf-8"))
BOX = Box(
    boards=(Board(name="NVIDIA L4", memory=22 << 30, compute_capability="8.9"),) * 2,
    versions={"torch": "2.9.1", "driver of nvidia": "550.54.15"},
)


def tried(*rows, status=Status.DONE, section="peaks", why=""):
    return Tried(
        name=f"{section}/some",
        section=section,
        what="some",
        status=status,
        estimate=60,
        seconds=3.2,
        rows=rows,
        why=why,
    )


ROWS = (
    equal("llama", "weights", 100, 100, unit="B"),
    equal("llama", "state", 100, None, unit="B"),
    near_peak("llama", "peak", 103, 100),
    near_peak("llama", "peak", 97, 100),
    near_process("llama", "process", 400 * MIB, 90 * MIB),
    holds("llama", "fits or not", True, why="it ran"),
    explained("cuda:0", "memory in all", 24, 23, "the driver keeps some"),
    told("llama", "reserved and not allocated", 5 * MIB, unit="B"),
    skipped("pairs", "copies", "one board"),
    failed("gemma", "runs", "RuntimeError: CUDA error | at `x` <b> /home/alice/y\nline"),
)
EVIDENCE = Evidence(
    box=BOX,
    begun="2026-11-26",
    steps=(
        tried(*ROWS),
        tried(status=Status.WAITING, section="edge"),
        tried(status=Status.SKIPPED, section="placement", why="it needs 2 boards, and there is 1"),
    ),
)


def test_verdicts_go_by_the_targets():
    assert [str(row.verdict) for row in ROWS] == [
        *("met", "skipped", "met", "missed", "missed", "met", "met", "told", "skipped", "failed")
    ]


def test_a_peak_may_be_a_little_over_and_hardly_under():
    verdicts = [near_peak("x", "peak", predicted, 1000).verdict for predicted in (979, 980, 1000, 1050, 1051)]
    assert verdicts == [Verdict.MISSED, Verdict.MET, Verdict.MET, Verdict.MET, Verdict.MISSED]
    assert near_peak("x", "peak", 0, 0).verdict is Verdict.MET
    assert near_peak("x", "peak", 1, 0).verdict is Verdict.MISSED


def test_a_process_may_be_300_mib_apart():
    verdicts = [
        near_process("x", "process", 1000 * MIB + apart, 1000 * MIB).verdict for apart in (-300 * MIB, 300 * MIB)
    ]
    assert verdicts == [Verdict.MET, Verdict.MET]
    assert near_process("x", "process", 1301 * MIB, 1000 * MIB).verdict is Verdict.MISSED
    assert near_process("x", "process", 1301 * MIB, None).verdict is Verdict.SKIPPED


def test_the_document_is_as_the_schema_says():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    document = json.loads(json.dumps(EVIDENCE.to_document()))
    jsonschema.validate(document, SCHEMA)
    assert document["counts"] == {"met": 4, "missed": 2, "told": 1, "skipped": 2, "failed": 1}


def test_what_is_written_has_no_path_and_is_valid_where_a_figure_is_none(tmp_path):
    odd = replace(EVIDENCE, steps=(tried(*ROWS, told("x", "y", float("nan")), told("x", "z", float("inf"))),))
    document, beside = boards.write(odd, tmp_path / "evidence")
    assert document.name == "2x-nvidia-l4-2026-11-26.json"
    assert beside.name == "2x-nvidia-l4-2026-11-26.md"
    text = document.read_text()
    jsonschema.validate(json.loads(text, parse_constant=lambda name: 1 / 0), SCHEMA)
    for each in (text, beside.read_text()):
        assert "alice" not in each
    assert sorted(path.name for path in document.parent.iterdir()) == [document.name, beside.name]


def test_a_page_is_made_of_what_was_written():
    document = json.loads(json.dumps(EVIDENCE.to_document()))
    assert parse_evidence(document) == EVIDENCE
    assert page(parse_evidence(document)) == page(EVIDENCE)
    for broken in ({}, {**document, "steps": [{}]}, {**document, "boards": [{"name": "x", "uuid": "y"}]}):
        with pytest.raises(ValueError, match="not evidence"):
            parse_evidence(broken)


def test_a_constant_for_the_table_stands_in_the_page_as_it_is_meant(tmp_path):
    row = told("a process", "constant", 1, why="for the table: 112 * 2**20, 100 MiB on this board")
    _, beside = boards.write(replace(EVIDENCE, steps=(tried(row, section="overhead"),)), tmp_path)
    assert "for the table: 112 \\* 2\\*\\*20, 100 MiB on this board" in beside.read_text()


def test_the_page_tells_what_was_missed_and_what_was_not_run():
    text = page(EVIDENCE)
    assert "# devctl on 2x NVIDIA L4" in text
    assert "| peak | 1 | 1 | 0 | 0 | -3.0% | +3.0% |" in text
    assert "Missed or failed:" in text
    assert "| edge/some | some | there was no time for it yet: run 'python -m tests.boards' again |" in text
    assert "| placement/some | some | it needs 2 boards, and there is 1 |" in text
    assert "Simulated" not in text
    assert "Simulated: no board was there" in page(replace(EVIDENCE, box=replace(BOX, simulated=True)))


def test_the_page_begins_with_what_was_missed_by_how_much_and_by_what():
    more = tuple(near_peak(f"{name}, bfloat16", "peak", 89, 100) for name in "abcdefg")
    text = page(replace(EVIDENCE, steps=(tried(*ROWS), tried(*more), tried(section="edge"))))
    top = text[: text.index("## Weights, state and peaks")]
    assert (
        "Of 14 claims that have a target, 4 were met and 9 missed; 1 could not be tried to their end, and 2 were "
        "skipped. 1 figures without a target are told. 3 of 3 steps ran to their end." in top
    )
    assert "| Weights, state and peaks | 4 | 9 | 1 |" in top
    assert "| Weights, state and peaks | peak | 1 | 8 | 0 | -11.0% | +3.0% | llama, a, b, c, d, e and 2 more |" in top
    assert "| Weights, state and peaks | process | 0 | 1 | 0 | +344.4% | +344.4% | llama |" in top
    assert "| Weights, state and peaks | runs | 0 | 0 | 1 |  |  | gemma |" in top
    assert "state |" not in top, "what was met throughout is in its own part"
    assert "Missed" not in page(replace(EVIDENCE, steps=(tried(ROWS[0]),)))


def test_a_row_tells_by_how_much_and_both_figures_in_one_unit():
    row = near_peak("bloom", "peak", 1_124_302_880, 990_086_656)
    told_ = "| bloom | peak | missed | 1.05 GiB | 0.92 GiB | +128.00 MiB | +13.6% | peak |  |"
    assert told_ in page(replace(EVIDENCE, steps=(tried(row),)))
    under = replace(near_peak("gpt2", "peak", 209_881_120, 215_125_504), why="x")
    told_ = "| gpt2 | peak | missed | 200.16 MiB | 205.16 MiB | -5.00 MiB | -2.4% | peak | x |"
    assert told_ in page(replace(EVIDENCE, steps=(tried(under),)))
    assert [apart(each) for each in (equal("x", "code", 0, 1), equal("x", "weights", 5, 5, unit="B"))] == ["", ""]


def test_figures_that_are_told_without_a_prediction_are_in_no_sum():
    compared = told("llama", "peak beside weights", 50, predicted=60, unit="B")
    alone = told("a process", "context, by the driver", 610 * MIB, unit="B")
    text = page(replace(EVIDENCE, steps=(tried(compared, alone),)))
    assert "| peak beside weights | 1 | +20.0% | +20.0% |" in text
    assert text.count("context, by the driver") == 1, "in the rows"


def test_text_that_is_not_ours_makes_no_columns_or_tags():
    (line,) = [line for line in page(EVIDENCE).splitlines() if "RuntimeError" in line][:1]
    assert "CUDA error \\| at 'x' &lt;b>" in line
    assert line.count(" | ") == 8


def test_figures_are_told_as_a_person_reads_them():
    assert [value(*each) for each in ((None, "B"), (True, None), ("said", None), (1536, "B"), (25e9, "B/s"))] == [
        *("", "yes", "said", "1.50 KiB", "25 GB/s")
    ]
    assert [value(*each) for each in ((12_345, "tokens"), (0.12345678, None), (3, None))] == [
        "12,345 tokens",
        "0.1235",
        "3",
    ]
    assert [size(each) for each in (5, -3 * MIB, 80 << 30)] == ["5 B", "-3.00 MiB", "80.00 GiB"]


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_is_kept_is_evidence_of_a_real_board_with_its_page(path):
    document = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(document, SCHEMA)
    assert not document["simulated"]
    assert path.with_suffix(".md").read_text(encoding="utf-8") == page(parse_evidence(document))


def test_the_front_page_says_what_the_evidence_of_a_board_says():
    readme = (Path(boards.__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for path in KEPT:
        counts = json.loads(path.read_text(encoding="utf-8"))["counts"]
        judged = counts["met"] + counts["missed"] + counts["failed"]
        assert f"evidence/{path.stem}.md" in readme
        assert f"{judged:,} claims, of which {counts['met']:,} were met" in readme
