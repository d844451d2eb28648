"""A process for what would hold up the loop: listings, reading and hashing of chunks. (Cold reads: reader.py.)

    python -m hotpair.replication.helper SOCKET_FD THREADS MEMORY_FD CHUNK_BYTES

It knows descriptors, offsets and a piece of shared memory. Must not know: nodes, marks, the link. Jobs come as msgpack
arrays on a SOCK_SEQPACKET socket, with the descriptor they are about; each thread takes one, does it, answers. It ends
when the mirror process ends. A thread in the mirror process itself would fight for the interpreter's lock.

Jobs: ["chunk", token, offset, size, slot] with [file]: read into slot; answers [token, kind, size, digest].
      ["list", token, handle] with [root]: answers [token, "part", entries] ..., [token, "end", description],
      or [token, "gone", 0], or [token, "refused", why].
"""

from __future__ import annotations

import array
import errno
import hashlib
import mmap
import os
import socket
import stat
import sys
import threading
from typing import Any, Final

import msgpack

from hotpair.replication import linux_io, tree_io
from hotpair.replication.objects_io import PRIVATE_NAME, ensure_identity, open_path
from hotpair.replication.own_attributes_io import NOT_PERMITTED

MESSAGE_BYTES: Final = 60_000  # well below the default socket buffer, so that parts of a listing flow
DIGEST_BYTES: Final = 32
DATA, ZEROS, FAILED = "data", "zeros", "failed"


def serve(sock: socket.socket, memory: mmap.mmap, chunk_size: int) -> None:
    """Take jobs until the mirror process is gone."""
    while True:
        data, fds = receive(sock)
        if not data:
            return
        job = msgpack.unpackb(data)
        try:
            match job[0]:
                case "chunk":
                    answer = [job[1], *read_chunk(fds[0], memory, chunk_size, *job[2:])]
                    sock.send(msgpack.packb(answer))
                case "list":
                    list_directory(sock, job[1], fds[0], job[2])
        finally:
            for fd in fds:
                os.close(fd)


def receive(sock: socket.socket) -> tuple[bytes, array.array[int]]:
    """One job and its descriptors; empty at the end."""
    try:
        data, ancillary, _, _ = sock.recvmsg(4096, socket.CMSG_SPACE(16))
    except ConnectionResetError:  # the mirror process was killed with jobs in the socket
        return b"", array.array("i")
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return data, fds


def read_chunk(
    fd: int, memory: mmap.mmap, chunk_size: int, offset: int, size: int, slot: int, hashed: bool
) -> tuple[str, int, bytes]:
    """Read a chunk into its slot of the shared memory: kind, bytes read, digest (if asked for)."""
    try:
        if _is_hole(fd, offset, size):
            end = min(offset + size, os.fstat(fd).st_size)
            return ZEROS, max(0, end - offset), b""
        view = memoryview(memory)[slot * chunk_size : slot * chunk_size + size]
        got = os.preadv(fd, (view,), offset)
        if hashed:
            return DATA, got, hashlib.blake2b(view[:got], digest_size=DIGEST_BYTES).digest()
        if got and _is_zero(view[:got]):
            return ZEROS, got, b""
        return DATA, got, b""
    except OSError as error:
        return FAILED, error.errno or errno.EIO, b""


def _is_hole(fd: int, offset: int, size: int) -> bool:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA) >= offset + size
    except OSError as error:
        return error.errno == errno.ENXIO  # no data from here on


_ZEROS: Final = bytes(1 << 16)


def _is_zero(view: memoryview) -> bool:
    """Whether all bytes are zero; the first ones decide in nearly all cases."""
    if view[0] or view[len(view) // 2]:
        return False
    for start in range(0, len(view), len(_ZEROS)):
        part = view[start : start + len(_ZEROS)]
        if part != _ZEROS[: len(part)]:
            return False
    return True


def describe_entry(name: bytes, fd: int) -> list[Any]:
    """One entry of a listing: name, identity, the description, size, mtime, link count, file handle."""
    status = os.fstat(fd)
    what = tree_io.describe(fd)
    size = status.st_size if stat.S_ISREG(status.st_mode) else 0
    handle = linux_io.name_to_handle(fd)
    return [name, ensure_identity(fd), list(what), size, status.st_mtime_ns, status.st_nlink, handle]


def list_directory(sock: socket.socket, token: int, root_fd: int, handle: bytes) -> None:
    """Send a directory's entries in parts, then its own description; an empty end when it is gone."""
    try:
        directory_fd = linux_io.open_by_handle(root_fd, handle, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        sock.send(msgpack.packb([token, "gone", 0]))
        return
    is_root = os.path.samestat(os.fstat(directory_fd), os.fstat(root_fd))
    part: list[Any] = []
    room = MESSAGE_BYTES
    try:
        with os.scandir(directory_fd) as entries:
            for entry in entries:
                name = os.fsencode(entry.name)
                if is_root and name == PRIVATE_NAME:
                    continue
                try:
                    fd = open_path(directory_fd, name)
                except FileNotFoundError:
                    continue  # it went away; the loop knows, and asks for this listing again
                try:
                    described = describe_entry(name, fd)
                except OSError as error:
                    if error.errno not in NOT_PERMITTED:
                        raise
                    sock.send(msgpack.packb([token, "refused", f"{os.fsdecode(name)!r}: {error.strerror}"]))
                    return
                finally:
                    os.close(fd)
                size = len(msgpack.packb(described))
                if size > room and part:
                    sock.send(msgpack.packb([token, "part", part]))
                    part, room = [], MESSAGE_BYTES
                part.append(described)
                room -= size
        if part:
            sock.send(msgpack.packb([token, "part", part]))
        own = os.open(b".", os.O_PATH | os.O_CLOEXEC, dir_fd=directory_fd)
        what = tree_io.describe(own)
        mtime = os.fstat(own).st_mtime_ns
        os.close(own)
        sock.send(msgpack.packb([token, "end", [*what, mtime]]))
    finally:
        os.close(directory_fd)


def main(arguments: list[str]) -> int:
    """The process's entry."""
    sock = socket.socket(fileno=int(arguments[0]))
    threads = int(arguments[1])
    chunk_size = int(arguments[3])
    memory = mmap.mmap(int(arguments[2]), 0)
    sys.setswitchinterval(0.0001)
    os.chdir("/")
    workers = [threading.Thread(target=serve, args=(sock, memory, chunk_size)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
