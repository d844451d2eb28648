"""An acceptor and a connector for the tests of the link, and what is needed to talk to them."""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from hotpair.replication import frames
from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.limits import PROTOCOL_VERSION
from hotpair.replication.link_io import Acceptor, Connector, Delivery
from hotpair.replication.transport_io import Connection, TlsFiles

SOON_S = 5.0  # what takes longer than that on a busy machine has failed
HELLO = frames.encode(Kind.HELLO, PROTOCOL_VERSION, {"session": None})


def readable(item: Any, timeout_s: float = SOON_S) -> bool:
    """Whether epoll would report it; unlike select it knows descriptors over 1023."""
    poll = select.poll()
    poll.register(item, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def free_port(host: str = "127.0.0.1") -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def within(seconds: float, what: Callable[[], Any]) -> Any:
    """Wait until it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen in time")


class Ends:
    """An acceptor and what it has delivered; everything is closed at the end."""

    def __init__(self, host: str = "127.0.0.1", tls: TlsFiles | None = None) -> None:
        self.address = (host, free_port(host))
        self.accepted, self.connected = Delivery(), Delivery()
        self.acceptor = Acceptor(*self.address, tls, self.accepted)
        self.closing: list[Any] = [self.acceptor]

    def stranger(self) -> socket.socket:
        sock = socket.create_connection(self.address, timeout=SOON_S)
        self.closing.append(sock)
        return sock

    def connector(self, tls: TlsFiles | None = None) -> Connector:
        connector = Connector(*self.address, tls, self.connected)
        self.closing.append(connector)
        return connector

    def delivered(self, delivery: Delivery) -> Any:
        """The one thing that is delivered; epoll would have seen it."""
        assert readable(delivery), "nothing was delivered"
        items = delivery.take()
        assert len(items) == 1
        connection = items[0][0] if isinstance(items[0], tuple) else items[0]
        self.closing.append(connection)
        return items[0]

    def close(self) -> None:
        for item in reversed(self.closing):
            item.close()
        self.accepted.close()
        self.connected.close()


def send_all(connection: Connection, data: bytes) -> None:
    views = deque([memoryview(data)])
    within(SOON_S, lambda: connection.send(views))


def receive(connection: Connection, size: int) -> bytes:
    data = bytearray()
    end = time.monotonic() + SOON_S
    while len(data) < size and time.monotonic() < end:
        view = memoryview(bytearray(size - len(data)))
        data += view[: connection.receive(view)]
    return bytes(data)


def refusal(sock: socket.socket) -> str:
    """What the acceptor says before it closes."""
    data = bytearray()
    while part := sock.recv(65536):
        data += part
    fields = frames.decode(bytes(data[LENGTH.size :]))
    assert fields[0] == Kind.REFUSED
    return str(fields[1])


def closed(sock: socket.socket) -> bool:
    """Whether the other side has closed it, having said nothing."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
