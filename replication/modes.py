"""What a source does with a change of the VM's: it is in one of these modes at any time."""

from __future__ import annotations

from enum import Enum


class Mode(Enum):
    """What the source does with a change."""

    FROZEN = "FROZEN"  # holds it: no link, no verdict yet
    ALONE = "ALONE"  # applies it here only; marks only grow
    REINTEGRATING = "REINTEGRATING"  # solo, sends what the target can already take
    PRIM = "PRIM"  # applies it on both copies
    STOPPED = "STOPPED"  # answers with an error


FROZEN, ALONE, REINTEGRATING, PRIM, STOPPED = Mode  # plain names: an enum's attribute costs a look-up on each write
