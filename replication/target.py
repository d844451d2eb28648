"""The target's core: applies the source's operations to its copy, in their order, and says how far it is.

It decides nothing. It stops at the first operation that fails, and applies nothing after it. What each operation does
stands in target_operations; here are the stream, the writes, which are most of it, and the objects that it names.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import stat
import struct
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from hotpair.replication import frames, linux_io
from hotpair.replication.errors import ProtocolError, TargetFailed
from hotpair.replication.flusher_io import Flusher
from hotpair.replication.frames import APPLIED, LENGTH, Kind
from hotpair.replication.limits import MAX_MESSAGE, MAX_PAYLOAD, RECEIVE_BUFFER, SEND_HIGH_WATER
from hotpair.replication.objects_io import (
    PRIVATE_NAME,
    Descriptors,
    Object,
    check_name,
    proc_path,
)
from hotpair.replication.target_operations import Operations
from hotpair.replication.transport_io import Connection
from hotpair.replication.write_back_io import LARGE_WRITE, PIECE, WriteBack, write_all
from hotpair.replication.write_back_io import STEP as WRITE_BACK_STEP

log = logging.getLogger("hotpair.replication")

LARGEST_FRAME: Final = LENGTH.size + MAX_MESSAGE + MAX_PAYLOAD
ANSWERS_WAITING: Final = 10_000  # a small one takes a few hundred bytes of memory
OPEN_FILES: Final = 2048  # files held open for writing; the least recently used is flushed and closed
MAX_OFFSET: Final = (1 << 63) - 1

# What a field of another type or range than the protocol's raises, in Python, struct and ctypes
MALFORMED: Final = (
    TypeError,
    ValueError,
    AttributeError,
    OverflowError,
    LookupError,
    struct.error,
    ctypes.ArgumentError,
)

unpack_length = LENGTH.unpack_from
unpack = frames.unpack
decode = frames.decode


class Replica(Object):
    """An object of the target's copy that the source has declared."""

    __slots__ = ("data_fd", "flushing", "unflushed")

    def __init__(self, identity: bytes, handle: bytes, kind: int, fd: int) -> None:
        super().__init__(identity, handle, kind, fd)
        self.data_fd = -1
        self.unflushed = 0
        self.flushing = False


class Target:
    """One copy and the stream that changes it. One thread owns it."""

    def __init__(
        self, root_fd: int, root_identity: bytes, flushes: Flusher, descriptor_limit: int, durable: bool
    ) -> None:
        self.root_fd = root_fd
        self.flushes = flushes
        self.write_back = WriteBack()
        self.durable = durable
        self.descriptors = Descriptors(root_fd, descriptor_limit)
        self.root = Replica(
            root_identity,
            linux_io.name_to_handle(root_fd),
            stat.S_IFDIR,
            os.open(b".", os.O_PATH | os.O_CLOEXEC, dir_fd=root_fd),
        )
        self.descriptors.pin(self.root)
        self.objects: dict[bytes, Replica] = {root_identity: self.root}
        self.connection: Connection | None = None
        self.out: deque[memoryview] = deque()
        self.applied = 0
        self.received_bytes = 0
        self.failed: str | None = None
        self.admits_operations = False  # not before this copy is on record as inconsistent, or in sync in this session
        self.on_message: Callable[[list[Any]], None]
        self.on_failure: Callable[[int, OSError], None]
        self.on_flush_all: Callable[[int], None]
        self.listing: Any = None  # reintegration's half here; applies LISTING
        self._acknowledged = 0
        self._buffer = memoryview(bytearray(RECEIVE_BUFFER))
        self._start = 0
        self._end = 0
        self._missing = RECEIVE_BUFFER
        self._open: OrderedDict[Replica, None] = OrderedDict()
        self.serial = 0  # of the session: an answer to an old one's flush is no answer to the new one
        self._apply = Operations(self).apply

    # --- the stream -----------------------------------------------------------------------------------------------

    def attach(self, connection: Connection, fresh: bool) -> None:
        """Serve a new connection; what the old one had not delivered is discarded. ``fresh``: a new session."""
        self.detach()
        self.connection = connection
        if fresh:
            self.serial += 1
            self.applied = 0
            self.admits_operations = False
            self._forget_all()
        self._acknowledged = self.applied

    def adopt_root(self, identity: bytes) -> None:
        """The root has taken the source's identity, because this copy has never been one."""
        del self.objects[self.root.identity]
        self.root.identity = identity
        self.objects[identity] = self.root

    def detach(self) -> None:
        """Drop the connection with all bytes that it still holds."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        self.out.clear()
        self._start = self._end = 0
        self._missing = RECEIVE_BUFFER

    def release(self) -> tuple[Connection, deque[memoryview]]:
        """Nothing more of this connection is applied; it, and what is still to be said in it."""
        connection, out = self.connection, self.out
        assert connection is not None
        self.connection, self.out = None, deque()
        self.detach()
        return connection, out

    def receive(self) -> None:
        """Apply what has arrived, then acknowledge it. Raises LinkLost, ProtocolError, TargetFailed."""
        connection = self.connection
        if connection is None:
            return
        buffer = self._buffer
        if RECEIVE_BUFFER - self._end < LARGEST_FRAME:
            rest = self._end - self._start
            buffer[:rest] = (
                bytes(buffer[self._start : self._end]) if self._start < rest else buffer[self._start : self._end]
            )
            self._start, self._end = 0, rest
        # Of a large frame, only the rest: then it ends where the buffer's content ends, and nothing is moved
        size = connection.receive(buffer[self._end : self._end + self._missing])
        if size == 0:
            return
        self.received_bytes += size
        end = self._end + size
        self._end = end
        self._missing = RECEIVE_BUFFER
        start = self._start
        objects = self.objects
        try:
            while end - start >= 4:
                (length,) = unpack_length(buffer, start)
                if length > MAX_MESSAGE or not length:
                    frames.check_length(length)
                body = start + 4 + length
                if body > end:
                    break
                fields = unpack(buffer[start + 4 : body])
                if fields[0] == 1 and len(fields) == 5:  # Kind.WRITE
                    _, sequence, identity, offset, count = fields
                    if type(count) is not int or not 0 < count <= MAX_PAYLOAD:
                        frames.payload_size(fields)
                    after = body + count
                    if after > end:
                        if count > LARGE_WRITE:
                            self._missing = after - end
                        break
                    if sequence != self.applied + 1:
                        self._out_of_order(sequence)
                    try:
                        item = objects.get(identity)
                    except TypeError as error:
                        raise ProtocolError("the peer sent a write to something that is no identity") from error
                    if item is None or item.data_fd < 0:
                        item = self._writable(sequence, identity)
                    if type(offset) is not int or not 0 <= offset <= MAX_OFFSET:
                        raise ProtocolError(f"the peer sent a write at {offset!r}")
                    try:
                        data = buffer[body:after]
                        if count > PIECE or os.pwrite(item.data_fd, data, offset) != count:
                            write_all(item.data_fd, data, offset)
                    except OSError as error:
                        self._fail(sequence, error)
                    if count >= LARGE_WRITE:
                        before = item.unflushed
                        item.unflushed = before + count
                        if before // WRITE_BACK_STEP != item.unflushed // WRITE_BACK_STEP:
                            self.write_back.start(item.data_fd)
                    else:
                        item.unflushed += 1
                    self.applied = sequence
                    start = after
                else:
                    fields = decode(buffer[start + 4 : body])
                    start = body
                    if fields[0] <= frames.LAST_OPERATION:
                        self._operation(fields)
                    else:
                        self.on_message(fields)
                        if self.connection is not connection:
                            return
        finally:
            if self.connection is connection:
                self._start = start
                if start == end:
                    self._start = self._end = 0
        if self.applied != self._acknowledged:
            self._acknowledged = self.applied
            self.say(APPLIED, self.applied)
        if self.out:
            connection.send(self.out)
        if connection.pending() and not self.congested:
            self.receive()

    def acknowledge(self) -> None:
        """Say how far this copy is when what has arrived is applied, even if it has not moved: once for any number."""
        self._acknowledged = -1

    @property
    def congested(self) -> bool:
        """The source does not take its answers: nothing more is received until it does."""
        return len(self.out) > ANSWERS_WAITING or (len(self.out) > 16 and sum(map(len, self.out)) > SEND_HIGH_WATER)

    def say(self, *fields: Any) -> None:
        """Queue a message for the source."""
        self.out.append(memoryview(frames.encode(*fields)))

    def send(self) -> None:
        """Give the connection what it takes. Raises LinkLost."""
        if self.connection is not None and self.out:
            self.connection.send(self.out)

    def _operation(self, fields: list[Any]) -> None:
        self._check_admitted()
        sequence = fields[1]
        if sequence != self.applied + 1:
            self._out_of_order(sequence)
        apply = self._apply.get(fields[0])
        if apply is None:
            raise ProtocolError(f"the peer sent kind {fields[0]} where an operation was expected")
        try:
            apply(fields)
        except OSError as error:
            self._fail(sequence, error)
        except MALFORMED as error:
            # A field of another type than the protocol's. Nothing was applied: the calls check before they act.
            raise ProtocolError(f"the peer sent a malformed {Kind(fields[0]).name}: {error}") from error
        self.applied = sequence

    def _check_admitted(self) -> None:
        if not self.admits_operations:
            raise ProtocolError(
                "the peer sent an operation and has neither begun a reintegration nor resumed a session"
            )

    def _out_of_order(self, sequence: object) -> None:
        raise ProtocolError(f"the peer sent operation {sequence!r} where {self.applied + 1} was due")

    def _fail(self, sequence: int, error: OSError) -> None:
        self.on_failure(sequence, error)
        raise TargetFailed(f"operation {sequence}: {error.strerror}") from error

    # --- objects --------------------------------------------------------------------------------------------------

    def known(self, identity: object) -> Replica:
        """The object, which the source must have declared. Raises ProtocolError."""
        item = self.objects.get(identity) if type(identity) is bytes else None
        if item is None:
            raise ProtocolError(f"the peer named an object that it has not declared: {identity!r}")
        return item

    def name_in(self, directory: Replica, name: object) -> bytes:
        """A name from the peer, if it may stand in this directory. Raises OSError."""
        checked = check_name(name)
        if directory is self.root and checked == PRIVATE_NAME:
            raise OSError(errno.EPERM, f"{name!r} is the mirror's own folder")
        return checked

    def _fd(self, item: Replica) -> int:
        return self.descriptors.get(item)

    def register(self, fd: int, identity: bytes) -> Replica:
        """Hold the object behind the O_PATH descriptor ``fd``, which is taken over."""
        present = self.objects.get(identity)
        if present is not None:
            os.close(fd)
            return present
        item = Replica(identity, linux_io.name_to_handle(fd), stat.S_IFMT(os.fstat(fd).st_mode), fd)
        self.objects[identity] = item
        self.descriptors.adopt(item)
        return item

    def _writable(self, sequence: int, identity: object) -> Replica:
        # A new session knows nothing but the root, which is no file: its first write comes here, whoever sends it
        self._check_admitted()
        item = self.known(identity)
        try:
            self.open_data(item)
        except OSError as error:
            self._fail(sequence, error)
        return item

    def open_data(self, item: Replica) -> int:
        """The one descriptor through which a file is written and flushed. Raises OSError."""
        if item.data_fd < 0:
            if item.kind != stat.S_IFREG:
                raise OSError(errno.EINVAL, "not a regular file")
            item.data_fd = os.open(proc_path(self._fd(item)), os.O_RDWR | os.O_CLOEXEC | os.O_NOATIME)
            self._open[item] = None
            if len(self._open) > OPEN_FILES:
                oldest = next(iter(self._open))
                self._close_data(oldest)
        else:
            self._open.move_to_end(item)
        return item.data_fd

    def _close_data(self, item: Replica) -> None:
        """Close a file, after a flush of what was written through its descriptor."""
        if item.data_fd < 0 or item.flushing:
            return
        if item.unflushed:
            item.flushing = True
            item.unflushed = 0

            def flushed(error: int) -> None:
                item.flushing = False
                if error:
                    self.on_failure(self.applied, OSError(error, os.strerror(error)))
                else:
                    self._close_data(item)

            self.flush(item.data_fd, True, flushed)
            return
        self._open.pop(item, None)
        os.close(item.data_fd)
        item.data_fd = -1

    def flush(self, fd: int, data_only: bool, done: Callable[[int], None]) -> None:
        """Flush through the kernel's queue; ``done(errno)`` is called from ``flushes_completed``."""
        self.flushes.flush(fd, data_only, done)

    def flushes_completed(self) -> None:
        """The flush queue has something to say. Raises TargetFailed when a flush failed, LinkLost."""
        self.flushes.completed()
        failed, self.failed = self.failed, None
        if failed is not None:
            raise TargetFailed(failed)
        self.send()

    def _forget_all(self) -> None:
        for item in list(self.objects.values()):
            if item is not self.root:
                self.drop(item)

    def drop(self, item: Replica) -> None:
        """Hold an object no longer."""
        self.objects.pop(item.identity, None)
        self.descriptors.drop(item)
        self._close_data(item)
