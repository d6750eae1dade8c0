"""GGUF files that somebody made to be read without end, and what is no file at all."""

import json
import os
import struct
import tracemalloc

import pytest

from devctl.errors import ModelError
from devctl.models.gguf.files import read_gguf
from devctl.models.gguf.header import read_header
from tests import gguf_files as files
from tests.marks import one_in
from tests.models.gguf.test_header import BROKEN, made, pair, tensor, text


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_header_ends_in_a_line_or_two(devctl, tmp_path, name):
    parts, said = BROKEN[name]
    done = devctl("plan", made(tmp_path / "x.gguf", **parts), "--devices", "24GiB")
    assert (done.code, done.out) == (4, "")
    assert said in done.err
    assert len(done.err.splitlines()) <= 2


SPARSE = {
    "an array of bytes": [pair(b"k", 9, struct.pack("<IQ", 0, 2**38))],
    "texts of nothing": [pair(b"k", 9, struct.pack("<IQ", 8, 2**33))],
    "one text": [pair(b"k", 8, struct.pack("<Q", 2**38))],
    "arrays of what is kept": [pair(b"%d" % at, 9, struct.pack("<IQ", 10, 1024) + bytes(8192)) for at in range(200)],
    "long keys": [pair(b"%d" % at + b"k" * 1000, 8, text(b"v" * 4000)) for at in range(2000)],
}


@pytest.mark.parametrize("name", SPARSE)
def test_a_file_of_half_a_terabyte_takes_little_memory(tmp_path, name):
    path = made(tmp_path / "x.gguf", keys=SPARSE[name])
    os.truncate(path, 2**39)  # of which no disk holds a byte
    tracemalloc.start()
    try:
        read_header(path)
    except ModelError:
        pass
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 64 * 2**20


def test_as_many_tensors_as_are_read_take_little_memory(tmp_path):
    tensors = [tensor(b"blk.0.%d" % at, (8,), 0, 32 * at) for at in range(20_000)]
    path = made(tmp_path / "x.gguf", tensors=tensors, behind=32 * 20_001)
    tracemalloc.start()
    assert len(read_header(path).tensors) == 20_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_what_is_no_file_is_refused(devctl, tmp_path):
    path = tmp_path / "x.gguf"
    os.mkfifo(path)
    done = devctl("plan", path)
    assert done.code == 4
    assert "it is a pipe, not a file" in done.err
    assert devctl("plan", tmp_path).code == 4


@pytest.mark.parametrize(
    ("content", "said"),
    one_in(
        3,
        [
            (b"", "is no GGUF file: it is empty"),
            (b"<!doctype html>", "is no GGUF file: it begins with b'<!doctyp'"),
            (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS, and not the file itself"),
            (b"GGUF", "is cut off"),
            (b"GGUF\3\0\0\0", "is cut off"),
        ],
    ),
)
def test_what_downloads_leave_behind_is_called_what_it_is(devctl, tmp_path, content, said):
    (tmp_path / "x.gguf").write_bytes(content)
    done = devctl("plan", tmp_path / "x.gguf")
    assert (done.code, done.out) == (4, "")
    assert said in done.err


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path):
    whole = files.write(tmp_path / "m.gguf").read_bytes()
    first = read_header(tmp_path / "m.gguf").first
    for end in [*range(0, first, 997), first, len(whole) - 1]:
        (tmp_path / "cut.gguf").write_bytes(whole[:end])
        with pytest.raises(ModelError):
            read_header(tmp_path / "cut.gguf")


def test_names_that_would_write_to_a_terminal_do_not(devctl, tmp_path):
    evil = "\x1b[31mred\nfake: line\r"
    path = files.write(tmp_path / "m.gguf", evil)
    for options in ([], ["--context-length", "1k"], ["--json"]):
        done = devctl("plan", path, "--devices", "24GiB", *options)
        assert not {"\x1b", "\r"} & set(done.out + done.err)
        assert "\nfake: line" not in done.out + done.err
    given = files.tensors(files.LLAMA) | {f"{evil}.weight": files.tensors(files.LLAMA)["output.weight"]}
    done = devctl("plan", files.write(tmp_path / "n.gguf", given=given), "--devices", "24GiB")
    assert done.code == 0
    assert not {"\x1b", "\r"} & set(done.out + done.err)
    json.loads(done.out)


def test_a_name_alone_makes_no_parts(tmp_path):
    """Only a header does, so that a name like this one is not followed."""
    path = files.write(tmp_path / "m-00001-of-99999.gguf")
    assert read_gguf(path).files == 1


@pytest.mark.parametrize("count", [2, 65_535])
def test_parts_that_a_header_invents_are_missing(devctl, tmp_path, count):
    keys = [
        pair(b"general.architecture", 8, text(b"llama")),
        pair(b"split.count", 2, struct.pack("<H", count)),
        pair(b"split.no", 2, bytes(2)),
    ]
    path = made(tmp_path / f"m-00001-of-{count:05}.gguf", keys=keys, tensors=[tensor(b"blk.0.a")])
    done = devctl("plan", path)
    assert (done.code, done.out) == (4, "")
    assert f"{count - 1} of the {count} parts of" in done.err


def test_numbers_that_no_model_has_end_in_a_line(devctl, tmp_path):
    for at, changes in enumerate(
        (
            {"attention.head_count_kv": 2**32 - 1},
            {"attention.head_count": 0},
            {"embedding_length": 2**32 - 1, "attention.head_count": 1},
            {"context_length": 2**32 - 1},
            {"attention.sliding_window": 2**32 - 1},
        )
    ):
        path = files.write(tmp_path / f"{at}.gguf", "gemma3", files.LLAMA | changes, files.tensors(files.LLAMA))
        done = devctl("plan", path, "--devices", "24GiB,cpu=1GiB", "--context-length", "4M")
        assert done.code in (0, 3, 4), changes
        assert bool(done.out) == (done.code == 0)
