"""Stages over hosts as a plan document has them."""

import copy
from dataclasses import replace

import pytest

from devctl.errors import UsageError
from devctl.placement.parallel.records import RankUse, Stage, Stages, is_staged, parse_stages, stage_of


def stage(number, host, devices, layers):
    return Stage(
        stage=number, host=host, devices=devices, layers=layers, used=10, state=3, activations=2, overhead=1, budget=16
    )


FOUND = Stages(
    container="model.layers",
    stages=(
        stage(0, "b", ("cuda:0", "cuda:1"), (0, 2)),
        stage(1, "a", ("cuda:2", "cuda:3"), (2, 3)),
        stage(2, "a", ("cuda:0", "cuda:1"), (3, 8)),
    ),
)


def test_stages_are_read_as_they_are_written():
    assert is_staged(FOUND.to_document())
    assert not is_staged({"device_map": {}})
    assert parse_stages(FOUND.to_document(), "x") == FOUND


def test_ranks_of_a_stage_that_differ_are_read_as_they_are_written():
    most, less = (RankUse(used=used, state=3, activations=2, overhead=1, budget=16) for used in (10, 9))
    uneven = replace(FOUND, stages=(stage_of(0, "b", ("cuda:0", "cuda:1"), (0, 2), (less, most)), *FOUND.stages[1:]))
    document = uneven.to_document()
    assert [rank["used"] for rank in document["stages"][0]["ranks"]] == [9, 10]
    assert [rank["rank"] for each in document["stages"] for rank in each["ranks"]] == [0, 1, 2, 3, 4, 5]
    assert document["stages"][0]["used"] == 10
    assert parse_stages(document, "x") == uneven


def test_a_plan_without_ranks_in_its_stages_is_read():
    document = FOUND.to_document()
    del document["stages"][0]["ranks"]
    for each in document["stages"][1:]:
        each["ranks"] = None
    assert parse_stages(document, "x") == FOUND


def test_ranks_go_stage_by_stage_and_count_on_each_host():
    ranks = [(r.rank, r.host, r.host_rank, r.local_rank, r.stage.stage, r.device) for r in FOUND.ranks()]
    assert ranks == [
        (0, "b", 0, 0, 0, "cuda:0"),
        (1, "b", 0, 1, 0, "cuda:1"),
        (2, "a", 1, 0, 1, "cuda:2"),
        (3, "a", 1, 1, 1, "cuda:3"),
        (4, "a", 1, 2, 2, "cuda:0"),
        (5, "a", 1, 3, 2, "cuda:1"),
    ]


def test_a_stage_fits_just_when_all_of_it_does():
    first = FOUND.stages[0]
    assert (first.total, first.fits) == (16, True)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda d: d.pop("stages"), "has no stages in it"),
        (lambda d: d["stages"].clear(), "there is no stage"),
        (lambda d: d["stages"].reverse(), "is at place 0"),
        (lambda d: d["stages"][1].update(layers=[3, 4]), "after 2 layers"),
        (lambda d: d["stages"][1].update(layers=[2, 2]), "after 2 layers"),
        (lambda d: d["stages"][1].update(layers=[2]), "can't be read"),
        (lambda d: d["stages"][1].update(layers=[2, True]), "can't be read"),
        (lambda d: d["stages"][1].update(used=-1), "can't be read"),
        (lambda d: d["stages"][1].update(host=""), "can't be read"),
        (lambda d: d["stages"][1].pop("budget"), "can't be read"),
        (lambda d: d["stages"][1]["ranks"][0].pop("used"), "can't be read"),
        (lambda d: d["stages"][1].update(ranks=7), "can't be read"),
        (lambda d: d["stages"][1].update(ranks=["cuda:2"]), "can't be read"),
        (lambda d: d["stages"][1]["ranks"].pop(), "stage 1 has ranks on other devices than its own"),
        (lambda d: d["stages"][1]["ranks"][0].update(device="cuda:9"), "stage 1 has ranks on other devices"),
        (lambda d: d["stages"][1].update(used=11), "stage 1 says it is as full as none of its ranks is"),
        (lambda d: d["stages"][1].update(devices=["cuda:0"]), "has 1 devices, and stage 0 has 2"),
        (lambda d: d["stages"][2].update(devices=["cuda:2", "cuda:1"]), "cuda:2 of a has two stages"),
        (lambda d: [each.update(devices=[]) for each in d["stages"]], "stage 0 has no device"),
        (lambda d: d["stages"][2].update(host="b", devices=["cuda:4", "cuda:5"]), "not one after another"),
        (lambda d: d.update(stages=7), "can't be read"),
        (lambda d: d.update(stages=[7]), "can't be read"),
        (lambda d: d.pop("layers_in"), "can't be read"),
    ],
)
def test_stages_that_cannot_be_are_refused_in_a_line(change, why):
    document = copy.deepcopy(FOUND.to_document())
    change(document)
    with pytest.raises(UsageError, match=r"^x") as caught:
        parse_stages(document, "x")
    assert why in caught.value.message
    assert "\n" not in caught.value.message
