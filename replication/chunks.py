"""Files whose content is being brought to the target, and the chunks of them that are being read meanwhile.

A chunk that a live operation touches while it is read has no certain content: whoever reads it looks at its flag.
"""

from __future__ import annotations

from collections import deque


class FileJob:
    """A file whose content is to be brought to the target."""

    __slots__ = ("cancelled", "fd", "handle", "identity", "in_work", "position", "ranges", "whole")

    def __init__(self, identity: bytes, handle: bytes, whole: bool) -> None:
        self.identity = identity
        self.handle = handle
        self.whole = whole
        self.fd = -1
        self.ranges: deque[tuple[int, int]] = deque()  # bytes still to be read: start, end
        self.in_work: list[Chunk] = []
        self.cancelled = False
        self.position = 0

    def touch(self, start: int, end: int) -> None:
        """A live operation changes these bytes."""
        for chunk in self.in_work:
            if chunk.offset < end and start < chunk.offset + chunk.size:
                chunk.touched = True


class Chunk:
    """A piece of a file that is being read, compared or sent."""

    __slots__ = ("job", "offset", "size", "slot", "touched", "tries")

    def __init__(self, job: FileJob, offset: int, size: int, slot: int) -> None:
        self.job = job
        self.offset = offset
        self.size = size
        self.slot = slot
        self.touched = False
        self.tries = 0
