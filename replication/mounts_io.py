"""The mount table, and a bind mount that was never writable.

mount(2) makes a bind mount with the flags of what it shows, and restricts it in a second call: in between, whoever is
quick could write. The newer calls (open_tree(2), mount_setattr(2), move_mount(2); Linux 5.12) restrict it first, and
put it in its place then.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass
from typing import Final

from hotpair.replication import linux_io

_SYS_OPEN_TREE: Final = 428  # the same on all architectures (asm-generic/unistd.h)
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_RDONLY: Final = 1
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4
_mount_attr = struct.Struct("=QQQQ")  # to set, to clear, propagation, user namespace (linux/mount.h)

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Mount:
    """One line of the mount table (proc(5), mountinfo)."""

    device: bytes  # major:minor of the file system
    root: bytes  # the path in the file system that is shown
    point: bytes  # where
    kind: bytes  # type of the file system
    source: bytes  # what is mounted, as whoever mounted it has named it

    def place_of(self, path: bytes) -> bytes:
        """The path in the file system of what has ``path``, at or below this mount's point."""
        return join(self.root, path[len(self.point.rstrip(b"/")) :])


def join(base: bytes, rest: bytes) -> bytes:
    """``rest`` is empty or begins with a slash."""
    return base.rstrip(b"/") + rest or b"/"


def is_within(path: bytes, directory: bytes) -> bool:
    """Whether ``path`` is ``directory`` or below it."""
    return path == directory or path.startswith(directory.rstrip(b"/") + b"/")


def parse(table: bytes) -> list[Mount]:
    """The mounts in the order of the table: of two at one point the later one is on top."""
    mounts = []
    for line in table.splitlines():
        fields = line.split(b" ")
        kind, source = fields[fields.index(b"-", 6) + 1 :][:2]
        root, point, source = (_unescaped(field) for field in (*fields[3:5], source))
        mounts.append(Mount(fields[2], root, point, kind, source))
    return mounts


def _unescaped(field: bytes) -> bytes:
    return field.decode("unicode_escape").encode("latin-1")


def read_table(process: str = "self") -> list[Mount]:
    """The mounts that a process sees. Raises OSError when it has ended."""
    with open(f"/proc/{process}/mountinfo", "rb") as file:
        return parse(file.read())


def mounted_at(mounts: list[Mount], path: bytes) -> list[Mount]:
    """What is mounted at ``path``, the lowest first."""
    return [mount for mount in mounts if mount.point == path]


def holder_of(mounts: list[Mount], path: bytes) -> Mount:
    """The mount on which ``path`` lies, a path without symbolic links."""
    return max((mount for mount in mounts if is_within(path, mount.point)), key=lambda mount: len(mount.point))


def appearances(mounts: list[Mount], device: bytes, place: bytes) -> list[bytes]:
    """The paths at which ``place`` of a file system, or something below it, is seen."""
    seen = []
    for mount in mounts:
        if mount.device != device:
            continue
        if is_within(place, mount.root):
            seen.append(join(mount.point, place[len(mount.root.rstrip(b"/")) :]))
        elif is_within(mount.root, place):
            seen.append(mount.point)
    return seen


def _call(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def show_read_only(directory_fd: int, point: bytes) -> None:
    """Bind the directory behind ``directory_fd`` at ``point``: read only, nosuid, nodev. Raises OSError."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | linux_io.AT_EMPTY_PATH
    tree = _call(_SYS_OPEN_TREE, ctypes.c_int(directory_fd), b"", ctypes.c_uint(flags))
    try:
        restricted = _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
        attributes = _mount_attr.pack(restricted, 0, linux_io.MS_PRIVATE, 0)
        empty_path = ctypes.c_uint(linux_io.AT_EMPTY_PATH)
        size = ctypes.c_size_t(_mount_attr.size)
        _call(_SYS_MOUNT_SETATTR, ctypes.c_int(tree), b"", empty_path, attributes, size)
        here, how = ctypes.c_int(linux_io.AT_FDCWD), ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
        _call(_SYS_MOVE_MOUNT, ctypes.c_int(tree), b"", here, point, how)
    finally:
        os.close(tree)
