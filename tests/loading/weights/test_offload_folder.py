"""The offload folder: what is written to it, whether there is space, and what is left of it."""

import errno
import os
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors.torch import load_file

from devctl.devices import Device
from devctl.errors import RefusedError, UsageError
from devctl.loading.weights import offload
from devctl.loading.weights.loader import LoadFormat, load
from devctl.models.files.resolve import resolve
from devctl.models.skeleton import read_skeleton
from devctl.models.tree import sizes
from tests import small_models

CPU, DISK = Device.cpu(), Device.disk()


def to_write(name, folder, device_map, *, random_weights=False):
    source = resolve(str(small_models.save(name, folder) if name else folder))
    skeleton = read_skeleton(source)
    return offload.bytes_to_write(source, skeleton, device_map, random_weights=random_weights), sizes(skeleton.tree)


def test_what_a_safetensors_file_has_is_not_written_again(tmp_path):
    for name in ("llama", "llama-tied", "t5", "bart"):
        assert to_write(name, tmp_path / name, {"": DISK})[0] == 0


def test_random_weights_and_pickles_are_written(pickled):
    written, size = to_write(None, pickled, {"": DISK})
    buffers = size["model.rotary_emb"]
    assert written == size[""] - buffers
    layers = {"": CPU, "model.layers": DISK}
    assert to_write(None, pickled, layers)[0] == size["model.layers"]
    assert to_write(None, pickled, layers, random_weights=True)[0] == size["model.layers"]
    assert to_write(None, pickled, {"": CPU})[0] == 0


def test_experts_that_are_converted_are_written(tmp_path):
    written, size = to_write("mixtral", tmp_path / "mixtral", {"": DISK})
    assert written == sum(size[f"model.layers.{i}.mlp.experts"] for i in range(4)) > 0


@pytest.mark.parametrize("name", ["mixtral", "pickled"])
def test_what_is_predicted_is_what_is_written(name, request, tmp_path):
    folder = request.getfixturevalue("pickled") if name == "pickled" else small_models.save(name, tmp_path / name)
    predicted, _ = to_write(None, folder, {"": DISK})
    source = resolve(str(folder))
    with offload.offload_folder(predicted, tmp_path) as chosen:
        load(
            source,
            read_skeleton(source),
            {"": DISK},
            load_format=LoadFormat.AUTO,
            folder=chosen,
            on_progress=lambda _: None,
        )
        files = list(chosen.iterdir())
        written = sum(tensor.nbytes for path in files for tensor in load_file(path).values())
    assert written == predicted
    assert not chosen.exists()


def test_too_little_space_for_what_is_written_is_said_first(pickled, devctl, monkeypatch, temporary, tmp_path):
    (tmp_path / "map.json").write_text('{"": "cpu", "model.layers": "disk"}')
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "total used free")(2000, 1000, 1000))
    done = devctl("load", pickled, "--map", tmp_path / "map.json")
    assert done.code == 3
    assert "may need 145 KiB, its disk has 0.98 KiB free" in done.err
    assert "--offload-folder" in done.err
    assert list(temporary.iterdir()) == []


def test_a_given_offload_folder_keeps_what_it_had(pickled, devctl, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    ours = folder / "model.layers.0.mlp.up_proj.weight.safetensors"  # what transformers writes
    ours.write_text("mine")
    (tmp_path / "map.json").write_text('{"": "cpu", "model.layers": "disk"}')
    done = devctl("load", pickled, "--map", tmp_path / "map.json", "--offload-folder", folder)
    assert done.code == 0, done.err
    assert list(folder.iterdir()) == [ours]
    assert ours.read_text() == "mine"


def test_an_offload_folder_that_was_made_is_removed(pickled, devctl, tmp_path):
    (tmp_path / "map.json").write_text('{"": "disk"}')
    done = devctl("load", pickled, "--map", tmp_path / "map.json", "--offload-folder", tmp_path / "a" / "b")
    assert done.code == 0, done.err
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").mkdir()
    with pytest.raises(RefusedError), offload.offload_folder(2**60, tmp_path / "a" / "b"):
        pass
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_an_offload_folder_that_can_not_be_written_to(number, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with pytest.raises(UsageError, match=os.strerror(number)), offload.offload_folder(1, tmp_path / "a"):
        pass
    assert not (tmp_path / "a").exists()


def test_a_folder_that_is_read_only(pickled, devctl, tmp_path):
    if Path("/proc/sys").exists():
        (tmp_path / "map.json").write_text('{"": "disk"}')
        done = devctl("load", pickled, "--map", tmp_path / "map.json", "--offload-folder", "/proc/sys")
        assert done.code == 2
        assert "cannot use the offload folder /proc/sys" in done.err
