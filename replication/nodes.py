"""What the kernel knows of the mirrored tree: nodes (inodes it has looked up) and open handles.

Pure bookkeeping. A node number is a counter and is never used twice; the kernel counts its references to a node with
each lookup and gives them back with forget, and only then is the node dropped.
"""

from __future__ import annotations

import stat

from hotpair.replication.dirty_log import FileMarks
from hotpair.replication.fuse_abi import ROOT_NODEID
from hotpair.replication.objects_io import Object


class Node(Object):
    """An object that the kernel knows."""

    __slots__ = (
        "cold",
        "data_fd",
        "declared",
        "direct_fd",
        "has_set_id",
        "lookups",
        "marks",
        "name",
        "nodeid",
        "opens",
        "orphan",
        "parent",
        "read_until",
        "touched",
        "unflushed",
    )

    def __init__(self, nodeid: int, identity: bytes, handle: bytes, kind: int, fd: int, marks: FileMarks) -> None:
        super().__init__(identity, handle, kind, fd)
        self.nodeid = nodeid
        self.lookups = 0
        self.parent: Node | None = None  # with `name`, one name that leads here; None when none is known
        self.name = b""
        self.marks = marks
        self.data_fd = -1  # one descriptor for all reads, writes and flushes of a file while it is open
        self.opens = 0
        self.cold = 0  # so many reads are not tried in the page cache: the last one that was tried was not there
        self.direct_fd = -1  # for reads past the page cache, from the first one on
        self.read_until = -1  # where the last of them ended
        self.unflushed = 0  # something was written through data_fd since its last flush: bytes, of large writes
        self.declared = -1  # the session in which the target was told where this object is
        self.orphan = False  # no name is left; the target does not have it any more
        self.has_set_id: bool | None = None  # None: not known
        self.touched = False  # its modification time is still to be carried to the target

    @property
    def is_directory(self) -> bool:
        return self.kind == stat.S_IFDIR


class Handle:
    """An open file or directory of the kernel's."""

    __slots__ = ("directory_fd", "node", "position")

    def __init__(self, node: Node, directory_fd: int = -1) -> None:
        self.node = node
        self.directory_fd = directory_fd
        self.position = 0  # of a directory: where the next entry is read


class NodeTable:
    """All nodes by number and by identity, and all handles."""

    def __init__(self) -> None:
        self.by_number: dict[int, Node] = {}
        self.by_identity: dict[bytes, Node] = {}
        self.handles: dict[int, Handle] = {}
        self._next_node = ROOT_NODEID
        self._next_handle = 1

    def add(self, identity: bytes, handle: bytes, kind: int, fd: int, marks: FileMarks) -> Node:
        """A new node with the next number; the first one is the root."""
        node = Node(self._next_node, identity, handle, kind, fd, marks)
        self._next_node += 1
        self.by_number[node.nodeid] = node
        self.by_identity[identity] = node
        return node

    root_number = ROOT_NODEID

    def restore(self, node: Node) -> None:
        """A node that the kernel knows from before the mirror process was started anew."""
        self.by_number[node.nodeid] = node
        self.by_identity[node.identity] = node
        self._next_node = max(self._next_node, node.nodeid + 1)

    def restore_handle(self, number: int, handle: Handle) -> None:
        """A handle that the kernel knows from before."""
        self.handles[number] = handle
        self._next_handle = max(self._next_handle, number + 1)

    def drop(self, node: Node) -> None:
        """Remove a node that the kernel has forgotten."""
        del self.by_number[node.nodeid]
        del self.by_identity[node.identity]

    def open(self, handle: Handle) -> int:
        """The number of a new handle."""
        number = self._next_handle
        self._next_handle += 1
        self.handles[number] = handle
        return number
