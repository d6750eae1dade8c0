"""Files that others may have put there: the cache, offload folders, and what a load leaves behind."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

from devctl.loading.weights.offload import offload_folder
from devctl.models import cache
from devctl.models.files.resolve import resolve
from devctl.models.footprint import Footprint, Workload, dump_footprint, parse_footprint
from devctl.models.skeleton import read_skeleton
from devctl.planning import model as planning_model
from tests import small_models
from tests.conftest import CONFIGS

TINY = CONFIGS / "tiny-llama"
ROOT = Path(__file__).parents[2]
LATE = 300
"""Seconds: far more than a load of a small model takes."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "cache"))
    planning_model._tell_of_cache.cache_clear()
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def tree():
    return read_skeleton(resolve(str(TINY))).tree


# The cache


def changed(text, *path, to):
    """The JSON ``text``, with another value at ``path``."""
    data = json.loads(text)
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return json.dumps(data)


EMBEDDING = ("root", 3, 0, 3, 0, 2, 0)
"""Where a tree has the first tensor of the first part of the model: name, kind, bytes, shape, dtype, …"""

WRONG: list[tuple[tuple[str | int, ...], object]] = [
    (("class",), None),
    (("dtype",), 7),
    (("budget_share",), -1),
    (("budget_share",), "all"),
    (("no_split",), "LlamaDecoderLayer"),
    (("ties",), [["a"]]),
    (("ties",), [["a", 3]]),
    (("notes",), [None]),
    (("attention",), 1),
    (("root",), [[]]),
    ((*EMBEDDING, 2), -983547510784),
    ((*EMBEDDING, 2), 1.5),
    ((*EMBEDDING, 2), 10**30),
    ((*EMBEDDING, 2), True),
    ((*EMBEDDING, 2), "12"),
    ((*EMBEDDING, 3), [-1, 2]),
    ((*EMBEDDING, 4), None),
    ((*EMBEDDING, 5), 1),
    ((*EMBEDDING, 7), -1),
]


@pytest.mark.parametrize(("path", "to"), WRONG, ids=repr)
def test_a_tree_that_no_model_has_is_none(tree, path, to):
    text = cache.dump_tree(tree)
    assert json.loads(text)["root"][3][0][3][0][2][0][1] == "parameter"
    with pytest.raises(ValueError):
        cache.parse_tree(changed(text, *path, to=to))


@pytest.mark.parametrize(
    ("path", "to"),
    [
        (("output",), -1),
        (("square",), 0.5),
        (("exact",), "yes"),
        (("notes",), [1]),
        (("blocks",), [["a", 0, -1, 0, 0, 0, []]]),
        (("blocks",), [["a", 0, 0, 10**30, 0, 0, []]]),
        (("blocks",), [["a", 0, 0, "5", 0, 0, []]]),
        (("blocks",), [[None, 0, 0, 0, 0, 0, []]]),
        (("workload", "batch_size"), -3),
    ],
    ids=repr,
)
def test_a_footprint_that_no_model_has_is_none(path, to):
    text = dump_footprint(Footprint(workload=Workload(context_length=5), blocks=()))
    with pytest.raises(ValueError):
        parse_footprint(changed(text, *path, to=to))


def test_entries_nested_without_end_are_none():
    for parse in (cache.parse_tree, parse_footprint):
        with pytest.raises(ValueError):
            parse("[" * 100_000)


def test_a_planted_entry_changes_no_plan(devctl, folder):
    weights = ["plan", TINY, "--devices", "1GiB,cpu=1GiB"]
    questions = [weights, [*weights, "--context-length", "64"]]
    honest = [devctl(*asked) for asked in questions]
    entries = list(folder.glob("*.json"))
    assert [each.code for each in honest] == [0, 0]
    assert len(entries) >= 3
    for entry in entries:
        kept = entry.read_text()
        entry.write_text(kept.replace("1", "-9", 3))
        for asked, there in zip(questions, honest, strict=True):
            assert devctl(*asked) == there
        assert entry.read_text() == kept, "it was not made anew"


def test_an_entry_of_another_name_is_none(folder, tree):
    cache.store_tree("a", tree)
    shutil.copy(folder / "a.json", folder / "b.json")
    assert cache.load_tree("a") == tree
    assert cache.load_tree("b") is None


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
def test_the_cache_is_closed_to_others(folder, tree):
    cache.store_tree("a", tree)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert cache.load_tree("a") == tree
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(sys.platform == "win32", reason="owners")
def test_a_cache_of_somebody_else_is_not_used_and_that_is_said_once(devctl, folder, tree, monkeypatch):
    cache.store_tree("a", tree)
    monkeypatch.setattr(cache.os, "geteuid", lambda: os.getuid() + 1)
    assert cache.load_tree("a") is None
    cache.store_tree("b", tree)
    assert [path.name for path in folder.iterdir()] == ["a.json"]
    said = f"devctl: the cache {folder} is not used: it belongs to another user\n"
    assert devctl("plan", TINY, "--devices", "1GiB").err.count(said) == 1
    assert said not in devctl("plan", TINY, "--devices", "1GiB").err


@pytest.mark.skipif(sys.platform == "win32", reason="owners")
def test_an_entry_of_somebody_else_is_not_read(folder, tree, monkeypatch):
    cache.store_tree("a", tree)
    monkeypatch.setattr(cache, "unusable", lambda: None)
    monkeypatch.setattr(cache.os, "geteuid", lambda: os.getuid() + 1)
    assert cache.load_tree("a") is None


# Offload folders


def left_behind(parent, name="devctl-offload-left"):
    (parent / name).mkdir(parents=True)
    (parent / name / "weights.dat").write_bytes(b"x" * 100)
    return parent / name


def test_what_a_killed_load_left_is_reclaimed(tmp_path):
    left = left_behind(tmp_path)
    with offload_folder(1, tmp_path) as chosen:
        assert not left.exists()
        assert chosen.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_a_load_uses_is_not_reclaimed(tmp_path):
    left = left_behind(tmp_path)
    descriptor = os.open(left, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with offload_folder(1, tmp_path) as first, offload_folder(1, tmp_path) as second:
        assert first.exists()
        assert second.exists()
        assert first != second
    os.close(descriptor)
    assert [path.name for path in tmp_path.iterdir()] == [left.name]


def test_what_is_no_folder_of_ours_is_left_alone(tmp_path, monkeypatch):
    elsewhere = left_behind(tmp_path / "elsewhere", "kept")
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "devctl-offload-link").symlink_to(elsewhere)
    (parent / "devctl-offload-file").write_text("x")
    with offload_folder(1, parent):
        pass
    assert sorted(path.name for path in parent.iterdir()) == ["devctl-offload-file", "devctl-offload-link"]
    assert list(elsewhere.iterdir())
    left = left_behind(parent)
    monkeypatch.setattr("devctl.loading.weights.offload.os.geteuid", lambda: os.getuid() + 1)
    with offload_folder(1, parent):
        assert left.exists()


def test_the_last_of_several_loads_removes_the_folder_that_the_first_made(tmp_path):
    parent = tmp_path / "a" / "b"
    contexts = [offload_folder(1, parent) for _ in range(4)]
    for context in contexts:
        context.__enter__()
    for context in contexts:
        assert parent.exists()
        context.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nobody_made_stays(tmp_path):
    with offload_folder(1, tmp_path):
        pass
    assert tmp_path.exists()


@pytest.mark.parametrize("mark", ["", "x", "-5", "99999999999999999999999"])
def test_a_mark_that_says_nonsense_removes_nothing_else(tmp_path, mark):
    parent = tmp_path / "mine" / "given"
    parent.mkdir(parents=True)
    (parent / ".devctl-made").write_text(mark)
    (tmp_path / "mine" / "file").write_text("")
    with offload_folder(1, parent):
        pass
    assert (tmp_path / "mine" / "file").exists()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_load_that_is_ended_leaves_nothing_or_what_the_next_reclaims(tmp_path, number):
    model = small_models.save("llama", tmp_path / "model")
    parent = tmp_path / "offload"
    parent.mkdir()
    command = [sys.executable, "-m", "devctl", "load", model, "--load-format", "dummy", "--max-memory", "disk=1GiB"]
    command += ["--offload-folder", parent, "--repeat", "100000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + LATE
    while not list(parent.glob("devctl-offload-*/*")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=LATE)
    if number == signal.SIGKILL:
        assert list(parent.iterdir())
        with offload_folder(1, parent):
            pass
    else:
        assert process.returncode == 128 + number, err
    assert list(parent.iterdir()) == []


# What is released


def test_the_patterns_of_the_sdist_are_of_the_root_alone():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert all(pattern.startswith("/") for pattern in wanted["include"])
    assert all((ROOT / pattern[1:]).exists() for pattern in wanted["include"])
