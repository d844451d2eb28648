"""What the demonstration shows while it waits: both servers as they say they are, and how much was written.

On a terminal a table that is kept up to date; elsewhere one line for each change.
"""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hotpair.api_values import Module
from hotpair.demo_servers_io import MODULE, TwoServers
from hotpair.terminal import state_text

LOOK_S = 0.25


class Screen:
    """`look` is called often, and looks now and then."""

    def __init__(self, console: Console, servers: TwoServers) -> None:
        self._console = console
        self._servers = servers
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        self._next = 0.0
        self._said = ""

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def look(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + LOOK_S
        found = {name: server.modules().get(MODULE) for name, server in self._servers.servers.items()}
        if self._live is not None:
            self._live.update(picture(found, self._servers.acknowledged()), refresh=True)
        elif (line := words(found)) != self._said:
            self._said = line
            self._console.print(f"    {line}", highlight=False, markup=False)


def picture(servers: dict[str, Module | None], written: int) -> Table:
    """One row for each server."""
    table = Table(title=f"{written:,} numbers acknowledged", title_justify="left")
    for column in ("server", "state", "VM", "its copy", "why"):
        table.add_column(column, overflow="fold")
    for name, module in servers.items():
        if module is None:
            table.add_row(name, Text("no power, or starting", style="red"), "", "", "")
        else:
            state = state_text(module.state, module.colour)
            table.add_row(name, state, module.vm, module.data, module.problem or module.reason)
    return table


def words(servers: dict[str, Module | None]) -> str:
    """The same in one line, without what changes all the time."""
    return "   ".join(f"{name} {_word(module)}" for name, module in servers.items())


def _word(module: Module | None) -> str:
    if module is None or module.state is None:
        return "-"
    return f"{module.state} {module.colour}"
