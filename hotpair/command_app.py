"""All commands as a Typer application: help, what is wrong with the words that were typed, completion by the shell."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, get_args, get_type_hints

import typer

from hotpair import commands_asking, commands_local, commands_pair
from hotpair.command_options import CommandFailed, Parameter

Command = Callable[..., Any]

GROUPS = {
    "maintenance": "Suspend automatic failover and checkers, or not any more.",
    "module": "One module: shown in full, added, edited, removed.",
    "token": "Who may use the API from elsewhere.",
}
ELSEWHERE = {
    "run": "The service of this server (hotpair run --help).",
    "demo": "The main job, shown on one machine.",
    "mirror": "One mirror process without the rest (hotpair mirror source --help).",
    "witness": "The arbiter on a third machine (hotpair witness --help).",
    "simulate": "Lives of a pair with faults (hotpair simulate --help).",
}


def run(arguments: Sequence[str]) -> Any:
    """What the command returns. CommandFailed for words that make no sense; KeyboardInterrupt."""
    app = app_of({**commands_asking.COMMANDS, **commands_local.COMMANDS, **commands_pair.COMMANDS})
    try:
        return app(list(arguments), prog_name="hotpair", standalone_mode=False)
    except typer.TyperException as error:
        raise CommandFailed(error.format_message()) from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error


def app_of(commands: Mapping[str, Command]) -> typer.Typer:
    """The commands by their words."""
    app = typer.Typer(
        name="hotpair",
        help="Virtual machines on two servers, without shared disk. All commands are about this server, as root.",
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    groups = {name: typer.Typer(help=what, no_args_is_help=True) for name, what in GROUPS.items()}
    for name, group in groups.items():
        app.add_typer(group, name=name)
    for words, command in commands.items():
        above, _, name = words.rpartition(" ")
        (groups[above] if above else app).command(name)(_typers(command))
    for name, what in ELSEWHERE.items():
        app.command(name, help=what)(_elsewhere)
    return app


def _elsewhere() -> None:
    """Only shown: command_line.py has sent these words to their own programs before."""


def _typers(command: Command) -> Command:
    """The same command, its parameters said as Typer wants them."""
    hints = get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)

    def run(**given: Any) -> Any:
        return command(**given)

    said = {name: _said(hints[name]) for name in signature.parameters}
    given = [one.replace(annotation=said[name]) for name, one in signature.parameters.items()]
    run.__name__, run.__doc__, run.__annotations__ = command.__name__, command.__doc__, said
    run.__signature__ = signature.replace(parameters=given)  # type: ignore[attr-defined]
    return run


def _said(hint: Any) -> Any:
    kind, said = get_args(hint)
    assert isinstance(said, Parameter)
    if not said.names:
        return Annotated[kind, typer.Argument(metavar=said.metavar, help=said.help)]
    return Annotated[
        kind, typer.Option(*said.names, metavar=said.metavar, help=said.help, min=said.least, max=said.most)
    ]
