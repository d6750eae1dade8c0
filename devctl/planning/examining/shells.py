"""Is the shell told how to complete devctl's command line? Where each looks, docs/completion.md says too."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from devctl.planning.examining.findings import Finding, note, ok
from devctl.writing import expanded

SHELLS = ("bash", "zsh", "fish", "pwsh")

_MOST_RC = 1 << 20
"""Bytes of a start-up file that are looked at."""

_RC_FILES = {
    "bash": ("~/.bashrc", "~/.bash_profile", "~/.profile", "~/.bash_completion"),
    "zsh": (".zshrc", ".zshenv", ".zprofile"),
    "fish": ("~/.config/fish/config.fish",),
    "pwsh": ("~/.config/powershell/Microsoft.PowerShell_profile.ps1", "~/.config/powershell/profile.ps1"),
}
_KEPT = {
    "bash": "add `source <(devctl completion bash)` to ~/.bashrc",
    "zsh": "add `source <(devctl completion zsh)` to ~/.zshrc, behind compinit",
    "fish": "write it with `devctl completion fish > ~/.config/fish/completions/devctl.fish`",
    "pwsh": "add `devctl completion pwsh | Out-String | Invoke-Expression` to $PROFILE",
}
"""How each shell is told for good."""
_MENTIONS = (
    "devctl completion",
    "bash_completions/devctl",
    "_DEVCTL_COMPLETE",
    "devctl.bash",
    "_devctl",
    "devctl.fish",
    "devctl.ps1",
)


def judge_completion(environment: Mapping[str, str]) -> list[Finding]:
    """Whether the user's shell would complete; nothing where it is not known which that is."""
    shell = shell_of(environment)
    if shell is None:
        return []
    if is_installed(shell, environment):
        if any(_is_older(path) for path in _places(shell, environment)):
            text = f"the script that {shell} has is of an older devctl, and offers nothing"
            return [note("completion", text, f"write it anew with `devctl completion {shell}`")]
        return [ok("completion", f"{shell} has it")]
    return [note("completion", f"{shell} has none of devctl", _KEPT[shell])]


def shell_of(environment: Mapping[str, str]) -> str | None:
    """The user's shell by SHELL; None where it is none of `SHELLS`."""
    name = os.path.basename(environment.get("SHELL", ""))  # noqa: PTH119
    return name if name in SHELLS else None


def is_installed(shell: str, environment: Mapping[str, str]) -> bool:
    """Whether a script lies where ``shell`` looks by itself, or a start-up file of its mentions one."""
    if any(_exists(path) for path in _places(shell, environment)):
        return True
    return any(mention in text for text in _start_up_files(shell, environment) for mention in _MENTIONS)


def _places(shell: str, environment: Mapping[str, str]) -> Iterator[Path]:
    data = expanded(environment.get("XDG_DATA_HOME") or "~/.local/share")
    shares = [data, Path(sys.prefix, "share"), *map(Path, ("/usr/local/share", "/usr/share", "/opt/homebrew/share"))]
    if shell == "bash":
        yield from (
            share / "bash-completion/completions" / name for share in shares for name in ("devctl", "devctl.bash")
        )
        yield Path("/etc/bash_completion.d/devctl")
    elif shell == "zsh":
        folders = [Path(folder) for folder in environment.get("FPATH", "").split(":") if folder]
        folders += [expanded("~/.zfunc"), expanded("~/.zsh/completions"), expanded("~/.oh-my-zsh/completions")]
        folders += [share / "zsh" / name for share in shares for name in ("site-functions", "vendor-completions")]
        yield from (folder / "_devctl" for folder in folders)
    elif shell == "fish":
        config = expanded(environment.get("XDG_CONFIG_HOME") or "~/.config")
        yield config / "fish/completions/devctl.fish"
        for share in shares:
            yield from (share / "fish" / n / "devctl.fish" for n in ("vendor_completions.d", "completions"))


def _start_up_files(shell: str, environment: Mapping[str, str]) -> Iterator[str]:
    home = environment.get("ZDOTDIR") or "~"
    for name in _RC_FILES[shell]:
        path = expanded(name if name.startswith("~") else f"{home}/{name}")
        try:
            if path.is_file():
                with path.open("rb") as file:
                    yield file.read(_MOST_RC).decode("utf-8", "replace")
        except OSError:
            continue


def _is_older(script: Path) -> bool:
    """Whether Typer wrote it, whose scripts for zsh and fish ask what is not answered any more."""
    try:
        with script.open("rb") as file:
            return b"_TYPER_COMPLETE_ARGS" in file.read(_MOST_RC)
    except OSError:
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder that we may not look into
        return False
