"""``devctl load --baseline``: this load's figures beside those of an earlier one."""

import copy
import json

import pytest

from devctl.errors import UsageError
from devctl.loading.baseline import Figure, Unit, parse_tolerance, regressions
from tests.marks import one_in

GENEROUS = ("--tolerance", "100000%")


@pytest.fixture(scope="module")
def reports():
    """What loads of models reported, by name."""
    return {}


@pytest.fixture
def report(devctl, checkpoint, reports, tmp_path):
    """Writes a report of a load, changed: ``report("llama", lambda document: …)`` is its path."""

    def write(name, change=lambda _: None):
        if name not in reports:
            reports[name] = devctl("load", checkpoint(name), "--map", "cpu", "--json").out
        document = json.loads(reports[name])
        change(document)
        (tmp_path / "old.json").write_text(json.dumps(document))
        return tmp_path / "old.json"

    return write


def put(path, value):
    """Changes what is at a path of keys."""

    def change(document):
        *parents, last = path
        for key in parents:
            document = document[key]
        document[last] = value

    return change


@pytest.mark.parametrize("name", ["llama", "vit"])
def test_the_same_load_again(devctl, checkpoint, report, name):
    done = devctl("load", checkpoint(name), "--map", "cpu", "--baseline", report(name), *GENEROUS)
    assert done.code == 0, done.err
    assert "worse than in" in done.err
    assert f"none of {6 if name == 'llama' else 5} figures" in done.err


@pytest.mark.parametrize(
    ("path", "value", "said"),
    one_in(
        3,
        [
            (["load_seconds"], 1e-9, "load: 1e-06 ms then, "),
            (["smoke", "generated", "first_token_seconds", "median"], 1e-9, "first token: 1e-06 ms then, "),
            (["smoke", "generated", "decode_tokens_per_second", "median"], 1e9, "decode: 1e+09 tokens/s then, "),
            (["host_peak"], 2**20, "host peak: 1.00 MiB then, "),
            (["devices", 0, "measured"], 2**10, "cpu weights: 1.00 KiB then, 209 KiB now, +20816%"),
            (["devices", 0, "measured"], 0, "cpu weights: 0 B then, 209 KiB now, from nothing"),
        ],
    ),
)
def test_a_figure_that_is_worse(devctl, checkpoint, report, path, value, said):
    tolerance = "99.9%" if "decode" in said else "1000%"

    def change(document):
        for other in (["load_seconds"], ["smoke", "generated", "first_token_seconds", "median"]):
            put(other, 1e9)(document)  # whatever the machine does at this moment, only one figure is worse
        put(path, value)(document)

    old = report("llama", change)
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--baseline", old, "--tolerance", tolerance, "--json")
    assert done.code == 3, done.err
    assert json.loads(done.out)["ok"]
    lines = done.err.splitlines()
    assert lines[0] == f"devctl: 1 figure is worse than in {old} by more than {tolerance}"
    assert lines[1].startswith(f"  - {said}")
    assert len(lines) == 3


def test_worse_and_better():
    def figures(seconds, rate, size):
        return (
            Figure(name="load", value=seconds, unit=Unit.SECONDS),
            Figure(name="decode", value=rate, unit=Unit.RATE),
            Figure(name="host peak", value=size, unit=Unit.BYTES),
        )

    then = figures(1.0, 100.0, 2**30)
    assert regressions(then, figures(1.1, 90.0, 2**30 * 1.1), 0.1001) == ()
    assert regressions(then, figures(0.1, 1000.0, 1), 0) == ()
    assert regressions(then, figures(1.5, 80.0, 2**31), 0.1) == (
        "load: 1 s then, 1.5 s now, +50%",
        "decode: 100 tokens/s then, 80 tokens/s now, -20%",
        "host peak: 1.00 GiB then, 2.00 GiB now, +100%",
    )
    assert regressions(then[:1], then, 0) == ()  # what was not known then is no regression


def test_a_failed_proof_comes_before_a_regression(devctl, checkpoint, report, monkeypatch):
    from devctl.loading import trial
    from devctl.loading.proofs.places import Ties

    old = report("llama", put(["load_seconds"], 1e-9))
    monkeypatch.setattr(trial, "find_ties", lambda *_: Ties(shared=0, copied=(), untied=("a = b",)))
    assert devctl("load", checkpoint("llama"), "--map", "cpu", "--baseline", old).code == 5


@pytest.mark.parametrize(
    ("change", "said"),
    one_in(
        4,
        [
            (put(["model"], "/elsewhere/gpt9"), "is of another model: gpt9, and this is llama"),
            (put(["model_class"], "X"), "is of another model class: X, and this is LlamaForCausalLM"),
            (put(["dtype"], "bfloat16"), "is of another dtype: bfloat16, and this is float32"),
            (put(["load_format"], "dummy"), "is of another load format: dummy, and this is auto"),
            (put(["max_new_tokens"], 9), "is of another max new tokens: 9, and this is 8"),
            (put(["device_map"], {"": 0}), "is of another map: the whole model on 0, and here on cpu"),
            (put(["device_map"], {"": "cpu", "lm_head": 1}), "map: lm_head on 1, and here on nowhere of its own"),
            (put(["smoke", "inputs", 0, "shape"], [1, 99]), "is of other inputs: input_ids 1×99, and here 1×16"),
            (put(["smoke", "inputs"], []), "is of other inputs: input_ids no such input, and here 1×16"),
        ],
    ),
)
def test_a_baseline_of_something_else_is_told_before_loading(devctl, checkpoint, report, monkeypatch, change, said):
    from devctl.loading.weights import loader

    old = report("llama", change)
    monkeypatch.setattr(loader, "load", lambda *_, **__: pytest.fail("it was loaded"))
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--baseline", old)
    assert done.code == 2
    assert said in done.err
    assert done.out == ""


def test_the_same_model_in_another_folder(devctl, checkpoint, report):
    old = report("llama", put(["model"], "/elsewhere/llama"))
    assert devctl("load", checkpoint("llama"), "--map", "cpu", "--baseline", old, *GENEROUS).code == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("{", "is broken JSON"),
        ("[" * 100_000, "is broken JSON"),
        ("[]", "is no report of `devctl load --json`"),
        ('{"": "cpu"}', "is no report of `devctl load --json`"),
        ('{"kind": "devctl.inventory", "schema": 1}', "is no report of `devctl load --json`"),
        ('{"kind": "devctl.load", "schema": 99}', "is a report of schema 99"),
        ('{"kind": "devctl.load", "schema": 1}', "it has no 'smoke'"),
        (None, "cannot read the baseline"),
    ],
)
def test_baselines_that_are_none(devctl, checkpoint, tmp_path, text, said):
    if text is not None:
        (tmp_path / "old.json").write_text(text)
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--baseline", tmp_path / "old.json")
    assert done.code == 2
    assert said in done.err
    assert len(done.err.splitlines()) <= 2


def test_every_key_of_a_broken_report(devctl, checkpoint, report, tmp_path):
    whole = json.loads(report("llama").read_text())
    paths = [
        ["load_seconds"],
        ["host_peak"],
        ["devices"],
        ["devices", 0],
        ["devices", 0, "measured"],
        ["device_map"],
        ["smoke"],
        ["smoke", "inputs"],
        ["smoke", "inputs", 0],
        ["smoke", "generated"],
        ["smoke", "generated", "first_token_seconds"],
        ["max_new_tokens"],
    ]
    for path in paths:
        for value in ("x", -1, True, [5], float("inf")):
            document = copy.deepcopy(whole)
            put(path, value)(document)
            if path[-1] == "max_new_tokens" and value in (True, -1):
                continue  # a number of tokens, and another one
            (tmp_path / "old.json").write_text(json.dumps(document))
            done = devctl("load", checkpoint("llama"), "--map", "cpu", "--baseline", tmp_path / "old.json")
            assert done.code == 2, (path, value, done.err)
            assert "broken report" in done.err, (path, value, done.err)


@pytest.mark.parametrize(
    ("text", "share"), [("10%", 0.1), ("0.1", 0.1), ("0", 0), ("250%", 2.5), ("x", None), ("-1%", None), ("nan", None)]
)
def test_tolerances(text, share):
    if share is None:
        with pytest.raises(UsageError, match="is no share"):
            parse_tolerance(text)
    else:
        assert parse_tolerance(text) == pytest.approx(share)


def test_a_tolerance_needs_a_baseline(devctl, checkpoint):
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--tolerance", "5%")
    assert done.code == 2
    assert "--tolerance is for a --baseline" in done.err
