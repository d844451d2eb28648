"""How fast chunks may follow each other in reintegration and verify. Pure code: the caller brings the clock.

Two things hold them back. A *ceiling*, where the operator has set one; verify keeps only to this. And politeness: a
chunk takes processors, disk and link from the writes of the VM that come meanwhile, so one that met some is followed by
a rest, a multiple of the time that it took, and no second one is in work beside it. A VM that writes all the time so
loses a small share of it, and few of its writes are slower than usual; a VM that hardly writes is met by few chunks,
and they follow each other at full speed. The rest is never so long that less than a *floor* is copied each second:
until all is copied, there is one copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from hotpair.replication.limits import CHUNK_REST, REINTEGRATION_FLOOR

BURST_S: Final = 0.2  # a ceiling is kept over so long


class Pace:
    """One reintegration's or verify's. Times are in seconds, ``clock`` is monotonic."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.ceiling = 0  # bytes per second, 0: none
        self.floor = REINTEGRATION_FLOOR  # bytes per second, below which politeness ends; 0: it does not
        self._clock = clock
        self._allowance = 0.0
        self._allowance_at = clock()
        self._polite = False
        self._rest_until = 0.0

    def may_begin(self, in_work: int) -> bool:
        """Whether another chunk may be begun while so many are in work."""
        now = self._clock()
        if self._polite and (in_work or now < self._rest_until):
            return False
        if not self.ceiling:
            return True
        self._allowance = min(self._allowance + (now - self._allowance_at) * self.ceiling, self.ceiling * BURST_S)
        self._allowance_at = now
        return self._allowance > 0

    def spend(self, size: int) -> None:
        """So many bytes were sent, or read: what the ceiling is for."""
        self._allowance -= size

    def ended(self, began: float, size: int, met: bool) -> None:
        """A chunk that was begun at ``began`` is done; ``met``: the VM has written meanwhile."""
        self._polite = met
        if met:
            self._rest_until = began + (self._clock() - began) * (1 + CHUNK_REST)
            if self.floor:
                self._rest_until = min(self._rest_until, began + size / self.floor)
