"""The documents that commands print, held against the schemas that lie beside the code that writes them."""

import json
from pathlib import Path

import jsonschema
import pytest

import devctl as package
from tests.conftest import CONFIGS
from tests.inventory import boxes
from tests.marks import one_in, slow

ROOT = Path(package.__file__).parent
TINY = CONFIGS / "tiny-llama"
SCHEMAS = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*schema.json"))
PLAN = "placement/schema.json"
COMPARISON = "placement/comparison.schema.json"
WHAT_IF = "placement/what_if.schema.json"
CHECK = "inventory/check.schema.json"
FITS_ON = "planning/fits_on.schema.json"
CLUSTER = "inventory/cluster.schema.json"
EXPORT = "export/export.schema.json"
DOCTOR = "planning/doctor.schema.json"
PIPELINE = "planning/pipeline.schema.json"


def schema(name):
    return json.loads((ROOT / name).read_text(encoding="utf-8"))


def holds(text, name):
    document = json.loads(text)
    jsonschema.validate(document, schema(name))
    return document


def objects(part):
    """Every part of a schema that is of an object with known keys."""
    if isinstance(part, dict):
        if part.get("type") == "object" and "properties" in part:
            yield part
        for each in part.values():
            yield from objects(each)
    elif isinstance(part, list):
        for each in part:
            yield from objects(each)


def test_every_document_has_a_schema():
    others = {
        "inventory/schema.json",
        "inventory/cluster.schema.json",
        "loading/schema.json",
        "distributed/schema.json",
    }
    assert {PLAN, COMPARISON, WHAT_IF, CHECK, FITS_ON, EXPORT, DOCTOR, PIPELINE, *others} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_knows_every_key_and_asks_for_it(name):
    jsonschema.Draft202012Validator.check_schema(schema(name))
    for part in objects(schema(name)):
        assert part["additionalProperties"] is False, part
        # what only some documents have is there together
        assert [*part["required"], *part.get("dependentRequired", {})] == list(part["properties"]), part


PLANS = {
    "cpu": ["--max-memory", "cpu=12MiB"],
    "disk": ["--max-memory", "0=4MiB,cpu=3MiB"],
    "devices": ["--devices", "2x8MiB,cpu=1GiB,disk"],
    "ranks": ["--devices", "2x4GiB", "--tp", "2", "--context-length", "64"],
    "optimal": ["--devices", "2x8MiB,cpu=1GiB", "--strategy", "optimal"],
    "latency": ["--devices", "H100,T4,cpu=1GiB", "--objective", "latency"],
    "dtype": ["--max-memory", "0=4MiB,cpu=12MiB", "--dtype", "float16"],
    "quantised": ["--devices", "H100,cpu=1GiB", "--quantize", "nf4"],
    "workload": ["--devices", "2x1GiB,cpu=1GiB", "--context-length", "64", "--batch-size", "2", "--new-tokens", "3"],
    "kv": ["--devices", "2x1GiB,cpu=1GiB", "--context-length", "64", "--kv-dtype", "float16", "--overhead", "1MiB"],
    "kernels": ["--max-memory", "cpu=1GiB", "--context-length", "64"],
}
LOOKED_FOR = {
    "largest": ["--devices", "1GiB,cpu=1GiB", "--max-context"],
    "target": ["--devices", "1MiB,cpu=1GiB", "--overhead", "0B", "--target-context", "64"],
}


def hold_a_plan(done, report, options):
    assert done.code == 0, done.err
    document = holds(done.out, PLAN)
    assert json.loads(report.read_text()) == document
    assert bool(document["workload"]) == any("context" in option for option in options if option != "--max-context")


@pytest.mark.parametrize("options", one_in(4, PLANS.values()), ids=PLANS)
def test_plans(devctl, tmp_path, options):
    report = tmp_path / "plan.json"
    hold_a_plan(devctl("plan", TINY, *options, "--json", "--report", report), report, options)


@pytest.mark.parametrize("name", ["largest", *slow("target")])
def test_plans_of_what_is_looked_for(devctl, short, tmp_path, name):
    report, options = tmp_path / "plan.json", LOOKED_FOR[name]
    hold_a_plan(devctl("plan", short, *options, "--json", "--report", report), report, options)


def test_a_plan_of_a_given_map(devctl, tmp_path):
    path = tmp_path / "map.json"
    path.write_text('{"model": 0, "lm_head": "cpu"}')
    done = devctl("plan", TINY, "--devices", "1GiB,cpu=1GiB", "--map", path, "--json")
    assert holds(done.out, PLAN)["strategy"] is None


@pytest.mark.parametrize(
    "options",
    [
        ["--devices", "2x8MiB,cpu=1GiB"],
        ["--max-memory", "cpu=12MiB"],
        ["--devices", "8MiB,cpu=1MiB,disk", "--context-length", "64"],
    ],
    ids=["devices", "cpu", "workload"],
)
def test_comparisons(devctl, options):
    done = devctl("plan", TINY, *options, "--compare", "--json")
    assert done.code == 0, done.err
    assert len(holds(done.out, COMPARISON)["plans"]) == 5


@pytest.mark.parametrize("devices", ["100KiB,cpu=100KiB", *slow("16GiB,cpu=1GiB", "cpu=1GiB")])
def test_what_ifs(devctl, short, devices):
    done = devctl("plan", short, "--devices", devices, "--what-if", "--json")
    assert done.code == 0, done.err
    assert {case["fits"] for case in holds(done.out, WHAT_IF)["cases"]}


CHECKS = {
    "met": (["--gpus", "8", "--cuda", "12.4", "--json"], 0, 0),
    "unmet": (["--gpus", "9", "--ram", "900TiB", "--json"], 3, 0),
    "selected": (["--select", "2", "--json"], 0, 2),
    "format": (["--select", "2", "--format", "json"], 0, 2),
    "disk": (["--disk", "/=1B", "--json"], 0, 0),
}


@pytest.mark.parametrize(("options", "code", "selected"), one_in(3, CHECKS.values()), ids=CHECKS)
def test_checks(machine, ran, options, code, selected):
    machine(boxes.eight())
    done = ran("check", *options)
    assert done.code == code, done.err
    document = holds(done.out, CHECK)
    assert (document["ok"], len(document["selected"])) == (code == 0, selected)


def test_a_check_of_a_map(machine, ran, tmp_path):
    machine(boxes.eight())
    (tmp_path / "map.json").write_text('{"": 9}')
    done = ran("check", "--map", tmp_path / "map.json", TINY, "--json")
    assert done.code == 3
    assert not holds(done.out, CHECK)["ok"]


def test_accelerators_are_the_same_in_a_check_and_an_inventory():
    inventory = schema("inventory/schema.json")["$defs"]
    for name, part in schema(CHECK)["$defs"].items():
        assert part == inventory[name]


@pytest.mark.parametrize("name", [PLAN, CHECK, *slow(COMPARISON, WHAT_IF, FITS_ON, EXPORT)])
def test_a_schema_refuses_another_document(machine, ran, short, tmp_path, name):
    machine(boxes.eight())
    (tmp_path / "map.json").write_text('{"model": 0, "lm_head": 0}')
    commands = {
        PLAN: ["plan", TINY, "--max-memory", "cpu=12MiB"],
        COMPARISON: ["plan", TINY, "--max-memory", "cpu=12MiB", "--compare"],
        WHAT_IF: ["plan", short, "--devices", "cpu=1GiB", "--what-if"],
        CHECK: ["check", "--gpus", "1"],
        FITS_ON: ["plan", TINY, "--fits-on", "T4,1MiB,24GiB", "--context-length", "64"],
        EXPORT: ["export", tmp_path / "map.json", "org/model", "--to", "vllm"],
    }
    document = json.loads(ran(*commands[name], "--json").out)
    jsonschema.validate(document, schema(name))
    for spoilt in (document | {"surprise": 1}, document | {"schema": 2}, document | {"kind": "devctl.other"}, {}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, schema(name))
    for key in document:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in document.items() if k != key}, schema(name))
