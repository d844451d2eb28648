"""How a source process is, composed for its reports. It reads what the loop keeps, and changes nothing of it."""

from __future__ import annotations

import time

from hotpair.replication import report
from hotpair.replication.limits import BYTES_CHANGED_REST, BYTES_CHANGED_S
from hotpair.replication.modes import STOPPED
from hotpair.replication.report import Report
from hotpair.replication.source import Source
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_session import Session
from hotpair.replication.source_standing import Standing
from hotpair.replication.source_verdicts import Verdicts


class SourceReport:
    """``compose`` makes the report; ``tick`` counts anew, when it is time, how much was changed."""

    def __init__(
        self, own_copy: OwnCopy, source: Source, session: Session, verdicts: Verdicts, standing: Standing
    ) -> None:
        self._copy = own_copy
        self._source = source
        self._session = session
        self._verdicts = verdicts
        self._standing = standing
        self._bytes_changed: int | None = None
        self._count_at = 0.0

    def compose(self) -> Report:
        """How things are now."""
        session, verdicts = self._session, self._verdicts
        return report.of_source(
            STOPPED if self._standing.failed else self._source.mode,
            ending=self._standing.stopping,
            linked=session.linked,
            session=session.can_resume,
            in_sync=self._standing.in_sync,
            asked=verdicts.handover is not None,
            agreeing=verdicts.agreement.epoch is not None,
            record=self._copy.record,
            bytes_changed=None if self._counts_nothing else self._bytes_changed,
            reason=self._standing.reason,
        )

    @property
    def _counts_nothing(self) -> bool:
        return not self._copy.record.solo or self._copy.log.is_everything

    def tick(self, now: float) -> None:
        """A great many marks take a while to count, and the VM's writes wait meanwhile: it is done seldom then."""
        if self._counts_nothing:
            self._bytes_changed = None
            self._count_at = 0.0
        elif now >= self._count_at:
            began = time.monotonic()
            self._bytes_changed = self._copy.activity.extents_named() << self._source.shift
            took_s = time.monotonic() - began
            self._count_at = now + max(BYTES_CHANGED_S, BYTES_CHANGED_REST * took_s)
