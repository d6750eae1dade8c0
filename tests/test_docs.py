"""The pages for users: what they show is what is printed, and what they link to is there."""

import re

import pytest

from tests import docs

EVERY = sorted([*docs.ROOT.glob("*.md"), *(docs.ROOT / "docs").glob("**/*.md")])
SHOWN = [page for page in docs.PAGES if docs.blocks(page.read_text(encoding="utf-8"))]


def named(page):
    return str(page.relative_to(docs.ROOT))


@pytest.mark.parametrize("page", SHOWN, ids=named)
def test_a_page_shows_what_is_printed(page, tmp_path):
    """`python -m tests.docs --write` writes it anew."""
    text = page.read_text(encoding="utf-8")
    for block, printed in zip(docs.blocks(text), docs.run_page(text, tmp_path), strict=True):
        if not block.holds(printed):
            assert block.shown == printed


@pytest.mark.parametrize("page", docs.PAGES, ids=named)
def test_every_console_block_begins_with_a_command(page):
    assert re.findall(r"^```console\n(?!\$ ).*", page.read_text(encoding="utf-8"), re.MULTILINE) == []


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
    page = "```console\n$ echo 12 ms\n13 ms\n```\n\n```text\n$ echo 12 ms\n13 ms\n```\n\n```text\n$ echo 1\n2\n```\n"
    printed = docs.run_page(page, tmp_path)
    assert [block.holds(said) for block, said in zip(docs.blocks(page), printed, strict=True)] == [False, True, False]


def test_every_exit_code_is_documented():
    from devctl.errors import ExitCode

    for code in ExitCode:
        assert f"| {code.value} |" in (docs.ROOT / "docs/json.md").read_text(encoding="utf-8")
