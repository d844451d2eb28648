"""A request as the rooms of the tap get it, and the answers to it.

A request's slot is free again as soon as its answer is written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from hotpair.replication import fuse_abi as abi
from hotpair.replication.fuse_io import Slot

Ask = tuple[Slot, int, int, int, int, memoryview]  # slot, nodeid, uid, gid, pid, body

out_header = abi.OUT_HEADER.pack


class Answers:
    """Writes answers to ``fuse_fd``; ``slots`` are those that are free."""

    def __init__(self, fuse_fd: int, slots: list[Slot]) -> None:
        self.fuse_fd = fuse_fd
        self.slots = slots

    def error(self, slot: Slot, code: int) -> None:
        """Answer with an error; 0 is a success without a body."""
        self.slots.append(slot)
        try:
            os.write(self.fuse_fd, out_header(16, -code, slot.unique))
        except OSError as error:
            unless_gone(error)

    def answer(self, slot: Slot, body: bytes | memoryview) -> None:
        """Answer with a body."""
        self.slots.append(slot)
        try:
            os.writev(self.fuse_fd, (out_header(16 + len(body), 0, slot.unique), body))
        except OSError as error:
            unless_gone(error)

    def answer_sized(self, slot: Slot, value: bytes, size: int) -> None:
        """Answer with an attribute, or with its length when the caller has no room (``size`` 0) and asks for that."""
        if size == 0:
            self.answer(slot, abi.GETXATTR_OUT.pack(len(value), 0))
        elif len(value) > size:
            self.error(slot, errno.ERANGE)
        else:
            self.answer(slot, value)

    def finisher(self, slot: Slot, answer: Callable[[], bytes] | None = None) -> Callable[[OSError | None], None]:
        """What answers a change when it is done; ``answer`` makes the body of a success."""

        def done(error: OSError | None) -> None:
            if error is not None:
                self.error(slot, error.errno or errno.EIO)
            elif answer is None:
                self.error(slot, 0)
            else:
                self.answer(slot, answer())

        return done


def name_in(body: memoryview) -> bytes:
    """A name or path that ends with a NUL byte."""
    return bytes(body).rstrip(b"\0")


def unless_gone(error: OSError) -> None:
    """ENOENT: the request was given up meanwhile. ENODEV: the mount is gone. Nobody waits for the answer."""
    if error.errno not in (errno.ENOENT, errno.ENODEV):
        raise error
