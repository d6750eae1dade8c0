"""``plan`` turned round: held against a plan for each number of boards."""

import json

import pytest

import devctl
from devctl.inventory.catalogue import boards, find
from devctl.planning.fits_on import MOST, WEIGHTS_ALONE
from tests.conftest import CONFIGS
from tests.marks import slow

LLAMA = CONFIGS / "llama-3.1-8b"
TINY = CONFIGS / "tiny-llama"
KINDS = ["T4", "RTX 3070", "RTX 4060 Ti 8GB", "L4", "A100 40GB", "GTX 1080 Ti", "MI300A", "M4 Pro 24GB", "B60", "11GiB"]


def by_plans(model, board, most, **arguments):
    """The least number of boards with which a plan offloads nothing."""
    fits = (n for n in range(1, most + 1) if devctl.plan(model, f"{n}x{board}", offload=False, **arguments).fits)
    return next(fits, None)


@pytest.mark.parametrize(
    ("kinds", "arguments"),
    [
        (KINDS, {}),
        (KINDS[:4], {"context_length": 8192}),
        *slow(
            (KINDS, {"reserve": "20%"}),
            (KINDS, {"strategy": "optimal"}),
            (KINDS, {"strategy": "balanced_low_0"}),
            (KINDS[4:], {"context_length": 8192}),
            (KINDS[::2], {"context_length": 8192, "batch_size": 8, "strategy": "sequential"}),
            (KINDS[1::2], {"context_length": 32768, "batch_size": 2, "strategy": "optimal", "reserve": "1GiB"}),
            (KINDS[::3], {"context_length": 4096, "overhead": "2GiB"}),
        ),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else f"{len(given)} boards",
)
def test_the_least_number_is_that_of_plans(kinds, arguments):
    model = devctl.open_model(LLAMA)
    found = devctl.fits_on(model, kinds, **arguments)
    assert [fit.board for fit in found.boards] == [find(kind).name if find(kind) else kind for kind in kinds]
    counts = {fit.board: fit.count for fit in found.boards}
    assert counts == {fit.board: by_plans(model, fit.board, fit.most, **arguments) for fit in found.boards}
    assert len(set(counts.values())) > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "context", "kinds"),
    [
        ("llama-3.1-70b", None, ["A100 80GB", "RTX 5090"]),
        ("llama-3.1-70b", 4096, ["H200", "A10G"]),
        ("gemma-2-27b", None, ["H200", "A10G"]),
        ("gemma-2-27b", 4096, ["A100 80GB", "RTX 5090"]),
        ("mixtral-8x7b", None, ["A100 80GB", "A10G"]),
        ("mixtral-8x7b", 4096, ["RTX 5090", "H200"]),
        ("t5-11b", None, ["RTX 5090", "H200"]),
        ("t5-11b", 4096, ["A100 80GB", "A10G"]),
    ],
)
def test_so_it_is_for_larger_models(name, context, kinds):
    model = devctl.open_model(CONFIGS / name)
    for fit in devctl.fits_on(model, kinds, context_length=context).boards:
        assert fit.count == by_plans(model, fit.board, MOST, context_length=context), fit.board


def test_a_device_that_is_named_has_to_be_there():
    model = devctl.open_model(LLAMA)
    limits = {0: "2GiB", 1: "9GiB", 2: "9GiB"}
    (fit,) = devctl.fits_on(model, "T4", max_memory=limits).boards
    assert fit.count == 3
    assert not devctl.plan(model, "3xT4", max_memory={**limits, 1: "1GiB"}, offload=False).fits


def test_the_whole_catalogue():
    found = devctl.fits_on(devctl.open_model(LLAMA), context_length=8192, new_tokens=128)
    assert [fit.board for fit in found.boards] == [board.name for board in boards()]
    assert (found.workload.context_length, found.workload.new_tokens) == (8192, 128)
    by_name = {fit.board: fit for fit in found.boards}
    assert (by_name["H100 SXM"].count, by_name["Jetson Orin Nano 4GB"].count) == (1, None)
    assert by_name["Jetson AGX Orin 64GB"].most == by_name["M4 Max 64GB"].most == 1
    assert by_name["MI300A"].most == MOST
    assert all((fit.count is None) == (fit.fullest is None) for fit in found.boards)
    assert all(0 < fit.fullest <= 1 for fit in found.boards if fit.count)


def test_boards_together_that_have_too_little_are_not_placed(monkeypatch):
    model = devctl.open_model(CONFIGS / "llama-3.1-405b")
    monkeypatch.setattr("devctl.planning.fits_on.place_whole", lambda *_: pytest.fail("it can't hold it"))
    assert [fit.count for fit in devctl.fits_on(model, "T4,A100 80GB").boards] == [None, None]


def test_without_a_workload_it_is_said_that_weights_are_not_all():
    assert WEIGHTS_ALONE in devctl.fits_on(devctl.open_model(TINY), "T4").notes
    assert devctl.fits_on(devctl.open_model(TINY), "L4", context_length=64).notes == ()
    (note,) = devctl.fits_on(devctl.open_model(TINY), "T4", context_length=64).notes
    assert "has no flash attention" in note


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("H2O",), "boards: 'H2O' is no board known here, and no size; did you mean H20?"),
        (("A100",), "boards: 'A100' may be A100 40GB"),
        (("T4,,L4",), "boards: an entry is empty"),
        (("2xT4",), "boards: '2xT4' is 2 of T4: leave out how many"),
    ],
)
def test_what_is_no_board(arguments, said):
    with pytest.raises(devctl.UsageError, match="^" + said):
        devctl.fits_on(TINY, *arguments)


# the command line


def test_a_row_a_board(devctl, monkeypatch):
    done = devctl("plan", LLAMA, "--fits-on", "A2, 24GiB,A2,RTX 3070,T4,M4 16GB", "--context-length", 8192)
    assert done.code == 0, done.err
    head, *rows, run, tail, by_default, _ = done.out.splitlines()
    assert head == "LlamaForCausalLM 15.0 GiB in bfloat16, placed by auto: 8,192 tokens × 1"
    assert [row.split("  ")[0] for row in rows] == ["BOARD", "A2", "24GiB", "RTX 3070", "T4", "M4 16GB"]
    assert rows[1].split()[1] == "2"
    # without flash attention all scores of 8,192 tokens are made, which no number of such boards has room for
    assert "none" in rows[4]
    assert "none" in rows[-1]
    assert run == "run: greedy, attention sdpa"
    assert tail.startswith("LEAST: ")
    assert by_default.startswith("BY DEFAULT: with the gaps")
    monkeypatch.setenv("COLUMNS", "80")
    whole = devctl("plan", LLAMA, "--fits-on", "all")
    assert max(map(len, whole.out.splitlines())) <= 80
    assert f"note: {WEIGHTS_ALONE}" in " ".join(whole.err.split())


def test_the_document_is_what_the_library_says(devctl):
    done = devctl("plan", TINY, "--fits-on", "T4,L4", "--context-length", 64, "--json", "--strategy", "optimal")
    document = json.loads(done.out)
    from devctl import fits_on

    assert document == fits_on(str(TINY), "T4,L4", context_length=64, strategy="optimal").to_document()
    assert [fit["count"] for fit in document["boards"]] == [1, 1]


@pytest.mark.parametrize(
    "option",
    [
        ["--devices", "T4"],
        ["--machine", "box.json"],
        ["--visible", "0"],
        ["--objective", "latency"],
        ["--no-offload"],
        ["--no-disk"],
        ["--max-context"],
        ["--target-context", "64"],
        ["--map", "cpu"],
        ["--compare"],
        ["--what-if"],
        ["--report", "plan.json"],
        ["--explain"],
        ["--svg", "plan.svg"],
        ["--html", "plan.html"],
    ],
    ids=lambda option: option[0],
)
def test_what_changes_nothing_beside_it_is_refused(devctl, option):
    done = devctl("plan", TINY, "--fits-on", "T4", *option)
    assert (done.code, done.out) == (2, "")
    assert f"leave out {option[0]}" in done.err or option[0] in done.err


@pytest.mark.parametrize("value", ["", "H2O", "A100", ","])
def test_what_is_no_board_is_told_before_the_model_is_read(devctl, value):
    done = devctl("plan", "no/such-model", "--fits-on", value)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("devctl: --fits-on: ")
