"""Hosts that are asked by a stand-in for ssh: what they answer, and every way in which they don't."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from devctl.errors import UsageError
from devctl.inventory.document import to_document
from devctl.inventory.hostfile import Address, parse_list
from devctl.inventory.hosts import HostFound, ask, from_cluster, parse_answer, together
from devctl.inventory.hypothetical import parse_devices
from devctl.inventory.named_hosts import cluster_of, parse_timeout

pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="the stand-in is a shell script")

ANSWER = json.dumps(to_document(parse_devices("2x24GiB,cpu=64GiB")), indent=2)

SSH = """#!/bin/sh
echo "$@" >> "{folder}/asked"
# -o BatchMode=yes -o ConnectTimeout=T HOST COMMAND
case "$5" in
  banner*) echo "Welcome to {{the}} cluster"; echo; cat "{folder}/answer"; echo bye ;;
  denied) echo "Warning: Permanently added" >&2; echo "denied: Permission denied (publickey)." >&2; exit 255 ;;
  away) echo "ssh: Could not resolve hostname away: Name or service not known" >&2; exit 255 ;;
  none) echo "sh: 1: devctl: not found" >&2; exit 127 ;;
  broken) echo "Traceback" >&2; echo "ImportError: no numpy" >&2; exit 1 ;;
  quiet) exit 3 ;;
  garbage) echo "{{no json"; echo "at all" ;;
  empty) ;;
  red) printf '\\033[31m::error::red\\n' >&2; exit 255 ;;
  newer) sed 's/"schema": 1/"schema": 2/' "{folder}/answer" ;;
  other) echo '{{"kind": "devctl.plan", "schema": 1}}' ;;
  slow) echo "$$" > "{folder}/pid"; sleep 300 & echo "$!" > "{folder}/child"; wait ;;
  stays) cat "{folder}/answer"; sleep 300 & echo "$!" > "{folder}/left" ;;
  flood) while :; do cat "{folder}/answer"; done ;;
  *) cat "{folder}/answer" ;;
esac
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """A folder with what the stand-in was asked, and answers."""
    folder = tmp_path / "ssh"
    folder.mkdir()
    (folder / "answer").write_text(ANSWER)
    script = folder / "ssh"
    script.write_text(SSH.format(folder=folder))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    yield folder
    for name in ("left", "child"):
        if (folder / name).exists():
            end(int((folder / name).read_text()))


def end(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def is_there(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def errors(*names, **options):
    found = ask(parse_list(",".join(names)), **options)
    return {host.name: host.error for host in found.hosts}


def test_hosts_are_asked_for_their_inventory(ssh):
    found = ask(parse_list("me@a,b"), timeout=30)
    assert [(h.name, h.address, h.error) for h in found.hosts] == [("a", "me@a", None), ("b", "b", None)]
    assert all(h.inventory == parse_devices("2x24GiB,cpu=64GiB") and h.seconds is not None for h in found.hosts)
    assert sorted((ssh / "asked").read_text().splitlines()) == [
        "-o BatchMode=yes -o ConnectTimeout=30 b devctl list --json",
        "-o BatchMode=yes -o ConnectTimeout=30 me@a devctl list --json",
    ]


def test_another_command_may_be_run(ssh):
    ask(parse_list("a"), remote="/opt/env/bin/devctl list --json")
    assert (ssh / "asked").read_text().endswith("a /opt/env/bin/devctl list --json\n")


def test_a_host_that_fails_is_told_and_the_others_are_there(ssh):
    said = errors("a", "denied", "away", "none", "broken", "quiet", "garbage", "empty", "newer", "other")
    assert said == {
        "a": None,
        "denied": "ssh: denied: Permission denied (publickey).",
        "away": "ssh: Could not resolve hostname away: Name or service not known",
        "none": "there is no devctl in its PATH (sh: 1: devctl: not found): say where with --remote-command",
        "broken": "'devctl list --json' ended with 1: ImportError: no numpy",
        "quiet": "'devctl list --json' ended with 3: without a word",
        "garbage": "it answered without an inventory: '{no json'",
        "empty": "it answered nothing",
        "newer": "its inventory can't be read: an inventory of schema 2; this devctl reads schema 1",
        "other": 'its inventory can\'t be read: not an inventory: "kind" is not "devctl.inventory"',
    }


def test_banners_around_an_inventory_are_left_out_and_told(ssh):
    (host,) = ask(parse_list("banner")).hosts
    assert host.inventory.accelerators == parse_devices("2x24GiB").accelerators
    assert host.inventory.notes == ("beside its inventory it wrote 2 lines, 'Welcome to {the} cluster' first",)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes")
def test_what_is_silent_is_killed_with_its_children_at_the_deadline(ssh):
    assert errors("slow", "a", timeout=2) == {"slow": "no answer within 2 s", "a": None}
    for name in ("pid", "child"):
        pid = int((ssh / name).read_text())
        for _ in range(100):
            if not is_there(pid):
                break
            time.sleep(0.05)
        assert not is_there(pid)


def test_what_ssh_leaves_in_the_background_is_not_waited_for(ssh):
    begun = time.monotonic()
    assert errors("stays", timeout=120) == {"stays": None}
    assert time.monotonic() - begun < 100


@pytest.mark.slow
def test_an_answer_without_end_is_cut_off(ssh):
    assert errors("flood", timeout=120) == {"flood": "answered with more than 16 MiB"}


def test_where_there_is_no_ssh_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert errors("a") == {"a": "ssh can't be started: No such file or directory"}


def test_many_hosts_are_asked(ssh):
    assert set(errors(*(f"n{at}" for at in range(20)), timeout=120).values()) == {None}


def test_one_machine_under_two_names_counts_once():
    there = parse_devices("24GiB")
    gpu = replace(there.accelerators[0], uuid="GPU-1")
    hosts = [HostFound(name=name, inventory=replace(there, accelerators=(gpu,))) for name in "ab"]
    assert [host.error for host in together(hosts).hosts] == [
        None,
        "it is the same machine as a: GPU-1 is in both",
    ]


def test_a_document_of_hosts_is_read_again():
    found = together(
        [
            HostFound(name="a", address="me@a", inventory=parse_devices("24GiB"), seconds=1.5),
            HostFound(name="b", error="no answer"),
        ]
    )
    again = from_cluster(json.loads(json.dumps(found.to_document())))
    assert again.to_document() == {
        **found.to_document(),
        "hosts": [{**host, "seconds": None} for host in found.to_document()["hosts"]],
    }


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"kind": "devctl.inventory"},
        {"kind": "devctl.cluster", "schema": 2, "hosts": []},
        {"kind": "devctl.cluster", "schema": 1, "hosts": []},
        {"kind": "devctl.cluster", "schema": 1, "hosts": [1]},
        {"kind": "devctl.cluster", "schema": 1, "hosts": [{"name": "a"}]},
        {"kind": "devctl.cluster", "schema": 1, "hosts": [{"name": "a", "inventory": {}}]},
    ],
)
def test_what_is_no_document_of_hosts_is_refused(document):
    with pytest.raises(ValueError, match=r"\w"):
        from_cluster(document)


def test_hosts_of_a_file_or_of_slurm_are_asked(ssh, tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("a slots=1\nb slots=2\n")
    assert [(h.name, h.slots) for h in cluster_of(f"@{tmp_path / 'hosts'}").hosts] == [("a", 1), ("b", 2)]
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2],m")
    assert [host.name for host in cluster_of("slurm:").hosts] == ["n1", "n2", "m"]
    assert (ssh / "asked").read_text().count("\n") == 5


def test_a_document_of_hosts_is_taken_without_asking(ssh, tmp_path):
    found = together([HostFound(name="a", inventory=parse_devices("24GiB"))])
    (tmp_path / "cluster.json").write_text(json.dumps(found.to_document()))
    assert cluster_of(f"@{tmp_path / 'cluster.json'}").to_document() == found.to_document()
    assert not (ssh / "asked").exists()
    with pytest.raises(UsageError, match="leave out --timeout"):
        cluster_of(f"@{tmp_path / 'cluster.json'}", timeout="5s")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-oProxyCommand=id", "is no name of a host"),
        ("@/nowhere", "cannot read the hosts in /nowhere"),
        ("slurm:", "SLURM_JOB_NODELIST is not set"),
        ("a slots=4", "is no name of a host"),
    ],
)
def test_what_names_no_hosts_is_refused(ssh, text, said):
    with pytest.raises(UsageError) as error:
        cluster_of(text)
    assert said in error.value.message
    assert not (ssh / "asked").exists()


def test_an_inventory_in_the_place_of_hosts_is_told(tmp_path):
    (tmp_path / "box.json").write_text(ANSWER)
    with pytest.raises(UsageError) as error:
        cluster_of(f"@{tmp_path / 'box.json'}")
    assert "--machine" in error.value.hint


@pytest.mark.parametrize(("text", "seconds"), [("20s", 20), ("5", 5), ("500ms", 0.5), ("2m", 120), ("1h", 3600)])
def test_a_timeout_is_a_time_as_any_other(text, seconds):
    assert parse_timeout(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1s", "2h", "50ms", "nan", "99999999999", "4000s", "5 GiB"])
def test_what_is_no_timeout_is_refused(text):
    with pytest.raises(UsageError, match="--timeout"):
        parse_timeout(text)


def test_an_answer_may_have_braces_before_it():
    assert parse_answer("{\n{x}\n" + ANSWER).accelerators == parse_devices("2x24GiB").accelerators


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes")
def test_ctrl_c_ends_what_was_started(ssh):
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "devctl", "list", "--hosts", "slow", "--timeout", "300s"],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for _ in range(600):
        if (ssh / "child").exists() and (ssh / "child").read_text().strip():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert not is_there(int((ssh / "pid").read_text()))


def test_slots_are_kept_of_a_hostfile(ssh):
    (host,) = ask([Address(address="a", slots=3)]).hosts
    assert host.slots == 3
