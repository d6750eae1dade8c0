"""``devctl completion``: the script that teaches a shell to complete."""

from enum import StrEnum
from typing import Annotated

import typer

from devctl.cli.show import streams


class Shell(StrEnum):
    """A shell that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    PWSH = "pwsh"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh, fish or pwsh.")],
) -> None:
    """Print the script that completes devctl's command line in a shell; docs/completion.md says where to put it.

    At once, in the shell that runs: `source <(devctl completion bash)`, the same for zsh, or
    `devctl completion fish | source`.
    """
    from devctl.completion.shells import script

    streams.answer(script(shell))
