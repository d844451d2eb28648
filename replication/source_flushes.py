"""The source's flushes: what is flushed on both copies is answered when both have it on stable storage.

A flush of the target is an operation in the stream, and the target answers it by its sequence number; the kernel
flushes here meanwhile. A failed flush counts as a failed disk.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hotpair.replication.flusher_io import Flusher
from hotpair.replication.frames import Kind
from hotpair.replication.modes import FROZEN, PRIM, REINTEGRATING, STOPPED
from hotpair.replication.nodes import Node

if TYPE_CHECKING:
    from hotpair.replication.source import Source


class FlushWait:
    """A flush under way on one or both copies."""

    __slots__ = ("answered", "asked", "done", "error", "local", "node", "remote")

    def __init__(self, node: Node | None, done: Callable[[int], None], asked: tuple[Any, ...] = ()) -> None:
        self.node = node
        self.done = done
        self.answered = False
        self.asked = asked  # the fields of the operation that asks the target
        self.local = True
        self.remote = False
        self.error = 0


class Flushes:
    """All that are under way."""

    def __init__(self, source: Source, flusher: Flusher) -> None:
        self.sync_file_system: Callable[[int, Callable[[int], None]], None]
        self._source = source
        self._flusher = flusher
        self._waits: dict[int, FlushWait] = {}  # by the sequence number of the FLUSH or FLUSH_ALL

    def flush(self, node: Node, data_only: bool, done: Callable[[int], None]) -> None:
        """Flush one file or directory on both copies, then ``done(errno)``."""
        if self._source.mode is FROZEN and not node.orphan:
            self._source.held.append(lambda: self.flush(node, data_only, done))
            return
        if self._source.mode is STOPPED:
            done(errno.EIO)
            return
        self._source.apply_local()
        wait = FlushWait(node, done, (Kind.FLUSH, node.identity, data_only))
        if self._source.known.sends(node):
            self._source.times.carry(node)
            wait.remote = True
            self._waits[self._source.operation(wait.asked)] = wait
        node.unflushed = 0
        self.flush_local(node.data_fd, wait, data_only)

    def flush_directory(self, node: Node, fd: int, data_only: bool, done: Callable[[int], None]) -> None:
        """Flush a directory on both copies; ``fd`` is an open descriptor of it here."""
        if self._source.mode is FROZEN and not node.orphan:
            self._source.held.append(lambda: self.flush_directory(node, fd, data_only, done))
            return
        if self._source.mode is STOPPED:
            done(errno.EIO)
            return
        wait = FlushWait(node, done, (Kind.FLUSH, node.identity, data_only))
        if self._source.known.sends(node):
            wait.remote = True
            self._waits[self._source.operation(wait.asked)] = wait
        self.flush_local(fd, wait, data_only)

    def flush_everything(self, root_fd: int, done: Callable[[int], None]) -> None:
        """Flush all files of both copies, then ``done(errno)``."""
        self._source.apply_local()
        wait = FlushWait(None, done, (Kind.FLUSH_ALL,))
        if self._source.mode is PRIM or self._source.mode is REINTEGRATING:
            wait.remote = True
            self._waits[self._source.operation(wait.asked)] = wait
        self.sync_file_system(root_fd, lambda error: self._local_done(wait, error))

    def flush_before_close(self, node: Node, done: Callable[[Node], None]) -> None:
        """Flush what was written through a file's descriptor here, because it is to be closed."""
        self._source.apply_local()
        node.unflushed = 0
        self.flush_local(node.data_fd, FlushWait(node, lambda _: done(node)), True)

    def flush_local(self, fd: int, wait: FlushWait, data_only: bool) -> None:
        """Have the kernel flush a local file without waiting for it."""
        self._flusher.flush(fd, data_only, lambda error: self._local_done(wait, error))

    def _local_done(self, wait: FlushWait, error: int) -> None:
        wait.local = False
        wait.error = wait.error or error
        if error:
            self._source.disk_failed(f"flushing: {os.strerror(error)}")
        self._flush_step(wait)

    def _flush_step(self, wait: FlushWait) -> None:
        if not wait.local and not wait.remote and not wait.answered:
            wait.answered = True  # a failed disk answers all that wait, this one perhaps before its own turn
            wait.done(wait.error)

    # --- what becomes of the target -----------------------------------------------------------------------------------

    def flushed(self, sequence: int) -> None:
        """The target has flushed what the FLUSH with this number named."""
        wait = self._waits.pop(sequence, None)
        if wait is not None:
            wait.remote = False
            self._flush_step(wait)

    def resumed(self, applied: int) -> None:
        """The same target is there again and has applied everything up to ``applied``."""
        waits = self._waits
        self._waits = {}
        for sequence, wait in waits.items():
            if sequence > applied:
                self._waits[sequence] = wait
            elif wait.node is not None and wait.node.orphan:
                wait.remote = False
                self._flush_step(wait)
            else:  # its answer may have been lost: ask again
                self._waits[self._source.operation(wait.asked)] = wait

    def without_target(self, code: int = 0) -> None:
        """The target's answer is not waited for any more; ``code``: nothing is acknowledged either, but failed."""
        waits = self._waits
        self._waits = {}
        for wait in waits.values():
            wait.remote = False
            wait.error = wait.error or code
            self._flush_step(wait)
