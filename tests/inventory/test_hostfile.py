"""Which hosts lists and hostfiles name."""

import pytest

from devctl.inventory.hostfile import MOST, Address, expand, parse_hostfile, parse_list


def named(hosts):
    return [(host.address, host.slots) for host in hosts]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a", ["a"]),
        ("a,b.example.org, c", ["a", "b.example.org", "c"]),
        ("node[01-04,07],gpu-a", ["node01", "node02", "node03", "node04", "node07", "gpu-a"]),
        ("node[8-11]", ["node8", "node9", "node10", "node11"]),
        ("node[008-010]", ["node008", "node009", "node010"]),
        ("r[1-2]n[1,3]-ib", ["r1n1-ib", "r1n3-ib", "r2n1-ib", "r2n3-ib"]),
    ],
)
def test_lists_are_expanded_as_slurm_does(text, names):
    assert list(expand(text)) == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "an entry is empty"),
        ("a,,b", "an entry is empty"),
        ("a,", "an entry is empty"),
        ("n[1-3", "a bracket that is alone"),
        ("n1-3]", "a bracket that is alone"),
        ("n[[1]]", "a bracket that is alone"),
        ("n[]", "no number and no range"),
        ("n[a-b]", "no number and no range"),
        ("n[3-1]", "is no range"),
        ("n[1-99999999]", f"more than {MOST} hosts"),
        ("a[1-99]b[1-99]", f"more than {MOST} hosts"),
        ("n[1-9999999999999999999999]", "is no range"),
        ("-oProxyCommand=id", "is no name of a host"),
        ("a b", "is no name of a host"),
        ("a;id", "is no name of a host"),
        ("me@-oX", "is no name of a host"),
        ("$(id)", "is no name of a host"),
        ("a/b", "is no name of a host"),
        ("a,a", "a is there twice"),
        ("me@a,you@a", "a is there twice"),
    ],
)
def test_lists_that_name_no_hosts_are_refused(text, said):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        parse_list(text)
    assert said in str(error.value)


def test_users_and_addresses_are_taken():
    assert parse_list("me@a,10.0.0.7,fe80::1") == (
        Address(address="me@a"),
        Address(address="10.0.0.7"),
        Address(address="fe80::1"),
    )
    assert parse_list("me@a")[0].name == "a"


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("# DeepSpeed\nworker-1 slots=4\n\nworker-2 slots=8  # the large one\n", [("worker-1", 4), ("worker-2", 8)]),
        ("a slots = 2 max_slots=4\n", [("a", 2)]),
        ("a:2\nb:4\n", [("a", 2), ("b", 4)]),
        ("a\nb\n", [("a", None), ("b", None)]),
        ("a\nb\na\n", [("a", 2), ("b", None)]),
        ("node[1-2],c\r\n", [("node1", None), ("node2", None), ("c", None)]),
        ("fe80::1\n", [("fe80::1", None)]),
    ],
)
def test_a_hostfile_is_told_by_its_lines(text, hosts):
    assert named(parse_hostfile(text)) == hosts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a slots=4x", "line 1: 'a slots=4x' says '4x' slots"),
        ("a slots=4\nb slots=0", "line 2: 'b slots=0' says '0' slots"),
        ("a slots=-1", "says '-1' slots"),
        ("a slots=", "is neither a host"),
        ("a:0", "says '0' slots"),
        ("a slots=4\nb", "line 1 is host slots=N, and line 2 a host: a hostfile is of one form"),
        ("a:4\nb slots=4", "a hostfile is of one form"),
        ("a slots=4\na slots=4", "a is there twice"),
        ("a 4", "is neither a host"),
        ("# nothing\n\n", "no host in it"),
        ("-x slots=4", "'-x' is no name of a host"),
        ("a\n-o", "line 2: '-o' is no name of a host"),
        ("\x1b[31mred", "line 1"),
    ],
)
def test_a_hostfile_that_is_none_is_refused(text, said):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        parse_hostfile(text)
    assert said in str(error.value)
