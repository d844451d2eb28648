"""Changes of a directory tree, by descriptor: what both servers do to their copies, written once.

The source calls ``create`` for what the VM asked for and ``describe`` for what came of it; the target calls ``make``
with that description. Names are single components, checked before they come here. Every function raises OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from hotpair.replication import linux_io, own_attributes_io
from hotpair.replication.objects_io import (
    ACL_XATTRS,
    HIDDEN_XATTRS,
    NO_DATA,
    PRIVATE_NAME,
    open_path,
    proc_path,
    write_identity,
)


class Description(NamedTuple):
    """What an object is, apart from its name, identity and content; the same on both copies."""

    mode: int
    uid: int
    gid: int
    device: int
    link: bytes
    xattrs: list[tuple[bytes, bytes]]


def create(
    directory_fd: int,
    name: bytes,
    identity: bytes,
    mode: int,
    umask: int,
    uid: int,
    gid: int,
    device: int = 0,
    link: bytes = b"",
    first: bytes = b"",
) -> int:
    """Create an object as the caller ``uid``/``gid`` would; an O_PATH descriptor of it.

    The file system below decides on umask against default ACL and on the group in set-group-id directories, so the
    process umask is set for the call. Nothing is left behind when a step fails. ``first`` names an own attribute
    that is set before the object gets its identity.
    """
    kind = stat.S_IFMT(mode)
    old = os.umask(umask)
    try:
        if kind == stat.S_IFDIR:
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory_fd)
        elif kind == stat.S_IFLNK:
            os.symlink(link, name, dir_fd=directory_fd)
        else:
            os.mknod(name, mode, device, dir_fd=directory_fd)
    finally:
        os.umask(old)
    try:
        fd = open_path(directory_fd, name)
    except OSError:
        _remove(directory_fd, name, kind)
        raise
    try:
        if first:
            own_attributes_io.write(fd, first, b"1")
        write_identity(fd, identity)
        if uid or gid:
            _give_to(fd, directory_fd, uid, gid)
    except OSError:
        os.close(fd)
        _remove(directory_fd, name, kind)
        raise
    return fd


def _give_to(fd: int, directory_fd: int, uid: int, gid: int) -> None:
    """Make ``uid``/``gid`` the owner of a new object; a set-group-id directory keeps the group it gave."""
    before = os.fstat(fd)
    inherits = os.fstat(directory_fd).st_mode & stat.S_ISGID
    linux_io.fchownat_empty(fd, uid, -1 if inherits else gid)
    kind = stat.S_IFMT(before.st_mode)
    if before.st_mode & (stat.S_ISUID | stat.S_ISGID) and kind not in (stat.S_IFDIR, stat.S_IFLNK):
        os.chmod(proc_path(fd), stat.S_IMODE(before.st_mode))  # chown has cleared the set-id bits


def _remove(directory_fd: int, name: bytes, kind: int) -> None:
    if kind == stat.S_IFDIR:
        os.rmdir(name, dir_fd=directory_fd)
    else:
        os.unlink(name, dir_fd=directory_fd)


def describe(fd: int) -> Description:
    """What the object behind the O_PATH descriptor ``fd`` is."""
    status = os.fstat(fd)
    link = os.readlink(b"", dir_fd=fd) if stat.S_ISLNK(status.st_mode) else b""
    return Description(status.st_mode, status.st_uid, status.st_gid, status.st_rdev, link, read_xattrs(fd))


def read_xattrs(fd: int) -> list[tuple[bytes, bytes]]:
    """All extended attributes, ACLs included, our own excluded, sorted by name."""
    path = proc_path(fd)
    try:
        names = [os.fsencode(name) for name in os.listxattr(path)]
    except OSError as error:
        if error.errno in NO_DATA:
            return []
        raise
    return sorted((name, os.getxattr(path, name)) for name in names if not name.startswith(HIDDEN_XATTRS))


def make(directory_fd: int, name: bytes, identity: bytes, what: Description, first: bytes = b"") -> int:
    """Create an object that is exactly ``what``; an O_PATH descriptor of it."""
    fd = create(directory_fd, name, identity, what.mode, 0, 0, 0, what.device, what.link, first)
    try:
        set_description(fd, what)
    except OSError:
        os.close(fd)
        _remove(directory_fd, name, stat.S_IFMT(what.mode))
        raise
    return fd


def set_description(fd: int, what: Description) -> None:
    """Bring owner, mode and extended attributes of an existing object to ``what``."""
    status = os.fstat(fd)
    if (status.st_uid, status.st_gid) != (what.uid, what.gid):
        linux_io.fchownat_empty(fd, what.uid, what.gid)
    path = proc_path(fd)
    have = dict(read_xattrs(fd))
    wanted = dict(what.xattrs)
    for key in have.keys() - wanted.keys():
        remove_xattr(fd, key)
    for key, value in what.xattrs:
        if have.get(key) != value:
            os.setxattr(path, key, value)
    if not stat.S_ISLNK(what.mode) and os.fstat(fd).st_mode != what.mode:
        os.chmod(path, stat.S_IMODE(what.mode))


def remove_xattr(fd: int, name: bytes) -> None:
    """Remove an extended attribute; an ACL that is not there counts as removed, as in the kernel."""
    try:
        os.removexattr(proc_path(fd), name)
    except OSError as error:
        if not (name in ACL_XATTRS and error.errno == errno.ENODATA):
            raise


def private_directory(root_fd: int, name: bytes) -> int:
    """A descriptor of ``.hotpair/name`` in the root of the data, created where it is missing."""
    for parent, part in ((b"", PRIVATE_NAME), (PRIVATE_NAME + b"/", name)):
        try:
            os.mkdir(parent + part, 0o700, dir_fd=root_fd)
        except FileExistsError:
            continue
    return os.open(PRIVATE_NAME + b"/" + name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root_fd)


def remove_tree(directory_fd: int, name: bytes) -> None:
    """Remove ``name`` and all below it, without following a symlink, however deep it is.

    A directory with directories in it has them moved up beside it first, so that one level is open at a time.
    """
    if _remove_file(directory_fd, name):
        return
    pending = [name]
    while pending:
        current = pending.pop()
        fd = os.open(current, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            for text in os.listdir(fd):
                child = os.fsencode(text)
                if not _remove_file(fd, child):
                    moved = b"removing-" + os.urandom(8).hex().encode()
                    os.rename(child, moved, src_dir_fd=fd, dst_dir_fd=directory_fd)
                    pending.append(moved)
        finally:
            os.close(fd)
        os.rmdir(current, dir_fd=directory_fd)


def _remove_file(directory_fd: int, name: bytes) -> bool:
    """Remove what is not a directory; False when it is one."""
    try:
        os.unlink(name, dir_fd=directory_fd)
    except IsADirectoryError:
        return False
    except FileNotFoundError:
        pass
    return True
