"""What a source process is told from outside, and carries out: verdicts, handover, verify, retry, shut down.

It makes no verdict itself but those by time: ``--alone-after`` stands in for a supervisor, ``--fence-after`` ends
the wait for one that has died.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from hotpair.cluster import record as records
from hotpair.cluster.record import Record
from hotpair.replication import dirty_log
from hotpair.replication.errors import MirrorError, ProtocolError
from hotpair.replication.frames import Kind
from hotpair.replication.go_alone import GoAlone, objection
from hotpair.replication.handover import Handover
from hotpair.replication.helper_io import Helper
from hotpair.replication.limits import REINTEGRATION_FLOOR
from hotpair.replication.modes import FROZEN, PRIM
from hotpair.replication.source import Source
from hotpair.replication.source_agreement import Agreement
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_leave import Leave
from hotpair.replication.source_session import Session
from hotpair.replication.source_standing import Standing
from hotpair.replication.source_start import Mount, SourceOptions
from hotpair.replication.source_stop import CleanStop
from hotpair.replication.tap_fuse import FuseTap
from hotpair.replication.verify import Verification


class Verdicts:
    """All are given to the loop's thread. MirrorError says why one makes no sense now."""

    def __init__(
        self,
        options: SourceOptions,
        own_copy: OwnCopy,
        source: Source,
        tap: FuseTap,
        helper: Helper,
        session: Session,
        clean_stop: CleanStop,
        mount: Mount,
        standing: Standing,
    ) -> None:
        self._alone_after_s = options.alone_after_s
        self._fence_after_s = options.fence_after_s
        self._mount = mount
        self._has_served = False
        self._copy = own_copy
        self._source = source
        self._tap = tap
        self._helper = helper
        self._session = session
        self._clean_stop = clean_stop
        self._standing = standing
        self._frozen_since = self._heard_until = time.monotonic()
        self.agreement = Agreement(own_copy, source, standing)
        self.leave = Leave(own_copy, source, session, standing, lambda: self.handover is not None, self.alone_now)
        self.handover: Handover | None = None
        self.verification: Verification | None = None  # the last one, running or ended
        self.ceiling = 0  # bytes per second of reintegration and verify, 0: none
        self.floor = REINTEGRATION_FLOOR  # bytes per second of reintegration, however much the VM writes

    # --- alone, or not at all -----------------------------------------------------------------------------------------

    def go_alone(self, verdict: GoAlone | None, done: Callable[[MirrorError | None], None]) -> None:
        """The verdict `go alone`: a supervisor's, or a person's (None), who does not know the record.

        Raises MirrorError when it makes no sense now; ``done`` is called when it is carried out, or with the error
        that it makes none by then.
        """
        self._check_go_alone(verdict)
        self._source.marks.when_idle(lambda: self._carry_out(verdict, done))

    def _check_go_alone(self, verdict: GoAlone | None) -> None:
        if self._source.mode is not FROZEN or self._standing.failed or self._standing.stopping:
            raise MirrorError(f"the mirror is {self._source.mode.value}, not FROZEN: nothing waits for a verdict")
        if verdict is None:
            if self.handover is not None and self._session.connection is not None:
                raise MirrorError("the peer has been asked to take over and may do so now: wait for its answer")
            return
        if self._session.linked:
            raise MirrorError("there is a connection to the peer's mirror: what was granted without one does not count")
        reason = objection(self._copy.record, verdict)
        if reason is not None:
            raise MirrorError(reason)

    def _carry_out(self, verdict: GoAlone | None, done: Callable[[MirrorError | None], None]) -> None:
        """The dirty log is idle by now; meanwhile much may have happened."""
        try:
            self._check_go_alone(verdict)
        except MirrorError as error:
            done(error)
            return
        self.alone_now(verdict.record if verdict is not None else None)
        done(None)

    def alone_now(self, record: Record | None = None) -> None:
        """Go on alone, if it is still frozen, with this record or one of our own. The dirty log is idle."""
        if self._source.mode is not FROZEN:
            return
        self.end_handover()
        self._session.give_up_session()
        self._copy.activity.freeze()
        self._copy.go_solo(self._source.marks, record)
        self._source.go_alone()
        self._standing.state_changed(FROZEN)

    def tick(self, now: float) -> None:
        """The verdict by time."""
        source = self._source
        # Counted from when it froze, with or without a connection: a target that accepts and does not answer is none
        after = self._alone_after_s
        if source.mode is not FROZEN:
            self._frozen_since = now
            self._heard_until = self._session.alive_at
            self._has_served = True
        elif self._fence_after_s is not None and self._has_served and self.handover is None:
            if now - self._heard_until >= self._fence_after_s:  # the peer counts from then, too
                self._fence(self._fence_after_s)
        elif after is not None and self.handover is None and self._frozen_long(now, after):
            source.marks.when_idle(self.alone_now)

    def _fence(self, after_s: float) -> None:
        """No verdict has come in time: the peer may be about to start the VM. What the VM waits for fails."""
        self._standing.reason = f"fenced: frozen, and nothing heard of the peer for {after_s:g} s, without a verdict"
        self._standing.say(self._standing.reason)
        self._standing.failed = True
        self._mount.abort()
        self.fail_tap()

    def _frozen_long(self, now: float, after_s: float) -> bool:
        return now - self._frozen_since >= after_s and not self._session.greeting(now)

    def fail_tap(self) -> None:
        """The mount has been aborted: what waits in here fails as well, and no connection is made any more.

        The process stays, and is reported as failed, until it is told to end.
        """
        before = self._source.mode
        self.end_verify("stopped: the tap was failed")
        self.end_handover()
        self._source.stop()
        self._session.give_up_session()
        self._session.link_lost("the tap was failed")
        self._standing.state_changed(before)

    def begin_stop(self) -> None:
        """End cleanly, as on SIGTERM."""
        self.end_verify("stopped: the mirror ends")
        if self.handover is not None and not self.handover.asked:
            self.end_handover()
        self._clean_stop.begin(time.monotonic())

    def retry(self) -> None:
        """The operator has put right what made the target fail."""
        self._session.retry()

    # --- verify, and how fast both copies are read --------------------------------------------------------------------

    def set_ceiling(self, bytes_per_second: int) -> None:
        """Limit reintegration's rate; 0: no limit."""
        self.ceiling = max(0, bytes_per_second)
        if self._source.reintegration is not None:
            self._source.reintegration.pace.ceiling = self.ceiling
        if self.verification is not None:
            self.verification.content.pace.ceiling = self.ceiling

    def set_floor(self, bytes_per_second: int) -> None:
        """Have reintegration give way to the VM's writes only above this rate; 0: always."""
        self.floor = max(0, bytes_per_second)
        if self._source.reintegration is not None:
            self._source.reintegration.pace.floor = self.floor

    def start_verify(self, repair: bool) -> None:
        """Compare both copies while the VM runs. Raises MirrorError when it makes no sense now."""
        if self._source.mode is not PRIM or not self._standing.in_sync or self._standing.stopping:
            raise MirrorError(f"the mirror is {self._source.mode.value}: only copies in sync are compared")
        if self.handover is not None:
            raise MirrorError("the peer is being asked to take over")
        if self._source.verification is not None:
            raise MirrorError("a comparison is under way: wait for it, or stop it")
        self.verification = self._source.verification = Verification(
            self._source, self._tap.nodes, self._copy.root_fd, self._tap.root, self._helper, repair, self._verified
        )
        self.verification.content.pace.ceiling = self.ceiling

    def end_verify(self, result: str) -> None:
        """End a comparison, if one is under way."""
        if self._source.verification is not None:
            self._source.verification.end(result)

    def _verified(self, result: str) -> None:
        self._source.verification = None
        self._standing.say(f"verify: {result}")

    # --- handing over -------------------------------------------------------------------------------------------------

    def hand_over(self) -> None:
        """Have the peer take over; the VM has been stopped. Raises MirrorError when that cannot be."""
        if self._source.mode is not PRIM or not self._standing.in_sync or self._standing.stopping:
            raise MirrorError(f"the mirror is {self._source.mode.value}: only a pair in sync can change its roles")
        if self.handover is not None:
            raise MirrorError("the handover is under way")
        self.end_verify("stopped: the module is handed over")
        self.handover = Handover(self._source, self._copy.root_fd, self._ask_to_take_over, self.not_handed_over)
        self.handover.begin(time.monotonic())

    def _ask_to_take_over(self) -> None:
        self._standing.state_changed(PRIM)
        self._source.message(Kind.HANDOVER, records.encode(self._copy.record))
        self._source.send()

    def not_handed_over(self, reason: str) -> None:
        """It is certain that the peer has not taken over: go on as before."""
        self.end_handover()
        self._standing.reason = f"not handed over: {reason}"
        self._standing.say(self._standing.reason)
        if self._source.mode is FROZEN and self._session.connection is not None:
            self._source.unfreeze()
            self._standing.state_changed(FROZEN)

    def end_handover(self) -> None:
        """Whatever was asked, the answer does not matter any more."""
        if self.handover is not None:
            self.handover.ended = True
            self.handover = None

    # --- the link -----------------------------------------------------------------------------------------------------

    def link_lost(self, reason: str) -> None:
        """What was begun in this connection has ended, except a question whose answer may be on its way."""
        self.agreement.end()
        self.leave.end()
        self._handover_interrupted(reason)

    def agree(self, based_on: Record, epoch: int, mine_first: bool) -> None:
        """Have both records take the arbiter's epoch. Raises MirrorError when that makes no sense now."""
        if self.handover is not None:
            raise MirrorError("the peer is being asked to take over")
        self.agreement.begin(based_on, epoch, mine_first)

    def _handover_interrupted(self, reason: str) -> None:
        handover = self.handover
        if handover is None or self._standing.stopping:
            return
        if handover.asked:
            self._standing.reason = (
                f"the outcome of the handover is unknown ({reason}): start the other server's mirror, or let "
                "arbitration decide"
            )
            self._standing.say(self._standing.reason)
        else:
            self.not_handed_over(reason)

    def handed_over(self, encoded: bytes) -> None:
        """The peer says that it has taken over; its record must say so too. Raises ProtocolError."""
        try:
            theirs = records.decode(encoded)
        except (records.RecordDamaged, records.RecordVersion) as error:
            raise ProtocolError(f"the peer's record: {error}") from error
        mine = self._copy.record
        if theirs.generation != mine.generation or theirs.last_role != "PRIM" or theirs.term <= mine.term:
            raise ProtocolError("the peer says that it has taken over, and its record does not say so")
        self._source.marks.when_idle(lambda: self._finish_handover(theirs))

    def _finish_handover(self, theirs: Record) -> None:
        """The peer has taken over, durably. Both copies are on disk and equal: no mark is needed any more."""
        if self.handover is None:
            return  # another verdict came before the log was idle
        self._copy.log.compact(dirty_log.Marks())
        self._copy.store(replace(records.hand_over(self._copy.record, theirs), log_counter=self._copy.log.counter))
        self._clean_stop.last_word = "handed over"
        self._source.stop()
        self.begin_stop()
        self._session.link_lost("handed over")
