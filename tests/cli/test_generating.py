"""--decode and --prefill-chunk-size of plan and load."""

import json
import shutil

import pytest

import devctl as library
from tests.conftest import CONFIGS
from tests.marks import slow

TINY, BERT, T5 = (CONFIGS / name for name in ("tiny-llama", "bert-large", "t5-11b"))
WORK = ("--devices", "1GiB", "--context-length", 256)


@pytest.fixture
def told(short, tmp_path):
    """The short model's folder with a generation config."""

    def write(**settings):
        shutil.copytree(short, tmp_path / "model", dirs_exist_ok=True)
        (tmp_path / "model" / "generation_config.json").write_text(json.dumps(settings))
        return tmp_path / "model"

    return write


def document(done):
    assert done.code == 0, done.err
    return json.loads(done.out)


def state(document):
    return sum(device["state"] or 0 for device in document["devices"])


def test_the_folders_generation_config_counts(devctl, short, told):
    plain = document(devctl("plan", short, *WORK, "--json"))
    done = devctl("plan", told(num_beams=4), *WORK, "--json")
    beams = document(done)
    assert beams["workload"]["generation"] == {"num_beams": 4}
    assert plain["workload"]["generation"] == {}
    assert state(beams) == 4 * state(plain)
    assert "run: 4 beams, attention sdpa" in done.err.splitlines()
    greedy = document(devctl("plan", told(num_beams=4), *WORK, "--decode", "greedy", "--json"))
    assert state(greedy) == state(plain)


def test_a_change_of_it_is_seen_by_a_plan_that_is_kept(devctl, told):
    states = [state(document(devctl("plan", told(num_beams=n), *WORK, "--json"))) for n in (4, 3, 4)]
    assert states[0] == states[2]
    assert states[1] * 4 == states[0] * 3


@pytest.mark.parametrize(
    ("decode", "said"), [("beam:3", "run: 3 beams"), ("sample", "run: sampling"), ("greedy", "run: greedy, attention")]
)
def test_decode_says_otherwise(devctl, short, decode, said):
    done = devctl("plan", short, *WORK, "--decode", decode)
    assert any(line.startswith(said) for line in done.err.splitlines())


def test_what_it_asks_for_and_is_not_counted_is_said(devctl, told):
    done = devctl("plan", told(prompt_lookup_num_tokens=5, cache_implementation="static"), *WORK)
    assert "note: the generation config asks for prompt lookup, which is not counted" in done.err
    assert "torch.compile" in done.err


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ([TINY, *WORK, "--decode", "beam:1"], 2, "--decode beam:1: from 2 to 1024 beams are counted"),
        ([TINY, *WORK, "--decode", "nucleus"], 2, "--decode 'nucleus' is not one of config, greedy, sample, beam:N"),
        ([TINY, "--decode", "greedy"], 2, "without a workload only weights are counted: leave out --decode"),
        ([TINY, "--prefill-chunk-size", 64], 2, "leave out --prefill-chunk-size"),
        ([BERT, *WORK, "--decode", "beam:2"], 2, "--decode beam:2: this model does not generate"),
        ([T5, "--devices", "H100", "--context-length", 64, "--prefill-chunk-size", 8], 2, "does not generate from its"),
    ],
)
def test_what_changes_nothing_or_can_not_be_meant_is_refused(devctl, command, code, said):
    done = devctl("plan", *command)
    assert (done.code, done.out) == (code, "")
    assert said in done.err


def test_a_generation_config_that_can_not_be_meant_is_refused(devctl, told):
    done = devctl("plan", told(num_beams="many"), *WORK)
    assert done.code == 4
    assert "the generation config's num_beams is 'many'" in done.err


@pytest.mark.parametrize(
    "question", [["--compare", *WORK[2:]], *slow(["--what-if"], ["--max-context"], ["--target-context", 128])]
)
def test_other_questions_take_them(devctl, short, question):
    answers = []
    for more in ([], ["--decode", "beam:4", "--prefill-chunk-size", 32]):
        done = devctl("plan", short, "--devices", "1MiB", "--overhead", "0B", *question, *more, "--json")
        assert done.code in (0, 3), done.err
        answers.append(done.out + done.err)
    assert answers[0] != answers[1]


def test_the_library_takes_them(short):
    found = library.plan(short, "1GiB", context_length=64, decode="beam:2", prefill_chunk_size=16)
    assert found.runtime.footprint.workload.generation == (("num_beams", 2),)
    assert found.runtime.footprint.workload.prefill_chunk == 16
    with pytest.raises(library.errors.UsageError, match="decode 'no' is not one of"):
        library.capacity(short, "1GiB", context_length=64, decode="no")


@pytest.mark.slow
def test_the_first_way_out_of_a_long_prompt_is_to_read_it_in_chunks(devctl, thin):
    model = thin("llama-3.1-8b", 2)
    work = (
        "--devices",
        "2x8GiB,disk",
        "--context-length",
        131072,
        "--batch-size",
        1,
        "--strategy",
        "optimal",
        "--no-offload",
    )
    done = devctl("plan", model, *work)
    assert done.code == 3
    ways = [line for line in done.err.splitlines() if line.startswith("  - ") and " is given " not in line]
    assert ways[0].startswith("  - --prefill-chunk-size ")
    assert " fits, by --strategy optimal: " in ways[0]
    longest = int(ways[0].split()[2])
    assert devctl("plan", model, *work, "--prefill-chunk-size", longest).code == 0
    assert devctl("plan", model, *work, "--prefill-chunk-size", 2 * longest).code == 3


def test_chunks_are_not_told_where_the_prompt_is_not_what_does_not_fit(devctl):
    done = devctl("plan", TINY, "--devices", "8MiB,disk", "--overhead", "0B", "--context-length", 64, "--no-offload")
    assert done.code == 3
    assert "--prefill-chunk-size" not in done.err


@pytest.mark.parametrize(
    ("more", "generation", "chunk", "said"),
    [
        (["--prefill-chunk-size", "5"], {}, 5, "the prompt in chunks of 5"),
        *slow(
            (["--decode", "beam:2"], {"num_beams": 2}, None, "2 beams"),
            (["--decode", "sample"], {"do_sample": True}, None, "sampling"),
            ([], {}, None, "tokens"),
        ),
    ],
)
def test_a_load_generates_so(devctl, checkpoint, more, generation, chunk, said):
    options = ("--map", "cpu", "--max-new-tokens", 3, "--batch-size", 2, *more)
    report = json.loads(devctl("load", checkpoint("llama"), *options, "--json").out)
    assert (report["generation"], report["prefill_chunk"]) == (generation, chunk)
    assert report["smoke"]["generated"]["tokens"] == 3
    assert report["ok"]
    (line,) = [x for x in devctl("load", checkpoint("llama"), *options).out.splitlines() if x.startswith("generate")]
    assert said in line


def test_a_load_generates_as_the_folder_says(devctl, checkpoint, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("llama"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"num_beams": 3, "prompt_lookup_num_tokens": 2}))
    report = json.loads(
        devctl("load", folder, "--map", "cpu", "--max-new-tokens", 2, "--decode", "greedy", "--json").out
    )
    assert report["generation"] == {}
    assert "the generation config asks for prompt lookup, which is not counted" in report["notes"]


def test_the_most_tokens_say_what_is_not_counted(devctl, told):
    done = devctl("plan", told(prompt_lookup_num_tokens=5), "--devices", "1GiB", "--max-context")
    assert done.code == 0, done.err
    assert "note: the generation config asks for prompt lookup, which is not counted" in done.err


RUN = ["--decode", "beam:2", "--prefill-chunk-size", 16, "--attn-implementation", "eager", "--no-padding"]


@pytest.mark.parametrize(
    ("question", "batch"),
    [
        (["--fits-on", "1GiB", *WORK[2:], "--batch-size", 3], "a batch of 3, unpadded"),
        *slow(
            (["--what-if", "--devices", "100KiB"], "batches unpadded"),
            (["--compare", *WORK, "--batch-size", 3], "a batch of 3, unpadded"),
            (["--max-context", "--devices", "4MiB", "--batch-size", 3], "a batch of 3, unpadded"),
            (["--target-context", 64, "--devices", "4MiB"], "a batch of "),
        ),
        (["--batch-size", 3, *WORK], "a batch of 3, unpadded"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_every_answer_says_how_it_is_run_as_a_plan_does(devctl, short, question, batch):
    done = devctl("plan", short, *question, "--overhead", "0B", *RUN)
    assert done.code == 0, done.err
    (line,) = [line for line in (done.out + done.err).splitlines() if line.startswith("run: ")]
    assert line.startswith(f"run: {batch}")
    assert line.endswith("2 beams, the prompt in chunks of 16, attention eager")


@pytest.mark.parametrize("question", [["--what-if", "--devices", "100KiB"], ["--compare", *WORK]])
def test_documents_of_tables_say_how_they_are_run(devctl, short, question):
    work = document(devctl("plan", short, *question, "--overhead", "0B", *RUN, "--json"))["workload"]
    assert (work["generation"], work["prefill_chunk"], work["attention"]) == ({"num_beams": 2}, 16, "eager")
    assert work["padded"] is False
    assert ("batch_size" in work) == ("--compare" in question)


def test_tables_say_what_transformers_chooses_where_nothing_is_asked_for(devctl, short):
    table = document(devctl("plan", short, "--what-if", "--devices", "64MiB", "--json"))["workload"]
    assert (table["attention"], table["padded"], table["generation"]) == ("sdpa", True, {})
    assert document(devctl("plan", short, "--compare", "--devices", "64MiB", "--json"))["workload"] is None
    out = devctl("plan", short, "--compare", "--devices", "64MiB").out
    assert "run: " not in out
