"""A module's event log: one line for each change of state and each reason, as JSON, for people and programs.

What is written here decides nothing, so a line that cannot be written is said once, in the service's log, and the
module goes on.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hotpair.cluster.module_events import CheckerActed, Commanded, Event, PeerHeard, Reply
from hotpair.cluster.module_values import Module, Reason

log = logging.getLogger("hotpair.events")

LARGEST_LOG_BYTES = 4 << 20  # then it becomes the old one: a year of failovers, or a day of flapping
KEPT = 500  # entries in memory, for whoever asks what happened lately


@dataclass(frozen=True)
class Note:
    """Something a module's helper has done that people must find; the state machine is not told."""

    text: str


class EventLog:
    """For ModuleRunner, as its diary. `hear` gets each entry as well."""

    def __init__(
        self,
        path: str,
        module: str,
        hear: Callable[[Mapping[str, Any]], None] = lambda entry: None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._module = module
        self._hear = hear
        self._clock = clock
        self._failed = False
        self.entries: deque[Mapping[str, Any]] = deque(maxlen=KEPT)

    def changed(self, before: Module, event: Event, after: Module) -> None:
        if before.state is not after.state:
            self.add("state", was=before.state.value, state=after.state.value, because=_cause(event, after))
        elif before.vm is not after.vm:
            self.add("vm", was=before.vm.value, vm=after.vm.value)

    def told(self, reason: Reason) -> None:
        if reason.value:
            self.add("reason", text=reason.value)

    def replied(self, command: str, reply: Reply) -> None:
        self.add("command", command=command, accepted=reply.accepted, text=reply.why)

    def add(self, kind: str, **fields: Any) -> None:
        """Time in seconds since 1970, UTC."""
        entry = {"at": round(self._clock(), 3), "module": self._module, "kind": kind, **fields}
        self.entries.append(entry)
        self._hear(entry)
        try:
            self._write(json.dumps(entry) + "\n")
            self._failed = False
        except OSError as error:
            if not self._failed:
                log.error("%s cannot be written: %s. Events are lost until that is put right", self._path, error)
            self._failed = True

    def _write(self, line: str) -> None:
        with open(self._path, "a", encoding="utf-8") as opened:
            opened.write(line)
            size = opened.tell()
        if size > LARGEST_LOG_BYTES:
            os.replace(self._path, self._path + ".1")


def _cause(event: Event, after: Module) -> str:
    if isinstance(event, Commanded):
        return f"command {event.command.value}"
    if isinstance(event, CheckerActed) and event.action is not None:
        return f"a checker: {event.action.value}"
    if after.reason.value:
        return after.reason.value
    return "the peer was heard" if isinstance(event, PeerHeard) else ""
