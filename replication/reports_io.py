"""The present report of a mirror process, made by its loop and read by the threads of the control socket.

Only the loop makes one, between two things that it does: it never mixes before and after, and it can be read while the
loop waits for a disk. Whoever watches is woken through an eventfd.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from hotpair.replication.errors import MirrorError
from hotpair.replication.limits import WATCHERS
from hotpair.replication.process_io import started_at
from hotpair.replication.report import Report


class Reports:
    """``compose`` says how things are; ``later`` has the loop do something when it is done with what it does now."""

    def __init__(self, compose: Callable[[], Report], later: Callable[[Callable[[], Any]], None]) -> None:
        self._compose = compose
        self._later = later
        self._lock = threading.Lock()
        self._watchers: set[int] = set()
        self._due = False
        self._process = {"process": os.getpid(), "started": started_at(os.getpid())}
        self._number = 1
        self._report = compose()

    def changed(self) -> None:
        """Something that is reported may have changed. For the loop, in the middle of whatever it does."""
        if not self._due:
            self._due = True
            self._later(self.publish)

    def publish(self) -> int:
        """Report how things are now; the report's number.

        For the loop, and for a thread that has failed the tap: what is reported then does not change in the middle.
        """
        self._due = False
        with self._lock:
            report = self._compose()
            if report != self._report:
                self._report = report
                self._number += 1
                for fd in self._watchers:
                    os.eventfd_write(fd, 1)
            return self._number

    def latest(self) -> tuple[int, dict[str, Any]]:
        """The present report's number and fields. For any thread."""
        with self._lock:
            number, report = self._number, self._report
        return number, {"number": number, **self._process, **report.fields()}

    @contextmanager
    def watching(self) -> Iterator[int]:
        """An eventfd that can be read from when there is a new report. Raises MirrorError when too many watch."""
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            with self._lock:
                if len(self._watchers) >= WATCHERS:
                    raise MirrorError(f"{WATCHERS} connections watch this mirror already: close one of them")
                self._watchers.add(fd)
            yield fd
        finally:
            with self._lock:
                self._watchers.discard(fd)
            os.close(fd)
