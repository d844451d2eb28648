"""Starting the keeper, and adopting what it holds after the mirror process has died."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from typing import Final, NamedTuple

from hotpair.replication import fuse_io, keeper
from hotpair.replication.errors import BadConfiguration

SOCKET_NAME: Final = "keeper.sock"
TIMEOUT_S: Final = 5.0
PEER_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred of unix(7): pid, uid, gid


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
        close(kept)
        return None
    for fd in fds:
        os.set_inheritable(fd, False)
    return kept


def close(kept: Kept) -> None:
    """Let go of a mount that is not adopted, and of the lock on its directory, which all who hold it share."""
    fcntl.flock(kept.root_fd, fcntl.LOCK_UN)
    os.close(kept.fuse_fd)
    os.close(kept.root_fd)


def take_away(state: str, directory: bytes) -> None:
    """End the mount of a mirror process that has died: who uses it gets an error.

    Raises BadConfiguration when it is that of another state directory, whose mirror may be well; OSError.
    """
    mount = fuse_io.mount_at(directory)
    if mount is not None and mount.state != os.fsencode(state):
        raise BadConfiguration(
            f"--dir {os.fsdecode(directory)} is mounted by the mirror with --state {os.fsdecode(mount.state)}: "
            "stop that one first"
        )
    kept = adopt(state)
    if kept is not None:
        close(kept)
    if mount is not None:
        fuse_io.abort_connection(mount.connection)
        fuse_io.unmount(directory)
    dismiss(state)


def dismiss(state: str) -> None:
    """End the keeper in ``state``, if there is one, and with it its lock and its hold on the mount. Raises OSError.

    It does not always see by itself that a mount has ended: that of who still has a file open leaves the mount table
    long before.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(TIMEOUT_S)
    with sock:
        try:
            sock.connect(os.path.join(state, SOCKET_NAME))
        except (FileNotFoundError, ConnectionRefusedError):
            return
        pid, _, _ = PEER_CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS.size)
        )
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
            poll = select.poll()
            poll.register(process, select.POLLIN)
            poll.poll(TIMEOUT_S * 1000)
        except ProcessLookupError:
            return  # it has ended by itself
        finally:
            os.close(process)
    with contextlib.suppress(FileNotFoundError):  # it has seen the end of its mount meanwhile
        os.unlink(os.path.join(state, SOCKET_NAME))
