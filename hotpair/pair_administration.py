"""What an operator asks for: a module added, edited, removed on both servers. In the supervisor's event loop."""

from __future__ import annotations

import asyncio
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hotpair.actors.home import Home
from hotpair.actors.supervisor import UnknownModule
from hotpair.cluster.configuration_keys import ConfigurationError
from hotpair.pair_change import FIRST_MIRROR_PORT, Change, Kind, with_settings
from hotpair.pair_channel_io import PeerUnreachable
from hotpair.pair_coordinator import RefusedByPeer, carry_out, standings
from hotpair.pair_participant import ChangeFailed, ChangeRefused, Here, Participant, Standing
from hotpair.toml_text import NotWritable, table_text

PORT_KEY = "mirror_port"


class PairAdministration:
    """One change at a time on this server; the other one refuses a second by itself."""

    def __init__(self, here: Here, there: Participant, home: Home) -> None:
        self.here = here
        self._there = there
        self._home = home
        self._changing = asyncio.Lock()

    async def add(self, module: str, text: str, *, overwrite: bool, start: bool) -> list[str]:
        """Notes for people. Without `mirror_port` in the text, one is chosen. Raises as carry_out."""
        async with self._changing:
            mine, theirs = await standings(self.here, self._there)
            with_port, lines = await self._with_port(module, text, mine, theirs)
            change = _change(Kind.ADD, module, with_port, overwrite=overwrite)
            try:
                notes = await carry_out(change, self.here, self._there, mine, theirs)
            except ConfigurationError as error:
                raise _moved(error, lines) from error
            if start:
                notes += [*await self._started(self.here, module), *await self._started(self._there, module)]
            return notes

    async def edit(self, module: str, text: str | None, settings: Mapping[str, Any]) -> list[str]:
        """Another file, or single keys of the one that is there."""
        async with self._changing:
            mine, theirs = await standings(self.here, self._there)
            if module not in mine.modules:
                raise _unknown(module, mine)
            new = await self._set(module, settings) if text is None else text
            return await carry_out(_change(Kind.EDIT, module, new), self.here, self._there, mine, theirs)

    async def remove(self, module: str) -> list[str]:
        async with self._changing:
            mine, theirs = await standings(self.here, self._there)
            if module not in mine.modules and module not in theirs.modules:
                raise _unknown(module, mine)
            return await carry_out(_change(Kind.REMOVE, module), self.here, self._there, mine, theirs)

    async def _with_port(self, module: str, text: str, mine: Standing, theirs: Standing) -> tuple[str, int]:
        """The text, and how many lines were put before it. A text that is wrong is left to those who read it."""
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError):
            return text, 0
        if PORT_KEY in table:
            return text, 0
        begun = theirs.modules.get(module) or mine.modules.get(module)  # what was begun is completed with its port
        taken = {one.mirror_port for standing in (mine, theirs) for one in standing.modules.values()}
        port = begun.mirror_port if begun is not None else await self._free_port(taken)
        return f"{PORT_KEY} = {port}\n{text}", 1

    async def _free_port(self, taken: set[int]) -> int:
        """On both servers."""
        port = await self.here.free_port(taken, FIRST_MIRROR_PORT)
        while True:
            try:
                there = await self._there.free_port(taken, port)
            except ChangeRefused as error:
                raise RefusedByPeer(str(error)) from error
            if there == port:
                return port
            port = await self.here.free_port(taken, there)

    async def _set(self, module: str, settings: Mapping[str, Any]) -> str:
        """Raises ChangeRefused."""
        text = await self.here.text_of(module)
        try:
            return table_text(with_settings(tomllib.loads(text), settings))
        except (ValueError, RecursionError) as error:
            raise ChangeRefused(f"{self._home.module_file(module)} is not TOML: {error}") from error
        except KeyError as error:
            raise ChangeRefused(f"{error.args[0]} is a value and no table: it has no keys to set") from error
        except NotWritable as error:
            raise ChangeRefused(str(error)) from error

    async def _started(self, server: Participant, module: str) -> list[str]:
        """The module is there by now: why it does not start is a note."""
        try:
            await server.start(module)
        except (ChangeRefused, ChangeFailed, PeerUnreachable) as error:
            return [f"it was added, but not started: {error}"]
        return []


def _change(kind: Kind, module: str, text: str = "", *, overwrite: bool = False) -> Change:
    return Change(secrets.token_hex(16), kind, module, text, overwrite)


def _unknown(module: str, mine: Standing) -> UnknownModule:
    known = ", ".join(sorted(mine.modules)) or "none yet: hotpair module add"
    return UnknownModule(f"there is no module {module[:80]!r} on this pair; there are: {known}")


def _moved(error: ConfigurationError, lines: int) -> ConfigurationError:
    """With the line numbers of what was given."""
    problems = (replace(one, line=None if one.line is None else max(1, one.line - lines)) for one in error.problems)
    return ConfigurationError(list(problems))
