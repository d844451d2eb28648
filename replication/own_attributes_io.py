"""The mirror's own extended attributes, which are never shown through the mount and never replicated as such.

They stand in the `trusted.` namespace, which only a privileged process sees. Where the file system has none, or this
process may not use it, they stand in `user.`, which the file system allows on regular files and directories only
(xattr(7)). Nothing is configured: what is found on an object counts, `trusted.` first, so the two copies of a module
may differ in it.
"""

from __future__ import annotations

import errno
import os
from typing import Final

TRUSTED: Final = b"trusted.hotpair."
USER: Final = b"user.hotpair."
HIDDEN_XATTRS: Final = (TRUSTED, USER)

IDENTITY: Final = b"id"  # of every object, the same on both copies
COPY: Final = b"copy"  # of the root: which of the two copies it is
KEPT: Final = b"kept-id"  # of an object in a snapshot: the identity that it has in the copy
WHOLE: Final = b"whole"  # of a file whose content has never been complete here

NOT_PERMITTED: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP})


def read(fd: int, name: bytes) -> bytes | None:
    """An own attribute of the object behind ``fd`` (O_PATH will do), None when it has none.

    Raises OSError, with EOPNOTSUPP where the object can have neither kind of attribute.
    """
    return _read(b"/proc/self/fd/%d" % fd, name, True)


def read_at(directory_fd: int, entry: bytes, name: bytes) -> bytes | None:
    """The same of an entry of a directory, which is not followed when it is a symlink."""
    return _read(b"/proc/self/fd/%d/%s" % (directory_fd, entry), name, False)


def _read(path: bytes, name: bytes, follow: bool) -> bytes | None:
    try:
        return os.getxattr(path, TRUSTED + name, follow_symlinks=follow)
    except OSError as error:
        if error.errno != errno.ENODATA and error.errno not in NOT_PERMITTED:
            raise
        has_trusted = error.errno == errno.ENODATA
    try:
        return os.getxattr(path, USER + name, follow_symlinks=follow)
    except OSError as error:
        if error.errno == errno.ENODATA or (has_trusted and error.errno in NOT_PERMITTED):
            return None
        raise


def write(fd: int, name: bytes, value: bytes, flags: int = 0) -> None:
    """Set an own attribute; ``flags`` as of setxattr(2). Raises OSError, EPERM or EOPNOTSUPP where it cannot be."""
    path = b"/proc/self/fd/%d" % fd
    try:
        os.setxattr(path, TRUSTED + name, value, flags)
    except OSError as error:
        if error.errno not in NOT_PERMITTED:
            raise
        _write_user(path, name, value, flags)


def _write_user(path: bytes, name: bytes, value: bytes, flags: int) -> None:
    try:
        os.setxattr(path, USER + name, value, flags)
    except OSError as error:
        if error.errno != errno.EPERM:
            raise
        text = "without trusted extended attributes only regular files and directories can be mirrored"
        raise OSError(errno.EPERM, text) from error


def is_user(fd: int) -> bool:
    """Whether the identity of an object, which has one, is kept in the `user.` namespace."""
    try:
        os.getxattr(b"/proc/self/fd/%d" % fd, TRUSTED + IDENTITY)
    except OSError as error:
        if error.errno != errno.ENODATA and error.errno not in NOT_PERMITTED:
            raise
        return True
    return False


def remove(fd: int, name: bytes) -> None:
    """Remove an own attribute of either kind; it is no error when there is none."""
    for namespace in HIDDEN_XATTRS:
        try:
            os.removexattr(b"/proc/self/fd/%d" % fd, namespace + name)
        except OSError as error:
            if error.errno != errno.ENODATA and error.errno not in NOT_PERMITTED:
                raise
