"""What shells hand over, and what they are answered."""

import os
import subprocess
import sys

import pytest

from devctl.completion.offers import Offer, Offers
from devctl.completion.shells import Begun, answer, begun

LINE = "_DEVCTL_LINE"


def typed(line):
    found = begun("bash", [], {LINE: line})
    return found.words, found.current


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("devctl ", ((), "")),
        ("devctl pl", ((), "pl")),
        ("devctl plan  m --map ", (("plan", "m", "--map"), "")),
        ("devctl plan 'a b' --x", (("plan", "a b"), "--x")),
        ("devctl plan 'a b", (("plan",), "a b")),
        ('devctl plan "a \\" b', (("plan",), 'a " b')),
        ('devctl plan "a\\b', (("plan",), "a\\b")),
        ("devctl plan a\\ b", (("plan",), "a b")),
        ("devctl plan ''", (("plan",), "")),
        ("devctl plan '' x", (("plan", ""), "x")),
        ("CUDA_VISIBLE_DEVICES=0 devctl pl", ((), "pl")),
        ("A=1 B='x y' devctl plan --s", (("plan",), "--s")),
        ("devctl plan --strategy=bal", (("plan",), "--strategy=bal")),
        ("devctl plan \\", (("plan",), "")),
        ("devctl", ((), "")),
        ("", ((), "")),
    ],
)
def test_a_line_is_read_as_the_shell_reads_it(line, expected):
    assert typed(line) == expected


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_shells_that_hand_words_over_do_so_as_arguments(shell):
    assert begun(shell, ["plan", "a b", ""], {}) == Begun(("plan", "a b"), "")
    assert begun(shell, [], {}) is None


def test_words_as_typer_has_them_are_read_too():
    def found(words, number):
        return begun("bash", [], {"COMP_WORDS": words, "COMP_CWORD": number})

    assert found("devctl\npl", "1")[:2] == ((), "pl")
    assert found("devctl pl", "1")[:2] == ((), "pl")
    assert found("devctl\nplan\n--strategy\n=\nbal", "4")[:2] == (("plan",), "--strategy=bal")
    assert found("devctl\nplan", "2")[:2] == (("plan",), "")
    assert found("devctl 'plan", "1") is not None
    assert found("devctl", "many") is None
    assert found("devctl", "9" * 100) is None


def bash(words, line, breaks="\"'><=;|&(:"):
    found = Offers("words", tuple(Offer(word) for word in words))
    text = answer("bash", found, begun("bash", [], {LINE: line}), {"_DEVCTL_BREAKS": breaks})
    return text.splitlines()


@pytest.mark.parametrize(
    ("word", "line", "expected"),
    [
        ("balanced", "devctl plan --strategy bal", "balanced"),
        ("--strategy=balanced", "devctl plan --strategy=bal", "balanced"),
        ("a:2xH100", "devctl plan --devices a:2x", "2xH100"),
        ("a:2xH100;b:T4", "devctl plan --devices 'a:2xH100;b:", "a:2xH100;b:T4"),
        ("cuda:0", "devctl load --map cu", "cuda:0"),
        ("cuda:0", "devctl load --map cuda:", "0"),
        ("a b.json", "devctl load --map a", "a\\ b.json"),
        ("a b.json", "devctl load --map 'a", "a b.json"),
        ("a'b", "devctl load --map 'a", "a'\\''b"),
        ("a$b", 'devctl load --map "a', "a\\$b"),
        ("$(reboot)", "devctl load --map ", "\\$\\(reboot\\)"),
        ("`reboot`;x&y|z>q*?[!]{}#", "devctl load --map ", "\\`reboot\\`\\;x\\&y\\|z\\>q\\*\\?\\[\\!\\]\\{\\}\\#"),
        ("~/x y", "devctl load --map ~/", "~/x\\ y"),
        ("x~y", "devctl load --map x", "x~y"),
        ("日本", "devctl load --map ", "日本"),
    ],
)
def test_bash_is_given_what_it_sets_in_as_it_is(word, line, expected):
    assert bash([word], line)[1:] == [expected]


def test_bash_is_told_where_no_space_is_to_follow():
    assert bash(["cpu=", "0="], "devctl plan --max-memory ")[0] == "open"
    assert bash(["models/", "map.json"], "devctl plan ")[0] == "words"
    assert bash([], "devctl plan ") == ["words"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "pwsh"])
def test_nothing_begins_a_line_that_is_no_candidate(shell):
    found = Offers("words", (Offer("a\nfiles"), Offer("b\x1b[2J"), Offer("c", "a help\nof\ttwo lines"), Offer("d\te")))
    lines = answer(shell, found, Begun((), ""), {}).splitlines()
    assert len(lines) == 2
    assert lines[0] == "words"
    assert lines[1].split("\t")[0] == "c"


@pytest.mark.parametrize(
    ("kind", "shell"), [("files", "bash"), ("folders", "bash"), ("files", "zsh"), ("folders", "zsh")]
)
def test_shells_complete_files_themselves(kind, shell):
    assert answer(shell, Offers(kind, (Offer("x"),)), Begun((), ""), {}) == f"{kind}\n"


def test_fish_and_powershell_are_given_files():
    assert answer("fish", Offers("files", (Offer("x y"),)), Begun((), ""), {}) == "files\nx y\n"
    assert (
        answer("pwsh", Offers("files", (Offer("x y"), Offer("it's"))), Begun((), ""), {}) == "files\n'x y'\n'it''s'\n"
    )


def test_quoted_words_are_one_word_to_bash_whatever_is_in_them():
    """A name that could be run is not: bash itself says what it makes of the line."""
    hostile = [
        "$(touch x)",
        "`id`",
        "a;b",
        "a b",
        "it's",
        'say "x"',
        "\\",
        "*",
        "~root",
        "#x",
        "!!",
        "a\\ b",
        "-x",
        "{a,b}",
    ]
    for quote in ("", "'", '"'):
        for word in hostile:
            if quote == "" and word.startswith("~"):
                continue  # is meant as a home
            (set_in,) = bash([word], f"devctl load --map {quote}")[1:]
            done = subprocess.run(
                ["bash", "--norc", "-c", f"printf '<%s>' {quote}{set_in}{quote}"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout == f"<{word}>", (quote, word)


def test_tab_imports_neither_the_commands_nor_what_reads_options():
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print(*sorted(sys.modules), file=sys.stderr))\n"
        "sys.argv = ['devctl', 'plan', '--devices', '2xH']\n"
        "from devctl.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"_DEVCTL_COMPLETE": "complete_zsh"},
    )
    assert "2xH100" in done.stdout.splitlines()
    modules = [name for name in done.stderr.split() if name.partition(".")[0] in ("typer", "devctl", "rich", "torch")]
    assert "devctl.completion.entry" in modules
    allowed = {"devctl", "devctl.__main__", "devctl.writing", "devctl.errors"}
    assert {m for m in modules if not m.startswith("devctl.completion")} == allowed
