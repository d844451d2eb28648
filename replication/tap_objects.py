"""What the kernel holds of the mirrored tree: nodes, their descriptors, the orphans and the journal that tells of them.

An orphan is an object that has lost its last name while the kernel holds it. It lives on in a directory of our own,
where a new mirror process finds it; the target has dropped it, so that its changes are neither marked nor sent.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from typing import Any

from hotpair.replication import fuse_abi as abi
from hotpair.replication import journal_io, linux_io, tree_io
from hotpair.replication.activity import ActivityLog
from hotpair.replication.limits import CACHE_VALID_S
from hotpair.replication.nodes import Node, NodeTable
from hotpair.replication.objects_io import Descriptors, ensure_identity, proc_path
from hotpair.replication.operations import Operation
from hotpair.replication.source import Source

log = logging.getLogger("hotpair.replication")


class KernelObjects:
    """All of one mount."""

    def __init__(
        self,
        root_fd: int,
        source: Source,
        activity: ActivityLog,
        descriptor_limit: int,
        journal_path: str,
        adopted: bool,
    ) -> None:
        """``adopted``: the journal is that of a mirror process that has died, whose mount is ours now."""
        self.root_fd = root_fd
        self._source = source
        self._activity = activity
        self.nodes = NodeTable()
        self.descriptors = Descriptors(root_fd, descriptor_limit)
        self.root = self._make_root()
        self.orphans_fd = tree_io.private_directory(root_fd, b"orphans")
        self.agreed = 0  # INIT flags
        self.intents: dict[int, journal_io.Intent] = {}  # renames that were under way in the process that died
        if adopted:
            self._adopt(journal_io.read(journal_path))
        self.journal = journal_io.Journal(journal_path, self.nodes)
        self._clear_orphans()

    def _make_root(self) -> Node:
        identity = ensure_identity(self.root_fd)
        fd = os.open(b".", os.O_PATH | os.O_CLOEXEC, dir_fd=self.root_fd)
        root = self.nodes.add(
            identity, linux_io.name_to_handle(self.root_fd), stat.S_IFDIR, fd, self._activity.marks_of(identity)
        )
        self.descriptors.pin(root)
        root.lookups = 1
        return root

    def _adopt(self, restored: journal_io.Restored) -> None:
        """Take over the mount of a mirror process that has died: its nodes, its handles, its unanswered requests."""
        self.agreed = restored.agreed or 0
        self.intents = restored.intents
        journal_io.rebuild(restored, self.nodes, self._activity.marks_of)
        for text in os.listdir(self.orphans_fd):  # it may have died before it could write that down
            node = self.nodes.by_identity.get(bytes.fromhex(text)) if len(text) == 32 else None
            if node is None:
                continue
            status = os.stat(text, dir_fd=self.orphans_fd, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
                node.orphan = True
            else:
                os.unlink(text, dir_fd=self.orphans_fd)  # what was about to replace it has not: it has its name
        for number, (nodeid, is_directory) in restored.handles.items():
            node = self.nodes.by_number.get(nodeid)
            if node is None:
                continue
            if is_directory:
                handle = self.nodes.handles[number]
                handle.directory_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self.fd(node))
            else:
                node.opens += 1
                self.open_data(node)

    def _clear_orphans(self) -> None:
        """Remove what a dead mirror process has left behind and nobody holds."""
        for text in os.listdir(self.orphans_fd):
            node = self.nodes.by_identity.get(bytes.fromhex(text)) if len(text) == 32 else None
            if node is None:
                tree_io.remove_tree(self.orphans_fd, os.fsencode(text))

    def begin(self, agreed: int) -> None:
        """A new mount, with these flags of INIT."""
        self.agreed = agreed
        self.journal.begin(agreed)

    def close(self, unmounted: bool) -> None:
        """The end; the journal is of use only while there is a mount."""
        self.journal.close(forget=unmounted)

    # --- nodes --------------------------------------------------------------------------------------------------------

    def node(self, nodeid: int) -> Node:
        """The node with this number. Raises OSError(ESTALE)."""
        node = self.nodes.by_number.get(nodeid)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def fd(self, node: Node) -> int:
        """An O_PATH descriptor of the object."""
        return self.descriptors.get(node)

    def node_for(self, fd: int, parent: Node, name: bytes) -> Node:
        """The node of the object that the O_PATH descriptor ``fd`` refers to; takes the descriptor over."""
        identity = ensure_identity(fd)
        node = self.nodes.by_identity.get(identity)
        if node is None:
            kind = stat.S_IFMT(os.fstat(fd).st_mode)
            node = self.nodes.add(identity, linux_io.name_to_handle(fd), kind, fd, self._activity.marks_of(identity))
            node.parent = parent
            node.name = name
            self.descriptors.adopt(node)
            self.journal.node(node)
            return node
        os.close(fd)
        if not node.orphan and (node.parent is not parent or node.name != name):
            node.parent = parent
            node.name = name
            self.journal.named(node)
        return node

    def open_data(self, node: Node) -> None:
        """Open the one descriptor through which a file is read, written and flushed."""
        if node.data_fd < 0:
            path = proc_path(self.fd(node))
            try:
                node.data_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOATIME)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EROFS, errno.ETXTBSY):
                    raise
                node.data_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def forget(self, nodeid: int, lookups: int) -> None:
        """The kernel gives references back."""
        node = self.nodes.by_number.get(nodeid)
        if node is None:
            return
        node.lookups -= lookups
        self.journal.forgotten(nodeid, lookups)
        if node.lookups <= 0 and node is not self.root:
            self._source.known.forget(node)
            self.nodes.drop(node)
            self.descriptors.drop(node)
            self._activity.release(node.identity)
            if node.orphan:
                self._remove_orphan(node)

    def _remove_orphan(self, node: Node) -> None:
        try:
            tree_io.remove_tree(self.orphans_fd, node.identity.hex().encode())
        except OSError as error:
            log.error("cannot remove what nobody can reach any more: %s", error)

    # --- what the kernel is told of them ------------------------------------------------------------------------------

    def attr(self, node: Node, fd: int) -> bytes:
        """struct fuse_attr; ``fd`` is any descriptor of the object."""
        status = os.fstat(fd)
        nlink = status.st_nlink
        if node.orphan:
            nlink = 0
        elif node is self.root:
            nlink -= 1  # our own folder is not shown
        device = status.st_rdev
        if device:
            major, minor = os.major(device), os.minor(device)
            device = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
        return abi.pack_attr(
            status.st_ino, status.st_size, status.st_blocks, status.st_atime_ns, status.st_mtime_ns,
            status.st_ctime_ns, status.st_mode, nlink, status.st_uid, status.st_gid, device, status.st_blksize,
        )  # fmt: skip

    def entry(self, node: Node) -> bytes:
        """struct fuse_entry_out; counts one reference of the kernel's."""
        attr = self.attr(node, self.fd(node))
        node.lookups += 1
        self.journal.looked_up(node)
        return abi.ENTRY_OUT_PREFIX.pack(node.nodeid, 0, CACHE_VALID_S, CACHE_VALID_S, 0, 0) + attr


def unless_orphan(node: Node, *marks: Any) -> tuple[Any, ...]:
    """The marks of a change of an object's content or attributes."""
    return () if node.orphan else marks


def content(node: Node, fields: tuple[Any, ...]) -> list[Operation]:
    """The operation that carries a change of an object's content or attributes."""
    return [] if node.orphan else [Operation((node,), fields)]
