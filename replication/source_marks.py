"""The source's marks on their way to the disk: a change waits until its mark is durable.

Marks of all that waits are staged together and committed with one flush; what comes while it is under way waits for
the next. A dirty log that cannot be written says "everything", durably, and that covers any mark.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from hotpair.replication.activity import ActivityLog
from hotpair.replication.dirty_log import Extents, LogRecord, Mark, Metadata
from hotpair.replication.dirty_log_io import DirtyLog, DirtyLogFailed
from hotpair.replication.source_flushes import Flushes, FlushWait

if TYPE_CHECKING:
    from hotpair.replication.source import Source

log = logging.getLogger("hotpair.replication")


class MarkCommits:
    """``commit`` is called at the end of a turn, when something is staged and no commit is under way."""

    def __init__(self, source: Source, activity: ActivityLog, dirty_log: DirtyLog, flushes: Flushes) -> None:
        self.staged = False  # marks are waiting to be committed
        self.committing = False  # a commit of marks is under way
        self._source = source
        self._activity = activity
        self._log = dirty_log
        self._flushes = flushes
        self._staged_waiters: list[Callable[[], None]] = []
        self._committing_waiters: list[Callable[[], None]] = []

    def after(self, marks: Iterable[Mark], resume: Callable[[], None]) -> None:
        """Make marks durable, then go on: ``resume`` looks again. Marks of all that waits are committed together."""
        for mark in marks:
            record = note_mark(self._activity, mark)
            if record is not None:
                self.stage(record)
        (self._staged_waiters if self.staged else self._committing_waiters).append(resume)

    def stage(self, record: LogRecord) -> None:
        """Have a record written with the next commit. A log that has failed takes none: everything is dirty then."""
        if self._log.failure is None:
            self._log.stage(record)
        self.staged = True

    def when_idle(self, act: Callable[[], None]) -> None:
        """Do something with the dirty log that must not meet a commit under way."""
        if self.committing:
            self._committing_waiters.append(act)
        else:
            act()

    def commit_now(self) -> None:
        """Make durable what is staged, and wait for it: for the steps that must not be overtaken. The log is idle."""
        assert not self.committing
        self._activity.commit_began()
        if self._log.failure is None:
            try:
                self._log.commit_now()
            except DirtyLogFailed as error:
                log.error("%s", error)
                self._log.set_everything()
        self._activity.commit_ended()
        self.staged = False
        waiters, self._staged_waiters = self._staged_waiters, []
        for resume in waiters:
            resume()

    def commit(self) -> None:
        """Begin to make durable what is staged; who waits for it goes on when it is."""
        if self._log.is_everything and self._log.failure is not None:
            self._are_everything()
            return
        try:
            fd = self._log.begin_commit()
        except DirtyLogFailed as error:
            log.error("%s", error)
            self._log.set_everything()
            self._are_everything()
            return
        if fd is None:
            return
        self._activity.commit_began()
        self.staged = False
        self.committing = True
        self._committing_waiters, self._staged_waiters = self._staged_waiters, []
        self._flushes.flush_local(fd, FlushWait(None, self._committed), True)

    def _are_everything(self) -> None:
        """The log cannot be written (its disk is full): "everything is dirty" is on disk, and covers any mark."""
        self._activity.commit_began()
        self._activity.commit_ended()
        self.staged = False
        waiters, self._staged_waiters = self._staged_waiters, []
        for resume in waiters:
            resume()
        self._source.turn_end()

    def _committed(self, error: int) -> None:
        try:
            self._log.end_commit(error)
        except DirtyLogFailed as failure:  # a failed flush counts as a failed disk
            self._source.disk_failed(str(failure))
            return
        self.committing = False
        self._activity.commit_ended()
        waiters, self._committing_waiters = self._committing_waiters, []
        for resume in waiters:
            resume()
        self._source.turn_end()


def note_mark(activity: ActivityLog, mark: Mark) -> LogRecord | None:
    """Have a mark made; the record to stage, None if it is staged or being committed already."""
    if isinstance(mark, Extents):
        return activity.mark(mark.identity, mark.first, mark.last)
    return activity.mark_metadata(mark.identity) if isinstance(mark, Metadata) else activity.mark_names(mark.identity)
