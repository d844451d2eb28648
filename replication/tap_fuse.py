"""The FUSE tap: the kernel's requests become reads of the local copy and changes of both.

Knows the FUSE protocol; its rooms know nodes and handles: objects (tap_objects), directories, names, files, attributes
and set-id bits. None of them must know the link, sequence numbers or verdicts: every change goes to the core
(``source.Source``), which calls back when both copies have it.

Here are the loop that takes requests, the table of operations, and WRITE from its request to its answer: the hot path.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from hotpair.replication import fuse_abi as abi
from hotpair.replication.activity import ActivityLog
from hotpair.replication.fuse_io import Slot, answer_init, make_slots
from hotpair.replication.limits import BYTES_PER_TURN, MAX_BACKGROUND, OTHERS_PER_TURN, REQUESTS_PER_TURN
from hotpair.replication.linux_io import AioQueue
from hotpair.replication.source import Source
from hotpair.replication.tap_answers import Answers, Ask, out_header, unless_gone
from hotpair.replication.tap_attributes import Attributes
from hotpair.replication.tap_directories import Directories
from hotpair.replication.tap_files import Files
from hotpair.replication.tap_names import NameChanges
from hotpair.replication.tap_objects import KernelObjects
from hotpair.replication.tap_set_id import SetIdBits

SYNCHRONOUS = os.O_DSYNC | (os.O_SYNC & ~os.O_DSYNC)

write_request = abi.WRITE_REQUEST.unpack_from
write_answer = abi.WRITE_ANSWER.pack
in_header = abi.IN_HEADER.unpack_from
BODY = abi.HEADER_SIZE


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
        slots: list[Slot] | None = None,
        reads: AioQueue | None = None,
    ) -> None:
        """``slots`` and ``reads``: of its own, if none are given; both cost milliseconds."""
        self.fuse_fd = fuse_fd
        self._source = source
        self._slots = make_slots() if slots is None else slots
        self._answers = answers = Answers(fuse_fd, self._slots)
        self.objects = objects = KernelObjects(root_fd, source, activity, descriptor_limit, journal_path, adopted)
        self.nodes = objects.nodes
        self.root = objects.root
        self._set_id = SetIdBits(source, objects, answers)
        self.files = Files(source, objects, self._set_id, answers, cache == "direct", reads)
        source.answer_write = self._answer_write
        source.fail_write = answers.error
        directories = Directories(source, objects, answers)
        names = NameChanges(source, objects, self.files, answers)
        attributes = Attributes(source, objects, answers)
        self._table: dict[int, Callable[[Ask], None]] = {
            abi.LOOKUP: directories.lookup,
            abi.GETATTR: attributes.getattr,
            abi.SETATTR: attributes.setattr,
            abi.READLINK: directories.readlink,
            abi.SYMLINK: names.symlink,
            abi.MKNOD: names.mknod,
            abi.MKDIR: names.mkdir,
            abi.UNLINK: names.unlink,
            abi.RMDIR: names.unlink,
            abi.RENAME: names.rename,
            abi.RENAME2: names.rename2,
            abi.LINK: names.link,
            abi.OPEN: self.files.open,
            abi.READ: self.files.read,
            abi.STATFS: attributes.statfs,
            abi.RELEASE: self.files.release,
            abi.FSYNC: self.files.fsync,
            abi.SETXATTR: attributes.setxattr,
            abi.GETXATTR: attributes.getxattr,
            abi.LISTXATTR: attributes.listxattr,
            abi.REMOVEXATTR: attributes.removexattr,
            abi.FLUSH: self.files.flush,
            abi.INIT: self._init,
            abi.OPENDIR: directories.opendir,
            abi.READDIR: directories.readdir,
            abi.READDIRPLUS: directories.readdirplus,
            abi.RELEASEDIR: directories.releasedir,
            abi.FSYNCDIR: directories.fsyncdir,
            abi.CREATE: names.create,
            abi.FALLOCATE: self.files.fallocate,
            abi.LSEEK: self.files.lseek,
            abi.DESTROY: self._destroy,
        }

    def ask_again(self) -> None:
        """Have the kernel send again what the dead mirror process had taken and not answered."""
        os.write(self.fuse_fd, out_header(16, abi.NOTIFY_RESEND, 0))

    def close(self, unmounted: bool) -> None:
        """The end; the journal is of use only while there is a mount."""
        self.files.cold_reads.close()
        self.objects.close(unmounted)

    # --- requests in, answers out ---------------------------------------------------------------------------------

    def take(self) -> int:
        """Take at most REQUESTS_PER_TURN requests from the kernel; how many there were.

        Raises OSError(ENODEV) when the mount is gone.
        """
        source = self._source
        slots = self._slots
        handles = self.nodes.handles
        write = source.write
        fuse_fd = self.fuse_fd
        inflight = source.inflight
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
                    self._set_id.clear_then_write(node, offset, size, slot)
                else:
                    write(node, offset, size, slot)
                    if len(inflight) == 1 and source.out:  # nothing else keeps the target busy: it begins now, not
                        source.send()  # after another look for requests
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

    def _answer_write(self, slot: Slot) -> None:
        self._slots.append(slot)
        try:
            os.write(self.fuse_fd, write_answer(24, 0, slot.unique, slot.size, 0))
        except OSError as error:
            unless_gone(error)

    def _dispatch(self, slot: Slot, opcode: int, unique: int) -> None:
        length, _, _, nodeid, uid, gid, pid, _, _ = in_header(slot.memory)
        slot.resent = bool(unique & abi.UNIQUE_RESEND)
        body = slot.memory[BODY:length]
        if opcode == abi.FORGET:
            self._slots.append(slot)
            self.objects.forget(nodeid, abi.FORGET_IN.unpack_from(body)[0])
            return
        if opcode == abi.BATCH_FORGET:
            count, _ = abi.BATCH_FORGET_IN.unpack_from(body)
            for number, lookups in abi.FORGET_ONE.iter_unpack(body[8 : 8 + 16 * count]):
                self.objects.forget(number, lookups)
            self._slots.append(slot)
            return
        if opcode == abi.INTERRUPT:
            self._slots.append(slot)  # a change cannot be taken back; the caller waits until it is done
            return
        serve = self._table.get(opcode)
        if serve is None:
            self._answers.error(slot, errno.ENOSYS)
            return
        try:
            serve((slot, nodeid, uid, gid, pid, body))
        except OSError as error:
            if error.errno == errno.EIO:
                self._source.disk_failed(f"request {opcode}: {error.strerror}")
            self._answers.error(slot, error.errno or errno.EIO)

    def _init(self, ask: Ask) -> None:
        answer, agreed = answer_init(ask[5], MAX_BACKGROUND)
        self.objects.begin(agreed)
        self._answers.answer(ask[0], answer)

    def _destroy(self, ask: Ask) -> None:
        self._answers.error(ask[0], 0)
