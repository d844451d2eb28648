"""Where a source stands, as far as others are told: the lines for who started it, and why it is not in sync."""

from __future__ import annotations

from collections.abc import Callable

from hotpair.replication.modes import ALONE, Mode
from hotpair.replication.source import Source


class Standing:
    """Written by the parts of the source process, read by the control socket's thread."""

    def __init__(self, source: Source, say: Callable[[str], None]) -> None:
        self.say = say
        self.in_sync = False
        self.reason = "no connection to the peer yet"
        self.stopping = False
        self.failed = False  # the tap: nothing is acknowledged any more, whatever the loop has got to do yet
        self.changed: Callable[[], None] = _nobody_watches  # what is reported may be another now
        self._source = source
        self._ready = False

    def now_ready(self) -> None:
        """Say that the VM can be started, once."""
        if not self._ready:
            self._ready = True
            self.say("ready")

    def state_changed(self, before: Mode) -> None:
        """Say the mode, if it was another one before."""
        if before is not self._source.mode:
            self.say(f"state {self._source.mode.value}")
        if self._source.mode is ALONE:  # by a verdict, or because a first reintegration failed
            self.now_ready()
        self.changed()


def _nobody_watches() -> None:
    """Until the reports are there."""
