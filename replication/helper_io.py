"""The mirror process's end of a helper process."""

from __future__ import annotations

import array
import mmap
import os
import socket
import subprocess
import sys
from typing import Any, Final

import msgpack

from hotpair.replication.limits import CHUNK, CHUNKS_IN_WORK

SOCKET_BUFFER: Final = 4 << 20
MESSAGE_LIMIT: Final = 2 << 20  # an entry with the largest extended attributes


SO_SNDBUFFORCE: Final = 32  # asm-generic/socket.h: beyond net.core.wmem_max, for root


class Helper:
    """One helper process with ``threads`` threads. The loop watches ``fileno()`` and calls ``answers``."""

    def __init__(self, threads: int) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory_fd = os.memfd_create("hotpair-chunks", os.MFD_CLOEXEC)
        os.ftruncate(memory_fd, CHUNKS_IN_WORK * CHUNK)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BUFFER)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hotpair.replication.helper"]
            + [str(number) for number in (theirs.fileno(), threads, memory_fd, CHUNK)],
            pass_fds=(theirs.fileno(), memory_fd),
            cwd="/",
            stdin=subprocess.DEVNULL,
        )
        self.memory = memoryview(mmap.mmap(memory_fd, 0))
        os.close(memory_fd)
        theirs.close()
        ours.setblocking(False)
        self._sock = ours
        self.slots = list(range(CHUNKS_IN_WORK))  # of the shared memory, that nobody uses
        self.reading: dict[int, int] = {}  # token of a chunk job -> its slot, until the helper has answered
        self._token = 0
        self._buffer = memoryview(mmap.mmap(-1, MESSAGE_LIMIT))

    def fileno(self) -> int:
        return self._sock.fileno()

    def ask(self, job: list[Any], *fds: int) -> bool:
        """Send a job with its descriptors; False when the helper has too many already. Never blocks."""
        try:
            self._sock.sendmsg(
                [msgpack.packb(job)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            )
        except BlockingIOError:
            return False
        return True

    def new_token(self) -> int:
        """A number for a job, never used before: the answer to a job of an abandoned reintegration is known as such."""
        self._token += 1
        return self._token

    def abandon(self, token: int) -> None:
        """The answer came to a job that nobody waits for: its slot is free now, and not before."""
        slot = self.reading.pop(token, None)
        if slot is not None:
            self.slots.append(slot)

    def answers(self) -> list[list[Any]]:
        """What the helper has to say now. Raises ConnectionError when it died."""
        found: list[list[Any]] = []
        while len(found) < 16:
            try:
                size = self._sock.recv_into(self._buffer)
            except BlockingIOError:
                break
            if not size:
                raise ConnectionError("a helper process of the mirror ended")
            found.append(msgpack.unpackb(self._buffer[:size]))
        return found

    def chunk(self, slot: int, size: int) -> memoryview:
        """The memory of a chunk slot."""
        return self.memory[slot * CHUNK : slot * CHUNK + size]

    def close(self) -> None:
        """End the helper and wait for it."""
        self._sock.close()
        self.process.wait()
