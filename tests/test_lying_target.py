"""A target and whatever may come to its port: it stays alive, within its directory and within its memory.

The name says which end is tested: the target hears lies here, the source in test_lying_source.py.
"""

import errno
import itertools
import os
import random
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import msgpack
import psutil
import pytest

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.record import Record
from hotpair.replication import frames
from hotpair.replication.frames import FIELDS, LENGTH, Kind
from hotpair.replication.limits import FULL_FLUSHES_AT_ONCE, MAX_MESSAGE, MAX_PAYLOAD, MAX_TEXT, PROTOCOL_VERSION
from hotpair.replication.listing import Listing
from hotpair.replication.target import Target
from tests.faults import (
    JUNK,
    WAIT_S,
    FakeSource,
    Load,
    Peer,
    bounded,
    healthy,
    log_of,
    logged,
    port_of,
    said,
    visible,
    wait_until,
)
from tests.mirror_pair import MirrorPair

pytestmark = pytest.mark.timeout(180)

ROOT, FILE, FOLDER, LINK = (letter * 16 for letter in (b"r", b"f", b"d", b"l"))
DIRECTORY_MODE, LINK_MODE = 0o40755, 0o120777
BAD_NAMES = (b"..", b".", b"", b"/", b"a/b", b"../outside/new", b"/etc/hotpair-test", b"a\0b", b"\0", b"x" * 256)


def running_target() -> MirrorPair:
    """A target that runs, and files beside its directory that must stay as they are."""
    made = MirrorPair()
    os.mkdir(f"{made.base}/outside")
    with open(f"{made.base}/outside/precious", "w") as file:
        file.write("precious")
    made.start_target()
    return made


@pytest.fixture(scope="module")
def targets() -> Iterator[list[MirrorPair]]:
    """The one in use, if there is one."""
    made: list[MirrorPair] = []
    yield made
    for one in made:
        one.close()


@pytest.fixture
def pair(targets: list[MirrorPair]) -> Iterator[MirrorPair]:
    """A target that has been lied to before, unless that was too much for it."""
    if targets and not is_sound(targets[0]):
        targets.pop().close()
    if not targets:
        targets.append(running_target())
    before = outside(targets[0])
    yield targets[0]
    assert outside(targets[0]) == before, "something outside the target's directory was changed"
    healthy(targets[0])


@pytest.fixture
def new_pair() -> Iterator[MirrorPair]:
    """A target that was never a copy of anything."""
    with running_target() as made:
        yield made
        healthy(made)


def is_sound(pair: MirrorPair) -> bool:
    """Whether another test may use it."""
    return pair.target is not None and pair.target.running and "Traceback" not in log_of(pair.target)


def outside(pair: MirrorPair) -> list[Any]:
    """What is beside the target's directory, in the parts that nobody has a reason to change."""
    seen: list[Any] = [name for name in sorted(os.listdir(pair.base)) if not name.endswith(".log")]
    for name in ("outside", "outside/precious"):
        path = f"{pair.base}/{name}"
        status = os.lstat(path)
        seen.append((name, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns, os.listxattr(path)))
    return seen


class Session:
    """A reintegration that was begun, with a directory, a file and a symbolic link that leads outside."""

    serial = itertools.count()

    def __init__(self, pair: MirrorPair) -> None:
        self.pair = pair
        self.source = FakeSource(port_of(pair), ROOT)
        self.source.begin()
        number = struct.pack(">I", next(self.serial))
        self.path = f"{pair.target_dir}/folder{number.hex()}"
        self.folder, self.file, self.link = (what[:12] + number for what in (FOLDER, FILE, LINK))
        self.source.make(ROOT, b"folder" + number.hex().encode(), self.folder, DIRECTORY_MODE)
        self.source.make(self.folder, b"file", self.file)
        self.source.make(self.folder, b"link", self.link, LINK_MODE, os.fsencode(f"{pair.base}/outside"))
        assert self.source.outcome() == "applied"

    def __enter__(self) -> FakeSource:
        return self.source

    def __exit__(self, *_: object) -> None:
        self.source.close()

    def operations(self) -> list[tuple[Kind, list[Any]]]:
        """One right operation of each kind, without its number."""
        status = [0o40755, 0, 0, 0, b"", []]
        entry = [b"file", self.file, [0o100644, 0, 0, 0, b"", []], 0, 0, 1, False]
        return [
            (Kind.WRITE, [self.file, 0, 1]),
            (Kind.TRUNCATE, [self.file, 100]),
            (Kind.FALLOCATE, [self.file, 0, 0, 4096]),
            (Kind.MAKE, [self.folder, b"new", os.urandom(16), 0o100644, 0, 0, 0, b"", []]),
            (Kind.LINK, [self.file, self.folder, b"name"]),
            (Kind.UNLINK, [self.folder, b"file", self.file, True]),
            (Kind.RMDIR, [self.folder, b"link", self.link, True]),
            (Kind.RENAME, [self.folder, b"file", self.folder, b"other", 0, b""]),
            (Kind.ATTRIBUTES, [self.file, 0o600, 1, 1, 1]),
            (Kind.SET_XATTR, [self.file, b"user.x", b"y"]),
            (Kind.REMOVE_XATTR, [self.file, b"user.x"]),
            (Kind.FLUSH, [self.file, True]),
            (Kind.DECLARE, [self.file, self.folder, b"file"]),
            (Kind.FORGET, [self.file]),
            (Kind.LISTING, [self.folder, [*status, 0], [entry], True]),
            (Kind.ZERO, [self.file, 0, 4096]),
            (Kind.CHECK, [self.file, 0, 4096, b"d" * 32]),
            (Kind.DESCRIBE, [self.file, status]),
            (Kind.CHECK_OBJECTS, [self.folder, [[b"file", self.file, status, 0, True]]]),
            (Kind.CHECK_NAMES, [self.folder, 0]),
            (Kind.COMPLETE, [self.file]),
        ]


def still_there(pair: MirrorPair, what: str, deaths: list[str], outcome: str = "closed") -> None:
    """Collect what the target dies of, and start it again, so that one run shows all of it."""
    assert pair.target is not None
    if outcome != "closed" and pair.target.running:
        return  # it has answered
    try:
        with Session(pair):
            pass
    except (OSError, AssertionError):  # it is ending, or has ended
        assert pair.target.wait_end(WAIT_S) is not None, f"after {what} the target runs and does not answer"
    if not pair.target.running:
        last = [line for line in log_of(pair.target).splitlines() if line.strip()][-1]
        deaths.append(f"{what}: {last}")
        pair.kill_target()
        pair.start_target()


# ---- before hello


def test_garbage_on_the_port() -> None:
    """Each is refused at once, and the pair that works meanwhile does not notice."""
    draw = random.Random("garbage")
    hello = LENGTH.pack(3) + msgpack.packb([Kind.HELLO, PROTOCOL_VERSION])
    pieces = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # a TLS ClientHello
        b"SSH-2.0-OpenSSH_9.6\r\n",
        LENGTH.pack(0xFFFFFFFF),
        LENGTH.pack(0),
        LENGTH.pack(MAX_MESSAGE + 1) + bytes(100_000),
        hello,
        LENGTH.pack(1 << 20) + b"\x91" * (1 << 20),
        LENGTH.pack(9) + b"\xdd\xff\xff\xff\xff" + bytes(4),  # an array of 4 thousand million elements
        LENGTH.pack(9) + b"\xc6\xff\xff\xff\xff" + bytes(4),  # 4 GiB of bytes
        *(LENGTH.pack(200) + draw.randbytes(200) for _ in range(50)),
        *(draw.randbytes(draw.randrange(4, 3000)) for _ in range(50)),
    ]
    with MirrorPair() as pair:
        pair.start()
        load = Load(pair)
        load.goes_on()
        for piece in pieces:
            with socket.create_connection(("127.0.0.1", port_of(pair))) as sock:
                sock.settimeout(WAIT_S)
                try:
                    sock.sendall(piece)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                except OSError as error:  # it was refused before we had said all
                    assert error.errno in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN), piece[:20]
        logged(pair.target, "the peer announced a frame of 4294967295 bytes", "limit")
        load.goes_on()
        load.stop()
        assert not pair.troubles()
        healthy(pair)
        load.check()


@pytest.mark.parametrize(
    "version", [PROTOCOL_VERSION + 1, PROTOCOL_VERSION - 1, 0, None, "1", b"1", 1 << 63, "1" * 900_000]
)
def test_another_version(pair: MirrorPair, version: Any) -> None:
    before = visible(pair.target_dir)
    with FakeSource(port_of(pair), ROOT) as source:
        source.hello(version)
        answer = source.expect(Kind.REFUSED)
        assert f"version {version!r}"[:100] in answer[1] and len(answer[1]) <= MAX_TEXT
        assert source.receive() is None
    logged(pair.target, "refused a connection", f"version {version!r}"[:100])
    assert visible(pair.target_dir) == before


def test_junk_in_the_hello(pair: MirrorPair) -> None:
    """Answered with a welcome or a refusal; the target neither dies nor waits."""
    deaths: list[str] = []
    keys = ("instance", "session", "new_session", "record", "root", "extent_size", "durability", "largest_file")
    for key, value in itertools.product(keys, (*JUNK, ...)):
        with FakeSource(port_of(pair), ROOT) as source:
            source.hello(**{key: value})
            answer = source.receive()
            still_there(pair, f"{key} = {value!r}", deaths)
            assert answer is None or answer[0] in (Kind.WELCOME, Kind.REFUSED), (key, value, answer)
    for junk in (*JUNK, {"durability": "x" * 900_000}):
        with FakeSource(port_of(pair), ROOT) as source:
            source.send(Kind.HELLO, PROTOCOL_VERSION, junk)
            answer = source.receive()
            still_there(pair, f"hello = {junk!r}", deaths)
            assert answer is None or answer[0] == Kind.REFUSED
    assert not deaths, "\n".join(deaths)


def test_many_that_never_say_hello() -> None:
    """More than the limit: the pair goes on, and a source gets in when they have gone.

    That they must go after a time is tested in test_link_io.py, with less of it.
    """
    with MirrorPair() as pair:
        pair.start()
        load = Load(pair)
        load.goes_on()
        strangers = [socket.create_connection(("127.0.0.1", port_of(pair))) for _ in range(40)]
        for number, stranger in enumerate(strangers):  # some say the beginning of something
            try:
                stranger.sendall(b"\0\0\0\x50"[: number % 5])
            except OSError:
                pass
        load.goes_on(200)
        logged(pair.target, "too many that have not said hello")
        load.stop()
        assert not pair.troubles()
        pair.stop_source()
        for stranger in strangers:
            stranger.close()
        pair.start_source()
        healthy(pair)
        load.check()


# ---- after hello


@pytest.mark.parametrize("name", BAD_NAMES, ids=repr)
def test_names_that_lead_elsewhere(pair: MirrorPair, name: bytes) -> None:
    deaths: list[str] = []
    text: Any
    for text in (name, name.decode()):
        for number in range(8):
            session = Session(pair)
            with session as source:
                match number:
                    case 0:
                        source.make(session.folder, text, os.urandom(16))
                    case 1:
                        source.operation(Kind.LINK, session.file, session.folder, text)
                    case 2:
                        source.operation(Kind.UNLINK, session.folder, text, session.file)
                    case 3:
                        source.operation(Kind.RMDIR, session.folder, text, ROOT)
                    case 4:
                        source.operation(Kind.RENAME, session.folder, b"file", session.folder, text, 0)
                    case 5:
                        source.operation(Kind.RENAME, session.folder, text, session.folder, b"new", 0)
                    case 6:
                        source.operation(Kind.DECLARE, os.urandom(16), session.folder, text)
                    case 7:
                        entry = [text, os.urandom(16), [0o100644, 0, 0, 0, b"", []], 0, 0, 1, True]
                        source.operation(Kind.LISTING, session.folder, [0o40755, 0, 0, 0, b"", [], 0], [entry], True)
                outcome = source.outcome()
                still_there(pair, f"operation {number} with {text!r}", deaths)
                assert outcome != "applied", f"operation {number} with the name {text!r} was applied"
    assert not deaths, "\n".join(deaths)


def test_symbolic_links_are_not_followed(pair: MirrorPair) -> None:
    """A link that leads outside, used as a directory and as a file."""
    deaths: list[str] = []
    for number in range(9):
        session = Session(pair)
        link = session.link
        with session as source:
            match number:
                case 0:
                    source.make(link, b"new", os.urandom(16))
                case 1:
                    source.operation(Kind.DECLARE, os.urandom(16), link, b"precious")
                case 2:
                    source.operation(Kind.LINK, session.file, link, b"new")
                case 3:
                    source.operation(Kind.RENAME, session.folder, b"file", link, b"new", 0)
                case 4:
                    source.operation(Kind.WRITE, link, 0, 4, payload=b"evil")
                case 5:
                    source.operation(Kind.ATTRIBUTES, link, 0o777, 1, 1, 1)
                case 6:
                    source.operation(Kind.SET_XATTR, link, b"trusted.evil", b"x")
                case 7:
                    source.operation(Kind.TRUNCATE, link, 0)
                case 8:
                    source.operation(Kind.LISTING, link, [0o40755, 0, 0, 0, b"", [], 0], [], True)
            source.outcome()
            still_there(pair, f"operation {number}", deaths)
    assert not deaths, "\n".join(deaths)


def test_our_own_folder_is_not_the_peers(pair: MirrorPair) -> None:
    """`.hotpair` at the top holds each side's own things: no operation of the stream leads there."""
    with Session(pair) as source:
        source.make(ROOT, b".hotpair", os.urandom(16), DIRECTORY_MODE)
        assert source.outcome() != "applied"


def test_right_operations_are_applied(pair: MirrorPair) -> None:
    """The operations in which junk is put in the next test are right ones without it."""
    with Session(pair) as source:
        kinds = {kind for kind, _ in Session(pair).operations()}
        assert kinds == {Kind(kind) for kind in range(1, 32) if kind in FIELDS} - {Kind.FLUSH_ALL, Kind.EMPTY_TRASH}
        source.close()
    for number, (kind, _) in enumerate(Session(pair).operations()):
        session = Session(pair)
        with session as source:
            if kind == Kind.RMDIR:
                source.operation(Kind.UNLINK, session.folder, b"link", session.link, True)
                source.make(session.folder, b"link", session.link, DIRECTORY_MODE)
            elif kind == Kind.REMOVE_XATTR:
                source.operation(Kind.SET_XATTR, session.file, b"user.x", b"y")
            payload = b"x" if kind == Kind.WRITE else b""
            source.operation(kind, *session.operations()[number][1], payload=payload)
            assert source.outcome() == "applied", kind


def test_junk_in_every_field_of_every_operation(pair: MirrorPair) -> None:
    deaths: list[str] = []
    for number, (kind, right) in enumerate(Session(pair).operations()):
        for position, value in itertools.product(range(len(right)), JUNK):
            session = Session(pair)
            with session as source:
                fields = session.operations()[number][1]
                fields[position] = value
                source.operation(kind, *fields, payload=b"x" if kind == Kind.WRITE else b"")
                outcome = source.outcome()
                still_there(pair, f"{kind.name} field {position} = {value!r}", deaths, outcome)
    assert not deaths, f"{len(deaths)} ways to end the target:\n" + "\n".join(deaths)


def test_junk_in_a_listing(pair: MirrorPair) -> None:
    deaths: list[str] = []
    for place, value in itertools.product((*range(7), *((2, n) for n in range(6)), "attributes"), JUNK):
        session = Session(pair)
        entry: list[Any] = [b"file", session.file, [0o100644, 0, 0, 0, b"", []], 0, 0, 1, False]
        attributes: Any = [0o40755, 0, 0, 0, b"", [], 0]
        if isinstance(place, int):
            entry[place] = value
        elif isinstance(place, tuple):
            entry[2][place[1]] = value
        else:
            attributes = value
        with session as source:
            source.operation(Kind.LISTING, session.folder, attributes, [entry], True)
            outcome = source.outcome()
            still_there(pair, f"LISTING {place} = {value!r}", deaths, outcome)
    assert not deaths, f"{len(deaths)} ways to end the target:\n" + "\n".join(deaths)


def test_parts_of_two_listings_are_not_mixed(pair: MirrorPair) -> None:
    session = Session(pair)
    with session as source:
        attributes = [0o40755, 0, 0, 0, b"", [], 0]
        source.operation(Kind.LISTING, session.folder, attributes, [], False)
        source.operation(Kind.LISTING, ROOT, attributes, [], True)
        answer = source.answer_until_end()[-1]
        assert answer[0] == Kind.REFUSED and "another directory" in answer[1]
    assert sorted(os.listdir(session.path)) == ["file", "link"]


class Knowing:
    """A target as far as a listing needs it until its last part has come: it knows every directory."""

    def __init__(self, root_fd: int) -> None:
        self.root_fd = root_fd

    def known(self, identity: bytes) -> bytes:
        return identity


def test_a_listing_without_end_is_bounded(tmp_path: Path) -> None:
    root_fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    listing = Listing(cast(Target, Knowing(root_fd)), limit=1 << 20)
    entry = [b"n" * 200, FILE, [0o100644, 0, 0, 0, b"", [[b"user.x", b"y" * 1000]]], 0, 0, 1, False]
    part = [Kind.LISTING, 1, FOLDER, [], [entry] * 100, False]
    taken = itertools.count()
    with pytest.raises(OSError, match="takes more than 1 MiB"):
        while next(taken) < 100:
            listing.apply(part)
    assert 3 < next(taken) < 10
    listing.close()
    os.close(root_fd)


def test_junk_in_messages(pair: MirrorPair) -> None:
    """What is no operation: out of turn, and with fields that make no sense."""
    deaths: list[str] = []
    one_field = (Kind.BEGIN_REINTEGRATION, Kind.OFFER_SYNC, Kind.PROBE, Kind.BYE, Kind.REFUSED, Kind.APPLIED)
    one_field += (Kind.HANDOVER, Kind.TAKEN, Kind.BUSY, Kind.AGREE, Kind.AGREED)
    junk = (*JUNK, "x" * 900_000)
    for kind, value in itertools.product((*one_field, Kind.WELCOME, Kind.HELLO), junk):
        with Session(pair) as source:
            fields = [value, True] if kind in (Kind.BEGIN_REINTEGRATION, Kind.WELCOME, Kind.HELLO) else [value]
            source.send(kind, *fields)
            outcome = source.outcome()
            still_there(pair, f"{kind.name} {value!r}", deaths, outcome)
    assert not deaths, f"{len(deaths)} ways to end the target:\n" + "\n".join(deaths)


@pytest.mark.parametrize("root", [ROOT, b"R" * 16])
@pytest.mark.parametrize("generation", [b"g" * 16, b"G" * 16])
def test_offer_of_sync_that_does_not_fit(pair: MirrorPair, root: bytes, generation: bytes) -> None:
    """Of another module, of another generation, and not in sync itself."""
    offered = Record(generation=generation, last_role="PRIM", in_sync=True, boot="b", configuration=b"", root=root)
    right = root == ROOT and generation == b"g" * 16
    for record in (offered, replace(offered, in_sync=False)):
        with Session(pair) as source:
            source.send(Kind.OFFER_SYNC, records.encode(record))
            if right and record.in_sync:
                assert source.expect(Kind.TAKEN)
                continue
            answers = source.answer_until_end()
            assert answers[-1][0] == Kind.REFUSED and "offered sync" in answers[-1][1]
            assert Kind.TAKEN not in [answer[0] for answer in answers]
            stored = record_io.load(f"{pair.target_state}/record")
            assert stored is not None and stored.inconsistent and stored.generation == b"g" * 16
            said(pair.target, f"link lost: {answers[-1][1]}")


@pytest.mark.parametrize("size", [0, -1, MAX_PAYLOAD + 1, 1 << 40, 1 << 63, None, "1", 1.5])
def test_payload_sizes(pair: MirrorPair, size: Any) -> None:
    session = Session(pair)
    with session as source:
        source.operation(Kind.WRITE, session.file, 0, size, payload=b"x" * 64)
        assert source.outcome() in ("refused", "closed")
    assert pair.target is not None
    bounded(pair.target)


@pytest.mark.parametrize("offset", [-1, 1 << 63, (1 << 63) - 1, 1 << 62, None, "0"])
def test_offsets(pair: MirrorPair, offset: Any) -> None:
    session = Session(pair)
    with session as source:
        source.operation(Kind.WRITE, session.file, offset, 4, payload=b"evil")
        assert source.outcome() != "applied"


@pytest.mark.parametrize(
    "number", [0, -1, 5, 3, 1 << 63, None, "4", b"4", 4.5, "x" * 900_000], ids=lambda n: repr(n)[:20]
)
def test_operations_out_of_order(pair: MirrorPair, number: Any) -> None:
    """The fourth is due."""
    session = Session(pair)
    with session as source:
        source.send(Kind.MAKE, number, session.folder, b"new", os.urandom(16), 0o100644, 0, 0, 0, b"", [])
        source.send(Kind.PROBE, 0)
        reason = source.expect(Kind.REFUSED)[1]
        assert f"{number!r} where 4 was due"[:100] in reason
        assert source.receive() is None
    assert sorted(os.listdir(session.path)) == ["file", "link"]
    said(pair.target, f"link lost: {reason}")


@pytest.mark.parametrize(
    "body",
    [
        b"\x91" * 500_000,
        b"\x81\x01" * 250_000,
        b"\x95" * 500_000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdc\xff\xff" + b"\x01" * 0xFFFF,
        b"\x92\x01\xdd\x00\x0f\x00\x00" + b"\xc0" * 0xF0000,
        b"\xc1",
        b"",
    ],
    ids=["nested", "nested maps", "nested fives", "array", "map", "extension", "many", "long", "reserved", "empty"],
)
def test_frames_made_to_hurt(pair: MirrorPair, body: bytes) -> None:
    """After hello, where the receiver is the fast one."""
    with Session(pair) as source:
        source.sock.sendall(LENGTH.pack(len(body)) + body)
        answers = source.answer_until_end()
        assert answers[-1][0] == Kind.REFUSED
    assert pair.target is not None
    bounded(pair.target)


def test_a_frame_of_4_gib(pair: MirrorPair) -> None:
    with Session(pair) as source:
        source.sock.sendall(LENGTH.pack(0xFFFFFFFF) + bytes(1000))
        answers = source.answer_until_end()
        assert answers[-1][0] == Kind.REFUSED and "4294967295" in answers[-1][1]
    said(pair.target, answers[-1][1])
    assert pair.target is not None
    bounded(pair.target)


def test_nothing_changes_before_the_copy_is_on_record_as_inconsistent(new_pair: MirrorPair) -> None:
    """An operation that comes without a reintegration or a session in sync before it."""
    pair = new_pair
    kinds = (Kind.MAKE, Kind.WRITE, Kind.ATTRIBUTES, Kind.LISTING, Kind.FLUSH_ALL, Kind.EMPTY_TRASH)
    for known, kind in itertools.product((False, True), kinds):
        if known and kind == kinds[0]:
            Session(pair).source.close()  # from here on there is a record
        record = record_io.load(f"{pair.target_state}/record")
        before = visible(pair.target_dir), os.getxattr(pair.target_dir, "trusted.hotpair.id")
        with FakeSource(port_of(pair), ROOT) as source:
            source.hello()
            source.expect(Kind.WELCOME)
            match kind:
                case Kind.MAKE:
                    source.make(ROOT, b"new", os.urandom(16))
                case Kind.WRITE:
                    source.operation(Kind.WRITE, ROOT, 0, 4, payload=b"evil")
                case Kind.ATTRIBUTES:
                    source.operation(Kind.ATTRIBUTES, ROOT, 0o700, 1, 1, 1)
                case Kind.LISTING:
                    source.operation(Kind.LISTING, ROOT, [0o40755, 0, 0, 0, b"", [], 0], [], True)
                case _:
                    source.operation(kind)
            answer = source.expect(Kind.REFUSED)[1]
            assert "neither begun a reintegration nor resumed a session" in answer
            assert source.receive() is None
        assert (record is not None) is known
        assert before == (visible(pair.target_dir), os.getxattr(pair.target_dir, "trusted.hotpair.id"))
        assert record_io.load(f"{pair.target_state}/record") == record


def test_a_reintegration_is_begun_once(pair: MirrorPair) -> None:
    with Session(pair) as source:
        source.send(Kind.BEGIN_REINTEGRATION, source.generation, True)
        assert "a second time" in source.answer_until_end()[-1][1]


def test_probes_are_answered_together(pair: MirrorPair) -> None:
    session = Session(pair)
    with session as source:
        source.sock.sendall(frames.encode(Kind.PROBE, 0) * 200_000)
        source.make(session.folder, b"last", os.urandom(16))
        answers = 1
        while (answer := source.receive()) != [Kind.APPLIED, source.sent]:
            assert answer is not None
            answers += 1
        assert answers < 20_000, "two hundred thousand probes are answered one by one"


def test_questions_whose_answers_are_not_taken() -> None:
    """A source that asks and never reads: its answers are bounded, and it is dropped like one that is silent."""
    with MirrorPair(target_arguments=["--stall-timeout", "1"]) as pair:
        pair.start_target()
        session = Session(pair)
        with session as source:
            source.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            source.sock.settimeout(WAIT_S)
            with pytest.raises(ConnectionError):  # long before a million
                for first in range(source.sent + 1, 1_000_000, 5000):
                    numbers = range(first, first + 5000)
                    checks = (frames.encode(Kind.CHECK, n, session.file, 0, 1, b"d" * 32) for n in numbers)
                    source.sock.sendall(b"".join(checks))
        said(pair.target, "link lost: nothing heard from the source for 1 s")
        with Session(pair) as another:
            assert another.outcome() == "applied"
        healthy(pair)


@pytest.mark.parametrize("kind", [Kind.FLUSH_ALL, Kind.FLUSH])
def test_more_flushes_than_anybody_needs(pair: MirrorPair, kind: Kind) -> None:
    """Each of them takes a thread or a descriptor here: more than a good source ever asks for are refused."""
    session = Session(pair)
    with session as source:
        rest = () if kind == Kind.FLUSH_ALL else (session.folder, False)
        data = b"".join(frames.encode(kind, source.sent + n, *rest) for n in range(1, 20_000))
        source.sock.sendall(data)
        assert "flushes" in source.answer_until_end(WAIT_S)[-1][1]
    assert pair.target is not None
    assert psutil.Process(pair.target.process.pid).num_threads() < 2 * FULL_FLUSHES_AT_ONCE
    bounded(pair.target)


def test_half_a_frame_then_nothing(pair: MirrorPair) -> None:
    """Whoever stops in the middle of a frame does not hold the place for ever."""
    session = Session(pair)
    source = session.source
    source.sock.sendall(LENGTH.pack(1000) + b"\x95")
    with Session(pair) as another:  # the next one that says hello takes over
        assert another.outcome() == "applied"
    assert source.answer_until_end() is not None
    source.close()


def test_connections_do_not_pile_up(pair: MirrorPair) -> None:
    """Hundreds of sessions that end in every way leave no descriptor behind."""
    assert pair.target is not None
    folder = f"/proc/{pair.target.process.pid}/fd"
    with Session(pair):
        pass
    before = len(os.listdir(folder))
    for number in range(200):
        peer = Peer(socket.create_connection(("127.0.0.1", port_of(pair))))
        if number % 3 == 0:
            peer.sock.sendall(b"garbage" * 10)
        elif number % 3 == 1:
            session = Session(pair)
            session.source.close()
        peer.close()
    wait_until(lambda: len(os.listdir(folder)) <= before + 3, "descriptors are given back")
    bounded(pair.target)
