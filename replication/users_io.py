"""Who uses a directory: processes that have something open below it, in whatever mount namespace they are.

Found by looking through /proc once. Who opens something a moment later is not found: ask again afterwards.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from hotpair.replication.mounts_io import appearances, holder_of, is_within, read_table

# The process ended while it was looked at; it, or its descriptors, use nothing any more.
_GONE = (FileNotFoundError, ProcessLookupError)


@dataclass(frozen=True)
class User:
    """A process, and the first thing found that it has open."""

    process: int
    name: str
    path: bytes

    def __str__(self) -> str:
        return f"process {self.process} ({self.name}, {os.fsdecode(self.path)})"


class Users(NamedTuple):
    """What was found."""

    found: list[User]
    hidden: list[int]  # of which not all can be seen: they have more rights than we (ptrace(2)), or too long paths


def users_of(directory: bytes) -> Users:
    """Every process but this one that uses ``directory`` or what is below it. Raises OSError."""
    own_table = read_table()
    holder = holder_of(own_table, directory)
    place = holder.place_of(directory)
    own_namespace = os.readlink("/proc/self/ns/mnt")
    seen_in = {own_namespace: appearances(own_table, holder.device, place)}
    users = Users([], [])
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            namespace = os.readlink(f"/proc/{name}/ns/mnt")
            if namespace not in seen_in:
                seen_in[namespace] = appearances(read_table(name), holder.device, place)
            paths = seen_in[namespace]
            opened = list(_open_paths(name))
            used = next((path for path in opened if path and any(is_within(path, at) for at in paths)), None)
            if used is None and None in opened:
                users.hidden.append(int(name))
            elif used is not None:
                with open(f"/proc/{name}/comm", encoding="utf-8", errors="replace") as file:
                    users.found.append(User(int(name), file.read().strip(), used))
        except _GONE:
            continue
        except PermissionError:
            users.hidden.append(int(name))
    return users


def _open_paths(process: str) -> Iterator[bytes | None]:
    """The paths of what a process has open: descriptors, working and root directory, mapped files.

    None for a path that is too long to be told (more than PATH_MAX).
    """
    base = f"/proc/{process}"
    for entry in ("cwd", "root", *(f"fd/{number}" for number in os.listdir(f"{base}/fd"))):
        try:
            yield os.fsencode(os.readlink(f"{base}/{entry}"))
        except _GONE:  # closed meanwhile, or a kernel thread's
            continue
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            yield None
    with open(f"{base}/maps", "rb") as file:
        for line in file:
            fields = line.rstrip(b"\n").split(None, 5)
            if len(fields) == 6 and fields[5].startswith(b"/"):
                yield fields[5]
