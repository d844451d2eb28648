"""The tap's requests about open files, all but WRITE (tap_fuse.py): open, read, flush, seek, allocate, release."""

from __future__ import annotations

import errno
import os
import stat

from hotpair.replication import fuse_abi as abi
from hotpair.replication import linux_io
from hotpair.replication.cold_reads_io import ColdReads
from hotpair.replication.dirty_log import Extents, Metadata
from hotpair.replication.frames import Kind
from hotpair.replication.limits import COLD_READS
from hotpair.replication.linux_io import AioQueue
from hotpair.replication.nodes import Handle, Node
from hotpair.replication.objects_io import proc_path
from hotpair.replication.operations import Operation, PartlyApplied, attributes
from hotpair.replication.source import Source
from hotpair.replication.tap_answers import Answers, Ask
from hotpair.replication.tap_objects import KernelObjects, content, unless_orphan
from hotpair.replication.tap_set_id import SetIdBits, without_set_id

FALLOCATE_MODES = (
    linux_io.FALLOC_FL_KEEP_SIZE | linux_io.FALLOC_FL_PUNCH_HOLE | linux_io.FALLOC_FL_ZERO_RANGE
)  # collapse and insert range are refused: they move extents, and no other tap knows them

BODY = abi.HEADER_SIZE

NOT_AT_ONCE = frozenset({errno.EAGAIN, errno.EOPNOTSUPP})  # not in the page cache; a file system that cannot tell


class Files:
    """A public method serves the request of its name."""

    def __init__(
        self,
        source: Source,
        objects: KernelObjects,
        set_id: SetIdBits,
        answers: Answers,
        direct: bool,
        reads: AioQueue | None = None,
    ) -> None:
        """``direct``: the kernel does not cache what is in the files."""
        self.cold_reads = ColdReads(answers, source.disk_failed, reads)
        self._source = source
        self._direct = direct
        self._nodes, self._journal = objects.nodes, objects.journal
        self._node, self._open_data = objects.node, objects.open_data
        self._clear_set_id = set_id.clear
        self._slots = answers.slots
        self._answer, self._error, self._finisher = answers.answer, answers.error, answers.finisher

    def open(self, ask: Ask) -> None:
        slot, nodeid, _, gid, pid, body = ask
        node = self._node(nodeid)
        _, open_flags = abi.OPEN_IN.unpack_from(body)
        self._open_data(node)
        if open_flags & abi.OPEN_KILL_SUIDGID:
            self._clear_set_id(node, gid, pid, lambda _: self._answer(slot, self.open_answer(node)))
        else:
            self._answer(slot, self.open_answer(node))

    def open_answer(self, node: Node) -> bytes:
        """A new handle of the file: struct fuse_open_out."""
        node.opens += 1
        handle = self._nodes.open(Handle(node))
        self._journal.opened(handle, node, False)
        flags = abi.FOPEN_DIRECT_IO | abi.FOPEN_PARALLEL_DIRECT_WRITES if self._direct else abi.FOPEN_KEEP_CACHE
        return abi.OPEN_OUT.pack(handle, flags, 0)

    def release(self, ask: Ask) -> None:
        slot, _, _, _, _, body = ask
        number, _, _, _ = abi.RELEASE_IN.unpack_from(body)
        if slot.resent and number not in self._nodes.handles:
            self._error(slot, 0)  # the mirror process that took it had done so
            return
        node = self._nodes.handles.pop(number).node
        self._journal.released(number)
        node.opens -= 1
        source = self._source
        if node.touched and not node.orphan:
            source.times.carry(node)
        self._error(slot, 0)
        if node.opens == 0:
            self._close_data(node)

    def _close_data(self, node: Node) -> None:
        """Close a file's descriptor, but not while what was written through it is unflushed: an error of the
        write-back would be reported to nobody."""
        if node.unflushed:
            self._source.flushes.flush_before_close(node, self._close_data)
        elif node.opens == 0 and node.data_fd >= 0:
            self.cold_reads.close_file(node)
            os.close(node.data_fd)
            node.data_fd = -1

    def flush(self, ask: Ask) -> None:
        node = self._nodes.handles[abi.FLUSH_IN.unpack_from(ask[5])[0]].node
        if node.touched:
            self._source.times.carry(node)
        self._error(ask[0], 0)

    def fsync(self, ask: Ask) -> None:
        slot, _, _, _, _, body = ask
        number, flags, _ = abi.FSYNC_IN.unpack_from(body)
        node = self._nodes.handles[number].node
        self._source.flushes.flush(node, bool(flags & abi.FSYNC_FDATASYNC), lambda error: self._error(slot, error))

    def read(self, ask: Ask) -> None:
        slot, _, _, _, _, body = ask
        number, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(body)
        node = self._nodes.handles[number].node
        if self._source.has_local_writes:
            self._source.apply_local()
        if node.cold and not node.unflushed:  # what is not written back yet is in the page cache
            node.cold -= 1
            self.cold_reads.read(slot, node, offset, size)
            return
        data = slot.memory[BODY : BODY + size]
        try:
            got = os.preadv(node.data_fd, (data,), offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno not in NOT_AT_ONCE:
                raise
            got = -1
        if got < size and not (got >= 0 and offset + got >= os.fstat(node.data_fd).st_size):
            node.cold = COLD_READS  # to find out that it is not in the page cache has cost as much as a read
            self.cold_reads.read(slot, node, offset, size)
            return
        self._answer(slot, data[:got])

    def lseek(self, ask: Ask) -> None:
        number, offset, whence, _ = abi.LSEEK_IN.unpack_from(ask[5])
        node = self._nodes.handles[number].node
        if self._source.has_local_writes:
            self._source.apply_local()
        self._answer(ask[0], abi.LSEEK_OUT.pack(os.lseek(node.data_fd, offset, whence)))

    def fallocate(self, ask: Ask) -> None:
        slot, _, uid, gid, pid, body = ask
        number, offset, length, mode, _ = abi.FALLOCATE_IN.unpack_from(body)
        node = self._nodes.handles[number].node
        if mode & ~FALLOCATE_MODES:
            raise OSError(errno.EOPNOTSUPP, "")
        source = self._source

        def perform() -> list[Operation]:
            source.interrupt_chunks(node, offset, offset + length)
            node.unflushed += 1
            source.times.touch(node)
            try:
                linux_io.fallocate(node.data_fd, mode, offset, length)
            except OSError as error:  # a full disk may have extended the file before it said so
                size = os.fstat(node.data_fd).st_size
                raise PartlyApplied(error, content(node, (Kind.TRUNCATE, node.identity, size))) from error
            operations = content(node, (Kind.FALLOCATE, node.identity, mode, offset, length))
            # There is no kill flag for fallocate: the kernel leaves it to us, and only root may keep the bits.
            status = os.fstat(node.data_fd)
            cleared = without_set_id(status, gid, pid)
            if uid and cleared != stat.S_IMODE(status.st_mode):
                os.chmod(proc_path(node.data_fd), cleared)
                operations += content(node, attributes(node, cleared))
            return operations

        shift = source.shift
        mark = Extents(node.identity, offset >> shift, (offset + length - 1) >> shift)
        source.change(unless_orphan(node, mark, Metadata(node.identity)), perform, self._finisher(slot))
