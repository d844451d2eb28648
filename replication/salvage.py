"""The salvage file of a copy that was given up after a split brain: what is saved of it, and its form. Pure code.

Knows: marks, files and their sizes, bytes. Must not know: directories, descriptors, who has decided.

    offset 0     the magic
    offset 8     the bytes of all pieces, one behind the other
    then         the index, in msgpack
    at the end   the footer: where the index is, and its sha256

The footer is written last, so a file that has one whose index is right is whole. Each piece has a checksum of its own.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from hotpair.cluster.record import Record
from hotpair.replication.dirty_log import TO_END_OF_FILE, Marks, Ranges
from hotpair.replication.errors import MirrorError

MAGIC: Final = b"HOTPSALV"
VERSION: Final = 1
FOOTER: Final = struct.Struct("<8sHQQ32s")
LARGEST_INDEX: Final = 1 << 30  # bytes; the index of a terabyte that was changed in single extents is less than 50 MiB
NO_POSITION: Final = -1


class SalvageTorn(MirrorError):
    """The bytes are not a whole salvage file."""


@dataclass(frozen=True)
class Piece:
    """``length`` bytes at ``offset`` of a file, which stand at ``position`` of the salvage file; None: all are zero."""

    offset: int
    length: int
    position: int | None = None
    checksum: int = 0


@dataclass(frozen=True)
class Saved:
    """A file of the copy, by its path below the module's directory, its size then, and what is saved of it."""

    path: bytes
    identity: bytes
    size: int
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Index:
    """What is in a salvage file.

    everything  the log did not say what was changed: all that the copy had is here
    missing     identities of files that the log names and the copy had no more
    """

    generation: bytes
    copy: bytes
    extent_size: int
    everything: bool
    files: tuple[Saved, ...]
    missing: tuple[bytes, ...]


def is_given_up(record: Record) -> bool:
    """This copy lost a split brain, and nothing of it is overwritten yet: the first write of a target ends `solo`."""
    return record.solo and record.inconsistent


def ranges_to_save(marks: Marks | None, identity: bytes, size: int, shift: int) -> Ranges:
    """The parts (first byte, byte behind the last) of a file that a log names; ``marks`` None: it names everything."""
    if marks is None:
        return [(0, size)] if size else []
    file = marks.files.get(identity)
    found = []
    for first, last in file.runs() if file is not None else []:
        end = size if last == TO_END_OF_FILE else min((last + 1) << shift, size)
        if first << shift < end:
            found.append((first << shift, end))
    return found


def encode_end(index: Index, position: int) -> bytes:
    """Index and footer, to be written at ``position``, behind the last piece."""
    files = [
        [
            file.path,
            file.identity,
            file.size,
            [
                [piece.offset, piece.length, NO_POSITION if piece.position is None else piece.position, piece.checksum]
                for piece in file.pieces
            ],
        ]
        for file in index.files
    ]
    body: bytes = msgpack.packb(
        [index.generation, index.copy, index.extent_size, index.everything, files, list(index.missing)]
    )
    return body + FOOTER.pack(MAGIC, VERSION, position, len(body), hashlib.sha256(body).digest())


def locate_index(footer: bytes, size: int) -> tuple[int, int, bytes]:
    """Offset, length and digest of the index, from the last bytes of a file of this size. Raises SalvageTorn."""
    if len(footer) != FOOTER.size:
        raise SalvageTorn("it is shorter than an empty one")
    magic, version, offset, length, digest = FOOTER.unpack(footer)
    if magic != MAGIC:
        raise SalvageTorn("it does not end like one: writing it was interrupted")
    if version != VERSION:
        raise SalvageTorn(f"it has format version {version}, this program reads {VERSION}")
    if length > LARGEST_INDEX or offset < len(MAGIC) or offset + length + FOOTER.size != size:
        raise SalvageTorn(f"it has {size} bytes, and its end belongs to another size")
    return offset, length, digest


def decode_index(body: bytes, digest: bytes) -> Index:
    """Raises SalvageTorn."""
    if hashlib.sha256(body).digest() != digest:
        raise SalvageTorn("the checksum of its index is wrong")
    try:
        generation, copy, extent_size, everything, files, missing = msgpack.unpackb(body)
        return Index(
            generation, copy, extent_size, everything, tuple(_saved(fields) for fields in files), tuple(missing)
        )
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise SalvageTorn(f"its index makes no sense ({error})") from error


def _saved(fields: Any) -> Saved:
    path, identity, size, pieces = fields
    if b".." in path.split(b"/") or path.startswith(b"/"):
        raise ValueError(f"a path that leads elsewhere: {path!r}")
    found = (
        Piece(offset, length, None if position == NO_POSITION else position, checksum)
        for offset, length, position, checksum in pieces
    )
    return Saved(path, identity, size, tuple(found))
