"""Flushing files without waiting for it: callbacks over the kernel's asynchronous queue, with no limit of its own."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable

from hotpair.replication.linux_io import AioQueue

Done = Callable[[int], None]


class Flusher:
    """Submits flushes; what the kernel's queue cannot hold waits here."""

    def __init__(self, queue: AioQueue | None = None) -> None:
        self._queue = queue or AioQueue()
        self._token = 0
        self._under_way: dict[int, Done] = {}
        self._waiting: deque[tuple[int, bool, Done]] = deque()

    def fileno(self) -> int:
        """For epoll: readable when ``completed`` has something to do."""
        return self._queue.fileno()

    def flush(self, fd: int, data_only: bool, done: Done) -> None:
        """Flush a file; ``done(errno)`` is called from ``completed``, 0 when it is on stable storage."""
        if self._waiting or not self._submit(fd, data_only, done):
            self._waiting.append((os.dup(fd), data_only, done))  # the caller's may be closed before its turn comes

    def _submit(self, fd: int, data_only: bool, done: Done) -> bool:
        self._token += 1
        try:
            self._queue.submit_flush(fd, self._token, data_only)
        except BlockingIOError:
            return False  # full: the next completion makes room
        self._under_way[self._token] = done
        return True

    def completed(self) -> None:
        """Call what waits for flushes that have ended."""
        for token, result in self._queue.completed():
            self._under_way.pop(token)(-result)
        while self._waiting and self._submit(*self._waiting[0]):
            os.close(self._waiting.popleft()[0])  # the kernel holds the file while it flushes
