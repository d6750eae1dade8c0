"""Padded batches in plan and load."""

import json

import pytest
import torch

import devctl as library
from devctl.loading.run.inputs import prepare
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from tests import small_models
from tests.conftest import CONFIGS
from tests.marks import one_in

TINY = CONFIGS / "tiny-llama"
WORK = ("--devices", "1GiB", "--context-length", 256)


@pytest.mark.parametrize(
    ("more", "padded", "said"),
    one_in(
        2,
        [
            (["--batch-size", "3"], True, "run: a padded batch of 3, greedy, attention sdpa"),
            (["--batch-size", "3", "--no-padding"], False, "run: a batch of 3, unpadded, greedy, attention sdpa"),
            ([], False, "run: greedy, attention sdpa"),
        ],
    ),
)
def test_a_plan_says_which_it_counts(devctl, short, more, padded, said):
    done = devctl("plan", short, *WORK, *more, "--json")
    assert json.loads(done.out)["workload"]["padded"] is padded
    assert said in done.err.splitlines()


def test_padding_is_what_a_batch_takes_more(devctl, short):
    totals = []
    for more in ([], ["--no-padding"]):
        document = json.loads(devctl("plan", short, *WORK, "--batch-size", 4, *more, "--json").out)
        totals.append(document["devices"][0]["activations"])
    assert totals[0] > totals[1]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["plan", TINY, "--no-padding"], "without a workload only weights are counted: leave out --no-padding"),
        (
            ["plan", TINY, *WORK, "--batch-size", 1, "--no-padding"],
            "one sequence is not padded: leave out --no-padding",
        ),
        (["load", TINY, "--no-padding"], "one sequence is not padded: leave out --no-padding"),
    ],
)
def test_where_it_changes_nothing_it_is_refused(devctl, command, said):
    done = devctl(*command)
    assert done.code == 2
    assert said in done.err


@pytest.mark.slow
def test_tables_count_it(devctl, short):
    fullest = []
    for more in ([], ["--no-padding"]):
        cases = json.loads(devctl("plan", short, "--devices", "4GiB", "--what-if", *more, "--json").out)["cases"]
        fullest.append({(case["context_length"], case["batch_size"]): case["fullest"] for case in cases})
    assert all(fullest[0][case] == fullest[1][case] for case in fullest[0] if case[1] == 1)
    assert all(fullest[0][case] >= fullest[1][case] for case in fullest[0])
    assert fullest[0] != fullest[1]


def test_the_library_takes_it(short):
    plans = [library.plan(short, "1GiB", context_length=64, batch_size=2, padding=padding) for padding in (True, False)]
    assert [plan.runtime.footprint.workload.padded for plan in plans] == [True, False]
    with pytest.raises(library.errors.UsageError, match="leave out padding=False"):
        library.plan(str(TINY), "1GiB", padding=False)


@pytest.mark.parametrize(("more", "padded"), one_in(2, [([], True), (["--no-padding"], False)]))
def test_a_load_runs_what_it_predicts(devctl, checkpoint, more, padded):
    options = ("--map", "cpu", "--batch-size", 3, "--context-length", 48, *more)
    report = json.loads(devctl("load", checkpoint("llama"), *options, "--json").out)
    assert report["smoke"]["padded"] is padded
    (cpu,) = report["devices"]
    assert cpu["predicted_peak"] == pytest.approx(cpu["peak"], rel=0.02)
    assert all(proof["passed"] for proof in report["proofs"])
    assert (", padded" in devctl("load", checkpoint("llama"), *options).out) is padded


def inputs(folder, **more):
    source = resolve(str(folder))
    return prepare(
        source, read_skeleton(source), prompt=None, new_tokens=2, trust_remote_code=False, batch_size=3, **more
    )


def test_a_decoder_is_padded_before_its_text(checkpoint):
    made = inputs(checkpoint("llama"), context_length=20)
    mask = made.tensors["attention_mask"]
    assert made.padded
    assert mask.sum(1).tolist() == [20, 17, 14]
    assert mask[:, -1].all()
    assert torch.equal(made.tensors["input_ids"][2, 6:], made.tensors["input_ids"][0, :14])


def test_an_encoder_is_padded_behind_its_text(checkpoint):
    mask = inputs(checkpoint("bert"), context_length=20).tensors["attention_mask"]
    assert mask.sum(1).tolist() == [20, 17, 14]
    assert mask[:, 0].all()


def test_an_image_stays_whole(tmp_path):
    folder = small_models.save("llava", tmp_path / "llava", small_models.MODALITIES)
    made = inputs(folder)
    of_image = (made.tensors["input_ids"] == read_skeleton(resolve(str(folder))).config.image_token_id).sum(1)
    assert made.padded
    assert len(set(of_image.tolist())) == 1


@pytest.mark.parametrize("length", [1, 2])
def test_a_text_of_one_token_is_not_padded(checkpoint, length):
    assert inputs(checkpoint("llama"), context_length=length).padded is (length == 2)
