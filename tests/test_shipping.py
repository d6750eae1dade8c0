"""What is given away: built, checked, and run from an environment of its own, outside of the checkout."""

import json
import os
import re
import subprocess
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import devctl

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PIP = ["-m", "pip", "--disable-pip-version-check", "--quiet", "--retries", "0", "--timeout", "20"]
TOOLS = ("build", "twine", "hatchling")


def python(folder):
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def run(*command, **options):
    """What a command prints to stdout; it is told nothing of this checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with an sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    venv.create(folder / "tools", with_pip=True)
    try:
        run(
            python(folder / "tools"),
            *PIP,
            "download",
            "--no-deps",
            "--dest",
            folder / "asked",
            "hatchling",
            timeout=120,
        )
    except (AssertionError, subprocess.TimeoutExpired):
        pytest.skip("no package index answers")
    run(python(folder / "tools"), *PIP, "install", *TOOLS)
    run(python(folder / "tools"), "-m", "build", "--no-isolation", "--outdir", folder / "dist", ROOT)
    run(python(folder / "tools"), "-m", "twine", "check", "--strict", *(folder / "dist").iterdir())
    return folder / "dist"


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An empty environment with the wheel; what it needs comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    (wheel,) = built.glob("*.whl")
    run(python(folder), *PIP, "install", "--no-index", "--no-deps", wheel)
    run(python(folder), "-c", _PATH_FILE, *{sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    return folder


_PATH_FILE = """
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "zz_tests.pth").write_text("\\n".join(sys.argv[1:]))
"""
"""Puts folders behind all else on a path. Their own .pth files, like an editable devctl's, are not read."""


@pytest.mark.slow
@pytest.mark.registry
def test_the_wheel_runs_where_there_is_no_checkout(installed, tmp_path):
    (tmp_path / "config.json").write_text((ROOT / "tests/configs/tiny-llama/config.json").read_text())
    program = python(installed).with_name("devctl")
    where = run(python(installed), "-c", "import devctl; print(devctl.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    assert run(program, "--version", cwd=tmp_path) == f"{devctl.__version__}\n"
    assert json.loads(run(program, "list", "--json", cwd=tmp_path))["schema"] >= 1
    arguments = ("plan", "config.json", "--devices", "1xH100", "--context-length", "64", "--no-offload", "--json")
    plan = json.loads(run(program, *arguments, cwd=tmp_path))
    assert plan["versions"]["devctl"] == devctl.__version__


@pytest.mark.slow
@pytest.mark.registry
def test_the_wheel_has_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0] for name in names} == {"devctl", f"devctl_gpu-{devctl.__version__}.dist-info"}
    assert set(names) >= kept("devctl")


@pytest.mark.slow
@pytest.mark.registry
def test_the_sdist_has_what_the_tests_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= kept(
        "devctl", "tests", "docs", "skills", ".github", "README.md", "CHANGELOG.md", "Makefile", "LICENSE"
    )


def kept(*paths):
    """The files that git has under ``paths``, or that are there where this is no clone."""
    done = subprocess.run(["git", "ls-files", "--", *paths], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return set(done.stdout.split("\n")) - {""}
    files = (
        file for path in paths for file in ([ROOT / path] if (ROOT / path).is_file() else (ROOT / path).rglob("*"))
    )
    return {str(file.relative_to(ROOT)) for file in files if file.is_file() and "__pycache__" not in file.parts}


def test_the_newest_entry_of_the_changelog_is_this_version_and_dated():
    first = re.search(r"^## (?!Unreleased)(.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.fullmatch(rf"{re.escape(devctl.__version__)} \(\d{{4}}-\d\d-\d\d\)", first[1])


def test_the_distribution_has_another_name_than_the_project_that_has_ours():
    assert PROJECT["name"] == "devctl-gpu"
    assert list(PROJECT["scripts"]) == ["devctl"]


def test_no_command_line_asks_for_a_distribution_called_devctl():
    """It would be another project's."""
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "skills").rglob("*.md")]:
        installs = re.findall(r"(?:pip|pipx|uv tool|uv pip) install ([^&`\n]*)", page.read_text(encoding="utf-8"))
        assert [line for line in installs if re.search(r"(?<![\w/-])devctl(?![\w-])", line)] == [], page.name
