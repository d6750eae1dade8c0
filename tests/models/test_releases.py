"""devctl beside other releases of transformers than the one that is installed: the oldest, one between, the newest.

Each is installed into a folder of its own, with what it needs and the environment lacks, and comes first on the path.
"""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, PathDistribution, distributions, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import small_models

ROOT = Path(__file__).parents[2]
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "0", "--timeout", "10"]

pytestmark = [pytest.mark.slow, pytest.mark.registry]


def required(name):
    """What pyproject.toml asks of a package."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return next(r for r in map(Requirement, wanted) if r.name == name)


def offered(requirement):
    """Versions that the package index has within the range, the oldest first; none where no index answers."""
    try:
        done = subprocess.run(
            [*PIP, "index", "versions", requirement.name], capture_output=True, text=True, check=False, timeout=60
        )
    except subprocess.TimeoutExpired:
        return []
    _, _, found = done.stdout.partition("Available versions: ")
    versions = [text.strip() for text in found.partition("\n")[0].split(",") if text.strip()]
    return sorted((v for v in versions if v in requirement.specifier), key=Version)


def unmet(folder):
    """What the packages in ``folder`` need that neither it nor the environment has."""
    here = {d.name.lower().replace("_", "-"): d.version for d in distributions(path=[str(folder)])}
    found = set()
    for package in folder.glob("*.dist-info"):
        for text in PathDistribution(package).requires or ():
            need = Requirement(text)
            if need.marker is not None and not need.marker.evaluate({"extra": ""}):
                continue
            name = need.name.lower().replace("_", "-")
            try:
                have = here.get(name) or version(name)
            except PackageNotFoundError:
                have = None
            if have is None or have not in need.specifier:
                found.add(f"{need.name}{need.specifier}")
    return sorted(found)


def install(folder, *wanted):
    """Put packages, and what they lack, into ``folder``, and nothing anywhere else."""
    needs = list(wanted)
    for _ in range(4):
        subprocess.run(
            [*PIP, "install", "--quiet", "--no-deps", "--target", str(folder), *needs], check=True, timeout=300
        )
        needs = unmet(folder)
        if not needs:
            return
    raise AssertionError(f"still missing: {needs}")


@pytest.fixture(params=["oldest", "between", "newest"])
def release(request, tmp_path):
    """Runs Python with a release of transformers, ``release("-m", "devctl", …)``; which is ``release.version``."""
    versions, accelerates = offered(required("transformers")), offered(required("accelerate"))
    if not versions or not accelerates:
        pytest.skip("no package index answers")
    chosen = {"oldest": versions[0], "between": versions[len(versions) // 2], "newest": versions[-1]}[request.param]
    wanted = [f"transformers=={chosen}"]
    if request.param == "oldest":
        wanted.append(f"accelerate=={accelerates[0]}")
    folder = tmp_path / "site"
    install(folder, *wanted)

    def run(*arguments):
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
            "DEVCTL_CACHE_DIR": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "1",
        }
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.version = chosen
    return run


def test_a_release_is_planned_for_traced_and_loaded_with(release, tmp_path):
    compared = json.loads(release("-m", "tests.models.on_release"))
    assert compared["transformers"] == release.version
    assert compared["equal"] > 200, compared
    assert not (compared["known"] and "otherwise" in compared), compared

    folder = small_models.save("llama", tmp_path / "llama")
    plan = tmp_path / "plan.json"
    release("-m", "devctl", "plan", folder, "--devices", "2x8GiB", "--context-length", "64", "--report", plan)
    document = json.loads(plan.read_text())
    assert document["versions"]["transformers"] == release.version
    assert sum(device["state"] for device in document["devices"]) > 0, document["notes"]

    report = json.loads(release("-m", "devctl", "load", folder, "--map", "cpu", "--json"))
    assert report["ok"], report["proofs"]


def test_where_no_index_answers_no_release_is_offered(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    assert offered(required("transformers")) == []
