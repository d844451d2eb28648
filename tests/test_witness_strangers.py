"""A real witness among strangers, and its clients before something that is no witness; with TLS and without."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from hotpair.cluster import witness_messages as messages
from hotpair.cluster.arbitration import Answer, Claim, Purpose, Standing
from hotpair.cluster.connection_io import Address, ClientTls
from hotpair.cluster.witness_client_io import (
    WitnessClient,
    WitnessError,
    WitnessNotTrusted,
    WitnessOtherVersion,
    WitnessRefusesUs,
    WitnessUnreachable,
)
from hotpair.cluster.witness_server_io import CONNECTION_S, CONNECTIONS
from tests.test_link_tls import Authority, needs_openssl
from tests.witness_process import Witness, claim, free_port, wait_for


@pytest.fixture
def witness(tmp_path: Path) -> Iterator[Witness]:
    made = Witness(tmp_path, pairs=("pair", "other"))
    made.start()
    yield made
    made.kill()


# ---- strangers, and servers with a mistake


def served(witness: Witness) -> None:
    """Somebody else is answered meanwhile."""
    assert witness.client("other").look("other", "vm") is not None


def talk(witness: Witness, data: bytes, *, end: bool = False) -> bytes:
    """What the witness says to that, after its greeting."""
    with witness.connect() as sock:
        greeting = sock.recv(4096)
        assert greeting[4:].startswith(msgpack.packb(["hello", 1, b"n" * 32])[:7])
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
        said = b""
        with contextlib.suppress(ConnectionResetError):  # it does not read to the end what makes no sense
            while part := sock.recv(4096):
                said += part
        return said


def test_a_wrong_key_is_refused_clearly(witness: Witness) -> None:
    for pair, key in (("pair", b"x" * 32), ("unknown", b"x" * 32), ("pair", witness.keys["other"])):
        client = witness.client(pair, key=key)
        with pytest.raises(WitnessRefusesUs, match="unknown pair or wrong key"):
            client.ask(claim("a", pair=pair))
        answer = client.claim(claim("a", pair=pair))
        assert not answer.granted and not answer.reachable and "wrong key" in answer.reason
        assert client.look(pair, "vm") is None
    assert "pair pair: wrong key" in witness.log() and "pair 'unknown': unknown here" in witness.log()
    assert witness.client().look("pair", "vm") == Standing(0, None)


def test_a_replayed_claim_does_nothing(witness: Witness) -> None:
    """Word for word what a server once said."""
    with witness.connect() as sock:
        nonce = messages.read_hello(sock.recv(4096)[4:])
        recorded = messages.frame(messages.ask(claim("a", 0, Purpose.OPERATOR_FORCED), witness.keys["pair"], nonce))
        sock.sendall(recorded)
        answer = messages.read_answer(sock.recv(4096)[4:], witness.keys["pair"], nonce)
        assert answer.granted and sock.recv(4096) == b""  # one request for each connection
    assert b"wrong key" in talk(witness, recorded)
    assert witness.client().look("pair", "vm") == Standing(1, "a")
    assert "replayed" in witness.log()


GARBAGE = {
    "4 GiB frame": (b"\xff\xff\xff\xff" + b"x" * 5000, b"4294967295 bytes"),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00", b"TLS"),
    "not msgpack": (messages.frame(b"\xc1\xc1\xc1"), b"not msgpack"),
    "deep": (messages.frame(b"\x91" * 2000), b"not msgpack"),
    "another message": (messages.frame(messages.hello(b"n" * 32)), b"not the ask"),
    "other version": (messages.frame(msgpack.packb(["ask", 9, "new", "things"])), b"version 9"),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"bytes"),
    "an error": (messages.frame(messages.error("no")), b"no"),
    "empty": (messages.frame(b""), b"not msgpack"),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_gets_a_clear_error_and_one_line(name: str, witness: Witness) -> None:
    data, expected = GARBAGE[name]
    said = talk(witness, data)
    message = msgpack.unpackb(said[4:])
    assert message[:2] == ["error", 1] and expected in message[2].encode(), message
    served(witness)
    assert witness.log().count("refused") == 1, witness.log()


def test_who_breaks_off_is_no_trouble(witness: Witness) -> None:
    for data in (b"", b"\x00", messages.frame(b"x" * 100)[:50]):
        assert talk(witness, data, end=True) == b""
    with witness.connect() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
    served(witness)


def test_slow_clients_do_not_keep_others_from_being_served(witness: Witness) -> None:
    """More of them than there are places: the oldest make room."""
    slow: list[socket.socket] = []
    try:
        for number in range(CONNECTIONS + 20):
            sock = witness.connect()
            sock.sendall(b"\x00\x00" if number % 2 else b"")
            slow.append(sock)
        with ThreadPoolExecutor(10) as pool:
            answers = list(pool.map(lambda n: witness.client().claim(claim("a", module=f"vm{n}")), range(20)))
        assert all(answer.granted for answer in answers)
        slow[0].settimeout(10)
        assert len(slow[0].recv(4096)) > 0 and slow[0].recv(4096) == b""  # the greeting, then closed
    finally:
        for sock in slow:
            sock.close()


def test_a_connection_has_a_time_limit(witness: Witness) -> None:
    with witness.connect() as sock:
        sock.settimeout(20)
        started = time.monotonic()
        sock.recv(4096)
        sock.sendall(b"\x00\x00")
        assert sock.recv(4096) == b""
        assert 3 < time.monotonic() - started < 15
    wait_for(lambda: "no answer in time" in witness.log())  # it closes first and writes then


# ---- clients of a witness that is not one


class Impostor:
    """Accepts one connection and does what it is told."""

    def __init__(self, play: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = Address("127.0.0.1", self._listener.getsockname()[1])
        self._play = play
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        with sock:
            self._play(sock)

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(10)
        self._listener.close()


def ask_of(play: Callable[[socket.socket], None], asked: Claim, timeout_s: float = 5.0) -> Answer:
    with Impostor(play) as impostor:
        return WitnessClient(impostor.address, b"k" * 32, None, timeout_s).ask(asked)


def test_a_late_answer_to_another_request_is_passed_over() -> None:
    asked = claim("a", 4)
    nonce = b"n" * 32
    late = Answer(request_id=b"i" * 16, granted=True, epoch=5, holder="a", reason="late", reachable=True)
    ours = replace(late, request_id=asked.request_id, granted=False, epoch=5, holder="b", reason="ours")

    def play(sock: socket.socket) -> None:
        sock.sendall(messages.frame(messages.hello(nonce)))
        sock.recv(4096)
        for answer in (late, late, ours):
            sock.sendall(messages.frame(messages.answer(answer, b"k" * 32, nonce)))

    assert ask_of(play, asked) == ours


def test_an_answer_without_the_key_is_not_believed() -> None:
    asked = claim("a", 4)
    grant = Answer(request_id=asked.request_id, granted=True, epoch=5, holder="a", reason="", reachable=True)

    def play(sock: socket.socket) -> None:
        sock.sendall(messages.frame(messages.hello(b"n" * 32)))
        sock.recv(4096)
        sock.sendall(messages.frame(messages.answer(grant, b"x" * 32, b"n" * 32)))

    with pytest.raises(WitnessNotTrusted):
        ask_of(play, asked)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", WitnessNotTrusted),
        (messages.frame(b"\xc1"), WitnessNotTrusted),
        (messages.frame(msgpack.packb(["hello", 2, b"n" * 32])), WitnessOtherVersion),
        (messages.frame(messages.error("full")), WitnessRefusesUs),
        (b"", WitnessUnreachable),
    ],
)
def test_whatever_answers_there_is_a_typed_error(said: bytes, error: type[WitnessError]) -> None:
    with pytest.raises(error):
        ask_of(lambda sock: sock.sendall(said), claim("a"))


def test_a_drip_of_bytes_does_not_outlast_the_time_limit() -> None:
    over = threading.Event()

    def play(sock: socket.socket) -> None:
        for byte in messages.frame(messages.hello(b"n" * 32)):
            if over.wait(0.1):
                return
            sock.sendall(bytes([byte]))

    started = time.monotonic()
    with Impostor(play) as impostor:
        answer = WitnessClient(impostor.address, b"k" * 32, None, 0.5).claim(claim("a"))
        over.set()
    assert not answer.reachable and "in time" in answer.reason
    assert time.monotonic() - started < 3.5


def test_a_witness_that_is_away_is_an_answer() -> None:
    for host in ("127.0.0.1", "no-such-host.invalid"):
        answer = WitnessClient(Address(host, free_port()), b"k" * 32, None, 3).claim(claim("a"))
        assert not answer.granted and not answer.reachable and "cannot be reached" in answer.reason


# ---- TLS


@needs_openssl
def test_over_tls(tmp_path: Path) -> None:
    authority = Authority(tmp_path, "ca")
    stranger = Authority(tmp_path, "stranger")
    files, foreign = authority.files("witness"), stranger.files("foreign")
    own = authority.files("server")
    witness = Witness(tmp_path, "--tls-cert", files.certificate, "--tls-key", files.key, "--tls-ca", files.authority)
    witness.start()
    try:
        good = ClientTls(own.authority, own.certificate, own.key, check_name=False)
        for epoch in range(3):
            assert witness.client(tls=good).claim(claim("a", epoch)).granted
        with pytest.raises(WitnessRefusesUs, match="wrong key"):
            witness.client(tls=good, key=b"x" * 32).ask(claim("a"))
        for bad in (
            None,  # no TLS at all
            ClientTls(own.authority, check_name=False),  # no certificate
            ClientTls(own.authority, foreign.certificate, foreign.key, check_name=False),
            ClientTls(foreign.authority, own.certificate, own.key, check_name=False),
            ClientTls(own.authority, own.certificate, own.key),  # the certificate does not carry 127.0.0.1
        ):
            answer = witness.client(tls=bad, timeout_s=1).claim(claim("b", 3))
            assert not answer.granted and not answer.reachable, bad
        with witness.connect() as slow:  # in the middle of a handshake
            slow.sendall(b"\x16\x03\x01")
            assert witness.client(tls=good).look("pair", "vm") == Standing(3, "a")
        assert witness.stop() == 0
    finally:
        witness.kill()


@needs_openssl
def test_slow_handshakes_do_not_keep_others_from_being_served(tmp_path: Path) -> None:
    files = Authority(tmp_path, "ca").files("witness")
    witness = Witness(tmp_path, "--tls-cert", files.certificate, "--tls-key", files.key)
    witness.start()
    started = time.monotonic()
    slow = [witness.connect() for _ in range(CONNECTIONS + 10)]
    try:
        assert slow[0].recv(4096) == b""
        assert time.monotonic() - started < CONNECTION_S - 0.5, "it made no room, its time was over"
        client = witness.client(tls=ClientTls(files.authority, check_name=False))
        assert client.claim(claim("a")).granted
    finally:
        for sock in slow:
            sock.close()
        witness.kill()
