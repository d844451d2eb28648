"""How a command says what it takes. Pure, but for `home_of`, which names paths.

A command is a function: an annotation names each option and argument, with its help (command_parsers.py reads them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from hotpair.actors.home import Home


class CommandFailed(Exception):
    """Nothing was done; one line says why."""


@dataclass(frozen=True)
class Parameter:
    """`names`: of an option, as "--lines"; of an argument there are none. `least`, `most`: of a number."""

    names: tuple[str, ...]
    help: str = ""
    metavar: str | None = None
    least: float = 0
    most: float = math.inf
    choices: tuple[str, ...] | None = None


def option(
    *names: str,
    help: str = "",
    metavar: str | None = None,
    least: float = 0,
    most: float = math.inf,
    choices: tuple[str, ...] | None = None,
) -> Parameter:
    assert names
    return Parameter(names, help, metavar, least, most, choices)


def argument(*, help: str = "", metavar: str | None = None, choices: tuple[str, ...] | None = None) -> Parameter:
    return Parameter((), help, metavar, choices=choices)


HomeOption = Annotated[
    str | None, option("--home", metavar="DIR", help="Everything below one directory, instead of /etc and /var/lib")
]
ModuleArgument = Annotated[str, argument(metavar="MODULE", help="The module's name")]


def home_of(given: str | None) -> Home:
    return Home.standard() if given is None else Home.at(given)
