"""The time limits of the simulated pairs, by the kind of arbitration: as configuration_checks.py demands them.

Where clocks keep two VMs apart a frozen source stops its VM before the peer's TIMEOUT_S. With `fence` it waits until
the command must have answered, however slow that was. Pure code.
"""

from __future__ import annotations

from random import Random

from hotpair.cluster.arbitration import FENCE_TIMEOUT_S, Kind
from hotpair.cluster.configuration_tables import ANSWER_ROOM_S, FENCE_ROOM_S
from hotpair.cluster.simulation.pulses import TIMEOUT_S

SLOW_COMMANDS = 0.3  # the part of the fencing commands that may take up to their limit
LATE = 1.5  # times its limit: an answer that the arbiter's trouble keeps from the asker


def fence_after_s(kind: Kind) -> float:
    """A source that is frozen for so long fails its tap. Otherwise below TIMEOUT_S, with a kill of half a second."""
    return FENCE_TIMEOUT_S + FENCE_ROOM_S if kind is Kind.FENCE else 2.0


def ask_timeout_s(kind: Kind) -> float:
    """A module waits for its answer so long."""
    return FENCE_TIMEOUT_S + ANSWER_ROOM_S if kind is Kind.FENCE else 0.9


def survives_s(kind: Kind) -> float:
    """What a pair that has lost a host needs until it runs: the loss is certain, a claim is answered, a VM starts."""
    return TIMEOUT_S + 10.0 + (FENCE_TIMEOUT_S if kind is Kind.FENCE else 0.0)


def way_s(kind: Kind, is_slow: bool, random: Random) -> float:
    """One way of a question: to the arbiter, or back. A fencing command does its work between the two."""
    if kind is not Kind.FENCE:
        return random.uniform(0.5, 12.0) if is_slow else random.uniform(0.002, 0.04)
    half_s = FENCE_TIMEOUT_S / 2
    if is_slow:
        return random.uniform(half_s / 2, half_s * LATE)
    return random.uniform(0.0, half_s) if random.random() < SLOW_COMMANDS else random.uniform(0.1, 2.0)
