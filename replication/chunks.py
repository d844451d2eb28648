"""Files whose content is being brought to the target, and the chunks of them that are being read meanwhile.

A chunk that a live operation touches while it is read has no certain content: whoever reads it looks at its flag.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hotpair.replication.activity import Selection


class FileJob:
    """A file whose content is to be brought to the target."""

    __slots__ = ("began", "cancelled", "done_until", "fd", "handle", "identity", "in_work", "ranges", "whole")

    def __init__(self, identity: bytes, handle: bytes, whole: bool) -> None:
        self.identity = identity
        self.handle = handle
        self.whole = whole
        self.fd = -1
        self.ranges: deque[tuple[int, int]] = deque()  # bytes still to be read: start, end
        self.in_work: list[Chunk] = []
        self.cancelled = False
        self.began: Selection | None = None  # since it was opened: what is accepted for it later keeps its mark
        self.done_until = 0  # extents before this one are done

    @property
    def read_until(self) -> int | None:
        """Everything before this byte has been read, and sent or found to be equal; None: all that was to be."""
        starts = [chunk.offset for chunk in self.in_work]
        if self.ranges:
            starts.append(self.ranges[0][0])
        return min(starts, default=None)

    def touch(self, start: int, end: int) -> None:
        """A live operation changes these bytes."""
        for chunk in self.in_work:
            if chunk.offset < end and start < chunk.offset + chunk.size:
                chunk.touched = True


class Chunk:
    """A piece of a file that is being read, compared or sent."""

    __slots__ = ("began", "job", "offset", "size", "slot", "touched", "tries", "writes_before")

    def __init__(self, job: FileJob, offset: int, size: int, slot: int) -> None:
        self.job = job
        self.offset = offset
        self.size = size
        self.slot = slot
        self.touched = False
        self.tries = 0
        self.began = 0.0  # when, for its pace, and how many writes the VM had made by then
        self.writes_before = 0
