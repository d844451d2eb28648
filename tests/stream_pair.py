"""Source and target joined in one process, without FUSE, sockets or clocks: every step is the test's.

Real are: the tap, the core, the dirty log, both halves of reintegration, the target and two directories on disk. Not
real are the kernel (stream_vm.py speaks its protocol over a socket pair), the wire (bytes arrive when they are
delivered), the helper process (a job is asked for, performed and answered in three steps), and flushes.

What the two processes add around that (hello, verdicts, the end of reintegration) is done here in the shortest way.
"""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import tempfile
from collections import deque
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import msgpack

from hotpair.replication import frames, helper, linux_io
from hotpair.replication.activity import ActivityLog
from hotpair.replication.dirty_log_io import DirtyLog, OsFiles
from hotpair.replication.errors import LinkLost, ProtocolError, TargetFailed
from hotpair.replication.flusher_io import Done, Flusher
from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.fuse_io import Slot, make_slots
from hotpair.replication.helper_io import Helper
from hotpair.replication.limits import CHUNK, CHUNKS_IN_WORK, REQUEST_SLOTS
from hotpair.replication.listing import Listing
from hotpair.replication.modes import ALONE, FROZEN, PRIM, REINTEGRATING
from hotpair.replication.objects_io import ensure_identity, write_identity
from hotpair.replication.reintegration import Reintegration
from hotpair.replication.source import Source
from hotpair.replication.tap_fuse import FuseTap
from hotpair.replication.target import Target
from hotpair.replication.transport_io import Connection
from tests.tree_comparison import compare_copies

EXTENT = 1 << 16
QUIET_AFTER = 20_000  # steps; a pair that is still busy then will never be quiet


class Wire:
    """One direction of a connection: bytes that were sent, of which some have been let through."""

    def __init__(self) -> None:
        self.waiting = bytearray()  # sent, not yet let through
        self.arrived = bytearray()
        self.begun = 0  # of what waits: the rest of a frame whose beginning has been let through
        self.cut = False

    def frames(self) -> list[tuple[int, int]]:
        """Kind and size of each whole frame that waits."""
        found = []
        start = self.begun
        while len(self.waiting) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self.waiting, start)
            fields = frames.decode(bytes(self.waiting[start + LENGTH.size : start + LENGTH.size + length]))
            size = LENGTH.size + length + frames.payload_size(fields)
            found.append((int(fields[0]), size))
            start += size
        return found

    def let_through(self, size: int) -> None:
        ends = [self.begun]
        for _, length in self.frames():
            ends.append(ends[-1] + length)
        self.begun = next((end - size for end in ends if end >= size), 0)
        self.arrived += self.waiting[:size]
        del self.waiting[:size]


class WireEnd:
    """What Source and Target have for a connection; the same methods as PlainConnection."""

    def __init__(self, outgoing: Wire, incoming: Wire) -> None:
        self._outgoing, self._incoming = outgoing, incoming
        self.wants_write = False

    def fileno(self) -> int:
        return -1

    def send(self, views: deque[memoryview]) -> bool:
        if self._outgoing.cut:
            raise LinkLost("cut by the test")
        while views:
            self._outgoing.waiting += views.popleft()
        return True

    def receive(self, view: memoryview) -> int:
        arrived = self._incoming.arrived
        size = min(len(view), len(arrived))
        if not size and self._incoming.cut:
            raise LinkLost("cut by the test")
        view[:size] = arrived[:size]
        del arrived[:size]
        return size

    def pending(self) -> bool:
        return False

    def close(self) -> None:
        pass


class StepFlushes:
    """In place of a Flusher: flushes end at the next look, or when ``held`` is taken back."""

    def __init__(self) -> None:
        self.held = False
        self.error = 0  # what each flush ends with
        self._waiting: list[Done] = []

    def flush(self, fd: int, data_only: bool, done: Done) -> None:
        os.fstat(fd)
        self._waiting.append(done)

    @property
    def pending(self) -> int:
        return len(self._waiting)

    def completed(self) -> None:
        if not self.held:
            ended, self._waiting = self._waiting, []
            for done in ended:
                done(self.error)

    def fileno(self) -> int:
        return -1


class NoReads:
    """In place of the kernel's queue of reads, which takes 30 ms to go away: nothing is read past the page cache."""

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


@cache
def request_memory() -> list[Slot]:
    """Of all pairs of this process, one after the other: to make it takes 15 ms."""
    return make_slots()


class StepHelper:
    """In place of the helper process: a job waits in ``asked``, then its answers wait in ``answers``."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, CHUNKS_IN_WORK * CHUNK)
        self.memory = memoryview(self._map)
        self.slots = list(range(CHUNKS_IN_WORK))
        self.reading: dict[int, int] = {}
        self.asked: deque[tuple[list[Any], list[int]]] = deque()
        self.answers: deque[list[Any]] = deque()
        self._token = 0

    def new_token(self) -> int:
        self._token += 1
        return self._token

    def ask(self, job: list[Any], *fds: int) -> bool:
        self.asked.append((cast("list[Any]", msgpack.unpackb(msgpack.packb(job))), [os.dup(fd) for fd in fds]))
        return True

    def abandon(self, token: int) -> None:
        slot = self.reading.pop(token, None)
        if slot is not None:
            self.slots.append(slot)

    def chunk(self, slot: int, size: int) -> memoryview:
        return self.memory[slot * CHUNK : slot * CHUNK + size]

    def send(self, message: bytes) -> None:
        """As the helper's socket: what a job says."""
        self.answers.append(cast("list[Any]", msgpack.unpackb(message)))

    def perform(self) -> bool:
        """Do the oldest job now; its answers stay here."""
        if not self.asked:
            return False
        job, fds = self.asked.popleft()
        if job[0] == "list":
            helper.list_directory(cast(socket.socket, self), job[1], fds[0], job[2])
        else:
            self.answers.append([job[1], *helper.read_chunk(fds[0], self._map, CHUNK, *job[2:])])
        for fd in fds:
            os.close(fd)
        return True


class QuietFiles(OsFiles):
    """A dirty log that costs no flushes: nobody cuts the power here."""

    def fdatasync(self, label: str, fd: int) -> None:
        pass

    def fsync(self, label: str, fd: int) -> None:
        pass


class StreamPair:
    """Both ends and what lies between them."""

    def __init__(
        self, reintegration_type: type[Reintegration] = Reintegration, source_space: int | None = None
    ) -> None:
        """``source_space``: the source's copy is on a file system of so many bytes."""
        self.base = tempfile.mkdtemp(prefix="hotpair-stream-", dir="/var/tmp")
        self.source_dir, self.target_dir = f"{self.base}/source", f"{self.base}/target"
        for path in (self.source_dir, self.target_dir):
            os.mkdir(path)
        self._mounted = source_space is not None
        if source_space is not None:
            options = b"size=%d,mode=755" % source_space
            linux_io.mount(b"hotpair-test", os.fsencode(self.source_dir), b"tmpfs", 0, options)
        self.source_root = os.open(self.source_dir, os.O_RDONLY | os.O_DIRECTORY)
        self.target_root = os.open(self.target_dir, os.O_RDONLY | os.O_DIRECTORY)
        self.identity = ensure_identity(self.source_root)
        write_identity(self.target_root, self.identity)
        self._reintegration_type = reintegration_type
        self.flushes, self.target_flushes = StepFlushes(), StepFlushes()
        self.activity = ActivityLog()
        self.log = DirtyLog.create(
            f"{self.base}/log", root=self.identity, generation=b"g" * 16, boot="", extent_shift=EXTENT.bit_length() - 1,
            counter=1, files=QuietFiles(), step=1 << 16,
        )  # fmt: skip
        self._flusher = cast(Flusher, self.flushes)
        self.source = Source(self.log, self.activity, self._flusher, EXTENT, False, 1 << 42)
        self.disk_failures: list[str] = []
        self.source.on_disk_failure = self.disk_failures.append
        self.source.flushes.sync_file_system = lambda _, done: done(0)
        self.helper = StepHelper()
        theirs, self.kernel_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (theirs, self.kernel_end):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._tap_end = theirs
        self.tap = FuseTap(
            theirs.fileno(), self.source_root, self.source, self.activity, 1000, "direct", f"{self.base}/journal",
            False, [Slot(slot.memory, slot.address) for slot in request_memory()], cast(linux_io.AioQueue, NoReads()),
        )  # fmt: skip
        self.tap.files.cold_read = lambda slot, node, offset, size: False
        self.source.known.nodes = self.tap.nodes
        self.source.times.path_fd = self.tap.objects.descriptors.get
        self.target: Target
        self.start_target()
        self.to_target, self.to_source = Wire(), Wire()
        self.in_sync = False
        self.lost: list[str] = []  # why the link was lost, each time that the test did not ask for it
        self._flush_all = 0
        self.source.go_alone()
        self.source.activity.freeze()

    def close(self) -> None:
        for _, fds in self.helper.asked:
            for fd in fds:
                os.close(fd)
        for node in self.tap.nodes.by_number.values():
            if node.data_fd >= 0:
                os.close(node.data_fd)
        for handle in self.tap.nodes.handles.values():
            if handle.directory_fd >= 0:
                os.close(handle.directory_fd)
        if self.source.reintegration is not None:
            self.source.reintegration.close()
        self.tap.objects.descriptors.close()
        self.tap.close(unmounted=True)
        os.close(self.tap.objects.orphans_fd)
        self._end_target()
        self._close_listing()
        self.log.close()
        for end in (self._tap_end, self.kernel_end):
            end.close()
        os.close(self.source_root)
        os.close(self.target_root)
        if self._mounted:
            linux_io.umount2(os.fsencode(self.source_dir), linux_io.MNT_DETACH)
        shutil.rmtree(self.base)

    def __enter__(self) -> StreamPair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the target -----------------------------------------------------------------------------------------------

    def start_target(self) -> None:
        """A new process on the same copy: it knows nothing of the session."""
        flusher = cast(Flusher, self.target_flushes)
        target = self.target = Target(self.target_root, self.identity, flusher, 1000, False)
        target.listing = Listing(target)
        target.on_message = self._for_target
        target.on_failure = lambda sequence, error: None
        target.on_flush_all = self._flush_target

    def _flush_target(self, sequence: int) -> None:
        self.target.listing.flushed(sequence)
        self.target.say(Kind.FLUSHED, sequence)

    def _close_listing(self) -> None:
        self.target.listing.close()

    def _end_target(self) -> None:
        self.target.detach()
        for item in self.target.objects.values():
            if item.data_fd >= 0:
                os.close(item.data_fd)
        self.target.descriptors.close()

    def kill_target(self) -> None:
        """Its process ends; what it has applied stays."""
        self.cut()
        self._end_target()
        self._close_listing()
        self.target_flushes = StepFlushes()
        self.start_target()

    def _for_target(self, fields: list[Any]) -> None:
        assert fields[0] == Kind.OFFER_SYNC, fields
        self.target.say(Kind.TAKEN, b"")

    # --- the link and the verdicts --------------------------------------------------------------------------------

    def _connect(self, fresh: bool) -> None:
        self.to_target, self.to_source = Wire(), Wire()
        if fresh:
            self._close_listing()
            self.target.listing = Listing(self.target)
        self.target.attach(cast(Connection, WireEnd(self.to_source, self.to_target)), fresh=fresh)
        self.target.admits_operations = True
        self.source.connection = cast(Connection, WireEnd(self.to_target, self.to_source))

    def cut(self, reason: str = "") -> None:
        """The link is lost: what was not delivered is gone. The source notices at its next turn."""
        for wire in (self.to_target, self.to_source):
            wire.cut = True
            wire.arrived.clear()
            wire.waiting.clear()
        self.target.detach()
        self._source_lost(reason)

    def _source_lost(self, reason: str) -> None:
        if self.source.connection is None:
            return
        if reason:
            self.lost.append(reason)
        self.in_sync = False
        self._flush_all = 0
        if self.source.reintegration is not None:
            self.source.reintegration.close()
        self.source.link_lost()

    def resume(self) -> None:
        """The same two processes meet again within their session."""
        assert self.source.mode is FROZEN and self.source.connection is None
        self._connect(fresh=False)
        self.source.resume(self.target.applied)
        self.in_sync = True

    def begin(self, full: bool = False) -> None:
        """A new session, from where the target has recorded that it is inconsistent."""
        assert self.source.connection is None
        if self.source.mode is FROZEN:
            self.source.go_alone()
        self._connect(fresh=True)
        self.activity.freeze()
        reintegration = self._reintegration_type(
            self.source, self.activity, self.tap.nodes, self.source_root, self.tap.root,
            cast(Helper, self.helper), full, self._try_to_finish,
        )  # fmt: skip
        reintegration.copied.interval_s = 0.0  # whenever there is a reason
        self.source.begin_session(reintegration, self.tap.root)

    def _try_to_finish(self) -> None:
        reintegration = self.source.reintegration
        if reintegration is None or self._flush_all or not reintegration.idle:
            return
        if not reintegration.flushed:
            reintegration.flushed = True
            self._flush_all = self.source.operation((Kind.FLUSH_ALL,))
            return
        self.source.operation((Kind.EMPTY_TRASH,))
        self.source.times.carry_all()
        reintegration.close()
        self.source.end_reintegration()
        self.source.message(Kind.OFFER_SYNC, b"")

    # --- steps of the two loops -----------------------------------------------------------------------------------

    def guarded(self, step: Callable[[], Any]) -> None:
        """One step of either loop; what ends the connection there ends it here."""
        try:
            step()
            if self.source.broken is not None:
                raise self.source.broken
        except (LinkLost, ProtocolError, TargetFailed) as error:
            self.cut(f"{type(error).__name__}: {error}")

    def take(self) -> None:
        """The source takes requests from the kernel."""
        self.guarded(self.tap.take)

    def turn(self) -> None:
        """What the source's loop does at the end of each batch of events."""
        self.guarded(self.source.turn_end)
        if self.source.reintegration is not None:
            self.guarded(self.source.reintegration.step)
            self.guarded(self.source.turn_end)

    def flushed(self) -> None:
        self.guarded(self._flusher.completed)
        self.guarded(self.target.flushes_completed)

    def answer(self) -> None:
        """The source hears the helper's oldest answer."""
        if self.helper.answers:
            answer = self.helper.answers.popleft()
            reintegration = self.source.reintegration
            if reintegration is None or not reintegration.answered(answer):
                self.helper.abandon(answer[0])

    def deliver(self, size: int | None = None) -> None:
        """Bytes from source to target; all that wait when no size is given."""
        self.to_target.let_through(len(self.to_target.waiting) if size is None else size)
        while self.to_target.arrived and self.target.connection is not None:
            self.guarded(self.target.receive)

    def deliver_frames(self, count: int) -> None:
        self.deliver(self.to_target.begun + sum(size for _, size in self.to_target.frames()[:count]))

    def deliver_until(self, kind: Kind) -> None:
        """All frames before the first one of this kind."""
        kinds = [number for number, _ in self.to_target.frames()]
        self.deliver_frames(kinds.index(kind))

    def deliver_back(self, count: int | None = None) -> None:
        """Frames from target to source."""
        wire = self.to_source
        for _ in range(len(wire.frames()) if count is None else count):
            if not wire.waiting:
                return
            (length,) = LENGTH.unpack_from(wire.waiting)
            fields = frames.decode(bytes(wire.waiting[LENGTH.size : LENGTH.size + length]))
            del wire.waiting[: LENGTH.size + length]
            self.guarded(lambda fields=fields: self._for_source(fields))  # type: ignore[misc]

    def _for_source(self, fields: list[Any]) -> None:
        reintegration = self.source.reintegration
        match fields[0]:
            case Kind.APPLIED:
                self.source.acknowledged(fields[1])
            case Kind.FLUSHED if fields[1] == self._flush_all:
                self._flush_all = 0
                self._try_to_finish()
            case Kind.FLUSHED:
                self.source.flushes.flushed(fields[1])
            case Kind.WANTED:
                reintegration.wanted(*fields[1:])
            case Kind.CHECKED:
                reintegration.checked(*fields[1:])
            case Kind.TAKEN:
                self.in_sync = True
                self.activity.thaw()
            case kind:
                raise ProtocolError(f"kind {kind} was not due")

    @property
    def _busy(self) -> bool:
        return bool(
            self.to_target.waiting or self.to_source.waiting or self.helper.asked or self.helper.answers
            or self.source.out or self.source.inflight or self.source.has_local_writes
            or (self.flushes.pending and not self.flushes.held) or self.target_flushes.pending
            or (self.source.mode is REINTEGRATING) or (self.source.mode is PRIM and not self.in_sync)
        )  # fmt: skip

    def one_of_each(self) -> None:
        """A turn of both loops in which everything happens that can."""
        self.take()
        self.flushed()
        self.helper.perform()
        self.answer()
        self.turn()
        self.deliver()
        self.deliver_back()

    def run(self) -> None:
        """Until nothing happens any more."""
        for _ in range(QUIET_AFTER):
            self.one_of_each()
            if not self._busy:
                self.source.times.carry_all()
                if not self._busy:
                    return
        raise AssertionError(f"not quiet: {self.source.mode}, {self.lost[-3:]}")

    def synchronise(self, full: bool = False) -> None:
        """Connect if needed, and run until the copies are in sync."""
        if self.source.connection is None:
            self.begin(full)
        self.run()
        assert self.in_sync and self.source.mode is PRIM, (self.source.mode, self.lost)

    def go_alone(self) -> None:
        """Cut the link and give the verdict."""
        self.cut()
        if self.source.mode is FROZEN:
            self.source.go_alone()
        assert self.source.mode is ALONE

    def differences(self, times_of: str = "none") -> list[str]:
        """Between the two directories, our own folders aside."""
        return compare_copies(self.source_dir, self.target_dir, times_of=times_of)

    def check_nothing_is_held(self) -> None:
        """No slot is lost or counted twice, no chunk slot either."""
        slots = self.tap._slots
        assert len({id(slot) for slot in slots}) == len(slots) == REQUEST_SLOTS
        assert sorted(self.helper.slots) == list(range(CHUNKS_IN_WORK))
