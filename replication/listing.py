"""The target's half of reintegration: bring a directory to what the source's listing says.

Objects are matched by identity, never by name alone. What the source does not have moves to a trash folder, from where
it can come back under another name; the trash is emptied when the reintegration has ended.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, Final

from hotpair.replication import linux_io, tree_io
from hotpair.replication.frames import Kind
from hotpair.replication.objects_io import PRIVATE_NAME, check_name, open_path, proc_path, read_identity
from hotpair.replication.target import Replica, Target
from hotpair.replication.tree_io import Description

WHOLE_XATTR: Final = b"trusted.hotpair.whole"  # on a file whose content has never been complete here
WANTED_IDENTITIES: Final = 10_000  # identities in one WANTED message


class Listing:
    """Applies LISTING operations; one directory's parts come one after the other."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._entries: list[list[Any]] = []
        self._trash_fd = -1
        self._unfinished: set[bytes] = set()

    def apply(self, fields: list[Any]) -> None:
        """One part of a listing; the last one makes the directory equal."""
        _, _, directory, attributes, entries, last = fields
        self._entries += entries
        if not last:
            return
        wanted_entries, self._entries = self._entries, []
        target = self._target
        item = target.objects[directory]
        wanted = self._make_equal(item, wanted_entries)
        fd = target.descriptors.get(item)
        *what, mtime_ns = attributes
        tree_io.set_description(fd, _description(what))
        linux_io.utimens_empty(fd, linux_io.UTIME_OMIT, mtime_ns)
        for start in range(0, len(wanted), WANTED_IDENTITIES):
            target.say(Kind.WANTED, directory, wanted[start : start + WANTED_IDENTITIES], False)
        target.say(Kind.WANTED, directory, [], True)

    def _make_equal(self, item: Replica, entries: list[list[Any]]) -> list[bytes]:
        """Detach what is surplus or misplaced, then make, move or correct; identities that need their content."""
        target = self._target
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=target.descriptors.get(item))
        try:
            wanted = {check_name(entry[0]): entry for entry in entries}
            present: dict[bytes, bytes] = {}
            for text in os.listdir(fd):
                name = os.fsencode(text)
                if item is target.root and name == PRIVATE_NAME:
                    continue
                identity = self._identity_of(fd, name)
                entry = wanted.get(name)
                if entry is None or entry[1] != identity:
                    self._to_trash(fd, name, identity)
                else:
                    present[name] = identity
            return [entry[1] for name, entry in wanted.items() if self._bring(fd, name, entry, name in present)]
        finally:
            os.close(fd)

    def _identity_of(self, fd: int, name: bytes) -> bytes:
        path_fd = open_path(fd, name)
        try:
            return read_identity(path_fd) or b""
        finally:
            os.close(path_fd)

    def _bring(self, fd: int, name: bytes, entry: list[Any], present: bool) -> bool:
        """Make one entry what it is on the source; True when all of its content must be copied."""
        _, identity, raw, size, mtime_ns, _, hold = entry
        what = _description(raw)
        target = self._target
        if not present:
            self._place(fd, name, identity, what)
        path_fd = open_path(fd, name)
        found = read_identity(path_fd)
        if found != identity:
            os.close(path_fd)
            raise OSError(errno.ESTALE, f"{name!r} has changed below the mirror")
        status = os.fstat(path_fd)
        if (stat.S_IFMT(status.st_mode), status.st_rdev) != (stat.S_IFMT(what.mode), what.device):
            os.close(path_fd)
            raise OSError(errno.ESTALE, f"{name!r} is of another type here although it has the same identity")
        tree_io.set_description(path_fd, what)
        is_file = stat.S_ISREG(what.mode)
        if is_file and status.st_size != size:
            os.truncate(proc_path(path_fd), size)
        linux_io.utimens_empty(path_fd, linux_io.UTIME_OMIT, mtime_ns)
        whole = is_file and self._is_whole(path_fd)
        if stat.S_ISDIR(what.mode) or hold or whole:
            target.register(path_fd, identity)
        else:
            os.close(path_fd)
        return whole

    def _place(self, fd: int, name: bytes, identity: bytes, what: Description) -> None:
        """Put the object under its name: a further link, back from the trash, or new."""
        target = self._target
        known = target.objects.get(identity)
        if known is not None and known.kind != stat.S_IFDIR:
            try:
                linux_io.linkat_empty(target.descriptors.get(known), fd, name)
                return
            except FileNotFoundError:
                target.objects.pop(identity)  # its last name is gone: it cannot be linked again
        trash_name = identity.hex().encode()
        try:
            linux_io.renameat2(self._trash(), trash_name, fd, name, linux_io.RENAME_NOREPLACE)
            return
        except FileNotFoundError:
            pass
        path_fd = tree_io.make(fd, name, identity, what)
        if stat.S_ISREG(what.mode):
            os.setxattr(proc_path(path_fd), WHOLE_XATTR, b"1")
            self._unfinished.add(identity)
            target.register(path_fd, identity)
        else:
            os.close(path_fd)

    def _is_whole(self, path_fd: int) -> bool:
        try:
            os.getxattr(proc_path(path_fd), WHOLE_XATTR)
        except OSError as error:
            if error.errno == errno.ENODATA:
                return False
            raise
        return True

    def _trash(self) -> int:
        if self._trash_fd < 0:
            self._trash_fd = tree_io.private_directory(self._target.root_fd, b"trash")
        return self._trash_fd

    def _to_trash(self, fd: int, name: bytes, identity: bytes) -> None:
        """Move an object out of the way, named after its identity, so that it is found again."""
        trash_name = identity.hex().encode() if identity else b"unknown-" + os.urandom(8).hex().encode()
        try:
            linux_io.renameat2(fd, name, self._trash(), trash_name, linux_io.RENAME_NOREPLACE)
        except FileExistsError:  # another name of the same object, or left from an interrupted reintegration
            linux_io.renameat2(fd, name, self._trash(), trash_name + b"-" + os.urandom(8).hex().encode(), 0)

    def finish(self) -> None:
        """All content has arrived and is flushed: files count as complete from now on."""
        for identity in self._unfinished:
            item = self._target.objects.get(identity)
            if item is None:
                continue
            try:
                os.removexattr(proc_path(self._target.descriptors.get(item)), WHOLE_XATTR)
            except OSError as error:
                if error.errno not in (errno.ENODATA, errno.ESTALE):
                    raise
        self._unfinished.clear()

    def empty_trash(self) -> None:
        """Remove what the source does not have."""
        self.finish()
        trash = self._trash()
        for name in os.listdir(trash):
            tree_io.remove_tree(trash, os.fsencode(name))


def _description(raw: list[Any]) -> Description:
    mode, uid, gid, device, link, xattrs = raw
    return Description(mode, uid, gid, device, link, [(key, value) for key, value in xattrs])
