"""Which process is a module's helper in one role: one at a time, and each knows how many there were before.

Ray takes an actor for dead when it does not hear from it; the process may live on, and wake up later. The lock keeps
the next one waiting until the kernel has seen the last one's end, and what a process says carries its number, so that
whoever listens can ignore one that was replaced.
"""

from __future__ import annotations

import fcntl
import os
import time

LOOK_S = 0.02
WAIT_S = 30.0  # for a predecessor's end; then the new one gives up, and is started again


class StillThere(Exception):
    """The predecessor has not ended; the text says which process that is."""


class Incarnation:
    """Held until the process ends, or `release`. `number` is higher than that of any before."""

    def __init__(self, directory: str, role: str, wait_s: float = WAIT_S) -> None:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        self._path = os.path.join(directory, f"{role}.lock")
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        is_ours = _locked(self._descriptor, wait_s)
        said = os.pread(self._descriptor, 100, 0).decode(errors="replace").split()
        if not is_ours:
            os.close(self._descriptor)
            raise StillThere(f"{self._path} is held by process {said[1] if len(said) == 2 else 'unknown'}")
        self.number = (int(said[0]) if said and said[0].isdecimal() else 0) + 1
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{self.number} {os.getpid()}".encode(), 0)

    def release(self) -> None:
        os.close(self._descriptor)


def _locked(descriptor: int, wait_s: float) -> bool:
    """Whether the lock is ours now: asked again until then, for the kernel has no time limit for it."""
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_S)
