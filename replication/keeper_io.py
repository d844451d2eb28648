"""Starting the keeper, and adopting what it holds after the mirror process has died."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import subprocess
import sys
from typing import Final, NamedTuple

from hotpair.replication import fuse_io, keeper
from hotpair.replication.layout import sibling_of

SOCKET_NAME: Final = "keeper.sock"
TIMEOUT_S: Final = 5.0


class Kept(NamedTuple):
    """The descriptors that a keeper holds."""

    fuse_fd: int
    root_fd: int


def start(state: str, fuse_fd: int, root_fd: int) -> subprocess.Popen[bytes]:
    """Start a keeper for a new mount, in a session of its own: it outlives us."""
    script = os.path.abspath(keeper.__file__)
    path = os.path.join(state, SOCKET_NAME)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", script, path, str(fuse_fd), str(root_fd)],
        pass_fds=(fuse_fd, root_fd),
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # whoever reads ours to its end must not wait for the keeper
        stderr=subprocess.DEVNULL,
        cwd="/",
    )


def adopt(state: str) -> Kept | None:
    """What the keeper in ``state`` holds, None when there is none, or one that is about to end with its mount."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT_S)
    with sock:
        try:
            sock.connect(os.path.join(state, SOCKET_NAME))
            _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(2 * array.array("i").itemsize))
        except OSError:
            return None  # it ended with its mount
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content)
    if len(fds) != 2:
        for fd in fds:
            os.close(fd)
        return None
    kept = Kept(*fds)
    if keeper.is_gone(kept.fuse_fd):
        fcntl.flock(kept.root_fd, fcntl.LOCK_UN)  # the keeper shares it, and may take a moment to end
        close(kept)
        return None
    for fd in fds:
        os.set_inheritable(fd, False)
    return kept


def let_go(state: str, directory: bytes) -> None:
    """This server is the target from now on: end the mount that a killed source has left here, if there is one.

    Only a mount whose keeper is in our own state directory, which is locked, is certainly not in use any more; and only
    if the keeper holds the data of this directory.
    """
    kept = adopt(state)
    if kept is None:
        return
    if os.readlink(b"/proc/self/fd/%d" % kept.root_fd) not in (directory, sibling_of(directory)):
        close(kept)
        return
    fcntl.flock(kept.root_fd, fcntl.LOCK_UN)  # the keeper shares it, and may take a moment to end
    close(kept)
    if fuse_io.is_mounted(directory):
        fuse_io.abort_connection(fuse_io.connection_number(directory))
        fuse_io.unmount(directory)


def close(kept: Kept) -> None:
    """Let go of a mount that is not adopted."""
    os.close(kept.fuse_fd)
    os.close(kept.root_fd)
