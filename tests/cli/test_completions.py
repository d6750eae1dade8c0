"""The completion scripts: current, and working in real shells."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import DEVCTL

SCRIPTS = Path(__file__).parents[2] / "completions"
FILES = {"bash": "devctl.bash", "zsh": "_devctl", "fish": "devctl.fish", "pwsh": "devctl.ps1"}
PATH = {"PATH": f"{DEVCTL.parent}{os.pathsep}{os.environ['PATH']}"}


def run(*command, **env):
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | PATH | env).stdout


@pytest.mark.parametrize("shell", FILES)
def test_the_scripts_are_current(shell):
    """`make completions` writes them."""
    assert (SCRIPTS / FILES[shell]).read_text() == run(DEVCTL, _DEVCTL_COMPLETE=f"source_{shell}")


def bash(words):
    """What bash offers after ``words``."""
    script = f"""
        source {SCRIPTS / "devctl.bash"}
        COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}
        _devctl_completion devctl
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return run("bash", "-c", script).split()


def test_bash_offers_commands():
    assert bash(["devctl", "p"]) == ["plan"]
    assert set(bash(["devctl", "''"])) >= {"list", "plan", "load"}


def test_bash_offers_options_and_their_values():
    assert "--max-memory" in bash(["devctl", "plan", "--max"])
    assert bash(["devctl", "plan", "--strategy", "bal"]) == ["balanced", "balanced_low_0"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_their_scripts(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    run(shell, "-n", str(SCRIPTS / FILES[shell]))


def test_fish_offers_commands():
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    out = run("fish", "-c", f"source {SCRIPTS / 'devctl.fish'}; complete -C 'devctl p'")
    assert out.split()[0] == "plan"


def test_zsh_completes_in_a_terminal(tmp_path):
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    script = f"""
        autoload -Uz compinit && compinit -u -d {tmp_path}/dump
        source {SCRIPTS / "_devctl"}
        print -r -- $_comps[devctl]
    """
    assert run("zsh", "-f", "-c", script).strip() == "_devctl_completion"
