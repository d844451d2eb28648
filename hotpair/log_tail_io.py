"""The end of a log file, and what is added to it. The file may be replaced by a new one meanwhile."""

from __future__ import annotations

import os
from dataclasses import dataclass

MOST_BYTES = 256 << 10  # of a tail, and of one look at what was added
MOST_LINES = 2000


@dataclass(frozen=True)
class Position:
    """How far a file was read. `inode` 0: there was none."""

    inode: int
    offset: int


def tail(path: str, lines: int) -> tuple[list[str], Position]:
    """The last lines; none where there is no file. Raises OSError."""
    try:
        with open(path, "rb") as opened:
            status = os.fstat(opened.fileno())
            start = max(0, status.st_size - MOST_BYTES)
            opened.seek(start)
            data = opened.read(status.st_size - start)
    except FileNotFoundError:
        return [], Position(0, 0)
    end = data.rfind(b"\n") + 1  # a line that is being written comes with the next look
    found = _lines(data[:end])
    if start and found:
        found = found[1:]  # its beginning is not there
    return found[len(found) - min(lines, len(found)) :], Position(status.st_ino, start + end)


def added(path: str, position: Position) -> tuple[list[str], Position]:
    """Whole lines that were added since. Raises OSError."""
    try:
        with open(path, "rb") as opened:
            status = os.fstat(opened.fileno())
            if status.st_ino != position.inode and position.inode:
                rest = _rest_of_old(path + ".1", position)
                return rest, Position(status.st_ino, 0)
            offset = position.offset if status.st_size >= position.offset else 0  # emptied by somebody: from its start
            opened.seek(offset)
            data = opened.read(MOST_BYTES)
    except FileNotFoundError:
        return [], position
    end = data.rfind(b"\n") + 1
    if not end and len(data) == MOST_BYTES:
        end = len(data)  # longer than any line: it is given in pieces
    return _lines(data[:end]), Position(status.st_ino, offset + end)


def _rest_of_old(path: str, position: Position) -> list[str]:
    """What was added to the file before it was replaced."""
    try:
        with open(path, "rb") as opened:
            if os.fstat(opened.fileno()).st_ino != position.inode:
                return []  # replaced more than once: that is lost
            opened.seek(position.offset)
            return _lines(opened.read(MOST_BYTES))
    except FileNotFoundError:
        return []


def _lines(data: bytes) -> list[str]:
    return data.removesuffix(b"\n").decode(errors="replace").split("\n") if data else []
