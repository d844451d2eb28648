"""Files and directories as objects with an identity, held by descriptors and never by path.

An object's identity is a 128-bit number in an extended attribute that travels with it to the other copy. It is reached
through an O_PATH descriptor; because a tree may hold more objects than a process may hold descriptors, the least
recently used ones are closed and opened again by the object's file handle (open_by_handle_at(2)), which stays right
when the object is renamed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections import OrderedDict
from typing import Final

from hotpair.replication import linux_io, own_attributes_io
from hotpair.replication.errors import BadConfiguration, WrongDirectory
from hotpair.replication.own_attributes_io import HIDDEN_XATTRS as HIDDEN_XATTRS

IDENTITY_SIZE: Final = 16
PRIVATE_NAME: Final = b".hotpair"  # our own folder in the root of the data, hidden from the mount: orphans and trash

ACL_XATTRS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
O_PATH_FLAGS: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
NO_DATA: Final = frozenset({errno.ENODATA, errno.EOPNOTSUPP})


def proc_path(fd: int) -> bytes:
    """A path that leads to what ``fd`` refers to, also for O_PATH descriptors and symlinks (proc(5))."""
    return b"/proc/self/fd/%d" % fd


def new_identity() -> bytes:
    """A fresh random identity."""
    return os.urandom(IDENTITY_SIZE)


def read_identity(fd: int) -> bytes | None:
    """The identity of the object behind ``fd``, or None when it has none yet."""
    identity = own_attributes_io.read(fd, own_attributes_io.IDENTITY)
    return identity if identity is not None and len(identity) == IDENTITY_SIZE else None


def write_identity(fd: int, identity: bytes) -> None:
    """Give the object behind ``fd`` its identity."""
    own_attributes_io.write(fd, own_attributes_io.IDENTITY, identity)


def ensure_identity(fd: int) -> bytes:
    """The identity of the object behind ``fd``; one is made and stored when it has none."""
    identity = read_identity(fd)
    if identity is not None:
        return identity
    identity = new_identity()
    try:
        own_attributes_io.write(fd, own_attributes_io.IDENTITY, identity, os.XATTR_CREATE)
    except FileExistsError:  # the helper and the loop met here; the first one counts
        identity = read_identity(fd)
        if identity is None:
            raise
    return identity


def open_path(directory_fd: int, name: bytes) -> int:
    """An O_PATH descriptor of ``name``, which is not followed when it is a symlink."""
    return os.open(name, O_PATH_FLAGS, dir_fd=directory_fd)


def check_name(name: object) -> bytes:
    """``name`` if it is one path component that may come from the peer. Raises OSError(EINVAL) otherwise."""
    if type(name) is not bytes or not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise OSError(errno.EINVAL, f"{name!r} is not a file name")
    return name


class Object:
    """One file, directory, symlink or special file of a copy."""

    __slots__ = ("fd", "handle", "identity", "kind")

    def __init__(self, identity: bytes, handle: bytes, kind: int, fd: int = -1) -> None:
        self.identity = identity
        self.handle = handle  # linux_io.name_to_handle
        self.kind = kind  # S_IFMT of its mode
        self.fd = fd  # O_PATH descriptor, -1 while closed


class Descriptors:
    """The O_PATH descriptors of one copy's objects, at most ``limit`` of them open."""

    def __init__(self, root_fd: int, limit: int) -> None:
        self._root_fd = root_fd
        self._limit = limit
        self._open: OrderedDict[Object, None] = OrderedDict()
        self._pinned: list[Object] = []

    def adopt(self, item: Object) -> None:
        """Take charge of the descriptor that ``item`` was made with."""
        self._open[item] = None
        if len(self._open) > self._limit:
            oldest, _ = self._open.popitem(last=False)
            os.close(oldest.fd)
            oldest.fd = -1

    def pin(self, item: Object) -> None:
        """Keep the descriptor of ``item`` open until ``close``: the root's."""
        self._pinned.append(item)

    def get(self, item: Object) -> int:
        """The object's O_PATH descriptor, valid until the next call of ``adopt`` or ``get``.

        Raises OSError(ESTALE) when the object is gone.
        """
        if item.fd >= 0:
            if len(self._open) > self._limit // 2 and item in self._open:
                self._open.move_to_end(item)
            return item.fd
        item.fd = linux_io.open_by_handle(self._root_fd, item.handle, O_PATH_FLAGS)
        self.adopt(item)
        return item.fd

    def drop(self, item: Object) -> None:
        """Close the object's descriptor, if it is open."""
        if item.fd >= 0:
            del self._open[item]
            os.close(item.fd)
            item.fd = -1

    def close(self) -> None:
        """Close all of them."""
        for item in [*self._open, *self._pinned]:
            os.close(item.fd)
            item.fd = -1
        self._open.clear()
        self._pinned.clear()


def open_root(path: bytes, expected: bytes | None) -> int:
    """A descriptor of a copy's root directory, locked against a second mirror process.

    ``expected``: the identity that the durable record knows it by; None: there is no record yet, and it gets one.
    Raises BadConfiguration when it cannot hold a copy, WrongDirectory when it is another one.
    """
    shown = os.fsdecode(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise BadConfiguration(f"--dir {shown}: {error.strerror}: give an existing directory") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise BadConfiguration(f"--dir {shown}: another mirror process uses it: stop that one first") from error
    try:
        os.close(linux_io.open_by_handle(fd, linux_io.name_to_handle(fd), O_PATH_FLAGS))
        identity = read_identity(fd)
        if expected is None:
            ensure_identity(fd)
    except OSError as error:
        os.close(fd)
        raise BadConfiguration(
            f"--dir {shown}: its file system cannot hold a mirrored directory: extended attributes (trusted or user) "
            f"and file handles are needed, and root ({error.strerror}); ext4, XFS and btrfs have all of them, ramfs, "
            "FAT and NFS before 4.2 have not"
        ) from error
    if expected is not None and identity != expected:
        os.close(fd)
        raise WrongDirectory(
            f"--dir {shown} is not the directory of this module (its root has another identity): is its disk mounted? "
            "Nothing was changed"
        )
    return fd


def largest_file(root_fd: int) -> int:
    """The largest size in bytes that a file can have here, found by trying on a nameless file (ftruncate(2), EFBIG)."""
    fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=root_fd)
    try:
        low, high = 0, (1 << 63) - 1
        while low < high:
            size = (low + high + 1) // 2
            try:
                os.ftruncate(fd, size)
                low = size
            except OSError as error:
                if error.errno != errno.EFBIG:
                    raise
                high = size - 1
        return low
    finally:
        os.close(fd)
