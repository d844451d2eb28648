"""The target's mirror process: it listens, joins the parts that keep this copy, and runs the loop around them.

What it is started with: target_start; its copy and its durable record: target_copy; whom it admits: target_greeting;
the connection to the source: target_session; what operations do: target.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any, Final

from hotpair.replication import report
from hotpair.replication.errors import LinkLost, ProtocolError, TargetFailed
from hotpair.replication.flusher_io import Flusher
from hotpair.replication.limits import DESCRIPTORS_SPARE, SPIN_S
from hotpair.replication.link_io import Acceptor, Delivery
from hotpair.replication.listing import Listing
from hotpair.replication.loop_io import Loop
from hotpair.replication.loop_questions_io import LoopQuestions
from hotpair.replication.process_io import descriptor_limit, lock_state
from hotpair.replication.report import Report
from hotpair.replication.reports_io import Reports
from hotpair.replication.snapshot_io import Snapshots
from hotpair.replication.spin import Spinner
from hotpair.replication.target import Target
from hotpair.replication.target_copy import TargetCopy
from hotpair.replication.target_session import TargetSession
from hotpair.replication.target_start import TargetOptions

TICK_S: Final = 0.25


class TargetProcess:
    """Made once for the life of the process."""

    def __init__(self, options: TargetOptions, say: Callable[[str], None]) -> None:
        self._say = say
        self._lock = lock_state(options.state)
        self._copy = TargetCopy(options)
        self._flushes = Flusher()
        limit = descriptor_limit() - DESCRIPTORS_SPARE
        self.target = Target(
            self._copy.root_fd, self._copy.root_identity, self._flushes, limit // 2, options.durability == "disk"
        )
        self.target.listing = Listing(self.target)
        self._delivery = Delivery()
        self._acceptor = Acceptor(*options.listen, options.tls, self._delivery)
        self._loop = Loop()
        self._spinner = Spinner(SPIN_S)
        self._snapshots = Snapshots(self._copy.root_fd, self._loop.watch, self._loop.unwatch)
        self._session = TargetSession(
            options, self._copy, self.target, self._snapshots, self._delivery, self._loop, say, self._stop
        )
        self._ended = False
        self.reports = Reports(self._compose, self._delivery.put)
        self._session.changed = self.reports.changed
        self._questions = LoopQuestions(self._delivery, self.reports)
        self._copy.show()

    def run(self) -> int:
        """Serve until stopped; the exit code."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._signalled)
        self._loop.watch(self._delivery.fileno(), self._delivered)
        self._loop.watch(self._flushes.fileno(), self.target.flushes_completed)
        if not self._copy.inconsistent:
            self._snapshots.put_away()  # in sync, and killed before it could
        self._snapshots.tidy()
        self._say("ready")
        poll = self._loop.poll
        handlers = self._loop.handlers
        spinner = self._spinner
        target, session = self.target, self._session
        ticked_at = 0.0
        while not self._ended:
            events = spinner.poll(poll, target.connection is not None) or poll(TICK_S)
            try:
                for fd, _ in events:
                    handler = handlers.get(fd)
                    if handler is not None:
                        handler()
                session.watch_connection()
            except (LinkLost, ProtocolError, TargetFailed) as error:
                session.link_lost(error)
            now = time.monotonic()
            if now - ticked_at >= TICK_S:
                ticked_at = now
                session.tick(now)
                self.reports.publish()
        return 0

    def _signalled(self, _signal: int, _frame: object) -> None:
        self._delivery.put(self._stop)

    def _delivered(self) -> None:
        for item in self._delivery.take():
            if callable(item):
                item()
            else:
                self._session.greeted(*item)

    def status(self) -> dict[str, Any]:
        """What this mirror is doing."""
        record = self._copy.record
        session = self._session
        return {
            "role": "target",
            "state": "SECOND" if session.identity is not None else "WAIT",
            "in_sync": session.identity is not None and self.target.connection is not None,
            "inconsistent": record is not None and record.inconsistent,
            "outdated": record is not None and record.outdated,
            "reason": session.refusal or session.reason,
            "linked": self.target.connection is not None,
            "generation": record.generation.hex() if record is not None else "",
            "applied": self.target.applied,
            "received_bytes": self.target.received_bytes,
            "objects": len(self.target.objects),
        }

    def leave(self) -> dict[str, Any]:
        """Say in the stream that this copy goes. For any thread; raises MirrorError when it is not in sync."""
        return self._questions.ask(self._session.leave)

    def shut_down(self) -> dict[str, Any]:
        """End cleanly, as on SIGTERM. For any thread; that it has ended is seen when the connection does."""
        self._delivery.put(self._stop)
        return {}

    def _compose(self) -> Report:
        session = self._session
        return report.of_target(
            ending=self._ended or session.ends,
            linked=self.target.connection is not None,
            session=session.identity is not None,
            begun=session.begun,
            record=self._copy.record,
            bytes_changed=self._copy.bytes_changed,
            reason=session.refusal or session.reason,
        )

    def _stop(self) -> None:
        if self._ended:
            return
        self._ended = True
        self.reports.publish()
        self._acceptor.close()
        self._session.drop_connection()
        self._copy.close()
        self._say("stopped" if self._session.taken_over_at is None else "handed over")
