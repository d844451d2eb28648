"""The target's operations: what each one does to the copy. Their order, and what a failed one means, is target.py's.

A field of another type than the protocol's raises before anything is applied.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hotpair.replication import linux_io, tree_io
from hotpair.replication.comparison import Comparison
from hotpair.replication.errors import ProtocolError
from hotpair.replication.frames import Kind
from hotpair.replication.limits import FLUSHES_AT_ONCE, MAX_PAYLOAD
from hotpair.replication.objects_io import open_path, proc_path, read_identity
from hotpair.replication.tree_io import Description

if TYPE_CHECKING:
    from hotpair.replication.target import Replica, Target

log = logging.getLogger("hotpair.replication")

READ_AHEAD: Final = 1 << 20  # bytes behind a comparison: a cold read would hold up the writes that wait behind it


class Operations:
    """All but WRITE, which the stream's loop applies itself. ``apply`` has one for each kind."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._fd = target.descriptors.get
        self._flushes_asked = 0
        comparison = Comparison(target)
        self.apply: dict[int, Callable[[list[Any]], None]] = {
            Kind.TRUNCATE: self._truncate,
            Kind.FALLOCATE: self._fallocate,
            Kind.MAKE: self._make,
            Kind.LINK: self._link,
            Kind.UNLINK: self._unlink,
            Kind.RMDIR: self._unlink,
            Kind.RENAME: self._rename,
            Kind.ATTRIBUTES: self._attributes,
            Kind.SET_XATTR: self._set_xattr,
            Kind.REMOVE_XATTR: self._remove_xattr,
            Kind.FLUSH: self._flush,
            Kind.DECLARE: self._declare,
            Kind.FORGET: self._forget,
            Kind.LISTING: self._listing,
            Kind.ZERO: self._zero,
            Kind.CHECK: self._check,
            Kind.FLUSH_ALL: self._flush_all,
            Kind.EMPTY_TRASH: self._empty_trash,
            Kind.DESCRIBE: self._describe,
            Kind.CHECK_OBJECTS: comparison.objects,
            Kind.CHECK_NAMES: comparison.names,
            Kind.COMPLETE: self._complete,
        }

    def _declare(self, fields: list[Any]) -> None:
        _, _, identity, directory, name = fields
        if identity in self._target.objects:
            return
        self._target.register(self._open_named(self._target.known(directory), name, identity), identity)

    def _open_named(self, parent: Replica, name: object, identity: bytes) -> int:
        """An O_PATH descriptor of what has this name, if it is that object. Raises OSError."""
        fd = open_path(self._fd(parent), self._target.name_in(parent, name))
        try:
            if read_identity(fd) != identity:
                raise OSError(errno.ESTALE, f"{name!r} is another object here than on the source")
        except OSError:
            os.close(fd)
            raise
        return fd

    def _forget(self, fields: list[Any]) -> None:
        """Close an object; one that is not held (verify asked for it, and it was missing here) is no error."""
        item = self._target.objects.get(_identity(fields[2]))
        if item is not None and item is not self._target.root:
            self._target.drop(item)

    def _truncate(self, fields: list[Any]) -> None:
        item = self._target.known(fields[2])
        os.ftruncate(self._target.open_data(item), fields[3])
        item.unflushed += 1

    def _fallocate(self, fields: list[Any]) -> None:
        _, _, identity, mode, offset, length = fields
        item = self._target.known(identity)
        linux_io.fallocate(self._target.open_data(item), mode, offset, length)
        item.unflushed += 1

    def _zero(self, fields: list[Any]) -> None:
        """Zeros without payload: a hole, within the size that the file has."""
        _, _, identity, offset, length = fields
        item = self._target.known(identity)
        fd = self._target.open_data(item)
        mode = linux_io.FALLOC_FL_PUNCH_HOLE | linux_io.FALLOC_FL_KEEP_SIZE
        linux_io.fallocate(fd, mode, offset, length)
        if os.fstat(fd).st_size < offset + length:
            os.ftruncate(fd, offset + length)
        item.unflushed += 1

    def _make(self, fields: list[Any]) -> None:
        _, _, directory, name, identity, mode, uid, gid, device, link, xattrs = fields
        what = Description(mode, uid, gid, device, link, [(key, value) for key, value in xattrs])
        parent = self._target.known(directory)
        fd = tree_io.make(self._fd(parent), self._target.name_in(parent, name), _identity(identity), what)
        self._target.register(fd, identity)

    def _link(self, fields: list[Any]) -> None:
        _, _, identity, directory, name = fields
        parent = self._target.known(directory)
        item = self._target.known(identity)
        linux_io.linkat_empty(self._fd(item), self._fd(parent), self._target.name_in(parent, name))

    def _unlink(self, fields: list[Any]) -> None:
        kind, _, directory, name, identity, last = fields
        parent = self._target.known(directory)
        os.close(self._open_named(parent, name, identity))
        directory_fd = self._fd(parent)
        if kind == Kind.RMDIR:
            os.rmdir(name, dir_fd=directory_fd)
        else:
            os.unlink(name, dir_fd=directory_fd)
        if last:
            self._vanish(identity)

    def _vanish(self, identity: bytes) -> None:
        """The object's last name is gone on the source: nothing can reach it after a take-over."""
        item = self._target.objects.get(identity)
        if item is not None:
            item.unflushed = 0
            self._target.drop(item)

    def _rename(self, fields: list[Any]) -> None:
        _, _, directory, name, new_directory, new_name, flags, vanished = fields
        old, new = self._target.known(directory), self._target.known(new_directory)
        old_name, new_name = self._target.name_in(old, name), self._target.name_in(new, new_name)
        linux_io.renameat2(self._fd(old), old_name, self._fd(new), new_name, flags)
        if vanished:
            self._vanish(vanished)

    def _attributes(self, fields: list[Any]) -> None:
        _, _, identity, mode, uid, gid, mtime_ns = fields
        fd = self._fd(self._target.known(identity))
        if uid is not None or gid is not None:
            linux_io.fchownat_empty(fd, -1 if uid is None else uid, -1 if gid is None else gid)
        if mode is not None and stat.S_IFMT(os.fstat(fd).st_mode) != stat.S_IFLNK:
            os.chmod(proc_path(fd), mode)
        if mtime_ns is not None:
            linux_io.utimens_empty(fd, linux_io.UTIME_OMIT, mtime_ns)

    def _set_xattr(self, fields: list[Any]) -> None:
        _, _, identity, name, value = fields
        os.setxattr(proc_path(self._fd(self._target.known(identity))), name, value)

    def _remove_xattr(self, fields: list[Any]) -> None:
        _, _, identity, name = fields
        tree_io.remove_xattr(self._fd(self._target.known(identity)), name)

    def _flush(self, fields: list[Any]) -> None:
        _, sequence, identity, data_only = fields
        item = self._target.known(identity)
        if self._flushes_asked >= FLUSHES_AT_ONCE:
            raise ProtocolError(f"the peer asked for more than {FLUSHES_AT_ONCE} flushes at once")
        self._flushes_asked += 1
        serial = self._target.serial

        def flushed(error: int) -> None:
            self._flushes_asked -= 1
            if serial != self._target.serial:
                return
            if error:
                self._target.failed = f"flushing: {os.strerror(error)}"
                self._target.on_failure(sequence, OSError(error, os.strerror(error)))
            else:
                self._target.say(Kind.FLUSHED, sequence)

        if item.kind == stat.S_IFDIR:
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd(item))

            def close_then_say(error: int) -> None:
                os.close(fd)
                flushed(error)

            self._target.flush(fd, data_only, close_then_say)
        else:
            item.unflushed = 0
            self._target.flush(self._target.open_data(item), data_only, flushed)

    def _flush_all(self, fields: list[Any]) -> None:
        self._target.listing.before_flush(fields[1])
        self._target.on_flush_all(fields[1])

    def _check(self, fields: list[Any]) -> None:
        _, sequence, identity, offset, length, digest = fields
        if not 0 < length <= MAX_PAYLOAD:
            raise ProtocolError(f"the peer asked for a comparison of {length} bytes")
        item = self._target.objects.get(identity)
        if item is None:
            self._target.say(Kind.CHECKED, sequence, None)
            return
        try:
            fd = self._target.open_data(item)
            data = os.pread(fd, length, offset)
            os.posix_fadvise(fd, offset + length, READ_AHEAD, os.POSIX_FADV_WILLNEED)  # the next ones come soon
        except OSError as error:  # nothing was to be changed, so nothing has failed: what cannot be read is different
            log.warning("comparing %d bytes at %d: %s", length, offset, error.strerror)
            data = b""
        self._target.say(Kind.CHECKED, sequence, hashlib.blake2b(data, digest_size=32).digest() == digest)

    def _describe(self, fields: list[Any]) -> None:
        _, _, identity, (mode, uid, gid, device, link, xattrs) = fields
        what = Description(mode, uid, gid, device, link, [(key, value) for key, value in xattrs])
        tree_io.set_description(self._fd(self._target.known(identity)), what)

    def _listing(self, fields: list[Any]) -> None:
        self._target.listing.apply(fields)

    def _empty_trash(self, fields: list[Any]) -> None:
        self._target.listing.empty_trash()

    def _complete(self, fields: list[Any]) -> None:
        self._target.listing.complete(self._target.known(fields[2]))


def _identity(identity: object) -> bytes:
    if type(identity) is not bytes or len(identity) != 16:
        raise OSError(errno.EINVAL, "not an identity")
    return identity
