"""What a person sees of a plan on a terminal, and what files and pipes get."""

import io
import json
import re
import sys
from contextlib import ExitStack

import pytest

from devctl.cli import app
from devctl.cli.show import streams
from devctl.cli.show.plan import name_lines
from tests.conftest import CONFIGS, Result
from tests.marks import one_in
from tests.terminals import terminal

TINY = CONFIGS / "tiny-llama"
BOX = ["--max-memory", "cpu=12MiB"]
HOSTS = ["--devices", "a:2xRTX 4090;b:RTX 4090"]
VERDICT = "6.15 MiB on disk, 3.08 MiB left"
STREAMS = ("stdout", "stderr")


@pytest.fixture
def seen(monkeypatch):
    """Runs a command whose streams are terminals of so many columns, or else files: ``seen("plan", …, stdout=80)``."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*args, encoding="utf-8", **columns):
        with ExitStack() as stack:
            ends = {}
            for name in STREAMS:
                ends[name] = io.StringIO()
                if name in columns:
                    ends[name] = stack.enter_context(terminal(columns[name], encoding))
                monkeypatch.setattr(sys, name, getattr(ends[name], "stream", ends[name]))
            try:
                app([str(arg) for arg in args], prog_name="devctl")
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            finally:
                monkeypatch.undo()
        return Result(code, *(end.text if hasattr(end, "text") else end.getvalue() for end in ends.values()))

    return run


@pytest.mark.parametrize("looked_at", [{"stdout": 80}, {"stdout": 80, "stderr": 80}], ids="+".join)
def test_on_a_terminal_the_summary_alone_is_shown(seen, looked_at):
    done = seen("plan", TINY, *BOX, **looked_at)
    assert done.code == 0
    assert done.out.startswith(VERDICT)
    assert '"model.layers.0"' not in done.out
    assert "-o map.json" in done.out.splitlines()[-1]
    assert VERDICT not in done.err, "it is told once"


@pytest.mark.parametrize("looked_at", [{}, {"stderr": 80}], ids=["neither", "stderr"])
def test_where_stdout_is_no_terminal_the_map_is_on_it(seen, looked_at):
    done = seen("plan", TINY, *BOX, **looked_at)
    assert json.loads(done.out)["lm_head"] == "disk"
    assert VERDICT in done.err
    assert "-o map.json" not in done.err


@pytest.mark.parametrize("looked_at", [{}, {"stdout": 80}], ids=["piped", "terminal"])
def test_a_map_in_a_file_leaves_stdout_empty(seen, tmp_path, looked_at):
    path = tmp_path / "map.json"
    done = seen("plan", TINY, *BOX, "-o", path, **looked_at)
    assert (done.code, done.out) == (0, "")
    assert VERDICT in done.err
    assert path.read_text() == seen("plan", TINY, *BOX).out
    assert list(tmp_path.iterdir()) == [path], "nothing is left beside it"


@pytest.mark.parametrize("looked_at", [{}, {"stdout": 80}], ids=["piped", "terminal"])
def test_a_dash_prints_the_map_everywhere(seen, looked_at):
    done = seen("plan", TINY, *BOX, "-o", "-", **looked_at)
    assert json.loads(done.out)["lm_head"] == "disk"
    assert VERDICT in done.err


def test_what_is_refused_writes_no_file(seen, tmp_path):
    path = tmp_path / "map.json"
    path.write_text("as it was")
    done = seen("plan", TINY, *BOX, "--no-disk", "-o", path)
    assert (done.code, done.out) == (3, "")
    assert path.read_text() == "as it was"


def test_two_answers_in_one_file_are_refused(seen, tmp_path):
    path = tmp_path / "map.json"
    done = seen("plan", TINY, *BOX, "-o", path, "--report", path)
    assert (done.code, done.out) == (2, "")
    assert f"--output and --report both write {path}" in done.err
    assert not path.exists()


def test_a_file_that_can_not_be_written_is_told(seen):
    done = seen("plan", TINY, *BOX, "-o", "/absent/map.json")
    assert (done.code, done.out) == (2, "")
    told = "devctl: cannot write /absent/map.json: No such file or directory\n"
    assert done.err == f"{told}  make the folder /absent, or give another place for it\n", "before anything is planned"


@pytest.mark.parametrize(
    ("option", "instead"),
    [
        ("--report", "--json prints the plan document"),
        ("--svg", "write it like --svg plan.svg"),
        ("--html", "plan.html"),
    ],
)
def test_what_is_written_beside_the_answer_has_a_name(seen, tmp_path, monkeypatch, option, instead):
    monkeypatch.chdir(tmp_path)
    done = seen("plan", TINY, *BOX, option, "-")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"devctl: {option} writes a file, and - is standard output\n  ")
    assert instead in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("looked_at", [{}, {"stdout": 80}], ids=["piped", "terminal"])
def test_json_that_is_asked_for_is_printed_everywhere(seen, tmp_path, looked_at):
    report = tmp_path / "plan.json"
    done = seen("plan", TINY, *BOX, "--json", "--report", report, **looked_at)
    assert json.loads(done.out)["kind"] == "devctl.plan"
    assert report.read_text() == done.out
    written = seen("plan", TINY, *BOX, "--json", "-o", tmp_path / "other.json", **looked_at)
    assert written.out == ""
    assert (tmp_path / "other.json").read_text() == done.out


def test_a_report_is_written_whatever_is_looked_at(seen, tmp_path):
    done = seen("plan", TINY, *BOX, "--report", tmp_path / "plan.json", stdout=80)
    assert done.out.startswith(VERDICT)
    assert json.loads((tmp_path / "plan.json").read_text())["kind"] == "devctl.plan"


def test_why_follows_the_summary_on_the_same_stream(seen):
    on_terminal = seen("plan", TINY, *BOX, "--explain", stdout=80)
    assert "\nwhy:\n" in on_terminal.out
    piped = seen("plan", TINY, *BOX, "--explain")
    assert "\nwhy:\n" in piped.err
    assert json.loads(piped.out)


@pytest.mark.parametrize(
    "question",
    [
        ["--compare", "--devices", "2x8MiB,cpu=1GiB"],
        ["--what-if", "--devices", "64MiB"],
        ["--fits-on", "RTX 4090"],
    ],
    ids=lambda question: question[0],
)
def test_an_answer_that_is_no_map_is_printed_or_written(seen, tmp_path, question):
    printed, plain = seen("plan", TINY, *question, stdout=200), seen("plan", TINY, *question)
    assert printed.out == plain.out
    assert "LlamaForCausalLM 15.1 MiB in bfloat16" in plain.out
    for extra in ([], ["--json"]):
        path = tmp_path / f"answer{len(extra)}"
        done = seen("plan", TINY, *question, *extra, "-o", path, stdout=80)
        assert (done.code, done.out) == (0, "")
        assert path.read_text() == seen("plan", TINY, *question, *extra).out, "with no colours, and as wide as it is"


def test_over_hosts_the_plan_is_for_programs_too(seen, tmp_path):
    done = seen("plan", TINY, *HOSTS, stdout=80)
    assert done.out.startswith("fits, ")
    assert "in 3 stages over 2 hosts" in done.out
    assert "-o plan.json" in done.out.splitlines()[-1]
    assert '"stages"' not in done.out
    piped = seen("plan", TINY, *HOSTS)
    assert json.loads(piped.out)["stages"]
    assert seen("plan", TINY, *HOSTS, "-o", tmp_path / "plan.json", stdout=80).out == ""
    assert (tmp_path / "plan.json").read_text() == piped.out


def test_commands_of_engines_are_printed_or_written(seen, tmp_path):
    asked = ["plan", TINY, "--devices", "RTX 4090", "--strategy", "optimal", "--to", "vllm", "--context-length", "64"]
    shown = seen(*asked, stdout=200)
    assert shown.out.startswith("vllm serve ")
    assert shown.out == seen(*asked).out
    done = seen(*asked, "-o", tmp_path / "run.sh", stdout=200)
    assert done.out == ""
    assert (tmp_path / "run.sh").read_text() == shown.out
    plan = tmp_path / "plan.json"
    assert seen(*asked[:-4], "--context-length", "64", "--json", "-o", plan).code == 0
    for looked_at in ({}, {"stdout": 200}):
        assert seen("export", plan, "--to", "vllm", **looked_at).out.startswith("vllm serve ")


def test_each_stream_has_the_width_of_its_own_terminal(seen):
    wide = seen("plan", TINY, *BOX, stderr=200)
    assert max(map(len, wide.err.splitlines())) > 90
    narrow = seen("plan", TINY, *BOX, stderr=80)
    assert max(map(len, narrow.err.splitlines())) <= 80
    on_stdout = seen("plan", TINY, *BOX, stdout=200, stderr=60)
    assert max(map(len, on_stdout.out.splitlines())) > 90


@pytest.mark.parametrize("columns", one_in(2, [60, 80, 100, 200]))
@pytest.mark.parametrize(
    "box",
    [["2x24GiB,141GiB,cpu=200GiB"], ["a-host-with-a-long-name.of.a.cluster:2xH100;b:H200", "--context-length", "8k"]],
    ids=["one host", "two hosts"],
)
def test_no_line_is_too_wide_and_no_number_is_parted(seen, columns, box):
    done = seen("plan", CONFIGS / "llama-3.1-70b", "--devices", *box, stdout=columns)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= columns
    whole = seen("plan", CONFIGS / "llama-3.1-70b", "--devices", *box).err
    ranges = re.findall(r"layers\.[0-9]+(?:-[0-9]+)?\b", whole)
    flat = " ".join(line.strip() for line in lines).replace(". ", ".")
    for numbered in ranges:
        assert numbered in flat
        assert any(numbered.removeprefix("layers.") in line for line in lines)


def test_names_leave_out_what_they_share_with_the_one_before():
    names = ["model.language_model.layers.15-23", "model.language_model.norm", "model.visual.blocks.0", "lm_head"]
    assert name_lines(names, None) == [", ".join(names)]
    assert name_lines(names, 120) == [", ".join(names)]
    assert name_lines(names, 44) == ["model.language_model.layers.15-23, …norm,", "…visual.blocks.0, lm_head"]
    assert name_lines(["h.1", "h.3", "h.5-7"], 8) == ["h.1,", "h.3,", "h.5-7"], "a number keeps what it is of"
    assert name_lines([], 10) == []


@pytest.mark.parametrize("width", range(4, 40))
def test_lines_are_broken_behind_blanks_and_dots_alone(width):
    text = "model.language_model.layers.15-23, 1.5 GiB of 1,024 in /home/me/1.5/models"
    lines = streams.in_lines(text, width)
    assert max(map(len, lines)) <= width
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    for number in re.findall(r"[0-9]+(?:[-.,][0-9]+)*", text):
        assert len(number) > width or any(number in line for line in lines)


def test_a_factor_stays_with_what_it_multiplies():
    assert streams.in_lines("placed by auto, 400 tokens × 1", 29) == ["placed by auto, 400", "tokens × 1"]


def test_an_empty_track_is_seen_without_colour(seen):
    done = seen("plan", TINY, "--devices", "30MiB,cpu=1GiB", stdout=80)
    gpu, cpu = (next(line for line in done.out.splitlines() if line.startswith(name)) for name in ("cuda:0", "cpu"))
    assert re.search(r"  █{8,9}·{7,8}  ", gpu)
    assert f"  {'·' * 16}  " in cpu


def test_a_terminal_without_blocks_gets_others(seen):
    done = seen("plan", TINY, "--devices", "30MiB,cpu=1GiB", stdout=80, encoding="ascii")
    assert re.search(r"cuda:0 +#{8,9}\.{7,8}  ", done.out)


def test_a_stream_without_our_signs_gets_like_ones(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", None)
    streams.write_what_can_be_written()
    streams.answer("8 tokens × 1: …norm → – 模")
    assert written.getvalue() == b"8 tokens x 1: ~norm -> - ?"


def test_no_figure_of_a_table_is_cut_where_the_terminal_is_narrow(seen):
    done = seen("plan", TINY, "--devices", "30MiB,20MiB,cpu=1GiB", "--compare", stdout=40)
    assert "cuda:0 " in done.out
    assert "crossings " in done.out
    assert "…" not in done.out


def test_the_verdict_is_first_and_the_model_and_workload_second(seen):
    done = seen("plan", TINY, "--devices", "1GiB", "--context-length", "1k", "--batch-size", "2", stdout=100)
    first, second = done.out.splitlines()[:2]
    assert re.fullmatch(r"fits, [0-9.]+ MiB left", first)
    assert second == "LlamaForCausalLM 15.1 MiB in bfloat16, placed by auto, 1,024 tokens × 2"


def test_the_most_tokens_are_in_the_verdict(seen):
    done = seen("plan", TINY, "--devices", "1GiB", "--max-context", stdout=200)
    first = done.out.splitlines()[0]
    assert re.fullmatch(
        r"fits, [0-9.]+ GiB left; the most tokens: [0-9,]+ .*on this map, .* by --strategy optimal", first
    )
    assert "the most tokens" not in "".join(done.out.splitlines()[1:])
    assert any(
        note.startswith("the most tokens")
        for note in json.loads(seen("plan", TINY, "--devices", "1GiB", "--max-context", "--json").out)["notes"]
    )


def test_weights_that_leave_no_room_for_a_text_are_no_model_that_fits(seen):
    (box,) = ["15.2MiB"]
    done = seen("plan", TINY, "--devices", box, stdout=200)
    assert done.out.startswith("the weights fit, ")
    assert done.out.splitlines()[0].endswith(", too little to run a text")
