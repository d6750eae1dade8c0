"""The options, variables and layer functions of the engines themselves, read from the releases that the rules name.

Their wheels are read as archives: their packages can't be imported without a GPU's libraries and their own torch, but
for vLLM's parser of options, which reads every line that is printed. A name that has gone, or layers that are shared
out otherwise, fail with it. llama.cpp has no package that is read so.
"""

import ast
import json
import re
import subprocess
import sys
import types
import zipfile

import pytest

from devctl.export import sglang, vllm
from devctl.placement.engines.records import Serving
from tests.export.plans import plan, stages
from tests.export.registries import FILE, document

pytestmark = [pytest.mark.slow, pytest.mark.registry]

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "30"]
EVERYTHING = (
    plan(stages(20, 60, hosts=("a", "b")), revision="abc", kv_dtype="float8_e5m2"),
    plan(stages(24, tp=2), kv_dtype="bfloat16"),
    plan(
        stages(24, tp=2),
        serving=Serving(
            utilisation=0.95, batched_tokens=4096, sequences=64, expert_parallel=True, quantised_while_loading=True
        ),
    ),
    plan(stages(24), layers=32, on_cpu=(24, 32), cpu_bytes=2**31),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a release, as an archive: ``wheel("vllm", "0.33.0")``."""

    def get(name, release):
        folder = tmp_path_factory.mktemp(name)
        done = subprocess.run(
            [*PIP, "download", "--quiet", "--no-deps", "--dest", str(folder), f"{name}=={release}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        if done.returncode:
            pytest.skip(f"no package index has {name} {release}")
        return zipfile.ZipFile(next(folder.glob("*.whl")))

    return get


def options_of(commands):
    return {word for command in commands for word in command.words if word.startswith("--")}


def function(archive, path, name, **names):
    """A function of the archive, with the names that it uses."""
    for node in ast.parse(archive.read(path)).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            space = types.SimpleNamespace(**names).__dict__
            exec(compile(ast.Module([node], []), path, "exec"), space)  # noqa: S102 - what this test is about
            return space[name]
    raise AssertionError(f"{path} has no {name}")


def strings(archive, *prefixes):
    """Every text in the Python files below ``prefixes``."""
    found = set()
    for path in archive.namelist():
        if path.endswith(".py") and path.startswith(prefixes):
            tree = ast.parse(archive.read(path))
            found |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return found


def test_vllm_has_the_options_and_shares_out_layers_so(wheel):
    archive = wheel("vllm", vllm.RELEASE)
    known = strings(archive, "vllm/engine/arg_utils.py", "vllm/entrypoints/")
    asked = options_of(command for each in EVERYTHING for command in vllm.export(each).commands)
    assert {"--headless", "--kv-cache-memory-bytes", "--cpu-offload-gb"} <= asked
    assert asked <= known, f"vLLM has no {sorted(asked - known)}"
    caches = strings(archive, "vllm/config/cache.py")
    assert {each for each in vllm.SERVER.kv_dtypes.values() if each} <= caches
    for partition, counts in (("20,60", (20, 60)), ("9,23", (9, 23))):
        indices = function(
            archive,
            "vllm/distributed/utils.py",
            "get_pp_indices",
            envs=types.SimpleNamespace(VLLM_PP_LAYER_PARTITION=partition),
        )
        ends = [indices(sum(counts), rank, 2) for rank in range(2)]
        assert ends == [(0, counts[0]), (counts[0], sum(counts))]
        with pytest.raises(ValueError, match="does not match"):
            indices(sum(counts) + 1, 0, 2)
    variables = {"VLLM_PP_LAYER_PARTITION", "VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS"}
    assert variables <= strings(archive, "vllm/envs.py")


LIGHT = (
    "aiohappyeyeballs", "aiohttp", "aiosignal", "annotated-types", "cachetools", "cbor2", "cloudpickle", "frozenlist",
    "msgspec", "multidict", "openai", "openai-harmony", "pillow", "prometheus-client", "propcache", "psutil",
    "py-cpuinfo", "pybase64", "pydantic", "pydantic-core", "pyzmq", "requests", "sniffio", "typing-inspection",
    "urllib3", "uvloop", "yarl",
)  # fmt: skip
"""What vLLM imports on the way to its options, and is not stood in for: some 50 MB."""


def test_vllms_own_parser_takes_every_line(wheel, tmp_path):
    archive = wheel("vllm", vllm.RELEASE)
    archive.extractall(tmp_path, [name for name in archive.namelist() if not name.endswith(".so")])
    got = subprocess.run(
        [*PIP, "install", "--quiet", "--no-deps", "--target", str(tmp_path), *LIGHT],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    if got.returncode:
        pytest.skip("no package index has what vLLM imports")
    lines = [command.words for each in EVERYTHING for command in vllm.export(each).commands]
    assert all(words[:2] == ("vllm", "serve") for words in lines)
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.ask_vllm", str(tmp_path)],
        input=json.dumps([["--model", *words[2:]] for words in lines]),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    left = json.loads(done.stdout.splitlines()[-1])
    # which is an option of `serve`, beside those of the engine
    assert [[word for word in each if word != "--headless"] for each in left] == [[]] * len(lines)


def test_sglang_has_the_options_and_shares_out_layers_so(wheel, monkeypatch):
    import os

    archive = wheel("sglang", sglang.RELEASE)
    asked = options_of(command for each in EVERYTHING for command in sglang.export(each).commands)
    # an option is the field's name, or an alias
    fields = {
        "--" + found.replace("_", "-")
        for path in archive.namelist()
        if re.match(r"sglang/srt/arg_groups/fields/\w+\.py", path)
        for found in re.findall(r"^    (\w+): A\[", archive.read(path).decode(), re.M)
    }
    assert asked <= fields, f"SGLang has no {sorted(asked - fields)}"
    indices = function(archive, "sglang/srt/distributed/utils.py", "get_pp_indices", os=os, Tuple=tuple)
    monkeypatch.setenv("SGLANG_PP_LAYER_PARTITION", "20,60")
    assert [indices(80, rank, 2) for rank in range(2)] == [(0, 20), (20, 80)]
    monkeypatch.delenv("SGLANG_PP_LAYER_PARTITION")
    assert [indices(80, rank, 3) for rank in range(3)] == [(0, 26), (26, 53), (53, 80)]


def test_the_list_of_architectures_is_theirs(wheel):
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    found = document({"vllm": wheel("vllm", vllm.RELEASE), "sglang": wheel("sglang", sglang.RELEASE)})
    for engine, listed in found.items():
        told, known = set(listed["architectures"]), set(kept[engine]["architectures"])
        assert kept[engine]["release"] == listed["release"]
        assert told == known, f"{engine}: new {sorted(told - known)}, gone {sorted(known - told)}"
