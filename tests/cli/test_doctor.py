"""`devctl doctor` as a person and a program see it."""

import json

import jsonschema
import pytest

from devctl.planning import doctor
from devctl.planning.doctor import Examination
from devctl.planning.examining.findings import broken, note, ok
from tests.cli.test_documents import DOCTOR, holds, schema
from tests.inventory import boxes
from tests.planning.test_doctor import answering

FINE = (ok("python", "3.11"), note("completion", "bash has none of devctl", "`devctl completion bash`"))
WRONG = (*FINE, broken("torch", "2.9 \x1b[2J::error::evil is built for the CPU", "install another " + "torch " * 30))


@pytest.fixture
def found(monkeypatch):
    """Sets what is found."""

    def set_(*findings):
        monkeypatch.setattr(doctor, "examine", lambda **_: Examination(findings=findings, versions={"torch": None}))

    return set_


def test_a_line_a_finding_and_exit_code_0_where_nothing_is_broken(devctl, found):
    found(*FINE)
    done = devctl("doctor")
    assert (done.code, done.err) == (0, "")
    assert done.out == "ok      python: 3.11\nnote    completion: bash has none of devctl → `devctl completion bash`\n"


def test_what_is_broken_is_told_with_exit_code_3_and_obeyed_by_no_terminal(devctl, found):
    found(*WRONG)
    done = devctl("doctor")
    assert (done.code, done.err) == (3, "devctl: to be repaired: torch\n")
    assert len(done.out.splitlines()) == 3
    assert done.out.splitlines()[2].startswith("broken  torch: 2.9 ␛[2J")
    assert "\x1b" not in done.out
    assert "::" not in done.out


def test_the_document_says_the_same(devctl, found):
    for findings, code in ((FINE, 0), (WRONG, 3)):
        found(*findings)
        done = devctl("doctor", "--json")
        document = holds(done.out, DOCTOR)
        assert (done.code, document["ok"]) == (code, code == 0)
        assert [each["level"] for each in document["findings"]] == [str(each.level) for each in findings]
        assert document["findings"][0]["next_step"] is None


def test_its_schema_refuses_another_document(devctl, found):
    found(*WRONG)
    document = json.loads(devctl("doctor", "--json").out)
    for key in document:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in document.items() if k != key}, schema(DOCTOR))
    for spoilt in (document | {"surprise": 1}, document | {"schema": 2}, document | {"kind": "devctl.other"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoilt, schema(DOCTOR))


def test_where_a_terminal_looks_lines_are_folded_and_the_next_step_is_beneath(devctl, found, monkeypatch):
    found(*WRONG)
    monkeypatch.setattr("devctl.cli.show.doctor.is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "60")
    lines = devctl("doctor").out.splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[2] == "        → `devctl completion bash`"
    assert sum(line.startswith(("ok ", "note ", "broken ")) for line in lines) == 3


def test_a_time_that_is_none_is_wrong_usage(devctl):
    assert devctl("doctor", "--timeout", "soon").code == 2


def test_an_invented_machine_is_examined_whole(machine, ran, monkeypatch):
    machine(boxes.eight())
    real = doctor.examine
    command = answering(devices={"cuda": 8})
    monkeypatch.setattr(doctor, "examine", lambda **given: real(**given, command=command))
    done = ran("doctor", "--json")
    document = holds(done.out, DOCTOR)
    assert done.code == (0 if document["ok"] else 3), done.err
    assert document["torch"]["architectures"] == ["sm_80", "sm_90"]
    assert document["versions"]["torch"]


@pytest.mark.slow
def test_this_machine_is_examined_whole_with_the_frameworks_that_are_here(ran):
    done = ran("doctor", "--json", "--timeout", "300s")
    document = holds(done.out, DOCTOR)
    assert done.code == (0 if document["ok"] else 3)
    levels = {each["subject"]: each["level"] for each in document["findings"]}
    assert levels["torch"] == levels["transformers"] == levels["accelerate"] == "ok"
    assert document["torch"]["version"]
    assert "torch" not in done.err or not document["ok"]


def test_it_imports_no_framework_itself():
    from tests.test_architecture import HEAVY, modules_after

    found, out = modules_after("doctor", "--json", "--timeout", "0.1s")
    assert json.loads(out)["kind"] == "devctl.doctor"
    assert found.isdisjoint(HEAVY)
