"""A model id: fresh processes against a hub on loopback, since its address is read at import."""

import json
import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.conftest import CONFIGS, DEVCTL
from tests.hub import COMMIT, serve


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
def run(hub, tmp_path):
    def run(*args, **env):
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

    return run


def test_a_plan_downloads_the_config_and_no_weight(hub, run, tmp_path):
    hub.requests.clear()
    hub.ranges.clear()
    report = tmp_path / "plan.json"
    done = run("plan", "org/llama", "--max-memory", "0=100KB,1=1MB", "--report", str(report))
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout).values()) == {0, 1}
    assert json.loads(report.read_text())["model"]["revision"] == COMMIT
    assert {r.rpartition("/")[2] for r in hub.requests if "org/llama" in r} == {"config.json", "model.safetensors"}
    assert hub.ranges == ["bytes=0-100000"], "of the weights, their header"
    downloaded = [path.name for path in (tmp_path / "hf").rglob("*") if path.is_symlink()]
    assert downloaded == ["config.json"]


def test_headers_are_asked_for_once(hub, run, tmp_path):
    kept = {"DEVCTL_CACHE_DIR": str(tmp_path / "trees")}
    folder = tiny.save("llama", tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors")
    hub.repos["org/headless"] = folder
    hub.ranges.clear()
    first, second = (run("plan", "org/headless", "--max-memory", "cpu=1MB", **kept) for _ in range(2))
    assert "note: the checkpoint holds " in first.stderr
    assert first.stderr.splitlines()[-1] == second.stderr.splitlines()[-1]
    assert len(hub.ranges) == 1
    offline = run("plan", "org/headless", "--no-cache", HF_HUB_OFFLINE="1")
    assert offline.returncode == 0
    assert "the checkpoint holds" not in offline.stderr


def test_a_config_in_the_cache_is_enough_offline(run):
    assert run("plan", "org/llama").returncode == 0
    assert run("plan", "org/llama", HF_HUB_OFFLINE="1").returncode == 0


def test_the_dtype_of_a_checkpoint_is_read_from_its_header(hub, run, tmp_path):
    folder = tiny.save("llama", tmp_path / "no-dtype", dtype=torch.float16)
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    hub.repos["org/no-dtype"] = folder
    hub.ranges.clear()
    done = run("plan", "org/no-dtype")
    assert done.returncode == 0
    assert done.stderr.startswith("LlamaForCausalLM 105 KiB in float16")
    assert "names a dtype" not in done.stderr
    assert hub.ranges == ["bytes=0-100000"]


def test_load_from_the_hub(run):
    done = run("load", "org/llama", "--map", "cpu", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] is True


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        (["org/absent"], {}, "org/absent is neither a file or folder here nor a model on the hub that you can see"),
        (["org/private"], {}, "org/private is neither a file or folder here nor a model on the hub that you can see"),
        (["org/gated"], {}, "org/gated is gated"),
        (["org/llama", "--revision", "v9"], {}, "org/llama has no revision 'v9'"),
        (["org/llama"], {"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE=1 forbids"),
        (["not a name"], {}, "'not a name' is neither a file or folder here nor a model id"),
        (["org/--x"], {}, "'org/--x' is neither"),
    ],
)
def test_a_model_that_can_not_be_read(run, args, env, said):
    done = run("plan", *args, **env)
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) <= 2


@pytest.mark.slow  # huggingface_hub tries for half a minute, and says so
@pytest.mark.parametrize(
    ("model", "env", "said"),
    [
        ("org/broken", {}, "org/broken is not in the cache, and the hub can't be reached: Server error '500"),
        ("org/llama", {"HF_ENDPOINT": "http://127.0.0.1:9"}, "the hub can't be reached: "),
    ],
)
def test_a_hub_that_fails(run, model, env, said):
    done = run("plan", model, **env)
    assert done.returncode == 4, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_is_never_called_gated(run):
    assert "is gated" not in run("plan", "org/gated", HF_HUB_OFFLINE="1").stderr


def test_a_checkpoint_without_weights(run):
    done = run("load", "org/config-only", "--map", "cpu")
    assert done.returncode == 4, done.stderr
    assert "org/config-only has no weights to load" in done.stderr


def test_the_token_is_sent_and_never_printed(hub, run):
    hub.tokens.clear()
    done = run("plan", "org/gated", HF_TOKEN="hf_secret")  # noqa: S106 - not one
    assert "Bearer hf_secret" in hub.tokens
    assert "hf_secret" not in done.stdout + done.stderr
