"""Headers, held against what the format's own package reads of the same file."""

import struct

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as T
from hypothesis import given
from hypothesis import strategies as st

from devctl.errors import ModelError
from devctl.models.gguf import header as headers
from devctl.models.gguf.header import is_gguf, read_header
from devctl.models.gguf.types import FILE_TYPES, TYPES
from tests import gguf_files as files
from tests.marks import one_in


def test_the_types_are_those_of_the_package():
    assert {number: (kind.elements, kind.nbytes) for number, kind in TYPES.items()} == {
        int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()
    }
    assert all(T(number).name == kind.name for number, kind in TYPES.items())


def test_file_types_are_those_of_the_package():
    known = {int(kind): kind.name for kind in gguf.LlamaFileType if kind is not gguf.LlamaFileType.GUESSED}
    assert {number: f"MOSTLY_{name}" if number else f"ALL_{name}" for number, name in FILE_TYPES.items()} == known


def same_as_the_package(path):
    """The header at ``path``, once it was held against what the package reads."""
    found, reader = read_header(path), gguf.GGUFReader(path)
    assert [(t.name, t.kind, t.shape, t.nbytes, found.first + t.start) for t in found.tensors] == [
        (t.name, t.tensor_type.name, tuple(map(int, t.shape)), t.n_bytes, t.data_offset) for t in reader.tensors
    ]
    for key, value in found.metadata.items():
        told = reader.fields[key].contents()
        assert (list(value) if isinstance(value, tuple) else value) == pytest.approx(told), key
    return found


@pytest.mark.parametrize("kind", one_in(7, sorted(gguf.GGML_QUANT_SIZES)), ids=lambda kind: T(kind).name)
def test_every_type_takes_what_the_package_says(tmp_path, kind):
    data = files.stored(T(kind), 3, 512) if T(kind) not in SCALARS else np.zeros((3, 512), SCALARS[T(kind)])
    path = files.write(tmp_path / "x.gguf", given={"a": (T(kind), data), "b.weight": (T.F32, files.stored(T.F32, 5))})
    found = same_as_the_package(path)
    assert found.tensors[0].nbytes == data.nbytes
    assert found.tensors[0].kind == T(kind).name


SCALARS = {T.I8: np.int8, T.I16: np.int16, T.I32: np.int32, T.I64: np.int64, T.F64: np.float64}


@pytest.mark.parametrize(
    ("architecture", "keys", "experts"),
    [
        ("llama", files.LLAMA, 0),
        ("qwen2moe", files.MOE, 4),
        ("qwen3moe", files.MOE, 4),
        ("gemma3", files.GEMMA3, 0),
        ("deepseek2", files.DEEPSEEK2, 4),
    ],
)
@pytest.mark.parametrize("kind", one_in(4, [T.Q4_K, T.Q8_0, T.IQ4_XS, T.BF16]))
def test_models_take_what_the_package_says(tmp_path, architecture, keys, experts, kind):
    path = files.write(tmp_path / "x.gguf", architecture, keys, files.tensors(keys, kind, experts=experts))
    found = same_as_the_package(path)
    assert found.metadata["general.architecture"] == architecture
    assert found.metadata[f"{architecture}.block_count"] == keys["block_count"]
    assert found.version == 3


def test_metadata_keeps_what_says_something_of_sizes(tmp_path):
    keys = files.LLAMA | {"flag": True, "share": 0.5, "by_layer": [1, 2, 3, 4], "flags": [True, False]}
    found = same_as_the_package(files.write(tmp_path / "x.gguf", keys=keys))
    assert found.metadata["llama.flag"] is True
    assert found.metadata["llama.share"] == 0.5
    assert found.metadata["llama.by_layer"] == (1, 2, 3, 4)
    assert found.metadata["llama.flags"] == (True, False)
    assert not {"tokenizer.ggml.tokens", "tokenizer.chat_template"} & set(found.metadata)


def test_a_vocabulary_larger_than_what_is_read_at_once_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "_WINDOW", 64)
    same_as_the_package(files.write(tmp_path / "x.gguf"))


def test_other_alignments_are_read(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_custom_alignment(256)
    for name in ("a", "b"):
        writer.add_tensor(name, np.zeros(33, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert [tensor.start for tensor in same_as_the_package(tmp_path / "x.gguf").tensors] == [0, 256]


def test_whether_a_file_is_one(tmp_path):
    (tmp_path / "no").write_bytes(b"GGU")
    assert is_gguf(files.write(tmp_path / "x.gguf"))
    assert not is_gguf(tmp_path / "no")


# Files that are none, or broken


def text(value):
    return struct.pack("<Q", len(value)) + value


def pair(key, kind, value):
    return text(key) + struct.pack("<I", kind) + value


def tensor(name=b"a", shape=(32,), kind=0, start=0):
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, start)


def made(path, *, magic=b"GGUF", version=3, keys=(), tensors=(), counts=None, behind=4096):
    """A file of these parts, and zeros behind them."""
    tensor_count, key_count = counts or (len(tensors), len(keys))
    begin = magic + struct.pack("<IQQ", version, tensor_count, key_count)
    path.write_bytes(begin + b"".join(keys) + b"".join(tensors) + bytes(behind))
    return path


HUGE = 2**62
ONE = pair(b"general.architecture", 8, text(b"llama"))
BROKEN = {
    "no magic": ({"magic": b"GGML"}, "is no GGUF file: it begins with"),
    "version 1": ({"version": 1}, "is of version 1 of GGUF, which llama.cpp reads no more"),
    "version 4": ({"version": 4}, "is of version 4 of GGUF; llama.cpp b11434 reads 2 and 3"),
    "big-endian": ({"version": 3 << 24}, "is big-endian"),
    "tensors without end": ({"counts": (2**63, 0)}, "tensors, and 20,000 are the most"),
    "keys without end": ({"counts": (0, 2**64 - 1)}, "keys, and 10,000 are the most"),
    "more tensors than bytes": ({"counts": (9000, 0)}, "is cut off: it has"),
    "more keys than bytes": ({"counts": (0, 9000)}, "is cut off: it has"),
    "a key without end": ({"keys": [struct.pack("<Q", HUGE)]}, "is cut off"),
    "a long key": ({"keys": [pair(b"k" * 2000, 0, b"\0")]}, "a key of more than 1024 bytes"),
    "a text without end": ({"keys": [pair(b"k", 8, struct.pack("<Q", HUGE))]}, "is cut off"),
    "an array without end": ({"keys": [pair(b"k", 9, struct.pack("<IQ", 4, HUGE))]}, "is cut off"),
    "texts without end": ({"keys": [pair(b"k", 9, struct.pack("<IQ", 8, HUGE))]}, "have more than 2,000,000 strings"),
    "more texts than bytes": ({"keys": [pair(b"k", 9, struct.pack("<IQ", 8, 10**6))]}, "is cut off"),
    "an array of arrays": ({"keys": [pair(b"k", 9, struct.pack("<IQ", 9, 1))]}, "'k' is an array of arrays"),
    "an array of nothing": ({"keys": [pair(b"k", 9, struct.pack("<IQ", 13, 1))]}, "an array of type 13, which is none"),
    "a value of nothing": ({"keys": [pair(b"k", 99, b"")]}, "the value of 'k' is of type 99, which is none"),
    "a key twice": ({"keys": [pair(b"k", 0, b"\1")] * 2}, "it has the key 'k' twice"),
    "alignment 3": ({"keys": [pair(b"general.alignment", 4, struct.pack("<I", 3))]}, "no power of two"),
    "alignment 0": ({"keys": [pair(b"general.alignment", 4, bytes(4))]}, "no power of two"),
    "alignment of text": ({"keys": [pair(b"general.alignment", 8, text(b"x"))]}, "no power of two"),
    "five dimensions": ({"tensors": [tensor(shape=(1,) * 5)]}, "'a' has 5 dimensions, and 4 are the most"),
    "dimensions without end": (
        {"tensors": [text(b"a") + struct.pack("<I", 2**32 - 1)]},
        "'a' has 4,294,967,295 dimensions",
    ),
    "a size without end": ({"tensors": [tensor(shape=(2**63,))]}, "'a' is larger than any tensor"),
    "sizes without end": ({"tensors": [tensor(shape=(2**62,) * 4)]}, "'a' is larger than any tensor"),
    "nothing, of a size without end": ({"tensors": [tensor(shape=(2**64 - 1, 0))]}, "'a' is larger than any tensor"),
    "a tensor without name": ({"tensors": [struct.pack("<Q", HUGE)]}, "is cut off"),
    "a long name": ({"tensors": [tensor(b"n" * 64)]}, "a tensor's name of more than 63 bytes"),
    "a type that was removed": ({"tensors": [tensor(kind=4)]}, "has a tensor 'a' of type 4, whose size is not known"),
    "a type of the future": ({"tensors": [tensor(kind=1000)]}, "has a tensor 'a' of type 1000"),
    "a part of a block": ({"tensors": [tensor(shape=(33,), kind=8)]}, "has 33 elements, no whole blocks of Q8_0"),
    "a tensor twice": ({"tensors": [tensor(), tensor(start=128)]}, "it has two tensors 'a'"),
    "tensors over each other": (
        {"tensors": [tensor(), tensor(b"b", start=64)]},
        "'b' begins at 64, within another tensor: 128 is expected",
    ),
    "a gap": ({"tensors": [tensor(), tensor(b"b", start=256)]}, "'b' begins at 256, behind a gap: 128 is expected"),
    "an offset without end": ({"tensors": [tensor(start=2**64 - 1)]}, "'a' begins at 18,446,744,073,709,551,615"),
    "tensors behind the end": ({"tensors": [tensor(shape=(2**40,))]}, "is cut off: it has"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_header_is_refused_in_a_line(tmp_path, name):
    parts, said = BROKEN[name]
    with pytest.raises(ModelError) as caught:
        read_header(made(tmp_path / "x.gguf", **parts))
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300 + len(str(tmp_path))


def test_numbers_in_arrays_are_kept_up_to_a_number(tmp_path):
    array = struct.pack("<IQ", 0, 1024) + bytes(1024)
    keys = [pair(b"%d" % number, 9, array) for number in range(98)]
    with pytest.raises(ModelError, match="its arrays have more than 100,000 numbers"):
        read_header(made(tmp_path / "x.gguf", keys=keys))


def test_a_header_is_not_read_without_end(tmp_path):
    """A file may be longer than any disk where most of it is not there."""
    path = made(tmp_path / "x.gguf", keys=[pair(b"k", 9, struct.pack("<IQ", 0, 2**38))])
    with path.open("r+b") as file:
        file.truncate(2**39)
    with pytest.raises(ModelError, match="it is longer than 134,217,728 bytes"):
        read_header(path)


def test_an_empty_header_is_one(tmp_path):
    assert read_header(made(tmp_path / "x.gguf")).tensors == ()


@given(st.data())
def test_a_header_with_changed_bytes_is_read_or_refused(tmp_path_factory, data):
    """Whatever becomes of its bytes, it is another model or none."""
    path = tmp_path_factory.getbasetemp() / "mutilated.gguf"
    whole = MUTILATED or MUTILATED.append(_small(path)) or MUTILATED
    changed = bytearray(whole[0])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        piece = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), b"\0\0\0\x80"]))
        changed[at : at + len(piece)] = piece
    cut = data.draw(st.integers(0, len(changed)) | st.just(len(changed)))
    path.write_bytes(changed[:cut])
    try:
        found = read_header(path)
    except ModelError as error:
        assert "\n" not in error.message
    else:
        assert found.first + sum(tensor.nbytes for tensor in found.tensors) <= cut


MUTILATED: list[bytes] = []


def _small(path):
    """The bytes of a small file, nearly all of them a header's."""
    keys = [ONE, pair(b"llama.block_count", 4, struct.pack("<I", 1)), pair(b"a", 9, struct.pack("<IQ2I", 4, 2, 1, 2))]
    keys.append(pair(b"tokens", 9, struct.pack("<IQ", 8, 2) + text(b"x") + text(b"yz")))
    tensors = [tensor(b"blk.0.a", (32, 2), 8), tensor(b"token_embd.weight", (4,), 0, 96)]
    return made(path, keys=keys, tensors=tensors, behind=160).read_bytes()
