"""The header of a safetensors file: held against the library, and whatever else a file may be."""

import ast
import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

import devctl
from devctl.errors import ModelError
from devctl.models.files import weights
from devctl.models.files.resolve import ModelSource, SourceKind
from devctl.models.files.safetensors import MOST_HEADER, Header, StoredTensor, parse_header, read_header

MIXED = {
    "z": torch.zeros(2, 3, dtype=torch.float32),
    "a": torch.zeros(3, dtype=torch.float16),
    "m": torch.zeros(3, dtype=torch.int64),
    "scalar": torch.zeros((), dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
}


@pytest.fixture
def mixed(tmp_path):
    save_file(MIXED, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def header(**changes):
    """A header of one tensor, with ``changes``; None takes a key away."""
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | changes
    return json.dumps({"w": {key: value for key, value in entry.items() if value is not None}}).encode()


def write(path, data, length=None):
    path.write_bytes((len(data) if length is None else length).to_bytes(8, "little") + data)
    return path


def test_what_the_library_reads(mixed):
    found = read_header(mixed)
    with safe_open(mixed, framework="pt") as file:
        assert {name: list(tensor.shape) for name, tensor in found.tensors.items()} == {
            name: file.get_slice(name).get_shape()
            for name in file.keys()  # noqa: SIM118 - no mapping
        }
        assert all(file.get_slice(name).get_dtype() == tensor.dtype for name, tensor in found.tensors.items())
    assert found.file_size == mixed.stat().st_size


def test_no_tensor_at_all():
    assert parse_header(b'{"__metadata__":{"format":"pt"}}') == Header(tensors={}, file_size=40, first=40)


def test_one():
    assert parse_header(header()) == Header(
        tensors={"w": StoredTensor("F32", (2, 3), 0, 24)}, file_size=8 + len(header()) + 24, first=8 + len(header())
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": None},
        {"dtype": 4},
        {"shape": None},
        {"shape": 6},
        {"shape": [2.0, 3]},
        {"shape": [-2, 3]},
        {"shape": [True, 3]},
        {"shape": ["2", 3]},
        {"data_offsets": None},
        {"data_offsets": [24]},
        {"data_offsets": [0, 12, 24]},
        {"data_offsets": [24, 0]},
        {"data_offsets": [-24, 0]},
        {"data_offsets": [0, 2.5]},
        {"data_offsets": "ab"},
    ],
    ids=str,
)
def test_an_entry_that_is_none(changes):
    with pytest.raises(ValueError, match="'w' has no dtype, shape and data_offsets"):
        parse_header(header(**changes))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"w": null}', b'{"w": []}', b"\xff\xfe", b"[" * 100_000])
def test_a_header_that_is_none(data):
    with pytest.raises(ValueError):
        parse_header(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["w", "dtype", "shape", "data_offsets", "__metadata__"]), inner)
        ),
    )
)
def test_it_is_read_or_a_value_error(data):
    with contextlib.suppress(ValueError):
        assert isinstance(parse_header(json.dumps(data).encode()), Header)


@pytest.mark.parametrize("data", [b"", b"1234567", (9).to_bytes(8, "little"), b"x" * 100])
def test_a_file_that_ends_within_its_header(tmp_path, data):
    (tmp_path / "f").write_bytes(data)
    with pytest.raises(ModelError, match=f"f is cut off, or no safetensors file: {len(data)} bytes"):
        read_header(tmp_path / "f")


def test_a_header_beyond_what_the_format_allows_is_not_read(tmp_path):
    path = write(tmp_path / "f", b"", MOST_HEADER + 1)
    with path.open("r+b") as file:
        file.truncate(MOST_HEADER + 10**6)
    with pytest.raises(ModelError, match="f is corrupt, its header is broken: a header of 100,000,001 bytes"):
        read_header(path)


def test_the_path_is_named_and_the_next_step(tmp_path):
    with pytest.raises(ModelError, match="f is corrupt, its header is broken: 'w' has no dtype") as raised:
        read_header(write(tmp_path / "f", header(shape=None)))
    assert raised.value.hint == "download it again"
    with pytest.raises(ModelError, match=r"cannot read .*absent: No such file"):
        read_header(tmp_path / "absent")


def dtype_of(folder):
    (folder / "config.json").write_text("{}")
    source = ModelSource(kind=SourceKind.DIRECTORY, location=str(folder), config_path=folder / "config.json")
    return weights.checkpoint_dtype(source)


def test_the_first_dtype_is_that_of_the_first_name(mixed):
    """transformers asks the library for the names, which are sorted; the file has them by the size of their numbers."""
    assert next(iter(read_header(mixed).tensors)) != "a"
    assert dtype_of(mixed.parent) == "float16"


def test_and_so_it_is_of_a_model_on_the_hub(monkeypatch):
    tensors = {"z": SimpleNamespace(dtype="F32"), "a": SimpleNamespace(dtype="F16")}
    files = {"model.safetensors": SimpleNamespace(tensors=tensors)}
    repo = SimpleNamespace(files_metadata=files, metadata=None, sharded=False)
    monkeypatch.setattr(weights, "hub_headers", lambda model, revision: repo)
    source = ModelSource(kind=SourceKind.HUB, location="org/m", config_path=Path("config.json"), revision="0")
    assert weights.checkpoint_dtype(source) == "float16"


def test_a_broken_checkpoint_has_no_dtype(mixed):
    mixed.write_bytes(mixed.read_bytes()[:20])
    with pytest.raises(ModelError, match="is cut off"):
        dtype_of(mixed.parent)


def test_no_other_file_reads_headers():
    package = Path(devctl.__file__).parent
    for path in (*(package / "models").rglob("*.py"), *(package / "loading").rglob("*.py")):
        if path.name == "safetensors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert "safe_open" not in {alias.name for alias in node.names}, path
            assert not (isinstance(node, ast.Attribute) and node.attr == "from_bytes"), path
