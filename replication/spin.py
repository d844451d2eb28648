"""Spinning before sleeping: up to four wake-ups less on each round trip, as long as it helps.

Waking a sleeping process costs tens of microseconds, in a virtual machine whose idle processor has been given back to
the host far more, and a replicated write at queue depth 1 waits for four of them. So both ends look again and again for
a short time before they sleep. Between two looks they step aside for whoever else wants the processor, which may be the
one they wait for. It is only done while it pays: where requests come seldom, or where the processors are
busy with other work, spinning fails, and after a few failures the process sleeps at once and tries again much later.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, Final

Events = list[tuple[int, int]]

GIVE_UP: Final = 16  # this many fruitless spins more than fruitful ones: sleep at once for a while
RETRY: Final = 64  # and after so many sleeps, try whether spinning helps again
TRIAL: Final = 2  # fruitless spins in such a trial


class Spinner:
    """Polls again and again for a short time, while that pays. ``clock``: monotonic, in seconds.

    ``step_aside`` lets others have the processor who wait for it (sched_yield(2)).
    """

    def __init__(
        self,
        spin_s: float,
        clock: Callable[[], float] = time.perf_counter,
        step_aside: Callable[[], None] = os.sched_yield,
    ) -> None:
        self._spin_s = spin_s
        self._clock = clock
        self._step_aside = step_aside
        self._credit = GIVE_UP
        self._sleeps = 0

    def poll(self, poll: Callable[[float], Any], outstanding: bool) -> Events:
        """Events that are there now or come within the spinning time; empty: the caller sleeps."""
        events: Events = poll(0)
        if events or not outstanding:
            return events
        if self._credit <= 0:
            self._sleeps += 1
            if self._sleeps < RETRY:
                return events
            self._sleeps = 0
            self._credit = TRIAL
        clock, step_aside = self._clock, self._step_aside
        end = clock() + self._spin_s
        while clock() < end:
            step_aside()
            events = poll(0)
            if events:
                if self._credit < GIVE_UP:
                    self._credit += 1
                return events
        self._credit -= 1
        return events
