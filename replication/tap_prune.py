"""Asking the kernel to forget objects that it does not use, so that a tree of a million files is not held for ever.

FUSE_NOTIFY_PRUNE (Linux 6.18, linux/fuse.h 7.45) names objects; the kernel answers with FORGET for those that nobody
has open. It takes no lock for which a request of ours could wait, so that the loop may send it. An older kernel forgets
when it needs the memory.
"""

from __future__ import annotations

import errno
import logging
import os
from collections import deque
from struct import Struct
from typing import Final

from hotpair.replication import fuse_abi as abi
from hotpair.replication.nodes import NodeTable

log = logging.getLogger("hotpair.replication")

AT_ONCE: Final = 2048  # objects in one notification: about a millisecond
PRUNE: Final = Struct("<IIQ")  # struct fuse_notify_prune_out: count, padding, spare; the nodes' numbers follow


class Pruner:
    """Called now and then. The oldest are asked for first: what is used has been looked up again and again."""

    def __init__(self, fuse_fd: int, nodes: NodeTable, most: int) -> None:
        """``most``: so many objects may be held; above it the kernel is asked."""
        self._fuse_fd = fuse_fd
        self._nodes = nodes
        self._most = most
        self._candidates: deque[int] = deque()  # not asked for in this round

    def step(self) -> None:
        """Ask for some, if there are too many."""
        held = self._nodes.by_number
        excess = len(held) - self._most
        if excess <= 0:
            return
        if not self._candidates:
            self._candidates.extend(held)
        numbers: list[int] = []
        while self._candidates and len(numbers) < min(excess, AT_ONCE):
            node = held.get(self._candidates.popleft())
            if node is not None and not node.opens and node.nodeid != abi.ROOT_NODEID:
                numbers.append(node.nodeid)
        if numbers:
            self._ask(numbers)

    def _ask(self, numbers: list[int]) -> None:
        body = PRUNE.pack(len(numbers), 0, 0) + b"".join(number.to_bytes(8, "little") for number in numbers)
        try:
            os.write(self._fuse_fd, abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(body), abi.NOTIFY_PRUNE, 0) + body)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return  # the mount is gone
            log.info("the kernel cannot be asked to forget objects (%s): it does when it needs memory", error.strerror)
            self._most = 1 << 62
