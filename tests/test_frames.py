"""The codec: what it writes it reads; whatever else arrives ends in a ProtocolError and in nothing else."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hotpair.replication import frames
from hotpair.replication.errors import LinkLost, ProtocolError, TargetFailed
from hotpair.replication.flusher_io import Flusher
from hotpair.replication.frames import COUNTS, FIELDS, LENGTH, LENGTH_SIZE, Kind
from hotpair.replication.limits import MAX_MESSAGE, MAX_PAYLOAD, PROTOCOL_VERSION
from hotpair.replication.listing import Listing
from hotpair.replication.objects_io import write_identity
from hotpair.replication.target import Target
from hotpair.replication.transport_io import PlainConnection
from hotpair.replication.tree_io import remove_tree

INTEGERS = st.integers(-(2**63), 2**64 - 1)
PLAIN = (
    st.none() | st.booleans() | INTEGERS | st.binary(max_size=40) | st.text(max_size=20) | st.floats(allow_nan=False)
)
NESTED = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=5) | INTEGERS | st.binary(max_size=5), inner, max_size=3)
    ),
    max_leaves=12,
)
KINDS = st.sampled_from(list(Kind))


@st.composite
def frame_fields(draw: st.DrawFn) -> list[Any]:
    """A frame of a known kind with the right number of fields of any type."""
    kind = draw(KINDS)
    return [int(kind), *(draw(NESTED) for _ in FIELDS[kind])]


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    """The body of a frame in which a few bytes were changed, cut off, doubled or put in."""
    body = bytearray(frames.encode(*draw(frame_fields()))[LENGTH_SIZE:])
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(0, len(body) - 1)))
        match draw(st.sampled_from(["change", "cut", "double", "insert"])):
            case "change" if body:
                body[position] = draw(st.integers(0, 255))
            case "cut":
                del body[position:]
            case "double":
                body += body[position:]
            case _:
                body[position:position] = draw(st.binary(max_size=6))
    return bytes(body)


# --- round trips ------------------------------------------------------------------------------------------------------


@given(frame_fields())
def test_what_is_written_is_read(fields: list[Any]) -> None:
    frame = frames.encode(*fields)
    (length,) = LENGTH.unpack_from(frame)
    assert length == len(frame) - LENGTH_SIZE
    frames.check_length(length)
    assert frames.decode(frame[LENGTH_SIZE:]) == fields
    assert frames.decode(memoryview(frame)[LENGTH_SIZE:]) == fields


@given(frame_fields(), frame_fields())
def test_the_shared_packer_carries_nothing_over(one: list[Any], other: list[Any]) -> None:
    """Also not after a frame that could not be packed."""
    before = frames.encode(*one)
    with pytest.raises((TypeError, OverflowError, ValueError)):
        frames.encode(*other[:-1], 2**64)
    assert frames.encode(*one) == before


def test_every_kind_has_its_fields_and_no_number_is_used_twice() -> None:
    assert {int(kind) for kind in Kind} == set(COUNTS) == {int(kind) for kind in FIELDS}
    assert all(len(set(names)) == len(names) for names in FIELDS.values())
    operations = [kind for kind in Kind if FIELDS[kind][:1] == ("sequence",) and kind < 32]
    assert operations == [kind for kind in Kind if kind <= frames.LAST_OPERATION]


# --- limits at their edges --------------------------------------------------------------------------------------------


def body_of_size(size: int) -> bytes:
    """A BYE frame whose body has exactly so many bytes."""
    text = "x" * (size - len(frames.encode(Kind.BYE, "x" * 70_000)) + LENGTH_SIZE + 70_000)
    return frames.encode(Kind.BYE, text)[LENGTH_SIZE:]


def test_the_largest_message_is_sent_and_one_byte_more_is_not() -> None:
    body = body_of_size(MAX_MESSAGE)
    assert len(body) == MAX_MESSAGE
    assert frames.decode(body)[0] == Kind.BYE
    with pytest.raises(ProtocolError, match=f"BYE frame of {MAX_MESSAGE + 1} bytes"):
        body_of_size(MAX_MESSAGE + 1)


@pytest.mark.parametrize("length", [1, 2, MAX_MESSAGE - 1, MAX_MESSAGE])
def test_lengths_within_the_limit(length: int) -> None:
    frames.check_length(length)


@pytest.mark.parametrize("length", [-1, 0, MAX_MESSAGE + 1, 2**32 - 1])
def test_lengths_outside_the_limit(length: int) -> None:
    with pytest.raises(ProtocolError, match="announced"):
        frames.check_length(length)


@pytest.mark.parametrize("size", [1, MAX_PAYLOAD - 1, MAX_PAYLOAD])
def test_payloads_within_the_limit(size: int) -> None:
    assert frames.payload_size([1, 1, b"i" * 16, 0, size]) == size


@pytest.mark.parametrize("size", [-1, 0, MAX_PAYLOAD + 1, 2**64 - 1, True, 1.0, None, b"1", "1", [1]])
def test_payloads_outside_the_limit(size: object) -> None:
    with pytest.raises(ProtocolError, match="payload"):
        frames.payload_size([1, 1, b"i" * 16, 0, size])


@pytest.mark.parametrize("kind", [kind for kind in Kind if kind != Kind.WRITE])
def test_only_a_write_has_a_payload(kind: Kind) -> None:
    assert frames.payload_size([int(kind), *([5] * len(FIELDS[kind]))]) == 0


@pytest.mark.parametrize("version", [None, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, str(PROTOCOL_VERSION), []])
def test_another_version_is_refused(version: object) -> None:
    with pytest.raises(ProtocolError, match="same version of hotpair"):
        frames.check_version(version)
    frames.check_version(PROTOCOL_VERSION)


# --- what is not a frame ----------------------------------------------------------------------------------------------


@given(KINDS, st.integers(-3, 3).filter(bool))
def test_wrong_counts(kind: Kind, more: int) -> None:
    count = max(1, COUNTS[kind] + more)
    if count == COUNTS[kind]:
        return
    with pytest.raises(ProtocolError, match=f"{kind.name} frame with {count} elements"):
        frames.decode(msgpack.packb([int(kind), *([0] * (count - 1))]))


@given(INTEGERS.filter(lambda number: number not in COUNTS))
def test_unknown_kinds(number: int) -> None:
    with pytest.raises(ProtocolError, match=f"unknown kind {number}"):
        frames.decode(msgpack.packb([number, 1]))


@pytest.mark.parametrize("kind", [True, 1.0, "1", b"1", None, [1], {}])
def test_a_kind_that_is_no_number(kind: object) -> None:
    with pytest.raises(ProtocolError):
        frames.decode(msgpack.packb([kind, 1, 2, 3, 4]))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",  # never used in msgpack
        msgpack.packb({1: 2}),
        msgpack.packb(1),
        msgpack.packb([]),
        msgpack.packb([int(Kind.APPLIED), 1]) + b"\0",
        msgpack.packb([int(Kind.APPLIED), 1])[:-1],
        b"\xdd\xff\xff\xff\xff\x35",  # an array of four billion elements, which must not be made room for
        b"\x92\x35\xc6\xff\xff\xff\xff",  # as many bytes
        b"\x92\x35\xdf\xff\xff\xff\xff",  # a map
        b"\x92\x35\xd9\x02\xff\xff",  # text that is not UTF-8
        b"\x92\x35" + msgpack.packb(msgpack.ExtType(5, b"1")),
        b"\x92\x35" + msgpack.packb(msgpack.Timestamp(1, 2)),
        b"\x92\x35\xd6\x00abcd",
        b"\x92\x35" + b"\x91" * 5000 + b"\x00",
        b"\x91" * 100_000,
        b"\x92\x35\x81\x91\x01\x01",  # a list as a key
        b"\x92\x35\x81\x80\x01",
    ],
    ids=range(18),
)
def test_what_is_not_a_frame(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        frames.decode(body)


def decoded_or_refused(body: bytes) -> None:
    try:
        fields = frames.decode(body)
        size = frames.payload_size(fields)
    except ProtocolError as error:
        assert len(str(error)) < 500  # it is logged and shown: not the peer's bytes at length
        return
    assert len(fields) == COUNTS[fields[0]]
    assert 0 <= size <= MAX_PAYLOAD


@given(st.binary(max_size=300))
def test_garbage_is_refused(body: bytes) -> None:
    decoded_or_refused(body)


@given(mutations())
@settings(max_examples=500)
def test_damaged_frames_are_refused_or_are_frames(body: bytes) -> None:
    decoded_or_refused(body)


# --- the same, against the target that reads them ---------------------------------------------------------------------


class Reader:
    """A real target at the end of a real socket."""

    def __init__(self, directory: str) -> None:
        self.root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        self.identity, self.file = b"r" * 16, b"f" * 16
        self.flusher = Flusher()
        self.target = Target(self.root, self.identity, self.flusher, 100, False)
        self.target.on_message = lambda fields: None
        self.target.on_failure = lambda sequence, error: None
        self.target.on_flush_all = lambda sequence: None
        self.socket: socket.socket | None = None

    def connect(self) -> None:
        if self.socket is not None:
            self.socket.close()
        for name in os.listdir(self.root):
            remove_tree(self.root, os.fsencode(name))
        if self.target.listing is not None:
            self.target.listing.close()
        self.target.listing = Listing(self.target)
        write_identity(self.root, self.identity)
        file = os.open("file", os.O_CREAT | os.O_RDWR, dir_fd=self.root)
        write_identity(file, self.file)
        os.close(file)
        theirs, self.socket = socket.socketpair()
        self.target.attach(PlainConnection(theirs), fresh=True)
        self.target.admits_operations = True
        self._end_flushes()
        self.feed(frames.encode(Kind.DECLARE, 1, self.file, self.identity, b"file"))

    def feed(self, data: bytes) -> None:
        assert self.socket is not None
        self.socket.sendall(data)
        self.target.receive()

    def _end_flushes(self) -> None:
        """Of the files that are closed, whose descriptors stay open so long."""
        poll = select.poll()
        poll.register(self.flusher.fileno(), select.POLLIN)
        while self.flusher.pending:
            assert poll.poll(10_000), "a flush does not end"
            self.target.flushes_completed()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
        self.target.attach(PlainConnection(socket.socket()), fresh=True)
        self._end_flushes()
        self.target.detach()
        self.target.listing.close()
        self.target.descriptors.close()
        os.close(self.flusher.fileno())
        os.close(self.root)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    found = Reader(str(tmp_path_factory.mktemp("reader")))
    yield found
    found.close()


def taken_or_refused(reader: Reader, data: bytes) -> None:
    """The typed errors of the stream are all that may come of it."""
    reader.connect()
    with_an_end = (ProtocolError, TargetFailed, LinkLost)
    try:
        reader.feed(data)
    except with_an_end:
        pass


IDENTITIES = st.sampled_from([b"r" * 16, b"n" * 16, b""]) | st.binary(max_size=17)
NAMES = st.sampled_from([b"file", b"new", b"..", b".", b"a/b", b"", b"\0", b".hotpair"]) | st.binary(max_size=300)
LIKELY = {
    "identity": IDENTITIES,
    "directory": IDENTITIES,
    "new_directory": IDENTITIES,
    "name": NAMES,
    "new_name": NAMES,
    "mode": st.sampled_from([0o100644, 0o40755, 0o120777, 0o10644, 3, -1, 2**40]),
    "flags": st.sampled_from([0, 1, 2, 4, -1, 2**33, 1.5]),
    "xattrs": st.just([]) | st.just([[b"user.x", b"1"]]) | NESTED,
    "link": st.sampled_from([b"", b"to", b"\0"]),
    "last": st.booleans(),
    "entries": st.just([]) | st.lists(NESTED, max_size=3),
    "attributes": st.just([0o40755, 0, 0, 0, b"", [], 0]) | NESTED,
    "offset": st.sampled_from([0, 1, -1, 2**62, 2**63 - 1, 2**63, 2**64 - 1]),
    "length": st.sampled_from([0, 1, -1, 2**63 - 1, MAX_PAYLOAD, MAX_PAYLOAD + 1]),
    "mtime_ns": st.none() | st.sampled_from([0, -1, 2**63 - 1, 1.5]),
}


@st.composite
def operations(draw: st.DrawFn) -> tuple[Any, ...]:
    """An operation that is due, with fields of which any may be nonsense."""
    kind = draw(st.sampled_from([kind for kind in Kind if kind <= frames.LAST_OPERATION and kind != Kind.WRITE]))
    likely = draw(st.integers(0, 9)) > 0
    fields = [draw((LIKELY.get(name, NESTED) | NESTED) if likely else NESTED) for name in FIELDS[kind][1:]]
    return (int(kind), 2, *fields)


@given(operations(), st.sampled_from(["", "identity"]))
@settings(max_examples=300, deadline=None)
@example((int(Kind.ATTRIBUTES), 2, b"r" * 16, None, None, None, 1.5), "")
@example((int(Kind.RENAME), 2, b"r" * 16, b"file", b"r" * 16, b"f2", 1.5, b""), "")
@example((int(Kind.FALLOCATE), 2, b"r" * 16, 1.5, 0, 1), "identity")
@example((int(Kind.LISTING), 2, b"x" * 16, [], [], True), "")
@example((int(Kind.LISTING), 2, b"r" * 16, [0o40755, 0, 0, 0, b"", [], 0], [[]], True), "")
@example(
    (int(Kind.LISTING), 2, b"r" * 16, [], [[b"n", b"n" * 16, [0o100644, 0, 0, 0, b"", []], 0, 0.5, 1, 1]], True), ""
)
def test_target_survives_any_operation(reader: Reader, fields: tuple[Any, ...], file: str) -> None:
    if file and "identity" in FIELDS[fields[0]]:
        position = FIELDS[fields[0]].index("identity") + 1
        fields = (*fields[:position], reader.file, *fields[position + 1 :])
    taken_or_refused(reader, frames.encode(*fields))


@given(NESTED, NESTED, NESTED, st.integers(0, 9))
@settings(max_examples=200, deadline=None)
@example([], 0, 5, 5)
@example(b"r" * 16, 0, 5, 5)
def test_target_survives_any_write(reader: Reader, identity: Any, offset: Any, size: Any, payload: int) -> None:
    taken_or_refused(reader, frames.encode(Kind.WRITE, 2, identity, offset, size) + bytes(payload))
    taken_or_refused(reader, frames.encode(Kind.WRITE, 2, reader.file, offset, size) + bytes(payload))


@given(mutations())
@settings(max_examples=150, deadline=None)
def test_target_survives_damaged_frames(reader: Reader, body: bytes) -> None:
    taken_or_refused(reader, LENGTH.pack(len(body)) + body)


@given(st.binary(min_size=4, max_size=200))
@settings(max_examples=200, deadline=None)
def test_target_survives_garbage(reader: Reader, data: bytes) -> None:
    taken_or_refused(reader, data)


@pytest.mark.parametrize("sequence", [0, 1, 3, -1, None, b"2", [2]])
def test_target_takes_only_the_operation_that_is_due(reader: Reader, sequence: object) -> None:
    reader.connect()
    with pytest.raises(ProtocolError, match="where 2 was due"):
        reader.feed(frames.encode(Kind.FORGET, sequence, reader.file))


def test_target_applies_nothing_after_what_it_refuses(reader: Reader) -> None:
    reader.connect()
    good = frames.encode(Kind.WRITE, 2, reader.file, 0, 4) + b"good"
    bad = frames.encode(Kind.TRUNCATE, 3, b"unknown".ljust(16), 0)
    late = frames.encode(Kind.WRITE, 4, reader.file, 0, 4) + b"late"
    with pytest.raises(ProtocolError, match="not declared"):
        reader.feed(good + bad + late)
    with open("file", "rb", opener=lambda path, flags: os.open(path, flags, dir_fd=reader.root)) as file:
        assert file.read(4) == b"good"
    assert reader.target.applied == 2


def test_target_says_what_failed(reader: Reader) -> None:
    reader.connect()
    failures: list[tuple[int, OSError]] = []
    reader.target.on_failure = lambda sequence, error: failures.append((sequence, error))
    with pytest.raises(TargetFailed):
        reader.feed(frames.encode(Kind.UNLINK, 2, reader.identity, b"nothing", b"", True))
    assert [(sequence, error.errno) for sequence, error in failures] == [(2, errno.ENOENT)]
