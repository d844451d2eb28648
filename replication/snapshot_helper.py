"""A process that clones a copy into a snapshot, or removes what is left of old ones, beside the target's loop.

    python -m hotpair.replication.snapshot_helper make ROOT_FD TOKEN RECORD_IN_HEX
    python -m hotpair.replication.snapshot_helper remove ROOT_FD NAME...

It only ever writes below a folder of its own token: whether that becomes the snapshot is for the mirror process to say,
so one that outlives its mirror process can do no harm. It ends when it sees that it has. Exit code 0: all is durable.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from hotpair.replication import linux_io, own_attributes_io, snapshot, tree_io
from hotpair.replication.clone_io import Cloner
from hotpair.replication.limits import SNAPSHOT_ENTRIES
from hotpair.replication.objects_io import PRIVATE_NAME

FAILED: Final = 1


class GivenUp(Exception):
    """The snapshot would take too long, or nobody waits for it any more."""


def private_folder(root_fd: int) -> int:
    """A descriptor of the mirror's own folder, created where it is missing."""
    try:
        os.mkdir(PRIVATE_NAME, 0o700, dir_fd=root_fd)
    except FileExistsError:
        pass
    return os.open(PRIVATE_NAME, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)


def make(root_fd: int, token: str, record: bytes, before_each: Callable[[], None]) -> None:
    """Clone the copy with its record, durably. Raises OSError, GivenUp."""
    private_fd = private_folder(root_fd)
    name = snapshot.making(token)
    os.mkdir(name, 0o700, dir_fd=private_fd)
    os.mkdir(name + b"/" + snapshot.TREE, 0o700, dir_fd=private_fd)
    record_fd = os.open(
        name + b"/" + snapshot.RECORD, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=private_fd
    )
    if os.write(record_fd, record) != len(record):
        raise OSError("a short write: the disk is full")
    os.close(record_fd)
    tree_fd = os.open(name + b"/" + snapshot.TREE, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=private_fd)
    Cloner(root_fd, own_attributes_io.IDENTITY, own_attributes_io.KEPT, before_each).clone(root_fd, tree_fd)
    linux_io.syncfs(root_fd)


def remove(root_fd: int, names: list[bytes]) -> None:
    """Remove leftovers. Raises OSError."""
    private_fd = private_folder(root_fd)
    for name in names:
        assert snapshot.is_leftover(name), name
        tree_io.remove_tree(private_fd, name)
    linux_io.syncfs(root_fd)  # and the space is free when this has ended


def bounded(limit: int) -> Callable[[], None]:
    """What is called before each entry: GivenUp above the limit, or when the mirror process has died."""
    parent = os.getppid()
    count = 0

    def check() -> None:
        nonlocal count
        count += 1
        if count > limit:
            raise GivenUp(f"it has more than {limit} files and directories, which would take too long")
        if os.getppid() != parent:
            raise GivenUp("the mirror process has ended")

    return check


def main(arguments: list[str]) -> int:
    """The process's entry."""
    command, root_fd = arguments[0], int(arguments[1])
    os.chdir("/")
    os.umask(0o077)
    try:
        if command == "make":
            make(root_fd, arguments[2], bytes.fromhex(arguments[3]), bounded(SNAPSHOT_ENTRIES))
        else:
            remove(root_fd, [os.fsencode(name) for name in arguments[2:]])
    except (OSError, GivenUp) as error:
        what = "no snapshot of this copy" if command == "make" else "an old snapshot is not removed yet"
        print(f"{what}: {error}", file=sys.stderr, flush=True)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
