"""Reports to somebody else, one at a time and in their order. No Ray in here.

Ray runs the calls of an async actor, as the supervisor is, in any order: measured, one in 25 of those that came in
bursts was overtaken. A report is a level, and an older one that is heard last would stay: a copy in sync shown as not,
or the other way round. So the next report is not sent before the last one was heard.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class InTurn(Generic[T]):
    """`send` returns when what it was given was heard, or is lost; it is called in a thread of its own."""

    def __init__(self, send: Callable[[T], None]) -> None:
        self._send = send
        self._waiting: queue.SimpleQueue[tuple[T] | threading.Event] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="post", daemon=True).start()

    def __call__(self, report: T) -> None:
        """Returns at once. From any thread."""
        self._waiting.put((report,))

    def is_heard(self, wait_s: float) -> bool:
        """Whether all that was said so far has been heard, or was lost, within that time."""
        done = threading.Event()
        self._waiting.put(done)
        return done.wait(wait_s)

    def _run(self) -> None:
        while True:
            next_one = self._waiting.get()
            if isinstance(next_one, threading.Event):
                next_one.set()
            else:
                self._send(next_one[0])
