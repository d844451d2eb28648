"""Files of our own in a state directory: for their owner only, and durable with their directory."""

from __future__ import annotations

import os


def open_private(path: str, flags: int) -> int:
    """An opener for `open`. Raises OSError."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def flush_directory(path: str) -> None:
    """The names in it are on disk on return. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
