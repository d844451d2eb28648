"""How a command says what it takes, and how plain words are read for it. Pure, but for `home_of`, which names paths.

A command is a function: an annotation names each option and argument, with its help. Whoever asks one thing does not
wait for a library of command lines: words that are plainly right are read here, in some milliseconds. All others,
wrong ones, --help and the shell's questions, are for command_app.py, which reads the same functions; a test holds both
to the same meaning.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_type_hints

from hotpair.actors.home import Home

_NUMBER = {int: re.compile(r"[0-9]{1,9}"), float: re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")}


class CommandFailed(Exception):
    """Nothing was done; one line says why."""


@dataclass(frozen=True)
class Parameter:
    """`names`: of an option, as "--lines"; of an argument there are none. `least`, `most`: of a number."""

    names: tuple[str, ...]
    help: str
    metavar: str | None = None
    least: float | None = None
    most: float | None = None


def option(
    *names: str, help: str = "", metavar: str | None = None, least: float | None = None, most: float | None = None
) -> Parameter:
    assert names
    return Parameter(names, help, metavar, least, most)


def argument(*, help: str = "", metavar: str | None = None) -> Parameter:
    return Parameter((), help, metavar)


HomeOption = Annotated[
    str | None, option("--home", metavar="DIR", help="Everything below one directory, instead of /etc and /var/lib")
]
ModuleArgument = Annotated[str, argument(metavar="MODULE", help="The module's name")]


def home_of(given: str | None) -> Home:
    return Home.standard() if given is None else Home.at(given)


@dataclass(frozen=True)
class Taken:
    """One parameter of a command: `kind` as in the signature, without None; `is_needed`: it has no default."""

    name: str
    kind: Any
    said: Parameter
    is_needed: bool


def taken_by(command: Callable[..., Any]) -> list[Taken]:
    """In their order."""
    hints = get_type_hints(command, include_extras=True)
    found = []
    for name, parameter in inspect.signature(command).parameters.items():
        kind, said = get_args(hints[name])
        assert isinstance(said, Parameter)
        kinds = [one for one in get_args(kind) if one is not NoneType] if NoneType in get_args(kind) else [kind]
        found.append(Taken(name, kinds[0], said, parameter.default is parameter.empty))
    return found


def plainly(command: Callable[..., Any], words: Sequence[str]) -> dict[str, Any] | None:
    """What the words give the command. None: they are not plain, and may be wrong."""
    parameters = taken_by(command)
    options = {name: one for one in parameters for name in one.said.names}
    arguments = [one for one in parameters if not one.said.names]
    given: dict[str, Any] = {}
    left = iter(words)
    for word in left:
        if word.startswith("-"):
            one = options.get(word)
            value = True if one is not None and one.kind is bool else _value(one, next(left, ""))
        else:
            one = arguments.pop(0) if arguments else None
            value = _value(one, word)
        if one is None or value is None or one.name in given:
            return None
        given[one.name] = value
    return given if all(one.name in given or not one.is_needed for one in parameters) else None


def _value(one: Taken | None, word: str) -> Any:
    """None: not plain."""
    if one is None or not word or word.startswith("-"):
        return None
    if one.kind is str:
        return word
    if one.kind not in _NUMBER or not _NUMBER[one.kind].fullmatch(word):
        return None
    number = one.kind(word)
    least, most = one.said.least, one.said.most
    return number if (least is None or least <= number) and (most is None or number <= most) else None
