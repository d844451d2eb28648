"""The target's half of reintegration: bring a directory to what the source's listing says.

Objects are matched by identity, never by name alone. What the source does not have moves to a trash folder, from where
it can come back under another name; the trash is emptied when the reintegration has ended.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Any, Final

from hotpair.replication import linux_io, own_attributes_io, tree_io
from hotpair.replication.errors import ProtocolError
from hotpair.replication.frames import Kind
from hotpair.replication.limits import DIRECTORY_BYTES
from hotpair.replication.moved_files import MovedFiles
from hotpair.replication.objects_io import (
    IDENTITY_SIZE,
    O_PATH_FLAGS,
    PRIVATE_NAME,
    open_path,
    proc_path,
    read_identity,
)
from hotpair.replication.target import Replica, Target
from hotpair.replication.tree_io import Description

TRASH, OLD_TRASH = b"trash", b"old-trash"
WANTED_IDENTITIES: Final = 10_000  # identities in one WANTED message
ENTRY_BYTES: Final = 700  # of memory for an entry, without what its strings hold
MAX_NUMBER: Final = (1 << 63) - 1


class Listing:
    """Applies LISTING operations; one directory's parts come one after the other."""

    def __init__(self, target: Target, limit: int = DIRECTORY_BYTES) -> None:
        self._target = target
        self._limit = limit
        self._directory: bytes | None = None  # whose parts have begun to come
        self._entries: list[list[Any]] = []
        self._size = 0  # bytes of memory that they take, about
        self._trash_fd = tree_io.private_directory(target.root_fd, TRASH)
        self._old_trash_fd = tree_io.private_directory(target.root_fd, OLD_TRASH)  # nothing comes back from there
        self._moved = MovedFiles(target.root_fd)
        self._unfinished: set[bytes] = set()  # handles of files that were not complete here
        self._complete: set[bytes] = set()  # handles of those whose content has come since the last flush
        self._flushing: dict[int, set[bytes]] = {}  # the same, by the flush of everything that is under way

    def close(self) -> None:
        """The session is over."""
        os.close(self._trash_fd)
        os.close(self._old_trash_fd)

    def apply(self, fields: list[Any]) -> None:
        """One part of a listing; the last one makes the directory equal."""
        _, _, directory, attributes, entries, last = fields
        target = self._target
        item = target.known(directory)
        if self._directory not in (None, directory):
            raise ProtocolError("the peer sent a part of another directory's listing before the last one of this")
        self._size += sum(_check_entry(entry) for entry in entries)
        if self._size > self._limit:
            raise OSError(errno.E2BIG, f"the listing of a directory takes more than {self._limit >> 20} MiB here")
        self._directory = directory
        self._entries += entries
        if not last:
            return
        wanted_entries, self._entries = self._entries, []
        self._directory, self._size = None, 0
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
            wanted = {target.name_in(item, entry[0]): entry for entry in entries}
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
        _, identity, raw, size, mtime_ns, links, hold = entry
        what = _description(raw)
        target = self._target
        if present and self._is_another(fd, name, identity):
            self._to_trash(fd, name, b"")
            present = False
        if not present:
            self._place(fd, name, identity, what)
        path_fd = open_path(fd, name)
        try:
            self._check(path_fd, name, identity, what)
            tree_io.set_description(path_fd, what)
            is_file = stat.S_ISREG(what.mode)
            if is_file and os.fstat(path_fd).st_size != size:
                os.truncate(proc_path(path_fd), size)
            linux_io.utimens_empty(path_fd, linux_io.UTIME_OMIT, mtime_ns)
            whole = is_file and self._is_whole(path_fd)
            if whole:
                self._unfinished.add(linux_io.name_to_handle(path_fd))
            if stat.S_ISDIR(what.mode) or hold or whole or links > 1:
                target.register(os.dup(path_fd), identity)
            return whole
        finally:
            os.close(path_fd)

    def _is_another(self, fd: int, name: bytes, identity: bytes) -> bool:
        """Whether the object under this name is not the one that the stream knows under the same identity: it was
        made when the name was not known yet, and has what was sent since."""
        known = self._target.objects.get(identity)
        if known is None:
            return False
        try:
            status = os.fstat(self._target.descriptors.get(known))
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            self._target.drop(known)
            return False
        if not status.st_nlink:
            self._target.drop(known)
            return False
        return not os.path.samestat(status, os.stat(name, dir_fd=fd, follow_symlinks=False))

    def _check(self, path_fd: int, name: bytes, identity: bytes, what: Description) -> None:
        status = os.fstat(path_fd)
        if read_identity(path_fd) != identity:
            raise OSError(errno.ESTALE, f"{name!r} has changed below the mirror")
        if (stat.S_IFMT(status.st_mode), status.st_rdev) != (stat.S_IFMT(what.mode), what.device):
            raise OSError(errno.ESTALE, f"{name!r} is of another type here although it has the same identity")

    def _place(self, fd: int, name: bytes, identity: bytes, what: Description) -> None:
        """Put the object under its name: moved from where it was, a further link, back from the trash, or new."""
        target = self._target
        known = target.objects.get(identity)
        if known is not None:
            try:
                if known.kind == stat.S_IFDIR:
                    self._move_here(target.descriptors.get(known), identity, fd, name)
                else:
                    linux_io.linkat_empty(target.descriptors.get(known), fd, name)
                return
            except FileNotFoundError:
                target.drop(known)  # its last name is gone: it cannot come back
        trash_name = identity.hex().encode()
        try:
            linux_io.renameat2(self._trash_fd, trash_name, fd, name, linux_io.RENAME_NOREPLACE)
            return
        except FileNotFoundError:
            pass
        if stat.S_ISREG(what.mode) and self._link_moved(fd, name, identity):
            return
        path_fd = tree_io.make(fd, name, identity, what, own_attributes_io.WHOLE if stat.S_ISREG(what.mode) else b"")
        target.register(path_fd, identity)

    def _link_moved(self, fd: int, name: bytes, identity: bytes) -> bool:
        """Give a file that stands where the source had it before its new name; the old one goes with its listing."""
        path_fd = self._moved.open(identity)
        if path_fd is None:
            return False
        linux_io.linkat_empty(path_fd, fd, name)
        self._target.register(path_fd, identity)
        return True

    def _move_here(self, directory_fd: int, identity: bytes, fd: int, name: bytes) -> None:
        """Move a directory that we hold from wherever it is. Its path is the kernel's word (proc(5), fd)."""
        path = os.readlink(proc_path(directory_fd))
        if path.endswith(b" (deleted)"):
            raise FileNotFoundError(errno.ENOENT, "removed")
        parent_fd = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            old_name = os.path.basename(path)
            if self._identity_of(parent_fd, old_name) != identity:
                raise FileNotFoundError(errno.ENOENT, "not where it was")
            linux_io.renameat2(parent_fd, old_name, fd, name, linux_io.RENAME_NOREPLACE)
        finally:
            os.close(parent_fd)

    def _is_whole(self, path_fd: int) -> bool:
        return own_attributes_io.read(path_fd, own_attributes_io.WHOLE) is not None

    def _to_trash(self, fd: int, name: bytes, identity: bytes) -> None:
        """Move an object out of the way, named after its identity, so that it is found again."""
        trash_name = identity.hex().encode() if identity else b"unknown-" + os.urandom(8).hex().encode()
        try:
            linux_io.renameat2(fd, name, self._trash_fd, trash_name, linux_io.RENAME_NOREPLACE)
        except FileExistsError:  # another name of the same object, or left from an interrupted reintegration
            linux_io.renameat2(fd, name, self._trash_fd, trash_name + b"-" + os.urandom(8).hex().encode(), 0)

    def finish(self) -> None:
        """All content has arrived and is flushed: files count as complete from now on."""
        for handle in self._unfinished:
            self._is_complete(handle)
        self._unfinished.clear()

    def _is_complete(self, handle: bytes) -> None:
        try:
            fd = linux_io.open_by_handle(self._target.root_fd, handle, O_PATH_FLAGS)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return  # removed meanwhile
            raise
        try:
            own_attributes_io.remove(fd, own_attributes_io.WHOLE)
        finally:
            os.close(fd)

    def empty_trash(self) -> None:
        """Remove what the source does not have."""
        self.finish()
        for fd in (self._trash_fd, self._old_trash_fd):
            for name in os.listdir(fd):
                tree_io.remove_tree(fd, os.fsencode(name))

    # --- while it goes on ---------------------------------------------------------------------------------------------

    def complete(self, item: Replica) -> None:
        """All content of a file has been applied."""
        self._complete.add(item.handle)

    def before_flush(self, sequence: int) -> None:
        """A flush of everything begins. With it the source may forget what it has copied until now, into the objects
        that stand in the tree: one that lies in the trash may lack it, and must not come back."""
        self._flushing[sequence], self._complete = self._complete, set()
        self._moved.forget()
        if not os.listdir(self._trash_fd):
            return
        private_fd = os.open(b"..", O_PATH_FLAGS, dir_fd=self._trash_fd)
        try:
            old_name = os.urandom(8).hex().encode()
            linux_io.renameat2(private_fd, TRASH, self._old_trash_fd, old_name, linux_io.RENAME_NOREPLACE)
        finally:
            os.close(private_fd)
        os.close(self._trash_fd)
        self._trash_fd = tree_io.private_directory(self._target.root_fd, TRASH)

    def flushed(self, sequence: int) -> None:
        """It has ended: from now on an interruption does not make these files incomplete."""
        for handle in self._flushing.pop(sequence, ()):
            self._unfinished.discard(handle)
            self._is_complete(handle)


def _check_entry(entry: list[Any]) -> int:
    """Bytes of memory that an entry takes, about. Raises TypeError or ValueError when it is none; nothing is changed
    before all entries of a directory have been looked at."""
    name, identity, (mode, uid, gid, device, link, xattrs), size, mtime_ns, links, hold = entry
    numbers = (mode, uid, gid, device, size, mtime_ns, links)
    texts = (name, identity, link, *(text for key, value in xattrs for text in (key, value)))
    if not all(type(number) is int and -MAX_NUMBER <= number <= MAX_NUMBER for number in numbers):
        raise TypeError("a number of an entry is none")
    if not all(type(text) is bytes for text in texts) or len(identity) != IDENTITY_SIZE or type(hold) is not bool:
        raise TypeError("an entry has fields of other types")
    return ENTRY_BYTES + sum(map(len, texts)) + 200 * len(xattrs)


def _description(raw: list[Any]) -> Description:
    mode, uid, gid, device, link, xattrs = raw
    return Description(mode, uid, gid, device, link, [(key, value) for key, value in xattrs])
