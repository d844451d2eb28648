"""The tap's requests about attributes: mode, owner, times and size, extended attributes, the file system's numbers."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from hotpair.replication import fuse_abi as abi
from hotpair.replication import linux_io, tree_io
from hotpair.replication.dirty_log import Extents, Metadata
from hotpair.replication.frames import Kind
from hotpair.replication.limits import CACHE_VALID_S, NAME_BYTES, XATTR_BYTES
from hotpair.replication.nodes import Node
from hotpair.replication.objects_io import ACL_XATTRS, HIDDEN_XATTRS, proc_path
from hotpair.replication.operations import Operation, PartlyApplied, attributes
from hotpair.replication.source import Source
from hotpair.replication.tap_answers import Answers, Ask, name_in
from hotpair.replication.tap_objects import KernelObjects, content, unless_orphan
from hotpair.replication.tap_set_id import SET_ID, without_set_id

TO_END = (1 << 64) - 1  # the last extent of a mark that reaches to the end of the file


class Attributes:
    """A public method serves the request of its name."""

    def __init__(self, source: Source, objects: KernelObjects, answers: Answers) -> None:
        self._source = source
        self._root_fd = objects.root_fd
        self._node, self._fd, self._attr = objects.node, objects.fd, objects.attr
        self._answer, self._answer_sized, self._finisher = answers.answer, answers.answer_sized, answers.finisher

    def getattr(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, _ = ask
        node = self._node(nodeid)
        if self._source.has_local_writes:
            self._source.apply_local()
        fd = node.data_fd if node.data_fd >= 0 else self._fd(node)
        self._answer(slot, abi.ATTR_OUT_PREFIX.pack(CACHE_VALID_S, 0, 0) + self._attr(node, fd))

    def statfs(self, ask: Ask) -> None:
        s = os.statvfs(self._root_fd)
        self._answer(
            ask[0],
            abi.STATFS_OUT.pack(
                s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, NAME_BYTES, s.f_frsize, 0,
                0, 0, 0, 0, 0, 0,
            ),
        )  # fmt: skip

    def setattr(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        values = abi.SETATTR_IN.unpack_from(body)
        valid = values[0]
        node = self._node(nodeid)
        marks: list[Any] = [Metadata(node.identity)]
        if valid & abi.FATTR_SIZE:
            size = os.fstat(self._fd(node)).st_size
            first = min(size, values[3]) >> self._source.shift
            marks.append(Extents(node.identity, first, TO_END))

        def perform() -> list[Operation]:
            return self._apply_attributes(node, values, ask)

        def answer() -> bytes:
            fd = node.data_fd if node.data_fd >= 0 else self._fd(node)
            return abi.ATTR_OUT_PREFIX.pack(CACHE_VALID_S, 0, 0) + self._attr(node, fd)

        self._source.change(unless_orphan(node, *marks), perform, self._finisher(slot, answer))

    def _apply_attributes(self, node: Node, values: tuple[int, ...], ask: Ask) -> list[Operation]:
        """Apply a SETATTR here, step by step; the operations that bring the target to what came of it."""
        before = os.fstat(self._fd(node))
        operations: list[Operation] = []
        try:
            self._attribute_steps(node, values, ask, before, operations)
        except OSError as error:
            operations += self._attribute_operation(node, values[0], before)
            raise PartlyApplied(error, operations) from error
        return operations + self._attribute_operation(node, values[0], before)

    def _attribute_steps(
        self, node: Node, values: tuple[int, ...], ask: Ask, before: os.stat_result, operations: list[Operation]
    ) -> None:
        valid, _, _, size, _, atime, mtime, _, atime_nsec, mtime_nsec, _, mode, _, uid, gid, _ = values
        fd = self._fd(node)
        path = proc_path(fd)
        if valid & abi.FATTR_SIZE:
            self._source.interrupt_chunks(node, min(size, before.st_size), TO_END)
            if node.data_fd >= 0:
                os.ftruncate(node.data_fd, size)
                node.unflushed += 1
            else:
                os.truncate(path, size)
            operations += content(node, (Kind.TRUNCATE, node.identity, size))
        if valid & (abi.FATTR_UID | abi.FATTR_GID):
            linux_io.fchownat_empty(fd, uid if valid & abi.FATTR_UID else -1, gid if valid & abi.FATTR_GID else -1)
        by_root = valid & (abi.FATTR_UID | abi.FATTR_GID) and not ask[2]  # then chown itself does what is right
        if valid & abi.FATTR_KILL_SUIDGID and not valid & abi.FATTR_MODE and before.st_mode & SET_ID and not by_root:
            os.chmod(path, without_set_id(before, ask[3], ask[4]))  # by the group that it had
        if valid & abi.FATTR_MODE:
            os.chmod(path, stat.S_IMODE(mode))
            node.has_set_id = None
        if valid & (abi.FATTR_ATIME | abi.FATTR_MTIME):
            linux_io.utimens_empty(
                fd,
                _time(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, atime, atime_nsec),
                _time(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, mtime, mtime_nsec),
            )

    def _attribute_operation(self, node: Node, valid: int, before: os.stat_result) -> list[Operation]:
        after = os.fstat(self._fd(node))
        changed = (after.st_mode, after.st_uid, after.st_gid) != (before.st_mode, before.st_uid, before.st_gid)
        owned = changed or valid & (abi.FATTR_UID | abi.FATTR_GID)
        return content(
            node,
            attributes(
                node,
                stat.S_IMODE(after.st_mode) if changed or valid & abi.FATTR_MODE else None,
                after.st_uid if owned else None,
                after.st_gid if owned else None,
                after.st_mtime_ns,
            ),
        )

    # --- extended attributes ------------------------------------------------------------------------------------------

    def setxattr(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        size, flags, kill, _ = abi.SETXATTR_IN.unpack_from(body)
        rest = bytes(body[abi.SETXATTR_IN.size :])
        name, _, value = rest.partition(b"\0")
        value = value[:size]
        node = self._node(nodeid)
        if name.startswith(HIDDEN_XATTRS):
            raise OSError(errno.EPERM, "")
        if size > XATTR_BYTES:
            raise OSError(errno.E2BIG, "")

        def perform() -> list[Operation]:
            fd = self._fd(node)
            try:
                os.setxattr(proc_path(fd), name, value, flags)
            except FileExistsError:  # XATTR_CREATE
                if not slot.resent or os.getxattr(proc_path(fd), name) != value:
                    raise
            operations = content(node, (Kind.SET_XATTR, node.identity, name, value))
            if kill & abi.SETXATTR_ACL_KILL_SGID:
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                if mode & stat.S_ISGID:
                    os.chmod(proc_path(fd), mode & ~stat.S_ISGID)
                    operations += content(node, attributes(node, mode & ~stat.S_ISGID))
            return operations

        self._source.change(unless_orphan(node, Metadata(node.identity)), perform, self._finisher(slot))

    def removexattr(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        node = self._node(nodeid)
        name = name_in(body)
        if name.startswith(HIDDEN_XATTRS):
            raise OSError(errno.ENODATA, "")

        def perform() -> list[Operation]:
            fd = self._fd(node)
            if name in ACL_XATTRS:
                tree_io.remove_xattr(fd, name)
            else:
                try:
                    os.removexattr(proc_path(fd), name)
                except OSError as error:
                    if not (slot.resent and error.errno == errno.ENODATA):
                        raise
            return content(node, (Kind.REMOVE_XATTR, node.identity, name))

        self._source.change(unless_orphan(node, Metadata(node.identity)), perform, self._finisher(slot))

    def getxattr(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        size, _ = abi.GETXATTR_IN.unpack_from(body)
        name = name_in(body[abi.GETXATTR_IN.size :])
        if name.startswith(HIDDEN_XATTRS):
            raise OSError(errno.ENODATA, "")
        value = os.getxattr(proc_path(self._fd(self._node(nodeid))), name)
        self._answer_sized(slot, value, size)

    def listxattr(self, ask: Ask) -> None:
        slot, nodeid, uid, _, _, body = ask
        size, _ = abi.GETXATTR_IN.unpack_from(body)
        hidden = (b"trusted.", *HIDDEN_XATTRS) if uid else HIDDEN_XATTRS  # xattr(7): trusted ones are for root only
        names = (os.fsencode(name) for name in os.listxattr(proc_path(self._fd(self._node(nodeid)))))
        self._answer_sized(slot, b"".join(name + b"\0" for name in names if not name.startswith(hidden)), size)


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    """A time for utimens_empty: nanoseconds, or one of the sentinels for now and unchanged."""
    if not valid & given:
        return linux_io.UTIME_OMIT
    if valid & now:
        return linux_io.UTIME_NOW
    if seconds >= 1 << 63:
        seconds -= 1 << 64
    return seconds * 1_000_000_000 + nanoseconds
