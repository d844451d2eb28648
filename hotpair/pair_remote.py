"""The other server as a participant in a change: what it is asked and answers, over the pair's channel.

The values on the wire are those of pair_change.py and pair_participant.py as JSON; what does not fit is the peer's of
another version, and is said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, Protocol

from hotpair.pair_change import Change, Kind, Present
from hotpair.pair_channel_io import PeerRefused
from hotpair.pair_participant import ChangeFailed, ChangeRefused, Participant, Standing

PREPARE_S = 45.0  # longer than the peer gives its disks and drivers
COMMIT_S = 100.0  # longer than three actors of a module take to start
REFUSED, FAILED, BAD = 409, 500, 400
THREADS = 2
_OTHER_VERSION = "the peer has another version of hotpair: update both servers"


class Asks(Protocol):
    """PeerChannel. Blocks. Raises PeerUnreachable, PeerRefused."""

    def ask(self, word: str, given: Mapping[str, Any], limit_s: float = ...) -> dict[str, Any]: ...


class There:
    """The peer. All methods raise PeerUnreachable besides."""

    def __init__(self, server: str, channel: Asks) -> None:
        self._server = server
        self._channel = channel
        self._threads = ThreadPoolExecutor(THREADS, "peer")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def server(self) -> str:
        return self._server

    async def standing(self) -> Standing:
        said = await self._ask("standing", {}, PREPARE_S)
        try:
            modules = {name: Present(**one) for name, one in said["modules"].items()}
            return Standing(said["server"], said["cluster"], modules)
        except (KeyError, TypeError, AttributeError) as error:
            raise ChangeRefused(f"{self._server} has another version of hotpair: update both servers") from error

    async def prepare(self, change: Change, others: tuple[str, ...]) -> None:
        await self._ask("prepare", {**_written(change), "others": list(others)}, PREPARE_S)

    async def commit(self, change: Change) -> list[str]:
        said = await self._ask("commit", _written(change), COMMIT_S)
        return [str(note) for note in said.get("notes", ())]

    async def undo(self, change: Change) -> None:
        await self._ask("undo", _written(change), COMMIT_S)

    async def start(self, module: str) -> None:
        await self._ask("start", {"module": module}, PREPARE_S)

    async def free_port(self, taken: Collection[int], least: int) -> int:
        said = await self._ask("free-port", {"taken": sorted(taken), "least": least}, PREPARE_S)
        return int(said["port"])

    async def _ask(self, word: str, given: Mapping[str, Any], limit_s: float) -> dict[str, Any]:
        ask = asyncio.get_running_loop().run_in_executor(self._threads, lambda: self._channel.ask(word, given, limit_s))
        try:
            return await ask
        except PeerRefused as error:
            if error.status == FAILED:
                raise ChangeFailed(str(error)) from error
            raise ChangeRefused(str(error), is_state=error.status == REFUSED) from error


class BadQuestion(Exception):
    """Not what a peer of this version asks."""


async def answer(here: Participant, word: str, given: Any) -> dict[str, Any]:
    """What this server says to its peer. Raises BadQuestion, and what the participant raises."""
    match word:
        case "standing":
            return asdict(await here.standing())
        case "prepare":
            await here.prepare(_read(given), _names(given))
            return {}
        case "commit":
            return {"notes": await here.commit(_read(given))}
        case "undo":
            await here.undo(_read(given))
            return {}
        case "start":
            await here.start(_text(given, "module"))
            return {}
        case "free-port":
            return {"port": await here.free_port(*_ports(given))}
    raise BadQuestion(f"this version of hotpair does not know {word[:40]!r}: update both servers")


def _written(change: Change) -> dict[str, Any]:
    return {**asdict(change), "kind": change.kind.value}


def _read(given: Any) -> Change:
    """Raises BadQuestion."""
    identity, kind, module, text = (_text(given, name) for name in ("identity", "kind", "module", "text"))
    overwrite = given.get("overwrite")
    if kind not in [one.value for one in Kind] or not isinstance(overwrite, bool):
        raise BadQuestion(_OTHER_VERSION)
    return Change(identity, Kind(kind), module, text, overwrite)


def _text(given: Any, name: str) -> str:
    value = given.get(name) if isinstance(given, dict) else None
    if not isinstance(value, str):
        raise BadQuestion(_OTHER_VERSION)
    return value


def _names(given: Any) -> tuple[str, ...]:
    names = given.get("others")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadQuestion(_OTHER_VERSION)
    return tuple(names)


def _ports(given: Any) -> tuple[list[int], int]:
    taken, least = (given.get("taken"), given.get("least")) if isinstance(given, dict) else (None, None)
    if not isinstance(taken, list) or not isinstance(least, int) or not all(isinstance(port, int) for port in taken):
        raise BadQuestion(_OTHER_VERSION)
    return taken, least
