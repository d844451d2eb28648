"""Flushing files without waiting for it: in threads, each in the kernel with one file, without Python's lock.

The kernel's asynchronous I/O would need no threads. But its work queue flushes on the processor that has asked, which
is the loop's; and a process that has such a queue takes 30 ms longer to die. Its sockets are still open in that time,
so that the peer of a target that was killed holds its writes for so much longer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from hotpair.replication.limits import FLUSH_THREADS

Done = Callable[[int], None]


class Flusher:
    """For the loop's thread. The threads are started when they are needed, and end with the process."""

    def __init__(self) -> None:
        self._asked: SimpleQueue[tuple[int, bool, Done]] = SimpleQueue()
        self._ended: deque[tuple[Done, int]] = deque()
        self.pending = 0  # asked for, and `done` not called yet
        self._threads = 0
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """For epoll: readable when ``completed`` has something to do."""
        return self._eventfd

    def flush(self, fd: int, data_only: bool, done: Done) -> None:
        """Flush a file; ``done(errno)`` is called from ``completed``, 0 when it is on stable storage.

        The descriptor may be closed meanwhile; an error counts as reported through that open file, as with fsync.
        Raises OSError for what is no descriptor.
        """
        self._asked.put((os.dup(fd), data_only, done))
        self.pending += 1
        if self._threads < min(self.pending, FLUSH_THREADS):
            try:
                threading.Thread(target=self._work, name="flush", daemon=True).start()
            except RuntimeError:  # the host has no room for another one: those that there are do it
                if not self._threads:
                    raise
            else:
                self._threads += 1

    def _work(self) -> None:
        while True:
            fd, data_only, done = self._asked.get()
            try:
                (os.fdatasync if data_only else os.fsync)(fd)
                result = 0
            except OSError as error:
                result = error.errno or errno.EIO
            with contextlib.suppress(OSError):  # of the file system at the close: the flush before it has said it
                os.close(fd)
            self._ended.append((done, result))
            os.eventfd_write(self._eventfd, 1)

    def completed(self) -> None:
        """Call what waits for flushes that have ended."""
        try:
            os.eventfd_read(self._eventfd)  # first: what ends from here on makes it readable again
        except BlockingIOError:
            return
        try:
            while self._ended:
                done, result = self._ended.popleft()
                self.pending -= 1
                done(result)
        finally:
            if self._ended:  # whatever one of them has raised: the others are called at the next look
                os.eventfd_write(self._eventfd, 1)
