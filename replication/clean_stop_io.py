"""The table of a clean stop on disk: written when nothing changes the copy any more, removed before anything does.

Form: msgpack values one after the other, ``[magic, version, copy id]``, then a row for each file in the order in which
the file system lists them, then 32 bytes: BLAKE2b of all before. Neither is held in memory. The walk runs before a
mirror process begins to serve, or after it has ended to.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from typing import Final

import msgpack

from hotpair.replication import own_attributes_io
from hotpair.replication.clean_stop import Row, TableDamaged, TooManyChanged, changed_files, row_of
from hotpair.replication.limits import CLEAN_STOP_TABLE_S
from hotpair.replication.objects_io import IDENTITY_SIZE
from hotpair.replication.state_files_io import flush_directory, open_private
from hotpair.replication.walk_io import all_but_directories

log = logging.getLogger("hotpair.replication")

NAME: Final = "clean-stop"
MAGIC: Final = "hotpair clean stop"
VERSION: Final = 1
DIGEST_BYTES: Final = 32
PIECE: Final = 1 << 20
ROWS_PER_WRITE: Final = 4096


def write_table(state: str, root_fd: int, copy: bytes) -> None:
    """Record what the files of a copy are now. Where that cannot be done, it is said in the log and there is none."""
    path = os.path.join(state, NAME)
    temporary = path + ".new"
    try:
        with open(temporary, "wb", opener=open_private) as file:
            _write(file.fileno(), root_fd, copy)
        os.rename(temporary, path)
        flush_directory(state)
    except (OSError, TimeoutError) as error:
        log.warning("files changed while the mirror is stopped will not be found: the table of this stop: %s", error)
        for left in (temporary, path):
            if os.path.exists(left):
                os.unlink(left)


def changed_since(state: str, root_fd: int, copy: bytes) -> set[bytes] | None:
    """The files that were changed since the clean stop, empty when there was none; None when all may have been."""
    try:
        with open(os.path.join(state, NAME), "rb") as file:
            return changed_files(_recorded(file.fileno(), copy), files_below(root_fd))
    except FileNotFoundError:
        return set()
    except TooManyChanged:
        log.warning("a great many files were changed since the clean stop: everything is compared")
    except (TableDamaged, OSError, msgpack.UnpackException, ValueError) as error:
        log.warning("everything is compared: the table of the clean stop cannot be used: %s", error)
    return None


def remove_table(state: str) -> None:
    """What it says is true no longer from here on; durable on return."""
    try:
        os.unlink(os.path.join(state, NAME))
    except FileNotFoundError:
        return
    flush_directory(state)


def files_below(root_fd: int) -> Iterator[Row]:
    """The regular files of a copy that have an identity."""
    for fd, entry in all_but_directories(root_fd):
        if entry.is_file(follow_symlinks=False):
            try:
                yield from _row(fd, os.fsencode(entry.name))
            except FileNotFoundError:  # somebody has removed it just now
                continue


def _row(directory_fd: int, name: bytes) -> Iterator[Row]:
    identity = own_attributes_io.read_at(directory_fd, name, own_attributes_io.IDENTITY)
    if identity is not None and len(identity) == IDENTITY_SIZE:
        status = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
        yield Row(identity, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def _write(fd: int, root_fd: int, copy: bytes) -> None:
    """All of the table, flushed. Raises OSError, TimeoutError when the tree is too large to be walked at each stop."""
    until = time.monotonic() + CLEAN_STOP_TABLE_S
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    packer = msgpack.Packer(autoreset=False)
    packer.pack([MAGIC, VERSION, copy])
    for number, row in enumerate(files_below(root_fd), 1):
        packer.pack(row)
        if number % ROWS_PER_WRITE == 0:
            _flush_rows(fd, packer, digest)
            if time.monotonic() > until:
                raise TimeoutError(f"the walk takes longer than {CLEAN_STOP_TABLE_S:g} s")
    _flush_rows(fd, packer, digest)
    _write_all(fd, digest.digest())
    os.fsync(fd)


def _flush_rows(fd: int, packer: msgpack.Packer, digest: hashlib.blake2b) -> None:
    data = packer.bytes()
    packer.reset()
    digest.update(data)
    _write_all(fd, data)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _recorded(fd: int, copy: bytes) -> Iterator[Row]:
    """The rows of a table whose digest is right. Raises TableDamaged."""
    size = os.fstat(fd).st_size - DIGEST_BYTES
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for piece in _pieces(fd, size):
        digest.update(piece)
    if size < 0 or digest.digest() != os.pread(fd, DIGEST_BYTES, size):
        raise TableDamaged("its checksum is wrong")
    unpacker = msgpack.Unpacker(max_buffer_size=2 * PIECE)
    headed = False
    for piece in _pieces(fd, size):
        unpacker.feed(piece)
        for value in unpacker:
            if headed:
                yield row_of(value)
            elif value != [MAGIC, VERSION, copy]:
                raise TableDamaged("it is of another version, or of another copy")
            headed = True


def _pieces(fd: int, size: int) -> Iterator[bytes]:
    offset = 0
    while offset < size:
        piece = os.pread(fd, min(PIECE, size - offset), offset)
        if not piece:
            raise TableDamaged("it became shorter while it was read")
        offset += len(piece)
        yield piece
