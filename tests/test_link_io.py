"""Connector and acceptor over real sockets: what a stranger or a slow peer gets to see."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Iterator

import pytest

from hotpair.replication import frames, link_io
from hotpair.replication.errors import BadConfiguration, LinkLost, ProtocolError
from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.limits import MAX_MESSAGE, PROTOCOL_VERSION
from hotpair.replication.link_io import MAX_STRANGERS, Acceptor, Connector, Delivery, read_hello
from hotpair.replication.transport_io import PlainConnection, parse_address
from tests.link_ends import HELLO, SOON_S, Ends, closed, free_port, readable, receive, refusal, send_all, within


@pytest.fixture
def ends() -> Iterator[Ends]:
    both = Ends()
    yield both
    both.close()


@pytest.fixture
def hello_timeout_s(monkeypatch: pytest.MonkeyPatch) -> float:
    """A limit that a test can wait for."""
    monkeypatch.setattr(link_io, "HELLO_TIMEOUT_S", 0.5)
    return 0.5


# --- delivery ---------------------------------------------------------------------------------------------------------


def test_delivery_keeps_order_and_wakes_once_for_all() -> None:
    delivery = Delivery()
    assert delivery.take() == []
    for number in range(3):
        delivery.put(number)
    assert readable(delivery, 0)
    assert delivery.take() == [0, 1, 2]
    assert not readable(delivery, 0)
    assert delivery.take() == []
    delivery.close()


def test_delivery_loses_nothing_of_many_threads() -> None:
    delivery = Delivery()

    def put(base: int) -> None:
        for number in range(500):
            delivery.put(base + number)

    threads = [threading.Thread(target=put, args=(base,)) for base in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    found: list[int] = []
    while len(found) < 1500:
        assert readable(delivery)
        found += delivery.take()
    assert sorted(found) == sorted(base + number for base in (0, 1000, 2000) for number in range(500))
    delivery.close()


# --- connecting and accepting -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connection_carries_bytes_both_ways(host: str) -> None:
    ends = Ends(host)
    try:
        ends.connector().connect()
        ours = ends.delivered(ends.connected)
        send_all(ours, HELLO)
        theirs, hello = ends.delivered(ends.accepted)
        assert hello == {"session": None}
        send_all(theirs, b"welcome" * 1000)
        assert receive(ours, 7000) == b"welcome" * 1000
        send_all(ours, b"x" * 100_000)
        assert receive(theirs, 100_000) == b"x" * 100_000
        theirs.close()
        with pytest.raises(LinkLost):
            receive(ours, 1)
    finally:
        ends.close()


def test_connector_makes_one_connection_each_time_it_is_asked(ends: Ends) -> None:
    connector = ends.connector()
    time.sleep(0.2)
    assert ends.connected.take() == []
    for _ in range(2):
        connector.connect()
        ends.delivered(ends.connected)
        time.sleep(0.1)
        assert ends.connected.take() == []
    assert connector.last_error == ""


def test_connector_tries_until_somebody_listens() -> None:
    address = ("127.0.0.1", free_port())
    delivery = Delivery()
    connector = Connector(*address, None, delivery)
    connector.connect()
    within(SOON_S, lambda: "refused" in connector.last_error)
    acceptor = Acceptor(*address, None, Delivery())
    assert readable(delivery)
    delivery.take()[0].close()
    connector.close()
    acceptor.close()


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".example"])
def test_connector_survives_a_name_that_cannot_be_one(host: str) -> None:
    delivery = Delivery()
    connector = Connector(host, 1, None, delivery)
    connector.connect()
    within(SOON_S, lambda: connector.last_error not in ("", "not tried yet"))
    assert connector._thread.is_alive()
    connector.close()


def test_closed_connector_ends_its_thread(ends: Ends) -> None:
    connector = ends.connector()
    connector.close()
    within(SOON_S, lambda: not connector._thread.is_alive())


def test_closed_acceptor_frees_its_address(ends: Ends) -> None:
    ends.acceptor.close()
    again = Acceptor(*ends.address, None, Delivery())
    with pytest.raises(BadConfiguration, match="choose another address or port"):
        Acceptor(*ends.address, None, Delivery())
    again.close()
    ends.closing.remove(ends.acceptor)


# --- strangers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GET ", "announced a frame"),
        (LENGTH.pack(MAX_MESSAGE + 1), "announced a frame"),
        (LENGTH.pack(0), "announced a frame"),
        (LENGTH.pack(3) + b"\xc1\xc1\xc1", "not a frame"),
        (LENGTH.pack(4) + b"\x81\x91\x01\x01", "not a"),
        (LENGTH.pack(6) + b"\x92\x35\x81\x91\x01\x01", "not a"),
        (frames.encode(Kind.PROBE, 1), "began with PROBE"),
        (frames.encode(Kind.HELLO, PROTOCOL_VERSION + 1, {}), "same version of hotpair"),
        (frames.encode(Kind.HELLO, PROTOCOL_VERSION, [1]), "not a map"),
        (frames.encode(Kind.BYE, "x" * 100_000), "began with BYE"),
    ],
)
def test_stranger_is_told_why_and_gets_no_further(ends: Ends, data: bytes, why: str) -> None:
    sock = ends.stranger()
    sock.sendall(data)
    assert why in refusal(sock)
    assert ends.accepted.take() == []
    good = ends.stranger()  # and the port is still there
    good.sendall(HELLO)
    ends.delivered(ends.accepted)


def test_hello_may_come_in_pieces(ends: Ends) -> None:
    sock = ends.stranger()
    for number in range(len(HELLO)):
        sock.sendall(HELLO[number : number + 1])
        time.sleep(0.002)
    assert ends.delivered(ends.accepted)[1] == {"session": None}


def test_what_follows_the_hello_is_not_swallowed(ends: Ends) -> None:
    sock = ends.stranger()
    sock.sendall(HELLO + b"more")
    connection, _ = ends.delivered(ends.accepted)
    assert receive(connection, 4) == b"more"


@pytest.mark.parametrize("begin", [b"", HELLO[:3], HELLO[:-1]])
def test_silent_stranger_is_closed(ends: Ends, hello_timeout_s: float, begin: bytes) -> None:
    sock = ends.stranger()
    sock.sendall(begin)
    began = time.monotonic()
    while sock.recv(4096):
        pass
    assert 0.5 * hello_timeout_s < time.monotonic() - began < SOON_S
    assert ends.accepted.take() == []


def test_dribbling_stranger_is_closed(ends: Ends, hello_timeout_s: float) -> None:
    """One byte now and then must not reset the limit: eight of them would shut out the source."""
    sock = ends.stranger()
    began = time.monotonic()
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        for byte in frames.encode(Kind.HELLO, PROTOCOL_VERSION, {"x": "y" * 10_000}):
            sock.sendall(bytes([byte]))
            time.sleep(hello_timeout_s / 5)
            assert time.monotonic() - began < SOON_S
    assert ends.accepted.take() == []


def test_too_many_strangers_are_closed_and_the_next_one_is_served(ends: Ends) -> None:
    waiting = [ends.stranger() for _ in range(MAX_STRANGERS)]
    within(SOON_S, lambda: ends.acceptor._strangers._value == 0)
    surplus = ends.stranger()
    assert closed(surplus)
    waiting[0].sendall(HELLO)  # one says hello: that one is served, and there is room for another
    ends.delivered(ends.accepted)
    within(SOON_S, lambda: ends.acceptor._strangers._value == 1)
    late = ends.stranger()
    late.sendall(HELLO)
    ends.delivered(ends.accepted)
    waiting[1].close()
    within(SOON_S, lambda: ends.acceptor._strangers._value == 2)


def test_read_hello_does_not_trust_the_length() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(LENGTH.pack(MAX_MESSAGE) + b"x")
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(ProtocolError, match="before its HELLO was complete"):
            read_hello(theirs)


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.2:5600", ("10.0.0.2", 5600)),
        ("[::1]:1", ("::1", 1)),
        ("name.example:65535", ("name.example", 65535)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["", "host", ":1", "host:", "host:0", "host:65536", "host:-1", "host:x", "host:1 "])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(BadConfiguration, match="is not an address"):
        parse_address(text)


def test_plain_connection_sends_in_pieces_and_tells_when_it_is_full() -> None:
    ours, theirs = socket.socketpair()
    connection = PlainConnection(ours)
    views = deque(memoryview(bytes([number % 256]) * 5000) for number in range(500))
    expected = b"".join(views)
    assert not connection.send(views)
    assert connection.wants_write
    received = bytearray()
    while len(received) < len(expected):
        received += theirs.recv(1 << 20)
        connection.send(views)
    assert received == expected and not connection.wants_write
    theirs.close()
    with pytest.raises(LinkLost):
        connection.receive(memoryview(bytearray(1)))
    connection.close()
