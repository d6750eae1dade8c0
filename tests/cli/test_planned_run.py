"""A load of a plan document runs as the plan says, and says in one note where it does not."""

import json

import pytest

import devctl as library
from devctl.planning.planned_run import Run, not_followed, parse_run
from tests.marks import one_in

PREFIX = "what is run is not the whole workload of the plan: "


@pytest.fixture
def planned(devctl, checkpoint, tmp_path):
    """Writes a plan of a small model for a workload on the CPU: ``planned("llama", "--decode", "sample")``."""

    def write(name, *work, **changes):
        path = tmp_path / "plan.json"
        done = devctl("plan", checkpoint(name), "--max-memory", "cpu=1GiB", *work, "--report", path)
        assert done.code == 0, done.err
        if changes:
            document = json.loads(path.read_text())
            document["workload"] |= changes
            path.write_text(json.dumps(document))
        return path

    return write


def report(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


def notes_of(found):
    return [note for note in found["notes"] if note.startswith(PREFIX)]


def test_a_load_decodes_pads_and_reads_in_chunks_as_the_plan_does(devctl, checkpoint, planned):
    work = ("--context-length", 20, "--new-tokens", 4, "--batch-size", 2)
    plan = planned("llama", *work, "--decode", "beam:3", "--prefill-chunk-size", 5, "--no-padding")
    options = ("--context-length", 16, "--max-new-tokens", 4, "--batch-size", 2)
    found = report(devctl("load", checkpoint("llama"), "--map", plan, *options, "--json"))
    assert found["generation"] == {"num_beams": 3}
    assert found["prefill_chunk"] == 5
    assert found["smoke"]["padded"] is False
    assert notes_of(found) == []


@pytest.mark.slow
def test_a_load_pads_where_the_plan_does(devctl, checkpoint, planned):
    plan = planned("llama", "--context-length", 20, "--new-tokens", 4, "--batch-size", 2)
    options = ("--context-length", 16, "--max-new-tokens", 4, "--batch-size", 2)
    found = report(devctl("load", checkpoint("llama"), "--map", plan, *options, "--json"))
    assert found["smoke"]["padded"] is True


def test_one_note_says_all_that_is_run_otherwise(devctl, checkpoint, planned):
    work = ("--context-length", 64, "--batch-size", 4, "--kv-dtype", "float16", "--attn-implementation", "eager")
    plan = planned("llama", *work, "--decode", "sample", "--prefill-chunk-size", 32)
    options = ("--context-length", 9, "--decode", "greedy", "--prefill-chunk-size", 4, "--attn-implementation", "sdpa")
    (note,) = notes_of(report(devctl("load", checkpoint("llama"), "--map", plan, *options, "--json")))
    assert note == (
        PREFIX + "17 tokens with 8 new ones (in the plan 64 with 1); a batch of 1 (4); "
        "keys and values in the model's dtype (float16); attention sdpa (eager); greedy (sampling); "
        "the prompt in chunks of 4 (in chunks of 32)"
    )


def test_a_plain_map_says_nothing_of_a_run(devctl, checkpoint, tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"": "cpu"}))
    assert notes_of(report(devctl("load", checkpoint("llama"), "--map", path, "--json"))) == []


@pytest.mark.slow
def test_a_plan_in_the_library_is_followed_too(checkpoint):
    plan = library.plan(checkpoint("llama"), max_memory={"cpu": "1GiB"}, context_length=24, decode="beam:2")
    found = library.load(checkpoint("llama"), plan, max_new_tokens=2)
    assert found.generation == {"num_beams": 2}
    assert library.load(checkpoint("llama"), plan, max_new_tokens=2, decode="greedy").generation == {}


@pytest.mark.parametrize(
    ("key", "value"),
    one_in(
        4,
        [
            ("padded", "yes"),
            ("generation", []),
            ("generation", {"num_beams": "many"}),
            ("generation", {"trust": True}),
            ("prefill_chunk", 0),
            ("prefill_chunk", True),
            ("batch_size", -1),
            ("context_length", 2**40),
            ("images", {"count": 1, "height": 9, "width": 10**9}),
            ("images", {"count": 1, "height": 9, "width": 9, "most": "all"}),
            ("images", "1x2x3"),
        ],
    ),
)
def test_a_run_that_is_none_is_refused(devctl, checkpoint, planned, key, value):
    plan = planned("llama", "--context-length", 32, **{key: value})
    done = devctl("load", checkpoint("llama"), "--map", plan)
    assert done.code == 2, done.err
    assert f'"{key}" is ' in done.err


def test_what_a_document_does_not_say_is_not_held_against_a_load():
    ran = Run(context_length=8, new_tokens=2, batch_size=1, attention="sdpa", generation=())
    assert not_followed(parse_run(None, "the plan"), ran) == ()
    assert not_followed(parse_run({"batch_size": 1, "padded": True}, "the plan"), ran) == ()


@pytest.mark.slow
def test_a_load_on_a_cpu_says_what_its_beams_should_hold(devctl, checkpoint):
    options = ("--map", "cpu", "--context-length", 32, "--max-new-tokens", 20)
    told = [
        note
        for decode in ("greedy", "beam:8")
        for note in report(devctl("load", checkpoint("llama"), *options, "--decode", decode, "--json"))["notes"]
        if note.startswith("the peak of cpu is that of the forward: generate, ")
    ]
    (note,) = told
    assert "8 beams, should hold " in note
