"""The source's mirror process: the loop around tap, core, link and log. It carries out verdicts and makes none.

Whoever runs it (a supervisor through the control socket, or ``--alone-after`` in the foreground) decides when a frozen
source goes on alone or stops.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.record import Copying, Meeting, Record, Side
from hotpair.replication import dirty_log, frames, fuse_abi, fuse_io, journal_io, keeper, keeper_io, linux_io
from hotpair.replication.activity import ActivityLog
from hotpair.replication.clean_stop import identities, whole_files
from hotpair.replication.clean_stop_io import changed_since, remove_table, write_table
from hotpair.replication.copy_identity_io import claim_copy
from hotpair.replication.dirty_log import DirtyLogUnusable
from hotpair.replication.dirty_log_io import DirtyLog, DirtyLogFailed
from hotpair.replication.errors import BadConfiguration, LinkLost, MirrorError, ProtocolError
from hotpair.replication.flusher_io import Flusher
from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.handover import Handover
from hotpair.replication.helper_io import Helper
from hotpair.replication.limits import (
    DESCRIPTORS_SPARE,
    MAX_MESSAGE,
    PROBE_INTERVAL_S,
    PROTOCOL_VERSION,
    RECONNECT_INTERVAL_S,
    RECONNECT_LONGEST_S,
    SPIN_S,
    STALL_TIMEOUT_S,
)
from hotpair.replication.link_io import Connector, Delivery
from hotpair.replication.marks_message import decode_marks
from hotpair.replication.nodes import Node
from hotpair.replication.objects_io import ensure_identity, largest_file, new_identity, open_root
from hotpair.replication.process_io import boot_id, descriptor_limit, lock_state
from hotpair.replication.reader_io import Reader
from hotpair.replication.reintegration import Reintegration
from hotpair.replication.source import FROZEN, PRIM, REINTEGRATING, STOPPED, Mode, Source
from hotpair.replication.spin import Spinner
from hotpair.replication.tap_fuse import FuseTap
from hotpair.replication.transport_io import Connection, TlsFiles
from hotpair.replication.verify import Verification
from hotpair.replication.walk_io import check_kinds

log = logging.getLogger("hotpair.replication")

COLD_READERS: Final = 16
TICK_S: Final = 0.1
CONTROL_TIMEOUT_S: Final = 5.0
NUMBERED: Final = frozenset({Kind.APPLIED, Kind.FLUSHED, Kind.CHECKED, Kind.FAILED})
STRUCTURED: Final = frozenset({Kind.WELCOME, Kind.WANTED})  # whose fields come from the peer and are not numbers
UNANSWERED: Final = " before it answered: do both servers have TLS, and each other's authority?"
GREETING_S: Final = 2.0  # a verdict by time waits so long for the answer to a hello


@dataclass(frozen=True)
class SourceOptions:
    """What the source is started with. Sizes in bytes, times in seconds."""

    directory: bytes
    state: str
    peer: tuple[str, int]
    alone_after_s: float | None
    durability: str
    cache: str
    extent_size: int
    hot_extents: int
    stall_timeout_s: float = STALL_TIMEOUT_S
    tls: TlsFiles | None = None


class Phase(Enum):
    """How far a connection is: what the target may say in it."""

    GREETING = 0  # hello was said
    WELCOMED = 1  # our part: the records are compared
    BEGUN = 2  # the target is to record that it is inconsistent
    FILLING = 3  # reintegration
    OFFERED = 4  # the target is to record that it is in sync
    IN_SYNC = 5


_ALWAYS: Final = frozenset({Kind.BUSY, Kind.FAILED, Kind.REFUSED})
_SERVING: Final = _ALWAYS | {Kind.APPLIED, Kind.FLUSHED, Kind.WANTED, Kind.CHECKED}
DUE: Final[dict[Phase, frozenset[Kind]]] = {
    Phase.GREETING: frozenset({Kind.WELCOME, Kind.REFUSED}),
    Phase.WELCOMED: _ALWAYS | {Kind.APPLIED},
    Phase.BEGUN: _ALWAYS | {Kind.APPLIED, Kind.INCONSISTENT},
    Phase.FILLING: _SERVING,
    Phase.OFFERED: _SERVING | {Kind.TAKEN},
    Phase.IN_SYNC: frozenset(Kind) - {Kind.WELCOME, Kind.INCONSISTENT, Kind.TAKEN},
}


class SourceProcess:
    """Made once for the life of the process."""

    def __init__(self, options: SourceOptions, say: Callable[[str], None]) -> None:
        self.options = options
        self._say = say
        self._lock = lock_state(options.state)
        fuse_io.check_kernel()
        self._record_path = os.path.join(options.state, "record")
        stored = self._load_record()
        known_root = stored.root if stored is not None else None
        kept = self._adoptable()
        self._root_fd = kept.root_fd if kept is not None else open_root(options.directory, known_root)
        check_kinds(self._root_fd, options.directory)
        self._copy = claim_copy(self._root_fd, options.directory, stored)
        changed = changed_since(options.state, self._root_fd, self._copy)
        self._largest_file = largest_file(self._root_fd)
        self._instance = new_identity()
        self._boot = boot_id()
        self._root_identity = ensure_identity(self._root_fd)
        self.record = replace(stored, copy=self._copy) if stored is not None else self._first_record()
        self._flushes = Flusher()
        self._log, marks = self._open_log()
        self._activity = ActivityLog(marks, options.hot_extents)
        self.source = Source(
            self._log,
            self._activity,
            self._flushes,
            options.extent_size,
            options.durability == "disk",
            self._largest_file,
        )
        self.source.on_disk_failure = self._disk_failed
        self.source.sync_file_system = self._sync_file_system
        self._delivery = Delivery()
        self._connector = Connector(*options.peer, options.tls, self._delivery)
        self._epoll = select.epoll()
        self._spinner = Spinner(SPIN_S)
        self._handlers: dict[int, Callable[[], None]] = {}
        self._connection: Connection | None = None
        self._sent_before = 0  # bytes, over the connections that are gone
        self._writes_watched = False
        self._received = bytearray()
        self._session: bytes | None = None  # the session in which the pair is in sync
        self._offered: bytes | None = None
        self._phase = Phase.GREETING
        self._hello_at = 0.0
        self._heard_at = time.monotonic()
        self._probed_at = 0.0
        self._progress = 0
        self._progress_at = time.monotonic()
        self._frozen_since = time.monotonic()
        self._reconnect_at = 0.0
        self._unwelcome = 0  # connections in a row that ended before the target had answered the hello
        self._ticked_at = 0.0
        self._flush_all = 0  # sequence number of the FLUSH_ALL that ends a reintegration, 0: none
        self._full = False
        self._stopping = False
        self._ended = False
        self._failure = 0  # errno of the last operation that the target could not apply
        self._give_up = False  # it failed in the same way twice: an operator must act
        self._exit_code = 0
        self._ready = False
        self._evicting = False
        self._handover: Handover | None = None
        self._handed_over = False
        self.verification: Verification | None = None  # the last one, running or ended
        self.in_sync = False
        self.ceiling = 0
        self.reason = "no connection to the peer yet"
        self._admit_changes(changed)
        self._helper = Helper(1)
        limit = descriptor_limit() - DESCRIPTORS_SPARE
        self._adopted = kept is not None
        if kept is not None:
            self._fuse_fd = kept.fuse_fd
        else:
            self._fuse_fd = fuse_io.mount(options.directory, os.path.basename(options.state.rstrip("/")) or "module")
            self._keeper = keeper_io.start(options.state, self._fuse_fd, self._root_fd)
        self._fuse_connection = fuse_io.connection_number(options.directory)
        self.tap = FuseTap(
            self._fuse_fd,
            self._root_fd,
            self.source,
            self._activity,
            limit // 2,
            options.cache,
            os.path.join(options.state, "journal"),
            self._adopted,
        )
        self._reader = Reader(self._fuse_fd, COLD_READERS)
        self.tap.cold_read = self._cold_read
        self.tap.closed = lambda node: self._reader.drop(node.nodeid)
        self.source.nodes = self.tap.nodes
        self.source.path_fd = self.tap.descriptors.get

    def _adoptable(self) -> keeper_io.Kept | None:
        """The mount of a mirror process that has died, if it can be taken over; otherwise it is taken away."""
        kept = keeper_io.adopt(self.options.state)
        if kept is not None:
            agreed = journal_io.read(os.path.join(self.options.state, "journal")).agreed
            if agreed is not None and agreed & fuse_abi.INIT_HAS_RESEND:
                return kept
            log.warning("this kernel cannot send requests again: the mount is taken away from those who use it")
            fcntl.flock(kept.root_fd, fcntl.LOCK_UN)  # the keeper shares it, and may take a moment to end
            os.close(kept.fuse_fd)
            os.close(kept.root_fd)
        if fuse_io.is_mounted(self.options.directory):
            fuse_io.abort_connection(fuse_io.connection_number(self.options.directory))
            fuse_io.unmount(self.options.directory)
        return None

    # --- start ----------------------------------------------------------------------------------------------------

    def _load_record(self) -> Record | None:
        try:
            record = record_io.load(self._record_path)
        except (records.RecordDamaged, records.RecordVersion) as error:
            raise BadConfiguration(str(error)) from error
        if record is not None and record.inconsistent:
            raise BadConfiguration(
                "this copy is inconsistent (a reintegration into it was interrupted): it can only be a target"
            )
        if record is not None and record.outdated:
            raise BadConfiguration("this copy is outdated: the other server has newer data; it can only be a target")
        return record

    def _first_record(self) -> Record:
        record = Record(
            generation=new_identity(),
            last_role="ALONE",
            solo=True,
            boot=self._boot,
            configuration=b"",
            root=self._root_identity,
            copy=self._copy,
        )
        record_io.store(self._record_path, record)
        return record

    def _open_log(self) -> tuple[DirtyLog, dirty_log.Marks]:
        path = os.path.join(self.options.state, "dirty-log")
        shift = self.options.extent_size.bit_length() - 1
        try:
            opened, recovered = DirtyLog.open(path, self.record, extent_shift=shift)
            marks = recovered.marks
        except DirtyLogUnusable as error:
            first = self.record.log_counter == 0
            if not first:
                log.warning("%s", error)
            marks = dirty_log.Marks()
            opened = DirtyLog.create(
                path,
                root=self._root_identity,
                generation=self.record.generation,
                boot=self._boot,
                extent_shift=shift,
                counter=self.record.log_counter + 1,
                is_everything=not first,
            )
        if opened.counter != self.record.log_counter:
            self._store(replace(self.record, log_counter=opened.counter))
        opened.confirm_record(opened.counter)
        opened.compact(marks)  # each start moves the counter on, so that a log restored from a backup is known as such
        self._store(replace(self.record, log_counter=opened.counter))
        opened.confirm_record(opened.counter)
        return opened, marks

    _compared: frozenset[bytes] = frozenset()  # files to be compared: they were changed behind the mirror's back

    def _admit_changes(self, changed: set[bytes] | None) -> None:
        """Files changed since the clean stop are in the dirty log before the table that told of them goes."""
        if changed is None:
            self._log.set_everything()
        else:
            self._compared |= changed
            self._mark_changed()
            self.source.commit_marks_now()
        remove_table(self.options.state)

    def _mark_changed(self) -> None:
        for record in self._activity.union(whole_files(self._compared)):
            self.source.stage(record)

    def _store(self, record: Record) -> None:
        """Make a record durable before anything that follows from it."""
        record_io.store(self._record_path, record)
        self.record = record

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until stopped; the exit code."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._signalled)
        self._watch(self._fuse_fd, self._take)
        self._watch(self._delivery.fileno(), self._delivered)
        self._watch(self._flushes.fileno(), self._flushes.completed)
        self._watch(self._helper.fileno(), self._helped)
        self._watch(self._reader.fileno(), self._reader.answers)
        self._connector.connect()
        if self._adopted:
            self._say("adopted the mount")
            self.tap.ask_again()
        poll = self._epoll.poll
        handlers = self._handlers
        source = self.source
        fuse_fd = self._fuse_fd
        spinner = self._spinner
        while not self._ended:
            events = spinner.poll(poll, self._connection is not None) or poll(TICK_S)
            try:
                for fd, _ in events:
                    handler = handlers.get(fd)
                    if handler is not None:
                        handler()
                if self._ended:
                    break
                source.turn_end()
                if source.reintegration is not None:
                    source.reintegration.step()
                    source.turn_end()
                if source.verification is not None:
                    source.verification.step()
                    source.turn_end()
                self._watch_writes()
                if source.congested or not self.tap.ready:
                    self._pause(fuse_fd)
                elif self._paused:
                    self._unpause(fuse_fd)
                now = time.monotonic()
                if now - self._ticked_at >= TICK_S:
                    self._ticked_at = now
                    self._tick(now)
                if source.broken is not None:
                    raise source.broken
            except LinkLost as error:
                self._link_lost(f"{error}{UNANSWERED if self._phase is Phase.GREETING else ''}")
            except ProtocolError as error:
                self._link_lost(str(error))
        return self._exit_code

    _paused = False

    def _pause(self, fuse_fd: int) -> None:
        if not self._paused:
            self._paused = True
            self._epoll.modify(fuse_fd, 0)

    def _unpause(self, fuse_fd: int) -> None:
        self._paused = False
        self._epoll.modify(fuse_fd, select.EPOLLIN)

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def _watch_writes(self) -> None:
        connection = self._connection
        if connection is not None and connection.wants_write != self._writes_watched:
            self._writes_watched = connection.wants_write
            events = select.EPOLLIN | (select.EPOLLOUT if self._writes_watched else 0)
            self._epoll.modify(connection.fileno(), events)

    def _take(self) -> None:
        try:
            self.tap.take()
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            self._say("unmounted")
            self._unwatch(self._fuse_fd)
            self._mounted = False
            self._begin_stop()

    _mounted = True

    def _cold_read(self, slot: fuse_io.Slot, node: Node, offset: int, size: int) -> bool:
        return self._reader.read(node.nodeid, node.data_fd, slot.unique, offset, size)

    def _helped(self) -> None:
        for answer in self._helper.answers():
            reintegration = self.source.reintegration
            if reintegration is not None and reintegration.answered(answer):
                continue
            if self.source.verification is None or not self.source.verification.answered(answer):
                self._helper.abandon(answer[0])

    def _sync_file_system(self, fd: int, done: Callable[[int], None]) -> None:
        """Flush a file system from a thread, because it may take long."""

        def flush() -> None:
            code = 0
            try:
                linux_io.syncfs(fd)
            except OSError as error:
                code = error.errno or errno.EIO
            self._delivery.put(lambda: done(code))

        threading.Thread(target=flush, name="syncfs", daemon=True).start()

    def _signalled(self, _signal: int, _frame: object) -> None:
        self._begin_stop()

    # --- the link -------------------------------------------------------------------------------------------------

    def _delivered(self) -> None:
        for item in self._delivery.take():
            if callable(item):
                item()
            elif self._connection is not None or self._stopping:
                item.close()
            else:
                self._connected(item)

    def _connected(self, connection: Connection) -> None:
        self._connection = connection
        self._received.clear()
        self._writes_watched = False
        self._watch(connection.fileno(), self._receive)
        self._offered = new_identity()
        hello = {
            "instance": self._instance,
            "session": self._session if self.source.mode is FROZEN else None,
            "new_session": self._offered,
            "record": records.encode(self.record),
            "root": self._root_identity,
            "extent_size": self.options.extent_size,
            "durability": self.options.durability,
            "largest_file": self._largest_file,
        }
        self.source.connection = connection
        self.source.out.clear()
        self.source.message(Kind.HELLO, PROTOCOL_VERSION, hello)
        self._phase = Phase.GREETING
        self._hello_at = self._heard_at = self._progress_at = time.monotonic()
        self.source.send()

    def _receive(self) -> None:
        connection = self._connection
        assert connection is not None
        if connection.wants_write:
            self.source.send()
        view = memoryview(bytearray(65536))
        size = connection.receive(view)
        received = self._received
        received += view[:size]
        start = 0
        while len(received) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(received, start)
            if length > MAX_MESSAGE or not length:
                frames.check_length(length)
            end = start + LENGTH.size + length
            if len(received) < end:
                break
            fields = frames.decode(bytes(received[start + LENGTH.size : end]))
            start = end
            if fields[0] in NUMBERED and type(fields[1]) is not int:
                raise ProtocolError(f"the peer sent {Kind(fields[0]).name} without a number")
            if fields[0] not in DUE[self._phase]:
                raise ProtocolError(f"the peer sent {Kind(fields[0]).name}, which was not due")
            if fields[0] in (Kind.FLUSHED, Kind.CHECKED) and fields[1] > self.source.sequence:
                raise ProtocolError(f"the peer sent {Kind(fields[0]).name} for what was not sent")
            if fields[0] != Kind.APPLIED:
                self._understand(fields)
            elif self._phase not in (
                Phase.WELCOMED,
                Phase.BEGUN,
            ):  # there it answers a probe, and says nothing of an earlier session
                if fields[1] > self.source.sequence:
                    raise ProtocolError("the peer acknowledged what was not sent")
                self.source.acknowledged(fields[1])
                if self._connection is not connection:
                    return
        del received[:start]
        self._heard_at = time.monotonic()
        if connection.pending():
            self._receive()

    def _understand(self, fields: list[Any]) -> None:
        try:
            self._message(fields)
        except (KeyError, TypeError, ValueError, records.RecordDamaged, records.RecordVersion) as error:
            if fields[0] not in STRUCTURED:
                raise
            raise ProtocolError(f"the peer sent a malformed {Kind(fields[0]).name}: {error!r}") from error

    def _message(self, fields: list[Any]) -> None:
        kind = fields[0]
        reintegration = self.source.reintegration
        match kind:
            case Kind.FLUSHED:
                if fields[1] == self._flush_all:
                    self._flush_all = 0
                    self._try_to_finish()
                else:
                    self.source.flushed(fields[1])
            case Kind.WELCOME:
                frames.check_version(fields[1])
                self._welcomed(fields[2])
            case Kind.INCONSISTENT:
                self._target_is_inconsistent()
            case Kind.WANTED if reintegration is not None:
                reintegration.wanted(fields[1], fields[2], fields[3])
            case Kind.CHECKED if reintegration is not None:
                reintegration.checked(fields[1], fields[2])
            case Kind.CHECKED | Kind.COMPARED | Kind.NAMES if self.verification is not None:
                self.verification.answered_by_target(fields)
            case Kind.HANDED_OVER if self._handover is not None and self._handover.asked:
                self._take_answer(fields[1])
            case Kind.NOT_HANDED_OVER if self._handover is not None and self._handover.asked:
                self._not_handed_over(f"the peer does not take over: {fields[1]}")
            case Kind.TAKEN:
                self._synchronised()
            case Kind.BUSY:
                pass
            case Kind.FAILED:
                self._target_failed(fields[2], fields[3], fields[4])
            case Kind.REFUSED:
                self._refused(fields[1])
            case _:
                raise ProtocolError(f"the peer sent {Kind(kind).name}, which was not due")

    def _link_lost(self, reason: str) -> None:
        if self._connection is None:
            return
        # A peer that ends each connection before it is welcome is asked less and less often, and told of once
        self._unwelcome = min(self._unwelcome + 1, 8) if self._phase is Phase.GREETING else 0
        if not self._stopping and (self._unwelcome < 2 or reason != self.reason):
            self._say(f"link lost: {reason}")
        self.reason = reason
        self.end_verify(f"link lost: {reason}")
        self._unwatch(self._connection.fileno())
        self._sent_before += self._connection.sent
        self._connection.close()
        self._connection = None
        self.in_sync = False
        self._flush_all = 0
        pause = min(RECONNECT_INTERVAL_S * 2**self._unwelcome, RECONNECT_LONGEST_S)
        self._reconnect_at = time.monotonic() + pause
        before = self.source.mode
        if self.source.reintegration is not None:
            self.source.reintegration.close()
        self.source.link_lost()
        self._state_changed(before)
        self._handover_interrupted(reason)

    def _welcomed(self, welcome: dict[str, Any]) -> None:
        self._phase = Phase.WELCOMED
        if welcome["resume"] and (self._session is None or self.source.mode is not FROZEN):
            raise ProtocolError("the peer resumes a session that it was not asked to resume")
        if welcome["resume"]:
            log.info("resuming the session after operation %d", welcome["applied"])
            before = self.source.mode
            self._end_handover()  # the old connection is gone with all in it: the peer has not been asked
            if not 0 <= welcome["applied"] <= self.source.sequence:
                raise ProtocolError("the peer acknowledged what was not sent")
            self._phase = Phase.IN_SYNC
            self.source.resume(welcome["applied"])
            self._state_changed(before)
            self._synchronised()
            return
        theirs = records.decode(welcome["record"]) if welcome["record"] else None
        meeting = self._meet(theirs, welcome["boot"])
        if meeting.source is not Side.ME:
            raise LinkLost(f"not reintegrated: {meeting.reason}")
        self._compared |= frozenset(identities(welcome.get("changed", [])))
        unknown = welcome["marks"] is None or (welcome["marks"] and welcome["extent_shift"] != self.source.shift)
        full = meeting.copying is Copying.FULL or self._log.is_everything or bool(unknown)
        connection = self._connection
        self.source.when_log_is_idle(lambda: self._begin(connection, welcome, full))

    def _meet(self, theirs: Record | None, their_boot: str) -> Meeting:
        return records.meet(
            self.record,
            theirs,
            self.record.boot == self._boot,
            theirs is None or theirs.boot == their_boot,
            first=Side.ME,
            preferred=Side.ME,
        )

    def _begin(self, connection: Connection | None, welcome: dict[str, Any], full: bool) -> None:
        """Durably log all that is to be copied, then have the target give up its claim to be consistent."""
        if self._connection is not connection:
            return
        self._full = full
        if full:
            self._log.set_everything()
        for record in self._activity.union(decode_marks(welcome["marks"] or [])):
            self.source.stage(record)
        self._mark_changed()
        self.source.commit_marks_now()
        self._session = None
        self._phase = Phase.BEGUN
        self.source.message(Kind.BEGIN_REINTEGRATION, self.record.generation, full)

    def _target_is_inconsistent(self) -> None:
        self._phase = Phase.WELCOMED
        connection = self._connection
        self.source.when_log_is_idle(lambda: self._start_reintegration(connection))

    def _start_reintegration(self, connection: Connection | None) -> None:
        if self._connection is not connection:
            return
        self._end_handover()  # the peer has taken this copy's generation as a target: it has not taken over
        self._phase = Phase.FILLING
        self._go_solo()
        before = self.source.mode
        root = self.tap.root
        reintegration = Reintegration(
            self.source,
            self._activity,
            self.tap.nodes,
            self._root_fd,
            root,
            self._helper,
            self._full,
            self._try_to_finish,
        )
        reintegration.ceiling = self.ceiling
        reintegration.compared = self._compared
        self._activity.freeze()
        self.source.begin_session(reintegration, root)
        self._state_changed(before)

    def _go_solo(self) -> None:
        """A new generation, solo, durable: the log first, then the record."""
        alone = records.go_alone(self.record, new_identity(), boot=self._boot)
        if alone.generation != self.record.generation:
            self.source.stage(dirty_log.generation(alone.generation))
            self.source.commit_marks_now()
        if alone != self.record:
            self._store(alone)

    def _try_to_finish(self) -> None:
        """All is copied: have the target flush it; when it has and nothing came in between, offer sync."""
        reintegration = self.source.reintegration
        if reintegration is None or self._flush_all or not reintegration.idle:
            return
        if not reintegration.flushed:
            reintegration.flushed = True
            self._flush_all = self.source.operation((Kind.FLUSH_ALL,))
            return
        self.source.operation((Kind.EMPTY_TRASH,))
        self.source.carry_all_times()
        self._store(records.offer_sync_as_source(self.record))
        reintegration.close()
        before = self.source.mode
        self.source.end_reintegration()
        self._session = self._offered
        self._phase = Phase.OFFERED
        self.source.message(Kind.OFFER_SYNC, records.encode(self.record))
        self._state_changed(before)

    def _synchronised(self) -> None:
        self._phase = Phase.IN_SYNC
        self.in_sync = True
        self.reason = ""
        self._failure = 0
        self._compared = frozenset()
        if self._full:
            self._full = False
            self.source.when_log_is_idle(lambda: self._compact(clear_everything=True))
        self._activity.thaw()
        self._say("in sync")
        self._now_ready()

    def _compact(self, clear_everything: bool = False) -> None:
        if self._log.failure is not None:
            return  # everything counts as dirty until the mirror is started again with room for its state
        try:
            self._log.compact(self._activity.snapshot(), clear_everything=clear_everything)
        except DirtyLogFailed as error:
            log.error("%s", error)  # the old log is as good
            return
        self._store(replace(self.record, log_counter=self._log.counter))
        self._log.confirm_record(self._log.counter)

    def _target_failed(self, code: int, text: str, outdated: bool) -> None:
        """The target could not apply an operation. If it has recorded that it is outdated, we may go on alone."""
        what = f"the peer cannot hold the copy: {text}"
        self._session = None
        self._link_lost(what)
        self.reason = what
        self._give_up = code == self._failure
        self._failure = code
        if self._give_up:
            self.reason = f"{what}. It is the second time: put it right there, then use the control command retry"
            self._say(f"not tried again: {self.reason}")
        if outdated and self.source.mode is FROZEN and self._handover is None:
            self.source.when_log_is_idle(self._go_alone)
        self._reconnect_at = time.monotonic() + 5.0

    def _refused(self, reason: str) -> None:
        self._link_lost(f"the peer refused: {reason}")
        self._reconnect_at = time.monotonic() + 2.0

    # --- verdicts -------------------------------------------------------------------------------------------------

    def go_alone(self) -> None:
        """The verdict `go alone`. Raises MirrorError when it makes no sense now."""
        if self.source.mode is not FROZEN:
            raise MirrorError(f"the mirror is {self.source.mode.value}, not FROZEN: nothing waits for a verdict")
        if self._handover is not None and self._connection is not None:
            raise MirrorError("the peer has been asked to take over and may do so now: wait for its answer")
        self.source.when_log_is_idle(self._go_alone)

    def _go_alone(self) -> None:
        if self.source.mode is not FROZEN:
            return
        self._end_handover()
        self._session = None
        self._activity.freeze()
        self._go_solo()
        self.source.go_alone()
        self._state_changed(FROZEN)
        self._now_ready()

    def stop(self) -> None:
        """The verdict `stop`: all held requests fail, then the process ends."""
        self.source.stop()
        self._begin_stop()

    def set_ceiling(self, bytes_per_second: int) -> None:
        """Limit reintegration's rate; 0: no limit."""
        self.ceiling = max(0, bytes_per_second)
        if self.source.reintegration is not None:
            self.source.reintegration.ceiling = self.ceiling
        if self.verification is not None:
            self.verification.content.ceiling = self.ceiling

    # --- verify ---------------------------------------------------------------------------------------------------

    def start_verify(self, repair: bool) -> None:
        """Compare both copies while the VM runs. Raises MirrorError when it makes no sense now."""
        if self.source.mode is not PRIM or not self.in_sync or self._stopping:
            raise MirrorError(f"the mirror is {self.source.mode.value}: only copies in sync are compared")
        if self._handover is not None:
            raise MirrorError("the peer is being asked to take over")
        if self.source.verification is not None:
            raise MirrorError("a comparison is under way: wait for it, or stop it")
        self.verification = self.source.verification = Verification(
            self.source, self.tap.nodes, self._root_fd, self.tap.root, self._helper, repair, self._verified
        )
        self.verification.content.ceiling = self.ceiling

    def end_verify(self, result: str) -> None:
        """End a comparison, if one is under way."""
        if self.source.verification is not None:
            self.source.verification.end(result)

    def _verified(self, result: str) -> None:
        self.source.verification = None
        self._say(f"verify: {result}")

    # --- handing over ---------------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Have the peer take over; the VM has been stopped. Raises MirrorError when that cannot be."""
        if self.source.mode is not PRIM or not self.in_sync or self._stopping:
            raise MirrorError(f"the mirror is {self.source.mode.value}: only a pair in sync can change its roles")
        if self._handover is not None:
            raise MirrorError("the handover is under way")
        self.end_verify("stopped: the module is handed over")
        self._handover = Handover(self.source, self._root_fd, self._ask_to_take_over, self._not_handed_over)
        self._handover.begin(time.monotonic())

    def _ask_to_take_over(self) -> None:
        self._state_changed(PRIM)
        self.source.message(Kind.HANDOVER, records.encode(self.record))
        self.source.send()

    def _not_handed_over(self, reason: str) -> None:
        """It is certain that the peer has not taken over: go on as before."""
        self._end_handover()
        self.reason = f"not handed over: {reason}"
        self._say(self.reason)
        if self.source.mode is FROZEN and self._connection is not None:
            self.source.unfreeze()
            self._state_changed(FROZEN)

    def _end_handover(self) -> None:
        if self._handover is not None:
            self._handover.ended = True
            self._handover = None

    def _handover_interrupted(self, reason: str) -> None:
        handover = self._handover
        if handover is None or self._stopping:
            return
        if handover.asked:
            self.reason = (
                f"the outcome of the handover is unknown ({reason}): start the other server's mirror, or let "
                "arbitration decide"
            )
            self._say(self.reason)
        else:
            self._not_handed_over(reason)

    def _take_answer(self, encoded: bytes) -> None:
        try:
            theirs = records.decode(encoded)
        except (records.RecordDamaged, records.RecordVersion) as error:
            raise ProtocolError(f"the peer's record: {error}") from error
        mine = self.record
        if theirs.generation != mine.generation or theirs.last_role != "PRIM" or theirs.term <= mine.term:
            raise ProtocolError("the peer says that it has taken over, and its record does not say so")
        self.source.when_log_is_idle(lambda: self._finish_handover(theirs))

    def _finish_handover(self, theirs: Record) -> None:
        """The peer has taken over, durably. Both copies are on disk and equal: no mark is needed any more."""
        if self._handover is None:
            return  # another verdict came before the log was idle
        self._log.compact(dirty_log.Marks())
        self._store(replace(records.hand_over(self.record, theirs), log_counter=self._log.counter))
        self._handed_over = True
        self.source.stop()
        self._begin_stop()
        self._link_lost("handed over")

    def retry(self) -> None:
        """The operator has put right what made the target fail."""
        self._give_up = False
        self._failure = 0
        self._reconnect_at = 0.0

    def shut_down(self) -> None:
        """End cleanly, as on SIGTERM."""
        self._begin_stop()

    # --- for the control socket's thread --------------------------------------------------------------------------

    def ask(self, act: Callable[[], None]) -> dict[str, Any]:
        """Have the loop do something. Raises MirrorError when it refuses or does not answer."""
        answered = threading.Event()
        refusal: list[MirrorError] = []

        def do() -> None:
            try:
                act()
            except MirrorError as error:
                refusal.append(error)
            finally:
                answered.set()

        self._delivery.put(do)
        if not answered.wait(CONTROL_TIMEOUT_S):
            raise MirrorError(f"the mirror has not answered for {CONTROL_TIMEOUT_S:g} s: its disk does not answer")
        if refusal:
            raise refusal[0]
        return {}

    def abort(self) -> dict[str, Any]:
        """The verdict `stop`. The tap is failed from this thread, which needs neither the loop nor the disk."""
        self._abort_mount()
        self._delivery.put(self.stop)
        return {}

    def _abort_mount(self) -> None:
        if not keeper.is_gone(self._fuse_fd):  # otherwise its number may be that of another mount by now
            fuse_io.abort_connection(self._fuse_connection)

    def status(self) -> dict[str, Any]:
        """What this mirror is doing. Reads what the loop keeps, so that it answers while the loop waits."""
        source = self.source
        reintegration = source.reintegration
        connection = self._connection
        return {
            "role": "source",
            "state": source.mode.value,
            "in_sync": self.in_sync and source.mode is PRIM,
            "reason": self.reason,
            "linked": self._connection is not None,
            "generation": self.record.generation.hex(),
            "dirty_extents": self._activity.count,
            "in_flight": len(source.inflight),
            "held": len(source.held),
            "sent_bytes": self._sent_before + (connection.sent if connection is not None else 0),
            "nodes": len(self.tap.nodes.by_number),
            "fuse_connection": self._fuse_connection,
            "reintegration": reintegration.progress() if reintegration is not None else None,
            "verify": self.verification.progress() if self.verification is not None else None,
            "handover": self._handover.stage if self._handover is not None else None,
        }

    def _now_ready(self) -> None:
        if not self._ready:
            self._ready = True
            self._say("ready")

    def _state_changed(self, before: Mode) -> None:
        if before is not self.source.mode:
            self._say(f"state {self.source.mode.value}")

    def _disk_failed(self, what: str) -> None:
        self._store(replace(self.record, inconsistent=True, in_sync=False, solo=False))
        self._say(f"disk failed: {what}")
        self.reason = f"disk failed: {what}"
        self._exit_code = 1
        self._begin_stop()

    # --- time -----------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        source = self.source
        if self._connection is None:
            if not self._stopping and not self._give_up and now >= self._reconnect_at:
                self._reconnect_at = now + 3600.0  # the connector tries again by itself until it has one
                self._connector.connect()
        else:
            self._probe(now)
        # Counted from when it froze, with or without a connection: a target that accepts and does not answer is none
        after = self.options.alone_after_s
        if source.mode is not FROZEN:
            self._frozen_since = now
        elif after is not None and self._handover is None and self._frozen_long(now, after):
            source.when_log_is_idle(self._go_alone)
        if source.mode is PRIM and not source.inflight:
            source.carry_all_times()
            source.turn_end()
        if self._log.should_compact():
            source.when_log_is_idle(self._compact)
        self._evict()
        if self._stopping:
            self._stop_step()

    def _probe(self, now: float) -> None:
        source = self.source
        if now - self._probed_at >= PROBE_INTERVAL_S:
            self._probed_at = now
            source.message(Kind.PROBE, time.monotonic_ns())
            source.send()
        if source.applied != self._progress or not source.inflight:
            self._progress = source.applied
            self._progress_at = now
        limit = self.options.stall_timeout_s
        if now - self._progress_at > limit:
            self._link_lost(f"no progress on outstanding operations for {limit:g} s")
        elif now - self._heard_at > limit:
            self._link_lost(f"nothing heard from the peer for {limit:g} s")

    def _frozen_long(self, now: float, after_s: float) -> bool:
        return now - self._frozen_since >= after_s and not self._greeting(now)

    def _greeting(self, now: float) -> bool:
        """Whether a connection is new enough that the target may still answer the hello."""
        return self._connection is not None and now - self._hello_at < GREETING_S

    def _evict(self) -> None:
        """Let the least recently used marks go, a quarter at a time, after both copies have flushed."""
        source = self.source
        if source.mode is not PRIM or not self.in_sync or self._evicting:
            return
        selection = self._activity.victims()
        if selection is None:
            return
        self._evicting = True
        log.debug("evicting marks of %d files", len(selection.extents))

        def flushed(error: int) -> None:
            self._evicting = False
            if error or source.mode is not PRIM:
                self._activity.abort_eviction(selection)
                return
            for record in self._activity.finish_eviction(selection):
                source.stage(record)

        source.flush_everything(self._root_fd, flushed)

    # --- the end --------------------------------------------------------------------------------------------------

    def _begin_stop(self) -> None:
        self.end_verify("stopped: the mirror ends")
        if self._handover is not None and not self._handover.asked:
            self._end_handover()
        self._stopping = True
        self._stop_at = time.monotonic() + 30.0

    _stop_at = 0.0
    _stop_flushed = False

    def _stop_step(self) -> None:
        """A clean stop: unmount, let what is outstanding finish, flush both copies, forget the marks."""
        source = self.source
        if self._mounted:
            try:
                linux_io.umount2(self.options.directory, 0)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() < self._stop_at - 28.0:
                    if error.errno != errno.EBUSY:
                        log.info("unmounting: %s", error.strerror)
                        self._mounted = False
                    return
                log.warning("the mount is busy: taken away from those who use it")
                fuse_io.unmount(self.options.directory)
            self._mounted = False
        late = time.monotonic() > self._stop_at
        if source.mode is PRIM and self.in_sync and not late:
            if source.inflight or source.has_local_writes:
                return
            if not self._stop_flushed:
                self._stop_flushed = True
                source.carry_all_times()
                source.flush_everything(self._root_fd, self._stopped)
                source.turn_end()
            return
        if source.mode not in (FROZEN, STOPPED, REINTEGRATING) and source.has_local_writes and not late:
            return
        self._end()

    def _stopped(self, error: int) -> None:
        if not error and self.source.mode is PRIM:
            self.source.when_log_is_idle(self._stopped_in_sync)
        else:
            self._end()

    def _stopped_in_sync(self) -> None:
        """Both copies are on disk and equal: nothing needs a mark any more."""
        if self._log.failure is None:
            self._log.compact(dirty_log.Marks())
            self._store(replace(self.record, log_counter=self._log.counter))
        self.source.message(Kind.BYE, "stopped")
        self.source.send()
        self._end()

    def _end(self) -> None:
        self._ended = True
        linux_io.syncfs(self._root_fd)
        self._connector.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = self.source.connection = None
        fuse_io.unmount(self.options.directory)
        self._abort_mount()  # or who still has a file open would wait for ever: the keeper holds the connection
        self.tap.close(unmounted=True)
        os.close(self._fuse_fd)
        self._reader.close()
        self._helper.close()
        self._log.close()
        if not self._exit_code:
            write_table(self.options.state, self._root_fd, self._copy)
        fcntl.flock(self._root_fd, fcntl.LOCK_UN)  # the keeper shares it, and may take a moment to end
        self._say("handed over" if self._handed_over else "stopped")
