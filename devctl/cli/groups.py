"""Groups of options: frozen dataclasses that a decorator spreads over a command's parameters, for Typer to read."""

import functools
import inspect
from collections.abc import Callable, Iterable
from copy import copy
from dataclasses import MISSING, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from devctl.planning.clashes import Clash

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


class PanelledCommand(TyperCommand):
    """A command whose help has a section for each panel of its options, examples, and its exit codes."""

    def get_help(self, ctx: Any) -> str:
        """All that ``--help`` prints."""
        from devctl.cli.helps import help_of  # which no command needs that runs

        return help_of(ctx, self)


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
