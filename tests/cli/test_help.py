"""What ``--help`` says, and in how many lines."""

import re
import shlex

import pytest
import typer

from devctl.cli import COMMANDS, app
from devctl.cli.helps import EXAMPLES

ALL = ["", *COMMANDS]
LEFTOVERS = re.compile(
    r"\{[A-Z]+\}|<(int|str|float|text|path|file)\b|\[x[<>]|<x[<>]|\[required\]|INTEGER|\[OPTIONS\] |ARGS|\.\.\.$", re.M
)


@pytest.fixture
def shown(devctl, monkeypatch):
    """The help of a command in so many columns."""

    def show(command, columns=None):
        if columns is not None:
            monkeypatch.setenv("COLUMNS", str(columns))
        done = devctl(*([command] if command else []), "--help")
        assert (done.code, done.err) == (0, "")
        return done.out

    return show


def options(command):
    """The parameters of a command that are options."""
    group = typer.main.get_command(app)
    found = group.get_command(None, command) if command else group
    return [param for param in found.params if param.param_type_name == "option" and not param.hidden]


@pytest.mark.parametrize("command", ALL)
@pytest.mark.parametrize(("columns", "most"), [(60, 60), (80, 80), (110, 110), (200, 110)])
def test_help_is_as_wide_as_the_terminal_within_reason(shown, command, columns, most):
    text = shown(command, columns)
    prose = [line for line in text.splitlines() if "  devctl " not in line]  # a command line is not parted
    assert max(map(len, prose)) <= most
    assert not re.search(r"[0-9]\n +[0-9]", text)


@pytest.mark.parametrize("command", ALL)
def test_nothing_of_the_library_beneath_is_left(shown, command):
    assert not LEFTOVERS.search(shown(command, 200)), LEFTOVERS.search(shown(command, 200))


@pytest.mark.parametrize("command", ALL)
def test_every_option_is_in_the_help_with_something_said_of_it(shown, command):
    text = shown(command, 200)
    for option in options(command):
        name = max(option.opts, key=len)
        assert re.search(rf"^  (-\w, )?{re.escape(name)}( [^ ].*?)?(  +|\n {{20,}})\S", text, re.M), name


@pytest.mark.parametrize("command", COMMANDS)
def test_most_options_take_a_line(shown, command):
    """At 110 columns all do, but for those that list what they may be."""
    lines = shown(command, 110).splitlines()
    further = [line for line in lines if line.startswith(" " * 32) and line.strip()]
    assert len(further) <= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_is_for_is_told_whole(shown, command):
    for columns in (60, 80):
        text = " ".join(shown("", columns).split())
        assert re.search(rf" {command} ([A-Z][^.]*\.)", text), "a sentence, to its end"
        assert "..." not in text.partition("Commands:")[2].partition("Options:")[0]


@pytest.mark.parametrize("command", ["devctl", *COMMANDS])
def test_three_examples_are_shown_and_can_be_typed(shown, command):
    text = shown("" if command == "devctl" else command, 80)
    assert len(EXAMPLES[command]) == 3
    group = typer.main.get_command(app)
    for line, does in EXAMPLES[command]:
        assert f"  {line}" in text and does in text
        for part in re.split(r" \| ", line.partition(" > ")[0]):
            if part == "source":  # what takes the script
                continue
            program, name, *arguments = shlex.split(re.sub(r"^source <\((.*)\)$", r"\1", part))
            assert program == "devctl"
            group.get_command(None, name).make_context(name, arguments)  # which refuses what it does not know


@pytest.mark.parametrize("command", COMMANDS)
def test_exit_codes_are_in_each_help(shown, command):
    codes = dict(re.findall(r"^ +([0-9]+) (.*)$", shown(command, 80).partition("Exit codes:\n")[2], re.M))
    assert {"0", "1", "2", "130"} <= codes.keys()
    assert ("3" in codes) == (command != "completion")  # which refuses nothing
    assert ("5" in codes) == (command == "load")
