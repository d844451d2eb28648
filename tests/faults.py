"""What the fault tests share: a small disk, a link that can be cut at a byte, peers that lie, and limits."""

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import psutil

from hotpair.cluster import record as records
from hotpair.cluster.record import Record
from hotpair.replication import frames
from hotpair.replication.control_client import ControlClient
from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.limits import PROTOCOL_VERSION
from tests.ledger import Ledger, WriterProcess
from tests.mirror_pair import MirrorPair, MirrorProcess, ReservedPort, abort_mounts_below
from tests.programs import wait_for_end

WAIT_S = 30.0
LARGEST_RSS = 400 << 20  # bytes: 64 request buffers of 1 MiB, the queue of 8 MiB, the interpreter, and room
# In the place of any field of a frame: nothing that a good peer would send there
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1 << 63,
    (1 << 64) - 1,
    1.5,
    b"",
    b"x" * 16,
    b"x" * 300,
    "text",
    [],
    [[]],
    {},
    {1: 2},
    [b"x"],
)


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> None:
    """Wait for what another process does and no event tells of."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.005)


def said(process: MirrorProcess | None, text: str, times: int = 1, after: int = 0) -> None:
    """Wait until a process has printed a line with this text, so many times, behind its first ``after`` lines."""
    assert process is not None

    def done() -> bool:
        enough = sum(text in line for line in process.said[after:]) >= times
        assert enough or process.running, f"{process.role} has ended: {process.said}"
        return enough

    wait_until(done, f"{process.role} says {text!r}; it said {process.said}")


def log_of(process: MirrorProcess) -> str:
    """Everything that a process has printed and logged."""
    with open(process.log_path) as log:
        return log.read()


def logged(process: MirrorProcess | None, *words: str) -> None:
    """Wait until one line of the log holds all these words."""
    assert process is not None

    def done() -> bool:
        return any(all(word in line for word in words) for line in log_of(process).splitlines())

    wait_until(done, f"{process.role} logs {words}", 15)


def status(state: str) -> dict[str, Any]:
    """The answer to `status` on a control socket."""
    return ask(state, "status")


def ask(state: str, command: str) -> dict[str, Any]:
    """The answer to any command on a control socket. MirrorError when there is none."""
    with ControlClient(state) as control:
        return control.ask(command)


def visible(directory: str) -> list[str]:
    """The names in a copy, without the mirror's own folder."""
    return sorted(name for name in os.listdir(directory) if name != ".hotpair")


def healthy(pair: MirrorPair) -> None:
    """Both processes run, have printed no traceback and are of bounded size."""
    for process in (pair.source, pair.target):
        if process is not None:
            assert process.running, f"the {process.role} has ended"
            assert "Traceback" not in log_of(process), f"the {process.role} printed a traceback"
            bounded(process)


def bounded(process: MirrorProcess) -> None:
    """A process is of bounded size."""
    size = psutil.Process(process.process.pid).memory_info().rss
    assert size < LARGEST_RSS, f"the {process.role} has {size >> 20} MiB"


def stop_process(process: MirrorProcess) -> None:
    """SIGSTOP; return when all of its threads stand still."""
    process.signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.process.pid, os.WSTOPPED | os.WNOWAIT)


def equal_after_stop(pair: MirrorPair) -> None:
    """A clean stop, and both copies are equal."""
    pair.stop()
    differences = pair.compare()
    assert not differences, "\n".join(differences[:10])


def start_on_mount(
    pair: MirrorPair, code: str, *arguments: object, pass_fds: Sequence[int] = ()
) -> "subprocess.Popen[bytes]":
    """Start Python in a child, with the mount as its working directory, ``os`` and ``sys``, and pipes to all it says.

    Tests touch a mount through children only: who waits for a frozen mount cannot be ended.
    """
    script = f"import os, sys; os.chdir({pair.mount!r})\n{textwrap.dedent(code)}"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=pair.environment(), pass_fds=tuple(pass_fds)
    )


def on_mount(
    pair: MirrorPair, code: str, *arguments: object, timeout_s: float = WAIT_S, pass_fds: Sequence[int] = ()
) -> str:
    """The same to its end, which must be a good one; what it printed."""
    return end_on_mount(pair, start_on_mount(pair, code, *arguments, pass_fds=pass_fds), timeout_s)


def end_on_mount(pair: MirrorPair, child: "subprocess.Popen[bytes]", timeout_s: float = WAIT_S) -> str:
    """Close a child's standard input and wait for its end, which must be a good one; what it printed."""
    assert child.stdin is not None
    child.stdin.close()
    child.stdin = None  # communicate would write to it
    if not wait_for_end(child, timeout_s):
        troubles = pair.troubles()
        abort_mounts_below(pair.source_dir)
        raise AssertionError(f"the mount hangs: {troubles}")
    output, errors = child.communicate()
    assert child.returncode == 0, f"{errors.decode()}\n{pair.troubles()}"
    return output.decode()


def usable(pair: MirrorPair) -> None:
    """A small file can be written and flushed on the mount."""
    on_mount(pair, "f = open('usable', 'wb'); f.write(bytes(8192)); f.flush(); os.fsync(f.fileno())")


def write_file(pair: MirrorPair, name: str, data: str = "b'data'", at: int = 0) -> None:
    """Write the value of an expression into a file on the mount, which is made if need be."""
    code = "os.pwrite(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600), eval(sys.argv[2]), int(sys.argv[3]))"
    on_mount(pair, code, name, data, at)


# ---- load


class Load:
    """A ledger's writer on a pair's mount."""

    def __init__(self, pair: MirrorPair, roles: str = "random,random,names") -> None:
        self.pair = pair
        self.ledger = Ledger(f"{pair.base}/ledger")
        with open(self.ledger.path, "wb"):
            pass
        self.writer = WriterProcess(pair.mount, self.ledger.path, roles, pair.environment(), files=2, pages=256)

    def goes_on(self, count: int = 50) -> None:
        """So many more operations are acknowledged."""
        assert self.writer.wait_acknowledged(count, WAIT_S), f"the writer is stuck, or ended: {self.pair.troubles()}"

    def stop(self) -> None:
        """It ends, and no operation has failed."""
        assert self.writer.stop(WAIT_S) == 0, self.ledger.read().errors
        self.writer.close()
        self.ledger.read()
        assert not self.ledger.errors and not self.ledger.flying

    def check(self) -> None:
        """After a clean stop: both copies are equal, and hold all that was acknowledged."""
        equal_after_stop(self.pair)
        for directory in (self.pair.source_dir, self.pair.target_dir):
            assert self.ledger.check(directory) == []


# ---- a small disk


@contextlib.contextmanager
def small_disk(
    base: str, megabytes: int, make: Sequence[str] = ("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0")
) -> Iterator[str]:
    """A directory on an ext4 of its own (or what ``make`` makes), in an image below ``base``; the loop device goes with
    the mount."""
    image, mount = f"{base}/disk.img", f"{base}/disk"
    with open(image, "wb") as file:
        file.truncate(megabytes << 20)
    os.mkdir(mount)
    subprocess.run([*make, image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)
    try:
        os.mkdir(f"{mount}/data")
        yield f"{mount}/data"
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


# ---- a link that can be cut


class Link:
    """A TCP proxy in front of the target: it forwards, can be cut after so many bytes, and refused for a time."""

    def __init__(self, port: int) -> None:
        self._upstream = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._limit: list[int | None] = [None, None]  # bytes still to be forwarded to the target, and to the source
        self._refusing = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self.cut_happened = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, way: str, count: int) -> None:
        """Cut the connection when so many more bytes have passed one way ("to_target", "to_source")."""
        self.cut_happened.clear()
        with self._lock:
            self._limit = [count if way == one else None for one in ("to_target", "to_source")]

    def cut(self, *, refuse: bool = False) -> None:
        """Cut the connection now."""
        with self._lock:
            self._refusing = refuse
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            self._limit = [None, None]
        self.cut_happened.set()

    def allow(self) -> None:
        """Let connections through."""
        self._refusing = False

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self._refusing:
                    raise ConnectionRefusedError
                other = socket.create_connection(self._upstream)
            except OSError:
                sock.close()
                continue
            with self._lock:
                self._sockets += [sock, other]  # a closed one stays: shutting it down again does no harm
            for way, (one, two) in enumerate(((sock, other), (other, sock))):
                threading.Thread(target=self._forward, args=(way, one, two), daemon=True).start()

    def _forward(self, way: int, one: socket.socket, two: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                limit = self._limit[way]
                if limit is not None and len(data) >= limit:
                    two.sendall(data[:limit])
                    self.cut()
                    return
                if limit is not None:
                    self._limit[way] = limit - len(data)
                two.sendall(data)
        for sock in (one, two):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for sock in self._sockets:
            sock.close()


@contextlib.contextmanager
def pair_with_link(*, source: Sequence[str] = (), target: Sequence[str] = ()) -> Iterator[tuple[MirrorPair, Link]]:
    """A pair whose source reaches its target through a ``Link``; started."""
    with MirrorPair(source_arguments=source, target_arguments=target) as pair:
        pair.start_target()
        link = Link(port_of(pair))
        try:
            pair.source_arguments += ["--peer", link.address]  # the last one counts
            pair.start_source()
            yield pair, link
        finally:
            link.close()


def port_of(pair: MirrorPair) -> int:
    """The port on which a pair's target listens."""
    return int(pair._port.number)


# ---- peers that speak the protocol, and lie


class Peer:
    """One connection on which frames are sent and received as they are."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(WAIT_S)
        self._data = bytearray()

    def send(self, *fields: Any, payload: bytes = b"") -> None:
        """One frame, without any check."""
        body = frames.pack(fields)
        self.sock.sendall(LENGTH.pack(len(body)) + body + payload)

    def receive(self) -> list[Any] | None:
        """The next frame with its payload at the end; None when the connection has ended."""
        head = self._exactly(LENGTH.size)
        body = self._exactly(LENGTH.unpack(head)[0]) if head else None
        if body is None:
            return None
        fields = frames.decode(body)
        size = frames.payload_size(fields)
        return [*fields, self._exactly(size)] if size else fields

    def _exactly(self, size: int) -> bytes | None:
        while len(self._data) < size:
            try:
                part = self.sock.recv(65536)
            except ConnectionResetError:
                part = b""
            if not part:
                return None
            self._data += part
        data = bytes(self._data[:size])
        del self._data[:size]
        return data

    def expect(self, kind: Kind) -> list[Any]:
        """The next frame of this kind; others are passed over. AssertionError when the connection ends."""
        seen = []
        while (fields := self.receive()) is not None:
            if fields[0] == kind:
                return fields
            seen.append(fields)
        raise AssertionError(f"the connection ended before {kind.name}, after {seen}")

    def has_ended(self) -> bool:
        """Whether the other end has closed the connection, and all that it sent was received."""
        try:
            return readable(self.sock, 0) and self.sock.recv(1, socket.MSG_PEEK) == b""
        except ConnectionResetError:
            return True

    def answer_until_end(self, timeout_s: float = 5.0) -> list[list[Any]]:
        """Everything that comes until the connection ends. AssertionError when it goes on for longer."""
        found = []
        deadline = time.monotonic() + timeout_s
        self.sock.settimeout(timeout_s)
        try:
            while (fields := self.receive()) is not None:
                found.append(fields)
                assert time.monotonic() < deadline, f"the connection is kept, and {found[-3:]} come"
        except TimeoutError:
            raise AssertionError(f"the connection is kept, after {found[-3:]}") from None
        return found

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class FakeSource(Peer):
    """A source as far as the target can see."""

    def __init__(self, port: int, root: bytes = b"r" * 16, generation: bytes = b"g" * 16) -> None:
        super().__init__(socket.create_connection(("127.0.0.1", port)))
        self.root = root
        self.generation = generation
        self.sent = 0  # operations

    def hello(self, version: Any = PROTOCOL_VERSION, **changes: Any) -> None:
        """Say hello; ``changes`` replace what is in it, ... removes it."""
        record = Record(
            generation=self.generation, last_role="ALONE", solo=True, boot="boot", configuration=b"", root=self.root
        )
        hello: dict[str, Any] = {
            "instance": os.urandom(16),
            "session": None,
            "new_session": os.urandom(16),
            "record": records.encode(record),
            "root": self.root,
            "extent_size": 4 << 20,
            "durability": "memory",
            "largest_file": 1 << 40,
        }
        hello.update(changes)
        self.send(Kind.HELLO, version, {key: value for key, value in hello.items() if value is not ...})

    def begin(self) -> None:
        """Hello, and a reintegration is begun: operations are due."""
        self.hello()
        self.expect(Kind.WELCOME)
        self.send(Kind.BEGIN_REINTEGRATION, self.generation, True)
        self.expect(Kind.INCONSISTENT)

    def operation(self, kind: Kind, *fields: Any, payload: bytes = b"") -> None:
        """One numbered operation."""
        self.sent += 1
        self.send(kind, self.sent, *fields, payload=payload)

    def make(self, directory: Any, name: Any, identity: Any, mode: int = 0o100644, link: bytes = b"") -> None:
        """A MAKE."""
        self.operation(Kind.MAKE, directory, name, identity, mode, 0, 0, 0, link, [])

    def outcome(self) -> str:
        """What became of all that was sent: "applied", "failed", "refused" or "closed"."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.send(Kind.PROBE, 0)
        while (fields := self.receive()) is not None:
            if fields[0] == Kind.APPLIED and fields[1] == self.sent:
                return "applied"
            if fields[0] in (Kind.FAILED, Kind.REFUSED):
                return Kind(fields[0]).name.lower()
        return "closed"


class FakeTarget:
    """Listens in place of a target, and is a good one except for what a test does to it."""

    def __init__(self) -> None:
        self._port = ReservedPort()
        self._listener = socket.create_server(("127.0.0.1", self._port.number))
        self._listener.settimeout(WAIT_S)
        self.address = f"127.0.0.1:{self._port.number}"
        self.applied = 0  # the last operation that was acknowledged
        self.source_state: str | None = None  # of a source that runs: it is asked to connect at once

    def accept(self) -> tuple[Peer, dict[str, Any]]:
        """The next connection, and the hello on it."""
        while True:
            if self.source_state is not None and not readable(self._listener, 0):
                ask(self.source_state, "retry")
            sock, _ = self._listener.accept()
            peer = Peer(sock)
            hello = peer.receive()
            if hello is not None and not peer.has_ended():
                assert hello[0] == Kind.HELLO, hello
                return peer, hello[2]
            peer.close()  # of a source that has ended or given up meanwhile

    @staticmethod
    def welcome(**changes: Any) -> dict[str, Any]:
        """A welcome of a target that has nothing; ``changes`` as in ``FakeSource.hello``."""
        welcome: dict[str, Any] = {"instance": b"i" * 16, "resume": False, "applied": 0, "record": b"", "boot": "boot"}
        welcome.update({"marks": [], "extent_shift": 22, **changes})
        return {key: value for key, value in welcome.items() if value is not ...}

    def synchronise(self) -> Peer:
        """Take a connection, be filled, and be in sync: the last thing sent is TAKEN."""
        peer, _ = self.accept()
        peer.send(Kind.WELCOME, PROTOCOL_VERSION, self.welcome())
        while (fields := peer.receive()) is not None:
            if fields[0] == Kind.BEGIN_REINTEGRATION:
                peer.send(Kind.INCONSISTENT, fields[1])
            elif fields[0] == Kind.OFFER_SYNC:
                peer.send(Kind.TAKEN, fields[1])
                return peer
            elif fields[0] <= frames.LAST_OPERATION:
                self.apply(peer, fields)
        raise AssertionError("the source has closed the connection before it was in sync")

    def resume(self) -> Peer:
        """Take a connection and go on with the session in which the source knows us to be in sync."""
        peer, hello = self.accept()
        assert hello["session"] is not None, "the source has gone on alone"
        peer.send(Kind.WELCOME, PROTOCOL_VERSION, self.welcome(resume=True, applied=self.applied))
        return peer

    def apply(self, peer: Peer, fields: list[Any]) -> None:
        """Pretend to apply one operation."""
        self.applied = fields[1]
        peer.send(Kind.APPLIED, fields[1])
        if fields[0] == Kind.LISTING and fields[-1]:
            peer.send(Kind.WANTED, fields[2], [], True)
        elif fields[0] == Kind.CHECK:
            peer.send(Kind.CHECKED, fields[1], False)
        elif fields[0] == Kind.CHECK_OBJECTS:
            peer.send(Kind.COMPARED, fields[1], [])
        elif fields[0] in (Kind.FLUSH, Kind.FLUSH_ALL):
            peer.send(Kind.FLUSHED, fields[1])

    def close(self) -> None:
        self._listener.close()
        self._port.close()

    def __enter__(self) -> "FakeTarget":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def readable(sock: socket.socket, timeout_s: float) -> bool:
    """Whether something comes, or the connection ends, within that time."""
    return bool(select.select([sock], [], [], timeout_s)[0])
