"""Which modules a pair takes: how a module may be called, and how many there may be. Pure code.

Knows: names. Must not know: files, states, which server runs what.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

MODULES_PER_PAIR = 25  # on both servers together, each module counted once: what is tested and measured
NAME_CHARACTERS = 40  # a name becomes part of file names, of unit names and of what a screen shows in one column

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{NAME_CHARACTERS - 1}}}")
NAME_RULE = f"1 to {NAME_CHARACTERS} letters, digits, - and _, beginning with a letter or a digit (no other alphabets)"


class ModuleRefused(Exception):
    """The pair does not take this module; the text is the reason and what to do about it."""


@dataclass(frozen=True)
class Union:
    """What two servers hold together when they meet. Both come to the same result."""

    admitted: tuple[str, ...]
    refused: tuple[str, ...]


def is_name(text: str) -> bool:
    """Whether a module, a server or a network may be called so."""
    return _NAME.fullmatch(text) is not None


def admit(name: str, here: Collection[str], at_the_peer: Collection[str]) -> None:
    """Whether a new module may be created. Raises ModuleRefused.

    `at_the_peer` is what its pulses last said; a peer that was never heard has none.
    """
    if not is_name(name):
        raise ModuleRefused(f"a module cannot be called {name[:80]!r}: use {NAME_RULE}")
    together = {*here, *at_the_peer}
    for other in sorted(together):
        if other == name:
            raise ModuleRefused(f"there is a module {name} already: choose another name, or remove that one first")
        if other.casefold() == name.casefold():
            raise ModuleRefused(
                f"{name} differs from the module {other} only in upper and lower case, which some file systems do not "
                "tell apart: choose another name"
            )
    if len(together) >= MODULES_PER_PAIR:
        raise ModuleRefused(
            f"the two servers hold {len(together)} modules together, a pair takes at most {MODULES_PER_PAIR}: remove "
            "one, or use another pair"
        )


def meet(mine: Collection[str], peer: Collection[str]) -> Union:
    """When modules were created on both servers while they did not hear each other, there may be too many.

    Those on both servers come first, then the order of their names decides. A refused one is not started and not
    mirrored until another is removed; one that runs already is not stopped for it.
    """
    both = sorted({*mine} & {*peer})
    one = sorted({*mine} ^ {*peer})
    ordered = (*both, *one)
    return Union(ordered[:MODULES_PER_PAIR], ordered[MODULES_PER_PAIR:])
