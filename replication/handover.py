"""The source's half of a handover (swap): both copies flushed, every change held, then the peer is asked to take over.

It knows the core's sequence numbers; it must not know records, the link or the VM, which has been stopped before. From
the question on nothing leaves this server any more, and only three things end it: the peer's answer, the certainty
that the peer has not been asked (a resumed session, or a target that says so), or a verdict from outside.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hotpair.replication.limits import HANDOVER_TIMEOUT_S
from hotpair.replication.modes import PRIM
from hotpair.replication.source import Source


class Handover:
    """One attempt. ``ask`` sends the question; ``failed`` is told why it was not sent."""

    def __init__(self, source: Source, root_fd: int, ask: Callable[[], None], failed: Callable[[str], None]) -> None:
        self._source = source
        self._root_fd = root_fd
        self._ask = ask
        self._failed = failed
        self._deadline = 0.0
        self._flushed_up_to = 0
        self.asked = False
        self.ended = False  # whatever comes of a flush that is still under way

    @property
    def stage(self) -> str:
        """``flushing``, then ``asked``."""
        return "asked" if self.asked else "flushing"

    def begin(self, now: float) -> None:
        """Flush both copies."""
        self._deadline = now + HANDOVER_TIMEOUT_S
        self._flush()

    def _flush(self) -> None:
        source = self._source
        source.times.carry_all()
        source.flushes.flush_everything(self._root_fd, self._flushed)
        self._flushed_up_to = source.sequence
        source.turn_end()

    def _flushed(self, error: int) -> None:
        source = self._source
        if self.ended or error or source.mode is not PRIM:
            return  # the disk has failed, or the link is lost: whoever found that has ended this
        source.times.carry_all()
        if source.sequence == self._flushed_up_to and not source.inflight and not source.has_local_writes:
            source.freeze()
            self.asked = True
            self._ask()
        elif time.monotonic() < self._deadline:
            self._flush()  # something came in between
        else:
            self._failed("the VM still writes: stop it before")
