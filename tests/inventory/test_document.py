"""The JSON document, against its schema and back."""

import json
from importlib.resources import files

import jsonschema
import pytest

from devctl.inventory.document import from_document, to_document
from devctl.inventory.take import take_inventory
from tests.inventory import boxes
from tests.marks import one_in

SCHEMA = json.loads((files("devctl.inventory") / "schema.json").read_text(encoding="utf-8"))

BOXES = {
    "eight": boxes.eight(),
    "mixed": boxes.mixed(),
    "one lost": boxes.one_lost(),
    "mig": boxes.mig_box(),
    "gb10": boxes.gb10(),
    "zero": boxes.system(),
    "no driver": boxes.system(init=12),
    "driver not loaded": boxes.system(init=9),
    "mismatch": boxes.system(init=18),
}


@pytest.fixture
def document(machine):
    def take(text):
        machine(text)
        return json.loads(json.dumps(to_document(take_inventory(environment={}))))

    return take


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("box", one_in(4, BOXES))
def test_documents_hold_to_the_schema_and_come_back(document, box):
    written = document(BOXES[box])
    jsonschema.validate(written, SCHEMA)
    assert to_document(from_document(written)) == written


def test_the_schema_refuses_what_is_no_inventory(document):
    written = document(BOXES["eight"])
    for change in ({"memory_free": -1}, {"device": "gpu:0"}, {"vendor": "3dfx"}, {"surprise": 1}):
        written["accelerators"][0].update(change)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(written, SCHEMA)
        written = document(BOXES["eight"])


def test_the_keys_are_the_same_whatever_the_hardware(document):
    keys = [
        {(name, key) for name in ("host", "links") for key in written[name]} | {("", key) for key in written}
        for written in map(document, BOXES.values())
    ]
    assert all(found == keys[0] for found in keys)


def change(document, path, value):
    *parents, last = path
    for key in parents:
        document = document[key]
    document[last] = value


@pytest.mark.parametrize(
    ("path", "value", "words"),
    one_in(
        4,
        [
            (("kind",), "devctl.plan", "not an inventory"),
            (("schema",), 2, "schema 2"),
            (("accelerators",), {}, "accelerators is {}, not a list"),
            (("accelerators", 0), 7, r"accelerators\[0\] is 7, not an object"),
            (("accelerators", 0, "memory_free"), "1", r'accelerators\[0\].memory_free is "1", not a whole number'),
            (("accelerators", 0, "memory_free"), True, "not a whole number"),
            (("accelerators", 0, "memory_free"), -1, "not at least 0"),
            (("accelerators", 0, "device"), "tpu:0", "not a Device"),
            (("accelerators", 0, "device"), 0, "not a Device"),
            (("accelerators", 0, "vendor"), "x", "not a Vendor"),
            (("accelerators", 0, "power"), "x", "not a number"),
            (("links", "path", 0, 1), "far", "not a LinkPath"),
            (("host",), None, "host is null, not an object"),
        ],
    ),
)
def test_what_is_wrong_is_said_with_its_place(document, path, value, words):
    written = document(BOXES["eight"])
    change(written, path, value)
    with pytest.raises(ValueError, match=words):
        from_document(written)


@pytest.mark.parametrize("value", [None, [], 7, "x", {}])
def test_what_is_no_document(value):
    with pytest.raises(ValueError, match="not an inventory"):
        from_document(value)


def test_a_missing_key_is_said_and_an_unknown_one_is_left_out(document):
    written = document(BOXES["eight"])
    written["from a later devctl"] = 1
    from_document(written)
    del written["accelerators"][3]["name"]
    with pytest.raises(ValueError, match=r"accelerators\[3\].*name"):
        from_document(written)
