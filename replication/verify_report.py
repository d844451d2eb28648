"""Verify: what was found. Plain values; read by the control socket's thread while the loop adds to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hotpair.replication.limits import DIFFERENCES_SHOWN


@dataclass(slots=True, eq=False)
class Difference:
    """One place where the copies differ. ``offset`` and ``length`` in bytes, of content only."""

    path: bytes
    what: list[str]
    offset: int | None
    length: int | None
    repaired: bool = False

    def shown(self) -> dict[str, Any]:
        path = (self.path or b".").decode(errors="backslashreplace")
        return {
            "path": path,
            "what": ", ".join(self.what),
            "offset": self.offset,
            "length": self.length,
            "repaired": self.repaired,
        }


class Report:
    """The first differences, and how many there are."""

    def __init__(self) -> None:
        self.first: list[Difference] = []
        self.count = 0
        self.repaired_count = 0

    def add(self, path: bytes, what: list[str], offset: int | None = None, length: int | None = None) -> Difference:
        difference = Difference(path, what, offset, length)
        self.count += 1
        if len(self.first) < DIFFERENCES_SHOWN:
            self.first.append(difference)
        return difference

    def repaired(self, difference: Difference) -> None:
        """It has been copied again, and compared again as equal."""
        difference.repaired = True
        self.repaired_count += 1
