"""What a reintegration has copied, on its way out of the dirty log.

An interrupted reintegration is to continue where it stopped. So from time to time both copies are flushed while it
runs, and the marks of what had been copied before leave the log, unless something was accepted for them since their
copying began. It must not know how content is read or sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hotpair.replication.activity import ActivityLog, Selection
from hotpair.replication.dirty_log import Mark
from hotpair.replication.limits import COPIED_FLUSH_INTERVAL_S

if TYPE_CHECKING:
    from hotpair.replication.source import Source


class Copied:
    """One for each reintegration. Selections end with the session: going alone and a new session freeze the log."""

    def __init__(self, source: Source, activity: ActivityLog, root_fd: int, now: float) -> None:
        self.interval_s = COPIED_FLUSH_INTERVAL_S
        self._source = source
        self._activity = activity
        self._root_fd = root_fd
        self._waiting: list[Selection] = []  # copied, and not flushed since
        self.worth_it = False  # there is something that a flush would be good for
        self._flushing = False
        self._flushed_at = now

    def begins(self) -> Selection:
        """Something is about to be read: what is accepted from here on keeps its mark."""
        return self._activity.select(())

    def has(self, began: Selection, marks: Iterable[Mark]) -> None:
        """These were read since ``began``, and what was read has been sent, or needs not be sent."""
        part = self._activity.part(began, marks)
        if part is not None:
            self._waiting.append(part)
            self.worth_it = True

    def has_whole_file(self) -> None:
        """The target may note, after a flush, that it has all of a file."""
        self.worth_it = True

    def ends(self, began: Selection) -> None:
        """No more of what was begun then will come."""
        self._activity.abort_eviction(began)

    def step(self, now: float) -> None:
        """Flush if it is time."""
        if self.worth_it and not self._flushing and now - self._flushed_at >= self.interval_s:
            self._flushed_at = now
            self.flush()

    def flush(self) -> None:
        """Flush both copies; then what had been copied before leaves the log, if nothing was accepted for it."""
        selections, self._waiting = self._waiting, []
        self.worth_it = False
        self._flushing = True

        def flushed(error: int) -> None:
            self._flushing = False
            for selection in selections:
                if error:
                    self._activity.abort_eviction(selection)
                    continue
                for record in self._activity.finish_eviction(selection):
                    self._source.marks.stage(record)

        self._source.flushes.flush_everything(self._root_fd, flushed)
