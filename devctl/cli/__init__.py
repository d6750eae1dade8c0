"""The command line. Commands gather, compute and show; errors are printed here, and nowhere else."""

import importlib
import os
import signal
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperGroup

import devctl
from devctl.cli import render
from devctl.errors import DevctlError, ExitCode

_EPILOG = """Exit codes: 0 done; 1 unexpected failure; 2 wrong usage; 3 the honest no (does not fit, requirement not
met, map not valid here); 4 the model can't be read; 5 loading or the smoke inference failed; 130 interrupted."""


# in the order of --help; the function is named like its module, with an underscore where Python has taken the name
_COMMANDS = {"list": "list_", "check": "check", "plan": "plan", "load": "load"}

_SETTINGS: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class _Boundary(TyperGroup):
    """The one place where an exception becomes a message and an exit code.

    A command's module is imported when it is asked for, so that `list` does not wait for what `plan` and `load` need.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"devctl.cli.{cmd_name}")
        one = typer.Typer(add_completion=False, **_SETTINGS)
        one.command(cmd_name)(getattr(module, _COMMANDS[cmd_name]))
        return typer.main.get_command(one)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DevctlError as error:
            if os.environ.get("DEVCTL_DEBUG"):
                traceback.print_exc()
            render.error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            render.message("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # the reader of our output has gone, as in `devctl list | head -1`: leave without a word
            render.abandon_stdout()
            raise typer.Exit(ExitCode.BUG) from None
        except Exception as error:
            if type(error).__module__.startswith("typer"):
                raise
            if os.environ.get("DEVCTL_DEBUG"):
                raise
            render.message(
                f"unexpected failure: {type(error).__name__}: {error}",
                "this is a bug in devctl; please report it with the traceback that DEVCTL_DEBUG=1 shows",
            )
            raise typer.Exit(ExitCode.BUG) from None


app = typer.Typer(
    cls=_Boundary,
    name="devctl",
    help="What hardware is here, where each layer of a model should go, and does it really run there.",
    epilog=_EPILOG,
    no_args_is_help=True,
    **_SETTINGS,
)


def _version(value: bool) -> None:
    if value:
        render.answer(devctl.__version__ + "\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The ``devctl`` entry point."""
    if not sys.warnoptions and not os.environ.get("DEVCTL_DEBUG"):
        warnings.simplefilter("ignore")  # those of the frameworks, which tell our users nothing
    # a job that is cancelled cleans up behind itself as one that is interrupted does
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        app(prog_name="devctl")
    except KeyboardInterrupt:  # before a command began
        sys.exit(ExitCode.INTERRUPTED)
