"""What is read ends: pipes and devices in place of files, files without end, hubs that are silent, slow or lie."""

import json
import os
import socket
import sys
import threading
from pathlib import Path

import pytest

from devctl.errors import ModelError
from devctl.models.files import hub as hub_files
from devctl.models.files import watch
from devctl.reading import open_file, read_document
from tests import hub as hubs
from tests import small_models
from tests.conftest import CONFIGS
from tests.hub import Fault
from tests.marks import one_in

TINY = CONFIGS / "tiny-llama"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices have other names there")


@pytest.fixture(params=["pipe", "device", "socket"])
def unending(request, tmp_path):
    """A path at which there is no file, that waits or goes on for ever."""
    path = tmp_path / "there"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    else:
        server = socket.socket(socket.AF_UNIX)
        request.addfinalizer(server.close)
        here = Path.cwd()
        os.chdir(tmp_path)  # such names are short
        server.bind("there")
        os.chdir(here)
    return path


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "--map", "{}"], 2),
        (["plan", TINY, "--map", "{}", "--devices", "1GiB"], 2),
        (["plan", TINY, "--machine", "{}"], 2),
        (["plan", "{}", "--devices", "1GiB"], 4),
        (["load", TINY, "--load-format", "dummy", "--map", "{}"], 2),
        (["load", TINY, "--load-format", "dummy", "--baseline", "{}"], 2),
    ],
)
def test_what_is_no_file_is_refused(devctl, unending, arguments, code):
    done = devctl(*(unending if argument == "{}" else argument for argument in arguments))
    assert (done.code, done.out) == (code, "")
    assert str(unending) in done.err.splitlines()[0]
    assert "unexpected" not in done.err


@pytest.mark.parametrize(
    "name", one_in(3, ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"])
)
@pytest.mark.parametrize("command", [["plan", "--devices", "1GiB"], ["load", "--max-memory", "cpu=1GiB"]])
def test_a_model_of_what_is_no_file_is_refused(devctl, unending, tmp_path, name, command):
    model = small_models.save("llama", tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(unending)
    done = devctl(command[0], model, *command[1:])
    assert (done.code, done.out) == (4, "")
    assert name in done.err or "no config.json" in done.err


def test_a_file_is_read_up_to_its_limit(tmp_path):
    path = tmp_path / "file"
    path.write_text("\ufeff12345")
    assert read_document(path, 8) == "12345"
    with pytest.raises(OSError, match="it has more than 7 bytes"):
        read_document(path, 7)
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)


def test_a_config_of_3_gb_is_refused(devctl, tmp_path):
    with (tmp_path / "config.json").open("wb") as file:
        file.write(b"{")
        file.truncate(3 * 10**9)
    done = devctl("plan", tmp_path, "--devices", "1GiB")
    assert (done.code, done.out) == (4, "")
    assert "it has more than 67,108,864 bytes" in done.err


# Hubs


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hubs.serve() as hub:
        hubs.point_at(hub, tmp_path / "home", monkeypatch)
        hub.repos["org/tiny"] = TINY
        yield hub


def test_a_config_larger_than_any_is_not_downloaded(hub, monkeypatch, tmp_path):
    monkeypatch.setattr(hub_files, "MOST_CONFIG", 100)
    with pytest.raises(ModelError, match=r"the hub's config.json of org/tiny is larger than any: more than 100 bytes"):
        hub_files.fetch("org/tiny", "config.json", None)
    assert not [path for path in (tmp_path / "home").rglob("blobs/*") if path.stat().st_size > 100]


@pytest.mark.parametrize("header", ["ETag", "X_Linked_Etag", "X_Repo_Commit"])
@pytest.mark.parametrize("value", ['"../../../../outside"', "..", '"/tmp/outside"', 'W/"a/b"', "a\\b", '"a b"', '"."'])
def test_a_name_that_leaves_the_cache_is_refused_before_anything_is_stored(hub, tmp_path, header, value):
    hub.faults["config.json"] = Fault(heads=True, facts={header: value})
    with pytest.raises(ModelError, match="that is no name"):
        hub_files.fetch("org/tiny", "config.json", None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("value", ['"abc-12"', 'W/"5f3:1+x="', f'"{"0" * 64}"'])
def test_other_hubs_names_are_names(hub, value):
    hub.faults["config.json"] = Fault(heads=True, facts={"ETag": value})
    assert json.loads(hub_files.fetch("org/tiny", "config.json", None).read_text())


def test_a_hub_that_sends_too_slowly_is_left(hub, monkeypatch):
    monkeypatch.setattr(watch, "_WINDOW", 0.5)
    hub.faults["config.json"] = Fault(trickle=0.05)
    with pytest.raises(ModelError, match=r"the hub sends config.json of org/tiny too slowly: \d+ bytes in 1 s"):
        hub_files.fetch("org/tiny", "config.json", None)


def test_a_silent_hub_is_left(monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "_TO_ANSWER", 0.5)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        hubs.point_at(hubs.Hub(url=f"http://127.0.0.1:{server.getsockname()[1]}"), tmp_path, monkeypatch)
        held = []
        threading.Thread(target=lambda: held.append(server.accept()), daemon=True).start()
        with pytest.raises(ModelError, match=r"the hub (did not answer|can't be reached)"):
            hub_files.fetch("org/tiny", "config.json", None)
        for connection, _ in held:
            connection.close()


def test_the_client_is_as_it_was(hub):
    from huggingface_hub import get_session

    before = {name: list(hooks) for name, hooks in get_session().event_hooks.items()}
    hub_files.fetch("org/tiny", "config.json", None)
    assert {name: list(hooks) for name, hooks in get_session().event_hooks.items()} == before
