"""What several commands have in common: options, and the error that ends one."""

from __future__ import annotations

from typing import Annotated

import typer

from hotpair.actors.home import Home

HomeOption = Annotated[
    str | None,
    typer.Option("--home", metavar="DIR", help="Everything below one directory, instead of /etc and /var/lib"),
]
ModuleArgument = Annotated[str, typer.Argument(metavar="MODULE", help="The module's name")]


class CommandFailed(Exception):
    """Nothing was done; one line says why."""


def home_of(given: str | None) -> Home:
    return Home.standard() if given is None else Home.at(given)
