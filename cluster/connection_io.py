"""TCP connections with a deadline for everything, name resolution included, with or without TLS 1.3."""

from __future__ import annotations

import contextlib
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SMALLEST_WAIT_S = 0.001  # a socket timeout of zero would mean "never wait", which is another thing


class Unreachable(Exception):
    """The other end could not be reached, broke off, or took too long. One clause that says which."""


class NotResolved(Unreachable):
    """Nothing is known of the other end: its name has no address here, or nobody says which."""


@dataclass(frozen=True)
class Deadline:
    """A point of the monotonic clock."""

    at_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        return cls(time.monotonic() + timeout_s)

    def remaining_s(self) -> float:
        """Seconds left, never less than a very small wait. Raises Unreachable when there are none."""
        left = self.at_s - time.monotonic()
        if left <= 0:
            raise Unreachable("no answer in time")
        return max(left, SMALLEST_WAIT_S)

    def share(self, parts: int) -> Deadline:
        """The deadline of the next of so many attempts, each with the same time. Raises Unreachable."""
        return Deadline.after(self.remaining_s() / parts)


@dataclass(frozen=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """``HOST:PORT``, IPv6 in brackets. Raises ValueError with a text for the user."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    digits = port.isascii() and port.isdigit() and len(port) < 6
    if not colon or not host or "[" in host or "]" in host or not digits or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not an address: give HOST:PORT, for example 10.0.0.3:5700")
    if ":" in host and not bracketed:
        raise ValueError(f"{text!r} is not an address: put the IPv6 address in brackets, as in [::1]:5700")
    return Address(host, int(port))


@dataclass(frozen=True)
class ClientTls:
    """PEM files: the authority that signed the server's certificate, and this end's own certificate if it is demanded.

    `check_name`: whether the certificate must carry the host name or address that was connected to.
    """

    authority: str
    certificate: str | None = None
    key: str | None = None
    check_name: bool = True

    def context(self) -> ssl.SSLContext:
        """Raises ValueError if the files cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = self.check_name
        _load(context, self.authority, self.certificate, self.key)
        return context


@dataclass(frozen=True)
class ServerTls:
    """PEM files: this end's certificate and key, and the authority that must have signed the client's, if any."""

    certificate: str
    key: str
    authority: str | None = None

    def context(self) -> ssl.SSLContext:
        """Raises ValueError if the files cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0  # each connection carries one request; nobody resumes
        _load(context, self.authority, self.certificate, self.key)
        if self.authority is not None:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _load(context: ssl.SSLContext, authority: str | None, certificate: str | None, key: str | None) -> None:
    try:
        if certificate is not None:
            # Without a password: an encrypted key would ask on the terminal, where nobody is.
            context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ValueError) as error:
        raise ValueError(f"TLS: cannot use {certificate} with {key}: {error}") from error
    try:
        if authority is not None:
            context.load_verify_locations(authority)
    except (OSError, ValueError) as error:
        raise ValueError(f"TLS: cannot use {authority}: {error}") from error


def connect(address: Address, tls: ssl.SSLContext | None, deadline: Deadline) -> socket.socket:
    """A connection to the first of the host's addresses that takes it. Raises Unreachable."""
    found = resolve(address, deadline)
    for tried, (family, where) in enumerate(found):
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(deadline.remaining_s() / (len(found) - tried))
            sock.connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is None:
                return sock
            sock.settimeout(deadline.remaining_s())
            return tls.wrap_socket(sock, server_hostname=address.host)
        except (OSError, Unreachable) as error:
            sock.close()
            if tried == len(found) - 1:
                raise Unreachable(f"{address}: {describe(error)}") from error
    raise Unreachable(f"{address}: the name has no address")


def resolve(address: Address, deadline: Deadline) -> list[tuple[int, Any]]:
    """Families and socket addresses. The resolver has no time limit of its own, so it gets a thread it may keep.

    Raises NotResolved.
    """
    try:
        entries = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        )
    except (socket.gaierror, UnicodeError):
        answers: queue.SimpleQueue[list[Any] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                answers.put(error)

        threading.Thread(target=ask, name="resolve", daemon=True).start()
        try:
            answer = answers.get(timeout=deadline.remaining_s())
        except queue.Empty:
            raise NotResolved(f"{address}: the name was not resolved in time") from None
        if isinstance(answer, Exception):
            raise NotResolved(f"{address}: the name cannot be resolved: {describe(answer)}") from answer
        entries = answer
    return [(family, where) for family, _, _, _, where in entries]


def receive_exactly(sock: socket.socket, size: int, deadline: Deadline) -> bytes:
    """That many bytes. Raises Unreachable, also when the other end sends them too slowly."""
    parts = bytearray()
    try:
        while len(parts) < size:
            sock.settimeout(deadline.remaining_s())
            part = sock.recv(size - len(parts))
            if not part:
                raise Unreachable("the other end closed the connection")
            parts += part
    except OSError as error:
        raise Unreachable(describe(error)) from error
    return bytes(parts)


def send_all(sock: socket.socket, data: bytes, deadline: Deadline) -> None:
    """Raises Unreachable."""
    try:
        sock.settimeout(deadline.remaining_s())
        sock.sendall(data)
    except OSError as error:
        raise Unreachable(describe(error)) from error


@contextlib.contextmanager
def cut_at(deadline: Deadline, sock: socket.socket) -> Iterator[None]:
    """Cut the connection at the deadline, whatever the code inside waits for: its calls fail with an OSError."""
    timer = threading.Timer(deadline.remaining_s(), shut, (sock,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def shut(sock: socket.socket) -> None:
    """End both directions at once. On the plain socket below TLS, whose own state another thread may be using."""
    with contextlib.suppress(OSError):  # it is closed already, which is what is wanted
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def describe(error: BaseException) -> str:
    """One clause for the user."""
    if isinstance(error, Unreachable):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its TLS certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({(error.reason or 'broken off').lower().replace('_', ' ')})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
