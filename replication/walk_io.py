"""A walk over a whole copy, for when nothing is served: before a mirror process begins to, or after it has ended to."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from hotpair.replication import linux_io, own_attributes_io
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.objects_io import PRIVATE_NAME

DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def all_but_directories(root_fd: int, most: int | None = None) -> Iterator[tuple[int, os.DirEntry[str]]]:
    """Each entry that is no directory, with an open descriptor of the one that it is in; our own folder left out.

    One directory is open at a time, and an order is kept as long as nothing changes: the file system's. Raises OSError.
    ``most``: so many directories are looked into; None: all.
    """
    device = os.fstat(root_fd).st_dev
    waiting = [linux_io.name_to_handle(root_fd)]
    is_root = True
    looked_into = 0
    while waiting and looked_into != most:
        looked_into += 1
        try:
            fd = linux_io.open_by_handle(root_fd, waiting.pop(), DIRECTORY_FLAGS)
        except OSError as error:
            if error.errno != errno.ESTALE:  # somebody has removed it just now
                raise
            continue
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if is_root and os.fsencode(entry.name) == PRIVATE_NAME:
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        _note_directory(fd, entry.name, device, waiting)
                    else:
                        yield fd, entry
        finally:
            os.close(fd)
        is_root = False


def _note_directory(directory_fd: int, name: str, device: int, waiting: list[bytes]) -> None:
    try:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    except FileNotFoundError:
        return
    try:
        if os.fstat(fd).st_dev == device:
            waiting.append(linux_io.name_to_handle(fd))
    finally:
        os.close(fd)


def check_kinds(root_fd: int, directory: bytes) -> None:
    """Raise BadConfiguration when something in a copy cannot be given an identity.

    Where attributes are kept in the `user.` namespace, symlinks and special files have none.
    """
    if not own_attributes_io.is_user(root_fd):
        return
    for fd, entry in all_but_directories(root_fd):
        if not entry.is_file(follow_symlinks=False):
            path = os.path.join(os.readlink(f"/proc/self/fd/{fd}"), entry.name)
            raise BadConfiguration(
                f"--dir {os.fsdecode(directory)}: {path} is neither a regular file nor a directory, and without "
                "trusted extended attributes the mirror can hold nothing else: remove it, or run as root on ext4, XFS "
                "or btrfs"
            )
