"""The register of the fixed scenarios: functions that drive ``BothSides`` through one named feature each.

A scenario says what must succeed (``both.ok``), what must fail and how (``both.fails``), or only that both sides must
do the same (``both.do``). At its end both trees are compared.
"""

import os
from collections.abc import Callable

from tests.posix_difference import BothSides

Scenario = Callable[[BothSides], None]
SCENARIOS: dict[str, Scenario] = {}

READ_WRITE = os.O_RDWR | os.O_CREAT


def scenario(function: Scenario) -> Scenario:
    """Register a scenario under its own name."""
    assert function.__name__ not in SCENARIOS
    SCENARIOS[function.__name__] = function
    return function


def make_file(both: BothSides, path: bytes, length: int = 100, mode: int = 0o644, user: str = "root") -> None:
    """A file with a pattern in it, closed again."""
    both.ok("open", slot=900, path=path, flags=READ_WRITE, mode=mode, user=user)
    both.ok("write", slot=900, length=length, fill=9, user=user)
    both.ok("close", slot=900)


def content(both: BothSides, path: bytes) -> bytes:
    """What a file holds (up to 1 MiB); equal on both sides."""
    both.ok("open", slot=901, path=path, flags=os.O_RDONLY)
    data = both.ok("read", slot=901, length=1 << 20)
    both.ok("close", slot=901)
    assert isinstance(data, bytes)
    return data
