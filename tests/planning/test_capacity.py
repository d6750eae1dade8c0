"""What is said to fit can be planned, and the next larger can't."""

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

import devctl
from devctl.models.footprint import BlockFootprint, Footprint, Kernels, Workload
from devctl.placement.placement import Load
from devctl.planning.capacity import is_close, nearest
from devctl.planning.footprints import Footprints, between, is_met
from devctl.planning.model import open_model
from devctl.planning.request import ModelRequest
from tests import small_models
from tests.conftest import CONFIGS
from tests.marks import slow


@given(st.integers(0, 300), st.integers(0, 320), st.integers(1, 300))
def test_the_largest_that_fits_is_found_from_anywhere(true, near, most):
    assert nearest(lambda number: number <= true, near, most) == min(true, most)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1, max_size=4), st.integers(3, 40))
def test_a_line_between_few_and_many_is_never_below_a_peak(sums, batch):
    """A peak is the most of several sums, each of which grows with the batch at a pace of its own."""

    def traced(batch):
        peak = max(fixed + pace * batch for fixed, pace in sums)
        block = BlockFootprint(name="a", prefill=peak)
        return Footprint(workload=Workload(context_length=8, batch_size=batch, new_tokens=1), blocks=(block,))

    few, more, many = traced(2), traced(3), traced(64)
    line = between(few, more, 64)
    found = between(few, more, batch) if is_met(line, many) else between(more, many, batch)
    assert found.blocks[0].prefill >= traced(batch).blocks[0].prefill - many.blocks[0].prefill // 1000


@pytest.fixture(scope="module", params=["bert", *slow("llama", "t5", "gemma2")])
def folder(request, tmp_path_factory):
    """A config alone, of more positions than there are tokens in a test."""
    path = tmp_path_factory.mktemp(request.param)
    model_class, config = small_models.MEASURED[request.param]()
    config.architectures = [model_class.__name__]
    config.max_position_embeddings = 512  # which ends the table of contexts
    config.save_pretrained(path)
    return path


def weights(folder):
    return devctl.plan(str(folder), "1xH100", max_memory={0: "40GiB"}).model.nbytes


def test_many_sequences_take_no_more_than_is_counted_without_a_trace(folder):
    footprints = open_model(ModelRequest(model=str(folder), cache=False)).footprints
    for batch in (2, 5, 9, 40):
        workload = Workload(context_length=96, batch_size=batch, padded=True, kernels=Kernels.ACCELERATOR)
        counted, traced = footprints.scaled(workload), footprints.of(workload)
        assert is_met(counted, traced), batch


def footprint_of(batch, gaps):
    block = BlockFootprint(name="a", prefill=100 * batch)
    workload = Workload(context_length=8, batch_size=batch, new_tokens=1)
    return Footprint(workload=workload, blocks=(block,), unallocated=gaps)


def test_gaps_that_a_few_sequences_do_not_leave_are_those_of_many(monkeypatch):
    footprints = open_model(ModelRequest(model=str(TINY), cache=False)).footprints
    traced = {1: 0, 2: 3, 64: 2000}
    monkeypatch.setattr(Footprints, "_exact", lambda _, asked: footprint_of(asked.batch_size, traced[asked.batch_size]))
    found = footprints.scaled(Workload(context_length=8, batch_size=33, new_tokens=1))
    assert found.blocks[0].prefill == 3300
    assert found.unallocated == -(-2000 * 33 // 64)


@pytest.mark.parametrize(
    ("budget", "close"),
    [(999, False), (1000, True), (1001, True), (1002, False), (1099, False), (1100, True), (1249, True), (1250, False)],
)
def test_what_was_not_traced_is_looked_at_again_where_little_is_left(budget, close):
    # of 1000 bytes 300 run beside the weights, with gaps of 100
    load = Load(used=600, state=100, activations=200, overhead=100, unallocated=100)
    assert is_close(load, budget) is close


@pytest.mark.parametrize(
    ("folder", "seed"),
    [
        # two GPUs, three with a shorter context, one
        ("bert", 0),
        *slow(("bert", 1), ("llama", 0), ("llama", 5), ("t5", 5), ("t5", 2), ("gemma2", 0), ("gemma2", 3)),
    ],
    indirect=["folder"],
)
def test_what_is_said_to_fit_is_planned_and_the_next_is_not(folder, seed):
    chance = random.Random(seed)
    total = weights(folder)
    gpus = [int(total * chance.uniform(0.6, 1.6)) + 2**23 for _ in range(chance.choice([1, 2, 3]))]
    if sum(gpus) < 1.2 * total + 2**24:
        gpus[0] += total + 2**24
    asked = {"max_memory": dict(enumerate(gpus)) | {"cpu": "1TiB"}, "overhead": 0}
    context = chance.choice([64, 160])
    found = devctl.capacity(str(folder), "3xH100,cpu=2TiB", context_length=context, **asked)

    def fits(**workload):
        plan = devctl.plan(str(folder), "3xH100,cpu=2TiB", strategy="optimal", offload=False, **asked, **workload)
        return plan.fits

    if found.max_batch:
        assert fits(context_length=context, batch_size=found.max_batch)
    if found.max_batch < 4096:
        assert not fits(context_length=context, batch_size=found.max_batch + 1)
    if found.max_context:
        assert fits(context_length=found.max_context, batch_size=1)
    for case in found.what_if:
        if case.fits:
            assert fits(context_length=case.context_length, batch_size=case.batch_size), case


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["llama", "t5"], indirect=True)
def test_a_table_of_what_fits_says_how_full_only_what_fits(folder):
    total = weights(folder)
    found = devctl.capacity(str(folder), "1xH100,cpu=2TiB", max_memory={0: total + 2**26, "cpu": "1TiB"}, overhead=0)
    assert any(case.fits for case in found.what_if)
    assert all((case.fullest is None) is not case.fits for case in found.what_if)
    assert json.dumps([replace(case).fullest for case in found.what_if])


TINY = CONFIGS / "tiny-llama"
HOSTS = "a:40MiB;b:40MiB"
FEW = {"context_length": 512, "overhead": 0}


@pytest.mark.slow
def test_capacity_says_how_what_it_counts_is_run():
    found = devctl.capacity(str(TINY), "40MiB", batch_size=2, decode="beam:2", **FEW)
    assert (found.run.workload.batch_size, found.run.workload.padded) == (2, True)
    assert dict(found.run.workload.generation)["num_beams"] == 2
    assert (found.run.attention, found.run.decodes) == ("sdpa", True)


@pytest.mark.slow
def test_capacity_over_hosts_is_what_plans_over_hosts_find():
    found = devctl.capacity(str(TINY), HOSTS, **FEW)
    most = devctl.plan(str(TINY), HOSTS, max_context=True, overhead=0).max_context
    assert most is not None and found.max_context == most.optimal > 512
    filled = devctl.plan(str(TINY), {"a": "40MiB", "b": "40MiB"}, target_context=512, overhead=0)
    assert filled.runtime is not None and found.max_batch == filled.runtime.footprint.workload.batch_size > 1
    assert devctl.capacity(str(TINY), {"a": "40MiB", "b": "40MiB"}, **FEW) == found
    assert found.what_if[0].fits and found.run.workload.context_length == 512
    one = devctl.capacity(str(TINY), "40MiB", **FEW)
    assert found.max_batch > one.max_batch, "two boards hold more"


def test_capacity_over_hosts_refuses_what_there_is_not():
    with pytest.raises(devctl.UsageError):
        devctl.capacity(str(TINY), HOSTS, padding=False, **FEW)


def test_every_answer_over_hosts_says_how_it_is_run(short):
    for answer in (devctl.plan, devctl.compare, devctl.capacity):
        run = answer(str(short), "a:1MiB;b:1MiB", context_length=128, overhead=0).run
        assert run is not None and run.workload.context_length == 128
