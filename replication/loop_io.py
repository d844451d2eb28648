"""Which descriptors a process waits for, and what is to be done when they have something."""

from __future__ import annotations

import select
from collections.abc import Callable


class Loop:
    """An epoll instance and its handlers. Whoever runs it calls ``poll`` and then the handlers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self.poll = self._epoll.poll
        self.handlers: dict[int, Callable[[], None]] = {}
        self.paused = False

    def watch(self, fd: int, handler: Callable[[], None]) -> None:
        """Have ``handler`` called when there is something to read."""
        self.handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Not any more."""
        del self.handlers[fd]
        self._epoll.unregister(fd)

    def watch_writes(self, fd: int, wanted: bool) -> None:
        """Wait also for room to write, or not any more."""
        self.wait_for(fd, select.EPOLLIN | (select.EPOLLOUT if wanted else 0))

    def wait_for(self, fd: int, events: int) -> None:
        """Wait for these events of epoll instead of those before."""
        self._epoll.modify(fd, events)

    def pause(self, fuse_fd: int) -> None:
        """Take no requests for a while. After the mount was aborted there are none."""
        if not self.paused and fuse_fd in self.handlers:
            self.paused = True
            self._epoll.modify(fuse_fd, 0)

    def unpause(self, fuse_fd: int) -> None:
        """Take requests again."""
        self.paused = False
        if fuse_fd in self.handlers:
            self._epoll.modify(fuse_fd, select.EPOLLIN)
