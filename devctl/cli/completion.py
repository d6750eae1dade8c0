"""``devctl completion``: the script that teaches a shell to complete."""

from enum import StrEnum
from typing import Annotated

import typer

from devctl.cli.show import streams
from devctl.errors import UsageError


class Shell(StrEnum):
    """A shell that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    PWSH = "pwsh"


def completion(
    shell: Annotated[Shell | None, typer.Argument(metavar="SHELL", help="bash, zsh, fish or pwsh.")] = None,
) -> None:
    """Print the script that completes devctl's command line in a shell.

    For good: add the line of the first example to ~/.bashrc, or with zsh to ~/.zshrc behind compinit, or write the
    script where the shell looks by itself. A shell that is running has to be started anew.
    """
    from devctl.completion.shells import script

    if shell is None:
        raise UsageError(f"which shell is it: {', '.join(Shell)}?", hint="write it like `devctl completion zsh`")
    streams.answer(script(shell))
