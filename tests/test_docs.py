"""The pages for users: what they show is what is printed, and what they link to is there."""

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from devctl.cli import app
from tests import docs
from tests.inventory import boxes
from tests.inventory.conftest import nvml_folder  # noqa: F401 - a fixture
from tests.marks import one_in, slow

EVERY = sorted([*docs.ROOT.glob("*.md"), *(docs.ROOT / "docs").glob("**/*.md"), *(docs.ROOT / "skills").rglob("*.md")])
WORKFLOWS = sorted((docs.ROOT / ".github").rglob("*.yml"))
DEVCTL = typer.main.get_command(app)
SHOWN = [page for page in docs.PAGES if docs.blocks(page.read_text(encoding="utf-8"))]
SHORT = docs.ROOT / "docs/hosts.md"
"""A page that is soon run: one plan with a workload."""


def named(page):
    return str(page.relative_to(docs.ROOT))


@pytest.mark.parametrize("page", [SHORT, *slow(*(page for page in SHOWN if page != SHORT))], ids=named)
def test_a_page_shows_what_is_printed(page, tmp_path):
    """`python -m tests.docs --write` writes it anew."""
    text = page.read_text(encoding="utf-8")
    for block, printed in zip(docs.blocks(text), docs.run_page(text, tmp_path), strict=True):
        if not block.holds(printed):
            assert block.shown == printed
    for command, path in docs.pictures(text):
        assert docs.draw(command, path, tmp_path) == (docs.ROOT / path).read_text(encoding="utf-8"), command


@pytest.mark.parametrize("page", docs.PAGES, ids=named)
def test_every_console_block_begins_with_a_command(page):
    assert re.findall(r"^```console.*\n(?!\$ ).*", page.read_text(encoding="utf-8"), re.MULTILINE) == []


@pytest.mark.parametrize("page", EVERY, ids=named)
def test_a_page_links_to_what_is_there(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_front_page_and_the_contents_link_to_every_page():
    front = (docs.ROOT / "README.md").read_text(encoding="utf-8")
    assert "](docs/README.md)" in front
    contents = (docs.ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (docs.ROOT / "docs").glob("*.md")} - {"README.md"}
    assert sorted(page for page in pages if f"]({page})" not in contents) == []


def test_what_a_command_prints_is_seen_as_on_a_terminal(tmp_path):
    page = """
```console
$ test -t 1 && test -t 2 && stty size <&1; echo "$COLUMNS"; exit_with() { return $1; }
24 80
80
$ exit_with 3
$ echo $?
3
$ echo one \\
  two; echo three >&2
one two
three
```
"""
    (block,) = docs.blocks(page)
    assert docs.run_page(page, tmp_path) == [block.shown]
    assert len(block.commands) == 4


def test_a_block_that_shows_something_else_is_found(tmp_path):
    page = "".join(
        f"```console{kind}\n$ echo {said}\n{shown}\n```\n\n"
        for kind, said, shown in (("", "12 ms", "13 ms"), (" figures", "12 ms", "13 ms"), (" figures", "1", "2"))
    )
    printed = docs.run_page(page, tmp_path)
    assert [block.holds(said) for block, said in zip(docs.blocks(page), printed, strict=True)] == [False, True, False]


def test_every_schema_is_linked_to():
    page = (docs.ROOT / "docs/json.md").read_text(encoding="utf-8")
    schemas = [str(path.relative_to(docs.ROOT)) for path in (docs.ROOT / "devctl").rglob("*schema.json")]
    assert [schema for schema in schemas if f"](../{schema})" not in page] == []


def test_every_exit_code_is_documented():
    from devctl.errors import ExitCode

    for code in ExitCode:
        assert f"| {code.value} |" in (docs.ROOT / "docs/json.md").read_text(encoding="utf-8")


def typed(page):
    """The commands of devctl that a page's blocks and text type, each with its arguments."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^```(sh|console|text|yaml).*?\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    inline = [("sh", code) for code in re.findall(r"(?<!`)`((?:\w+=\$\()?devctl [a-z]+ [^`]+)`", text)]
    for kind, block in [*fenced, *inline]:
        for line in block.replace("\\\n", " ").splitlines():
            if "devctl " not in line or (kind in ("console", "text") and not line.startswith("$ ")):
                continue
            words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
            for at, word in enumerate(words):
                if word == "devctl":
                    yield list(itertools.takewhile(lambda each: not set(each) <= set("();<>|&"), words[at + 1 :]))


@pytest.mark.parametrize("page", EVERY, ids=named)
def test_options_that_a_page_shows_are_there(page):
    for name, *arguments in typed(page):
        command = DEVCTL.get_command(typer.Context(DEVCTL), name)
        assert command is not None, name
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {argument.partition("=")[0] for argument in arguments if argument.startswith("--")} <= known, arguments


@pytest.mark.parametrize("page", [docs.ROOT / "docs/ci.md", *WORKFLOWS], ids=named)
def test_yaml_can_be_read(page):
    text = page.read_text(encoding="utf-8")
    for part in re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if page.suffix == ".md" else [text]:
        assert isinstance(yaml.safe_load(part), dict)


def test_the_workflow_runs_targets_that_the_makefile_has_on_every_python_and_kind_of_machine():
    jobs = yaml.safe_load((docs.ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))["jobs"]
    rules = set(re.findall(r"^([\w$()/.-]+):", (docs.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    runs = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    asked = {target for run in runs for target in re.findall(r"make (\S+)", run)}
    assert {target.replace(".venv", "$(VENV)") for target in asked} <= rules
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert matrix["os"] == ["ubuntu-latest", "ubuntu-24.04-arm", "macos-latest"]
    assert jobs["transformers"]["strategy"]["matrix"]["release"] == ["oldest", "between", "newest"]


@pytest.mark.parametrize("template", ["bug.yml", "board.yml"])
def test_an_issue_asks_for_the_doctor(template):
    body = yaml.safe_load((docs.ROOT / ".github/ISSUE_TEMPLATE" / template).read_text(encoding="utf-8"))["body"]
    (asked,) = [field for field in body if field.get("id") == "doctor"]
    assert asked["validations"]["required"] is True


PROLOG = (
    (docs.ROOT / "docs/ci.md").read_text(encoding="utf-8").partition("<!-- prolog -->\n```sh\n")[2].partition("```")[0]
)


@pytest.mark.parametrize(
    ("machine", "given", "code"),
    one_in(
        3,
        [
            (boxes.eight(), "0,1", 0),
            (boxes.eight(), "", 0),
            (boxes.one_lost(), "0,1,2", 1),
            (boxes.system() + boxes.board(0, remap=1), "0", 1),
        ],
    ),
)
def test_the_prolog_fails_for_sick_boards_alone(nvml_folder, tmp_path, machine, given, code):  # noqa: F811
    (tmp_path / "machine").write_text(machine)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "PYTHONPATH": str(docs.ROOT),
        "LD_LIBRARY_PATH": str(nvml_folder),
        "FAKE_NVML": str(tmp_path / "machine"),
        "SLURM_JOB_GPUS": given,
    }
    done = subprocess.run(["sh", "-c", PROLOG], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
