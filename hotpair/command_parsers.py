"""Commands as parsers: what was typed, what is wrong with it, help, and what a shell completes."""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any, NoReturn, get_args, get_type_hints

from hotpair import __version__
from hotpair.command_options import CommandFailed, Parameter

Command = Callable[..., Any]

DESCRIPTION = "Virtual machines on two servers, without shared disk. All commands are about this server, as root."
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
PATHS = {"DIR": "directory", "FILE": "file", "FILE.toml": "file", "USERCONFIG.XML": "file", "CLUSTER.XML": "file"}


class Parser(argparse.ArgumentParser):
    """Says only what was typed: whoever is asked has the defaults. What is wrong is one line, with what is right."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "argument_default": argparse.SUPPRESS, **given})

    def error(self, message: str) -> NoReturn:
        raise CommandFailed(f"{message} ({self.format_usage().strip()})")


def parser_of(words: str, command: Command) -> Parser:
    """For what follows the command's words."""
    return _taking(command, Parser(prog=f"hotpair {words}", **_said_of(command)))


def tree(commands: Mapping[str, Command]) -> Parser:
    """All commands by their words, in their groups. `shown` is the innermost parser that a command is missing for."""
    top = Parser(prog="hotpair", description=DESCRIPTION)
    top.add_argument("--version", action="version", version=f"hotpair {__version__}")
    top.set_defaults(shown=top)
    below = {"": top.add_subparsers(title="commands", metavar="COMMAND")}
    for words, command in commands.items():
        above, _, name = words.rpartition(" ")
        if above not in below:
            group = below[""].add_parser(above, help=GROUPS[above], description=GROUPS[above])
            group.set_defaults(shown=group)
            below[above] = group.add_subparsers(title="commands", metavar="COMMAND")
        said = _said_of(command)
        _taking(command, below[above].add_parser(name, help=_plain(said["description"]), **said))
    for name, what in ELSEWHERE.items():  # only shown: command_line.py has sent these words to their own programs
        below[""].add_parser(name, help=what)
    return top


def _said_of(command: Command) -> dict[str, Any]:
    description, _, epilog = (inspect.getdoc(command) or "").partition("\n\n")
    return {"description": description, "epilog": epilog}


def _taking(command: Command, parser: Parser) -> Parser:
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        kind, said = get_args(hints[name])
        kinds = [one for one in get_args(kind) if one is not NoneType] if NoneType in get_args(kind) else [kind]
        _take(parser, name, kinds[0], said, parameter.default)
    return parser


def _take(parser: Parser, name: str, kind: Any, said: Parameter, default: Any) -> None:
    """One option or argument. `kind` as in the signature, without None."""
    is_needed = default is inspect.Parameter.empty
    notes = [] if is_needed or default in (None, "", False) else [f"default: {default}"]
    more: dict[str, Any] = {}
    if kind is bool:
        more["action"] = argparse.BooleanOptionalAction if default else "store_true"
    else:
        more["metavar"] = said.metavar or name.upper()
        more["choices"] = said.choices
        if kind in (int, float):
            more["type"] = _number(kind, said)
            notes.insert(0, _bounds(said))
        elif kind is not str:
            more["action"] = "append"
    if said.names:
        more |= {"dest": name, "required": is_needed}
    elif not is_needed:
        more["nargs"] = "?"
    more["help"] = _plain(f"{said.help} ({'; '.join(notes)})" if notes else said.help)
    action = parser.add_argument(*(said.names or (name,)), **more)
    if said.metavar in PATHS:
        action.complete = PATHS[said.metavar]  # type: ignore[attr-defined]  # for shtab


def _number(kind: type[int] | type[float], said: Parameter) -> Callable[[str], float]:
    def read(word: str) -> float:
        try:
            number = kind(word)
        except ValueError:
            number = math.nan
        if not said.least <= number <= said.most:  # what is no number is not either
            what = "a whole number" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"{word!r}: give {what}, {_bounds(said)}")
        return number

    return read


def _bounds(said: Parameter) -> str:
    return f"at least {said.least:g}" if said.most == math.inf else f"{said.least:g} to {said.most:g}"


def _plain(text: str) -> str:
    """argparse puts values into a help text, as %(default)s."""
    return text.replace("%", "%%")
