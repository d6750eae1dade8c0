"""What may be written at one place of a command line."""

import pytest
import typer

from devctl.cli import COMMANDS, app
from devctl.completion.entry import table
from devctl.completion.offers import Offer, Offers, offers

NOTHING: tuple[str, list[Offer]] = ("words", [])


def look(kind, begun, _):
    return Offers("files" if kind == "files" else "words", (Offer(f"{begun}<{kind}>"),))


def offered(*words):
    found = offers(table(), words[:-1], words[-1], look)
    return found.kind, [word for word, _ in found.offers]


def words(*line):
    return offered(*line)[1]


def test_commands_are_first():
    assert {"list", "check", "plan", "load", "export", "doctor", "completion"} <= set(words(""))
    assert words("pl") == ["plan"]
    assert words("--v") == ["--version"]
    assert offered("nonsense", "") == NOTHING
    assert offered("nonsense", "--x", "") == NOTHING


def test_each_command_has_a_line_on_what_it_does():
    assert all(text for _, text in offers(table(), (), "", look).offers)


def test_each_value_that_is_offered_is_taken():
    group = typer.main.get_command(app)
    for name in COMMANDS:
        command = group.get_command(None, name)
        options = {option["names"][-1]: option["values"] for option in table()["commands"][name]["options"]}
        for param in command.params:
            for value in options.get(param.opts[-1], ()):
                param.type_cast_value(None, value)  # which refuses what it does not know
    assert words("plan", "m", "--engine", "") == ["transformers", "vllm"]


def test_the_argument_comes_before_options_which_come_where_none_is_left():
    assert words("plan", "") == ["<models>"]
    assert words("plan", "org/mod") == ["org/mod<models>"]
    assert "--strategy" in words("plan", "org/model", "")
    assert offered("plan", "org/model", "more") == NOTHING
    assert words("export", "") == ["<json>"]
    assert words("export", "plan.json", "") == ["<models>"]
    assert words("completion", "") == ["bash", "zsh", "fish", "pwsh"]


def test_options_that_were_given_are_not_offered_again_unless_they_may_be():
    assert "--strategy" not in words("plan", "m", "--strategy", "auto", "--s")
    assert "--strategy" not in words("plan", "m", "--strategy=auto", "--s")
    assert "--max-memory" in words("plan", "m", "--max-memory", "0=1GiB", "--max")
    assert "-h" not in words("plan", "m", "-")
    assert words("plan", "m", "-h") == ["-h"]


@pytest.mark.parametrize("line", [("--strategy", "BAL"), ("m", "--strategy", "bal"), ("--", "--strategy", "x")])
def test_the_value_of_an_option_is_begun_behind_it(line):
    expected = [] if line[0] == "--" else ["balanced", "balanced_low_0"]
    assert [word for word in words("plan", *line) if word.startswith("bal")] == expected


def test_a_value_behind_an_equals_sign_is_offered_with_its_option():
    assert words("plan", "m", "--strategy=bal") == ["--strategy=balanced", "--strategy=balanced_low_0"]
    assert words("plan", "m", "--devices=2xH") == ["--devices=2xH<devices>"]
    assert offered("plan", "m", "--report=x") == ("files", ["--report=x<files>"])
    assert offered("plan", "m", "--json=x") == NOTHING
    assert offered("plan", "m", "--nonsense=x") == NOTHING


def test_a_number_is_for_whoever_types_it():
    assert offered("plan", "m", "--batch-size", "") == NOTHING
    assert offered("plan", "m", "--context-length=") == NOTHING


def test_flags_take_no_value():
    assert "--strategy" in words("plan", "m", "--json", "--s")


def test_behind_two_dashes_there_is_no_option():
    assert offered("plan", "--", "--x") == ("words", ["--x<models>"])
    assert offered("plan", "--", "m", "--x") == NOTHING


def test_a_lone_dash_is_stdin():
    assert "--strategy" in words("plan", "-")
    assert "--strategy" in words("plan", "-", "--s")
