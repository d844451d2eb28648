"""Starting write-back early, so that a flush finds little to do.

Only for large writes. What is written in small pieces is often written again soon, and a page that is written back
each time costs the disk many times over; and submitting thousands of scattered pages takes tens of milliseconds, for
which the loop must not wait: a thread does it, and it is one system call, so that it hardly needs the interpreter.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import Final

from hotpair.replication import linux_io

log = logging.getLogger("hotpair.replication")

LARGE_WRITE: Final = 64 << 10  # bytes: of a copy or a log, not of a database page
STEP: Final = 32 << 20  # bytes of large writes to one file between two calls
WAITING: Final = 16  # files; when the disk is that far behind, starting more would not help


class WriteBack:
    """One thread for all files of a mirror process."""

    def __init__(self) -> None:
        self._queue: queue.Queue[int] = queue.Queue(WAITING)
        threading.Thread(target=self._run, name="write-back", daemon=True).start()

    def start(self, fd: int) -> None:
        """Have the dirty pages of a file written, without waiting."""
        copy = os.dup(fd)  # the caller may close its own before the thread comes to it
        try:
            self._queue.put_nowait(copy)
        except queue.Full:
            os.close(copy)

    def _run(self) -> None:
        while True:
            fd = self._queue.get()
            try:
                linux_io.sync_file_range(fd, 0, 0, linux_io.SYNC_FILE_RANGE_WRITE)
            except OSError as error:
                log.debug("starting write-back: %s", error.strerror)  # the flush that follows reports it
            finally:
                os.close(fd)
