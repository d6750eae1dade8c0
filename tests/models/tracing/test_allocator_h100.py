"""The allocator, and what is traced of models, beside what an H100's did: ``allocator_h100.json`` says with what."""

import json
from pathlib import Path

import pytest

from devctl.models.files.resolve import resolve
from devctl.models.footprint import Workload, peak_bytes
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.segments import CachingAllocator, Request, load, meet
from devctl.models.tracing.trace import trace_footprint
from tests.boards import models
from tests.marks import slow

MIB = 1 << 20
MEASURED = json.loads((Path(__file__).parent / "allocator_h100.json").read_text())
SEQUENCES = {each["model"]: each for each in MEASURED["sequences"]}
FIGURES = {(model, dtype, job): figures for model, dtype, job, *figures in MEASURED["figures"]}


def requests(events: list[int], first: int) -> list[Request]:
    """The events as requests; the first one above 0 is the request number ``first``."""
    found: list[Request] = []
    for event in events:
        if event > 0:
            found.append((first, event))
            first += 1
        else:
            found.append((-event, 0))
    return found


@pytest.mark.parametrize("name", SEQUENCES)
def test_what_was_asked_for_is_given_and_reserved_as_it_was(name: str) -> None:
    told = SEQUENCES[name]
    allocator = CachingAllocator()
    loading = requests(told["load"], 0)
    for each in (loading, requests(told["run"], sum(1 for _, nbytes in loading if nbytes))):
        allocator._give_back()  # the instrument empties the cache before each
        allocator.most_reserved = allocator.reserved
        meet(allocator, each)
    assert allocator.most_reserved == told["reserved"]
    assert allocator.most_given == told["peak"]


@pytest.mark.parametrize("name", SEQUENCES)
def test_weights_leave_the_hole_that_they_left(name: str) -> None:
    """Threads load them in any order; in another one they leave as much."""
    at_once, _, *weights = SEQUENCES[name]["load"]
    found = load(weights, at_once=at_once)
    assert found == load(sorted(weights), at_once=at_once)
    assert found.nbytes == sum(weights)
    real = CachingAllocator()
    meet(real, requests(SEQUENCES[name]["load"], 0))
    assert (found.given, found.reserved, found.holes) == (real.given, real.reserved, real.holes())


def predicted(name: str, dtype: str, workload: Workload, folder: Path, **settings: int) -> tuple[int, int, int]:
    """The peak with the weights, and what is reserved where memory is not short, and at the least."""
    small = {key: make for family in models.FAMILIES for key, make in models.small(family).items()}
    model_class, config = small[name](**settings)
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    skeleton = read_skeleton(resolve(str(folder)), dtype=dtype)
    found = trace_footprint(skeleton, workload)
    weights = skeleton.tree.index.held[""]
    assert found.most <= peak_bytes(found)
    peak = weights + found.most + found.rounded
    least = peak + found.unallocated
    return peak, least + found.given_back, least


@pytest.mark.parametrize(
    ("name", "context", "positions"),
    [
        ("LlamaForCausalLM", 2049, 0),
        ("PegasusForConditionalGeneration", 2049, 0),
        *slow(
            ("GPT2LMHeadModel", 2049, 0),
            ("CodeGenForCausalLM", 2049, 0),
            ("LlamaForCausalLM", 21499, 131_072),
            ("LlamaForCausalLM", 27325, 131_072),
            ("MixtralForCausalLM", 9299, 131_072),
            ("MixtralForCausalLM", 13028, 131_072),
        ),
    ],
)
def test_peaks_and_reserved_memory_are_those_of_the_board(
    name: str, context: int, positions: int, tmp_path: Path
) -> None:
    """Within half a part in a hundred: what cuBLAS took for itself, 1 MiB for products with a bias, was not traced."""
    settings = {"max_position_embeddings": positions} if positions else {}
    peak, at_ease, least = predicted(name, "bfloat16", Workload(context_length=context), tmp_path, **settings)
    _, measured, reserved = FIGURES[name, "bfloat16", f"{context - 1}+1"]
    assert peak == pytest.approx(measured, rel=0.005)
    if name != "MixtralForCausalLM":  # whose experts other releases of transformers run in another order
        # of the ways in which weights may lie the one that takes most is counted, and another was measured
        assert 0.99 * reserved <= at_ease <= 1.01 * reserved + 24 * 2**20
    assert least <= at_ease
