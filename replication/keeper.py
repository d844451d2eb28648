"""The keeper: holds a mount's /dev/fuse descriptor and the data directory, so that the mirror process may die.

    python -I -S keeper.py SOCKET FUSE_FD ROOT_FD

It runs as a plain file, without the package, because it must be small and must never need an upgrade. To whoever
connects to its socket it hands both descriptors (SCM_RIGHTS, unix(7)). It ends when the mount is gone.

It must not wait on the /dev/fuse descriptor: each request would wake it. The kernel tells of changes of the mount
table instead (proc(5), mounts: POLLPRI), and then the descriptor is looked at: an error condition means that the mount
is gone.
"""

import array
import os
import select
import socket
import sys


def is_gone(fuse_fd: int) -> bool:
    """Whether the FUSE connection has ended."""
    poll = select.poll()
    poll.register(fuse_fd, 0)
    return bool(poll.poll(0))


def main(arguments: list[str]) -> int:
    """Serve until the mount is gone."""
    path, fuse_fd, root_fd = arguments[0], int(arguments[1]), int(arguments[2])
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if os.path.exists(path):
        os.unlink(path)
    listener.bind(path)
    os.chmod(path, 0o600)
    listener.listen(1)
    os.chdir("/")
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    mounts = os.open("/proc/self/mountinfo", os.O_RDONLY)
    poll.register(mounts, select.POLLPRI)
    while True:
        if is_gone(fuse_fd):
            os.unlink(path)
            return 0
        for fd, _ in poll.poll():
            if fd == mounts:
                while os.read(mounts, 65536):  # to its end, or the next change is not told
                    pass
                os.lseek(mounts, 0, os.SEEK_SET)
                continue
            client, _ = listener.accept()
            with client:
                rights = array.array("i", [fuse_fd, root_fd])
                try:
                    client.sendmsg([b"k"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                except OSError:
                    continue  # it went away again


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
