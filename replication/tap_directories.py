"""The tap's requests that look into directories: what stands under a name, what names there are."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from hotpair.replication import fuse_abi as abi
from hotpair.replication import linux_io
from hotpair.replication.limits import CACHE_VALID_S
from hotpair.replication.nodes import Handle, Node
from hotpair.replication.objects_io import PRIVATE_NAME, open_path
from hotpair.replication.source import Source
from hotpair.replication.tap_answers import Answers, Ask, name_in
from hotpair.replication.tap_objects import KernelObjects


class Directories:
    """A public method serves the request of its name."""

    def __init__(self, source: Source, objects: KernelObjects, answers: Answers) -> None:
        self._source = source
        self._root, self._nodes, self._journal = objects.root, objects.nodes, objects.journal
        self._node, self._fd, self._node_for, self._entry = objects.node, objects.fd, objects.node_for, objects.entry
        self._answer, self._error = answers.answer, answers.error

    def lookup(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        parent = self._node(nodeid)
        name = name_in(body)
        if name == b"..":
            raise OSError(errno.ENOENT, "")
        if parent is self._root and name == PRIVATE_NAME:
            raise OSError(errno.ENOENT, "")
        try:
            fd = open_path(self._fd(parent), name)
        except FileNotFoundError:
            # A negative entry: the kernel may remember that there is nothing.
            self._answer(slot, abi.ENTRY_OUT_PREFIX.pack(0, 0, CACHE_VALID_S, 0, 0, 0) + bytes(abi.ATTR.size))
            return
        self._answer(slot, self._entry(self._node_for(fd, parent, name)))

    def readlink(self, ask: Ask) -> None:
        self._answer(ask[0], os.readlink(b"", dir_fd=self._fd(self._node(ask[1]))))

    def opendir(self, ask: Ask) -> None:
        node = self._node(ask[1])
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd(node))
        number = self._nodes.open(Handle(node, fd))
        self._journal.opened(number, node, True)
        self._answer(ask[0], abi.OPEN_OUT.pack(number, 0, 0))

    def releasedir(self, ask: Ask) -> None:
        number = abi.RELEASE_IN.unpack_from(ask[5])[0]
        handle = self._nodes.handles.pop(number, None)
        if handle is not None:  # None: sent a second time
            self._journal.released(number)
            os.close(handle.directory_fd)
        self._error(ask[0], 0)

    def fsyncdir(self, ask: Ask) -> None:
        slot, _, _, _, _, body = ask
        number, flags, _ = abi.FSYNC_IN.unpack_from(body)
        handle = self._nodes.handles[number]
        done: Callable[[int], None] = lambda error: self._error(slot, error)  # noqa: E731
        self._source.flushes.flush_directory(handle.node, handle.directory_fd, bool(flags & abi.FSYNC_FDATASYNC), done)

    def readdir(self, ask: Ask) -> None:
        self._list(ask, plus=False)

    def readdirplus(self, ask: Ask) -> None:
        self._list(ask, plus=True)

    def _list(self, ask: Ask, plus: bool) -> None:
        slot, _, _, _, _, body = ask
        number, offset, size, _, _, _, _ = abi.READ_IN.unpack_from(body)
        handle = self._nodes.handles[number]
        fd = handle.directory_fd
        if handle.position != offset:
            os.lseek(fd, offset, os.SEEK_SET)
        parts: list[bytes] = []
        room = size
        position = offset
        prefix = abi.ENTRY_OUT_PREFIX.size + abi.ATTR.size if plus else 0
        hide = handle.node is self._root
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
                return self._entry(self._node_for(open_path(self._fd(parent), name), parent, name))
            except FileNotFoundError:
                pass  # it went away between the listing and now
        return bytes(abi.ENTRY_OUT_PREFIX.size + abi.ATTR.size)
