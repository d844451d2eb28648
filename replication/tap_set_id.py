"""Set-user-id and set-group-id: the bits that a write, a truncation or a chown takes away, on both copies.

With HANDLE_KILLPRIV_V2 the kernel asks for it where it knows that the caller may not keep them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from hotpair.replication import fuse_abi as abi
from hotpair.replication.dirty_log import Metadata
from hotpair.replication.fuse_io import Slot
from hotpair.replication.nodes import Node
from hotpair.replication.objects_io import proc_path
from hotpair.replication.operations import Operation, attributes
from hotpair.replication.source import Source
from hotpair.replication.tap_answers import Answers
from hotpair.replication.tap_objects import KernelObjects, content, unless_orphan

SET_ID = stat.S_ISUID | stat.S_ISGID

in_header = abi.IN_HEADER.unpack_from


class SetIdBits:
    """Clears them."""

    def __init__(self, source: Source, objects: KernelObjects, answers: Answers) -> None:
        self._source = source
        self._fd = objects.fd
        self._error = answers.error

    def clear(self, node: Node, gid: int, pid: int, done: Callable[[OSError | None], None]) -> None:
        """Clear set-user-id and set-group-id as the kernel asks for it (HANDLE_KILLPRIV_V2), on both copies."""
        status = os.fstat(self._fd(node))
        node.has_set_id = bool(status.st_mode & SET_ID)
        if without_set_id(status, gid, pid) == stat.S_IMODE(status.st_mode):
            done(None)
            return

        def perform() -> list[Operation]:
            fd = self._fd(node)
            cleared = without_set_id(os.fstat(fd), gid, pid)
            os.chmod(proc_path(fd), cleared)
            node.has_set_id = None
            return content(node, attributes(node, cleared))

        self._source.change(unless_orphan(node, Metadata(node.identity)), perform, done)

    def clear_then_write(self, node: Node, offset: int, size: int, slot: Slot) -> None:
        """Serve a write with which the kernel asks for it."""

        def go_on(error: OSError | None) -> None:
            if error is None:
                self._source.write(node, offset, size, slot)
            else:
                self._error(slot, error.errno or errno.EIO)

        try:
            _, _, _, _, _, gid, pid, _, _ = in_header(slot.memory)
            self.clear(node, gid, pid, go_on)
        except OSError as error:
            self._error(slot, error.errno or errno.EIO)


def without_set_id(status: os.stat_result, gid: int, pid: int) -> int:
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
