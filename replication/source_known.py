"""What the target knows of the source's objects: to what it has been told of, changes can be sent.

An object is declared once in a session, by its identity and one of its names. While the target is filled it can take
only what stands where reintegration has been; what it cannot take is left to reintegration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hotpair.replication.frames import Kind
from hotpair.replication.modes import PRIM, REINTEGRATING
from hotpair.replication.nodes import Node, NodeTable
from hotpair.replication.operations import Operation

if TYPE_CHECKING:
    from hotpair.replication.source import Source


class Known:
    """Asked before anything is sent; ``node.declared`` is the session in which the target was told of a node."""

    def __init__(self, source: Source) -> None:
        self.nodes: NodeTable
        self._source = source

    def sends(self, node: Node) -> bool:
        """Whether changes of this object's content go to the target."""
        if self._source.mode is not PRIM and self._source.mode is not REINTEGRATING:
            return False
        return not node.orphan and (node.declared == self._source.session or self.declare(node))

    def can_send(self, operation: Operation) -> bool:
        """Whether the target can take the operation; what it cannot take yet is left to reintegration."""
        ready = [self._is_known(node) for node in operation.needs]
        if all(ready):
            return True
        self._source.reintegration.unsent(operation.needs)
        return False

    def _is_known(self, node: Node) -> bool:
        """Whether the target has the object, and a directory as it is here, and has been told of it."""
        if self._source.reintegration is not None and node.is_directory and not self._source.reintegration.knows(node):
            return False
        return node.declared == self._source.session or self.declare(node)

    def declare(self, node: Node) -> bool:
        """Tell the target where an object is that it has not been told of in this session; False if it cannot be."""
        chain = []
        item: Node | None = node
        while item is None or item.declared != self._source.session:
            if item is None or item.orphan or item.parent is None:
                return False
            if self._source.reintegration is not None and not self._source.reintegration.knows(item):
                return False
            chain.append(item)
            item = self.nodes.by_identity.get(item.parent.identity, item.parent)
        for item in reversed(chain):
            assert item.parent is not None
            self._source.operation((Kind.DECLARE, item.identity, item.parent.identity, item.name))
            item.declared = self._source.session
        return True

    def declare_at(self, node: Node, directory: bytes, name: bytes) -> None:
        """Tell the target that an object is under this name: reintegration has just listed it."""
        if node.declared != self._source.session:
            self._source.operation((Kind.DECLARE, node.identity, directory, name))
            node.declared = self._source.session

    # --- changes of names ---------------------------------------------------------------------------------------------

    def made(self, node: Node, parent: Node) -> list[Operation]:
        """A new object: the target knows it by the MAKE that tells of it, if its directory is known there."""
        if self._source.mode in (PRIM, REINTEGRATING) and self._is_known(parent):
            node.declared = self._source.session
            if self._source.reintegration is not None:
                self._source.reintegration.made(node)
        return []

    def name_lost(self, node: Node) -> None:
        """The name by which we know an object is about to go, but not its last: the target must hold it before."""
        if not self.sends(node) and self._source.reintegration is not None:
            self._source.reintegration.walk_again()

    def removed(self, identity: bytes) -> None:
        """The last name of an object is gone."""
        if self._source.reintegration is not None:
            self._source.reintegration.removed(identity)
        if self._source.verification is not None:
            self._source.verification.removed(identity)

    def forget(self, node: Node) -> None:
        """The kernel has forgotten the object; the target may close it too."""
        self._source.times.drop(node)
        declared, node.declared = node.declared, -1
        if self._source.reintegration is not None and self._source.reintegration.holds(node.identity):
            return
        if self._source.verification is not None and self._source.verification.holds(node.identity):
            return
        if declared == self._source.session and self._source.mode in (PRIM, REINTEGRATING) and not node.orphan:
            self._source.operation((Kind.FORGET, node.identity))
