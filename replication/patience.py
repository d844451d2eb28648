"""How long a source waits for its target: two limits, because silence and slowness mean different things. Pure code.

A target that is silent, so that not even its host acknowledges what it is sent, is off or cut off: that must be noticed
soon, because the supervisor over there hears nothing either and will take over. One that is alive and slow, because its
disk or its process hangs, leaves the two servers hearing each other, and nobody takes over: it is given longer.
"""

from __future__ import annotations

from hotpair.replication.limits import PROBE_INTERVAL_S


class Patience:
    """With one target, over all connections. Times are monotonic.

    alive_at   when the target's host last gave a sign
    heard_at   when the target itself last said something
    """

    def __init__(self, silence_timeout_s: float, stall_timeout_s: float, now: float) -> None:
        self._silence_timeout_s = silence_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._applied = 0
        self._looked_at = self._resumed_at = self._progress_at = now
        self.heard_at = self.alive_at = now

    def connected(self, now: float) -> None:
        """There is a new connection."""
        self._looked_at = self._progress_at = self.heard_at = self.alive_at = now

    def look(self, now: float, quiet_s: float, applied: int, waits: bool) -> str | None:
        """Why it is given up now, or None. Called many times a second.

        `quiet_s`: since its host last acknowledged anything. `applied`: how far it is. `waits`: for an operation.
        """
        if now - self._looked_at > PROBE_INTERVAL_S:
            self._resumed_at = now  # this process was held up and has not probed: the silence was its own
        self._looked_at = now
        self.alive_at = max(self.heard_at, now - quiet_s)
        if applied != self._applied or not waits:
            self._applied, self._progress_at = applied, now
        if now - max(self.alive_at, self._resumed_at) > self._silence_timeout_s:
            return f"silence: the peer's host has acknowledged nothing for {self._silence_timeout_s:g} s"
        if now - self._progress_at > self._stall_timeout_s:
            return f"no progress on outstanding operations for {self._stall_timeout_s:g} s"
        if now - max(self.heard_at, self._resumed_at) > self._stall_timeout_s:
            return f"nothing heard from the peer for {self._stall_timeout_s:g} s"
        return None
