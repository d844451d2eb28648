"""The target's half of verify: is what the source says of a directory true here, at this place in the stream?

It changes nothing and fails nothing: what is missing, different or cannot be read is an answer. Content is compared by
the target itself (CHECK), because reintegration needs that too.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, Final

from hotpair.replication import linux_io, tree_io
from hotpair.replication.frames import Kind
from hotpair.replication.objects_io import PRIVATE_NAME, check_name, open_path, read_identity

if TYPE_CHECKING:
    from hotpair.replication.target import Replica, Target

NAMES_BYTES: Final = 32 << 10  # of the kernel's listing in one answer: a thousand names, read in less than 1 ms
END: Final = -1  # the position behind the last name

# What the source's reports say of an object
MISSING: Final = "missing on the target"
SURPLUS: Final = "surplus on the target"
ANOTHER: Final = "another object on the target"
UNREADABLE: Final = "cannot be read on the target"
TYPE: Final = "type"
SIZE: Final = "size"
MODE, OWNER, DEVICE, LINK, XATTRS = "mode", "owner", "device number", "link target", "extended attributes"


class Comparison:
    """Answers CHECK_OBJECTS and CHECK_NAMES."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def objects(self, fields: list[Any]) -> None:
        """What differs of these names; with ``hold``, objects that are the same become known to the stream."""
        _, sequence, directory, entries = fields
        fd = self._open(directory)
        if fd is None:
            self._target.say(Kind.COMPARED, sequence, None)
            return
        differences = []
        try:
            for name, *said in entries:
                found = self._compare(fd, name, *said)
                if found:
                    differences.append([name, found])
        finally:
            os.close(fd)
        self._target.say(Kind.COMPARED, sequence, differences)

    def names(self, fields: list[Any]) -> None:
        """The next names of a directory; not at one place in the stream, so that the source asks again for each that
        it does not have."""
        _, sequence, directory, position = fields
        fd = self._open(directory)
        if fd is None:
            self._target.say(Kind.NAMES, sequence, [], END)
            return
        try:
            os.lseek(fd, position, os.SEEK_SET)
            entries = linux_io.getdents64(fd, NAMES_BYTES)
        except OSError as error:
            if error.errno != errno.ENOENT:  # removed, and still open
                raise
            entries = []
        finally:
            os.close(fd)
        hidden = (b".", b"..", PRIVATE_NAME) if directory == self._target.root.identity else (b".", b"..")
        names = [name for _, _, _, name in entries if name not in hidden]
        self._target.say(Kind.NAMES, sequence, names, entries[-1][1] if entries else END)

    def _open(self, directory: object) -> int | None:
        """A descriptor of a directory's own, None when it is not known or gone."""
        item = self._target.objects.get(directory) if type(directory) is bytes else None
        if item is None or item.kind != stat.S_IFDIR:
            return None
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            return os.open(b".", flags, dir_fd=self._target.descriptors.get(item))
        except OSError as error:
            if error.errno in (errno.ESTALE, errno.ENOENT):
                return None
            raise

    def _compare(
        self, directory_fd: int, name: bytes, identity: bytes, raw: list[Any], size: int, hold: bool
    ) -> list[str]:
        """What differs of one name; an empty name is the directory itself."""
        try:
            fd = open_path(directory_fd, check_name(name) if name else b".")
        except FileNotFoundError:
            return [MISSING] if identity else []
        try:
            if not identity:
                return [SURPLUS]
            if read_identity(fd) != identity:
                return [ANOTHER]
            found = _differences(fd, raw, size)
            if TYPE not in found and hold and not self._hold(fd, identity):
                return [ANOTHER]
            return found
        except OSError as error:
            return [f"{UNREADABLE}: {error.strerror}"]
        finally:
            os.close(fd)

    def _hold(self, fd: int, identity: bytes) -> bool:
        """Have the stream know the object; False when it knows another one under this identity."""
        target = self._target
        item: Replica = target.register(os.dup(fd), identity)
        return os.path.samestat(os.fstat(target.descriptors.get(item)), os.fstat(fd))


def _differences(fd: int, raw: list[Any], size: int) -> list[str]:
    mode, uid, gid, device, link, xattrs = raw
    here = tree_io.describe(fd)
    if stat.S_IFMT(here.mode) != stat.S_IFMT(mode):
        return [TYPE]
    pairs = {
        MODE: (here.mode, mode),
        OWNER: ((here.uid, here.gid), (uid, gid)),
        DEVICE: (here.device, device),
        LINK: (here.link, link),
        XATTRS: (here.xattrs, [(key, value) for key, value in xattrs]),
    }
    found = [what for what, (ours, theirs) in pairs.items() if ours != theirs]
    if stat.S_ISREG(mode) and os.fstat(fd).st_size != size:
        found.append(SIZE)
    return found
