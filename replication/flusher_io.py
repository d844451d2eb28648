"""Flushing files without waiting for it: callbacks over the kernel's asynchronous queue, with no limit of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from hotpair.replication.linux_io import FlushQueue

Done = Callable[[int], None]


class Flusher:
    """Submits flushes; what the kernel's queue cannot hold waits here. The descriptor must stay open until done."""

    def __init__(self, queue: FlushQueue | None = None) -> None:
        self._queue = queue or FlushQueue()
        self._token = 0
        self._under_way: dict[int, Done] = {}
        self._waiting: deque[tuple[int, bool, Done]] = deque()

    def fileno(self) -> int:
        """For epoll: readable when ``completed`` has something to do."""
        return self._queue.fileno()

    def flush(self, fd: int, data_only: bool, done: Done) -> None:
        """Flush a file; ``done(errno)`` is called from ``completed``, 0 when it is on stable storage."""
        self._waiting.append((fd, data_only, done))
        self._submit()

    def _submit(self) -> None:
        while self._waiting:
            fd, data_only, done = self._waiting[0]
            self._token += 1
            try:
                self._queue.submit(fd, self._token, data_only)
            except BlockingIOError:
                return  # full: the next completion makes room
            self._under_way[self._token] = done
            self._waiting.popleft()

    def completed(self) -> None:
        """Call what waits for flushes that have ended."""
        for token, error in self._queue.completed():
            self._under_way.pop(token)(error)
        self._submit()
