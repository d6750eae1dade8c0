"""Files of the hub, from one on loopback that answers with every failure, cuts connections, or holds them."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from huggingface_hub import constants

from devctl.errors import ModelError
from devctl.loading.weights.loader import local_copy
from devctl.models.files.hub import fetch, fetch_weights
from devctl.models.files.resolve import resolve
from devctl.models.files.weights import weights_folder
from tests import small_models
from tests.conftest import DEVCTL
from tests.hub import COMMIT, Fault, point_at, serve
from tests.marks import one_in

WEIGHTS = "model.safetensors"
SECOND = "model-00002-of-00005.safetensors"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    import torch

    folder = tmp_path_factory.mktemp("models")
    model_class, config = small_models.TINY["llama"]()
    model = model_class(config)
    model.save_pretrained(folder / "whole")
    model.save_pretrained(folder / "shards", max_shard_size="50KB")
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder / "pickle")
    torch.save(model.state_dict(), folder / "pickle" / "pytorch_model.bin")
    config.save_pretrained(folder / "bare")
    return folder


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    """The hub of this test alone, with an empty cache; its client waits no second between its tries."""
    with serve() as hub:
        hub.repos |= {f"org/{name}": folders / name for name in ("whole", "shards", "pickle", "bare")}
        point_at(hub, tmp_path, monkeypatch)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield hub


def blobs(tmp_path):
    """Names of the files in the cache that are taken for whole, and the count of those that are not."""
    links = sorted(path.name for path in (tmp_path / "cache").rglob("*") if path.is_symlink())
    return links, len(list((tmp_path / "cache").rglob("*.incomplete")))


def same(folder, original):
    return all((folder / path.name).read_bytes() == path.read_bytes() for path in original.glob("*.safetensors"))


@pytest.mark.parametrize("redirected", one_in(2, [False, True]))
@pytest.mark.parametrize("name", ["whole", "shards"])
def test_weights_are_downloaded_once(name, redirected, hub, folders):
    hub.redirected = redirected
    source = resolve(f"org/{name}")
    assert source.revision == COMMIT
    folder = weights_folder(source)
    assert same(folder, folders / name)
    assert (folder / "generation_config.json").is_file()
    hub.requests.clear()
    assert weights_folder(source) == folder
    assert not [request for request in hub.requests if request.startswith("GET")]
    assert local_copy(source).location == str(folder)


def test_pickles_are_downloaded_where_there_is_nothing_better(hub):
    assert (fetch_weights("org/pickle", COMMIT) / "pytorch_model.bin").is_file()


def test_a_model_without_weights(hub):
    with pytest.raises(ModelError, match="org/bare has no weights to load"):
        fetch_weights("org/bare", COMMIT)


def test_a_download_that_is_cut_is_resumed(hub, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.faults[SECOND] = Fault(keep=10_000, times=2)
    folder = fetch_weights("org/shards", COMMIT)
    assert same(folder, folders / "shards")
    assert hub.ranges == ["bytes=10000-", "bytes=20000-"]
    assert blobs(tmp_path)[1] == 0


@pytest.mark.parametrize("reset", one_in(2, [False, True]))
def test_a_download_that_stays_cut_is_told_and_not_taken_for_whole(reset, hub, folders, tmp_path):
    hub.faults[SECOND] = Fault(keep=0, reset=reset)
    with pytest.raises(ModelError, match=f"the download of {SECOND} of org/shards broke off: ") as raised:
        fetch_weights("org/shards", COMMIT)
    assert "run it again" in raised.value.hint
    assert "\n" not in raised.value.message
    links, _ = blobs(tmp_path)
    assert links == ["model-00001-of-00005.safetensors", "model.safetensors.index.json"]
    hub.faults.clear()
    assert same(fetch_weights("org/shards", COMMIT), folders / "shards")


def test_a_hub_that_falls_silent(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.1)
    hub.faults[WEIGHTS] = Fault(keep=100, hold=60)
    with pytest.raises(ModelError, match=f"the download of {WEIGHTS} of org/whole broke off: timed out"):
        fetch_weights("org/whole", COMMIT)


@pytest.mark.parametrize("heads", [False, True], ids=["GET", "HEAD and GET"])
@pytest.mark.parametrize("name", one_in(2, ["config.json", WEIGHTS]))
@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "the hub refuses {name} of org/whole (401)"),
        (403, "the hub refuses {name} of org/whole (403)"),
        (404, "the hub answered for {name} of org/whole: Client error '404"),
        (429, "the hub takes no more requests for now (429), asked for {name} of org/whole"),
        (500, "Server error '500"),
    ],
)
def test_a_hub_that_refuses(status, said, name, heads, hub, tmp_path):
    hub.faults[name] = Fault(status=status, heads=heads)
    with pytest.raises(ModelError) as raised:
        weights_folder(resolve("org/whole"))
    assert said.format(name=name) in raised.value.message
    assert raised.value.hint
    assert name not in blobs(tmp_path)[0]


def test_a_hub_that_fails_now_and_then(hub, folders):
    hub.faults[WEIGHTS] = Fault(status=429, times=2)
    assert same(fetch_weights("org/whole", COMMIT), folders / "whole")


def test_weights_that_are_gated(hub):
    hub.repos["org/gated"] = (403, "GatedRepo")
    with pytest.raises(ModelError, match="org/gated is gated"):
        fetch_weights("org/gated", COMMIT)


def test_weights_that_are_not_in_the_cache_offline(hub, monkeypatch):
    source = resolve("org/whole")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=f"{WEIGHTS} of org/whole is not in the cache, and HF_HUB_OFFLINE=1"):
        weights_folder(source)


@pytest.mark.parametrize("name", ["whole", "shards", "pickle"])
def test_weights_in_the_cache_are_enough_offline(name, hub, monkeypatch):
    source = resolve(f"org/{name}")
    folder = weights_folder(source)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights_folder(source) == folder


def test_a_disk_too_small_for_the_download_is_said_first(hub, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 100_000))
    for name in ("whole", "shards"):
        hub.requests.clear()
        with pytest.raises(ModelError, match=f"org/{name} has 21. KiB of weights to download, the disk of .* has 97.7"):
            fetch_weights(f"org/{name}", COMMIT)
        assert not [request for request in hub.requests if "GET" in request and request.endswith(".safetensors")]


def test_a_disk_that_fills_up(hub, monkeypatch):
    import errno

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(ModelError, match=r"the disk is full: config\.json of org/whole"):
        fetch("org/whole", "config.json", None)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_ends_a_download_at_once(number, code, hub, tmp_path):
    hub.faults[SECOND] = Fault(keep=1000, hold=600)
    ours = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN") and "proxy" not in k.lower()}
    process = subprocess.Popen(
        [DEVCTL, "load", "org/shards", "--map", "cpu"],
        env=ours | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not hub.holding.wait(0.05):
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline, "it never began to download"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)  # of the hub's 600 seconds
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    assert SECOND not in blobs(tmp_path)[0]
