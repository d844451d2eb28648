"""The durable record on disk: replaced atomically, or not at all.

Every call to the operating system goes through `files` with a label, so that a test can fail exactly that one.
"""

from __future__ import annotations

import errno
import os
from typing import Protocol

from hotpair.cluster.record import LARGEST_RECORD_BYTES, Record, RecordDamaged, RecordVersion, decode, encode


class Files(Protocol):
    """The calls used here, as in `os`, each with a label first that says what it is for."""

    def open(self, label: str, path: str, flags: int, mode: int) -> int: ...
    def close(self, label: str, fd: int) -> None: ...
    def pread(self, label: str, fd: int, length: int, offset: int) -> bytes: ...
    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> int: ...
    def fsync(self, label: str, fd: int) -> None: ...
    def rename(self, label: str, source: str, destination: str) -> None: ...


class OsFiles:
    """The real ones. Each raises OSError."""

    def open(self, label: str, path: str, flags: int, mode: int) -> int:
        return os.open(path, flags, mode)

    def close(self, label: str, fd: int) -> None:
        os.close(fd)

    def pread(self, label: str, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fsync(self, label: str, fd: int) -> None:
        os.fsync(fd)

    def rename(self, label: str, source: str, destination: str) -> None:
        os.rename(source, destination)


class RecordNotStored(Exception):
    """The record could not be made durable. It may be the old or the new one: do nothing that needs the new one."""

    def __init__(self, path: str, error: OSError) -> None:
        super().__init__(
            f"cannot store the module's record {path}: {error.strerror}. Free space on the state disk, or replace it"
        )
        self.errno = error.errno


def store(path: str, record: Record, files: Files | None = None) -> None:
    """Replace the record; durable on return, with its directory. Raises RecordNotStored."""
    try:
        replace_file(path, encode(record), files or OsFiles(), "record")
    except OSError as error:
        raise RecordNotStored(path, error) from error


def replace_file(path: str, data: bytes, files: Files, what: str) -> None:
    """The new content or the old one, whole; the new one durable on return. Raises OSError: it may be either.

    `what`: the first word of the labels.
    """
    temporary = path + ".new"
    fd = files.open(f"{what}.new.open", temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        written = files.pwrite(f"{what}.new.write", fd, data, 0)
        if written != len(data):
            raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes were written: the disk is full")
        files.fsync(f"{what}.new.flush", fd)
    finally:
        files.close(f"{what}.new.close", fd)
    files.rename(f"{what}.rename", temporary, path)
    _flush_directory(path, files, what)


def load(path: str, files: Files | None = None) -> Record | None:
    """The record, or None if there is none. Raises RecordDamaged or RecordVersion with the path, RecordNotStored.

    A process may have died between renaming the record and flushing the directory. What is returned is acted on, so
    it is made durable first.
    """
    files = files or OsFiles()
    try:
        fd = files.open("record.open", path, os.O_RDONLY | os.O_CLOEXEC, 0)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordDamaged(f"it cannot be opened ({error.strerror})", path) from error
    try:
        data = files.pread("record.read", fd, LARGEST_RECORD_BYTES + 1, 0)
    except OSError as error:
        raise RecordDamaged(f"it cannot be read ({error.strerror})", path) from error
    finally:
        files.close("record.close", fd)
    try:
        record = decode(data)
    except RecordDamaged as error:
        raise RecordDamaged(error.reason, path) from error
    except RecordVersion as error:
        raise RecordVersion(error.version, path) from error
    try:
        _flush_directory(path, files, "record")
    except OSError as error:
        raise RecordNotStored(path, error) from error
    return record


def _flush_directory(path: str, files: Files, what: str) -> None:
    directory = os.path.dirname(path) or "."
    fd = files.open(f"{what}.directory.open", directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0)
    try:
        files.fsync(f"{what}.directory.flush", fd)
    finally:
        files.close(f"{what}.directory.close", fd)
