"""With a limit on two simulated accelerators, a plan for the workload holds where one for the weights runs out.

No claim here rests on a real accelerator.
"""

import pytest

from devctl.placement import Strategy
from tests.loading.conftest import told_by

MODELS = ("llama", "gemma2", "mixtral", "t5", "bart", "bert")


def judge(found):
    """By weights alone memory runs out; by the workload it does not, and each device holds what was predicted."""
    auto, *planned = found
    name = auto["model"]
    assert auto["fits"], f"{name}: by its weights it fits"
    assert auto["offloaded"] == 0
    assert auto["out"] in ("cuda:0", "cuda:1"), name
    assert auto["asked"] > 0
    halfway = [case for case in planned if case["box"] == "halfway"]
    assert sorted(each for case in halfway for each in case["strategies"]) == sorted(Strategy)
    for case in planned:
        title = f"{name}, {case['box']}, {case['strategies']}"
        assert case["fits"], title
        assert case["out"] is None, title
        assert case["same_tokens"], title
        for device, predicted in case["predicted"].items():
            measured = case["measured"][device]
            assert measured <= case["limit"], f"{title}, {device}"
            least = predicted - case["brought"].get(device, 0)
            assert 0.995 * measured <= predicted, f"{title}, {device}: {predicted}, not {measured}"
            assert least <= 1.05 * measured, f"{title}, {device}: {predicted}, not {measured}"
        assert max(case["measured"].values()) > 0.5 * case["limit"], title
    (enough,) = [case for case in planned if case["box"] == "enough"]
    assert enough["offloaded"] == 0
    assert max(enough["measured"].values()) > 0.98 * enough["limit"], f"{name}: with less it would have run out"


@pytest.fixture(scope="module")
def found():
    return told_by("on_box", "--json", *MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_plan_for_the_workload_holds_where_the_weights_alone_run_out(name, found):
    judge([case for case in found if case["model"] == name])
