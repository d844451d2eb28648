"""The source's connection to the target, from hello to sync: what is said when, and what the answers lead to.

A connection goes through phases, and each message of the target is due in some of them. A session outlives its
connection when the same two processes meet again while the source is frozen; otherwise reintegration begins anew.
It must not know who decides between going on alone and stopping.
"""

from __future__ import annotations

import logging
import time
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from hotpair.cluster import record as records
from hotpair.cluster.record import Copying, Meeting, Record, Side
from hotpair.replication import dirty_log, frames
from hotpair.replication.clean_stop import identities, whole_files
from hotpair.replication.clean_stop_io import remove_table
from hotpair.replication.errors import LinkLost, ProtocolError
from hotpair.replication.frames import APPLIED, LENGTH, Kind
from hotpair.replication.helper_io import Helper
from hotpair.replication.limits import (
    MAX_MESSAGE,
    PROBE_INTERVAL_S,
    PROTOCOL_VERSION,
    RECONNECT_INTERVAL_S,
    RECONNECT_LONGEST_S,
)
from hotpair.replication.link_io import Connector
from hotpair.replication.loop_io import Loop
from hotpair.replication.marks_message import decode_marks
from hotpair.replication.modes import FROZEN
from hotpair.replication.objects_io import new_identity
from hotpair.replication.patience import Patience
from hotpair.replication.reintegration import Reintegration
from hotpair.replication.source import Source
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_standing import Standing
from hotpair.replication.source_start import SourceOptions
from hotpair.replication.tap_fuse import FuseTap
from hotpair.replication.transport_io import Connection

if TYPE_CHECKING:
    from hotpair.replication.source_verdicts import Verdicts

log = logging.getLogger("hotpair.replication")

NUMBERED: Final = frozenset({Kind.APPLIED, Kind.FLUSHED, Kind.CHECKED, Kind.FAILED})
SENT_BEFORE: Final = frozenset({Kind.FLUSHED, Kind.CHECKED})  # their number is that of an operation
# Whose fields come from the peer and are not numbers
STRUCTURED: Final = frozenset({Kind.WELCOME, Kind.WANTED, Kind.COMPARED, Kind.NAMES, Kind.HANDED_OVER})
MALFORMED: Final = (LookupError, TypeError, ValueError, AttributeError)  # what fields of other types raise
UNANSWERED: Final = " before it answered: do both servers have TLS, and each other's authority?"
RECEIVE_BYTES: Final = 64 << 10
GREETING_S: Final = 2.0  # a verdict by time waits so long for the answer to a hello


class Phase(IntEnum):
    """How far a connection is: what the target may say in it."""

    GREETING = 0  # hello was said
    WELCOMED = 1  # our part: the records are compared
    BEGUN = 2  # the target is to record that it is inconsistent
    FILLING = 3  # reintegration
    OFFERED = 4  # the target is to record that it is in sync
    IN_SYNC = 5


FILLING: Final = int(Phase.FILLING)
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


class Session:
    """All connections of a source process, one at a time. ``verdicts`` is set before the first."""

    def __init__(
        self,
        options: SourceOptions,
        own_copy: OwnCopy,
        source: Source,
        tap: FuseTap,
        helper: Helper,
        connector: Connector,
        loop: Loop,
        standing: Standing,
    ) -> None:
        self.verdicts: Verdicts
        self._options = options
        self._copy = own_copy
        self._source = source
        self._tap = tap
        self._helper = helper
        self._connector = connector
        self._loop = loop
        self._standing = standing
        self._instance = new_identity()
        self.connection: Connection | None = None
        self._sent_before = 0  # bytes, over the connections that are gone
        self._writes_watched = False
        self._buffer = memoryview(bytearray(RECEIVE_BYTES))
        self._received = bytearray()
        self._identity: bytes | None = None  # of the session in which the pair is in sync
        self._offered: bytes | None = None
        self.phase = Phase.GREETING
        self._hello_at = 0.0
        self._patience = Patience(options.silence_timeout_s, options.stall_timeout_s, time.monotonic())
        self._probed_at = 0.0
        self._reconnect_at = 0.0
        self._unwelcome = 0  # connections in a row that ended before the target had answered the hello
        self._flush_all = 0  # sequence number of the FLUSH_ALL that ends a reintegration, 0: none
        self._full = False
        self._compared: frozenset[bytes] = frozenset()  # files that were changed behind the mirror's back
        self._failure = 0  # errno of the last operation that the target could not apply
        self._give_up = False  # it failed in the same way twice: an operator must act

    # --- the connection -----------------------------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """Have a connection made."""
        self._reconnect_at = now + 3600.0  # the connector tries again by itself until it has one
        self._connector.connect()

    def connected(self, connection: Connection) -> None:
        """There is a new connection: say hello."""
        self.connection = connection
        self._received.clear()
        self._writes_watched = False
        self._loop.watch(connection.fileno(), self._receive)
        self._offered = new_identity()
        hello = {
            "instance": self._instance,
            "session": self._identity if self._source.mode is FROZEN else None,
            "new_session": self._offered,
            "record": records.encode(self._copy.record),
            "root": self._copy.root_identity,
            "extent_size": self._options.extent_size,
            "durability": self._options.durability,
            "largest_file": self._copy.largest_file,
        }
        self._source.connection = connection
        self._source.out.clear()
        self._source.message(Kind.HELLO, PROTOCOL_VERSION, hello)
        self.phase = Phase.GREETING
        self._hello_at = time.monotonic()
        self._patience.connected(self._hello_at)
        self._source.send()
        self._standing.changed()

    def _receive(self) -> None:
        connection = self.connection
        assert connection is not None
        if connection.wants_write:
            self._source.send()
        size = connection.receive(self._buffer)
        received = self._received
        received += self._buffer[:size]
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
            kind = fields[0]
            if kind in NUMBERED and type(fields[1]) is not int:
                raise ProtocolError(f"the peer sent {Kind(kind).name} without a number")
            if kind not in DUE[self.phase]:
                raise ProtocolError(f"the peer sent {Kind(kind).name}, which was not due")
            if kind != APPLIED:
                if kind in SENT_BEFORE and fields[1] > self._source.sequence:
                    raise ProtocolError(f"the peer sent {Kind(kind).name} for what was not sent")
                self._understand(fields)
                if self.connection is not connection:
                    return  # it was the last word of a target that has gone, or has failed
            elif self.phase >= FILLING:  # before, it answers a probe, and says nothing of an earlier session
                if fields[1] > self._source.sequence:
                    raise ProtocolError("the peer acknowledged what was not sent")
                self._source.acknowledged(fields[1])
                if self.connection is not connection:
                    return
        del received[:start]
        self._patience.heard_at = time.monotonic()
        if connection.pending():
            self._receive()

    def watch_writes(self) -> None:
        """Have the loop wait for room to write while something waits to be sent."""
        connection = self.connection
        if connection is not None and connection.wants_write != self._writes_watched:
            self._writes_watched = connection.wants_write
            self._loop.watch_writes(connection.fileno(), self._writes_watched)

    def tick(self, now: float) -> None:
        """Connect again when it is time, or look whether the target is there."""
        if self.connection is None:
            wanted = not self._standing.stopping and not self._standing.failed and not self._give_up
            if wanted and now >= self._reconnect_at:
                self.connect(now)
        else:
            self._probe(now, self.connection)

    def _probe(self, now: float, connection: Connection) -> None:
        source = self._source
        if now - self._probed_at >= PROBE_INTERVAL_S:
            self._probed_at = now
            source.message(Kind.PROBE, time.monotonic_ns())
            source.send()
        reason = self._patience.look(now, connection.quiet_s(), source.applied, bool(source.inflight))
        if reason is not None:
            connection.abandon()
            self.link_lost(reason)

    @property
    def alive_at(self) -> float:
        """When the peer's host last gave a sign."""
        return self._patience.alive_at

    def greeting(self, now: float) -> bool:
        """Whether a connection is new enough that the target may still answer the hello."""
        return self.connection is not None and now - self._hello_at < GREETING_S

    def link_lost(self, reason: str) -> None:
        """Go on without this connection, if there is one: the core freezes, or goes on alone if that was decided."""
        if self.connection is None:
            return
        # A peer that ends each connection before it is welcome is asked less and less often, and told of once
        self._unwelcome = min(self._unwelcome + 1, 8) if self.phase is Phase.GREETING else 0
        if not self._standing.stopping and (self._unwelcome < 2 or reason != self._standing.reason):
            self._standing.say(f"link lost: {reason}")
        self._standing.reason = reason
        self.verdicts.end_verify(f"link lost: {reason}")
        self._loop.unwatch(self.connection.fileno())
        self._sent_before += self.connection.sent
        self.connection.close()
        self.connection = None
        self._standing.in_sync = False
        self._flush_all = 0
        pause = min(RECONNECT_INTERVAL_S * 2**self._unwelcome, RECONNECT_LONGEST_S)
        self._reconnect_at = time.monotonic() + pause
        before = self._source.mode
        if self._source.reintegration is not None:
            self._source.reintegration.close()
        self._source.link_lost()
        self._standing.state_changed(before)
        self.verdicts.link_lost(reason)

    @property
    def sent_bytes(self) -> int:
        """Over all connections."""
        connection = self.connection
        return self._sent_before + (connection.sent if connection is not None else 0)

    @property
    def linked(self) -> bool:
        """Whether there is a connection on which the target has answered the hello."""
        return self.connection is not None and self.phase is not Phase.GREETING

    @property
    def can_resume(self) -> bool:
        """Whether the target could go on in the session in which this copy is, or was, in sync with it."""
        return self._identity is not None

    def give_up_session(self) -> None:
        """From here on this copy goes its own way: the target cannot resume."""
        self._identity = None

    def retry(self) -> None:
        """The operator has put right what made the target fail, or refuse."""
        self._give_up = False
        self._failure = self._unwelcome = 0
        if self.connection is None:
            self._reconnect_at = 0.0
            self._standing.reason = f"tried again by the operator; before that: {self._standing.reason}"
            self._standing.changed()

    def close(self) -> None:
        """No connection any more."""
        self._connector.close()
        if self.connection is not None:
            self.connection.close()
            self.connection = self._source.connection = None

    # --- what the target says -----------------------------------------------------------------------------------------

    def _understand(self, fields: list[Any]) -> None:
        try:
            self._message(fields)
        except (*MALFORMED, records.RecordDamaged, records.RecordVersion) as error:
            if fields[0] not in STRUCTURED:
                raise
            raise ProtocolError(f"the peer sent a malformed {Kind(fields[0]).name}: {error!r}") from error

    def _message(self, fields: list[Any]) -> None:
        kind = fields[0]
        reintegration = self._source.reintegration
        match kind:
            case Kind.FLUSHED:
                if fields[1] == self._flush_all:
                    self._flush_all = 0
                    self._try_to_finish()
                else:
                    self._source.flushes.flushed(fields[1])
            case Kind.WELCOME:
                frames.check_version(fields[1])
                self._welcomed(fields[2])
            case Kind.INCONSISTENT:
                self._target_is_inconsistent()
            case Kind.WANTED if reintegration is not None:
                reintegration.wanted(fields[1], fields[2], fields[3])
            case Kind.CHECKED if reintegration is not None:
                reintegration.checked(fields[1], fields[2])
            case Kind.CHECKED | Kind.COMPARED | Kind.NAMES if self.verdicts.verification is not None:
                self.verdicts.verification.answered_by_target(fields)
            case Kind.HANDED_OVER if self.verdicts.handover is not None and self.verdicts.handover.asked:
                self.verdicts.handed_over(fields[1])
            case Kind.NOT_HANDED_OVER if self.verdicts.handover is not None and self.verdicts.handover.asked:
                self.verdicts.not_handed_over(f"the peer does not take over: {frames.text(fields[1])}")
            case Kind.AGREED:
                self.verdicts.agreement.agreed(fields[1])
            case Kind.LEAVE:
                self.verdicts.leave.asked()
            case Kind.GONE:
                self.verdicts.leave.gone()
            case Kind.TAKEN:
                self._synchronised()
            case Kind.BUSY:
                pass
            case Kind.FAILED:
                self._target_failed(fields[2], frames.text(fields[3]), fields[4] is True)
            case Kind.REFUSED:
                self._refused(frames.text(fields[1]))
            case _:
                raise ProtocolError(f"the peer sent {Kind(kind).name}, which was not due")

    def _target_failed(self, code: int, text: str, outdated: bool) -> None:
        """The target could not apply an operation. If it has recorded that it is outdated, we may go on alone."""
        what = f"the peer cannot hold the copy: {text}"
        self._identity = None
        self.link_lost(what)
        self._standing.reason = what
        self._give_up = code == self._failure
        self._failure = code
        if self._give_up:
            self._standing.reason = (
                f"{what}. It is the second time, and it is not tried any more: put it right there, then say hotpair "
                "retry here (the control command retry)"
            )
            self._standing.say(f"not tried again: {what}")
        if outdated and self._source.mode is FROZEN and self.verdicts.handover is None:
            self._source.marks.when_idle(self.verdicts.alone_now)
        self._reconnect_at = time.monotonic() + 5.0

    def _refused(self, reason: str) -> None:
        self.link_lost(f"the peer refused: {reason}")
        self._reconnect_at = time.monotonic() + 2.0

    # --- from welcome to sync -----------------------------------------------------------------------------------------

    def _welcomed(self, welcome: dict[str, Any]) -> None:
        self.phase = Phase.WELCOMED
        if welcome["resume"] and (self._identity is None or self._source.mode is not FROZEN):
            raise ProtocolError("the peer resumes a session that it was not asked to resume")
        if welcome["resume"]:
            log.info("resuming the session after operation %d", welcome["applied"])
            before = self._source.mode
            self.verdicts.end_handover()  # the old connection is gone with all in it: the peer has not been asked
            if not 0 <= welcome["applied"] <= self._source.sequence:
                raise ProtocolError("the peer acknowledged what was not sent")
            self.phase = Phase.IN_SYNC
            self._source.resume(welcome["applied"])
            self._standing.state_changed(before)
            self._synchronised()
            return
        theirs = records.decode(welcome["record"]) if welcome["record"] else None
        meeting = self._meet(theirs, welcome["boot"])
        if meeting.source is not Side.ME:
            raise LinkLost(f"not reintegrated: {meeting.reason}")
        if not self._failure:  # else it may fail in the same way again
            self._standing.reason = ""
        self._standing.changed()
        marks = decode_marks(welcome["marks"] or [])  # before anything is done: the log may be busy for a moment
        self._compared |= frozenset(identities(welcome.get("changed", [])))
        unknown = welcome["marks"] is None or (welcome["marks"] and welcome["extent_shift"] != self._source.shift)
        full = meeting.copying is Copying.FULL or self._copy.log.is_everything or bool(unknown)
        connection = self.connection
        self._source.marks.when_idle(lambda: self._begin(connection, marks, full))

    def admit_changes(self, changed: set[bytes] | None) -> None:
        """Files changed since the clean stop are in the dirty log before the table that told of them goes."""
        if changed is None:
            self._copy.log.set_everything()
        else:
            self._compared |= changed
            self._mark_changed()
            self._source.marks.commit_now()
        remove_table(self._options.state)

    def _mark_changed(self) -> None:
        for record in self._copy.activity.union(whole_files(self._compared)):
            self._source.marks.stage(record)

    def _meet(self, theirs: Record | None, their_boot: str) -> Meeting:
        return records.meet(
            self._copy.record,
            theirs,
            self._copy.record.boot == self._copy.boot,
            theirs is None or theirs.boot == their_boot,
            first=Side.ME,
            preferred=Side.ME,
        )

    def _begin(self, connection: Connection | None, marks: dirty_log.Marks, full: bool) -> None:
        """Durably log all that is to be copied, then have the target give up its claim to be consistent."""
        if self.connection is not connection:
            return
        self._full = full
        if full:
            self._copy.log.set_everything()
        for record in self._copy.activity.union(marks):
            self._source.marks.stage(record)
        self._mark_changed()
        self._source.marks.commit_now()
        self._identity = None
        self.phase = Phase.BEGUN
        self._source.message(Kind.BEGIN_REINTEGRATION, self._copy.record.generation, full)

    def _target_is_inconsistent(self) -> None:
        self.phase = Phase.WELCOMED
        connection = self.connection
        self._source.marks.when_idle(lambda: self._start_reintegration(connection))

    def _start_reintegration(self, connection: Connection | None) -> None:
        if self.connection is not connection:
            return
        self.verdicts.end_handover()  # the peer has taken this copy's generation as a target: it has not taken over
        self.phase = Phase.FILLING
        self._copy.go_solo(self._source.marks)
        before = self._source.mode
        root = self._tap.root
        reintegration = Reintegration(
            self._source,
            self._copy.activity,
            self._tap.nodes,
            self._copy.root_fd,
            root,
            self._helper,
            self._full,
            self._try_to_finish,
        )
        reintegration.pace.ceiling = self.verdicts.ceiling
        reintegration.pace.floor = self.verdicts.floor
        reintegration.compared = self._compared
        self._copy.activity.freeze()
        self._source.begin_session(reintegration, root)
        self._standing.state_changed(before)

    def _try_to_finish(self) -> None:
        """All is copied: have the target flush it; when it has and nothing came in between, offer sync."""
        reintegration = self._source.reintegration
        if reintegration is None or self._flush_all or not reintegration.idle:
            return
        if not reintegration.flushed:
            reintegration.flushed = True
            self._flush_all = self._source.operation((Kind.FLUSH_ALL,))
            return
        self._source.operation((Kind.EMPTY_TRASH,))
        self._source.times.carry_all()
        self._copy.store(records.offer_sync_as_source(self._copy.record))
        reintegration.close()
        before = self._source.mode
        self._source.end_reintegration()
        self._identity = self._offered
        self.phase = Phase.OFFERED
        self._source.message(Kind.OFFER_SYNC, records.encode(self._copy.record))
        self._standing.state_changed(before)

    def _synchronised(self) -> None:
        self.phase = Phase.IN_SYNC
        self._standing.in_sync = True
        self._standing.reason = ""
        self._failure = 0
        self._compared = frozenset()
        if self._full:
            self._full = False
            self._source.marks.when_idle(lambda: self._copy.compact(clear_everything=True))
        self._copy.activity.thaw()
        self._standing.say("in sync")
        self._standing.now_ready()
        self._standing.changed()
