"""Which of what was said is the newest. Pure.

An actor that runs in an event loop is given its calls in any order: what was said last may be heard first. Each thing
said carries when that was, on this host's monotonic clock, which all its processes share; a level that is older than
what is known of the same thing is not listened to. What is no level is always news.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hotpair.cluster.module_events import MirrorReported, PeerHeard, PeerLost, VmReported


@dataclass(frozen=True)
class MirrorSays:
    """Why a module's mirror is not in sync, for people; empty when it is. The state machine is not told."""

    text: str


LEVELS: Mapping[type, str] = {
    MirrorReported: "mirror",
    MirrorSays: "mirror's reason",
    VmReported: "VM",
    PeerHeard: "peer",
    PeerLost: "peer",
}


@dataclass(frozen=True)
class Origin:
    """Who says something: `number` grows with each process that takes the role."""

    module: str
    role: str
    number: int


class Newest:
    """Of everything that one listener hears."""

    def __init__(self) -> None:
        self._number: dict[tuple[str, str], int] = {}
        self._said: dict[tuple[str, str], int] = {}

    def is_replaced(self, origin: Origin) -> bool:
        """A newer process has this role."""
        who = (origin.module, origin.role)
        before = self._number.get(who, 0)
        self._number[who] = max(before, origin.number)
        return origin.number < before

    def forget(self, module: str) -> None:
        """It was removed: another one of this name begins to count again."""
        for known in (self._number, self._said):
            for key in [key for key in known if key[0] == module]:
                del known[key]

    def is_news(self, origin: Origin, event: object, said_at_ns: int) -> bool:
        level = LEVELS.get(type(event))
        return level is None or self.is_newer(origin.module, level, said_at_ns)

    def is_newer(self, module: str, what: str, said_at_ns: int) -> bool:
        if said_at_ns < self._said.get((module, what), 0):
            return False
        self._said[module, what] = said_at_ns
        return True
