"""What is tried: enough architectures, each of which is built, and large models that are cut to the board."""

import json

import pytest

from tests.boards.models import ATTENTIONS, BATCHES, CONTEXTS, DTYPES, FAMILIES, JOBS, LARGE, SHARE, large, small
from tests.marks import one_in, slow

GIB = 2**30


def test_there_are_forty_architectures_in_three_workloads_and_two_dtypes():
    names = [name for family in FAMILIES.values() for name in family]
    assert len(names) == len(set(names)) >= 40
    assert (len(JOBS), DTYPES) == (3, ("bfloat16", "float16"))
    assert (len(LARGE), CONTEXTS, BATCHES, ATTENTIONS) == (4, (1024, 8192, 32_768), (1, 4), ("sdpa", "eager"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["decoders", *slow(*(name for name in FAMILIES if name != "decoders"))])
def test_architectures_are_built_and_weigh_some_hundred_mib(family):
    import torch

    for name, make in small(family).items():
        model_class, config = make()
        with torch.device("meta"):
            model = model_class._from_config(config, dtype=torch.bfloat16)
        weights = sum(p.numel() * p.element_size() for p in set(model.parameters()))
        assert 30 << 20 < weights < 1 << 30, name


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("room", one_in(3, [8 * GIB, 24 * GIB, 80 * GIB, 141 * GIB]))
def test_large_models_are_cut_to_three_quarters_of_the_board(name, room):
    import torch

    make, said = large(name, room)
    model_class, config = make()
    with torch.device("meta"):
        model = model_class._from_config(config, dtype=torch.bfloat16)
    weights = sum(p.numel() * p.element_size() for p in set(model.parameters()))
    assert weights <= SHARE * room
    assert said == "all its layers" or weights > 0.5 * room, "no more is cut than has to be"
    json.dumps(config.to_dict())
