"""Writing to the page cache: in pieces, and with write-back that starts early.

**Pieces.** The page cache keeps a large write in large folios, and each later small write into one of them walks all
of its blocks: 4 KiB random writes took 4.7 us each into a file that had been written 1 MiB at a time, 3.3 us at 128 KiB
(ext4, Linux 6.18), and two to three times that when other work had taken the processor's cache. The first write loses
little by it.

**Write-back.** A flush should find little to do. It is started early only for large writes: what is written in small
pieces is often written again soon, and a page that is written back each time costs the disk many times over. And
submitting thousands of scattered pages takes tens of milliseconds, for which the loop must not wait: a thread does it,
and it is one system call, so that it hardly needs the interpreter. It goes round once a second: sequential writes of
1 MiB over and over the same 256 MiB were a third slower when each 32 MiB were written back at once, and a flush that
finds the writes of one second is short enough.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import threading
import time
from typing import Final

from hotpair.replication import linux_io

log = logging.getLogger("hotpair.replication")

LARGE_WRITE: Final = 64 << 10  # bytes: of a copy or a log, not of a database page
STEP: Final = 32 << 20  # bytes of large writes to one file between two calls
WAITING: Final = 16  # files; when the disk is that far behind, starting more would not help
ROUND_S: Final = 1.0  # between two rounds of the thread
PIECE: Final = 128 << 10  # bytes


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
        self._asked: set[int] = set()
        self._queue: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="write-back", daemon=True).start()

    def start(self, fd: int) -> None:
        """Have the dirty pages of a file written, in the thread's next round."""
        if fd not in self._asked and len(self._asked) < WAITING:
            self._asked.add(fd)
            self._queue.put((fd, os.dup(fd)))  # the caller may close its own before the thread comes to it

    def _run(self) -> None:
        while True:
            self._start(*self._queue.get())
            while not self._queue.empty():
                self._start(*self._queue.get())
            time.sleep(ROUND_S)

    def _start(self, fd: int, copy: int) -> None:
        self._asked.discard(fd)  # before: pages that are dirtied from now on are asked for again
        try:
            linux_io.sync_file_range(copy, 0, 0, linux_io.SYNC_FILE_RANGE_WRITE)
        except OSError as error:
            log.debug("starting write-back: %s", error.strerror)  # the flush that follows reports it
        finally:
            os.close(copy)
