"""What a report must not tell."""

import socket

import pytest

from devctl.planning.examining.private import Private, private_here

ALICE = Private(homes=("/home/alice",), users=("alice", "Alice Doe"), hosts=("node17.corp.example", "node17"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/alice/.venv/lib/libtorch.so: undefined symbol", "…/libtorch.so: undefined symbol"),
        ("/home/alice", "~"),
        ("in /home/bob/models", "in ~/models"),
        ("/Users/Bob/x.so is missing", "~/x.so is missing"),
        ("C:\\Users\\bob\\torch.dll", "~\\torch.dll"),
        ("File '/opt/corp secrets/x/y.py'", "File '…/corp secrets/x/y.py'"),
        ("of ALICE on NODE17", "of USER on HOST"),
        ("alice@node17.corp.example", "USER@HOST"),
        ("malice and nodes", "malice and nodes"),
        ("GPU-8d1f8b2c-1111-2222-3333-444444444444 is lost", "GPU-… is lost"),
        ("MIG-GPU-8d1f8b2c-1111-2222-3333-444444444444/1/0", "MIG-…"),
        ("GPU-8d1,GPU-77", "GPU-…,GPU-…"),
        ("uuid 8d1f8b2c-1111-2222-3333-444444444444", "uuid UUID"),
        ("token hf_abcdefghijklmnopqrstuvwxyz", "token TOKEN"),
        ("no route to 10.20.30.40", "no route to ADDRESS"),
        ("may this user read /dev/nvidiactl?", "may this user read /dev/nvidiactl?"),
        ("torch 2.9.0+cu128 and driver 550.54.15", "torch 2.9.0+cu128 and driver 550.54.15"),
        ("read/write and 1/2", "read/write and 1/2"),
        ("", ""),
    ],
)
def test_who_and_where_is_hidden_and_the_rest_stays(text, expected):
    assert ALICE.hide(text) == expected


def test_names_that_tell_nothing_are_left_in_words(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    found = private_here({"USER": "root", "HOME": "/", "LOGNAME": "al", "HOSTNAME": "torch"})
    assert found.hide("root of torch at localhost, al") == "root of torch at localhost, al"


def test_this_machine_and_its_user_are_known(monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-box.lan")
    found = private_here({"USER": "someone", "HOME": "/data/people/someone", "SUDO_USER": "the-boss"})
    assert found.hide("gpu-box, gpu-box.lan, the-boss, /data/people/someone/x") == "HOST, HOST, USER, ~/x"
