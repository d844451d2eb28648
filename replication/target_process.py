"""The target's mirror process: listens, admits one source at a time, keeps this copy's durable record."""

from __future__ import annotations

import errno
import logging
import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.record import Record
from hotpair.replication import clean_stop_io, dirty_log, frames, keeper_io, layout_io, linux_io
from hotpair.replication.copy_identity_io import claim_copy
from hotpair.replication.dirty_log import DirtyLogUnusable
from hotpair.replication.dirty_log_io import DirtyLog
from hotpair.replication.errors import BadConfiguration, LinkLost, ProtocolError, TargetFailed
from hotpair.replication.flusher_io import Flusher
from hotpair.replication.frames import Kind
from hotpair.replication.limits import (
    BUSY_INTERVAL_S,
    DESCRIPTORS_SPARE,
    FULL_FLUSHES_AT_ONCE,
    HANDOVER_CLOSE_S,
    PROTOCOL_VERSION,
    SNAPSHOT_FROZEN_S,
    SNAPSHOT_S,
    SPIN_S,
    STALL_TIMEOUT_S,
)
from hotpair.replication.link_io import Acceptor, Delivery
from hotpair.replication.listing import Listing
from hotpair.replication.marks_message import encode_marks
from hotpair.replication.objects_io import (
    IDENTITY_SIZE,
    PRIVATE_NAME,
    ensure_identity,
    largest_file,
    new_identity,
    write_identity,
)
from hotpair.replication.process_io import boot_id, descriptor_limit, lock_state
from hotpair.replication.snapshot_io import Snapshots
from hotpair.replication.spin import Spinner
from hotpair.replication.target import Target
from hotpair.replication.transport_io import Connection, TlsFiles

log = logging.getLogger("hotpair.replication")

TICK_S: Final = 0.25


@dataclass(frozen=True)
class TargetOptions:
    """What the target is started with."""

    directory: bytes
    state: str
    listen: tuple[str, int]
    durability: str
    stall_timeout_s: float = STALL_TIMEOUT_S
    overwrite: bool = False
    tls: TlsFiles | None = None


class TargetProcess:
    """Made once for the life of the process."""

    def __init__(self, options: TargetOptions, say: Callable[[str], None]) -> None:
        self.options = options
        self._say = say
        self._lock = lock_state(options.state)
        self._record_path = os.path.join(options.state, "record")
        self.record = self._load_record()
        keeper_io.take_away(options.state, options.directory)  # of a source that was killed here
        self._root_fd = layout_io.open_data(options.directory, self.record.root if self.record is not None else None)
        self._copy = claim_copy(self._root_fd, options.directory, self.record)
        self.record = replace(self.record, copy=self._copy) if self.record is not None else None
        self._changed = clean_stop_io.changed_since(options.state, self._root_fd, self._copy)
        self._root_identity = ensure_identity(self._root_fd)
        self._log_path = os.path.join(options.state, "dirty-log")
        self._largest_file = largest_file(self._root_fd)
        self._instance = new_identity()
        self._boot = boot_id()
        self._flushes = Flusher()
        self._limit = descriptor_limit() - DESCRIPTORS_SPARE
        self.target = self._make_target()
        self._delivery = Delivery()
        self._acceptor = Acceptor(*options.listen, options.tls, self._delivery)
        self._epoll = select.epoll()
        self._spinner = Spinner(SPIN_S)
        self._handlers: dict[int, Callable[[], None]] = {}
        self._watched = select.EPOLLIN  # what is waited for on the connection
        self._session: bytes | None = None  # the session in which this copy is in sync
        self._begun = False  # a reintegration, on the present connection
        self._source_is_alone = False  # it goes on while this copy is prepared; otherwise the VM's writes wait
        self._snapshots = Snapshots(self._root_fd, self._watch, self._unwatch)
        self._offered: bytes | None = None  # the session that the present connection would begin
        self._offered_root = b""  # the identity of its root directory
        self._flushing_all = 0
        self._said_busy_at = 0.0
        self._heard_at = time.monotonic()
        self._ended = False
        self._taken_over_at: float | None = None  # this server is the source from now on; another process will be it
        self.reason = "no source yet"
        layout_io.show(options.directory, self._root_fd)

    def _make_target(self) -> Target:
        target = Target(
            self._root_fd, self._root_identity, self._flushes, self._limit // 2, self.options.durability == "disk"
        )
        target.listing = Listing(target)
        target.on_message = self._message
        target.on_failure = self._failed
        target.on_flush_all = self._flush_all
        return target

    def _load_record(self) -> Record | None:
        try:
            return record_io.load(self._record_path)
        except (records.RecordDamaged, records.RecordVersion) as error:
            raise BadConfiguration(str(error)) from error

    def _store(self, record: Record) -> None:
        record_io.store(self._record_path, record)
        self.record = record

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until stopped; the exit code."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._signalled)
        self._watch(self._delivery.fileno(), self._delivered)
        self._watch(self._flushes.fileno(), self._flushed)
        if not self._inconsistent:
            self._snapshots.put_away()  # in sync, and killed before it could
        self._snapshots.tidy()
        self._say("ready")
        poll = self._epoll.poll
        handlers = self._handlers
        spinner = self._spinner
        target = self.target
        ticked_at = 0.0
        while not self._ended:
            events = spinner.poll(poll, target.connection is not None) or poll(TICK_S)
            try:
                for fd, _ in events:
                    handler = handlers.get(fd)
                    if handler is not None:
                        handler()
                self._watch_connection()
            except (LinkLost, ProtocolError, TargetFailed) as error:
                self._link_lost(error)
            now = time.monotonic()
            if now - ticked_at >= TICK_S:
                ticked_at = now
                self._tick(now)
        return 0

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, select.EPOLLIN)

    def _unwatch(self, fd: int) -> None:
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def _watch_connection(self) -> None:
        connection = self.target.connection
        if connection is None:
            return
        wanted = select.EPOLLOUT if connection.wants_write else 0
        if not wanted or not self.target.congested:
            wanted |= select.EPOLLIN
        if wanted != self._watched:
            self._watched = wanted
            self._epoll.modify(connection.fileno(), wanted)

    def _signalled(self, _signal: int, _frame: object) -> None:
        self._delivery.put(self._stop)

    def _flushed(self) -> None:
        self.target.flushes_completed()

    def _delivered(self) -> None:
        for item in self._delivery.take():
            if callable(item):
                item()
            else:
                self._greeted(*item)

    def _receive(self) -> None:
        target = self.target
        if target.connection is not None and target.connection.wants_write:
            target.send()
            if target.congested:
                return
        target.receive()
        self._heard_at = time.monotonic()  # only now: the time that all this took here is not the source's silence

    def _tick(self, now: float) -> None:
        target = self.target
        self._snapshots.tick(now)
        if self._taken_over_at is not None and now - self._taken_over_at > HANDOVER_CLOSE_S:
            self._stop()
            return
        if target.connection is None:
            return
        if (self._flushing_all or self._snapshots.working) and now - self._said_busy_at >= BUSY_INTERVAL_S:
            self._said_busy_at = now
            target.say(Kind.BUSY, BUSY_INTERVAL_S)
        try:
            target.send()
        except LinkLost as error:
            self._link_lost(error)
            return
        if target.connection is not None and now - self._heard_at > self.options.stall_timeout_s:
            target.connection.abandon()
            self._link_lost(LinkLost(f"nothing heard from the source for {self.options.stall_timeout_s:g} s"))

    # --- the link -------------------------------------------------------------------------------------------------

    def _greeted(self, connection: Connection, hello: dict[str, Any]) -> None:
        """A peer has said hello: admit it, or refuse it with the reason. The old session ends first, all of it."""
        reason = self._objection(hello)
        if reason is not None:
            reason = frames.text(reason)
            log.warning("refused the source: %s", reason)
            self._refuse(connection, reason)
            return
        resume = self._session is not None and hello.get("session") == self._session
        if self.target.connection is not None:
            self._drop_connection()
        self._offered = hello["new_session"]
        self._offered_root = hello["root"]
        if not resume:
            self._session = None
            self.target.listing.close()
            self.target.listing = Listing(self.target)
        self.target.attach(connection, fresh=not resume)
        self._begun = False
        self._source_is_alone = _is_alone(hello.get("record"))
        self._watched = select.EPOLLIN
        self._heard_at = time.monotonic()
        self._watch(connection.fileno(), self._receive)
        marks, shift = self._own_marks()
        welcome = {
            "instance": self._instance,
            "resume": resume,
            "applied": self.target.applied,
            "record": records.encode(self.record) if self.record is not None else b"",
            "boot": self._boot,
            "marks": marks if self._changed is not None else None,
            "changed": sorted(self._changed or ()),
            "extent_shift": shift,
        }
        self.target.say(Kind.WELCOME, PROTOCOL_VERSION, welcome)
        try:
            self.target.send()
        except LinkLost as error:
            self._link_lost(error)

    def _objection(self, hello: dict[str, Any]) -> str | None:
        """Why this source cannot be served, if it cannot."""
        if self._taken_over_at is not None:
            return "this server has taken over: it is the source from now on"
        for key in ("root", "new_session"):
            value = hello.get(key)
            if type(value) is not bytes or len(value) != IDENTITY_SIZE:
                return f"its hello has no valid {key!r}"
        if hello.get("durability") != self.options.durability:
            return (
                f"it has durability {hello.get('durability')!r}, this server {self.options.durability!r}: "
                "give both the same --durability"
            )
        largest = hello.get("largest_file")
        if type(largest) is not int or largest > self._largest_file:
            return (
                f"its file system holds files of {largest} bytes, the one of this server only {self._largest_file}: "
                "use the same file system, with the same block size, on both servers"
            )
        if self.record is None:
            entries = [name for name in os.listdir(self._root_fd) if os.fsencode(name) != PRIVATE_NAME]
            if entries and not self.options.overwrite:
                return (
                    f"{os.fsdecode(self.options.directory)} is not empty and was never a copy of this module "
                    f"({entries[0]!r} is in it): empty it, or start the target with --overwrite"
                )
        elif hello["root"] != self.record.root:
            return "it is the source of another module (its root directory has another identity)"
        return None

    def _refuse(self, connection: Connection, reason: str) -> None:
        try:
            connection.send(deque([memoryview(frames.encode(Kind.REFUSED, reason))]))
        except LinkLost as error:
            log.info("while refusing: %s", error)
        connection.close()

    def _own_marks(self) -> tuple[list[Any] | None, int]:
        """What this copy may have that the source's has not, from our own dirty log, and its extent shift.

        None: everything. A copy that was only ever a target has no log, and nothing of its own.
        """
        if self.record is None or self.record.inconsistent:
            return [], 0
        if not os.path.exists(self._log_path):
            return ([] if self.record.last_role == "SECOND" else None), 0
        try:
            with open(self._log_path, "rb") as file:
                shift = dirty_log.decode_header(file.read(dirty_log.HEADER_BYTES)).extent_shift
            opened, recovered = DirtyLog.open(self._log_path, self.record, extent_shift=shift)
        except DirtyLogUnusable as error:
            log.warning("%s", error)
            return None, 0
        opened.close()
        return (None if recovered.everything else encode_marks(recovered.marks)), shift

    def _drop_connection(self) -> None:
        connection = self.target.connection
        self._snapshots.cancel()
        if connection is not None:
            self._unwatch(connection.fileno())
            self.target.detach()

    def _link_lost(self, error: Exception) -> None:
        if self.target.connection is None:
            return
        if self._taken_over_at is not None:  # the answer has arrived, or nobody waits for it any more
            self._stop()
            return
        self.reason = frames.text(str(error))
        self._say(f"link lost: {self.reason}")
        if isinstance(error, ProtocolError):
            self.target.say(Kind.REFUSED, self.reason)
            self._try_to_send()
        if isinstance(error, ProtocolError | TargetFailed):
            self._session = None
        self._drop_connection()

    def _try_to_send(self) -> None:
        try:
            self.target.send()
        except LinkLost as error:
            log.info("while saying why: %s", error)

    # --- what the source says -------------------------------------------------------------------------------------

    def _message(self, fields: list[Any]) -> None:
        match fields[0]:
            case Kind.PROBE:
                self.target.acknowledge()
            case Kind.BEGIN_REINTEGRATION:
                self._begin(fields[1])
            case Kind.OFFER_SYNC:
                self._take_sync(fields[1])
            case Kind.HANDOVER:
                self._take_over(fields[1])
            case Kind.BYE:
                self._say(f"the source has stopped: {frames.text(fields[1])}")
            case Kind.REFUSED:
                raise LinkLost(f"the source refused: {frames.text(fields[1])}")
            case kind:
                raise ProtocolError(f"the peer sent {Kind(kind).name}, which is not for a target")

    def _begin(self, generation: object) -> None:
        """A reintegration begins: what this copy is may be kept before it is given up."""
        if type(generation) is not bytes or len(generation) != IDENTITY_SIZE or generation == bytes(IDENTITY_SIZE):
            raise ProtocolError("the peer's generation is none")
        begun = self._begun or self._snapshots.working
        if begun or self._session is not None or self._taken_over_at is not None:
            raise ProtocolError("the peer began a reintegration a second time")
        if self.record is None:
            self._give_up_copy(generation)
        else:
            limit_s = SNAPSHOT_S if self._source_is_alone else SNAPSHOT_FROZEN_S
            self._snapshots.prepare(self.record, limit_s, lambda: self._give_up_copy(generation))

    def _give_up_copy(self, generation: bytes) -> None:
        """Before the first byte changes: inconsistent, durably, in the source's generation. Then our log may go."""
        if self.record is None:
            if self._root_identity != self._offered_root:
                write_identity(self._root_fd, self._offered_root)
                os.fsync(self._root_fd)  # before a record names it
                self._root_identity = self._offered_root
                self.target.adopt_root(self._offered_root)
            self._store(
                Record(
                    generation=generation,
                    last_role="SECOND",
                    inconsistent=True,
                    boot=self._boot,
                    configuration=b"",
                    root=self._root_identity,
                    copy=self._copy,
                )
            )
        else:
            self._store(records.begin_reintegration_as_target(self.record, generation))
        if os.path.exists(self._log_path):
            os.unlink(self._log_path)
        clean_stop_io.remove_table(self.options.state)  # the source has noted what it told
        self._changed = set()
        self._begun = True
        self.target.admits_operations = True
        self._say("state REINTEGRATING")
        self.target.say(Kind.INCONSISTENT, generation)
        self.target.send()

    def _take_sync(self, encoded: object) -> None:
        if self.record is None or not self.record.inconsistent or not self._begun:
            raise ProtocolError("the peer offered sync without a reintegration")
        theirs = _record_of_peer(encoded)
        if theirs.root != self.record.root:
            raise ProtocolError("the peer offered sync with another module")
        if not theirs.in_sync or theirs.solo or theirs.inconsistent or theirs.outdated:
            raise ProtocolError("the peer offered sync, and its own record does not say that it is in sync")
        if self.record.generation not in (theirs.generation, theirs.base):  # it takes a new one after we have begun
            raise ProtocolError("the peer offered sync in another generation than the one that it began")
        self._store(records.take_sync_as_target(self.record, theirs, boot=self._boot))
        self._session = self._offered
        self.reason = ""
        self._say("state SECOND")
        self.target.say(Kind.TAKEN, encoded)
        self._snapshots.drop()

    def _take_over(self, encoded: object) -> None:
        """The source hands the module over: make this copy the primary, durably, then say so."""
        theirs = _record_of_peer(encoded)
        record = self.record
        if record is None or self._session is None or not record.in_sync or record.outdated or record.inconsistent:
            self.target.say(Kind.NOT_HANDED_OVER, "its copy is not in sync")
            return
        if theirs.generation != record.generation or not theirs.in_sync:
            raise ProtocolError("the peer hands over a copy of another generation")
        if os.path.exists(self._log_path):
            os.unlink(self._log_path)
        taken = records.take_over(record, theirs, boot=self._boot)
        self._store(taken)
        self._session = None
        self.target.admits_operations = False
        self._taken_over_at = time.monotonic()
        self.reason = "this server has taken over"
        self.target.say(Kind.HANDED_OVER, records.encode(taken))

    def _failed(self, sequence: int, error: OSError) -> None:
        """An operation failed. Say so only when it is on record that this copy is outdated, or say that it is not."""
        text = frames.text(f"operation {sequence} failed: {error.strerror}")
        self._say(f"failed: {text}")
        self.reason = text
        outdated = False
        if self.record is not None and not self.record.inconsistent:
            try:
                linux_io.syncfs(self._root_fd)
                self._store(records.mark_outdated(replace(self.record, in_sync=False)))
                outdated = True
            except (OSError, record_io.RecordNotStored) as failure:
                log.error("cannot record that this copy is outdated: %s", failure)
        self.target.say(Kind.APPLIED, self.target.applied)
        self.target.say(Kind.FAILED, sequence, error.errno or 0, text, outdated or self._inconsistent)
        self._try_to_send()
        if self._inconsistent and error.errno in (errno.ENOSPC, errno.EDQUOT):
            log.warning("no room: a snapshot of the last consistent copy, if there is one, is given up for it")
            self._snapshots.drop()

    @property
    def _inconsistent(self) -> bool:
        return self.record is not None and self.record.inconsistent

    def _flush_all(self, sequence: int) -> None:
        """Flush the whole file system from a thread, and say that we are busy meanwhile."""
        if self._flushing_all >= FULL_FLUSHES_AT_ONCE:
            raise ProtocolError(f"the peer asked for more than {FULL_FLUSHES_AT_ONCE} flushes of everything at once")
        self._flushing_all += 1
        connection = self.target.connection

        def flush() -> None:
            code = 0
            try:
                linux_io.syncfs(self._root_fd)
            except OSError as error:
                code = error.errno or 5
            self._delivery.put(lambda: self._flushed_all(connection, sequence, code))

        threading.Thread(target=flush, name="syncfs", daemon=True).start()

    def _flushed_all(self, connection: Connection | None, sequence: int, code: int) -> None:
        self._flushing_all -= 1
        if connection is not self.target.connection or connection is None:
            return
        if code:
            self._failed(sequence, OSError(code, os.strerror(code)))
            self._link_lost(TargetFailed(f"flushing: {os.strerror(code)}"))
            return
        self.target.listing.flushed(sequence)
        self.target.say(Kind.FLUSHED, sequence)
        self._try_to_send()

    def status(self) -> dict[str, Any]:
        """What this mirror is doing."""
        record = self.record
        return {
            "role": "target",
            "state": "SECOND" if self._session is not None else "WAIT",
            "in_sync": self._session is not None and self.target.connection is not None,
            "inconsistent": record is not None and record.inconsistent,
            "outdated": record is not None and record.outdated,
            "reason": self.reason,
            "linked": self.target.connection is not None,
            "generation": record.generation.hex() if record is not None else "",
            "applied": self.target.applied,
            "received_bytes": self.target.received_bytes,
            "objects": len(self.target.objects),
        }

    def _stop(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._acceptor.close()
        self._drop_connection()
        linux_io.syncfs(self._root_fd)
        layout_io.hide(self.options.directory)
        if self.record is not None:
            clean_stop_io.write_table(self.options.state, self._root_fd, self._copy)
        self._say("stopped" if self._taken_over_at is None else "handed over")


def _record_of_peer(encoded: object) -> Record:
    """The record in a message. Raises ProtocolError."""
    if type(encoded) is not bytes:
        raise ProtocolError("the peer's record is no bytes")
    try:
        return records.decode(encoded)
    except (records.RecordDamaged, records.RecordVersion) as error:
        raise ProtocolError(f"the peer's record: {error}") from error


def _is_alone(encoded: object) -> bool:
    """Whether the record in a hello says that the source goes on alone; one that cannot be read says nothing."""
    try:
        return _record_of_peer(encoded).solo
    except ProtocolError:
        return False
