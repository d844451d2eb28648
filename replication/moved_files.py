"""Where a file stands on the target that the source has moved to a directory which is listed before its old one.

Nobody has told of it yet, and it must not be copied again for that: it is found by its identity, by a look at the
whole tree. Only small trees are looked at (a few large files are what it is worth it for).
"""

from __future__ import annotations

import errno
import os
import stat

from hotpair.replication import linux_io, own_attributes_io
from hotpair.replication.limits import MOVED_OBJECTS
from hotpair.replication.objects_io import O_PATH_FLAGS, open_path, read_identity
from hotpair.replication.walk_io import all_but_directories


class MovedFiles:
    """The regular files of the tree, by identity; looked at when one is missed, and again after ``forget``."""

    def __init__(self, root_fd: int, limit: int = MOVED_OBJECTS) -> None:
        self._root_fd = root_fd
        self._limit = limit
        self._handles: dict[bytes, bytes] | None = None

    def forget(self) -> None:
        """What was in the tree then may have been replaced since by one that has more of the source's content."""
        if self._limit:
            self._handles = None

    def open(self, identity: bytes) -> int | None:
        """An O_PATH descriptor of the file with this identity, if it was in the tree and still exists."""
        if self._handles is None:
            self._handles = self._look()
        handle = self._handles.get(identity)
        if handle is None:
            return None
        try:
            fd = linux_io.open_by_handle(self._root_fd, handle, O_PATH_FLAGS)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return None
        status = os.fstat(fd)
        if status.st_nlink and stat.S_ISREG(status.st_mode) and read_identity(fd) == identity:
            return fd
        os.close(fd)
        return None

    def _look(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for number, (directory_fd, entry) in enumerate(all_but_directories(self._root_fd, self._limit)):
            if number >= self._limit:
                self._limit = 0
                return {}
            if not entry.is_file(follow_symlinks=False):
                continue
            name = os.fsencode(entry.name)
            identity = own_attributes_io.read_at(directory_fd, name, own_attributes_io.IDENTITY)
            if identity is not None:
                fd = open_path(directory_fd, name)
                found[identity] = linux_io.name_to_handle(fd)
                os.close(fd)
        return found
