"""A process that reads what is not in the page cache and answers the kernel itself.

    python -m hotpair.replication.reader SOCKET_FD FUSE_FD THREADS

Jobs come as fixed structures on a SOCK_SEQPACKET socket: a file is announced once, with its descriptor, under a number;
a read names the number. So a read costs the loop one small message, and neither side opens or closes anything for it.
Each thread takes a job, waits for the disk, answers. It ends when the mirror process ends.
"""

from __future__ import annotations

import array
import errno
import mmap
import os
import socket
import sys
import threading
from struct import Struct
from typing import Final

from hotpair.replication.fuse_abi import OUT_HEADER
from hotpair.replication.limits import MAX_WRITE

JOB: Final = Struct("<BQQQI")  # kind, number of the file, unique, offset, size
READ, ANNOUNCE, DROP = 1, 2, 3
READER_NICENESS: Final = 5  # its many threads must not keep the loop, and so all writes, from a processor

files: dict[int, int] = {}  # number of a file -> our descriptor of it


def serve(sock: socket.socket, fuse_fd: int) -> None:
    """Take jobs until the mirror process is gone."""
    buffer = memoryview(mmap.mmap(-1, MAX_WRITE))
    unpack = JOB.unpack
    ancillary_size = socket.CMSG_SPACE(8)
    while True:
        try:
            data, ancillary, _, _ = sock.recvmsg(JOB.size, ancillary_size)
        except ConnectionResetError:  # the mirror process was killed with jobs in the socket
            return
        if not data:
            return
        kind, number, unique, offset, size = unpack(data)
        if kind == READ:
            read_and_answer(files[number], fuse_fd, buffer, unique, offset, size)
        elif kind == ANNOUNCE:
            fds = array.array("i")
            fds.frombytes(ancillary[0][2][: fds.itemsize])
            files[number] = fds[0]
            sock.send(data)  # the loop asks for reads only when it has heard that the number is known
        else:
            os.close(files.pop(number))


def read_and_answer(fd: int, fuse_fd: int, buffer: memoryview, unique: int, offset: int, size: int) -> None:
    """Serve a FUSE READ from the disk and answer the kernel."""
    try:
        got = os.preadv(fd, (buffer[:size],), offset)
        answer = (OUT_HEADER.pack(16 + got, 0, unique), buffer[:got])
    except OSError as error:
        answer = (OUT_HEADER.pack(16, -(error.errno or errno.EIO), unique), buffer[:0])
    try:
        os.writev(fuse_fd, answer)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):  # the caller or the mount is gone
            raise


def main(arguments: list[str]) -> int:
    """The process's entry."""
    sock = socket.socket(fileno=int(arguments[0]))
    fuse_fd = int(arguments[1])
    sys.setswitchinterval(0.0001)
    os.nice(READER_NICENESS)
    os.chdir("/")
    workers = [threading.Thread(target=serve, args=(sock, fuse_fd)) for _ in range(int(arguments[2]))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
