"""Files of a driver: the lock against two starts, small documents that are replaced as a whole, durable removal."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hotpair.hyperv.errors import Busy, VmFailed

LARGEST_DOCUMENT_BYTES = 1 << 20
_LOCK_ATTEMPTS_APART_S = 0.02  # a lock with a time limit has no event to wait for


@contextmanager
def locked(path: str, module: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the lock file. Raises Busy when another holds it for longer than `wait_s`, VmFailed without such a file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise VmFailed(f"the lock {path} cannot be made: {error.strerror}: make its directory writable") from error
    try:
        end = time.monotonic() + wait_s
        while not _try_lock(descriptor):
            if time.monotonic() >= end:
                raise Busy(f"{module} is being started, turned off or removed by another process: try again later")
            time.sleep(_LOCK_ATTEMPTS_APART_S)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_state_directory(path: str) -> None:
    """Only its owner may read it: QEMU's control socket lies in it. Raises VmFailed."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        os.chmod(path, 0o700)
    except OSError as error:
        raise VmFailed(
            f"{path} cannot be made: {error.strerror}: give a state directory that can be written"
        ) from error


def write_document(path: str, document: dict[str, Any]) -> None:
    """Replace it atomically and durably. Raises OSError."""
    part = path + ".part"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    flush_directory(os.path.dirname(path))


def read_document(path: str) -> dict[str, Any] | None:
    """None when there is none. Raises VmFailed for one that cannot be read: it is never taken for none."""
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST_DOCUMENT_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise VmFailed(f"{path} cannot be read: {error.strerror}") from error
    try:
        document = json.loads(data)
    except ValueError as error:
        raise VmFailed(f"{path} is damaged ({error}): make sure that the VM is off, then remove the file") from error
    if not isinstance(document, dict):
        raise VmFailed(f"{path} is damaged: make sure that the VM is off, then remove the file")
    return document


def remove_durably(path: str) -> bool:
    """Whether there was such a file. It does not come back after a power cut. Raises OSError."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    flush_directory(os.path.dirname(path))
    return True


def flush_file(path: str) -> None:
    """Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_directory(path: str) -> None:
    """Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
