"""The application log: what drivers do and what VMs and applications say, with time stamps, limited in size."""

from __future__ import annotations

import fcntl
import os
from datetime import UTC, datetime

LARGEST_BYTES = 4 << 20  # then it becomes NAME.1, and NAME.1 is forgotten
LONGEST_LINE = 4096
LARGEST_ENTRY_BYTES = 256 << 10  # of one command's output, its end


class ApplicationLog:
    """Appends whole lines; several processes may write the same one."""

    def __init__(self, path: str, largest_bytes: int = LARGEST_BYTES) -> None:
        self._path = path
        self._largest_bytes = largest_bytes

    def append(self, source: str, text: str) -> None:
        """One line for each line of `text`, after the time (UTC) and who says it. Raises OSError."""
        stamp = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        lines = text.encode(errors="replace")[-LARGEST_ENTRY_BYTES:].decode(errors="replace").splitlines()
        entry = "".join(f"{stamp} {source}: {_printable(line)[:LONGEST_LINE]}\n" for line in lines)
        if entry:
            self._write(entry.encode(errors="replace"))

    def _write(self, entry: bytes) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, entry)
            full = os.fstat(descriptor).st_size >= self._largest_bytes
            if full and _is_same(descriptor, self._path):  # another process may have moved it on meanwhile
                os.replace(self._path, self._path + ".1")
        finally:
            os.close(descriptor)


def _is_same(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _printable(line: str) -> str:
    return "".join(character if character.isprintable() or character == "\t" else "?" for character in line)
