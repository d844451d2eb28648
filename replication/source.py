"""The source's core: every change of the module's data goes through here, to both copies.

It knows sequence numbers, marks, the link and the local copy; it must not know FUSE or SCSI (the tap calls it), who
should run the VM (it asks for a verdict), or Ray. One thread owns it.

A change takes this way: its marks become durable (at once when the extent is hot), it is sent, it is applied to the
local copy, the target acknowledges it, the tap answers the VM. What can fail for reasons of its own (all but plain
writes) is applied locally first and sent when it worked.

Parts of it have files of their own: marks on their way to the disk, flushes, what the target knows of our objects, and
modification times. Here stay the stream's numbers, the modes, and all of a write's way: the hot path.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from hotpair.replication import frames
from hotpair.replication.activity import ActivityLog
from hotpair.replication.dirty_log import Extents, Mark
from hotpair.replication.dirty_log_io import DirtyLog
from hotpair.replication.errors import LinkLost
from hotpair.replication.flusher_io import Flusher
from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.fuse_abi import WRITE_PAYLOAD
from hotpair.replication.fuse_io import Slot
from hotpair.replication.limits import SEND_HIGH_WATER
from hotpair.replication.modes import ALONE, FROZEN, PRIM, REINTEGRATING, STOPPED
from hotpair.replication.nodes import Node
from hotpair.replication.operations import Operation, PartlyApplied
from hotpair.replication.source_flushes import Flushes
from hotpair.replication.source_known import Known
from hotpair.replication.source_marks import MarkCommits
from hotpair.replication.source_times import Times
from hotpair.replication.transport_io import Connection
from hotpair.replication.write_back_io import LARGE_WRITE, PIECE, WriteBack, write_all
from hotpair.replication.write_back_io import STEP as WRITE_BACK_STEP

log = logging.getLogger("hotpair.replication")

pack = frames.pack
pack_length = LENGTH.pack
HEADER_END = WRITE_PAYLOAD  # a WRITE's frame header is built in front of its payload, where the request's header was


class Source:
    """See the module's text. ``tap`` answers writes; the loop calls ``turn_end`` after each batch of requests."""

    def __init__(
        self,
        dirty_log: DirtyLog,
        activity: ActivityLog,
        flusher: Flusher,
        extent_size: int,
        durable: bool,
        largest_file: int,
    ) -> None:
        self.mode = FROZEN
        self.sequence = 0
        self.writes = 0  # of the VM, that were sent
        self.session = 0
        self.applied = 0
        self.connection: Connection | None = None
        self.broken: LinkLost | None = None
        self.out: deque[memoryview] = deque()
        self.inflight: deque[tuple[int, memoryview, Callable[[Any], None], Any]] = deque()
        self.held: deque[Callable[[], None]] = deque()
        self.activity = activity
        self.flushes = Flushes(self, flusher)
        self.marks = MarkCommits(self, activity, dirty_log, self.flushes)
        self.known = Known(self)
        self.times = Times(self)
        self.shift = extent_size.bit_length() - 1
        self.largest_file = largest_file  # bytes; a write beyond must not be sent, for the target would fail it
        self.write_back = WriteBack()
        self.durable = durable  # durability = "disk": a write is acknowledged when it is on stable storage on both
        self.answer_write: Callable[[Slot], None]  # of the tap
        self.fail_write: Callable[[Slot, int], None]
        self.on_disk_failure: Callable[[str], None]
        self.reintegration: Any = None
        self.reintegrated: dict[str, Any] | None = None  # how the last one was, in the end
        self.verification: Any = None
        self._local: list[tuple[Node, memoryview, int, Slot]] = []
        self._after_sending: list[Callable[[], None]] = []
        self.chunks: dict[bytes, Any] = {}  # file identity -> what reintegration or verify has in work there

    # --- writes: the hot path -------------------------------------------------------------------------------------

    def write(self, node: Node, offset: int, size: int, slot: Slot) -> None:
        """Write ``size`` bytes, which stand in the slot's memory from HEADER_END on, at ``offset`` of the file."""
        if offset + size > self.largest_file:
            if offset >= self.largest_file:
                self.fail_write(slot, errno.EFBIG)
                return
            size = slot.size = self.largest_file - offset
        shift = self.shift
        extents = node.marks.extents
        first = offset >> shift
        last = (offset + size - 1) >> shift
        if first in extents and (first == last or all(extent in extents for extent in range(first + 1, last + 1))):
            tick = self.activity.tick
            extents[first] = tick
            if first != last:
                for extent in range(first + 1, last + 1):
                    extents[extent] = tick
        elif not node.orphan and not self.activity.is_marked(node.identity, first, last):
            mark = Extents(node.identity, first, last)
            self.marks.after([mark], lambda: self.write(node, offset, size, slot))
            return
        mode = self.mode
        if mode is PRIM or mode is REINTEGRATING:
            if self.chunks and node.identity in self.chunks:
                self.chunks[node.identity].touch(offset, offset + size)
            if node.declared == self.session or self.known.declare(node):
                sequence = self.sequence + 1
                self.sequence = sequence
                body = pack((1, sequence, node.identity, offset, size))  # Kind.WRITE
                length = len(body)
                start = HEADER_END - 4 - length
                memory = slot.memory
                memory[start : HEADER_END - length] = pack_length(length)
                memory[HEADER_END - length : HEADER_END] = body
                end = HEADER_END + size
                frame = memory[start:end]
                self.out.append(frame)
                self.inflight.append((sequence, frame, self._written, slot))
                self._local.append((node, memory[HEADER_END:end], offset, slot))
                return
            assert mode is not PRIM or node.orphan, "a write that the target does not get"
            if not node.orphan and self.reintegration is not None:
                self.reintegration.unsent((node,))
        elif mode is FROZEN and not node.orphan:
            self.held.append(lambda: self.write(node, offset, size, slot))
            return
        elif mode is STOPPED:
            self.fail_write(slot, errno.EIO)
            return
        error = self._apply_write(node, slot.memory[HEADER_END : HEADER_END + size], offset)
        if error is None:
            self._written(slot)
        elif error.errno == errno.EIO:
            self._write_failed(node, offset, size, slot, error)
        else:
            self.fail_write(slot, error.errno or errno.EIO)

    def _written(self, slot: Slot) -> None:
        """Both copies have the write (or the only one there is)."""
        if slot.error:
            return  # it failed here after it was sent; `_repair` answers it when the target has been told
        if slot.synchronous or self.durable:
            node = slot.node
            assert node is not None
            self.flushes.flush(node, True, lambda error: self._flushed_write(slot, error))
        else:
            self.answer_write(slot)

    def _flushed_write(self, slot: Slot, error: int) -> None:
        if error:
            self.fail_write(slot, error)
        else:
            self.answer_write(slot)

    def turn_end(self) -> None:
        """Send what the turn has gathered, then apply it here while the target works."""
        if self.out:
            self.send()
        if self._local:
            self.apply_local()
        if self.marks.staged and not self.marks.committing:
            self.marks.commit()

    @property
    def has_local_writes(self) -> bool:
        """Whether something was sent that this copy does not have yet."""
        return bool(self._local)

    def apply_local(self) -> None:
        """Apply the writes that were sent and not yet applied here, before anything that must come after them."""
        local = self._local
        self._local = []
        self.writes += len(local)
        failed = []
        for node, data, offset, slot in local:
            error = self._apply_write(node, data, offset)
            if error is not None:
                failed.append((node, offset, len(data), slot, error))
        for failure in failed:  # only now, for the repair must not come before writes that were sent earlier
            self._write_failed(*failure)

    def _apply_write(self, node: Node, data: memoryview, offset: int) -> OSError | None:
        size = len(data)
        try:
            if size > PIECE or os.pwrite(node.data_fd, data, offset) != size:
                write_all(node.data_fd, data, offset)  # a full disk shortens a write before it fails one
        except OSError as error:
            return error
        if size >= LARGE_WRITE:
            before = node.unflushed
            node.unflushed = before + size
            if before // WRITE_BACK_STEP != node.unflushed // WRITE_BACK_STEP:
                self.write_back.start(node.data_fd)
        else:
            node.unflushed += 1
        if not node.touched:
            self.times.touch(node)
        return None

    def _write_failed(self, node: Node, offset: int, size: int, slot: Slot, error: OSError) -> None:
        """A write failed on this copy after it was sent to the other."""
        code = error.errno or errno.EIO
        if code == errno.EIO:
            self.disk_failed(f"writing {size} bytes at {offset} of {node.name!r}: {error.strerror}")
            return
        slot.error = code
        self._repair(node, offset, size, slot)

    def _repair(self, node: Node, offset: int, size: int, slot: Slot) -> None:
        """Bring the target to what this copy has after a failed write, then answer the VM."""
        if self.mode is FROZEN:  # the frame is still in `inflight`, and the slot with it: after the verdict
            self.held.append(lambda: self._repair(node, offset, size, slot))
            return
        operations: list[Operation] = []
        if self.known.sends(node):
            try:
                data = os.pread(node.data_fd, size, offset)
                length = os.fstat(node.data_fd).st_size
            except OSError as failure:
                self.disk_failed(f"reading back after a failed write: {failure.strerror}")
                return
            if data:
                self.send_data(node.identity, offset, memoryview(data), _nothing, None)
            operations.append(Operation((node,), (Kind.TRUNCATE, node.identity, length)))
        self._send_operations(operations, lambda: self.fail_write(slot, slot.error))

    # --- all other changes ----------------------------------------------------------------------------------------

    def change(
        self, marks: Iterable[Mark], perform: Callable[[], list[Operation]], done: Callable[[OSError | None], None]
    ) -> None:
        """Make a change that is applied here first: ``perform`` applies it and returns what is to be sent.

        ``done`` is called with None when both copies have it, or with the error that ``perform`` raised.
        """
        missing = [mark for mark in marks if not self.activity.has(mark)]
        if missing:
            self.marks.after(missing, lambda: self.change((), perform, done))
            return
        if self.mode is FROZEN:
            self.held.append(lambda: self.change((), perform, done))
            return
        if self.mode is STOPPED:
            done(OSError(errno.EIO, os.strerror(errno.EIO)))
            return
        if self._local:
            self.turn_end()
        try:
            operations = perform()
        except PartlyApplied as partly:
            error = partly.error
            self._send_operations(partly.operations, lambda: done(error))
            return
        except OSError as error:
            if error.errno == errno.EIO:
                self.disk_failed(f"changing the directory: {error.strerror}")
            done(error)
            return
        self._send_operations(operations, lambda: done(None))
        after, self._after_sending = self._after_sending, []
        for act in after:
            act()

    def after_sending(self, act: Callable[[], None]) -> None:
        """From within ``perform``: do something when the operations that it returns are queued."""
        self._after_sending.append(act)

    def interrupt_chunks(self, node: Node, start: int, end: int) -> None:
        """Bytes ``start`` to ``end`` of a file change: what a helper is reading there is read again."""
        if self.chunks and node.identity in self.chunks:
            self.chunks[node.identity].touch(start, end)

    def _send_operations(self, operations: list[Operation], done: Callable[[], None]) -> None:
        if self.mode is PRIM or self.mode is REINTEGRATING:
            sendable = [operation for operation in operations if self.known.can_send(operation)]
            if self.reintegration is not None:
                self.reintegration.changed(node.identity for operation in sendable for node in operation.needs)
            for operation in sendable[:-1]:
                self._enqueue(operation.fields, _nothing, None)
            if sendable:
                self._enqueue(sendable[-1].fields, _call, done)
                return
        elif self.mode is FROZEN and operations:
            # Frozen between perform and here cannot be: both run in one step of one thread.
            raise AssertionError("a change was applied while frozen")
        done()

    def send_data(
        self, identity: bytes, offset: int, data: memoryview, done: Callable[[Any], None], argument: Any
    ) -> None:
        """Send a piece of a file's content that is not a write of the VM's; ``data`` must stay until ``done``."""
        sequence = self.sequence + 1
        self.sequence = sequence
        body = pack((1, sequence, identity, offset, len(data)))
        header = memoryview(pack_length(len(body)) + body)
        self.out.append(header)
        self.out.append(data)
        self.inflight.append((sequence, header, _nothing, None))
        self.inflight.append((sequence, data, done, argument))

    def _enqueue(self, fields: tuple[Any, ...], done: Callable[[Any], None], argument: Any) -> int:
        """Number an operation, queue its frame, remember it until it is acknowledged; its sequence number."""
        sequence = self.sequence + 1
        self.sequence = sequence
        frame = memoryview(frames.encode(fields[0], sequence, *fields[1:]))
        self.out.append(frame)
        self.inflight.append((sequence, frame, done, argument))
        return sequence

    def operation(
        self, fields: tuple[Any, ...], done: Callable[[Any], None] | None = None, argument: Any = None
    ) -> int:
        """Send an operation that nobody of the VM's waits for, or whose answer is not its acknowledgement."""
        return self._enqueue(fields, done or _nothing, argument)

    def message(self, *fields: Any) -> None:
        """Send a message that is not numbered."""
        self.out.append(memoryview(frames.encode(*fields)))

    # --- the link -------------------------------------------------------------------------------------------------

    def send(self) -> None:
        """Give the connection what it takes now. A broken one is remembered: nothing that is under way in the core
        may be torn off in the middle because the link is gone; the loop looks at ``broken`` afterwards."""
        if self.connection is not None and self.broken is None:
            try:
                self.connection.send(self.out)
            except LinkLost as error:
                self.broken = error

    @property
    def congested(self) -> bool:
        """Too much is waiting to be sent: no more requests are taken from the kernel."""
        return len(self.out) > 16 and sum(map(len, self.out)) > SEND_HIGH_WATER

    def acknowledged(self, sequence: int) -> None:
        """The target has applied everything up to ``sequence``."""
        if self._local:
            self.apply_local()  # what is answered now must be here as well
        inflight = self.inflight
        while inflight and inflight[0][0] <= sequence:
            _, _, done, argument = inflight.popleft()
            done(argument)
        self.applied = sequence

    def freeze(self) -> None:
        """Hold every change from now on, the link being there: the other server is asked to take over."""
        self.mode = FROZEN

    def unfreeze(self) -> None:
        """The other server has not taken over, and will not."""
        self.mode = PRIM
        self._release_held()

    def link_lost(self) -> None:
        """The connection is gone: freeze, or go on alone when that was decided already."""
        self.connection = None
        self.broken = None
        self.out.clear()
        if self.mode is PRIM:
            self.mode = FROZEN
        elif self.mode is REINTEGRATING:
            self.reintegration = None
            self.go_alone()

    def resume(self, applied: int) -> None:
        """The same target is there again and has applied everything up to ``applied``: send the rest again."""
        self.acknowledged(applied)
        self.out.clear()
        self.out.extend(frame for _, frame, _, _ in self.inflight)
        self.flushes.resumed(applied)
        self.mode = PRIM
        self._release_held()

    def go_alone(self) -> None:
        """The verdict: this copy goes on alone. Its new generation is durable already."""
        self.mode = ALONE
        self.activity.freeze()
        self.out.clear()
        inflight = self.inflight
        self.inflight = deque()
        self.apply_local()
        for _, _, done, argument in inflight:
            done(argument)
        self.flushes.without_target()
        self._release_held()

    def stop(self) -> None:
        """The verdict: nothing more is acknowledged. The tap has been failed already."""
        self.mode = STOPPED
        self.inflight.clear()
        self.out.clear()
        self._local.clear()
        self.flushes.without_target(errno.EIO)
        self._release_held()

    def _release_held(self) -> None:
        held = self.held
        self.held = deque()
        for resume in held:
            resume()
        self.turn_end()

    def disk_failed(self, what: str) -> None:
        """The local disk cannot be trusted any more: nothing more is acknowledged from this copy."""
        log.error("the local disk failed: %s", what)
        self.stop()
        self.on_disk_failure(what)

    def begin_session(self, reintegration: Any, root: Node) -> None:
        """The target is durably inconsistent and ours to fill: send what it can take, let held changes go."""
        assert not self.inflight or self.mode is FROZEN
        self.session += 1
        self.sequence = 0
        self.applied = 0
        root.declared = self.session
        inflight = self.inflight
        self.inflight = deque()
        self.reintegration = reintegration
        self.mode = REINTEGRATING
        for _, _, done, argument in inflight:  # applied here; the log marks them, so that they will be copied
            done(argument)
        self.flushes.without_target()
        self._release_held()

    def end_reintegration(self) -> None:
        """Both copies are equal from here on in the stream."""
        self.reintegrated = self.reintegration.progress()
        self.reintegration = None
        self.mode = PRIM


def _nothing(_: Any) -> None:
    """What is to be done when an operation is acknowledged that nobody waits for."""


def _call(done: Callable[[], None]) -> None:
    done()
