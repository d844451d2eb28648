"""A source and a peer that is no target: it stays alive, its mount usable, nonsense is no answer.

The name says which end is tested: the source hears lies here, the target in test_lying_target.py.
"""

import random
import struct
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from hotpair.replication.errors import MirrorError
from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.limits import MAX_MESSAGE, MAX_TEXT, PROTOCOL_VERSION
from tests.faults import (
    JUNK,
    WAIT_S,
    FakeTarget,
    Peer,
    ask,
    bounded,
    healthy,
    log_of,
    said,
    status,
    usable,
    wait_until,
)
from tests.mirror_pair import MirrorPair
from tests.programs import wait_for_end

pytestmark = pytest.mark.timeout(180)

T = TypeVar("T")
Act = Callable[[Peer], None]
# Each connection takes a quarter of a second: of the junk a third goes into a field, another third into the next one
IN_FULL = pytest.mark.parametrize("in_full", [False, pytest.param(True, marks=pytest.mark.long)])
FOUR_GIB = b"\xff\xff\xff\xff"


def junk_for(fields: Iterable[T], in_full: bool) -> Iterator[tuple[T, Any]]:
    for number, field in enumerate(fields):
        for value in JUNK if in_full else JUNK[number % 3 :: 3]:
            yield field, value


class LiedTo:
    """A source whose peer is the fake. Tests use it one by one."""

    def __init__(self, *, alone: bool) -> None:
        self.alone = alone  # it goes alone whenever it loses its peer; otherwise it waits for a verdict
        self.fake = FakeTarget()
        arguments = ["--peer", self.fake.address, *(["--alone-after", "0"] if alone else [])]
        self.pair = MirrorPair(source_arguments=arguments)
        self.start()

    def start(self) -> None:
        """Until it is alone, or in sync and without its peer."""
        self.fake.source_state = None
        if self.alone:
            self.pair.start_source()
        else:
            with ThreadPoolExecutor(1) as pool:
                synchronised = pool.submit(self.fake.synchronise)
                self.pair.start_source()
                synchronised.result(WAIT_S).close()
        self.fake.source_state = self.state

    @property
    def state(self) -> str:
        """Its state directory."""
        return self.pair.source_state

    @property
    def is_sound(self) -> bool:
        """Whether another test may use it."""
        source = self.pair.source
        return source is not None and source.running and "Traceback" not in log_of(source)

    def close(self) -> None:
        self.pair.close()
        self.fake.close()


@pytest.fixture(scope="module")
def sources() -> Iterator[list[LiedTo]]:
    """The one in use, if there is one."""
    made: list[LiedTo] = []
    yield made
    for one in made:
        one.close()


@pytest.fixture
def alone(sources: list[LiedTo]) -> Iterator[LiedTo]:
    """A source that is alone, and whose last reason says nothing of what an earlier test has done."""
    if sources and not sources[0].is_sound:
        sources.pop().close()
    if not sources:
        sources.append(LiedTo(alone=True))
    one = sources[0]
    peer, _ = one.fake.accept()
    peer.send(Kind.REFUSED, "another test begins")
    ended(peer)
    assert reason(one) == "the peer refused: another test begins"
    yield one
    usable(one.pair)
    healthy(one.pair)


@pytest.fixture
def waiting() -> Iterator[LiedTo]:
    """A source that was in sync and has lost its peer: it waits for it, or for a verdict."""
    one = LiedTo(alone=False)
    try:
        yield one
        one.fake.synchronise().close()  # a handover that was asked for has not happened
        wait_until(lambda: status(one.state)["state"] == "FROZEN", "the last connection is lost")
        ask(one.state, "go_alone")
        usable(one.pair)
        healthy(one.pair)
    finally:
        one.close()


def reason(source: LiedTo) -> str:
    """Why there is no connection."""
    answer: str = status(source.state)["reason"]
    return answer


def still_there(source: LiedTo, what: str, deaths: list[str]) -> None:
    """Collect what the source dies of, and start it again, so that one run shows all of it."""
    pair = source.pair
    assert pair.source is not None
    try:
        ask(source.state, "retry")  # answered by the loop
    except (MirrorError, OSError):
        assert pair.source.wait_end(WAIT_S) is not None, f"after {what} the source runs and does not answer"
        last = [line for line in log_of(pair.source).splitlines() if line.strip()][-1]
        deaths.append(f"{what}: {last}")
        pair.kill_source()
        pair.abort()
        source.start()


def ended(peer: Peer) -> list[list[Any]]:
    """What still comes; the source must end the connection within the time limit."""
    try:
        return peer.answer_until_end(WAIT_S)
    finally:
        peer.close()


def refusal(peer: Peer) -> str:
    """Why the source ends the connection, as it tells its peer."""
    answers = ended(peer)
    assert answers and answers[-1][0] == Kind.REFUSED, answers[-3:]
    text: str = answers[-1][1]
    return text


# ---- before the welcome

GARBAGE = {
    "http": (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a frame of 1213486160 bytes"),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", "a frame of 1397966893 bytes"),
    "4 GiB": (FOUR_GIB, "a frame of 4294967295 bytes, the limit is"),
    "empty": (bytes(4), "a frame of 0 bytes"),
    "long": (LENGTH.pack(MAX_MESSAGE + 1), f"a frame of {MAX_MESSAGE + 1} bytes"),
    "nested": (LENGTH.pack(500_000) + b"\x91" * 500_000, "bytes that are not a frame"),
    "array": (LENGTH.pack(5) + b"\xdd\xff\xff\xff\xff", "bytes that are not a frame"),
    "bytes": (LENGTH.pack(5) + b"\xc6\xff\xff\xff\xff", "bytes that are not a frame"),
    "random": (random.Random("answer").randbytes(3000), "a frame of"),
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_for_an_answer(alone: LiedTo, what: str) -> None:
    """Both sides are told what is wrong with it."""
    data, words = GARBAGE[what]
    peer, _ = alone.fake.accept()
    peer.sock.sendall(data)
    assert words in refusal(peer)
    assert words in reason(alone)
    assert status(alone.state)["state"] == "ALONE"
    assert alone.pair.source is not None
    bounded(alone.pair.source)


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, None, "1", 1 << 63, "1" * 900_000])
def test_target_of_another_version(alone: LiedTo, version: Any) -> None:
    """One that welcomes us all the same."""
    peer, _ = alone.fake.accept()
    peer.send(Kind.WELCOME, version, alone.fake.welcome())
    answers = ended(peer)
    assert [answer[0] for answer in answers] == [Kind.REFUSED]
    assert "version" in answers[0][1] and len(answers[0][1]) <= MAX_TEXT
    assert reason(alone) == answers[0][1]


def test_refusal_is_passed_on(alone: LiedTo) -> None:
    peer, _ = alone.fake.accept()
    peer.send(Kind.REFUSED, "the moon\nis not full")
    ended(peer)
    assert reason(alone) == "the peer refused: the moon is not full"


@IN_FULL
def test_junk_in_the_welcome(alone: LiedTo, in_full: bool) -> None:
    deaths: list[str] = []
    keys = ("instance", "resume", "applied", "record", "boot", "marks", "extent_shift", "changed")
    marks = (
        [[b"i" * 16]],
        [[b"i" * 16, [0], False, False]],
        [[b"i", [0, 1], False, False]],
        [[b"i" * 16, [5, 1], 0, 0]],
    )
    cases: list[Any] = [alone.fake.welcome(**{key: value}) for key, value in junk_for(keys, in_full)]
    cases += [alone.fake.welcome(**{key: ...}) for key in keys]  # it is not there
    cases += [alone.fake.welcome(marks=one) for one in marks]
    for welcome in (*cases, *JUNK):
        peer, _ = alone.fake.accept()
        peer.send(Kind.WELCOME, PROTOCOL_VERSION, welcome)
        peer.sock.shutdown(1)
        ended(peer)
        still_there(alone, f"welcome {welcome!r}", deaths)
    assert not deaths, f"{len(deaths)} ways to end the source:\n" + "\n".join(deaths)


def test_resumption_that_was_not_asked_for(alone: LiedTo) -> None:
    """There is no session: a target that resumes one is not in sync with us."""
    peer, hello = alone.fake.accept()
    assert hello["session"] is None
    peer.send(Kind.WELCOME, PROTOCOL_VERSION, alone.fake.welcome(resume=True, applied=0))
    assert "resumes a session that it was not asked to resume" in refusal(peer)
    assert not status(alone.state)["in_sync"]
    assert status(alone.state)["state"] == "ALONE"


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
        (Kind.HELLO, PROTOCOL_VERSION, {}),
        (Kind.PROBE, 1),
        (Kind.FORGET, 1, b"i" * 16),
        (Kind.HANDED_OVER, b""),
        (Kind.AGREED, 1),
        (Kind.LEAVE,),
        (Kind.GONE,),
    ],
    ids=lambda fields: Kind(fields[0]).name,
)
def test_what_is_not_due_before_the_welcome(alone: LiedTo, fields: tuple[Any, ...]) -> None:
    peer, _ = alone.fake.accept()
    peer.send(*fields)
    answers = ended(peer)
    assert [answer[0] for answer in answers] == [Kind.REFUSED], "something else was sent without a welcome"
    assert f"{Kind(fields[0]).name}, which was not due" in reason(alone) == answers[0][1]
    assert status(alone.state)["state"] == "ALONE"


# ---- while it is being filled


def welcome(peer: Peer, **changes: Any) -> None:
    peer.send(Kind.WELCOME, PROTOCOL_VERSION, FakeTarget.welcome(**changes))


def begun(fake: FakeTarget) -> Peer:
    """A connection on which a reintegration has begun: the first operation has come."""
    peer, _ = fake.accept()
    peer.send(Kind.WELCOME, PROTOCOL_VERSION, fake.welcome())
    generation = peer.expect(Kind.BEGIN_REINTEGRATION)[1]
    peer.send(Kind.INCONSISTENT, generation)
    peer.expect(Kind.LISTING)
    return peer


NOT_DUE: dict[str, tuple[Act, str]] = {
    "applied what was not sent": (lambda peer: peer.send(Kind.APPLIED, 1_000_000), "acknowledged what was not sent"),
    "taken without an offer": (lambda peer: peer.send(Kind.TAKEN, b""), "TAKEN, which was not due"),
    "a second welcome": (
        lambda peer: peer.send(Kind.WELCOME, PROTOCOL_VERSION, FakeTarget.welcome()),
        "WELCOME, which was not due",
    ),
    "inconsistent again": (lambda peer: peer.send(Kind.INCONSISTENT, b"g" * 16), "INCONSISTENT, which was not due"),
    "an unknown check": (lambda peer: peer.send(Kind.CHECKED, 77, False), "CHECKED for what was not sent"),
    "a check not asked for": (lambda peer: peer.send(Kind.CHECKED, 1, False), "comparison that was not asked for"),
    "flushed what was not sent": (lambda peer: peer.send(Kind.FLUSHED, 77), "FLUSHED for what was not sent"),
    "an epoch": (lambda peer: peer.send(Kind.AGREED, 1), "AGREED, which was not due"),
    "it wants to leave": (lambda peer: peer.send(Kind.LEAVE), "LEAVE, which was not due"),
    "it has gone": (lambda peer: peer.send(Kind.GONE), "GONE, which was not due"),
    "an operation": (lambda peer: peer.send(Kind.FORGET, 1, b"i" * 16), "FORGET, which was not due"),
    "an unknown kind": (lambda peer: peer.sock.sendall(struct.pack(">I", 3) + b"\x92\x7e\x00"), "unknown kind 126"),
    "too few fields": (lambda peer: peer.sock.sendall(struct.pack(">I", 3) + b"\x91\xcc\x31"), "with 1 elements"),
    "4 GiB": (lambda peer: peer.sock.sendall(FOUR_GIB), "a frame of 4294967295 bytes"),
}


@pytest.mark.parametrize("what", NOT_DUE)
def test_what_is_not_due_while_it_is_being_filled(alone: LiedTo, what: str) -> None:
    act, words = NOT_DUE[what]
    peer = begun(alone.fake)
    act(peer)
    assert words in refusal(peer)
    assert words in reason(alone)
    assert not status(alone.state)["in_sync"]


@IN_FULL
def test_junk_while_it_is_being_filled(alone: LiedTo, in_full: bool) -> None:
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
    places = [(kind, position) for kind, fields in right.items() for position in range(len(fields))]
    for (kind, position), value in junk_for(places, in_full):
        fields = right[kind]
        peer = begun(alone.fake)
        peer.send(kind, *fields[:position], value, *fields[position + 1 :])
        peer.sock.shutdown(1)
        ended(peer)
        still_there(alone, f"{kind.name} field {position} = {value!r}", deaths)
    assert not deaths, f"{len(deaths)} ways to end the source:\n" + "\n".join(deaths)


@pytest.mark.parametrize("junk", [[b"\xff", {1: 2}], "x" * 900_000])
@pytest.mark.parametrize("position", range(5))
def test_junk_in_what_ends_a_connection(alone: LiedTo, position: int, junk: Any) -> None:
    """FAILED and REFUSED."""
    kind, fields = (Kind.FAILED, [1, 5, "text", False]) if position < 4 else (Kind.REFUSED, ["text"])
    fields[position % 4] = junk
    peer = begun(alone.fake)
    peer.send(kind, *fields)
    ended(peer)
    assert "another test" not in reason(alone) and len(reason(alone)) < 2 * MAX_TEXT


# ---- in sync


LIES: dict[str, Act] = {
    "applied what was not sent": lambda peer: peer.send(Kind.APPLIED, 1_000_000),
    "applied a text": lambda peer: peer.send(Kind.APPLIED, "5"),
    "applied nothing": lambda peer: peer.send(Kind.APPLIED, None),
    "applied infinity": lambda peer: peer.send(Kind.APPLIED, float("inf")),
    "a welcome": lambda peer: peer.send(
        Kind.WELCOME, PROTOCOL_VERSION, FakeTarget.welcome(resume=True, applied=1_000_000)
    ),
    "inconsistent": lambda peer: peer.send(Kind.INCONSISTENT, b"g" * 16),
    "taken": lambda peer: peer.send(Kind.TAKEN, b""),
    "handed over": lambda peer: peer.send(Kind.HANDED_OVER, b""),
    "failed, and outdated in a way": lambda peer: peer.send(Kind.FAILED, 1, 5, "text", {1: 2}),
    "4 GiB": lambda peer: peer.sock.sendall(FOUR_GIB),
    "end": lambda peer: peer.sock.shutdown(1),
}


def test_lies_are_not_taken_for_acknowledgements(waiting: LiedTo) -> None:
    """Without a verdict the write stays unanswered, whatever the peer says about it."""
    for what, lie in LIES.items():
        child = write_then(waiting.pair, waiting.fake, waiting.fake.synchronise(), lie)
        wait_until(lambda: status(waiting.state)["state"] == "FROZEN", f"frozen after {what}")
        seen = status(waiting.state)
        assert seen["in_flight"] and seen["reason"], f"{what} was taken for an acknowledgement"
        assert child.poll() is None
        waiting.fake.synchronise().close()  # all of it is copied: that answers the write
        assert wait_for_end(child, WAIT_S) and child.wait() == 0


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


@IN_FULL
def test_junk_in_sync(waiting: LiedTo, in_full: bool) -> None:
    deaths: list[str] = []
    right: dict[Kind, list[Any]] = {
        Kind.APPLIED: [1],
        Kind.FLUSHED: [1],
        Kind.CHECKED: [1, True],
        Kind.HANDED_OVER: [b""],
    }
    places = [(kind, position) for kind, fields in right.items() for position in range(len(fields))]
    for (kind, position), value in junk_for(places, in_full):
        fields = right[kind]
        peer = waiting.fake.resume()
        peer.send(kind, *fields[:position], value, *fields[position + 1 :])
        peer.sock.shutdown(1)
        ended(peer)
        still_there(waiting, f"{kind.name} field {position} = {value!r}", deaths)
    assert not deaths, f"{len(deaths)} ways to end the source:\n" + "\n".join(deaths)


ANSWERS: dict[str, tuple[str, Kind, Callable[[int, Any], tuple[Any, ...]]]] = {
    "handed over": ("handover", Kind.HANDOVER, lambda _, junk: (Kind.HANDED_OVER, junk)),
    "compared": ("verify_start", Kind.CHECK_OBJECTS, lambda number, junk: (Kind.COMPARED, number, junk)),
    "difference": ("verify_start", Kind.CHECK_OBJECTS, lambda number, junk: (Kind.COMPARED, number, [[b"f", junk]])),
    "names": ("verify_start", Kind.CHECK_NAMES, lambda number, junk: (Kind.NAMES, number, junk, -1)),
    "name": ("verify_start", Kind.CHECK_NAMES, lambda number, junk: (Kind.NAMES, number, [junk], -1)),
    "position": ("verify_start", Kind.CHECK_NAMES, lambda number, junk: (Kind.NAMES, number, [], junk)),
}


@IN_FULL
@pytest.mark.parametrize("what", ANSWERS)
def test_junk_for_an_answer_to_what_was_asked(waiting: LiedTo, what: str, in_full: bool) -> None:
    """The peer is asked to take over, or to compare, and answers something else."""
    command, question, answer = ANSWERS[what]
    deaths: list[str] = []
    for junk in (junk for one, junk in junk_for(ANSWERS, in_full) if one == what):
        peer = waiting.fake.resume()
        wait_until(lambda: status(waiting.state)["in_sync"], "the source knows that it is in sync")
        ask(waiting.state, command)
        while (fields := peer.receive()) is not None and fields[0] != question:
            if fields[0] < 32:
                waiting.fake.apply(peer, fields)
        assert fields is not None
        peer.send(*answer(fields[1], junk))
        peer.sock.shutdown(1)
        ended(peer)
        still_there(waiting, f"{question.name} is answered with {what} {junk!r}", deaths)
    assert not deaths, f"{len(deaths)} ways to end the source:\n" + "\n".join(deaths)


def test_a_peer_that_takes_and_says_nothing() -> None:
    """It accepts, reads, and never answers: the stall limit ends it, and memory stays bounded."""
    with FakeTarget() as fake:
        arguments = ["--peer", fake.address, "--stall-timeout", "1", "--alone-after", "0"]
        with MirrorPair(source_arguments=arguments) as pair:
            pair.start_source()
            for _ in range(2):
                peer, _ = fake.accept()
                ended(peer)
            wait_until(lambda: "nothing heard" in status(pair.source_state)["reason"], "the reason in the status")
            usable(pair)
            healthy(pair)


def test_a_peer_that_does_not_read() -> None:
    """In sync, then it reads nothing more under load: the writer waits, the queue is bounded."""
    with (
        FakeTarget() as fake,
        ThreadPoolExecutor(1) as pool,
        MirrorPair(source_arguments=["--peer", fake.address, "--stall-timeout", "1"]) as pair,
    ):
        synchronised = pool.submit(fake.synchronise)
        pair.start_source()
        peer = synchronised.result(WAIT_S)
        command = ["dd", "if=/dev/zero", f"of={pair.mount}/large", "bs=1M", "count=200"]
        child = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=pair.environment())
        said(pair.source, "link lost: no progress")
        assert child.poll() is None, "acknowledged although nobody has it"
        healthy(pair)
        wait_until(lambda: status(pair.source_state)["state"] == "FROZEN", "it waits for a verdict")
        ask(pair.source_state, "go_alone")
        assert wait_for_end(child, WAIT_S) and child.wait() == 0
        healthy(pair)
        peer.close()
