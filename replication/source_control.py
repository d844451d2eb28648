"""What the control socket's threads call of a source process: the loop may be waiting for a disk meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hotpair.replication.go_alone import decoded, verdict_of
from hotpair.replication.link_io import Delivery
from hotpair.replication.loop_questions_io import LoopQuestions
from hotpair.replication.modes import PRIM
from hotpair.replication.reports_io import Reports
from hotpair.replication.source import Source
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_session import Session
from hotpair.replication.source_standing import Standing
from hotpair.replication.source_start import Mount
from hotpair.replication.source_verdicts import Verdicts
from hotpair.replication.tap_fuse import FuseTap


class SourceControl:
    """Hands over to the loop what it must do, reads what the loop keeps, and fails the mount at once."""

    def __init__(
        self,
        delivery: Delivery,
        own_copy: OwnCopy,
        source: Source,
        mount: Mount,
        tap: FuseTap,
        session: Session,
        verdicts: Verdicts,
        standing: Standing,
        reports: Reports,
    ) -> None:
        self._delivery = delivery
        self._copy = own_copy
        self._source = source
        self._mount = mount
        self._tap = tap
        self._session = session
        self._verdicts = verdicts
        self._standing = standing
        self._reports = reports
        self._questions = LoopQuestions(delivery, reports)
        self.ask: Callable[[Callable[[], None]], dict[str, Any]] = self._questions.ask

    def go_alone(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The verdict `go alone`, answered when the record is durable and writes are released."""
        verdict = verdict_of(arguments)
        return self._questions.ask_later(lambda done: self._verdicts.go_alone(verdict, done))

    def agree(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Have both records take an epoch. Answered when that is under way; the report says when it has ended."""
        based_on, epoch = decoded("based_on", arguments["based_on"]), arguments["epoch"]
        mine_first = arguments["mine_first"] is True
        return self.ask(lambda: self._verdicts.agree(based_on, epoch, mine_first))

    def fail_tap(self) -> dict[str, Any]:
        """Nothing is acknowledged any more. The tap is failed from this thread, which needs neither loop nor disk."""
        self._standing.failed = True
        self._mount.abort()
        self._delivery.put(self._verdicts.fail_tap)
        return {"number": self._reports.publish()}

    def stop(self) -> dict[str, Any]:
        """The verdict `stop`: the tap is failed, then the process ends."""
        answer = self.fail_tap()
        self._delivery.put(self._verdicts.begin_stop)
        return answer

    def status(self) -> dict[str, Any]:
        """What this mirror is doing. Reads what the loop keeps, so that it answers while the loop waits."""
        source = self._source
        reintegration = source.reintegration
        return {
            "role": "source",
            "state": source.mode.value,
            "in_sync": self._standing.in_sync and source.mode is PRIM,
            "reason": self._standing.reason,
            "linked": self._session.connection is not None,
            "generation": self._copy.record.generation.hex(),
            "dirty_extents": self._copy.activity.count,
            "in_flight": len(source.inflight),
            "held": len(source.held),
            "sent_bytes": self._session.sent_bytes,
            "nodes": len(self._tap.nodes.by_number),
            "fuse_connection": self._mount.connection,
            "reintegration": reintegration.progress() if reintegration is not None else None,
            "reintegrated": source.reintegrated,
            "verify": self._verdicts.verification.progress() if self._verdicts.verification is not None else None,
            "handover": self._verdicts.handover.stage if self._verdicts.handover is not None else None,
        }
