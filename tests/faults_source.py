"""A source and a peer that is no target: it stays alive, its mount usable, nonsense is no answer."""

import itertools
import os
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.limits import MAX_MESSAGE
from tests.faults import JUNK, WAIT_S, FakeTarget, Peer, bounded, healthy, log_of, said, status, usable, wait_until
from tests.mirror_pair import MirrorPair
from tests.programs import wait_for_end

pytestmark = pytest.mark.timeout(180)

Act = Callable[[Peer], None]
FOUR_GIB = b"\xff\xff\xff\xff"


@pytest.fixture
def fake() -> Iterator[FakeTarget]:
    with FakeTarget() as made:
        yield made


@pytest.fixture
def pair(fake: FakeTarget) -> Iterator[MirrorPair]:
    """A source that goes alone at once whenever it loses its peer, which is the fake."""
    with MirrorPair(source_arguments=["--peer", fake.address, "--alone-after", "0"]) as made:
        made.start_source()
        yield made
        usable(made)
        healthy(made)


def still_there(pair: MirrorPair, what: str, deaths: list[str]) -> None:
    """Collect what the source dies of, and start it again, so that one run shows all of it."""
    assert pair.source is not None
    if pair.source.wait_end(0.05) is None:
        return
    last = [line for line in log_of(pair.source).splitlines() if line.strip()][-1]
    deaths.append(f"{what}: {last}")
    pair.kill_source()
    pair.abort()
    pair.start_source()


def ended(peer: Peer) -> list[list[Any]]:
    """What still comes; the source must end the connection within the time limit."""
    try:
        return peer.answer_until_end()
    finally:
        peer.close()


# ---- before the welcome


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        FOUR_GIB,
        bytes(4),
        LENGTH.pack(MAX_MESSAGE + 1),
        LENGTH.pack(500_000) + b"\x91" * 500_000,
        LENGTH.pack(5) + b"\xdd\xff\xff\xff\xff",
        LENGTH.pack(5) + b"\xc6\xff\xff\xff\xff",
        os.urandom(3000),
    ],
    ids=["http", "ssh", "4 GiB", "empty", "long", "nested", "array", "bytes", "random"],
)
def test_garbage_for_an_answer(pair: MirrorPair, fake: FakeTarget, data: bytes) -> None:
    peer, _ = fake.accept()
    peer.sock.sendall(data)
    peer.sock.shutdown(1)
    ended(peer)
    said(pair.source, "link lost: ")
    assert status(pair.source_state)["state"] == "ALONE"
    assert pair.source is not None
    bounded(pair.source)


def test_four_gib_are_named(pair: MirrorPair, fake: FakeTarget) -> None:
    peer, _ = fake.accept()
    peer.sock.sendall(FOUR_GIB)
    ended(peer)
    said(pair.source, "link lost: the peer announced a frame of 4294967295 bytes, the limit is")


@pytest.mark.parametrize("version", [0, 2, None, "1", 1 << 63])
def test_target_of_another_version(pair: MirrorPair, fake: FakeTarget, version: Any) -> None:
    """One that welcomes us all the same."""
    peer, _ = fake.accept()
    peer.send(Kind.WELCOME, version, fake.welcome())
    answers = ended(peer)
    assert Kind.BEGIN_REINTEGRATION not in [answer[0] for answer in answers]
    said(pair.source, "version")


def test_refusal_is_passed_on(pair: MirrorPair, fake: FakeTarget) -> None:
    peer, _ = fake.accept()
    peer.send(Kind.REFUSED, "the moon is not full")
    ended(peer)
    said(pair.source, "link lost: the peer refused: the moon is not full")
    assert "the moon is not full" in status(pair.source_state)["reason"]


def test_junk_in_the_welcome(pair: MirrorPair, fake: FakeTarget) -> None:
    deaths: list[str] = []
    keys = ("instance", "resume", "applied", "record", "boot", "marks", "extent_shift", "changed")
    marks = (
        [[b"i" * 16]],
        [[b"i" * 16, [0], False, False]],
        [[b"i", [0, 1], False, False]],
        [[b"i" * 16, [5, 1], 0, 0]],
    )
    cases = [{key: value} for key, value in itertools.product(keys, (*JUNK, ...))] + [{"marks": one} for one in marks]
    for case in cases:
        peer, _ = fake.accept()
        peer.send(Kind.WELCOME, 1, fake.welcome(**case))
        peer.sock.shutdown(1)
        ended(peer)
        still_there(pair, f"welcome with {case}", deaths)
    for junk in JUNK:
        peer, _ = fake.accept()
        peer.send(Kind.WELCOME, 1, junk)
        peer.sock.shutdown(1)
        ended(peer)
        still_there(pair, f"welcome {junk!r}", deaths)
    assert not deaths, f"{len(deaths)} ways to end the source:\n" + "\n".join(deaths)


def test_resumption_that_was_not_asked_for(pair: MirrorPair, fake: FakeTarget) -> None:
    """There is no session: a target that resumes one is not in sync with us."""
    peer, hello = fake.accept()
    assert hello["session"] is None
    peer.send(Kind.WELCOME, 1, fake.welcome(resume=True, applied=0))
    ended(peer)
    assert not status(pair.source_state)["in_sync"]
    assert status(pair.source_state)["state"] == "ALONE"


@pytest.mark.parametrize(
    "fields",
    [
        (Kind.APPLIED, 5),
        (Kind.FLUSHED, 1),
        (Kind.TAKEN, b""),
        (Kind.INCONSISTENT, b"g" * 16),
        (Kind.WANTED, b"d" * 16, [], True),
        (Kind.CHECKED, 1, True),
        (Kind.OFFER_SYNC, b""),
        (Kind.HELLO, 1, {}),
        (Kind.PROBE, 1),
        (Kind.FORGET, 1, b"i" * 16),
    ],
    ids=lambda fields: Kind(fields[0]).name,
)
def test_what_is_not_due_before_the_welcome(pair: MirrorPair, fake: FakeTarget, fields: tuple[Any, ...]) -> None:
    peer, _ = fake.accept()
    peer.send(*fields)
    answers = ended(peer)
    assert not [answer for answer in answers if answer[0] < 32], "operations were sent without a welcome"
    assert pair.source is not None
    assert "in sync" not in pair.source.said
    assert status(pair.source_state)["state"] == "ALONE"


# ---- while it is being filled


def begun(fake: FakeTarget) -> Peer:
    """A connection on which a reintegration has begun: the first operation has come."""
    peer, _ = fake.accept()
    peer.send(Kind.WELCOME, 1, fake.welcome())
    generation = peer.expect(Kind.BEGIN_REINTEGRATION)[1]
    peer.send(Kind.INCONSISTENT, generation)
    peer.expect(Kind.LISTING)
    return peer


NOT_DUE: dict[str, Act] = {
    "applied what was not sent": lambda peer: peer.send(Kind.APPLIED, 1_000_000),
    "taken without an offer": lambda peer: peer.send(Kind.TAKEN, b""),
    "a second welcome": lambda peer: peer.send(Kind.WELCOME, 1, FakeTarget.welcome()),
    "inconsistent again": lambda peer: peer.send(Kind.INCONSISTENT, b"g" * 16),
    "an unknown check": lambda peer: peer.send(Kind.CHECKED, 77, False),
    "flushed what was not asked": lambda peer: peer.send(Kind.FLUSHED, 77),
    "an operation": lambda peer: peer.send(Kind.FORGET, 1, b"i" * 16),
    "an unknown kind": lambda peer: peer.sock.sendall(struct.pack(">I", 3) + b"\x92\x7e\x00"),
    "too few fields": lambda peer: peer.sock.sendall(struct.pack(">I", 3) + b"\x92\xcc\x31"),
    "4 GiB": lambda peer: peer.sock.sendall(FOUR_GIB),
}


@pytest.mark.parametrize("what", NOT_DUE)
def test_what_is_not_due_while_it_is_being_filled(pair: MirrorPair, fake: FakeTarget, what: str) -> None:
    peer = begun(fake)
    NOT_DUE[what](peer)
    ended(peer)
    assert pair.source is not None
    assert "in sync" not in pair.source.said
    usable(pair)


def test_junk_while_it_is_being_filled(pair: MirrorPair, fake: FakeTarget) -> None:
    deaths: list[str] = []
    right: dict[Kind, list[Any]] = {
        Kind.APPLIED: [1],
        Kind.FLUSHED: [1],
        Kind.INCONSISTENT: [b"g" * 16],
        Kind.WANTED: [b"d" * 16, [], False],
        Kind.CHECKED: [1, True],
        Kind.TAKEN: [b""],
        Kind.BUSY: [1.0],
    }
    for kind, fields in right.items():
        for position, value in itertools.product(range(len(fields)), JUNK):
            peer = begun(fake)
            peer.send(kind, *fields[:position], value, *fields[position + 1 :])
            peer.sock.shutdown(1)
            ended(peer)
            still_there(pair, f"{kind.name} field {position} = {value!r}", deaths)
    assert not deaths, f"{len(deaths)} ways to end the source:\n" + "\n".join(deaths)


@pytest.mark.parametrize("position", range(5))
def test_junk_in_what_ends_a_connection(pair: MirrorPair, fake: FakeTarget, position: int) -> None:
    """FAILED and REFUSED: after these the source waits for a while before it tries again."""
    kind, fields = (Kind.FAILED, [1, 5, "text", False]) if position < 4 else (Kind.REFUSED, ["text"])
    peer = begun(fake)
    peer.send(kind, *([b"\xff", {1: 2}] if value == fields[position % 4] else value for value in fields))
    ended(peer)
    said(pair.source, "link lost: ")


# ---- in sync


LIES: dict[str, Act] = {
    "applied what was not sent": lambda peer: peer.send(Kind.APPLIED, 1_000_000),
    "applied a text": lambda peer: peer.send(Kind.APPLIED, "5"),
    "applied nothing": lambda peer: peer.send(Kind.APPLIED, None),
    "applied infinity": lambda peer: peer.send(Kind.APPLIED, float("inf")),
    "a welcome": lambda peer: peer.send(Kind.WELCOME, 1, FakeTarget.welcome(resume=True, applied=1_000_000)),
    "inconsistent": lambda peer: peer.send(Kind.INCONSISTENT, b"g" * 16),
    "taken": lambda peer: peer.send(Kind.TAKEN, b""),
    "checked": lambda peer: peer.send(Kind.CHECKED, 1, True),
    "4 GiB": lambda peer: peer.sock.sendall(FOUR_GIB),
    "end": lambda peer: peer.sock.shutdown(1),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_not_taken_for_acknowledgements(fake: FakeTarget, lie: str) -> None:
    """Without a verdict the write stays unanswered, whatever the peer says about it."""
    with MirrorPair(source_arguments=["--peer", fake.address]) as pair:
        with ThreadPoolExecutor(1) as pool:
            synchronised = pool.submit(fake.synchronise)
            pair.start_source()  # ready when it is in sync
            child = write_then(pair, fake, synchronised.result(WAIT_S), LIES[lie])
        said(pair.source, "link lost: ")
        assert not wait_for_end(child, 0.3), "a lie was taken for an acknowledgement"
        assert status(pair.source_state)["state"] == "FROZEN"
        healthy(pair)
        pair.kill_source()
        pair.abort()
        assert wait_for_end(child, WAIT_S)
        child.wait()


def write_then(pair: MirrorPair, fake: FakeTarget, peer: Peer, lie: Act) -> "subprocess.Popen[bytes]":
    """A child writes on the mount; the fake lies at the first WRITE; the child."""
    command = ["dd", "if=/dev/zero", f"of={pair.mount}/written", "bs=4k", "count=1", "conv=notrunc"]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=pair.environment())
    while (fields := peer.receive()) is not None and fields[0] != Kind.WRITE:
        if fields[0] < 32:
            fake.apply(peer, fields)
    assert fields is not None
    lie(peer)
    ended(peer)
    return child


def test_junk_in_sync(pair: MirrorPair, fake: FakeTarget) -> None:
    deaths: list[str] = []
    right: dict[Kind, list[Any]] = {
        Kind.APPLIED: [1],
        Kind.FLUSHED: [1],
        Kind.CHECKED: [1, True],
    }
    for kind, fields in right.items():
        for position, value in itertools.product(range(len(fields)), JUNK):
            peer = fake.synchronise()
            peer.send(kind, *fields[:position], value, *fields[position + 1 :])
            peer.sock.shutdown(1)
            ended(peer)
            still_there(pair, f"{kind.name} field {position} = {value!r}", deaths)
    assert not deaths, f"{len(deaths)} ways to end the source:\n" + "\n".join(deaths)


def test_a_peer_that_takes_and_says_nothing(fake: FakeTarget) -> None:
    """It accepts, reads, and never answers: the stall limit ends it, and memory stays bounded."""
    arguments = ["--peer", fake.address, "--stall-timeout", "1", "--alone-after", "1"]
    with MirrorPair(source_arguments=arguments) as pair:
        pair.start_source()
        for _ in range(2):
            peer, _ = fake.accept()
            ended(peer)
        wait_until(lambda: "nothing heard" in status(pair.source_state)["reason"], "the reason in the status")
        usable(pair)
        healthy(pair)


def test_a_peer_that_does_not_read(fake: FakeTarget) -> None:
    """In sync, then it reads nothing more under load: the writer waits, the queue is bounded."""
    arguments = ["--peer", fake.address, "--stall-timeout", "2", "--alone-after", "1"]
    with MirrorPair(source_arguments=arguments) as pair, ThreadPoolExecutor(1) as pool:
        synchronised = pool.submit(fake.synchronise)
        pair.start_source()
        peer = synchronised.result(WAIT_S)
        said(pair.source, "in sync")
        command = ["dd", "if=/dev/zero", f"of={pair.mount}/large", "bs=1M", "count=200"]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=pair.environment())
        assert not wait_for_end(child, 1), "acknowledged although nobody has it"
        assert pair.source is not None
        bounded(pair.source)
        said(pair.source, "link lost: no progress")
        assert wait_for_end(child, WAIT_S) and child.wait() == 0
        healthy(pair)
        peer.close()
