"""Modification times that the source still has to carry to the target: writes change them without an operation."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from hotpair.replication.modes import FROZEN, REINTEGRATING
from hotpair.replication.nodes import Node
from hotpair.replication.operations import attributes

if TYPE_CHECKING:
    from hotpair.replication.source import Source


class Times:
    """Of all objects that were changed; ``node.touched`` says whether one is among them."""

    def __init__(self, source: Source) -> None:
        self.path_fd: Callable[[Node], int]
        self._source = source
        self._touched: set[Node] = set()

    def touch(self, node: Node) -> None:
        """The object's modification time has changed here and must be carried sooner or later."""
        if not node.touched:
            node.touched = True
            self._touched.add(node)

    def carry(self, node: Node) -> None:
        """Send the modification time of an object that was changed."""
        if not node.touched:
            return
        if self._source.known.sends(node):
            fd = node.data_fd if node.data_fd >= 0 else self.path_fd(node)
            self._source.operation(attributes(node, mtime_ns=os.fstat(fd).st_mtime_ns))
        elif self._source.mode is FROZEN or self._source.mode is REINTEGRATING:
            return  # later
        node.touched = False  # alone, the next reintegration carries it
        self._touched.discard(node)

    def carry_all(self) -> None:
        """Carry what is outstanding; called when there is nothing better to do, and before a clean stop."""
        for node in list(self._touched):
            self.carry(node)

    def drop(self, node: Node) -> None:
        """The object is forgotten."""
        self._touched.discard(node)
