"""What a mirror process reports, as the state machine is told of it, and a watch that waits for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from hotpair.actors.mirror_keeper import reported
from hotpair.cluster.module_values import Mirror
from hotpair.cluster.record import Record
from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import MirrorError

WAIT_S = 20.0
Fields = dict[str, Any]


def mirror_of(report: Fields) -> Mirror:
    flags = {name: report[name] for name in ("linked", "session", "in_sync", "asked", "agreeing")}
    assert all(type(value) is bool for value in flags.values()), report
    mirror = reported(report).mirror
    assert mirror is not None
    return mirror


def record_of(report: Fields) -> Record | None:
    return reported(report).record


def present(state: str) -> Fields:
    """The answer to `report`."""
    with ControlClient(state) as control:
        return control.ask("report")


class Watch:
    """All that the process with this state directory reports from now on."""

    def __init__(self, state: str) -> None:
        self.reports: list[tuple[float, Fields]] = []
        self.ended = False
        self._news = threading.Condition()
        self._client = ControlClient(state)
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        try:
            for report in self._client.watch():
                with self._news:
                    self.reports.append((time.monotonic(), report))
                    self._news.notify_all()
        except MirrorError:
            with self._news:
                self.ended = True
                self._news.notify_all()

    def until(self, wanted: Callable[[Mirror], bool], timeout_s: float = WAIT_S) -> Fields:
        """The present report, as soon as it is like that."""
        with self._news:
            came = self._news.wait_for(lambda: bool(self.reports) and wanted(self.now), timeout_s)
            assert came, f"it reported {[mirror_of(report) for _, report in self.reports]}"
            return self.reports[-1][1]

    def until_like(self, wanted: Mirror, timeout_s: float = WAIT_S) -> Fields:
        return self.until(lambda mirror: mirror == wanted, timeout_s)

    def until_answered(self) -> None:
        """It has reported, or was refused."""
        with self._news:
            assert self._news.wait_for(lambda: self.ended or bool(self.reports), WAIT_S)

    def until_ended(self, timeout_s: float = WAIT_S) -> None:
        with self._news:
            assert self._news.wait_for(lambda: self.ended, timeout_s), f"it still reports {self.now}"

    @property
    def now(self) -> Mirror:
        return mirror_of(self.reports[-1][1])

    @property
    def seen(self) -> list[Mirror]:
        return [mirror_of(report) for _, report in self.reports]

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
