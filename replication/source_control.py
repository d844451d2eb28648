"""What the control socket's threads call of a source process: the loop may be waiting for a disk meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from hotpair.replication.errors import MirrorError
from hotpair.replication.link_io import Delivery
from hotpair.replication.modes import PRIM
from hotpair.replication.reports_io import Reports
from hotpair.replication.source import Source
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_session import Session
from hotpair.replication.source_standing import Standing
from hotpair.replication.source_start import Mount
from hotpair.replication.source_verdicts import Verdicts
from hotpair.replication.tap_fuse import FuseTap

CONTROL_TIMEOUT_S: Final = 5.0


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

    def ask(self, act: Callable[[], None]) -> dict[str, Any]:
        """Have the loop do something; ``number`` of the first report that knows of it. Raises MirrorError when the
        loop refuses or does not answer."""
        answered = threading.Event()
        refusal: list[MirrorError] = []
        number = 0

        def do() -> None:
            nonlocal number
            try:
                act()
                number = self._reports.publish()
            except MirrorError as error:
                refusal.append(error)
            finally:
                answered.set()

        self._delivery.put(do)
        if not answered.wait(CONTROL_TIMEOUT_S):
            raise MirrorError(f"the mirror has not answered for {CONTROL_TIMEOUT_S:g} s: its disk does not answer")
        if refusal:
            raise refusal[0]
        return {"number": number}

    def abort(self) -> dict[str, Any]:
        """The verdict `stop`. The tap is failed from this thread, which needs neither the loop nor the disk."""
        self._mount.abort()
        self._delivery.put(self._verdicts.stop)
        return {}

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
            "verify": self._verdicts.verification.progress() if self._verdicts.verification is not None else None,
            "handover": self._verdicts.handover.stage if self._verdicts.handover is not None else None,
        }
