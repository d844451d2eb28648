"""System calls that Python 3.11 lacks or hides behind something else, for the tests.

Every function raises OSError with the errno of the call, as the functions of ``os`` do.
Sources of the numbers: linux/fcntl.h, linux/falloc.h, linux/fs.h, sys/mount.h, bits/dirent.h (x86_64, arm64).
"""

import ctypes
import errno
import fcntl
import os
import struct

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2

MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)

_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.opendir.argtypes = [ctypes.c_char_p]
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir64.argtypes = [ctypes.c_void_p]
_libc.readdir64.restype = ctypes.c_void_p
_libc.telldir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_libc.closedir.argtypes = [ctypes.c_void_p]
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


class _TimeSpecification(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _DirectoryEntry(ctypes.Structure):
    _fields_ = [
        ("inode", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("record_length", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
    ]


def _check(result: int, path: bytes | None = None) -> int:
    """Raise what errno says when a call has returned -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def renameat2(old: bytes, new: bytes, flags: int) -> None:
    """rename(2) with RENAME_NOREPLACE or RENAME_EXCHANGE."""
    _check(_libc.renameat2(AT_FDCWD, old, AT_FDCWD, new, flags), old)


def linkat(old: bytes, new: bytes, flags: int) -> None:
    """link(2) with AT_SYMLINK_FOLLOW, which ``os.link`` does not pass on."""
    _check(_libc.linkat(AT_FDCWD, old, AT_FDCWD, new, flags), old)


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with its modes; ``os.posix_fallocate`` knows only mode 0 and imitates it."""
    _check(_libc.fallocate(descriptor, mode, offset, length))


def utimensat(path: bytes, access: tuple[int, int], modification: tuple[int, int], flags: int) -> None:
    """Set times, each (seconds, nanoseconds or UTIME_NOW or UTIME_OMIT)."""
    times = (_TimeSpecification * 2)(_TimeSpecification(*access), _TimeSpecification(*modification))
    _check(_libc.utimensat(AT_FDCWD, path, times, flags), path)


def mount(source: bytes, target: bytes, kind: bytes) -> None:
    """Mount a file system of the given kind, without options."""
    _check(_libc.mount(source, target, kind, 0, None), target)


def umount_lazily(target: bytes) -> None:
    """Take a mount out of the name space now, whatever still uses it (``umount -l``); it never blocks.

    It is no error if it is gone: its own process may have unmounted it at this moment.
    """
    if _libc.umount2(target, MNT_DETACH) < 0 and ctypes.get_errno() != errno.EINVAL:
        _check(-1, target)


FS_IMMUTABLE_FL = 0x10
FS_IOC_GETFLAGS = 0x80086601
FS_IOC_SETFLAGS = 0x40086602


def clear_immutable(directory: str) -> None:
    """Let a directory be changed and removed again (``chattr -i``), where its file system has the flag."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        (flags,) = struct.unpack("=I4x", fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, bytes(8)))
        if flags & FS_IMMUTABLE_FL:
            fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, struct.pack("=I4x", flags & ~FS_IMMUTABLE_FL))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(descriptor)


class DirectoryStream:
    """opendir(3) and its family, with positions; ``os.scandir`` has none."""

    def __init__(self, path: bytes) -> None:
        self._stream: int | None = _libc.opendir(path)
        if not self._stream:
            _check(-1, path)

    def read(self) -> tuple[bytes, int, int] | None:
        """The next entry as (name, type as in DT_*, inode), or None at the end."""
        ctypes.set_errno(0)
        address = _libc.readdir64(self._stream)
        if not address:
            if ctypes.get_errno():
                _check(-1)
            return None
        entry = _DirectoryEntry.from_address(address)
        name = ctypes.string_at(address + _DirectoryEntry.type.offset + 1)
        return name, entry.type, entry.inode

    def tell(self) -> int:
        """A position for ``seek``: opaque, valid while the stream is open."""
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        """Go back to a position that ``tell`` gave."""
        _libc.seekdir(self._stream, position)

    def close(self) -> None:
        """Release the stream."""
        stream, self._stream = self._stream, None
        if stream:
            _check(_libc.closedir(stream))

    def __enter__(self) -> "DirectoryStream":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
