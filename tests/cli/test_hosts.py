"""`devctl list` and `devctl plan` of hosts that are asked, or that wrote files."""

import json

import pytest

from tests.cli.test_documents import PLAN, holds
from tests.cli.test_plan_over_hosts import TINY, box
from tests.inventory.test_hosts import ssh  # noqa: F401 - a fixture

CLUSTER = "inventory/cluster.schema.json"
INVENTORY = "inventory/schema.json"


def test_files_of_hosts_are_listed_together(devctl, tmp_path):
    machines = ["--machine", box(tmp_path, "a", "2xH100,cpu=1TiB"), "--machine", box(tmp_path, "b", "T4,L4")]
    document = holds(devctl("list", *machines, "--json").out, CLUSTER)
    assert [(h["name"], h["address"], h["error"], h["seconds"]) for h in document["hosts"]] == [
        ("a", None, None, None),
        ("b", None, None, None),
    ]
    holds(json.dumps(document["hosts"][0]["inventory"]), INVENTORY)
    lines = devctl("list", *machines).out.splitlines()
    assert lines[0].split() == ["HOST", "ACCELERATORS", "FREE", "TOTAL", "RAM"]
    assert lines[1].startswith("a     2× ") and lines[1].endswith("1.00 TiB")
    assert lines[2].startswith("b     1× ")


def test_hosts_are_listed_with_why_one_is_silent(devctl, ssh, monkeypatch):  # noqa: F811
    monkeypatch.setenv("COLUMNS", "80")
    done = devctl("list", "--hosts", "a,denied,banner")
    assert done.code == 0
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert "2× 24.0 GiB accelerator" in done.out
    assert "unknown: ssh: denied" in done.out
    assert "note: banner: beside its inventory it wrote 2 lines" in done.out
    document = holds(devctl("list", "--hosts", "a,denied", "--json").out, CLUSTER)
    assert [host["inventory"] is None for host in document["hosts"]] == [False, True]
    assert document["hosts"][1]["error"] == "ssh: denied: Permission denied (publickey)."


def test_what_a_host_says_moves_no_cursor_and_begins_no_command(devctl, ssh):  # noqa: F811
    done = devctl("list", "--hosts", "red,a", "--require-all")
    assert done.code == 3
    assert "\x1b" not in done.out + done.err and "::error" not in done.out + done.err
    assert (
        json.loads(devctl("list", "--hosts", "red,a", "--json").out)["hosts"][0]["error"] == "ssh: \x1b[31m::error::red"
    )


def test_a_silent_host_is_a_no_where_all_are_required_or_none_answers(devctl, ssh):  # noqa: F811
    done = devctl("list", "--hosts", "a,denied", "--require-all", "--json")
    assert done.code == 3
    assert len(holds(done.out, CLUSTER)["hosts"]) == 2
    assert "1 of 2 hosts gave no inventory" in done.err and "denied: ssh: denied" in done.err
    assert "give it with --machine" in done.err
    assert devctl("list", "--hosts", "denied,none").code == 3
    assert devctl("list", "--hosts", "a", "--require-all").code == 0


def test_a_malformed_list_or_file_is_wrong_usage(devctl, tmp_path):
    (tmp_path / "hosts").write_text("a slots=4x\n")
    for wrong in ("a,,b", f"@{tmp_path / 'hosts'}", "-oProxyCommand=id", f"@{tmp_path / 'none'}"):
        done = devctl("list", f"--hosts={wrong}")
        assert (done.code, done.out) == (2, ""), wrong
    (tmp_path / "x.json").write_text("{}")
    assert devctl("list", "--machine", tmp_path / "x.json").code == 2


@pytest.mark.parametrize(
    "options",
    [
        ["--timeout", "5s"],
        ["--require-all"],
        ["--remote-command", "x"],
        ["--hosts", "a", "--machine", "x"],
        ["--hosts", "a", "--watch", "1"],
        ["--hosts", "a", "--benchmark"],
        ["--hosts", "a", "--only", "gpu"],
        ["--machine", "x", "--offload-folder", "/"],
    ],
)
def test_options_that_change_nothing_are_refused(devctl, options):
    done = devctl("list", *options)
    assert (done.code, done.out) == (2, "")
    assert "leave out" in done.err


def test_hosts_are_asked_and_planned_for(devctl, ssh, tmp_path):  # noqa: F811
    document = holds(devctl("plan", TINY, "--hosts", "a,b").out, PLAN)
    assert [stage["host"] for stage in document["stages"]] == ["a", "a", "b", "b"]
    saved = tmp_path / "cluster.json"
    saved.write_text(devctl("list", "--hosts", "a,b", "--json").out)
    assert holds(devctl("plan", TINY, "--hosts", f"@{saved}").out, PLAN) == document
    assert len((ssh / "asked").read_text().splitlines()) == 4


def test_slots_say_how_many_accelerators_may_be_used(devctl, ssh, tmp_path):  # noqa: F811
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=1\nb slots=2\n")
    document = holds(devctl("plan", TINY, "--hosts", f"@{hosts}").out, PLAN)
    assert [(stage["host"], stage["devices"]) for stage in document["stages"]] == [
        ("a", ["cuda:0"]),
        ("b", ["cuda:0"]),
        ("b", ["cuda:1"]),
    ]
    hosts.write_text("a slots=3\n")
    done = devctl("plan", TINY, "--hosts", f"@{hosts}")
    assert done.code == 3
    assert "a has 2 accelerators, and the list of hosts says 3 slots" in done.err


def test_no_plan_is_made_without_a_host_that_was_named(devctl, ssh):  # noqa: F811
    done = devctl("plan", TINY, "--hosts", "a,denied")
    assert (done.code, done.out) == (3, "")
    assert "1 of 2 hosts gave no inventory" in done.err


@pytest.mark.parametrize("options", [["--hosts", "a", "--devices", "H100"], ["--timeout", "5s"], ["--hosts", "a,a"]])
def test_plans_refuse_what_makes_no_sense_of_hosts(devctl, options):
    assert devctl("plan", TINY, *options).code == 2
