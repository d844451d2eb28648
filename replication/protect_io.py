"""The commands `protect` and `unprotect`: what they refuse, and what they tell the user."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from hotpair.replication import fuse_io, layout, mounts_io, own_attributes_io
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.layout import Goal
from hotpair.replication.layout_io import Calls, Layout, is_point, said
from hotpair.replication.objects_io import O_PATH_FLAGS
from hotpair.replication.users_io import users_of


def protect(text: str, calls: Calls | None = None) -> list[str]:
    """Move the data of a directory beside it, and leave an immutable mount point; what to tell the user."""
    directory = checked_path(text)
    with Layout(directory, calls) as place:
        place.check(Goal.PROTECT)
        with locked(place):
            place.uncover()
            check_surroundings(directory)
            place.reach(Goal.PROTECT, lambda: check_unused(directory, directory))
        told = [f"protected: the data is in {os.fsdecode(place.sibling)}"]
        with said(f"--dir {text}"):
            users = users_of(place.sibling)
        if users.found:
            told.append(f"opened meanwhile, and not through the mirror: end {users.found[0]}")
        if users.hidden:
            told.append(
                f"whether it is in use by process {', '.join(map(str, users.hidden))} could not be seen (it has more "
                "rights than this command, or open paths that are too long): make sure yourself"
            )
        return [*told, place.weakness] if place.weakness else told


def unprotect(text: str, calls: Calls | None = None) -> list[str]:
    """Move the data back into the named directory; what to tell the user."""
    directory = checked_path(text)
    with Layout(directory, calls) as place:
        place.check(Goal.UNPROTECT)
        with locked(place):
            place.uncover()
            place.reach(Goal.UNPROTECT, lambda: check_unused(directory, place.sibling))
    return [f"not protected: the data is in {os.fsdecode(directory)}"]


@contextmanager
def locked(place: Layout) -> Iterator[None]:
    """The data locked against a mirror process, wherever it is. Raises BadConfiguration."""
    shown = f"--dir {os.fsdecode(place.directory)}"
    with said(shown):
        fd = os.open(place.data(), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BadConfiguration(
                f"{shown}: a mirror process uses it, or the keeper of one that was killed: stop it first (one that was "
                "killed: start it again, and stop it)"
            ) from error
        yield
    finally:
        os.close(fd)


def checked_path(text: str) -> bytes:
    """The directory's path, if it can be one of a module. Raises BadConfiguration; looks at no mount of a mirror."""
    if os.geteuid() != 0:
        raise BadConfiguration(f"--dir {text}: only root can protect a directory or take that back: run it as root")
    path = os.path.abspath(text)
    directory = os.fsencode(path)
    objection = layout.objection_to_name(directory)
    if objection is not None:
        raise BadConfiguration(f"--dir {text}: {objection}")
    mounts = mounts_io.read_table()
    for mount in mounts:
        if mount.kind == fuse_io.FUSE_KIND and mount.point != directory and mounts_io.is_within(directory, mount.point):
            raise BadConfiguration(
                f"--dir {text} is inside the mirrored directory {os.fsdecode(mount.point)}: modules cannot be nested"
            )
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    if not mounts_io.mounted_at(mounts, os.fsencode(real)):  # a dead mirror's mount is not looked at: it never answers
        real = os.path.realpath(real)
    if real != path:
        raise BadConfiguration(f"--dir {text} goes through a symbolic link: name {real}")
    return directory


def check_surroundings(directory: bytes) -> None:
    """Refuse a module inside or around another one, and file systems mounted below it. Raises BadConfiguration."""
    shown = f"--dir {os.fsdecode(directory)}"
    for mount in mounts_io.read_table():
        if mount.point != directory and mounts_io.is_within(mount.point, directory):
            raise BadConfiguration(
                f"{shown}: {os.fsdecode(mount.point)} is mounted below it and would not be mirrored: unmount it"
            )
    with said(shown):
        above = os.path.dirname(directory)
        while above != b"/":
            if is_mirrored(above):
                attribute = own_attributes_io.TRUSTED + own_attributes_io.IDENTITY
                raise BadConfiguration(
                    f"{shown} is inside {os.fsdecode(above)}, which is or was mirrored: modules cannot be nested (if "
                    f"it is not mirrored any more: setfattr -x {attribute.decode()} {os.fsdecode(above)})"
                )
            above = os.path.dirname(above)
        for path, _, _, fd in os.fwalk(directory, onerror=_raise):
            if path != directory and is_point(fd):
                raise BadConfiguration(
                    f"{shown}: {os.fsdecode(path)} below it is a protected directory: modules cannot be nested"
                )


def is_mirrored(path: bytes) -> bool:
    """Whether a directory is, or was, in a mirrored one. Raises OSError."""
    fd = os.open(path, O_PATH_FLAGS)
    try:
        return own_attributes_io.read(fd, own_attributes_io.IDENTITY) is not None
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    finally:
        os.close(fd)


def check_unused(directory: bytes, data: bytes) -> None:
    """Refuse while somebody has something open: it would go on writing there, past the mirror. BadConfiguration."""
    users = users_of(data).found
    if users:
        more = f" and {len(users) - 1} more" if len(users) > 1 else ""
        raise BadConfiguration(f"--dir {os.fsdecode(directory)} is in use by {users[0]}{more}: end that first")


def _raise(error: OSError) -> None:
    raise error
