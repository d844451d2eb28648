"""The last word of a target that leaves: it must arrive, although the source may still be sending.

A connection that is closed with something unread in it is reset, and the reset overtakes what was said last. So all
that still comes is read and dropped, until the source has closed, or long enough.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from hotpair.replication.errors import LinkLost
from hotpair.replication.limits import FAREWELL_S
from hotpair.replication.loop_io import Loop
from hotpair.replication.transport_io import Connection

log = logging.getLogger("hotpair.replication")

DROPPED_AT_ONCE = 1 << 20


class Farewell:
    """Takes a connection over from the target's core, with what is still to be sent in it."""

    def __init__(self, connection: Connection, out: deque[memoryview], loop: Loop, ended: Callable[[], None]) -> None:
        self._connection = connection
        self._out = out
        self._loop = loop
        self._ended = ended
        self._over = False
        self._until = time.monotonic() + FAREWELL_S
        self._dropped = memoryview(bytearray(DROPPED_AT_ONCE))
        self._loop.unwatch(connection.fileno())
        self._loop.watch(connection.fileno(), self._step)
        self._step()

    def _step(self) -> None:
        connection = self._connection
        try:
            if self._out:
                connection.send(self._out)
                self._loop.watch_writes(connection.fileno(), connection.wants_write)
            while connection.receive(self._dropped):
                pass
        except LinkLost as error:
            log.debug("after the last word: %s", error)
            self._end()

    def tick(self, now: float) -> None:
        """A source that does not close has heard it by now, or never will."""
        if now >= self._until and not self._over:
            self._end()

    def _end(self) -> None:
        self._over = True
        self._loop.unwatch(self._connection.fileno())
        self._connection.close()
        self._ended()
