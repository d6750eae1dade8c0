"""Plans beside the planner of the transformers that is installed."""

import json
from importlib.metadata import version

import pytest
import transformers.integrations.accelerate as planner

from devctl.models import compared
from tests.conftest import CONFIGS
from tests.marks import one_in

TINY = CONFIGS / "tiny-llama"
NOTE = f"transformers {version('transformers')} plans this otherwise than devctl's transcription: its map is used"
MEMORY = "0=12MiB,1=12MiB,cpu=1GiB"


@pytest.fixture
def plan(devctl, tmp_path, monkeypatch):
    """Plans the tiny model, with a cache of its own; what is printed and the notes."""
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "cache"))

    def run(*more):
        report = tmp_path / "report.json"
        done = devctl("plan", TINY, "--max-memory", MEMORY, "--report", report, *more)
        assert done.code == 0, done.err
        return done.out, report.read_text()

    return run


@pytest.fixture
def unknown(monkeypatch):
    """The installed planner is one that devctl's tests do not compare."""
    monkeypatch.setattr(compared, "KNOWN_PLANNERS", frozenset())


@pytest.fixture
def otherwise(monkeypatch):
    """It does not balance."""
    monkeypatch.setattr(planner, "get_balanced_memory", lambda model, max_memory, **_: dict(max_memory))


@pytest.fixture
def asked(monkeypatch):
    """How often it was asked."""
    from devctl.models import upstream

    questions = []
    ask = upstream.ask
    monkeypatch.setattr(upstream, "ask", lambda *question: questions.append(question) or ask(*question))
    return questions


def test_a_known_planner_is_asked_by_the_first_plan_alone(plan, asked):
    first = plan()
    assert asked
    asked.clear()
    assert plan() == first
    assert not asked


def test_an_unknown_planner_is_compared_by_the_first_plan(plan, unknown, asked):
    first = plan()
    assert len(asked) > 10
    asked.clear()
    assert plan() == first
    assert not asked


@pytest.mark.usefixtures("otherwise")
@pytest.mark.parametrize("known", one_in(2, [True, False]))
def test_a_planner_that_plans_otherwise_is_asked_each_time(plan, asked, known, request):
    if not known:
        request.getfixturevalue("unknown")
    first = plan()
    assert NOTE in json.loads(first[1])["notes"]
    asked.clear()
    assert plan() == first
    assert len(asked) == 1
    assert plan("--strategy", "sequential")[0] == first[0], "as it does not balance"


def test_a_load_is_planned_by_the_installed_planner(devctl, monkeypatch):
    monkeypatch.setattr(planner, "_get_device_map", lambda *_: {"": "cpu"})
    done = devctl("load", TINY, "--load-format", "dummy", "--max-memory", "cpu=12MiB", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["device_map"] == {"": "cpu"}


def test_of_a_workload_the_map_of_weights_alone_is_asked_for(plan, asked, unknown):
    plan("--no-cache", "--context-length", "16")
    assert len(asked) == 1
