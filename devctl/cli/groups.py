"""Groups of options: frozen dataclasses that a decorator spreads over a command's parameters, for Typer to read."""

import functools
import inspect
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

from devctl.cli.show import streams
from devctl.errors import UsageError

if TYPE_CHECKING:
    from devctl.planning.clashes import Clash

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


class PanelledCommand(TyperCommand):
    """A command whose help has a section for each panel of its options, examples, and its exit codes."""

    def get_help(self, ctx: Any) -> str:
        """All that ``--help`` prints."""
        from devctl.cli.helps import help_of  # which no command needs that runs

        return help_of(ctx, self)

    def get_help_option(self, ctx: Any) -> Any:
        """``--help``."""
        return shown_by_us(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the command line apart, in which an option that has one value stands once."""
        if not ctx.resilient_parsing:
            try:
                _, _, found = self.make_parser(ctx).parse_args(args=[*args])
            except Exception as error:
                if getattr(error, "ctx", ctx) is None:  # then it is not told whose help says more
                    error.ctx = ctx  # type: ignore[attr-defined]
                raise
            _refuse_repeated(found)
        return super().parse_args(ctx, args)


def shown_by_us(help_option: Any) -> Any:
    """Click's option ``--help``, whose answer is written as all of ours are: a full disk is said to be one."""

    def show(ctx: Any, _: Any, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            streams.answer(ctx.get_help() + "\n")
            ctx.exit()

    if help_option is not None:
        help_option.callback = show
    return help_option


def _refuse_repeated(found: list[Any]) -> None:
    """Refuse an option that is given twice and read once: the value that is lost would change the answer.

    Args:
        found: the parameters of a command line, as often as each stands there.

    Raises:
        UsageError: naming it.
    """
    if any(param.name == "help" for param in found):  # it is answered, whatever else there is
        return
    seen = set()
    for param in found:
        if param.param_type_name != "option" or param.multiple or param.is_flag:
            continue
        if param.name in seen:
            from devctl.cli.helps import value_of

            name = param.opts[-1]
            hint = f"write it once: {name} {value_of(param)}"
            raise UsageError(f"{name} is given twice, and only one is read", hint=hint)
        seen.add(param.name)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """``command``, which takes option groups, as Typer can read it: with an option for each field of each group.

    A group is a frozen dataclass whose fields are annotated as Typer's options are. Its ``PANEL`` is the section of the
    help that they are in. Parameters that are no group stay as they are. What takes long is shown on a terminal.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    members: dict[str, tuple[type, list[str]]] = {}
    for name, parameter in inspect.signature(command).parameters.items():
        kind = hints[name]
        if not is_dataclass(kind):
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        assert isinstance(kind, type), "a group is a class"
        panel, of_field = getattr(kind, "PANEL", None), get_type_hints(kind, include_extras=True)
        members[name] = (kind, [field.name for field in fields(kind)])
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=_in_panel(of_field[field.name], panel),
            )
            for field in fields(kind)
        ]

    @functools.wraps(command)
    def spread(**values: Any) -> None:
        groups = {name: kind(**{each: values.pop(each) for each in names}) for name, (kind, names) in members.items()}
        from devctl.cli.reporter import Terminal
        from devctl.planning.progress import reporting

        with reporting(Terminal()):
            command(**groups, **values)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def _in_panel(annotation: Any, panel: str | None) -> Any:
    kind, info = get_args(annotation)
    info = copy(info)
    info.rich_help_panel = panel
    return Annotated[kind, info]


def given(*groups: Any) -> frozenset[str]:
    """Names, without dashes, of the options in ``groups`` that are not as they are where nothing is said."""
    found = set()
    for group in groups:
        of_field = get_type_hints(type(group), include_extras=True)
        for field in fields(group):
            if (value := getattr(group, field.name)) not in (None, field.default):
                info = get_args(of_field[field.name])[1]
                # of an annotation, Typer keeps the first name where a default would be
                names = [n for n in (info.default, *(info.param_decls or ())) if str(n).startswith("--")]
                name = names[0].removeprefix("--") if names else field.name.replace("_", "-")
                found |= {name, f"{name} {value}"}
    return frozenset(found)


def refuse_clashes(table: "Iterable[Clash]", *groups: Any) -> None:
    """Refuse options that make no sense together, or change nothing where they stand.

    Raises:
        UsageError: naming those to leave out.
    """
    from devctl.planning.clashes import refuse

    refuse(table, given(*groups))
