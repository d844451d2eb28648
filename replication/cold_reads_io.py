"""Reads of what is not in the page cache, through the kernel's asynchronous I/O, so that the loop waits for no disk.

They go past the page cache (O_DIRECT, open(2)): only such a read is asynchronous. The kernel writes back what is dirty
in the range before it reads, so that a read never misses a write that came before it. A file system without O_DIRECT
keeps its files in memory or answers from another machine; there the read waits.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable

from hotpair.replication.fuse_io import Slot
from hotpair.replication.limits import PAGE, READ_AHEAD, REQUEST_SLOTS
from hotpair.replication.linux_io import AioQueue
from hotpair.replication.nodes import Node
from hotpair.replication.objects_io import proc_path
from hotpair.replication.tap_answers import Answers

FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME


class ColdReads:
    """Keeps the slots of its requests until they are answered. The loop watches ``fileno`` and calls ``completed``."""

    def __init__(self, answers: Answers, disk_failed: Callable[[str], None], queue: AioQueue | None = None) -> None:
        self._answers = answers
        self._disk_failed = disk_failed
        self._queue = queue or AioQueue(REQUEST_SLOTS)  # so that it has room for whatever has a slot
        self._token = 0
        self._waiting: deque[tuple[Slot, Node, int, int]] = deque()  # slot, node, offset, size
        self._under_way: dict[int, tuple[Slot, Node, int, int, int]] = {}  # slot, node, offset, bytes before it, size

    def fileno(self) -> int:
        return self._queue.fileno()

    def read(self, slot: Slot, node: Node, offset: int, size: int) -> None:
        """Read and answer, when it is its turn. Until then it has cost little, so that a write behind many reads in the
        kernel's queue is reached soon."""
        self._waiting.append((slot, node, offset, size))

    def begin_some(self, count: int) -> bool:
        """Begin so many of those that wait; whether there are more."""
        waiting = self._waiting
        while waiting and count:
            count -= 1
            slot, node, offset, size = waiting.popleft()
            try:
                self._begin(slot, node, offset, size)
            except OSError as error:
                self._fail(slot, error.errno or errno.EIO)
        return bool(waiting)

    def _begin(self, slot: Slot, node: Node, offset: int, size: int) -> None:
        if node.direct_fd < 0:
            node.direct_fd = _open_direct(node.data_fd)
        before = offset % PAGE
        length = -(-(before + size) // PAGE) * PAGE
        self._token = token = self._token + 1
        self._under_way[token] = (slot, node, offset, before, size)
        try:
            self._queue.submit_read(node.direct_fd, token, slot.address, length, offset - before)
        except OSError:
            del self._under_way[token]
            raise
        if offset == node.read_until:
            # One behind the other: have the kernel read ahead, and the next ones are in the page cache
            os.posix_fadvise(node.data_fd, offset + size, READ_AHEAD, os.POSIX_FADV_WILLNEED)
        node.read_until = offset + size

    def completed(self) -> None:
        """Answer what has been read."""
        for token, result in self._queue.completed():
            slot, node, offset, before, size = self._under_way.pop(token)
            if result == -errno.EINVAL:  # the disk wants larger blocks than a page
                try:
                    result = before + os.preadv(node.data_fd, (slot.memory[before : before + size],), offset)
                except OSError as error:
                    result = -(error.errno or errno.EIO)
            if result < 0:
                self._fail(slot, -result)
            else:
                self._answers.answer(slot, slot.memory[before : max(before, min(before + size, result))])

    def _fail(self, slot: Slot, code: int) -> None:
        if code == errno.EIO:
            self._disk_failed(f"a read: {os.strerror(code)}")
        self._answers.error(slot, code)

    def close_file(self, node: Node) -> None:
        """The file is closed: no read of it is under way, for the kernel releases a file when all are answered."""
        if node.direct_fd >= 0:
            os.close(node.direct_fd)
            node.direct_fd = -1

    def close(self) -> None:
        """Wait for what is under way, and end."""
        self._queue.close()


def _open_direct(fd: int) -> int:
    path = proc_path(fd)
    try:
        return os.open(path, FLAGS | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, FLAGS)
