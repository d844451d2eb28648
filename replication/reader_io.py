"""The mirror process's end of the reader: reads that would have to wait for the disk."""

from __future__ import annotations

import array
import socket
import subprocess
import sys
from collections import deque
from typing import Final

from hotpair.replication.helper_io import SO_SNDBUFFORCE
from hotpair.replication.reader import ANNOUNCE, DROP, JOB, READ

SOCKET_BUFFER: Final = 1 << 20  # more jobs than there can be requests


class Reader:
    """One reader process. The loop watches ``fileno()`` and calls ``answers``."""

    def __init__(self, fuse_fd: int, threads: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hotpair.replication.reader"]
            + [str(number) for number in (theirs.fileno(), fuse_fd, threads)],
            pass_fds=(theirs.fileno(), fuse_fd),
            cwd="/",
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        ours.setblocking(False)
        self._sock = ours
        self._known: set[int] = set()  # files that the reader has said it knows
        self._waiting: dict[int, deque[bytes]] = {}  # reads of files that were announced and are not yet known

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self, number: int, fd: int, unique: int, offset: int, size: int) -> bool:
        """Have a read served and answered; ``number`` names the file for as long as it is open (its node's number,
        which is never used twice). False when the reader has too much to do."""
        job = JOB.pack(READ, number, unique, offset, size)
        if number in self._known:
            return self._send(job)
        waiting = self._waiting.get(number)
        if waiting is not None:
            waiting.append(job)
            return True
        announced = self._send(JOB.pack(ANNOUNCE, number, 0, 0, 0), fd)
        if announced:
            self._waiting[number] = deque([job])
        return announced

    def _send(self, job: bytes, *fds: int) -> bool:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            if rights:
                self._sock.sendmsg([job], rights)
            else:
                self._sock.send(job)
        except BlockingIOError:
            return False
        return True

    def answers(self) -> None:
        """The reader says which files it knows now. Raises ConnectionError when it died."""
        try:
            data = self._sock.recv(JOB.size)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the reader process of the mirror ended")
        number = JOB.unpack(data)[1]
        self._known.add(number)
        for job in self._waiting.pop(number):
            self._sock.send(job)

    def drop(self, number: int) -> None:
        """The file is closed: no read of it is under way, for the kernel releases a file when all are answered."""
        if number in self._known:
            self._known.discard(number)
            self._sock.send(JOB.pack(DROP, number, 0, 0, 0))

    def close(self) -> None:
        """End the reader and wait for it."""
        self._sock.close()
        self._process.wait()
