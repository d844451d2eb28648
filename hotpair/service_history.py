"""How often a module came here, and how long it did not run before: from what this server saw. Pure.

Fed at each event of the module. Time is an argument, in seconds, monotonic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from hotpair.cluster.module_values import Module, State, Vm

_RUNNING = (State.ALONE, State.PRIM)


class Side(Enum):
    """Where it was seen to run last."""

    NOWHERE = "nowhere"
    HERE = "here"
    PEER = "peer"


@dataclass(frozen=True)
class History:
    """Since this service started.

    failovers     it came here because the peer was lost
    handovers     it came here from a peer that was heard: swap, stop, consent
    last_gap_s    from when it was seen to run nowhere to when it ran here; None before that happened. The time until
                  the loss of a peer is noticed is not in it
    """

    ran: Side = Side.NOWHERE
    down_at_s: float | None = None
    failovers: int = 0
    handovers: int = 0
    last_gap_s: float | None = None
    holds: bool = False  # ALONE or PRIM here


def runs_here(module: Module) -> bool:
    """The VM is on, and this server has the right to run it."""
    return module.state in _RUNNING and module.vm is Vm.ON


def seen(history: History, module: Module, now_s: float) -> History:
    """After an event of the module."""
    holds = module.state in _RUNNING
    if holds and not history.holds and history.ran is Side.PEER:
        lost = module.peer is None
        history = replace(
            history, failovers=history.failovers + lost, handovers=history.handovers + (not lost), ran=Side.NOWHERE
        )
    history = replace(history, holds=holds)
    if runs_here(module):
        gap = history.last_gap_s if history.down_at_s is None else now_s - history.down_at_s
        return replace(history, ran=Side.HERE, down_at_s=None, last_gap_s=gap)
    peer_runs = module.peer is not None and module.peer.state in _RUNNING
    if peer_runs and not holds:
        return replace(history, ran=Side.PEER, down_at_s=None)
    if history.down_at_s is None and history.ran is not Side.NOWHERE:
        return replace(history, down_at_s=now_s)
    return history
