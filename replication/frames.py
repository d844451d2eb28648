"""The stream's frames: what the two mirror processes say to each other, as bytes. Pure code.

A frame is a 4-byte big-endian length, a msgpack array of that length, and, for a kind that carries a
payload, the raw payload behind it; its size is the last element of the array. The first element of the
array is the kind. Every operation carries its sequence number as the second.

Lengths are checked before memory is reserved, and the number of elements is checked before one is used:
whatever arrives on the port ends either in a known frame or in a ``ProtocolError``.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Any, Final

import msgpack

from hotpair.replication.errors import ProtocolError
from hotpair.replication.limits import MAX_MESSAGE, MAX_PAYLOAD, MAX_TEXT, PROTOCOL_VERSION

LENGTH = Struct(">I")
LENGTH_SIZE = LENGTH.size
TLS_BEGINNINGS = (0x160301, 0x160303)  # a handshake record (RFC 8446 section 5.1), where a frame's length should be


class Kind(IntEnum):
    """What a frame says. Operations, which are numbered and acknowledged, come first."""

    # Operations, source to target: kind, sequence number, then the fields named in FIELDS
    WRITE = 1
    TRUNCATE = 2
    FALLOCATE = 3
    MAKE = 4
    LINK = 5
    UNLINK = 6
    RMDIR = 7
    RENAME = 8
    ATTRIBUTES = 9
    SET_XATTR = 10
    REMOVE_XATTR = 11
    FLUSH = 12
    DECLARE = 13
    FORGET = 14
    LISTING = 15
    ZERO = 16
    CHECK = 17
    FLUSH_ALL = 18
    EMPTY_TRASH = 19
    DESCRIBE = 20
    CHECK_OBJECTS = 21
    CHECK_NAMES = 22
    COMPLETE = 23
    # Messages, source to target
    HELLO = 32
    BEGIN_REINTEGRATION = 33
    OFFER_SYNC = 34
    PROBE = 35
    BYE = 36
    HANDOVER = 37
    AGREE = 38
    MAY_LEAVE = 39
    # Messages, target to source
    WELCOME = 48
    APPLIED = 49
    FLUSHED = 50
    FAILED = 51
    INCONSISTENT = 52
    WANTED = 53
    CHECKED = 54
    TAKEN = 55
    BUSY = 56
    COMPARED = 57
    NAMES = 58
    HANDED_OVER = 59
    NOT_HANDED_OVER = 60
    AGREED = 61
    LEAVE = 62
    GONE = 64
    # Either way, before the connection ends; the same in every version, for that is how another one is refused
    REFUSED = 63


APPLIED: Final = int(Kind.APPLIED)  # for each operation: looking at an enumeration costs more than the comparison

# Number of elements, the kind included; a frame with another number is refused.
FIELDS: dict[int, tuple[str, ...]] = {
    Kind.WRITE: ("sequence", "identity", "offset", "size"),
    Kind.TRUNCATE: ("sequence", "identity", "size"),
    Kind.FALLOCATE: ("sequence", "identity", "mode", "offset", "length"),
    Kind.MAKE: (
        "sequence",
        "directory",
        "name",
        "identity",
        "mode",
        "uid",
        "gid",
        "device",
        "link",
        "xattrs",
    ),
    Kind.LINK: ("sequence", "identity", "directory", "name"),
    Kind.UNLINK: ("sequence", "directory", "name", "identity", "last"),
    Kind.RMDIR: ("sequence", "directory", "name", "identity", "last"),
    # `vanished`: the object whose last name the rename takes, empty when there is none
    Kind.RENAME: ("sequence", "directory", "name", "new_directory", "new_name", "flags", "vanished"),
    Kind.ATTRIBUTES: ("sequence", "identity", "mode", "uid", "gid", "mtime_ns"),
    Kind.SET_XATTR: ("sequence", "identity", "name", "value"),
    Kind.REMOVE_XATTR: ("sequence", "identity", "name"),
    Kind.FLUSH: ("sequence", "identity", "data_only"),
    Kind.DECLARE: ("sequence", "identity", "directory", "name"),
    Kind.FORGET: ("sequence", "identity"),
    Kind.LISTING: ("sequence", "directory", "attributes", "entries", "last"),
    Kind.ZERO: ("sequence", "identity", "offset", "length"),
    Kind.CHECK: ("sequence", "identity", "offset", "length", "digest"),
    Kind.FLUSH_ALL: ("sequence",),
    Kind.EMPTY_TRASH: ("sequence",),
    Kind.DESCRIBE: ("sequence", "identity", "description"),
    # `entries`: of [name, identity, description, size, hold]; an empty identity says that there is no such name
    Kind.CHECK_OBJECTS: ("sequence", "directory", "entries"),
    Kind.CHECK_NAMES: ("sequence", "directory", "position"),
    # All content of a file that the target had nothing of has been sent; it is noted when it is flushed
    Kind.COMPLETE: ("sequence", "identity"),
    Kind.HELLO: ("version", "hello"),
    Kind.BEGIN_REINTEGRATION: ("generation", "full"),
    Kind.OFFER_SYNC: ("record",),
    Kind.PROBE: ("time_ns",),
    Kind.BYE: ("reason",),
    Kind.HANDOVER: ("record",),
    # Of the arbiter: both records take it, and the target's answer says that it has
    Kind.AGREE: ("epoch",),
    Kind.MAY_LEAVE: (),
    Kind.WELCOME: ("version", "welcome"),
    Kind.APPLIED: ("sequence",),
    Kind.FLUSHED: ("sequence",),
    Kind.FAILED: ("sequence", "errno", "text", "outdated"),
    Kind.INCONSISTENT: ("generation",),
    Kind.WANTED: ("directory", "whole", "last"),
    # `same`: None when the file is not known there
    Kind.CHECKED: ("sequence", "same"),
    Kind.TAKEN: ("record",),
    Kind.BUSY: ("seconds",),
    # `differences`: of [name, [what differs]]; None when the directory is not known there
    Kind.COMPARED: ("sequence", "differences"),
    Kind.NAMES: ("sequence", "names", "position"),
    Kind.HANDED_OVER: ("record",),
    Kind.NOT_HANDED_OVER: ("reason",),
    Kind.AGREED: ("epoch",),
    Kind.LEAVE: (),
    Kind.GONE: (),
    Kind.REFUSED: ("reason",),
}
LAST_OPERATION = 31  # kinds up to here are operations

# A payload follows the array; its size is the last element.
WITH_PAYLOAD = frozenset({Kind.WRITE})
COUNTS = {int(kind): len(fields) + 1 for kind, fields in FIELDS.items()}

_packer = msgpack.Packer(use_bin_type=True, autoreset=True)
pack: Callable[[tuple[Any, ...]], bytes] = _packer.pack


def encode(*fields: Any) -> bytes:
    """One frame without payload. Raises ProtocolError when it is larger than the peer would take."""
    body = pack(fields)
    if len(body) > MAX_MESSAGE:
        raise ProtocolError(f"a {Kind(fields[0]).name} frame of {len(body)} bytes is over the limit of {MAX_MESSAGE}")
    return LENGTH.pack(len(body)) + body


def check_length(length: int) -> None:
    """Raise ProtocolError if a frame announces a size that the protocol does not allow."""
    if length >> 8 in TLS_BEGINNINGS:
        raise ProtocolError(
            "the peer speaks TLS and this server does not: give both sides the --tls options, or neither"
        )
    if not 0 < length <= MAX_MESSAGE:
        raise ProtocolError(
            f"the peer announced a frame of {length} bytes, the limit is {MAX_MESSAGE}: "
            "it is not a hotpair mirror of this version, or the connection carries garbage"
        )


def unpack(body: bytes | memoryview) -> list[Any]:
    """A frame's array, not checked further than that it is one and begins with a number. Raises ProtocolError."""
    try:
        fields = msgpack.unpackb(body, use_list=True, strict_map_key=False, max_ext_len=0)
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as error:
        raise ProtocolError(f"the peer sent bytes that are not a frame ({error})") from error
    if type(fields) is not list or not fields or type(fields[0]) is not int:
        raise ProtocolError("the peer sent a frame that is not an array beginning with a number")
    return fields


def decode(body: bytes | memoryview) -> list[Any]:
    """The array in a frame's bytes, with the number of its elements checked.

    Raises ProtocolError: not msgpack, not an array, an unknown kind, another number of elements.
    """
    fields = unpack(body)
    count = COUNTS.get(fields[0])
    if count is None:
        raise ProtocolError(f"the peer sent a frame of unknown kind {fields[0]}: another version of hotpair?")
    if len(fields) != count:
        raise ProtocolError(f"the peer sent a {Kind(fields[0]).name} frame with {len(fields)} elements, not {count}")
    return fields


def payload_size(fields: list[Any]) -> int:
    """Bytes of payload behind the array. Raises ProtocolError when the limit is exceeded."""
    if fields[0] not in WITH_PAYLOAD:
        return 0
    size = fields[-1]
    if type(size) is not int or not 0 < size <= MAX_PAYLOAD:
        raise ProtocolError(f"the peer announced a payload of {size!r} bytes, the limit is {MAX_PAYLOAD}")
    return size


def text(value: object) -> str:
    """A reason that the peer gives, as one printable line. Raises ProtocolError when it is no text."""
    if type(value) is not str:
        raise ProtocolError(f"the peer gave a reason that is a {type(value).__name__} and no text")
    return "".join(letter if letter.isprintable() else " " for letter in value[:MAX_TEXT])


def check_version(version: object) -> None:
    """Raise ProtocolError when the peer speaks another version of the protocol."""
    if version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the peer speaks version {version!r} of the mirror protocol, this server version {PROTOCOL_VERSION}: "
            "install the same version of hotpair on both servers"
        )
