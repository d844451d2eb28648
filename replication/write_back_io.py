"""Writing to the page cache: in pieces, and with write-back that starts early.

**Pieces.** The page cache keeps a large write in large folios, and each later small write into one of them walks all
of its blocks: 4 KiB random writes took 4.7 us each into a file that had been written 1 MiB at a time, 3.3 us at 128 KiB
(ext4, Linux 6.18), and two to three times that when other work had taken the processor's cache. The first write loses
little by it.

**Write-back.** A flush should find little to do. It is started early only for large writes: what is written in small
pieces is often written again soon, and a page that is written back each time costs the disk many times over. And
submitting thousands of scattered pages takes tens of milliseconds, for which the loop must not wait: a thread does it,
and it is one system call, so that it hardly needs the interpreter.
"""

from __future__ import annotations

import errno
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


PIECE: Final = 128 << 10


def write_all(fd: int, data: memoryview, offset: int) -> None:
    """Write ``data`` at ``offset``. Raises OSError: also for a short write, which raises nothing by itself."""
    size = len(data)
    start = 0
    while start < size:
        written = os.pwrite(fd, data[start : start + PIECE], offset + start)
        if not written:
            raise OSError(errno.EIO, "a write of nothing")
        start += written  # after a short one, the next says why


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
