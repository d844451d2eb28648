"""Having the loop of a mirror process do something for a thread of the control socket, and waiting until it has."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

from hotpair.replication.errors import MirrorError, Refused
from hotpair.replication.link_io import Delivery
from hotpair.replication.reports_io import Reports

CONTROL_TIMEOUT_S: Final = 5.0
Done = Callable[[MirrorError | None], None]


class LoopQuestions:
    """For any thread but the loop's."""

    def __init__(self, delivery: Delivery, reports: Reports) -> None:
        self._delivery = delivery
        self._reports = reports

    def ask(self, act: Callable[[], None]) -> dict[str, Any]:
        """Have the loop do something; under ``number``, that of the first report that knows of it.

        Raises Refused with the loop's reason, MirrorError when it does not answer.
        """

        def do(done: Done) -> None:
            act()
            done(None)

        return self.ask_later(do)

    def ask_later(self, begin: Callable[[Done], None]) -> dict[str, Any]:
        """The same for what the loop ends some time after it has begun it: ``begin`` is given what to call then."""
        answered = threading.Event()
        refusal: MirrorError | None = None
        number = 0

        def done(error: MirrorError | None) -> None:
            nonlocal number, refusal
            number = self._reports.publish()
            refusal = error
            answered.set()

        def do() -> None:
            try:
                begin(done)
            except MirrorError as error:
                done(error)

        self._delivery.put(do)
        if not answered.wait(CONTROL_TIMEOUT_S):
            raise MirrorError(f"the mirror has not answered for {CONTROL_TIMEOUT_S:g} s: its disk does not answer")
        if refusal is not None:
            raise Refused(str(refusal), self._reports.latest()[1])
        return {"number": number}
