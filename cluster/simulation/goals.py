"""Whether a goal stays within reach: from each world in which it has to be reached, along actions that cost nothing.

What a world is and must become is noted when it is found, as one bit each; the check looks only at these and at the
numbers of the worlds that follow.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import NamedTuple

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.simulation import invariants
from hotpair.cluster.simulation.actions import Scope
from hotpair.cluster.simulation.world import World, changed
from hotpair.cluster.split_brain import MANUAL, MOST_CHANGES


class Goal(NamedTuple):
    missed: str
    is_reached: Callable[[World, Scope], bool]
    must: Callable[[World], bool]


def _runs(world: World, scope: Scope) -> bool:
    return invariants.runs(world) or _is_excused(world, scope)


def _in_sync(world: World, scope: Scope) -> bool:
    return invariants.in_sync(world, scope.kind) or _is_excused(world, scope)


def _is_stopped(world: World, scope: Scope) -> bool:
    return invariants.nothing_to_stop(world, scope.kind) or _is_excused(world, scope)


def _is_excused(world: World, scope: Scope) -> bool:
    """Where both may run apart, and after an override, a split brain may come of it: the operator's to end."""
    may_split = scope.kind in (Kind.NONE, Kind.PING) or world.overridden
    return may_split and invariants.is_operators(world)


def _is_decided(world: World, scope: Scope) -> bool:
    """No split brain, or one that the policy leaves to the operator."""
    policy = scope.policy
    a, b = (changed(server) for server in world.servers)
    return policy == MANUAL or not invariants.is_split(world) or (policy == MOST_CHANGES and a == b)


GOALS = (
    Goal("never runs again", _runs, invariants.must_run),
    Goal("never in sync again", _in_sync, invariants.must_be_in_sync),
    Goal("never stops", _is_stopped, invariants.must_stop),
    Goal("the split brain never ends", _is_decided, invariants.must_end_split),
)
MUST = len(GOALS)  # the low bits of a mark say which goals are reached, those from here on which must be and are not
REACHED = (1 << MUST) - 1


def mark(world: World, scope: Scope) -> int:
    """What is to be known of a world: fits into a byte."""
    bits = 0
    for number, goal in enumerate(GOALS):
        if goal.is_reached(world, scope):
            bits |= 1 << number
        elif goal.must(world):
            bits |= 1 << number + MUST
    return bits


def stuck(marks: bytearray, free: array[int], first_free: array[int]) -> tuple[str, int]:
    """The first world from which a goal cannot be reached that must be, and which; "" when there is none.

    From world i one gets to `free[first_free[i]:first_free[i + 1]]`. A goal within reach of a world is handed to those
    before it until nothing changes: mostly backwards in the order in which they were found, so a few rounds do.
    """
    reach = bytearray(bits & REACHED for bits in marks)
    has_changed = True
    while has_changed:
        has_changed = False
        end = len(free)
        for i in range(len(marks) - 1, -1, -1):
            first = first_free[i]
            before = bits = reach[i]
            if bits != REACHED:
                for j in free[first:end]:
                    bits |= reach[j]
                if bits != before:
                    reach[i] = bits
                    has_changed = True
            end = first
    for number, goal in enumerate(GOALS):
        for i, bits in enumerate(marks):
            if bits >> number + MUST & 1 and not reach[i] >> number & 1:
                return f"liveness: {goal.missed}", i
    return "", 0
