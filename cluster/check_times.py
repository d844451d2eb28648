"""When which check is due, and when one takes too long. Pure code: time is an argument, in seconds, monotonic.

Each checker has a turn of its own, so that one that hangs keeps no other waiting. While a check is under way none is
begun for the same checker: what hangs in the kernel cannot be ended, and is not to pile up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

LATE_S = 1.0  # beyond its time limit, for a check to say itself what was wrong
_IDLE_S = 3600.0  # nothing to do


@dataclass(frozen=True)
class Turn:
    """`began_at` None: none is under way. `late`: it was said that this one takes too long."""

    period_s: float
    timeout_s: float
    watched: bool = False
    due_at: float = 0.0
    began_at: float | None = None
    late: bool = False


Turns = Mapping[str, Turn]


def watch(turns: Turns, names: frozenset[str], now: float, *, anew: bool) -> Turns:
    """Look at these from now on. What was not looked at before is due at once; with `anew`, everything."""
    return {
        name: replace(turn, watched=name in names, due_at=now if anew or not turn.watched else turn.due_at)
        for name, turn in turns.items()
    }


def begin_due(turns: Turns, now: float) -> tuple[Turns, list[str], list[str]]:
    """Which checks are to be begun now, and which have taken too long: these are said once in each period."""
    changed, begun, late = dict(turns), [], []
    for name, turn in turns.items():
        if turn.watched and turn.began_at is None and now >= turn.due_at:
            changed[name] = replace(turn, began_at=now, due_at=now + turn.period_s, late=False)
            begun.append(name)
        elif turn.watched and turn.began_at is not None and now >= _late_at(turn, turn.began_at):
            changed[name] = replace(turn, late=True, due_at=now + turn.period_s)
            late.append(name)
    return changed, begun, late


def ended(turns: Turns, name: str) -> Turns:
    """The check under way has ended."""
    return {**turns, name: replace(turns[name], began_at=None, late=False)}


def next_at(turns: Turns, now: float) -> float:
    """When `begin_due` has something to do, if nothing happens before."""
    moments = [
        turn.due_at if turn.began_at is None else _late_at(turn, turn.began_at)
        for turn in turns.values()
        if turn.watched
    ]
    return min(moments, default=now + _IDLE_S)


def _late_at(turn: Turn, began_at: float) -> float:
    return turn.due_at if turn.late else began_at + turn.timeout_s + LATE_S
