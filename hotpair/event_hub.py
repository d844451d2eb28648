"""The modules' events for any number of listeners, each at its own speed. In one event loop; no IO.

Each event has a number. A listener that was away says the last one it has seen and gets those after it, as far as they
are kept; one that is too slow is ended, and comes back in the same way.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEPT = 1000  # for listeners that come back
WAITING = 500  # for one listener, before it is too slow
LISTENERS = 64  # at the same time: each is a connection

Entry = Mapping[str, Any]


class TooManyListeners(Exception):
    """The text says so."""


@dataclass(frozen=True)
class Numbered:
    """`identity`: what a listener gives back to go on after it."""

    identity: str
    entry: Entry


class Listening:
    """One listener's queue. None in it: no more will come."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Numbered | None] = asyncio.Queue(WAITING + KEPT + 2)
        self.missed = False  # there may have been events between the last one seen and the first one here


class Hub:
    """`hear` is for Supervisor.listen."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(4)  # numbers begin again with each process
        self._number = 0
        self._kept: deque[Numbered] = deque(maxlen=KEPT)
        self._listening: set[Listening] = set()

    def hear(self, entry: Entry) -> None:
        self._number += 1
        numbered = Numbered(f"{self._process}-{self._number}", entry)
        self._kept.append(numbered)
        for one in tuple(self._listening):
            if one.queue.qsize() >= WAITING + KEPT:
                self.leave(one)
            else:
                one.queue.put_nowait(numbered)

    def listen(self, after: str | None = None) -> Listening:
        """`after`: identity of the last event seen. Raises TooManyListeners."""
        if len(self._listening) >= LISTENERS:
            raise TooManyListeners(f"{LISTENERS} listeners are being served, which is the most: end one of them")
        listening = Listening()
        if after is not None:
            later = self._after(after)
            listening.missed = later is None
            for numbered in later or ():
                listening.queue.put_nowait(numbered)
        self._listening.add(listening)
        return listening

    def _after(self, identity: str) -> list[Numbered] | None:
        """Those after it; None when that is not known."""
        process, _, digits = identity.partition("-")
        if process != self._process or not digits.isdecimal() or int(digits) > self._number:
            return None
        first = self._number - len(self._kept) + 1
        number = int(digits)
        return None if number + 1 < first else list(self._kept)[number + 1 - first :]

    def leave(self, listening: Listening) -> None:
        if listening in self._listening:
            self._listening.discard(listening)
            listening.queue.put_nowait(None)  # there is room: the queue is one longer than what is ever waiting

    def close(self) -> None:
        for one in tuple(self._listening):
            self.leave(one)
