"""The command line. Commands gather, compute and show; errors are printed here, and nowhere else."""

import functools
import os
import signal
import sys
import threading
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import devctl
from devctl.cli import signals
from devctl.cli.groups import PanelledCommand, shown_by_us
from devctl.cli.show import streams
from devctl.errors import DevctlError, ExitCode, first_line

_HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}


COMMANDS = {
    "list": "devctl.cli.list:list_",
    "check": "devctl.cli.check:check",
    "plan": "devctl.cli.plan:plan",
    "load": "devctl.cli.load:load",
    "export": "devctl.cli.export:export",
    "doctor": "devctl.cli.doctor:doctor",
    "completion": "devctl.cli.completion:completion",
}
"""Where each command is; its module is imported when the command is asked for, so that `list` starts fast."""


class _Devctl(TyperGroup):
    """Finds the commands, and is the one place where an exception becomes a message and an exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS]  # the module `list` beside this one may be here by that name

    def get_help(self, ctx: Any) -> str:
        """All that ``--help`` prints."""
        from devctl.cli.helps import help_of_all

        return help_of_all(ctx, self)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``."""
        return shown_by_us(super().get_help_option(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _command(cmd_name) if cmd_name in COMMANDS else None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        bare = not args  # then the help is shown, which is no error to explain
        try:
            return super().parse_args(ctx, args)
        except DevctlError as error:  # of what is answered at once, as --version
            streams.error(error)
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if bare or not _is_typers(error):
                raise
            _explain(error, ctx)
            raise typer.Exit(ExitCode.USAGE) from None

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DevctlError as error:
            signals.exit_if_ended()
            if os.environ.get("DEVCTL_DEBUG"):
                streams.trace(error)
            streams.error(error)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            streams.message("interrupted")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except BrokenPipeError:
            # the reader of our output has gone, as in `devctl list | head -1`: leave without a word
            streams.abandon(sys.stdout)
            raise typer.Exit(ExitCode.BUG) from None
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:  # noqa: BLE001 - told, whatever it is
            signals.exit_if_ended()
            if _is_typers(error):
                _explain(error, ctx)
                raise typer.Exit(ExitCode.USAGE) from None
            if os.environ.get("DEVCTL_DEBUG"):
                streams.trace(error)
                raise typer.Exit(ExitCode.BUG) from None
            streams.message(
                f"unexpected failure: {type(error).__name__}: {first_line(error)}",
                "this is a bug in devctl; please report it with the traceback that DEVCTL_DEBUG=1 shows",
            )
            raise typer.Exit(ExitCode.BUG) from None


@functools.cache
def _command(name: str) -> Any:
    """The command of that name, as Typer makes it of its function; it keeps nothing of a run, and is made once."""
    module, _, function = COMMANDS[name].partition(":")
    lone = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    lone.command(name, cls=PanelledCommand, context_settings=_HELP_OPTIONS)(getattr(import_module(module), function))
    return typer.main.get_command(lone)


def _is_typers(error: Exception) -> bool:
    """Whether Typer found the command line wrong; its exceptions are of the Click that it brings along."""
    return type(error).__module__.startswith("typer") and hasattr(error, "format_message")


def _explain(error: Any, ctx: Any) -> None:
    """A wrong command line, in two lines as every error."""
    where = getattr(error, "ctx", None) or ctx
    from devctl.cli.wrong import explained

    streams.message(explained(error, COMMANDS), f"see `{where.command_path} --help`")


app = typer.Typer(
    cls=_Devctl,
    name="devctl",
    help="What hardware is here, where each layer of a model should go, and does it really run there.",
    no_args_is_help=True,
    add_completion=False,  # `devctl completion` is ours, and Typer's imports what no command needs
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=_HELP_OPTIONS,
)


def _version(value: bool) -> None:
    if value:
        streams.answer(devctl.__version__ + "\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def _interrupt_again(ignored: Any) -> None:
    """Keep a Ctrl-C that came within a callback, whose exceptions Python only prints; importing torch has many."""
    if isinstance(ignored.exc_value, KeyboardInterrupt) and hasattr(signal, "pthread_kill"):
        main_thread = threading.main_thread().ident or 0
        # to that thread itself, so that it also ends what it waits for
        threading.Timer(0.01, signal.pthread_kill, (main_thread, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(ignored)


def main() -> None:
    """The ``devctl`` entry point."""
    if "_DEVCTL_COMPLETE" in os.environ:
        from devctl.completion.entry import complete_if_asked

        complete_if_asked()
    sys.unraisablehook = _interrupt_again
    if not sys.warnoptions and not os.environ.get("DEVCTL_DEBUG"):
        warnings.simplefilter("ignore")  # those of the frameworks, which tell our users nothing
    signals.listen()
    streams.write_what_can_be_written()
    try:
        app(prog_name="devctl")
    except SystemExit as stop:
        signals.leave_if_ended(stop.code)
        raise
