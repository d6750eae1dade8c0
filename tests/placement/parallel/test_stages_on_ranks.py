"""What each stage holds while it runs, foretold and measured: ranks of transformers' pipeline on the CPU."""

import sys

import pytest

from tests.placement.parallel.on_ranks import ranks

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ranks talk over lo")

RUNS = {
    "the prompt is most": ["llama", "1,3", "512", "2", "8"],
    "the last step is most": ["llama", "3,1", "64", "2", "40"],
    "windows": ["gemma2", "2,2", "512", "1", "8"],
    "experts": ["mixtral", "2,2", "300", "2", "20"],
    "latent attention": ["deepseek-v3", "1,3", "300", "1", "20"],
}


@pytest.mark.slow
@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_a_stage_holds_beside_its_weights_what_its_rank_does(arguments):
    found = ranks(*arguments)
    assert len(found) == 2
    for rank in found:
        # what is received counts on the first stage too, which matters where it has one layer
        assert 0.999 <= rank["predicted"] / rank["measured"] <= 1.1, found
