"""Module trees that are kept between runs."""

import itertools
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devctl.models import cache
from devctl.models.files.resolve import ModelSource, SourceKind, resolve
from devctl.models.footprint import Kernels, Workload
from devctl.models.quantised.quantise import Quantize
from devctl.models.skeleton import read_skeleton
from devctl.models.tracing.trace import trace_footprint
from tests.conftest import CONFIGS
from tests.marks import examples, one_in
from tests.test_architecture import HEAVY, modules_after
from tests.trees import random_trees

TINY = CONFIGS / "tiny-llama"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def key(source=TINY, *, dtype="auto", model_class=None, trust_remote_code=False, quantize=None):
    return cache.tree_key(
        resolve(str(source)),
        dtype=dtype,
        model_class=model_class,
        trust_remote_code=trust_remote_code,
        quantize=quantize,
    )


@given(random_trees())
def test_trees_survive(tree):
    assert cache.parse_tree(cache.dump_tree(tree)) == tree


@pytest.mark.parametrize("name", one_in(2, ["deepseek-v3", "t5-11b", "whisper-large-v3", "tiny-llama"]))
def test_real_trees_survive(name):
    tree = read_skeleton(resolve(str(CONFIGS / name)), dtype="float16").tree
    assert cache.parse_tree(cache.dump_tree(tree)) == tree


def test_the_key_depends_on_all_that_the_tree_does(tmp_path, monkeypatch):
    config = json.loads((TINY / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 9}))
    keys = [key(), key(tmp_path), key(dtype="float32"), key(model_class="AutoModel"), key(quantize="nf4")]
    (tmp_path / "model.safetensors").write_bytes(b"a")
    keys.append(key(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"ab")
    keys.append(key(tmp_path))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0")
    keys.append(key())
    assert len(set(keys)) == 8
    assert None not in keys


def test_the_key_of_a_model_on_the_hub_is_of_its_commit():
    def of(location, revision):
        source = ModelSource(
            kind=SourceKind.HUB, location=location, config_path=TINY / "config.json", revision=revision
        )
        return cache.tree_key(source, dtype="auto", model_class=None, trust_remote_code=False)

    assert len({of("org/a", "1"), of("org/a", "2"), of("org/b", "1"), key()}) == 4


def footprint_key(workload, source=TINY, dtype="auto"):
    return cache.footprint_key(resolve(str(source)), workload, dtype=dtype, model_class=None, trust_remote_code=False)


def test_a_footprint_is_kept_beside_the_tree(folder):
    workload = Workload(context_length=64, new_tokens=2)
    found = trace_footprint(read_skeleton(resolve(str(TINY))), workload)
    cache.store_footprint(footprint_key(workload), found)
    assert cache.load_footprint(footprint_key(workload)) == found
    assert cache.load_tree(footprint_key(workload)) is None
    assert cache.load_footprint(key()) is None


def test_the_key_of_a_footprint_depends_on_the_workload_too():
    workloads = [
        Workload(context_length=64),
        Workload(context_length=65),
        Workload(context_length=64, new_tokens=2),
        Workload(context_length=64, batch_size=2),
        Workload(context_length=64, kv_dtype="float16"),
        Workload(context_length=64, kernels=Kernels.CPU),
    ]
    keys = [footprint_key(workload) for workload in workloads]
    keys += [key(), footprint_key(workloads[0], dtype="float32")]
    assert len(set(keys)) == len(keys)
    assert None not in keys


def test_what_is_not_kept(tmp_path):
    config = json.loads((TINY / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert key(tmp_path) is None, "the checkpoint decides"
    assert key(tmp_path, dtype="float16") is not None
    assert key(trust_remote_code=True) is None


@pytest.mark.parametrize(
    ("platform", "env", "folder"),
    [
        ("linux", {}, "/h/.cache/devctl"),
        ("freebsd14", {}, "/h/.cache/devctl"),
        ("darwin", {}, "/h/Library/Caches/devctl"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/devctl/Cache"),
        ("win32", {}, "/h/AppData/Local/devctl/Cache"),
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/devctl"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/x/devctl"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/h/.cache/devctl"),
        ("linux", {"XDG_CACHE_HOME": "/x", "DEVCTL_CACHE_DIR": "/d"}, "/d"),
        ("darwin", {"DEVCTL_CACHE_DIR": "~/d"}, "/h/d"),
    ],
)
def test_the_folder(monkeypatch, platform, env, folder):
    for name in ("DEVCTL_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/h", **env}.items():
        monkeypatch.setenv(name, value)
    assert str(cache.cache_folder(platform)) == folder


@pytest.fixture
def keep(folder, monkeypatch):
    """Keeps the same tree under a number, as if at that second; ``keep.kept()`` are the numbers that are there."""
    tree = read_skeleton(resolve(str(TINY))).tree
    monkeypatch.setattr(cache, "LIMIT", 3 * (len(cache.dump_tree(tree)) + len("\n") + 64))
    seconds = itertools.count(1)

    def name(number):
        return f"{number:064x}"

    def dated(number):
        second = next(seconds)
        if (folder / f"{name(number)}.json").exists():
            os.utime(folder / f"{name(number)}.json", (second, second))

    def keeps(number):
        cache.store_tree(name(number), tree)
        dated(number)

    def uses(number):
        before = (folder / f"{name(number)}.json").stat().st_mtime
        assert cache.load_tree(name(number)) == tree
        assert (folder / f"{name(number)}.json").stat().st_mtime > before, "that it was used is not kept"
        dated(number)

    keeps.uses = uses
    keeps.kept = lambda: sorted(int(path.stem, 16) for path in folder.glob("*.json"))
    return keeps


def test_the_oldest_make_room(keep):
    for number in (5, 4, 3):
        keep(number)
    assert keep.kept() == [3, 4, 5]
    keep(2)
    assert keep.kept() == [2, 3, 4]
    keep(1)
    assert keep.kept() == [1, 2, 3]


def test_what_was_used_is_not_old(keep):
    for number in (5, 4, 3):
        keep(number)
    keep.uses(5)
    keep(2)
    assert keep.kept() == [2, 3, 5]


def test_what_is_kept_anew_takes_its_room_once(keep):
    for number in (5, 4, 3, 3, 3):
        keep(number)
    assert keep.kept() == [3, 4, 5]


def test_what_somebody_else_has_there_stays(keep, folder):
    folder.mkdir()
    (folder / "notes.json").write_text("x" * 10**6)
    (folder / ("0" * 64 + ".txt")).write_text("x" * 10**6)
    for number in range(1, 6):
        keep(number)
    assert (folder / "notes.json").exists()
    assert (folder / ("0" * 64 + ".txt")).exists()
    (folder / "notes.json").unlink()
    assert keep.kept() == [3, 4, 5]


def test_what_a_killed_process_left_goes_too(keep, folder):
    folder.mkdir()
    left = folder / ".devctl-0123456789abcdef"
    left.write_text("x" * 10**6)
    os.utime(left, (0, 0))
    keep(1)
    assert not left.exists()
    assert keep.kept() == [1]


def test_room_is_made_when_something_is_kept_and_only_then(keep, folder, monkeypatch):
    for number in (3, 2, 1):
        keep(number)
    monkeypatch.setattr(cache, "LIMIT", 0)
    keep.uses(1)
    assert keep.kept() == [1, 2, 3]


def test_a_tree_is_kept_and_found(folder):
    tree = read_skeleton(resolve(str(TINY))).tree
    assert cache.load_tree("k") is None
    cache.store_tree("k", tree)
    assert cache.load_tree("k") == tree
    assert [path.name for path in folder.iterdir()] == ["k.json"]


def test_quantised_trees_survive():
    tree = read_skeleton(resolve(str(TINY)), quantize=Quantize.NF4).tree
    assert (tree.quantisation, tree.budget_share, tree.no_offload) == ("nf4", 0.9, {"cpu", "disk"})
    assert cache.parse_tree(cache.dump_tree(tree)) == tree


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"format": 1}', '{"format": 2}', '{"format": 2, "root": 3}', "\x00"]
)
def test_a_corrupt_or_foreign_entry_is_no_entry(folder, text):
    folder.mkdir()
    (folder / "k.json").write_text(text)
    assert cache.load_tree("k") is None


@settings(max_examples=examples(30))
@given(
    st.recursive(
        st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_parse_reads_or_raises_value_error(data):
    for text in (
        json.dumps(data),
        json.dumps({"format": 2, "root": data, "ties": [], "no_split": [], "unplaced": None}),
    ):
        with pytest.raises(ValueError):
            cache.parse_tree(text)


def test_a_cache_that_can_not_be_written_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DEVCTL_CACHE_DIR", str(tmp_path / "file" / "cache"))
    cache.store_tree("k", read_skeleton(resolve(str(TINY))).tree)
    assert cache.load_tree("k") is None


@pytest.mark.slow
def test_a_first_plan_imports_the_framework(folder):
    first, _ = modules_after("plan", str(TINY), "--max-memory", "cpu=12MiB", DEVCTL_CACHE_DIR=str(folder))
    assert first >= {"torch", "transformers"}


def test_a_second_plan_imports_no_framework_and_says_the_same(folder, devctl):
    command = ["plan", str(TINY), "--max-memory", "cpu=12MiB"]
    env = {"DEVCTL_CACHE_DIR": str(folder)}
    out = devctl(*command).out
    second, again = modules_after(*command, **env)
    assert second.isdisjoint(HEAVY)
    assert again == out != ""
    for entry in folder.iterdir():
        entry.write_text(entry.read_text()[:-20])
    assert devctl(*command).out == out
    assert second == modules_after(*command, **env)[0], "the broken entry was not replaced"


def test_no_cache_reads_and_keeps_nothing(folder, devctl):
    assert devctl("plan", TINY, "--max-memory", "cpu=12MiB", "--no-cache").code == 0
    assert not folder.exists()
