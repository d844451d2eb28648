"""What is looked at while a simulation runs: the invariants after each event, service gaps, and liveness at the end.

Knows worlds only. What an operator's override or a split brain has cost is forgiven when the pair is in sync again:
from then on everything counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.simulation import invariants
from hotpair.cluster.simulation.world import NAMES, World
from hotpair.cluster.split_brain import MANUAL

GAP_S = 0.2  # a shorter pause is not counted as one
CAUSE_S = 30.0  # a pause belongs to the last fault before it, if that is not longer ago
UNEXPLAINED_S = 20.0  # a split brain needs a reason that is not longer ago


@dataclass
class Result:
    """What one life came to. `wrong` is empty, or says which invariant did not hold at `at_s`.

    gaps                (begin, seconds, name of the fault that it came after)
    faults              names of those that happened
    split_brain_policy  of both servers
    """

    seed: int
    kind: str
    wrong: str = ""
    at_s: float = 0.0
    events: int = 0
    writes: int = 0
    gaps: list[tuple[float, float, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    split_brain: bool = False
    overridden: bool = False
    for_operator: bool = False
    split_brain_policy: str = MANUAL


class Violation(Exception):
    """An invariant does not hold."""


class Watch:
    """Of one life. A story's start may have a past in which anything has happened: `knows_past` is False.

    flushed       writes that the guest has flushed: promised for good
    fragile       acknowledged writes that each host has lost with its power, so that only the other one may have them;
                  until its copy is in sync again
    tainted       a split brain where nobody arbitrates: the data is one side's or the other's
    cause         the last fault, and when
    deaf_at       when they last may not have heard each other
    disk_is_new   a disk was just replaced by an empty one
    from_solo     the last reintegration of each server's copy had a source that was solo
    """

    def __init__(self, kind: Kind, world: World, result: Result, *, knows_past: bool = True) -> None:
        self._kind = kind
        self._result = result
        self._now = 0.0
        self.flushed = 0
        self.fragile = [0, 0]
        self.tainted = False
        self.deaf_at = 0.0
        self.disk_is_new = False
        self.from_solo = [False, False]
        self._knows_past = knows_past
        self.cause = ("start", 0.0)
        self.in_sync_since = -1.0
        self.generations: list[set[bytes]] = [set(), set()]
        self._runs = invariants.runs(world)
        self._stopped_at = -1.0
        self._last_ran = 0.0
        self._last_in_sync = 0.0

    def check(self, before: World, world: World, now: float) -> World:
        """The world, with old sins forgiven once the pair is in sync again."""
        self._now = now
        kind = self._kind
        world = self._excuse(before, world)
        if kind in (Kind.NONE, Kind.PING):
            self._watch_split(world)
        why = invariants.wrong(world, kind)
        if not self.disk_is_new:
            why = why or invariants.nothing_backwards(before, world)
            why = why or self._changed_wrongly(before, world)
        self.disk_is_new = False
        if why is None and kind in (Kind.NONE, Kind.PING) and not self.tainted:
            why = invariants.nothing_lost(world, Kind.WITNESS)
            why = why and f"nothing_lost: {why}"
        if why is None and self.flushed & ~world.acked and not world.overridden and not self.tainted:
            why = "flushed: a flushed write is on no disk"
        if why:
            raise Violation(why)
        runs = invariants.runs(world)
        if runs != self._runs:
            self._runs = runs
            self._count_gap(runs)
        if runs:
            self._last_ran = self._now
        if world.net and world.wire >= 0 and invariants.in_sync(world, kind):
            self.in_sync_since = self._now if self.in_sync_since < 0 else self.in_sync_since
            world = self._forgive(world)
        elif self.in_sync_since >= 0:
            self.in_sync_since, self._last_in_sync = -1.0, self._now
        return world

    def _changed_wrongly(self, before: World, world: World) -> str | None:
        """What no single event may do."""
        for t in (0, 1):
            from_solo = invariants.begins_from_solo(before, world, t)
            self.from_solo[t] = self.from_solo[t] if from_solo is None else from_solo
        if self.tainted:
            return None
        why = invariants.outdated_for_a_reason(before, world)
        if why is not None:
            return f"outdated_for_a_reason: {why}"
        if not self._knows_past:
            return None
        why = invariants.copied_by_the_logs(before, world, self.from_solo[1 - max(world.wire, 0)])
        return why and f"copied_by_the_logs: {why}"

    def _forgive(self, world: World) -> World:
        """In sync again: what was chosen is what there is, and from here on everything counts again."""
        self.fragile = [0, 0]
        self._knows_past = True
        if world.overridden or self.tainted:
            kept = world.servers[0].copy & world.servers[1].copy
            world = world._replace(overridden=False, forced=False, acked=world.acked & kept)
            self.flushed &= kept
            self.tainted = False
            for known in self.generations:
                known.clear()
        return world

    def _watch_split(self, world: World) -> None:
        """Where nobody arbitrates both may go on: from then on the data is one side's or the other's."""
        one, other = (server.record for server in world.servers)
        if one is None or other is None or self.tainted:
            return
        if one.solo and other.solo and one.generation != other.generation:
            self.tainted = self._result.split_brain = True
            if self._now - self.deaf_at > UNEXPLAINED_S:
                raise Violation("split brain: though all that time they could hear each other")

    def generation(self, world: World, s: int, old: bytes, new: bytes) -> None:
        """Generations never go back on a disk."""
        if old == new:
            return
        if world.overridden or self._kind in (Kind.NONE, Kind.PING):
            self.generations[s].clear()
            return
        self.generations[s].add(old)
        if new in self.generations[s]:
            raise Violation(f"generations: {NAMES[s]} went back to one that it had before")

    def _count_gap(self, runs: bool) -> None:
        if not runs:
            self._stopped_at = self._now
            return
        gap_s = self._now - self._stopped_at
        if self._stopped_at >= 0.0 and gap_s >= GAP_S:
            name, at = self.cause
            cause = name if self._stopped_at - at <= CAUSE_S else "later"
            self._result.gaps.append((round(self._stopped_at, 2), round(gap_s, 2), cause))

    def went_down(self, world: World, s: int) -> World:
        """What the other had lost with its power, nobody flushed, and only s still had, was never promised."""
        gone = self.fragile[1 - s]
        self.fragile[1 - s] = 0
        if not world.servers[1 - s].up:
            gone |= self.fragile[s]
            self.fragile[s] = 0
        return world._replace(acked=world.acked & ~(gone & ~self.flushed))

    def disk_failed(self, world: World, s: int) -> World:
        """A second failure: what the other had lost with its power, and nobody had flushed, only s still had."""
        gone, self.fragile[1 - s] = self.fragile[1 - s], 0
        return world._replace(acked=world.acked & ~(gone & ~self.flushed))

    def _excuse(self, before: World, world: World) -> World:
        """Back after a power cut, and granted while the peer was silent: a second failure. The promise is for one.

        Given up is what that host has lost with its power and nobody had flushed, in the write that makes the lineage
        without it, whatever becomes of the control plane after that; nothing once its copy was in sync again.
        """
        for s in (0, 1):
            old, new = before.servers[s], world.servers[s]
            if new.record is old.record or new.record is None or old.record is None:
                continue
            if old.record.inconsistent and new.record.in_sync:
                self.fragile[s] = 0
            if new.record.solo and old.record.in_sync and invariants.is_unheard(old, new):
                world = world._replace(acked=world.acked & ~(self.fragile[s] & ~self.flushed & ~new.copy))
                self.fragile[s] = 0
        return world

    def must_run(self, world: World, now: float) -> None:
        self._now = now
        lately = self._runs or self._last_ran > self._now - 20.0
        if invariants.must_run(world) and not lately and not self._is_excused(world):
            raise Violation("liveness: it does not run again")

    def must_be_in_sync(self, world: World, now: float) -> None:
        self._now = now
        if self._is_excused(world):
            return
        if invariants.must_run(world) and not self._runs and self._last_ran < self._now - 20.0:
            raise Violation("liveness: it does not run again")
        # the arbiter's epoch is compared now and then, and for that moment it is not green
        lately = self.in_sync_since >= 0 or self._last_in_sync > self._now - 5.0
        if invariants.must_be_in_sync(world) and not lately:
            raise Violation("liveness: not in sync again")
        if invariants.must_stop(world) and not invariants.nothing_to_stop(world, self._kind):
            raise Violation("liveness: it does not stop")

    def _is_excused(self, world: World) -> bool:
        one, other = (server.record for server in world.servers)
        if one is None or other is None or (one.inconsistent and other.inconsistent):
            return True
        return invariants.is_operators(world) and (world.overridden or self.tainted)
