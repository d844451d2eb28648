"""Making the connection between the two mirror processes: connecting and accepting, off the loop.

Connecting, the TLS handshake and the wait for a hello can each take seconds and must not hold up a write, so that a
thread does them; a finished connection is handed to the loop through a queue and an eventfd. Nothing that a stranger
sends to the port gets further than this file.
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import ssl
import threading
import time
from typing import Any

from hotpair.replication import frames
from hotpair.replication.errors import BadConfiguration, ProtocolError
from hotpair.replication.frames import LENGTH, LENGTH_SIZE, Kind
from hotpair.replication.limits import HELLO_TIMEOUT_S, RECONNECT_INTERVAL_S
from hotpair.replication.transport_io import Connection, PlainConnection, TlsConnection, TlsFiles

log = logging.getLogger("hotpair.replication")

MAX_STRANGERS = 8  # connections that have not said hello yet; more are closed at once


class Delivery:
    """A queue from threads to the loop, with an eventfd that epoll can watch."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._event

    def put(self, item: Any) -> None:
        """From any thread."""
        self._queue.put(item)
        os.eventfd_write(self._event, 1)

    def take(self) -> list[Any]:
        """All that is there. Never blocks."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return []
        items = []
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        return items

    def close(self) -> None:
        os.close(self._event)


class Connector:
    """Connects to the target again and again, while it is asked to, and delivers each connection."""

    def __init__(self, host: str, port: int, tls: TlsFiles | None, delivery: Delivery) -> None:
        self._address = (host, port)
        self._context = tls.context(server=False) if tls else None
        self._delivery = delivery
        self._wanted = threading.Event()
        self._closing = threading.Event()
        self.last_error = "not tried yet"
        self._thread = threading.Thread(target=self._run, name="connector", daemon=True)
        self._thread.start()

    def connect(self) -> None:
        """Ask for one connection."""
        self._wanted.set()

    def close(self) -> None:
        """End the thread."""
        self._closing.set()
        self._wanted.set()

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            if self._closing.is_set():
                return
            try:
                connection = self._try()
            except (OSError, UnicodeError) as error:
                reason = str(error)
                if reason != self.last_error:
                    log.info("cannot reach the peer at %s:%d: %s", *self._address, reason)
                self.last_error = reason
                self._closing.wait(RECONNECT_INTERVAL_S)
                continue
            self.last_error = ""
            self._wanted.clear()
            self._delivery.put(connection)

    def _try(self) -> Connection:
        sock = socket.create_connection(self._address, timeout=HELLO_TIMEOUT_S)
        try:
            if self._context is None:
                return PlainConnection(sock)
            try:
                return TlsConnection(self._context.wrap_socket(sock))
            except ssl.SSLError as error:
                raise OSError(
                    f"the TLS handshake failed ({error.reason or error}): does the target have TLS?"
                ) from error
        except BaseException:
            sock.close()
            raise


class Acceptor:
    """Listens, and delivers ``(connection, hello)`` for each peer that says hello in time."""

    def __init__(self, host: str, port: int, tls: TlsFiles | None, delivery: Delivery) -> None:
        self._context = tls.context(server=True) if tls else None
        self._delivery = delivery
        self._last_refusal = "", ""
        self._strangers = threading.BoundedSemaphore(MAX_STRANGERS)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._listener = socket.create_server((host, port), family=family, backlog=MAX_STRANGERS)
        except OSError as error:
            raise BadConfiguration(
                f"cannot listen on {host}:{port}: {error.strerror}: choose another address or port"
            ) from error
        self._closing = False
        threading.Thread(target=self._accept, name="acceptor", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._closing = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        finally:
            self._listener.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                sock, address = self._listener.accept()
            except OSError as error:
                if self._closing:
                    return
                log.warning("accepting a connection failed: %s", error.strerror)
                time.sleep(RECONNECT_INTERVAL_S)  # out of descriptors: it passes
                continue
            if not self._strangers.acquire(blocking=False):
                log.warning("closed the connection from %s: too many that have not said hello", address[0])
                sock.close()
                continue
            threading.Thread(target=self._greet, args=(sock, address), name="greeter", daemon=True).start()

    def _greet(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        try:
            sock.settimeout(HELLO_TIMEOUT_S)
            if self._context is not None:
                try:
                    sock = self._context.wrap_socket(sock, server_side=True)
                except ssl.SSLError as error:
                    raise OSError(
                        f"the TLS handshake failed ({error.reason or error}): is the source's certificate signed by "
                        "the authority of --tls-ca?"
                    ) from error
            try:
                hello = read_hello(sock)
            except ProtocolError as error:
                sock.sendall(frames.encode(Kind.REFUSED, frames.text(str(error))))
                raise
            connection = TlsConnection(sock) if isinstance(sock, ssl.SSLSocket) else PlainConnection(sock)
        except (OSError, ProtocolError) as error:
            reason = frames.text(str(error))
            if (address[0], reason) != self._last_refusal:
                log.warning("refused a connection from %s: %s (said once)", address[0], reason)
            self._last_refusal = address[0], reason
            sock.close()
        else:
            self._delivery.put((connection, hello))
        finally:
            self._strangers.release()


def read_hello(sock: socket.socket) -> dict[str, Any]:
    """The first frame of a new connection, which must be a HELLO. Raises ProtocolError, OSError."""
    deadline = time.monotonic() + HELLO_TIMEOUT_S
    (length,) = LENGTH.unpack(_exactly(sock, LENGTH_SIZE, deadline))
    frames.check_length(length)
    fields = frames.decode(_exactly(sock, length, deadline))
    if fields[0] != Kind.HELLO:
        raise ProtocolError(f"the peer began with {Kind(fields[0]).name}, not with HELLO")
    frames.check_version(fields[1])
    hello = fields[2]
    if type(hello) is not dict:
        raise ProtocolError("the peer's HELLO is not a map")
    return hello


def _exactly(sock: socket.socket, size: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise ProtocolError(f"the peer did not say hello within {HELLO_TIMEOUT_S:g} s")
        sock.settimeout(left)
        part = sock.recv(min(size - len(data), 65536))
        if not part:
            raise ProtocolError("the peer closed the connection before its HELLO was complete")
        data += part
    return bytes(data)
