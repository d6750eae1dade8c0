"""A model id, against a hub on loopback."""

import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from devctl.models.files.weights import hub_headers
from tests import small_models
from tests.conftest import CONFIGS, DEVCTL
from tests.hub import COMMIT, point_at, serve
from tests.marks import one_in, slow


@pytest.fixture(scope="module")
def hub(checkpoint):
    with serve() as hub:
        hub.repos |= {
            "org/llama": checkpoint("llama"),
            "org/config-only": CONFIGS / "llama-3.1-8b",
            "org/gated": (403, "GatedRepo"),
            "org/private": (401, "RepoNotFound"),
            "org/broken": (500, ""),
        }
        yield hub


@pytest.fixture
def run(hub, devctl, monkeypatch, tmp_path):
    """Runs a command in this process, as if it were a new one: ``run("plan", "org/llama").err``."""
    point_at(hub, tmp_path, monkeypatch)

    def run(*args):
        hub_headers.cache_clear()
        return devctl(*args)

    return run


@pytest.fixture
def offline(monkeypatch):
    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def started(hub, tmp_path):
    """Runs a command in a process of its own, which reads where its hub is from variables."""

    def start(*args, **env):
        clean = {
            k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_TOKEN") and "proxy" not in k.lower()
        }
        return subprocess.run(
            [DEVCTL, *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=clean
            | {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
            | env,
        )

    return start


@pytest.mark.parametrize("how", ["run", *slow("started")])
def test_a_plan_downloads_the_config_and_no_weight(hub, request, tmp_path, monkeypatch, how):
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "trees"))
    run = request.getfixturevalue(how)
    hub.requests.clear()
    hub.ranges.clear()
    report = tmp_path / "plan.json"
    done = run("plan", "org/llama", "--max-memory", "0=100KB,1=1MB", "--report", str(report))
    code, out, err = done if how == "run" else (done.returncode, done.stdout, done.stderr)
    assert code == 0, err
    assert set(json.loads(out).values()) == {0, 1}
    assert json.loads(report.read_text())["model"]["revision"] == COMMIT
    assert {r.rpartition("/")[2] for r in hub.requests if "org/llama" in r} == {"config.json", "model.safetensors"}
    assert hub.ranges == ["bytes=0-100000"], "of the weights, their header"
    downloaded = [path.name for path in tmp_path.rglob("*") if path.is_symlink()]
    assert downloaded == ["config.json"]


def test_headers_are_asked_for_once(hub, run, offline, tmp_path, monkeypatch):
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "trees"))
    folder = small_models.save("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    hub.repos["org/headless"] = folder
    hub.ranges.clear()
    first, second = (run("plan", "org/headless", "--max-memory", "cpu=1MB") for _ in range(2))
    assert "note: the checkpoint holds " in first.err
    assert first.err.splitlines()[-1] == second.err.splitlines()[-1]
    assert len(hub.ranges) == 1
    offline()
    done = run("plan", "org/headless", "--no-cache")
    assert done.code == 0
    assert "the checkpoint holds" not in done.err


def test_a_config_in_the_cache_is_enough_offline(run, offline):
    assert run("plan", "org/llama").code == 0
    offline()
    assert run("plan", "org/llama").code == 0


@pytest.fixture
def no_dtype(hub, tmp_path):
    """On the hub as org/no-dtype: float16, which only its weights tell."""
    folder = small_models.save("llama", tmp_path / "no-dtype", dtype=torch.float16)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    hub.repos["org/no-dtype"] = folder
    hub.ranges.clear()


def test_the_dtype_of_a_checkpoint_is_read_from_its_header(hub, run, no_dtype):
    done = run("plan", "org/no-dtype")
    assert done.code == 0
    assert done.err.splitlines()[1].startswith("LlamaForCausalLM 105 KiB in float16")
    assert "names a dtype" not in done.err
    assert hub.ranges == ["bytes=0-100000"]


def test_a_header_that_can_not_be_asked_for_is_done_without(run, no_dtype, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", "http://127.0.0.1:9")
    done = run("plan", "org/no-dtype")
    assert done.code == 0, done.err
    assert "names a dtype" in done.err


def test_load_from_the_hub(run):
    done = run("load", "org/llama", "--map", "cpu", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["ok"] is True


@pytest.mark.parametrize(
    ("args", "said"),
    one_in(
        3,
        [
            (["org/absent"], "org/absent is neither a file or folder here nor a model on the hub that you can see"),
            (["org/private"], "org/private is neither a file or folder here nor a model on the hub that you can see"),
            (["org/gated"], "org/gated is gated"),
            (["org/llama", "--revision", "v9"], "org/llama has no revision 'v9'"),
            (["not a name"], "'not a name' is neither a file or folder here nor a model id"),
            (["org/--x"], "'org/--x' is neither"),
        ],
    ),
)
def test_a_model_that_can_not_be_read(run, args, said):
    done = run("plan", *args)
    assert (done.code, done.out) == (4, ""), done.err
    assert said in done.err
    assert "Traceback" not in done.err
    assert len(done.err.splitlines()) <= 2


def test_offline_only_the_cache_is_read(started):
    done = started("plan", "org/llama", HF_HUB_OFFLINE="1")
    assert (done.returncode, done.stdout) == (4, ""), done.stderr
    assert "HF_HUB_OFFLINE=1 forbids" in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.slow
def test_a_hub_that_fails(started):
    """huggingface_hub tries for half a minute, and says so: both are waited for at once."""
    with ThreadPoolExecutor() as pool:
        broken = pool.submit(started, "plan", "org/broken")
        absent = pool.submit(started, "plan", "org/llama", HF_ENDPOINT="http://127.0.0.1:9")
    for done, said in (
        (broken.result(), "org/broken is not in the cache, and the hub can't be reached: Server error '500"),
        (absent.result(), "the hub can't be reached: "),
    ):
        assert done.returncode == 4, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr


def test_offline_is_never_called_gated(run, offline):
    offline()
    assert "is gated" not in run("plan", "org/gated").err


def test_a_checkpoint_without_weights(run):
    done = run("load", "org/config-only", "--map", "cpu")
    assert done.code == 4, done.err
    assert "org/config-only has no weights to load" in done.err


def test_the_token_is_sent_and_never_printed(hub, started):
    hub.tokens.clear()
    done = started("plan", "org/gated", HF_TOKEN="hf_secret")  # noqa: S106 - not one
    assert "Bearer hf_secret" in hub.tokens
    assert "hf_secret" not in done.stdout + done.stderr
