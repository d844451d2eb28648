"""Reading a salvage file: whether it is whole, what is in it, and getting that back."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

from hotpair.replication.errors import BadConfiguration
from hotpair.replication.limits import SALVAGE_CHUNK
from hotpair.replication.salvage import FOOTER, Index, Piece, SalvageTorn, Saved, decode_index, locate_index


def read_index(path: str) -> Index:
    """What is in a salvage file. Raises OSError, SalvageTorn when it is not whole."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - FOOTER.size))
        offset, length, digest = locate_index(file.read(FOOTER.size), size)
        file.seek(offset)
        return decode_index(file.read(length), digest)


def is_whole(path: str, generation: bytes) -> bool:
    """Whether this is the whole salvage file of a generation. Raises OSError when that cannot be seen."""
    try:
        return read_index(path).generation == generation
    except (FileNotFoundError, SalvageTorn):
        return False


def unsalvage(path: str, folder: str | None, only: str | None) -> Iterator[str]:
    """List what is in a salvage file, or get it back into files below ``folder``; a line for each piece.

    ``only``: one file, by its path. Each file is made as large as it was, and holds nothing but what was saved of it.
    Raises BadConfiguration, SalvageTorn.
    """
    try:
        index = read_index(path)
        chosen = [file for file in index.files if only is None or os.fsdecode(file.path) == only]
        if only is not None and not chosen:
            raise BadConfiguration(f"{only}: nothing of a file with that path is in {path}")
        for file in chosen:
            if folder is not None:
                _extract(path, file, os.fsencode(folder))
            for piece in file.pieces:
                zeros = " zeros" if piece.position is None else ""
                yield f"{os.fsdecode(file.path)} offset {piece.offset} length {piece.length}{zeros}"
    except OSError as error:
        raise BadConfiguration(f"{error.filename or path}: {error.strerror}") from error
    except SalvageTorn as error:
        raise SalvageTorn(f"{path} is no whole salvage file: {error}") from error


def _extract(path: str, file: Saved, folder: bytes) -> None:
    destination = os.path.join(folder, file.path)
    os.makedirs(os.path.dirname(destination), exist_ok=True)
    fd = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(path, "rb") as salvaged:
            for piece in file.pieces:
                for offset, data in _content(salvaged.fileno(), file, piece):
                    os.pwrite(fd, data, offset)
        os.ftruncate(fd, file.size)
        os.fsync(fd)
    finally:
        os.close(fd)


def _content(salvaged_fd: int, file: Saved, piece: Piece) -> Iterator[tuple[int, bytes]]:
    """The bytes of a piece with their offsets, holes left out. Raises SalvageTorn when they are not those saved."""
    if piece.position is None:
        return
    checksum = 0
    for done in range(0, piece.length, SALVAGE_CHUNK):
        data = os.pread(salvaged_fd, min(SALVAGE_CHUNK, piece.length - done), piece.position + done)
        checksum = zlib.crc32(data, checksum)
        yield piece.offset + done, data
    if checksum != piece.checksum:
        raise SalvageTorn(f"the checksum of {os.fsdecode(file.path)} at offset {piece.offset} is wrong")
