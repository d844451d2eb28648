"""Makes a module's checks when they are due, and says what they found. No Ray in it.

It lives in the process of the module's VmActor: the VM's own checks need its keeper; another module's checks, if they
bring down a process, bring down this module's at most; and neither the supervisor's event loop nor the pulses have
anything to do with what may hang. Each check has a thread of its own while it lasts, one for a checker at most, so
there are CHECKERS_PER_MODULE of them at most, and one that hangs in the kernel costs its own thread and nothing else.
What it says is a level: each check is said, whether anything has changed or not, so that a lost report is made up for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial

from hotpair.cluster import check_times
from hotpair.cluster.check_times import Turn
from hotpair.cluster.checks import Checked, Found, Watch, down, unknown

Probe = Callable[[float], Found]
Begin = Callable[[Callable[[], None]], None]

BROKEN = unknown("the check itself has failed: that is a mistake in hotpair, and the service's log says more")


def in_thread(work: Callable[[], None]) -> None:
    """A daemon: what hangs does not keep the process from ending."""
    threading.Thread(target=work, name="check", daemon=True).start()


class Prober:
    """`watch` may be called from any thread. Without `run` in a thread of its own nothing happens by itself."""

    def __init__(
        self,
        turns: Mapping[str, Turn],
        probes: Mapping[str, Probe],
        hear: Callable[[Checked], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        begin: Begin = in_thread,
    ) -> None:
        assert turns.keys() == probes.keys()
        self._turns = turns
        self._probes = probes
        self._hear = hear
        self._clock = clock
        self._begin = begin
        self._run = 0
        self._changed = threading.Condition()
        self._closed = False

    def watch(self, wanted: Watch) -> None:
        """Look at these from now on."""
        with self._changed:
            anew = wanted.run != self._run
            self._run = wanted.run
            self._turns = check_times.watch(self._turns, wanted.names & self._turns.keys(), self._clock(), anew=anew)
            self._changed.notify()

    def close(self) -> None:
        """Begin no more checks; those under way are not heard."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def run(self) -> None:
        """Until it is closed."""
        while True:
            self.step()
            with self._changed:
                if self._closed:
                    return
                now = self._clock()
                left = check_times.next_at(self._turns, now) - now
                if left > 0:
                    self._changed.wait(left)

    def step(self) -> None:
        """Begin what is due, and say what takes too long."""
        with self._changed:
            if self._closed:
                return
            now, run = self._clock(), self._run
            self._turns, due, late = check_times.begin_due(self._turns, now)
        for name in due:
            self._begin(partial(self._check, name, run))
        for name in late:
            began = self._turns[name].began_at
            if began is not None:
                self._hear(Checked(name, run, down(f"no answer for {now - began:.0f} s")))

    def _check(self, name: str, run: int) -> None:
        found = BROKEN
        try:
            found = self._probes[name](self._turns[name].timeout_s)
        finally:
            with self._changed:
                said_late = self._turns[name].late
                self._turns = check_times.ended(self._turns, name)
                wanted = self._turns[name].watched and run == self._run and not self._closed
                self._changed.notify()
            if wanted and not said_late:
                self._hear(Checked(name, run, found))
