"""The FUSE tap: the kernel's requests become reads of the local copy and changes of both.

Knows the FUSE protocol, nodes and handles. Must not know the link, sequence numbers or verdicts: every change goes to
the core (``source.Source``), which calls back when both copies have it.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from typing import Any

from hotpair.replication import fuse_abi as abi
from hotpair.replication import journal_io, linux_io, tree_io
from hotpair.replication.activity import ActivityLog
from hotpair.replication.dirty_log import Extents, Metadata, Names
from hotpair.replication.frames import Kind
from hotpair.replication.fuse_io import Slot, answer_init, make_slots
from hotpair.replication.limits import (
    BYTES_PER_TURN,
    CACHE_VALID_S,
    COLD_READS,
    MAX_BACKGROUND,
    NAME_BYTES,
    OTHERS_PER_TURN,
    REQUESTS_PER_TURN,
    XATTR_BYTES,
)
from hotpair.replication.nodes import Handle, Node, NodeTable
from hotpair.replication.objects_io import (
    ACL_XATTRS,
    HIDDEN_XATTRS,
    PRIVATE_NAME,
    Descriptors,
    ensure_identity,
    new_identity,
    open_path,
    proc_path,
    read_identity,
)
from hotpair.replication.source import Operation, PartlyApplied, Source, attributes

log = logging.getLogger("hotpair.replication")

TO_END = (1 << 64) - 1  # the last extent of a mark that reaches to the end of the file
SET_ID = stat.S_ISUID | stat.S_ISGID
SYNCHRONOUS = os.O_DSYNC | (os.O_SYNC & ~os.O_DSYNC)
FALLOCATE_MODES = (
    linux_io.FALLOC_FL_KEEP_SIZE | linux_io.FALLOC_FL_PUNCH_HOLE | linux_io.FALLOC_FL_ZERO_RANGE
)  # collapse and insert range are refused: they move extents, and no other tap knows them

write_request = abi.WRITE_REQUEST.unpack_from
write_answer = abi.WRITE_ANSWER.pack
in_header = abi.IN_HEADER.unpack_from
out_header = abi.OUT_HEADER.pack
BODY = abi.HEADER_SIZE

Ask = tuple[Slot, int, int, int, int, memoryview]  # slot, nodeid, uid, gid, pid, body


class FuseTap:
    """Serves one mount."""

    def __init__(
        self,
        fuse_fd: int,
        root_fd: int,
        source: Source,
        activity: ActivityLog,
        descriptor_limit: int,
        cache: str,
        journal_path: str,
        adopted: bool,
    ) -> None:
        self.fuse_fd = fuse_fd
        self.cold_read: Callable[[Slot, Node, int, int], bool]
        self.closed: Callable[[Node], None] = lambda _: None  # a file's descriptor is about to be closed
        self._root_fd = root_fd
        self._source = source
        self._activity = activity
        self._direct = cache == "direct"
        self._slots = make_slots()
        self.nodes = NodeTable()
        self.descriptors = Descriptors(root_fd, descriptor_limit)
        self.root = self._make_root()
        self._orphans_fd = tree_io.private_directory(root_fd, b"orphans")
        self.agreed = 0  # INIT flags
        self._intents: dict[int, journal_io.Intent] = {}
        if adopted:
            self._adopt(journal_io.read(journal_path))
        self._journal = journal_io.Journal(journal_path, self.nodes)
        self._clear_orphans()
        source.answer_write = self._answer_write
        source.fail_write = self._fail_write
        self._table: dict[int, Callable[[Ask], None]] = {
            abi.LOOKUP: self._lookup,
            abi.GETATTR: self._getattr,
            abi.SETATTR: self._setattr,
            abi.READLINK: self._readlink,
            abi.SYMLINK: self._symlink,
            abi.MKNOD: self._mknod,
            abi.MKDIR: self._mkdir,
            abi.UNLINK: self._unlink,
            abi.RMDIR: self._unlink,
            abi.RENAME: self._rename,
            abi.RENAME2: self._rename2,
            abi.LINK: self._link,
            abi.OPEN: self._open,
            abi.READ: self._read,
            abi.STATFS: self._statfs,
            abi.RELEASE: self._release,
            abi.FSYNC: self._fsync,
            abi.SETXATTR: self._setxattr,
            abi.GETXATTR: self._getxattr,
            abi.LISTXATTR: self._listxattr,
            abi.REMOVEXATTR: self._removexattr,
            abi.FLUSH: self._flush,
            abi.INIT: self._init,
            abi.OPENDIR: self._opendir,
            abi.READDIR: self._readdir,
            abi.READDIRPLUS: self._readdirplus,
            abi.RELEASEDIR: self._releasedir,
            abi.FSYNCDIR: self._fsyncdir,
            abi.CREATE: self._create,
            abi.FALLOCATE: self._fallocate,
            abi.LSEEK: self._lseek,
            abi.DESTROY: self._destroy,
        }

    def _make_root(self) -> Node:
        identity = ensure_identity(self._root_fd)
        fd = os.open(b".", os.O_PATH | os.O_CLOEXEC, dir_fd=self._root_fd)
        root = self.nodes.add(
            identity, linux_io.name_to_handle(self._root_fd), stat.S_IFDIR, fd, self._activity.marks_of(identity)
        )
        self.descriptors.pin(root)
        root.lookups = 1
        return root

    # --- adoption -------------------------------------------------------------------------------------------------

    def _adopt(self, restored: journal_io.Restored) -> None:
        """Take over the mount of a mirror process that has died: its nodes, its handles, its unanswered requests."""
        self.agreed = restored.agreed or 0
        self._intents = restored.intents
        journal_io.rebuild(restored, self.nodes, self._activity.marks_of)
        for text in os.listdir(self._orphans_fd):  # it may have died before it could write that down
            node = self.nodes.by_identity.get(bytes.fromhex(text)) if len(text) == 32 else None
            if node is not None:
                node.orphan = True
        for number, (nodeid, is_directory) in restored.handles.items():
            node = self.nodes.by_number.get(nodeid)
            if node is None:
                continue
            if is_directory:
                handle = self.nodes.handles[number]
                handle.directory_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd(node))
            else:
                node.opens += 1
                self._open_data(node)

    def ask_again(self) -> None:
        """Have the kernel send again what the dead mirror process had taken and not answered."""
        os.write(self.fuse_fd, out_header(16, abi.NOTIFY_RESEND, 0))

    def _clear_orphans(self) -> None:
        """Remove what a dead mirror process has left behind and nobody holds."""
        for text in os.listdir(self._orphans_fd):
            node = self.nodes.by_identity.get(bytes.fromhex(text)) if len(text) == 32 else None
            if node is None:
                tree_io.remove_tree(self._orphans_fd, os.fsencode(text))

    def close(self, unmounted: bool) -> None:
        """The end; the journal is of use only while there is a mount."""
        self._journal.close(forget=unmounted)

    # --- requests in, answers out ---------------------------------------------------------------------------------

    def take(self) -> int:
        """Take at most REQUESTS_PER_TURN requests from the kernel; how many there were.

        Raises OSError(ENODEV) when the mount is gone.
        """
        slots = self._slots
        handles = self.nodes.handles
        write = self._source.write
        fuse_fd = self.fuse_fd
        inflight = self._source.inflight
        others = 0
        for count in range(REQUESTS_PER_TURN):
            if not slots:
                return count
            slot = slots.pop()
            try:
                os.readv(fuse_fd, slot.vector)
            except BlockingIOError:
                slots.append(slot)
                return count
            except OSError as error:
                slots.append(slot)
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the request was interrupted before we had it
                raise
            memory = slot.memory
            (_, opcode, unique, _, _, _, _, _, _, number, offset, size, write_flags, _, flags, _) = write_request(
                memory
            )
            slot.unique = unique  # with the bit that says that it is sent again: the answer must carry it too
            if opcode == 16:  # abi.WRITE
                node = handles[number].node
                slot.size = size
                slot.node = node
                slot.error = 0
                slot.synchronous = bool(flags & SYNCHRONOUS) and not write_flags & abi.WRITE_CACHE
                if write_flags & abi.WRITE_KILL_SUIDGID and node.has_set_id is not False:
                    self._clear_set_id_then_write(node, offset, size, slot)
                else:
                    write(node, offset, size, slot)
                if size >= BYTES_PER_TURN:
                    return count + 1  # large writes are passed on one by one, so that both copies work at once
            else:
                self._dispatch(slot, opcode, unique)
                others += 1
                if others >= OTHERS_PER_TURN and inflight:
                    return count + 1  # a write waits for its acknowledgement, which may be there already
        return REQUESTS_PER_TURN

    @property
    def ready(self) -> bool:
        """Whether there is room for another request."""
        return bool(self._slots)

    def _dispatch(self, slot: Slot, opcode: int, unique: int) -> None:
        length, _, _, nodeid, uid, gid, pid, _, _ = in_header(slot.memory)
        slot.resent = bool(unique & abi.UNIQUE_RESEND)
        body = slot.memory[BODY:length]
        if opcode == abi.FORGET:
            self._slots.append(slot)
            self._forget(nodeid, abi.FORGET_IN.unpack_from(body)[0])
            return
        if opcode == abi.BATCH_FORGET:
            count, _ = abi.BATCH_FORGET_IN.unpack_from(body)
            for number, lookups in abi.FORGET_ONE.iter_unpack(body[8 : 8 + 16 * count]):
                self._forget(number, lookups)
            self._slots.append(slot)
            return
        if opcode == abi.INTERRUPT:
            self._slots.append(slot)  # a change cannot be taken back; the caller waits until it is done
            return
        serve = self._table.get(opcode)
        if serve is None:
            self._error(slot, errno.ENOSYS)
            return
        try:
            serve((slot, nodeid, uid, gid, pid, body))
        except OSError as error:
            if error.errno == errno.EIO:
                self._source.disk_failed(f"request {opcode}: {error.strerror}")
            self._error(slot, error.errno or errno.EIO)

    def _answer_write(self, slot: Slot) -> None:
        self._slots.append(slot)
        try:
            os.write(self.fuse_fd, write_answer(24, 0, slot.unique, slot.size, 0))
        except OSError as error:
            _unless_gone(error)

    def _fail_write(self, slot: Slot, code: int) -> None:
        self._error(slot, code)

    def _error(self, slot: Slot, code: int) -> None:
        """Answer with an error; 0 is a success without a body."""
        self._slots.append(slot)
        try:
            os.write(self.fuse_fd, out_header(16, -code, slot.unique))
        except OSError as error:
            _unless_gone(error)

    def _answer(self, slot: Slot, body: bytes | memoryview) -> None:
        self._slots.append(slot)
        try:
            os.writev(self.fuse_fd, (out_header(16 + len(body), 0, slot.unique), body))
        except OSError as error:
            _unless_gone(error)

    def _init(self, ask: Ask) -> None:
        answer, self.agreed = answer_init(ask[5], MAX_BACKGROUND)
        self._journal.begin(self.agreed)
        self._answer(ask[0], answer)

    def _destroy(self, ask: Ask) -> None:
        self._error(ask[0], 0)

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _node(self, nodeid: int) -> Node:
        node = self.nodes.by_number.get(nodeid)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def _fd(self, node: Node) -> int:
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
            self._journal.node(node)
            return node
        os.close(fd)
        if not node.orphan and (node.parent is not parent or node.name != name):
            node.parent = parent
            node.name = name
            self._journal.named(node)
        return node

    def _forget(self, nodeid: int, lookups: int) -> None:
        node = self.nodes.by_number.get(nodeid)
        if node is None:
            return
        node.lookups -= lookups
        self._journal.forgotten(nodeid, lookups)
        if node.lookups <= 0 and node is not self.root:
            self._source.forget(node)
            self.nodes.drop(node)
            self.descriptors.drop(node)
            self._activity.release(node.identity)
            if node.orphan:
                self._remove_orphan(node)

    def _remove_orphan(self, node: Node) -> None:
        try:
            tree_io.remove_tree(self._orphans_fd, node.identity.hex().encode())
        except OSError as error:
            log.error("cannot remove what nobody can reach any more: %s", error)

    def _attr(self, node: Node, fd: int) -> bytes:
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

    def _entry(self, node: Node) -> bytes:
        """struct fuse_entry_out; counts one reference of the kernel's."""
        attr = self._attr(node, self._fd(node))
        node.lookups += 1
        self._journal.looked_up(node)
        return abi.ENTRY_OUT_PREFIX.pack(node.nodeid, 0, CACHE_VALID_S, CACHE_VALID_S, 0, 0) + attr

    def _lookup(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        parent = self._node(nodeid)
        name = _name(body)
        if name == b"..":
            raise OSError(errno.ENOENT, "")
        if parent is self.root and name == PRIVATE_NAME:
            raise OSError(errno.ENOENT, "")
        try:
            fd = open_path(self._fd(parent), name)
        except FileNotFoundError:
            # A negative entry: the kernel may remember that there is nothing.
            self._answer(slot, abi.ENTRY_OUT_PREFIX.pack(0, 0, CACHE_VALID_S, 0, 0, 0) + bytes(abi.ATTR.size))
            return
        self._answer(slot, self._entry(self.node_for(fd, parent, name)))

    def _getattr(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, _ = ask
        node = self._node(nodeid)
        if self._source.has_local_writes:
            self._source.apply_local()
        fd = node.data_fd if node.data_fd >= 0 else self._fd(node)
        self._answer(slot, abi.ATTR_OUT_PREFIX.pack(CACHE_VALID_S, 0, 0) + self._attr(node, fd))

    def _readlink(self, ask: Ask) -> None:
        self._answer(ask[0], os.readlink(b"", dir_fd=self._fd(self._node(ask[1]))))

    def _statfs(self, ask: Ask) -> None:
        s = os.statvfs(self._root_fd)
        self._answer(
            ask[0],
            abi.STATFS_OUT.pack(
                s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree, s.f_bsize, NAME_BYTES, s.f_frsize, 0,
                0, 0, 0, 0, 0, 0,
            ),
        )  # fmt: skip

    # --- files ----------------------------------------------------------------------------------------------------

    def _open_data(self, node: Node) -> None:
        """Open the one descriptor through which a file is read, written and flushed."""
        if node.data_fd < 0:
            path = proc_path(self._fd(node))
            try:
                node.data_fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOATIME)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EROFS, errno.ETXTBSY):
                    raise
                node.data_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _open_answer(self, node: Node) -> bytes:
        node.opens += 1
        handle = self.nodes.open(Handle(node))
        self._journal.opened(handle, node, False)
        flags = abi.FOPEN_DIRECT_IO | abi.FOPEN_PARALLEL_DIRECT_WRITES if self._direct else abi.FOPEN_KEEP_CACHE
        return abi.OPEN_OUT.pack(handle, flags, 0)

    def _open(self, ask: Ask) -> None:
        slot, nodeid, _, gid, pid, body = ask
        node = self._node(nodeid)
        _, open_flags = abi.OPEN_IN.unpack_from(body)
        self._open_data(node)
        if open_flags & abi.OPEN_KILL_SUIDGID:
            self._clear_set_id(node, gid, pid, lambda _: self._answer(slot, self._open_answer(node)))
        else:
            self._answer(slot, self._open_answer(node))

    def _release(self, ask: Ask) -> None:
        slot, _, _, _, _, body = ask
        number, _, _, _ = abi.RELEASE_IN.unpack_from(body)
        if slot.resent and number not in self.nodes.handles:
            self._error(slot, 0)  # the mirror process that took it had done so
            return
        node = self.nodes.handles.pop(number).node
        self._journal.released(number)
        node.opens -= 1
        source = self._source
        if node.touched and not node.orphan:
            source.carry_times(node)
        self._error(slot, 0)
        if node.opens == 0:
            self._close_data(node)

    def _close_data(self, node: Node) -> None:
        """Close a file's descriptor, but not while what was written through it is unflushed: an error of the
        write-back would be reported to nobody."""
        if node.unflushed:
            self._source.flush_before_close(node, self._close_data)
        elif node.opens == 0 and node.data_fd >= 0:
            self.closed(node)
            os.close(node.data_fd)
            node.data_fd = -1

    def _flush(self, ask: Ask) -> None:
        node = self.nodes.handles[abi.FLUSH_IN.unpack_from(ask[5])[0]].node
        if node.touched:
            self._source.carry_times(node)
        self._error(ask[0], 0)

    def _fsync(self, ask: Ask) -> None:
        slot, _, _, _, _, body = ask
        number, flags, _ = abi.FSYNC_IN.unpack_from(body)
        node = self.nodes.handles[number].node
        self._source.flush(node, bool(flags & abi.FSYNC_FDATASYNC), lambda error: self._error(slot, error))

    def _read(self, ask: Ask) -> None:
        slot, _, _, _, _, body = ask
        number, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(body)
        node = self.nodes.handles[number].node
        if self._source.has_local_writes:
            self._source.apply_local()
        if node.cold and self.cold_read(slot, node, offset, size):
            node.cold -= 1
            self._slots.append(slot)
            return
        data = slot.memory[BODY : BODY + size]
        try:
            got = os.preadv(node.data_fd, (data,), offset, os.RWF_NOWAIT)
        except BlockingIOError:
            got = -1
        if got < size and not (got >= 0 and offset + got >= os.fstat(node.data_fd).st_size):
            # Not all of it is in the page cache: somebody else waits for the disk and answers the kernel. Finding that
            # out has cost as much as a read, so that the next ones are not tried here at all.
            node.cold = COLD_READS
            if self.cold_read(slot, node, offset, size):
                self._slots.append(slot)
                return
            got = os.preadv(node.data_fd, (data,), offset)
        self._answer(slot, data[:got])

    def _lseek(self, ask: Ask) -> None:
        number, offset, whence, _ = abi.LSEEK_IN.unpack_from(ask[5])
        node = self.nodes.handles[number].node
        if self._source.has_local_writes:
            self._source.apply_local()
        self._answer(ask[0], abi.LSEEK_OUT.pack(os.lseek(node.data_fd, offset, whence)))

    def _fallocate(self, ask: Ask) -> None:
        slot, _, uid, gid, pid, body = ask
        number, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(body)
        node = self.nodes.handles[number].node
        if mode & ~FALLOCATE_MODES:
            raise OSError(errno.EOPNOTSUPP, "")
        source = self._source

        def perform() -> list[Operation]:
            source.interrupt_chunks(node, offset, offset + length)
            node.unflushed += 1
            source.touch(node)
            try:
                linux_io.fallocate(node.data_fd, mode, offset, length)
            except OSError as error:  # a full disk may have extended the file before it said so
                size = os.fstat(node.data_fd).st_size
                raise PartlyApplied(error, self._content(node, (Kind.TRUNCATE, node.identity, size))) from error
            operations = self._content(node, (Kind.FALLOCATE, node.identity, mode, offset, length))
            # There is no kill flag for fallocate: the kernel leaves it to us, and only root may keep the bits.
            status = os.fstat(node.data_fd)
            cleared = _without_set_id(status, gid, pid)
            if uid and cleared != stat.S_IMODE(status.st_mode):
                os.chmod(proc_path(node.data_fd), cleared)
                operations += self._content(node, attributes(node, cleared))
            return operations

        shift = source.shift
        mark = Extents(node.identity, offset >> shift, (offset + length - 1) >> shift)
        source.change(self._marks(node, mark, Metadata(node.identity)), perform, self._finisher(slot))

    def _marks(self, node: Node, *marks: Any) -> tuple[Any, ...]:
        return () if node.orphan else marks

    def _content(self, node: Node, fields: tuple[Any, ...]) -> list[Operation]:
        return [] if node.orphan else [Operation((node,), fields)]

    def _finisher(self, slot: Slot, answer: Callable[[], bytes] | None = None) -> Callable[[OSError | None], None]:
        def done(error: OSError | None) -> None:
            if error is not None:
                self._error(slot, error.errno or errno.EIO)
            elif answer is None:
                self._error(slot, 0)
            else:
                self._answer(slot, answer())

        return done

    # --- attributes -----------------------------------------------------------------------------------------------

    def _setattr(self, ask: Ask) -> None:
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

        self._source.change(self._marks(node, *marks), perform, self._finisher(slot, answer))

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
            operations += self._content(node, (Kind.TRUNCATE, node.identity, size))
        if valid & (abi.FATTR_UID | abi.FATTR_GID):
            linux_io.fchownat_empty(fd, uid if valid & abi.FATTR_UID else -1, gid if valid & abi.FATTR_GID else -1)
        by_root = valid & (abi.FATTR_UID | abi.FATTR_GID) and not ask[2]  # then chown itself does what is right
        if valid & abi.FATTR_KILL_SUIDGID and not valid & abi.FATTR_MODE and before.st_mode & SET_ID and not by_root:
            os.chmod(path, _without_set_id(before, ask[3], ask[4]))  # by the group that it had
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
        return self._content(
            node,
            attributes(
                node,
                stat.S_IMODE(after.st_mode) if changed or valid & abi.FATTR_MODE else None,
                after.st_uid if owned else None,
                after.st_gid if owned else None,
                after.st_mtime_ns,
            ),
        )

    def _clear_set_id(self, node: Node, gid: int, pid: int, done: Callable[[OSError | None], None]) -> None:
        """Clear set-user-id and set-group-id as the kernel asks for it (HANDLE_KILLPRIV_V2), on both copies."""
        status = os.fstat(self._fd(node))
        node.has_set_id = bool(status.st_mode & SET_ID)
        if _without_set_id(status, gid, pid) == stat.S_IMODE(status.st_mode):
            done(None)
            return

        def perform() -> list[Operation]:
            fd = self._fd(node)
            cleared = _without_set_id(os.fstat(fd), gid, pid)
            os.chmod(proc_path(fd), cleared)
            node.has_set_id = None
            return self._content(node, attributes(node, cleared))

        self._source.change(self._marks(node, Metadata(node.identity)), perform, done)

    def _clear_set_id_then_write(self, node: Node, offset: int, size: int, slot: Slot) -> None:
        def go_on(error: OSError | None) -> None:
            if error is None:
                self._source.write(node, offset, size, slot)
            else:
                self._error(slot, error.errno or errno.EIO)

        try:
            _, _, _, _, _, gid, pid, _, _ = in_header(slot.memory)
            self._clear_set_id(node, gid, pid, go_on)
        except OSError as error:
            self._error(slot, error.errno or errno.EIO)

    def _setxattr(self, ask: Ask) -> None:
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
            operations = self._content(node, (Kind.SET_XATTR, node.identity, name, value))
            if kill & abi.SETXATTR_ACL_KILL_SGID:
                mode = stat.S_IMODE(os.fstat(fd).st_mode)
                if mode & stat.S_ISGID:
                    os.chmod(proc_path(fd), mode & ~stat.S_ISGID)
                    operations += self._content(node, attributes(node, mode & ~stat.S_ISGID))
            return operations

        self._source.change(self._marks(node, Metadata(node.identity)), perform, self._finisher(slot))

    def _removexattr(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        node = self._node(nodeid)
        name = _name(body)
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
            return self._content(node, (Kind.REMOVE_XATTR, node.identity, name))

        self._source.change(self._marks(node, Metadata(node.identity)), perform, self._finisher(slot))

    def _getxattr(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        size, _ = abi.GETXATTR_IN.unpack_from(body)
        name = _name(body[abi.GETXATTR_IN.size :])
        if name.startswith(HIDDEN_XATTRS):
            raise OSError(errno.ENODATA, "")
        value = os.getxattr(proc_path(self._fd(self._node(nodeid))), name)
        self._answer_sized(slot, value, size)

    def _listxattr(self, ask: Ask) -> None:
        slot, nodeid, uid, _, _, body = ask
        size, _ = abi.GETXATTR_IN.unpack_from(body)
        hidden = (b"trusted.", *HIDDEN_XATTRS) if uid else HIDDEN_XATTRS  # xattr(7): trusted ones are for root only
        names = (os.fsencode(name) for name in os.listxattr(proc_path(self._fd(self._node(nodeid)))))
        self._answer_sized(slot, b"".join(name + b"\0" for name in names if not name.startswith(hidden)), size)

    def _answer_sized(self, slot: Slot, value: bytes, size: int) -> None:
        if size == 0:
            self._answer(slot, abi.GETXATTR_OUT.pack(len(value), 0))
        elif len(value) > size:
            self._error(slot, errno.ERANGE)
        else:
            self._answer(slot, value)

    # --- names ----------------------------------------------------------------------------------------------------

    def _check_new_name(self, parent: Node, name: bytes) -> None:
        if len(name) > NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "")
        if parent is self.root and name == PRIVATE_NAME:
            raise OSError(errno.EPERM, "")

    def _make(
        self,
        ask: Ask,
        name: bytes,
        mode: int,
        umask: int,
        device: int = 0,
        link: bytes = b"",
        answer: Callable[[Node], bytes] | None = None,
    ) -> None:
        slot, nodeid, uid, gid, _, _ = ask
        parent = self._node(nodeid)
        self._check_new_name(parent, name)
        identity = new_identity()
        made: list[Node] = []
        source = self._source

        def perform() -> list[Operation]:
            try:
                fd = tree_io.create(self._fd(parent), name, identity, mode, umask, uid, gid, device, link)
            except FileExistsError:
                # The kernel asks for a new object only where it knows of none: it was made by the mirror that died
                if not slot.resent:
                    raise
                fd = open_path(self._fd(parent), name)
            what = tree_io.describe(fd)
            node = self.node_for(fd, parent, name)
            made.append(node)
            source.touch(parent)
            source.touch(node)
            return [
                Operation((parent,), (Kind.MAKE, parent.identity, name, node.identity, *what[:5], list(what.xattrs))),
                *source.made(node, parent),
            ]

        def body() -> bytes:
            return answer(made[0]) if answer is not None else self._entry(made[0])

        source.change((Names(parent.identity),), perform, self._finisher(slot, body))

    def _mkdir(self, ask: Ask) -> None:
        mode, umask = abi.MKDIR_IN.unpack_from(ask[5])
        self._make(ask, _name(ask[5][abi.MKDIR_IN.size :]), stat.S_IFDIR | mode, umask)

    def _mknod(self, ask: Ask) -> None:
        mode, rdev, umask, _ = abi.MKNOD_IN.unpack_from(ask[5])
        device = os.makedev((rdev & 0xFFF00) >> 8, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00))
        self._make(ask, _name(ask[5][abi.MKNOD_IN.size :]), mode, umask, device if rdev else 0)

    def _symlink(self, ask: Ask) -> None:
        name, _, link = bytes(ask[5]).rstrip(b"\0").partition(b"\0")
        self._make(ask, name, stat.S_IFLNK | 0o777, 0, 0, link)

    def _create(self, ask: Ask) -> None:
        _, mode, umask, _ = abi.CREATE_IN.unpack_from(ask[5])

        def answer(node: Node) -> bytes:
            self._open_data(node)
            return self._entry(node) + self._open_answer(node)

        self._make(ask, _name(ask[5][abi.CREATE_IN.size :]), stat.S_IFREG | stat.S_IMODE(mode), umask, answer=answer)

    def _link(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        parent = self._node(nodeid)
        node = self._node(abi.LINK_IN.unpack_from(body)[0])
        name = _name(body[abi.LINK_IN.size :])
        self._check_new_name(parent, name)
        if node.orphan:
            raise OSError(errno.ENOENT, "")

        def perform() -> list[Operation]:
            try:
                linux_io.linkat_empty(self._fd(node), self._fd(parent), name)
            except FileExistsError:
                if not slot.resent:
                    raise
            self._source.touch(parent)
            operation = Operation((node, parent), (Kind.LINK, node.identity, parent.identity, name))
            if node.parent is None:
                node.parent, node.name = parent, name
                self._journal.named(node)
            return [operation]

        marks = (Names(parent.identity), Metadata(node.identity))
        self._source.change(marks, perform, self._finisher(slot, lambda: self._entry(node)))

    def _unlink(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        parent = self._node(nodeid)
        name = _name(body)
        directory = in_header(slot.memory)[1] == abi.RMDIR
        if parent is self.root and name == PRIVATE_NAME:
            raise OSError(errno.ENOENT, "")

        def perform() -> list[Operation]:
            directory_fd = self._fd(parent)
            try:
                fd = open_path(directory_fd, name)
            except FileNotFoundError:
                if slot.resent:
                    return []  # done by the mirror that died; what the target lacks is marked
                raise
            try:
                identity = read_identity(fd) or b""
                node = self.nodes.by_identity.get(identity)
                links = os.fstat(fd).st_nlink
            finally:
                os.close(fd)
            last = directory or links == 1
            known_by_it = node is not None and not last and _is_known_by(node, parent, name)
            if node is not None and known_by_it:
                self._source.name_lost(node)
            self._remove_name(directory_fd, name, directory, node if last else None)
            if node is not None and known_by_it:
                node.parent, node.name = None, b""
                self._journal.named(node)
            operation = Operation(
                (parent, node) if directory and node is not None else (parent,),
                (Kind.RMDIR if directory else Kind.UNLINK, parent.identity, name, identity, last),
            )
            self._source.touch(parent)
            if last:
                self._source.after_sending(lambda: self._vanished(identity, node))
            return [operation]

        self._source.change((Names(parent.identity),), perform, self._finisher(slot))

    def _vanished(self, identity: bytes, node: Node | None) -> None:
        """The last name of an object is gone; the operation that says so has been sent, where it could be."""
        self._source.removed(identity)
        if node is not None:
            node.orphan = True
            node.declared = -1  # the target has dropped it
            self._journal.orphaned(node)

    def _remove_name(self, directory_fd: int, name: bytes, directory: bool, node: Node | None) -> None:
        """Remove a name; what the kernel still holds lives on among the orphans, where a new mirror finds it."""
        if node is None:
            if directory:
                os.rmdir(name, dir_fd=directory_fd)
            else:
                os.unlink(name, dir_fd=directory_fd)
            return
        if directory and any(True for _ in os.scandir(proc_path(self._fd(node)))):
            raise OSError(errno.ENOTEMPTY, "")
        linux_io.renameat2(directory_fd, name, self._orphans_fd, node.identity.hex().encode(), 0)

    def _rename(self, ask: Ask) -> None:
        body = ask[5]
        self._rename_names(ask, abi.RENAME_IN.unpack_from(body)[0], 0, body[abi.RENAME_IN.size :])

    def _rename2(self, ask: Ask) -> None:
        newdir, flags, _ = abi.RENAME2_IN.unpack_from(ask[5])
        self._rename_names(ask, newdir, flags, ask[5][abi.RENAME2_IN.size :])

    def _rename_names(self, ask: Ask, newdir: int, flags: int, names: memoryview) -> None:
        slot, nodeid, _, _, _, _ = ask
        old_parent, new_parent = self._node(nodeid), self._node(newdir)
        old, _, rest = bytes(names).partition(b"\0")
        new = rest.rstrip(b"\0")
        if flags & ~(linux_io.RENAME_NOREPLACE | linux_io.RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "")
        self._check_new_name(old_parent, old)
        self._check_new_name(new_parent, new)
        exchange = bool(flags & linux_io.RENAME_EXCHANGE)

        def perform() -> list[Operation]:
            old_fd, new_fd = self._fd(old_parent), self._fd(new_parent)
            if slot.resent and self._was_renamed(slot.unique & ~abi.UNIQUE_RESEND, old_fd, old, new_fd, new):
                return []  # done by the mirror that died; what the target lacks is marked
            moved = self._existing(old_fd, old)
            replaced, links = self._existing_links(new_fd, new)
            if moved is not None and moved is replaced and not exchange:
                linux_io.renameat2(old_fd, old, new_fd, new, flags)  # two names of one file: nothing happens
                return []
            vanishes = replaced is not None and not exchange and (links == 1 or replaced.is_directory)
            one_name_less = replaced is not None and not exchange and not vanishes
            if replaced is not None:
                moving = moved.identity if moved is not None else b""
                self._journal.intent(slot.unique & ~abi.UNIQUE_RESEND, moving, replaced.identity, exchange)
            known_by_it = replaced is not None and one_name_less and _is_known_by(replaced, new_parent, new)
            if replaced is not None and known_by_it:
                self._source.name_lost(replaced)
            if vanishes and replaced is not None and not flags:
                self._rename_over(old_fd, old, new_fd, new, replaced)
                gone = replaced
                self._source.after_sending(lambda: self._vanished(gone.identity, gone))
            else:
                linux_io.renameat2(old_fd, old, new_fd, new, flags)
            if replaced is not None and known_by_it:
                replaced.parent, replaced.name = None, b""
                self._journal.named(replaced)
            if moved is not None:
                moved.parent, moved.name = new_parent, new
                self._journal.named(moved)
            if exchange and replaced is not None:
                replaced.parent, replaced.name = old_parent, old
                self._journal.named(replaced)
            self._source.touch(old_parent)
            self._source.touch(new_parent)
            vanished = replaced.identity if replaced is not None and vanishes else b""
            fields = (Kind.RENAME, old_parent.identity, old, new_parent.identity, new, flags, vanished)
            # A directory that is replaced must be known to be empty there as well
            emptied = (replaced,) if replaced is not None and vanishes and replaced.is_directory else ()
            return [Operation((old_parent, new_parent, *emptied), fields)]

        marks = (Names(old_parent.identity), Names(new_parent.identity))
        self._source.change(marks, perform, self._finisher(slot))

    def _was_renamed(self, unique: int, old_fd: int, old: bytes, new_fd: int, new: bytes) -> bool:
        """Whether a rename that is sent a second time has happened; one that stopped half-way is finished."""
        intent = self._intents.get(unique)
        if intent is None:
            return not _exists(old_fd, old) and _exists(new_fd, new)
        moved, replaced, exchange = intent
        at_new, _ = self._existing_links(new_fd, new)
        if at_new is None or at_new.identity != moved:
            return False
        left, links = self._existing_links(old_fd, old)
        if left is not None and left.identity == replaced and links == 1 and not exchange:
            self._remove_name(old_fd, old, left.is_directory, left)
            left.orphan = True
        return True

    def _existing(self, directory_fd: int, name: bytes) -> Node | None:
        return self._existing_links(directory_fd, name)[0]

    def _existing_links(self, directory_fd: int, name: bytes) -> tuple[Node | None, int]:
        """The node of what stands under ``name``, if the kernel knows it, and its number of links."""
        try:
            fd = open_path(directory_fd, name)
        except FileNotFoundError:
            return None, 0
        try:
            return self.nodes.by_identity.get(read_identity(fd) or b""), os.fstat(fd).st_nlink
        finally:
            os.close(fd)

    def _rename_over(self, old_fd: int, old: bytes, new_fd: int, new: bytes, replaced: Node) -> None:
        """A rename that takes the last name of an object that the kernel holds: it goes among the orphans.

        In one step: the two change places, then what was replaced leaves the old name. A crash in between leaves it
        under the old name, where reintegration or the VM finds both objects.
        """
        if replaced.is_directory and any(True for _ in os.scandir(proc_path(self._fd(replaced)))):
            raise OSError(errno.ENOTEMPTY, "")
        source_kind = stat.S_IFMT(os.stat(old, dir_fd=old_fd, follow_symlinks=False).st_mode)
        if replaced.is_directory != (source_kind == stat.S_IFDIR):
            linux_io.renameat2(old_fd, old, new_fd, new, 0)  # fails with the right error
        linux_io.renameat2(old_fd, old, new_fd, new, linux_io.RENAME_EXCHANGE)
        linux_io.renameat2(old_fd, old, self._orphans_fd, replaced.identity.hex().encode(), 0)

    # --- directories ----------------------------------------------------------------------------------------------

    def _opendir(self, ask: Ask) -> None:
        node = self._node(ask[1])
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd(node))
        number = self.nodes.open(Handle(node, fd))
        self._journal.opened(number, node, True)
        self._answer(ask[0], abi.OPEN_OUT.pack(number, 0, 0))

    def _releasedir(self, ask: Ask) -> None:
        number = abi.RELEASE_IN.unpack_from(ask[5])[0]
        handle = self.nodes.handles.pop(number, None)
        if handle is not None:  # None: sent a second time
            self._journal.released(number)
            os.close(handle.directory_fd)
        self._error(ask[0], 0)

    def _fsyncdir(self, ask: Ask) -> None:
        slot, _, _, _, _, body = ask
        number, flags, _ = abi.FSYNC_IN.unpack_from(body)
        handle = self.nodes.handles[number]
        done: Callable[[int], None] = lambda error: self._error(slot, error)  # noqa: E731
        self._source.flush_directory(handle.node, handle.directory_fd, bool(flags & abi.FSYNC_FDATASYNC), done)

    def _readdir(self, ask: Ask) -> None:
        self._list(ask, plus=False)

    def _readdirplus(self, ask: Ask) -> None:
        self._list(ask, plus=True)

    def _list(self, ask: Ask, plus: bool) -> None:
        slot, _, _, _, _, body = ask
        number, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(body)
        handle = self.nodes.handles[number]
        fd = handle.directory_fd
        if handle.position != offset:
            os.lseek(fd, offset, os.SEEK_SET)
        parts: list[bytes] = []
        room = size
        position = offset
        prefix = abi.ENTRY_OUT_PREFIX.size + abi.ATTR.size if plus else 0
        hide = handle.node is self.root
        while True:
            # An entry of the kernel's listing is never longer than ours, so what is read here fits
            entries = linux_io.getdents64(fd, min(32768, room)) if room >= 280 + prefix else []
            if not entries:
                break
            full = False
            for ino, following, kind, name in entries:
                if hide and name == PRIVATE_NAME:
                    position = following
                    continue
                length = (24 + len(name) + 7) & ~7
                if prefix + length > room:
                    full = True
                    break
                if plus:
                    parts.append(self._plus(handle.node, name))
                parts.append(abi.DIRENT.pack(ino, following, len(name), kind) + name.ljust(length - 24, b"\0"))
                room -= prefix + length
                position = following
            if full:
                os.lseek(fd, position, os.SEEK_SET)
                break
        handle.position = position
        self._answer(slot, b"".join(parts))

    def _plus(self, parent: Node, name: bytes) -> bytes:
        """The entry of a READDIRPLUS answer; all zero means that the kernel looks it up itself when it needs it."""
        if name not in (b".", b".."):
            try:
                return self._entry(self.node_for(open_path(self._fd(parent), name), parent, name))
            except FileNotFoundError:
                pass  # it went away between the listing and now
        return bytes(abi.ENTRY_OUT_PREFIX.size + abi.ATTR.size)


def _exists(directory_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_known_by(node: Node, parent: Node, name: bytes) -> bool:
    """Whether this is the name by which we know an object. The parent may have been forgotten and looked up again."""
    return node.parent is not None and node.parent.identity == parent.identity and node.name == name


def _name(body: memoryview) -> bytes:
    """A name or path that ends with a NUL byte."""
    return bytes(body).rstrip(b"\0")


def _without_set_id(status: os.stat_result, gid: int, pid: int) -> int:
    """The permissions that a change by a caller without CAP_FSETID leaves (fs/attr.c, setattr_should_drop_suidgid).

    Set-group-id without group execute stays for members of the group.
    """
    mode = stat.S_IMODE(status.st_mode) & ~stat.S_ISUID
    if mode & stat.S_ISGID and (mode & stat.S_IXGRP or not _in_group(status.st_gid, gid, pid)):
        mode &= ~stat.S_ISGID
    return mode


def _in_group(wanted: int, gid: int, pid: int) -> bool:
    """Whether a caller is in a group. FUSE tells the effective group only, proc(5) the others; gone means no."""
    if wanted == gid:
        return True
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            groups = next((line for line in file if line.startswith(b"Groups:")), b"")
    except OSError:
        return False
    return str(wanted).encode() in groups.split()


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    """A time for utimens_empty: nanoseconds, or one of the sentinels for now and unchanged."""
    if not valid & given:
        return linux_io.UTIME_OMIT
    if valid & now:
        return linux_io.UTIME_NOW
    if seconds >= 1 << 63:
        seconds -= 1 << 64
    return seconds * 1_000_000_000 + nanoseconds


def _unless_gone(error: OSError) -> None:
    """ENOENT: the request was given up meanwhile. ENODEV: the mount is gone. Nobody waits for the answer."""
    if error.errno not in (errno.ENOENT, errno.ENODEV):
        raise error
