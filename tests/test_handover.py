"""A planned handover (swap) on real processes, undisturbed and with the worst at each moment.

Whatever happens, one of the two servers is the next source by both records, the other one its target, and nothing that
was written is lost.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from hotpair.cluster import record_io
from hotpair.cluster.record import Record, Side, meet
from hotpair.replication import frames
from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import MirrorError
from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.process_io import boot_id
from tests.faults import wait_until
from tests.mirror_pair import MirrorPair, MirrorProcess, ReservedPort

TIMEOUT_S = 30.0
SIZE = 6 << 20
SMALL = 1 << 20  # bytes over the link: less than the content, more than listings


def write_something(pair: MirrorPair) -> None:
    os.makedirs(f"{pair.mount}/disks", exist_ok=True)
    with open(f"{pair.mount}/disks/a", "ab") as file:
        file.write(os.urandom(SIZE))
    with open(f"{pair.mount}/small", "w") as text:
        text.write(str(time.time_ns()))


@pytest.fixture
def pair() -> Iterator[MirrorPair]:
    with MirrorPair() as made:
        made.start()
        write_something(made)
        yield made


def record_of(state: str) -> Record:
    record = record_io.load(f"{state}/record")
    assert record is not None
    return record


def swap(pair: MirrorPair) -> None:
    """The two servers change their roles, in the fixture's eyes; both processes have ended."""
    for process in (pair.source, pair.target):
        if process is not None:
            assert process.wait_end(TIMEOUT_S) is not None
            process.close()
    pair.source = pair.target = None
    pair.source_dir, pair.target_dir = pair.target_dir, pair.source_dir
    pair.source_state, pair.target_state = pair.target_state, pair.source_state
    pair.mount = pair.source_dir


def ask(pair: MirrorPair) -> None:
    with ControlClient(pair.source_state) as control:
        control.ask("handover")


def said(process: MirrorProcess | None, line: str, timeout_s: float = TIMEOUT_S) -> str:
    """The line that begins like this, as soon as the process has said it."""
    assert process is not None
    deadline = time.monotonic() + timeout_s
    while True:
        found = [text for text in process.said if text.startswith(line)]
        if found:
            return found[-1]
        assert time.monotonic() < deadline, process.said
        time.sleep(0.01)


def status(pair: MirrorPair) -> dict[str, object]:
    with ControlClient(pair.source_state) as control:
        return control.ask("status")


def start_by_the_records(pair: MirrorPair) -> bool:
    """Start both where their records say, as two supervisors would; whether they have changed their roles."""
    pair.abort()
    records = [record_of(state) for state in (pair.source_state, pair.target_state)]
    met = meet(*records, True, True, first=Side.ME, preferred=Side.ME)
    assert met.source is not Side.NOBODY, met
    other = meet(*reversed(records), True, True, first=Side.PEER, preferred=Side.PEER)
    assert other.source is met.source.swapped()
    if met.source is Side.PEER:
        swap(pair)
    pair.start()
    return met.source is Side.PEER


def check_that_all_is_there(pair: MirrorPair, content: dict[str, bytes]) -> None:
    """Both copies hold it, and take more of it."""
    for path, data in content.items():
        with open(f"{pair.mount}/{path}", "rb") as file:
            assert file.read() == data, path
    write_something(pair)
    pair.stop()
    assert pair.compare() == []


def content_of(pair: MirrorPair) -> dict[str, bytes]:
    found = {}
    for path in ("disks/a", "small"):
        with open(f"{pair.mount}/{path}", "rb") as file:
            found[path] = file.read()
    return found


def test_a_handover_and_back(pair: MirrorPair) -> None:
    """Each time nothing is copied: both copies are equal, and no log says otherwise."""
    for number in range(1, 4):
        content = content_of(pair)
        generation = record_of(pair.source_state).generation
        ask(pair)
        for process in (pair.source, pair.target):
            assert process is not None and process.wait_end(TIMEOUT_S) == 0
            assert said(process, "handed over") and not [line for line in process.said if line == "stopped"]
        assert pair.source is not None and "unmounted" not in pair.source.said
        former, successor = record_of(pair.source_state), record_of(pair.target_state)
        assert (former.last_role, successor.last_role) == ("SECOND", "PRIM")
        assert former.term == successor.term == number
        assert former.in_sync and successor.in_sync and former.generation == successor.generation == generation
        assert not os.path.exists(f"{pair.target_state}/dirty-log")
        swap(pair)
        assert pair.compare() == []
        pair.start()
        sent = status(pair)["sent_bytes"]
        assert isinstance(sent, int) and sent < SMALL, "content was copied although both copies are equal"
        for path, data in content.items():
            with open(f"{pair.mount}/{path}", "rb") as file:
                assert file.read() == data
        write_something(pair)
    pair.stop()
    assert pair.compare() == []


def test_the_former_target_of_a_former_source(pair: MirrorPair) -> None:
    """A server that has been source before, with a log of its own that it has given up, compares nothing either."""
    ask(pair)
    swap(pair)
    pair.start()
    write_something(pair)
    ask(pair)
    swap(pair)
    assert record_of(pair.source_state).log_counter == 0
    pair.start()
    sent = status(pair)["sent_bytes"]
    assert isinstance(sent, int) and sent < SMALL
    pair.stop()
    assert pair.compare() == []


def test_refused_when_not_in_sync(pair: MirrorPair) -> None:
    pair.kill_target()
    said(pair.source, "state FROZEN")
    with pytest.raises(MirrorError, match="only a pair in sync"):
        ask(pair)
    with ControlClient(pair.source_state) as control:
        control.ask("go_alone")
        with pytest.raises(MirrorError, match="only a pair in sync"):
            ask(pair)


def test_a_write_under_way_is_waited_for(pair: MirrorPair) -> None:
    """What is written until the copies are flushed is on both; the VM's last writes are not lost."""
    path = f"{pair.mount}/disks/late"
    written: list[int] = []

    def write() -> None:
        with open(path, "wb", 0) as file:
            try:
                for number in range(100_000):
                    os.pwrite(file.fileno(), bytes([number % 251]) * 4096, number * 4096)
                    written.append(number)
            except OSError:
                return  # the handover was asked for while the VM runs: what was not acknowledged fails

    writer = threading.Thread(target=write)
    writer.start()
    while len(written) < 10:
        time.sleep(0.001)
    ask(pair)
    process = pair.source
    assert process is not None
    outcome = process.wait_end(TIMEOUT_S + 10)
    writer.join(TIMEOUT_S)
    assert not writer.is_alive()
    if outcome is None:  # it wrote all the time
        assert said(process, "not handed over: the VM still writes")
        pair.stop()
    else:
        swap(pair)
    with open(f"{pair.source_dir}/disks/late", "rb") as file:
        for number in written:
            assert file.read(4096) == bytes([number % 251]) * 4096, number
    assert pair.compare() == []


# --- the link breaks --------------------------------------------------------------------------------------------------


class Proxy:
    """Between source and target; it can tell the frames of the source apart, and cut the link at a chosen one."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._port = ReservedPort()
        self._listener = socket.create_server(("127.0.0.1", self._port.number))
        self.address = f"127.0.0.1:{self._port.number}"
        self.before: Callable[[], None] | None = None  # instead of passing the question on
        self.mute = False  # nothing of what the target says arrives, from the question on
        self._muted = False
        self.closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.closed:
            try:
                source, _ = self._listener.accept()
            except OSError:
                return
            try:
                target = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:
                source.close()
                continue
            threading.Thread(target=self._to_target, args=(source, target), daemon=True).start()
            threading.Thread(target=self._to_source, args=(target, source), daemon=True).start()

    def _to_target(self, source: socket.socket, target: socket.socket) -> None:
        stream = source.makefile("rb")
        try:
            while head := stream.read(LENGTH.size):
                body = stream.read(LENGTH.unpack(head)[0])
                fields = frames.decode(body)
                payload = stream.read(frames.payload_size(fields))
                if fields[0] == Kind.HANDOVER:
                    if self.before is not None:
                        act, self.before = self.before, None
                        act()
                        return
                    self._muted = self.mute
                target.sendall(head + body + payload)
        except OSError:
            pass
        finally:
            cut(source, target)

    def _to_source(self, target: socket.socket, source: socket.socket) -> None:
        try:
            while data := target.recv(1 << 16):
                if not self._muted:
                    source.sendall(data)
        except OSError:
            pass
        finally:
            self._muted = False
            cut(source, target)

    def close(self) -> None:
        self.closed = True
        self._listener.close()
        self._port.close()


def cut(*sockets: socket.socket) -> None:
    for sock in sockets:
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        sock.close()


@pytest.fixture
def proxied() -> Iterator[tuple[MirrorPair, Proxy]]:
    with MirrorPair() as made:
        proxy = Proxy(made._port.number)
        made.source_arguments = ["--peer", proxy.address, "--alone-after", "1"]
        made.start()
        write_something(made)
        yield made, proxy
        proxy.close()


def test_cut_before_the_question_arrives(proxied: tuple[MirrorPair, Proxy]) -> None:
    """The same session goes on: it is certain that the peer has not been asked."""
    pair, proxy = proxied
    content = content_of(pair)
    proxy.before = lambda: None
    ask(pair)
    assert "unknown" in said(pair.source, "the outcome of the handover is unknown")
    assert pair.source is not None
    wait_until(lambda: status(pair)["in_sync"], "in sync", TIMEOUT_S)
    assert status(pair)["handover"] is None
    assert record_of(pair.target_state).last_role == "SECOND"
    check_that_all_is_there(pair, content)


def test_the_answer_is_lost(proxied: tuple[MirrorPair, Proxy]) -> None:
    """The peer has taken over and the source has not heard of it: it must not go alone by time."""
    pair, proxy = proxied
    content = content_of(pair)
    proxy.mute = True
    ask(pair)
    assert pair.target is not None and pair.target.wait_end(TIMEOUT_S) == 0
    assert said(pair.target, "handed over")
    said(pair.source, "the outcome of the handover is unknown")
    time.sleep(2.5)  # longer than --alone-after
    found = status(pair)
    assert (found["state"], found["handover"]) == ("FROZEN", "asked")
    assert "unknown" in str(found["reason"])
    assert record_of(pair.source_state).last_role == "PRIM" and record_of(pair.target_state).term == 1
    with ControlClient(pair.source_state) as control:
        control.ask("stop")
    assert pair.source is not None and pair.source.wait_end(TIMEOUT_S) == 0
    pair.source_arguments = []
    assert start_by_the_records(pair)
    check_that_all_is_there(pair, content)


def test_the_answer_is_lost_and_the_source_is_killed(proxied: tuple[MirrorPair, Proxy]) -> None:
    pair, proxy = proxied
    content = content_of(pair)
    proxy.mute = True
    ask(pair)
    said(pair.source, "the outcome of the handover is unknown")
    pair.kill_source()
    pair.source_arguments = []
    assert start_by_the_records(pair)
    check_that_all_is_there(pair, content)


def test_the_target_is_killed_before_the_question_arrives(proxied: tuple[MirrorPair, Proxy]) -> None:
    """It comes back as what it was: the source finds that out by itself and goes on."""
    pair, proxy = proxied
    content = content_of(pair)
    proxy.before = pair.kill_target
    ask(pair)
    said(pair.source, "the outcome of the handover is unknown")
    time.sleep(2.5)
    assert status(pair)["state"] == "FROZEN"
    pair.start_target()
    wait_until(lambda: status(pair)["in_sync"], "in sync", TIMEOUT_S)
    check_that_all_is_there(pair, content)


def test_a_verdict_ends_the_waiting(proxied: tuple[MirrorPair, Proxy]) -> None:
    """Arbitration (the test, here) has found that the peer has not taken over and will not."""
    pair, proxy = proxied
    content = content_of(pair)
    proxy.before = pair.kill_target
    ask(pair)
    said(pair.source, "the outcome of the handover is unknown")
    with ControlClient(pair.source_state) as control:
        control.ask("go_alone")
    said(pair.source, "state ALONE")
    write_something(pair)
    content = content_of(pair)
    pair.start_target()
    wait_until(lambda: status(pair)["in_sync"], "in sync", TIMEOUT_S)
    check_that_all_is_there(pair, content)


KILLED = (("source", (0, 10, 40)), ("target", (0, 10, 80)), ("both", (5, 20)))
KILLED_AS_WELL = (("source", (2, 5, 20, 80)), ("target", (2, 5, 20, 40)), ("both", (0, 2, 10, 40, 80)))


@pytest.mark.parametrize(
    ("delay_ms", "who"),
    [
        *((delay, who) for who, delays in KILLED for delay in delays),
        *(pytest.param(delay, who, marks=pytest.mark.long) for who, delays in KILLED_AS_WELL for delay in delays),
    ],
)
def test_killed_around_the_handover(pair: MirrorPair, who: str, delay_ms: int) -> None:
    content = content_of(pair)
    ask(pair)
    time.sleep(delay_ms / 1000)
    if who != "target":
        pair.kill_source()
    if who != "source":
        pair.kill_target()
    for process in (pair.source, pair.target):
        if process is not None and process.wait_end(1.0) is None:
            process.process.kill()
            process.wait_end(TIMEOUT_S)
    for process in (pair.source, pair.target):
        if process is not None:
            process.close()
    pair.source = pair.target = None
    assert record_of(pair.source_state).boot == boot_id()
    start_by_the_records(pair)
    check_that_all_is_there(pair, content)
