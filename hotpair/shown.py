"""How a module is shown, everywhere the same: its colour, and what its state means to a script. Pure.

Red: does not run here, and cannot take over. Magenta: something is under way, or a copy is not what it should be yet.
Green: as good as the state promises. Never green for what would not survive.
"""

from __future__ import annotations

from enum import Enum

STATES = ("STOP", "WAIT", "ALONE", "PRIM", "SECOND")  # a state's place is its exit code, as safekit's
NOT_KNOWN = 5  # exit code when the state cannot be said


class Colour(Enum):
    """The value is the terminal's name for it."""

    RED = "red"
    MAGENTA = "magenta"
    GREEN = "green"
    NONE = "dim"  # nothing is known


def colour(state: str | None, *, ready: bool, vm: str = "", plan: str = "") -> Colour:
    """`state` None or "": not known. What is not said of the peer (`vm`, `plan`) is left out for it."""
    if not state:
        return Colour.NONE
    if plan or vm in ("starting", "stopping"):
        return Colour.MAGENTA
    if state in ("STOP", "WAIT"):
        return Colour.RED
    return Colour.GREEN if ready else Colour.MAGENTA


def exit_code(state: str | None) -> int:
    return STATES.index(state) if state in STATES else NOT_KNOWN
