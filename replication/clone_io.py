"""A copy's tree cloned within its file system: file contents are shared, not copied (FICLONE, ioctl_ficlonerange(2)).

One directory is open at a time, and no path is longer than one name. Clones carry everything that `tree_io` describes,
times, holes and hard links, and the identity under another own name, so that it is never found twice.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Final

from hotpair.replication import linux_io, own_attributes_io, tree_io
from hotpair.replication.objects_io import O_PATH_FLAGS, PRIVATE_NAME, open_path, proc_path

DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PROBE_BYTES: Final = 4096


def can_clone(root_fd: int) -> bool:
    """Whether the file system of a copy shares contents between files, found by trying on nameless ones."""
    flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
    try:
        one = os.open(b".", flags, 0o600, dir_fd=root_fd)
        try:
            os.pwrite(one, b"x" * _PROBE_BYTES, 0)
            other = os.open(b".", flags, 0o600, dir_fd=root_fd)
            try:
                linux_io.clone_file(other, one)
            finally:
                os.close(other)
        finally:
            os.close(one)
    except OSError:
        return False  # whatever the reason is: it cannot be done here and now
    return True


class Cloner:
    """Clones one tree. ``known_as`` and ``to_be`` name the own attribute that holds the identity, there and here.

    ``before_each`` is called before each entry, and may raise to give up.
    """

    def __init__(self, mount_fd: int, known_as: bytes, to_be: bytes, before_each: Callable[[], None]) -> None:
        self._mount_fd = mount_fd
        self._known_as = known_as
        self._to_be = to_be
        self._before_each = before_each
        self._linked: dict[int, bytes] = {}  # inode with several names -> handle of its clone
        self._device = os.fstat(mount_fd).st_dev

    def clone(self, source_fd: int, clone_fd: int) -> None:
        """Fill the empty directory ``clone_fd`` with what ``source_fd`` holds, our own folder left out. OSError."""
        waiting = [(linux_io.name_to_handle(source_fd), linux_io.name_to_handle(clone_fd))]
        leave_out = PRIVATE_NAME
        while waiting:
            one, other = (linux_io.open_by_handle(self._mount_fd, handle, DIRECTORY_FLAGS) for handle in waiting.pop())
            try:
                with os.scandir(one) as entries:
                    for entry in entries:
                        name = os.fsencode(entry.name)
                        if name == leave_out:
                            continue
                        self._before_each()
                        self._entry(one, other, name, waiting)
                self._finish(one, other)  # its entries are all there, and none is added later
            finally:
                os.close(one)
                os.close(other)
            leave_out = b""

    def _entry(self, one: int, other: int, name: bytes, waiting: list[tuple[bytes, bytes]]) -> None:
        source = open_path(one, name)
        try:
            status = os.fstat(source)
            if status.st_dev != self._device:
                raise OSError(errno.EXDEV, f"{name!r} is on another file system")
            several = status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode)
            if several and status.st_ino in self._linked:
                self._link(self._linked[status.st_ino], other, name)
                return
            clone = self._make(source, status, other, name)
            try:
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((linux_io.name_to_handle(source), linux_io.name_to_handle(clone)))
                    return
                if several:
                    self._linked[status.st_ino] = linux_io.name_to_handle(clone)
                self._finish(source, clone)
            finally:
                os.close(clone)
        finally:
            os.close(source)

    def _link(self, handle: bytes, directory_fd: int, name: bytes) -> None:
        fd = linux_io.open_by_handle(self._mount_fd, handle, O_PATH_FLAGS)
        try:
            linux_io.linkat_empty(fd, directory_fd, name)
        finally:
            os.close(fd)

    def _make(self, source: int, status: os.stat_result, directory_fd: int, name: bytes) -> int:
        """The same kind of object, with the content; an O_PATH descriptor of it. Nobody else gets in meanwhile."""
        kind = stat.S_IFMT(status.st_mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=directory_fd)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(b"", dir_fd=source), name, dir_fd=directory_fd)
        elif kind == stat.S_IFREG:
            clone_content(source, directory_fd, name)
        else:
            os.mknod(name, kind | 0o600, status.st_rdev, dir_fd=directory_fd)
        return open_path(directory_fd, name)

    def _finish(self, source: int, clone: int) -> None:
        """Identity, owner, attributes, mode, and the times last."""
        identity = own_attributes_io.read(source, self._known_as)
        if identity is not None:
            own_attributes_io.write(clone, self._to_be, identity)
        tree_io.set_description(clone, tree_io.describe(source))
        status = os.fstat(source)
        linux_io.utimens_empty(clone, status.st_atime_ns, status.st_mtime_ns)


def clone_content(source: int, directory_fd: int, name: bytes) -> None:
    """A new file with the content of the one behind the O_PATH descriptor ``source``. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    content = os.open(proc_path(source), os.O_RDONLY | os.O_NOATIME | os.O_CLOEXEC)
    try:
        fd = os.open(name, flags, 0o600, dir_fd=directory_fd)
        try:
            linux_io.clone_file(fd, content)
        finally:
            os.close(fd)
    finally:
        os.close(content)
