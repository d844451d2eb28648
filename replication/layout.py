"""Where a module's data lies: in the named directory itself (plain), or beside it (protected).

Protected, the data is in the sibling ``.NAME.hotpair`` and the named directory is the mount point: marked, empty,
immutable. This module knows which kinds of things can have these two names and decides the next step towards a goal;
it must not know the operating system. Each step is one atomic change after which the two names are looked at again, so
that an interrupted run is continued by running it again.

The two names change places in one system call: at no moment is the named directory missing, or half of the data.
"""

from __future__ import annotations

import os
from enum import Enum
from typing import Final

from hotpair.replication.limits import NAME_BYTES

SIBLING_PREFIX: Final = b"."
SIBLING_SUFFIX: Final = b".hotpair"
SIBLING_NAMED: Final = "this is the data of a protected directory: name that one"
LONGEST_NAME: Final = NAME_BYTES - len(SIBLING_PREFIX + SIBLING_SUFFIX)


class Kind(Enum):
    """What has one of the two names."""

    ABSENT = "nothing"
    EMPTY = "a directory without our mark, empty"
    FULL = "a directory without our mark, with content"
    OPEN_POINT = "our mount point, empty, not immutable"
    POINT = "our mount point, empty and immutable"
    SPOILED_POINT = "our mount point, with content that does not belong there"
    OTHER = "no directory"


class Goal(Enum):
    """What is wanted."""

    PROTECT = "the data beside the named directory"
    UNPROTECT = "the data in the named directory"
    USE = "to start a mirror, whichever of the two it is"


class Step(Enum):
    """One atomic change, or the end."""

    MAKE = "make the mount point beside the data"
    MARK = "mark it as a mount point"
    EXCHANGE = "let the two names change places"
    CLOSE = "make the mount point immutable"
    OPEN = "make the mount point changeable"
    REMOVE = "remove the mount point"
    DONE = "nothing is left to do"


class Refusal(Enum):
    """Why nothing is done; each says what to do about it. ``named`` and ``sibling`` are paths."""

    NOTHING_THERE = "{named}: not a directory: create it, or name another"
    NOT_A_DIRECTORY = "{named} is not a directory: name the directory that holds the data"
    SIBLING_IS_NO_DIRECTORY = "{sibling} is in the way and is not a directory: move it away"
    SIBLING_HAS_CONTENT = (
        "both {named} and {sibling} may hold the data of the module: find out which one is right, and move the other "
        "one away"
    )
    SIBLING_IS_CLOSED = "{sibling} is an immutable mount point in the wrong place: remove it (chattr -i, rmdir)"
    POINT_MISSING = "{named} is missing, its data is in {sibling}: rename {sibling} to {named}"
    POINT_HAS_CONTENT = (
        "{named} is the mount point of {sibling}, but something was written into it while the mirror was down: move "
        "that away (chattr -i before, where it is immutable)"
    )
    DATA_MISSING = "{named} is only a mount point, and its data is not in {sibling}: bring it back there"
    INTERRUPTED = "protecting or unprotecting {named} was interrupted: run `protect` or `unprotect` once more"


DATA: Final = frozenset({Kind.EMPTY, Kind.FULL})
POINTS: Final = frozenset({Kind.OPEN_POINT, Kind.POINT})


def decide(goal: Goal, named: Kind, sibling: Kind, closable: bool) -> Step | Refusal:
    """The next step towards ``goal``.

    ``closable``: whether the file system has the immutable flag and we may set it. Total: defined for all arguments.
    """
    if sibling is Kind.OTHER:
        return Refusal.SIBLING_IS_NO_DIRECTORY
    match named:
        case Kind.OTHER:
            return Refusal.NOT_A_DIRECTORY
        case Kind.SPOILED_POINT:
            return Refusal.POINT_HAS_CONTENT
        case Kind.ABSENT:
            return Refusal.POINT_MISSING if sibling in DATA else Refusal.NOTHING_THERE
        case Kind.EMPTY | Kind.FULL:
            return PLAIN[sibling][goal]
        case Kind.OPEN_POINT | Kind.POINT:
            return _protected(goal, named, closable) if sibling in DATA else Refusal.DATA_MISSING


# The named directory holds the data: what follows from what is beside it
PLAIN: Final[dict[Kind, dict[Goal, Step | Refusal]]] = {
    Kind.ABSENT: {Goal.PROTECT: Step.MAKE, Goal.UNPROTECT: Step.DONE, Goal.USE: Step.DONE},
    Kind.EMPTY: {Goal.PROTECT: Step.MARK, Goal.UNPROTECT: Step.REMOVE, Goal.USE: Refusal.INTERRUPTED},
    Kind.FULL: dict.fromkeys(Goal, Refusal.SIBLING_HAS_CONTENT),
    Kind.OPEN_POINT: {Goal.PROTECT: Step.EXCHANGE, Goal.UNPROTECT: Step.REMOVE, Goal.USE: Refusal.INTERRUPTED},
    Kind.POINT: dict.fromkeys(Goal, Refusal.SIBLING_IS_CLOSED),
    Kind.SPOILED_POINT: dict.fromkeys(Goal, Refusal.SIBLING_HAS_CONTENT),
    Kind.OTHER: dict.fromkeys(Goal, Refusal.SIBLING_IS_NO_DIRECTORY),
}


def _protected(goal: Goal, named: Kind, closable: bool) -> Step:
    """The named directory is the mount point, and the data is beside it."""
    if goal is Goal.UNPROTECT:
        return Step.OPEN if named is Kind.POINT else Step.EXCHANGE
    return Step.CLOSE if named is Kind.OPEN_POINT and closable else Step.DONE


def sibling_of(directory: bytes) -> bytes:
    """The path of the sibling that holds, or would hold, the data of ``directory``."""
    parent, name = os.path.split(directory)
    return os.path.join(parent, SIBLING_PREFIX + name + SIBLING_SUFFIX)


def is_sibling_name(directory: bytes) -> bool:
    """Whether this is the name of a protected directory's data."""
    name = os.path.basename(directory)
    return name.startswith(SIBLING_PREFIX) and name.endswith(SIBLING_SUFFIX) and len(name) > len(SIBLING_SUFFIX)


def objection_to_name(directory: bytes) -> str | None:
    """Why an absolute, normalised path can have no sibling; None when it can."""
    name = os.path.basename(directory)
    if not name:
        return "the root directory cannot be protected: name the directory of one module"
    if is_sibling_name(directory):
        return SIBLING_NAMED
    if len(name) > LONGEST_NAME:
        return f"its name has {len(name)} bytes, at most {LONGEST_NAME} leave room for that of its data: shorten it"
    return None
