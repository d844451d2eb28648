"""The target's connection to the source, from its hello to sync and to a handover: what is said when, after what.

One source at a time: a new hello ends the connection before it. A session outlives its connection when the same two
processes meet again; otherwise reintegration begins anew. It must not know how the process ends.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from hotpair.cluster import record as records
from hotpair.replication import frames, linux_io
from hotpair.replication.errors import LinkLost, MirrorError, ProtocolError, TargetFailed
from hotpair.replication.frames import Kind
from hotpair.replication.limits import (
    BUSY_INTERVAL_S,
    FULL_FLUSHES_AT_ONCE,
    HANDOVER_CLOSE_S,
    PROTOCOL_VERSION,
    SNAPSHOT_FROZEN_S,
    SNAPSHOT_S,
)
from hotpair.replication.link_io import Delivery
from hotpair.replication.listing import Listing
from hotpair.replication.loop_io import Loop
from hotpair.replication.objects_io import IDENTITY_SIZE, new_identity
from hotpair.replication.snapshot_io import Snapshots
from hotpair.replication.target import Target
from hotpair.replication.target_copy import TargetCopy
from hotpair.replication.target_farewell import Farewell
from hotpair.replication.target_greeting import is_alone, objection, record_of_peer
from hotpair.replication.target_start import TargetOptions
from hotpair.replication.transport_io import Connection

log = logging.getLogger("hotpair.replication")


class TargetSession:
    """All connections of a target process, one at a time."""

    def __init__(
        self,
        options: TargetOptions,
        own_copy: TargetCopy,
        target: Target,
        snapshots: Snapshots,
        delivery: Delivery,
        loop: Loop,
        say: Callable[[str], None],
        stop: Callable[[], None],
    ) -> None:
        self._options = options
        self._copy = own_copy
        self._target = target
        self._snapshots = snapshots
        self._delivery = delivery
        self._loop = loop
        self._say = say
        self._stop = stop
        self._instance = new_identity()
        self._watched = select.EPOLLIN  # what is waited for on the connection
        self.identity: bytes | None = None  # of the session in which this copy is in sync
        self.begun = False  # a reintegration, on the present connection
        self._source_is_alone = False  # it goes on while this copy is prepared; otherwise the VM's writes wait
        self._offered: bytes | None = None  # the session that the present connection would begin
        self._offered_root = b""  # the identity of its root directory
        self._flushing_all = 0
        self._said_busy_at = 0.0
        self._heard_at = time.monotonic()
        self.taken_over_at: float | None = None  # this server is the source from now on; another process will be it
        self._asked_to_leave = False  # on the present connection
        self._farewell: Farewell | None = None
        self.reason = "no source yet"
        self.refusal = ""  # why the last source that said hello was not admitted; empty when it was
        self.changed: Callable[[], None]  # what is reported may be another now
        target.on_message = self._message
        target.on_failure = self._failed
        target.on_flush_all = self._flush_all

    # --- the connection -------------------------------------------------------------------------------------------

    def watch_connection(self) -> None:
        """Have the loop wait for what can be done now: no operation is taken while too many answers wait to be sent."""
        connection = self._target.connection
        if connection is None:
            return
        wanted = select.EPOLLOUT if connection.wants_write else 0
        if not wanted or not self._target.congested:
            wanted |= select.EPOLLIN
        if wanted != self._watched:
            self._watched = wanted
            self._loop.wait_for(connection.fileno(), wanted)

    def _receive(self) -> None:
        target = self._target
        if target.connection is not None and target.connection.wants_write:
            target.send()
            if target.congested:
                return
        target.receive()
        self._heard_at = time.monotonic()  # only now: the time that all this took here is not the source's silence

    def tick(self, now: float) -> None:
        """Say that we are busy when it is time, and look whether the source is there."""
        target = self._target
        self._snapshots.tick(now)
        if self._farewell is not None:
            self._farewell.tick(now)
            return
        if self.taken_over_at is not None and now - self.taken_over_at > HANDOVER_CLOSE_S:
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
            self.link_lost(error)
            return
        if target.connection is not None and now - self._heard_at > self._options.stall_timeout_s:
            target.connection.abandon()
            self.link_lost(LinkLost(f"nothing heard from the source for {self._options.stall_timeout_s:g} s"))

    def greeted(self, connection: Connection, hello: dict[str, Any]) -> None:
        """A peer has said hello: admit it, or refuse it with the reason. The old session ends first, all of it."""
        reason: str | None
        if self.taken_over_at is not None:
            reason = "this server has taken over: it is the source from now on"
        elif self._farewell is not None:
            reason = "this server's mirror stops"
        else:
            reason = objection(hello, self._options, self._copy)
        if reason is not None:
            reason = frames.text(reason)
            log.warning("refused the source: %s", reason)
            self.refusal = f"refused the source: {reason}"
            self.changed()
            self._refuse(connection, reason)
            return
        self.refusal = ""
        resume = self.identity is not None and hello.get("session") == self.identity
        if self._target.connection is not None:
            self.drop_connection()
        self._offered = hello["new_session"]
        self._offered_root = hello["root"]
        if not resume:
            self.identity = None
            self._target.listing.close()
            self._target.listing = Listing(self._target)
        self._target.attach(connection, fresh=not resume)
        self.begun = self._asked_to_leave = False
        self._source_is_alone = is_alone(hello.get("record"))
        self._watched = select.EPOLLIN
        self._heard_at = time.monotonic()
        self._loop.watch(connection.fileno(), self._receive)
        self.changed()
        marks, shift = self._copy.own_marks()
        welcome = {
            "instance": self._instance,
            "resume": resume,
            "applied": self._target.applied,
            "record": records.encode(self._copy.record) if self._copy.record is not None else b"",
            "boot": self._copy.boot,
            "marks": marks if self._copy.changed is not None else None,
            "changed": sorted(self._copy.changed or ()),
            "extent_shift": shift,
        }
        self._target.say(Kind.WELCOME, PROTOCOL_VERSION, welcome)
        try:
            self._target.send()
        except LinkLost as error:
            self.link_lost(error)

    def _refuse(self, connection: Connection, reason: str) -> None:
        try:
            connection.send(deque([memoryview(frames.encode(Kind.REFUSED, reason))]))
        except LinkLost as error:
            log.info("while refusing: %s", error)
        connection.close()

    def drop_connection(self) -> None:
        """No connection any more, and nothing that was begun for it."""
        connection = self._target.connection
        self._snapshots.cancel()
        if connection is not None:
            self._loop.unwatch(connection.fileno())
            self._target.detach()
            self.changed()

    def link_lost(self, error: Exception) -> None:
        """Go on without this connection, if there is one; after a handover there is nothing to go on with."""
        if self._target.connection is None:
            return
        if self.taken_over_at is not None:  # the answer has arrived, or nobody waits for it any more
            self._stop()
            return
        self.reason = frames.text(str(error))
        self._say(f"link lost: {self.reason}")
        if isinstance(error, ProtocolError):
            self._target.say(Kind.REFUSED, self.reason)
            self._try_to_send()
        if isinstance(error, ProtocolError | TargetFailed):
            self.identity = None
        self.drop_connection()

    def _try_to_send(self) -> None:
        try:
            self._target.send()
        except LinkLost as error:
            log.info("while saying why: %s", error)

    # --- what the source says -------------------------------------------------------------------------------------

    def _message(self, fields: list[Any]) -> None:
        match fields[0]:
            case Kind.PROBE:
                self._target.acknowledge()
            case Kind.BEGIN_REINTEGRATION:
                self._begin(fields[1])
            case Kind.OFFER_SYNC:
                self._take_sync(fields[1])
            case Kind.HANDOVER:
                self._take_over(fields[1])
            case Kind.AGREE:
                self._agree(fields[1])
            case Kind.MAY_LEAVE:
                self._go()
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
        begun = self.begun or self._snapshots.working
        if begun or self.identity is not None or self.taken_over_at is not None:
            raise ProtocolError("the peer began a reintegration a second time")
        if self._copy.record is None:
            self._give_up_copy(generation)
        else:
            limit_s = SNAPSHOT_S if self._source_is_alone else SNAPSHOT_FROZEN_S
            self._snapshots.prepare(self._copy.record, limit_s, lambda: self._give_up_copy(generation))

    def _give_up_copy(self, generation: bytes) -> None:
        """Before the first byte changes: inconsistent, durably. Then say so."""
        if self._copy.record is None and self._copy.root_identity != self._offered_root:
            self._copy.adopt_root(self._offered_root)
            self._target.adopt_root(self._offered_root)
        self._copy.give_up(generation)
        self.begun = True
        self._target.admits_operations = True
        self.changed()
        self._say("state REINTEGRATING")
        self._target.say(Kind.INCONSISTENT, generation)
        self._target.send()

    def _take_sync(self, encoded: object) -> None:
        if self._copy.record is None or not self._copy.record.inconsistent or not self.begun:
            raise ProtocolError("the peer offered sync without a reintegration")
        theirs = record_of_peer(encoded)
        if theirs.root != self._copy.record.root:
            raise ProtocolError("the peer offered sync with another module")
        if not theirs.in_sync or theirs.solo or theirs.inconsistent or theirs.outdated:
            raise ProtocolError("the peer offered sync, and its own record does not say that it is in sync")
        if self._copy.record.generation not in (
            theirs.generation,
            theirs.base,
        ):  # it takes a new one after we have begun
            raise ProtocolError("the peer offered sync in another generation than the one that it began")
        self._copy.store(records.take_sync_as_target(self._copy.record, theirs, boot=self._copy.boot))
        self.identity = self._offered
        self.reason = ""
        self._say("state SECOND")
        self.changed()
        self._target.say(Kind.TAKEN, encoded)
        self._snapshots.drop()

    def _take_over(self, encoded: object) -> None:
        """The source hands the module over: make this copy the primary, durably, then say so."""
        theirs = record_of_peer(encoded)
        record = self._copy.record
        if record is None or self.identity is None or not record.in_sync or record.outdated or record.inconsistent:
            self._target.say(Kind.NOT_HANDED_OVER, "its copy is not in sync")
            return
        if theirs.generation != record.generation or not theirs.in_sync:
            raise ProtocolError("the peer hands over a copy of another generation")
        taken = self._copy.take_over(record, theirs)
        self.identity = None
        self._target.admits_operations = False
        self.taken_over_at = time.monotonic()
        self.reason = "this server has taken over"
        self.changed()
        self._target.say(Kind.HANDED_OVER, records.encode(taken))

    def _agree(self, epoch: object) -> None:
        """The arbiter's epoch, into the record of a copy that is in sync. Durable before it is answered."""
        record = self._copy.record
        if record is None or self.identity is None or not record.in_sync or record.outdated:
            raise ProtocolError("the peer has this copy agree on an epoch, and it is not in sync")
        if type(epoch) is not int or epoch < 0:
            raise ProtocolError(f"the peer's epoch is {epoch!r}")
        self._copy.store(records.agree_on_epoch(record, epoch))
        self.changed()
        self._target.say(Kind.AGREED, epoch)

    # --- leaving --------------------------------------------------------------------------------------------------

    @property
    def ends(self) -> bool:
        """Whether all is said: this process is about to end."""
        return self.taken_over_at is not None or self._farewell is not None

    def leave(self) -> None:
        """Say to the source that this copy is to stop. Raises MirrorError when it is not in sync with one.

        Until the source has acknowledged it, nothing changes: who is told to stop before that stops in sync.
        """
        record = self._copy.record
        if self.identity is None or self._target.connection is None or record is None or not record.in_sync:
            raise MirrorError("this copy is not in sync with a source: it can only be told to end")
        if not self._asked_to_leave:
            self._asked_to_leave = True
            self._target.say(Kind.LEAVE)
            try:
                self._target.send()
            except LinkLost as error:
                self.link_lost(error)
                raise

    def _go(self) -> None:
        """The source has flushed both copies, and goes on alone when it hears that this one is outdated.

        What came since then is flushed here, in the loop: nothing more is applied anyway.
        """
        if not self._asked_to_leave:
            raise ProtocolError("the peer lets this copy go, and it has not asked to")
        try:
            self._copy.leave()
        except OSError as error:
            self._failed(self._target.applied, error)
            raise TargetFailed(f"flushing before leaving: {error.strerror}") from error
        self.identity = None
        self.reason = "this server's mirror has left: the source goes on alone"
        self._say("left")
        self._target.say(Kind.GONE)
        self._farewell = Farewell(*self._target.release(), self._loop, self._stop)
        self.changed()

    def _failed(self, sequence: int, error: OSError) -> None:
        """An operation failed. Say so only when it is on record that this copy is outdated, or say that it is not."""
        text = frames.text(f"operation {sequence} failed: {error.strerror}")
        self._say(f"failed: {text}")
        self.reason = text
        outdated = self._copy.become_outdated()
        self._target.say(Kind.APPLIED, self._target.applied)
        self._target.say(Kind.FAILED, sequence, error.errno or 0, text, outdated or self._copy.inconsistent)
        self._try_to_send()
        if self._copy.inconsistent and error.errno in (errno.ENOSPC, errno.EDQUOT):
            log.warning("no room: a snapshot of the last consistent copy, if there is one, is given up for it")
            self._snapshots.drop()

    def _flush_all(self, sequence: int) -> None:
        """Flush the whole file system from a thread, and say that we are busy meanwhile."""
        if self._flushing_all >= FULL_FLUSHES_AT_ONCE:
            raise ProtocolError(f"the peer asked for more than {FULL_FLUSHES_AT_ONCE} flushes of everything at once")
        self._flushing_all += 1
        connection = self._target.connection

        def flush() -> None:
            code = 0
            try:
                linux_io.syncfs(self._copy.root_fd)
            except OSError as error:
                code = error.errno or 5
            self._delivery.put(lambda: self._flushed_all(connection, sequence, code))

        threading.Thread(target=flush, name="syncfs", daemon=True).start()

    def _flushed_all(self, connection: Connection | None, sequence: int, code: int) -> None:
        self._flushing_all -= 1
        if connection is not self._target.connection or connection is None:
            return
        if code:
            self._failed(sequence, OSError(code, os.strerror(code)))
            self.link_lost(TargetFailed(f"flushing: {os.strerror(code)}"))
            return
        self._target.listing.flushed(sequence)
        self._target.say(Kind.FLUSHED, sequence)
        self._try_to_send()
