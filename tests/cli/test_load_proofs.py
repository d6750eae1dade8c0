"""``devctl load``'s proofs and figures, as a user sees them."""

import dataclasses
import json
import re
from importlib.resources import files

import jsonschema
import pytest
import torch

from devctl.devices import Device
from devctl.loading import measure, trial
from devctl.loading.proofs.copies import Copied
from devctl.loading.weights import loader
from tests.conftest import CONFIGS
from tests.marks import slow

SCHEMA = json.loads((files("devctl.loading") / "schema.json").read_text(encoding="utf-8"))
TINY = CONFIGS / "tiny-llama"


@pytest.fixture
def spoilt(monkeypatch):
    """Makes the next load spoil the first model that it loads, and not the reference: ``spoilt(change)``."""

    def spoil(change):
        load, models = loader.load, []

        def spoiling(*args, **kwargs):
            model, notes = load(*args, **kwargs)
            if not models:
                models.append(model)
                change(model)
            return model, notes

        monkeypatch.setattr(loader, "load", spoiling)

    return spoil


def hook(name, change):
    return lambda model: model.get_submodule(name).register_forward_hook(lambda _, __, output: change(output)) and None


def facts(done):
    """The report's lines by their first word."""
    return {line.split()[0]: line for line in done.out.splitlines()}


# proofs


def test_every_proof_is_told(devctl, checkpoint):
    done = devctl("load", checkpoint("llama-tied"), "--map", "cpu", "--verify")
    assert done.code == 0, done.err
    told = facts(done)
    assert "pass 1 shared" in told["ties"]
    assert "pass a second forward gave the same bits" in told["repeat"]
    assert "pass 8 blocks and the outputs agree with the CPU, bit by bit" in told["reference"]


def test_a_wrong_block_is_named(devctl, checkpoint, spoilt):
    spoilt(hook("model.layers.2", lambda hidden: hidden + 1))
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--verify")
    assert done.code == 5
    assert "FAIL model.layers.2 is the first wrong block: output by 1" in facts(done)["reference"]
    assert "the proof of its reference fails, first in model.layers.2" in done.err
    spoilt(hook("model.layers.2", lambda hidden: hidden + 1))
    assert devctl("load", checkpoint("llama"), "--map", "cpu").code == 0  # that is what --verify is for


def test_a_reference_that_does_not_fit_in_ram_is_read_from_disk(devctl, checkpoint, spoilt, monkeypatch):
    monkeypatch.setattr(trial, "fits_in_ram", lambda *_: False)
    for model in ([checkpoint("mixtral")], [TINY, "--load-format", "dummy"]):
        done = devctl("load", *model, "--map", "cpu", "--verify", "--json")
        assert done.code == 0, done.err
        assert json.loads(done.out)["verification"]["reference"] == "disk"
    spoilt(hook("model.layers.1", lambda hidden: hidden * 2))
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--verify")
    assert done.code == 5
    assert "model.layers.1 is the first wrong block" in facts(done)["reference"]


def test_a_forward_that_differs_each_time(devctl, checkpoint, spoilt):
    numbers = iter(range(1000))
    spoilt(hook("model.layers.0", lambda hidden: hidden + next(numbers)))
    done = devctl("load", checkpoint("llama"), "--map", "cpu")
    assert done.code == 5
    assert "FAIL a second forward differs, which it should not" in facts(done)["repeat"]
    assert facts(done)["repeat"].endswith("first in model.layers.0")


def test_a_broken_tie(devctl, checkpoint, spoilt):
    def untie(model):
        model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())

    spoilt(untie)
    done = devctl("load", checkpoint("llama-tied"), "--map", "cpu")
    assert done.code == 5
    assert "FAIL 1 no longer one tensor: lm_head.weight = model.embed_tokens.weight" in facts(done)["ties"]
    assert "the proof of its ties fails, first in lm_head" in done.err


def test_accelerators_that_change_bytes(devctl, checkpoint, monkeypatch):
    wrong = Copied(source=Device.gpu(0), target=Device.gpu(1), nbytes=2**20, changed=12)
    monkeypatch.setattr(trial, "check_copies", lambda _: (wrong,))
    done = devctl("load", checkpoint("llama"), "--map", "cpu")
    assert done.code == 5
    assert "FAIL cuda:0 → cuda:1 changed 12 of 1048576 bytes" in facts(done)["copies"]


# figures


def test_repeats(devctl, checkpoint):
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--repeat", "3", "--warmup", "2")
    assert "3 runs" in facts(done)["forward"]
    assert "tokens/s (" in facts(done)["generate"]


@pytest.mark.parametrize("option", [("--repeat", "0"), ("--warmup", "-1"), ("--repeat", "x")])
def test_repeats_that_are_none(devctl, checkpoint, option):
    assert devctl("load", checkpoint("llama"), "--map", "cpu", *option).code == 2


def test_peaks_are_told_where_they_are_known(devctl, checkpoint, monkeypatch):
    monkeypatch.setattr(trial, "host_peak", lambda: None)
    done = devctl("load", checkpoint("llama"), "--map", "cpu")
    assert "memory" not in facts(done)
    assert re.split("  +", facts(done)["DEVICE"]) == [
        *("DEVICE", "PREDICTED", "MEASURED", "PEAK PREDICTED", "PEAK MEASURED", "OFF BY")
    ]
    assert facts(done)["cpu"].split()[-1] == "+0.0%"
    monkeypatch.setattr(torch.autograd, "_enable_profiler_legacy", None)
    done = devctl("load", checkpoint("llama"), "--map", "cpu")
    assert facts(done)["cpu"].split() == ["cpu", "209", "KiB", "209", "KiB", "239", "KiB", "–"]


# the document


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize(
    "arguments",
    [["llama-tied", "--verify"], *slow(["vit"], ["whisper", "--repeat", "2"], ["bert", "--max-memory", "cpu=90KB"])],
)
def test_reports_hold_to_the_schema(devctl, checkpoint, arguments):
    name, *options = arguments
    done = devctl("load", checkpoint(name), *options, "--json")
    assert done.code == 0, done.err
    jsonschema.validate(json.loads(done.out), SCHEMA)


def test_failing_reports_hold_to_the_schema(devctl, checkpoint, spoilt, monkeypatch):
    wrong = Copied(source=Device.gpu(0), target=Device.gpu(1), nbytes=2**20, changed=12)
    monkeypatch.setattr(trial, "check_copies", lambda _: (wrong,))

    def spoil(model):
        hook("model.layers.0", lambda hidden: hidden * float("nan"))(model)
        model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.to("meta").detach())
        model.lm_head.forward = lambda hidden: hidden

    spoilt(spoil)
    done = devctl("load", checkpoint("llama"), "--map", "cpu", "--verify", "--json", "--max-new-tokens", "0")
    assert done.code == 5
    report = json.loads(done.out)
    jsonschema.validate(report, SCHEMA)
    assert not report["ok"]
    assert [proof["name"] for proof in report["proofs"] if not proof["passed"]] == [
        "tensors",
        "outputs",
        "copies",
        "reference",
    ]


def test_the_schema_has_every_field():
    from devctl.loading.proofs import compare, copies, places, reference, verdict
    from devctl.loading.run import generating, smoke, timing

    modules = (compare, copies, generating, measure, places, smoke, timing, verdict, reference)
    named = {name: getattr(module, name) for module in modules for name in SCHEMA["$defs"] if hasattr(module, name)}
    assert named.keys() == SCHEMA["$defs"].keys()
    described = {"LoadReport": SCHEMA, **SCHEMA["$defs"]}
    for name, kind in {**named, "LoadReport": measure.LoadReport}.items():
        if not dataclasses.is_dataclass(kind):
            assert described[name]["enum"] == [member.value for member in kind]
            continue
        fields = {field.name for field in dataclasses.fields(kind)}
        assert described[name]["properties"].keys() - {"schema", "kind"} == fields, name
        assert set(described[name]["required"]) - {"schema", "kind"} == fields, name
        assert described[name]["additionalProperties"] is False
