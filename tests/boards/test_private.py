"""Nothing that is written tells whose box it is."""

from pathlib import Path

import pytest

from tests.boards.private import Private, of_this_box

WORDS = {"gpu-node-17": "<host>", "alice": "<user>", "/home/alice": "<path>", "hf_abcdefgh": "<secret>"}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("on gpu-node-17.example.org as alice", "on <host> as <user>"),
        ("GPU-NODE-17 failed", "<host> failed"),
        ("malice and alicent are words", "malice and alicent are words"),
        ("cannot open /home/alice/models/x.json: no", "cannot open <path>: no"),
        ("read '/mnt/data/a b'", "read '<path> b'"),
        ("file:/etc/hosts and ~/secret", "file:<path> and <path>"),
        (r"C:\Users\bob\x.py", "<path>"),
        (r"\\server\share\x", "<path>"),
        ("GPU-5a1b2c3d-1111-2222-3333-444455556666 is lost", "<uuid> is lost"),
        ("CUDA_VISIBLE_DEVICES=GPU-5a1b2c3d,MIG-0000", "CUDA_VISIBLE_DEVICES=<uuid>,<uuid>"),
        ("MIG-GPU-5a1b2c3d-1111-2222-3333-444455556666/7/0", "<uuid>"),
        ("rank at 10.0.3.17:29500 or fe80::1:2:3:4", "rank at <address>:29500 or <address>"),
        ("https://hub.corp/x?token=1 refused", "<address> refused"),
        ("write to alice@corp.com", "write to <mail>"),
        ("write to bob@corp.com", "write to <mail>"),
        ("with hf_abcdefgh", "with <secret>"),
        ("02:42:ac:11:00:02", "<address>"),
        ("a\x1b[31mred\nline", "a [31mred line"),
    ],
)
def test_what_is_private_is_told_by_its_kind(text, cleaned):
    assert Private(words=WORDS).clean(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "LlamaForCausalLM, bfloat16, 2048+1",
        "peaks/old-decoders",
        "97.2 tokens/s, 25 GB/s of PCIe 4 x16",
        "0000:19:00.0",
        "550.54.15",
        "torch 2.9.1+cu128",
        "predicted / measured - 1",
        "512 KiB <= 1 MiB",
        r"112 \* 2\*\*20 of '\n'",
    ],
)
def test_what_is_not_private_stays(text):
    assert Private(words=WORDS).clean(text) == text


def test_values_within_values_are_cleaned_and_numbers_stay():
    found = Private(words=WORDS).cleaned({"alice": [1, 2.5, None, True, ("at /srv/x", {"a": "gpu-node-17"})]})
    assert found == {"<user>": [1, 2.5, None, True, ["at <path>", {"a": "<host>"}]]}


def test_names_and_secrets_of_this_box_are_known(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-node-17.corp.example")
    found = of_this_box({"USER": "alice", "HF_TOKEN": "abcdefgh123", "LANG": "C"})
    text = f"gpu-node-17 alice abcdefgh123 {Path.home() / 'x'} C"
    assert found.clean("gpu-node-17.corp.example: no") == "<host>: no"
    assert found.clean(text).split()[:3] == ["<host>", "<user>", "<secret>"]
    assert str(Path.home()) not in found.clean(text)


def test_a_user_who_is_called_like_a_word_hides_none():
    assert of_this_box({"USER": "root"}).words.get("root") is None
    assert of_this_box({"USER": "al"}).words.get("al") is None
