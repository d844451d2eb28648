"""The tap's requests that change names: make, link, unlink and rename.

An object that loses its last name while the kernel holds it becomes an orphan (tap_objects.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from hotpair.replication import fuse_abi as abi
from hotpair.replication import linux_io, tree_io
from hotpair.replication.dirty_log import Metadata, Names
from hotpair.replication.frames import Kind
from hotpair.replication.limits import NAME_BYTES
from hotpair.replication.nodes import Node
from hotpair.replication.objects_io import PRIVATE_NAME, new_identity, open_path, proc_path, read_identity
from hotpair.replication.operations import Operation
from hotpair.replication.source import Source
from hotpair.replication.tap_answers import Answers, Ask, name_in
from hotpair.replication.tap_files import Files
from hotpair.replication.tap_objects import KernelObjects

in_header = abi.IN_HEADER.unpack_from


class NameChanges:
    """A public method serves the request of its name."""

    def __init__(self, source: Source, objects: KernelObjects, files: Files, answers: Answers) -> None:
        self._source = source
        self._root, self._nodes, self._journal = objects.root, objects.nodes, objects.journal
        self._orphans_fd, self._intents = objects.orphans_fd, objects.intents
        self._node, self._fd, self._node_for, self._entry = objects.node, objects.fd, objects.node_for, objects.entry
        self._open_data, self._open_answer = objects.open_data, files.open_answer
        self._finisher = answers.finisher

    def _check_new_name(self, parent: Node, name: bytes) -> None:
        if len(name) > NAME_BYTES:
            raise OSError(errno.ENAMETOOLONG, "")
        if parent is self._root and name == PRIVATE_NAME:
            raise OSError(errno.EPERM, "")

    # --- make ---------------------------------------------------------------------------------------------------------

    def _make(
        self,
        ask: Ask,
        name: bytes,
        mode: int,
        umask: int,
        device: int = 0,
        link: bytes = b"",
        answer: Callable[[Node], bytes] | None = None,
    ) -> None:
        slot, nodeid, uid, gid, _, _ = ask
        parent = self._node(nodeid)
        self._check_new_name(parent, name)
        identity = new_identity()
        made: list[Node] = []
        source = self._source

        def perform() -> list[Operation]:
            try:
                fd = tree_io.create(self._fd(parent), name, identity, mode, umask, uid, gid, device, link)
            except FileExistsError:
                # The kernel asks for a new object only where it knows of none: it was made by the mirror that died
                if not slot.resent:
                    raise
                fd = open_path(self._fd(parent), name)
            what = tree_io.describe(fd)
            node = self._node_for(fd, parent, name)
            made.append(node)
            source.times.touch(parent)
            source.times.touch(node)
            return [
                Operation((parent,), (Kind.MAKE, parent.identity, name, node.identity, *what[:5], list(what.xattrs))),
                *source.known.made(node, parent),
            ]

        def body() -> bytes:
            return answer(made[0]) if answer is not None else self._entry(made[0])

        source.change((Names(parent.identity),), perform, self._finisher(slot, body))

    def mkdir(self, ask: Ask) -> None:
        mode, umask = abi.MKDIR_IN.unpack_from(ask[5])
        self._make(ask, name_in(ask[5][abi.MKDIR_IN.size :]), stat.S_IFDIR | mode, umask)

    def mknod(self, ask: Ask) -> None:
        mode, rdev, umask, _ = abi.MKNOD_IN.unpack_from(ask[5])
        device = os.makedev((rdev & 0xFFF00) >> 8, (rdev & 0xFF) | ((rdev >> 12) & 0xFFF00))
        self._make(ask, name_in(ask[5][abi.MKNOD_IN.size :]), mode, umask, device if rdev else 0)

    def symlink(self, ask: Ask) -> None:
        name, _, link = bytes(ask[5]).rstrip(b"\0").partition(b"\0")
        self._make(ask, name, stat.S_IFLNK | 0o777, 0, 0, link)

    def create(self, ask: Ask) -> None:
        _, mode, umask, _ = abi.CREATE_IN.unpack_from(ask[5])

        def answer(node: Node) -> bytes:
            self._open_data(node)
            return self._entry(node) + self._open_answer(node)

        self._make(ask, name_in(ask[5][abi.CREATE_IN.size :]), stat.S_IFREG | stat.S_IMODE(mode), umask, answer=answer)

    # --- link and unlink ----------------------------------------------------------------------------------------------

    def link(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        parent = self._node(nodeid)
        node = self._node(abi.LINK_IN.unpack_from(body)[0])
        name = name_in(body[abi.LINK_IN.size :])
        self._check_new_name(parent, name)
        if node.orphan:
            raise OSError(errno.ENOENT, "")

        def perform() -> list[Operation]:
            try:
                linux_io.linkat_empty(self._fd(node), self._fd(parent), name)
            except FileExistsError:
                if not slot.resent:
                    raise
            self._source.times.touch(parent)
            operation = Operation((node, parent), (Kind.LINK, node.identity, parent.identity, name))
            if node.parent is None:
                node.parent, node.name = parent, name
                self._journal.named(node)
            return [operation]

        marks = (Names(parent.identity), Metadata(node.identity))
        self._source.change(marks, perform, self._finisher(slot, lambda: self._entry(node)))

    def unlink(self, ask: Ask) -> None:
        slot, nodeid, _, _, _, body = ask
        parent = self._node(nodeid)
        name = name_in(body)
        directory = in_header(slot.memory)[1] == abi.RMDIR
        if parent is self._root and name == PRIVATE_NAME:
            raise OSError(errno.ENOENT, "")

        def perform() -> list[Operation]:
            directory_fd = self._fd(parent)
            try:
                fd = open_path(directory_fd, name)
            except FileNotFoundError:
                if slot.resent:
                    return []  # done by the mirror that died; what the target lacks is marked
                raise
            try:
                identity = read_identity(fd) or b""
                node = self._nodes.by_identity.get(identity)
                links = os.fstat(fd).st_nlink
            finally:
                os.close(fd)
            last = directory or links == 1
            known_by_it = node is not None and not last and _is_known_by(node, parent, name)
            if node is not None and known_by_it:
                self._source.known.name_lost(node)
            self._remove_name(directory_fd, name, directory, node if last else None)
            if node is not None and known_by_it:
                node.parent, node.name = None, b""
                self._journal.named(node)
            operation = Operation(
                (parent, node) if directory and node is not None else (parent,),
                (Kind.RMDIR if directory else Kind.UNLINK, parent.identity, name, identity, last),
            )
            self._source.times.touch(parent)
            if last:
                self._source.after_sending(lambda: self._vanished(identity, node))
            return [operation]

        self._source.change((Names(parent.identity),), perform, self._finisher(slot))

    def _vanished(self, identity: bytes, node: Node | None) -> None:
        """The last name of an object is gone; the operation that says so has been sent, where it could be."""
        self._source.known.removed(identity)
        if node is not None:
            node.orphan = True
            node.declared = -1  # the target has dropped it
            self._journal.orphaned(node)

    def _remove_name(self, directory_fd: int, name: bytes, directory: bool, node: Node | None) -> None:
        """Remove a name; what the kernel still holds lives on among the orphans, where a new mirror finds it."""
        if node is None:
            if directory:
                os.rmdir(name, dir_fd=directory_fd)
            else:
                os.unlink(name, dir_fd=directory_fd)
            return
        if directory and any(True for _ in os.scandir(proc_path(self._fd(node)))):
            raise OSError(errno.ENOTEMPTY, "")
        linux_io.renameat2(directory_fd, name, self._orphans_fd, node.identity.hex().encode(), 0)

    # --- rename -------------------------------------------------------------------------------------------------------

    def rename(self, ask: Ask) -> None:
        body = ask[5]
        self._rename_names(ask, abi.RENAME_IN.unpack_from(body)[0], 0, body[abi.RENAME_IN.size :])

    def rename2(self, ask: Ask) -> None:
        newdir, flags, _ = abi.RENAME2_IN.unpack_from(ask[5])
        self._rename_names(ask, newdir, flags, ask[5][abi.RENAME2_IN.size :])

    def _rename_names(self, ask: Ask, newdir: int, flags: int, names: memoryview) -> None:
        slot, nodeid, _, _, _, _ = ask
        old_parent, new_parent = self._node(nodeid), self._node(newdir)
        old, _, rest = bytes(names).partition(b"\0")
        new = rest.rstrip(b"\0")
        if flags & ~(linux_io.RENAME_NOREPLACE | linux_io.RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "")
        self._check_new_name(old_parent, old)
        self._check_new_name(new_parent, new)
        exchange = bool(flags & linux_io.RENAME_EXCHANGE)

        def perform() -> list[Operation]:
            old_fd, new_fd = self._fd(old_parent), self._fd(new_parent)
            if slot.resent and self._was_renamed(slot.unique & ~abi.UNIQUE_RESEND, old_fd, old, new_fd, new):
                return []  # done by the mirror that died; what the target lacks is marked
            moved = self._existing(old_fd, old)
            replaced, links = self._existing_links(new_fd, new)
            if moved is not None and moved is replaced and not exchange:
                linux_io.renameat2(old_fd, old, new_fd, new, flags)  # two names of one file: nothing happens
                return []
            vanishes = replaced is not None and not exchange and (links == 1 or replaced.is_directory)
            one_name_less = replaced is not None and not exchange and not vanishes
            if replaced is not None:
                moving = moved.identity if moved is not None else b""
                self._journal.intent(slot.unique & ~abi.UNIQUE_RESEND, moving, replaced.identity, exchange)
            known_by_it = replaced is not None and one_name_less and _is_known_by(replaced, new_parent, new)
            if replaced is not None and known_by_it:
                self._source.known.name_lost(replaced)
            if vanishes and replaced is not None and not flags:
                self._rename_over(old_fd, old, new_fd, new, replaced)
                gone = replaced
                self._source.after_sending(lambda: self._vanished(gone.identity, gone))
            else:
                linux_io.renameat2(old_fd, old, new_fd, new, flags)
            if replaced is not None and known_by_it:
                replaced.parent, replaced.name = None, b""
                self._journal.named(replaced)
            if moved is not None:
                moved.parent, moved.name = new_parent, new
                self._journal.named(moved)
            if exchange and replaced is not None:
                replaced.parent, replaced.name = old_parent, old
                self._journal.named(replaced)
            self._source.times.touch(old_parent)
            self._source.times.touch(new_parent)
            vanished = replaced.identity if replaced is not None and vanishes else b""
            fields = (Kind.RENAME, old_parent.identity, old, new_parent.identity, new, flags, vanished)
            # A directory that is replaced must be known to be empty there as well
            emptied = (replaced,) if replaced is not None and vanishes and replaced.is_directory else ()
            return [Operation((old_parent, new_parent, *emptied), fields)]

        marks = (Names(old_parent.identity), Names(new_parent.identity))
        self._source.change(marks, perform, self._finisher(slot))

    def _was_renamed(self, unique: int, old_fd: int, old: bytes, new_fd: int, new: bytes) -> bool:
        """Whether a rename that is sent a second time has happened; one that stopped half-way is finished."""
        intent = self._intents.get(unique)
        if intent is None:
            return not _exists(old_fd, old) and _exists(new_fd, new)
        moved, replaced, exchange = intent
        at_new, _ = self._existing_links(new_fd, new)
        if at_new is None or at_new.identity != moved:
            return False
        left, links = self._existing_links(old_fd, old)
        if left is not None and left.identity == replaced and links == 1 and not exchange:
            self._remove_name(old_fd, old, left.is_directory, left)
            left.orphan = True
        return True

    def _existing(self, directory_fd: int, name: bytes) -> Node | None:
        return self._existing_links(directory_fd, name)[0]

    def _existing_links(self, directory_fd: int, name: bytes) -> tuple[Node | None, int]:
        """The node of what stands under ``name``, if the kernel knows it, and its number of links."""
        try:
            fd = open_path(directory_fd, name)
        except FileNotFoundError:
            return None, 0
        try:
            return self._nodes.by_identity.get(read_identity(fd) or b""), os.fstat(fd).st_nlink
        finally:
            os.close(fd)

    def _rename_over(self, old_fd: int, old: bytes, new_fd: int, new: bytes, replaced: Node) -> None:
        """A rename that takes the last name of an object that the kernel holds: it goes among the orphans.

        What is replaced gets a name there first, so that the rename itself is one step: after a crash the names are as
        before or as after. A directory cannot have two names: the two change places, then it leaves the old name. A
        crash in between leaves it there, empty.
        """
        orphan = replaced.identity.hex().encode()
        source_kind = stat.S_IFMT(os.stat(old, dir_fd=old_fd, follow_symlinks=False).st_mode)
        if replaced.is_directory != (source_kind == stat.S_IFDIR):
            linux_io.renameat2(old_fd, old, new_fd, new, 0)  # fails with the right error
        if replaced.is_directory:
            if any(True for _ in os.scandir(proc_path(self._fd(replaced)))):
                raise OSError(errno.ENOTEMPTY, "")
            linux_io.renameat2(old_fd, old, new_fd, new, linux_io.RENAME_EXCHANGE)
            linux_io.renameat2(old_fd, old, self._orphans_fd, orphan, 0)
            return
        linux_io.linkat_empty(self._fd(replaced), self._orphans_fd, orphan)
        try:
            linux_io.renameat2(old_fd, old, new_fd, new, 0)
        except OSError:
            os.unlink(orphan, dir_fd=self._orphans_fd)
            raise


def _exists(directory_fd: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _is_known_by(node: Node, parent: Node, name: bytes) -> bool:
    """Whether this is the name by which we know an object. The parent may have been forgotten and looked up again."""
    return node.parent is not None and node.parent.identity == parent.identity and node.name == name
