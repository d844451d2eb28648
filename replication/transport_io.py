"""The connection between the two mirror processes: TCP, with or without TLS 1.3, never blocking.

Both kinds have the same three methods, so that the loops do not know which one they use:

- ``send(views)`` sends from a deque of memory views and removes what was sent; True when all of it is gone.
- ``receive(view)`` fills the view; the number of bytes, 0 when nothing is there now. Raises LinkLost at the end.
- ``fileno()`` and ``wants_write`` for epoll.
- ``quiet_s()``: for how long the peer's host has acknowledged nothing, whatever its process does.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections import deque
from dataclasses import dataclass
from itertools import islice

from hotpair.replication.errors import BadConfiguration, LinkLost

VECTORS = 64  # buffers in one sendmsg call; IOV_MAX is 1024, but a burst is rarely more
TCP_NOTSENT_LOWAT_BYTES = 1 << 20  # what waits unsent in the kernel delays the writes behind it


class PlainConnection:
    """A TCP connection without encryption."""

    def __init__(self, sock: socket.socket) -> None:
        prepare(sock)
        self._sock = sock
        self._send = sock.sendmsg
        self._receive = sock.recv_into
        self.wants_write = False
        self.sent = 0  # bytes

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, views: deque[memoryview]) -> bool:
        """Send what can be sent. Raises LinkLost."""
        try:
            while views:
                sent = self._send(views if len(views) <= VECTORS else list(islice(views, VECTORS)))
                self.sent += sent
                while sent:
                    first = views[0]
                    size = len(first)
                    if size <= sent:
                        views.popleft()
                        sent -= size
                    else:
                        views[0] = first[sent:]
                        sent = 0
        except BlockingIOError:
            self.wants_write = True
            return False
        except OSError as error:
            raise LinkLost(f"the connection to the peer broke while sending: {error.strerror}") from error
        self.wants_write = False
        return True

    def receive(self, view: memoryview) -> int:
        """Bytes received into ``view``, 0 when there are none now. Raises LinkLost."""
        try:
            size = self._receive(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise LinkLost(f"the connection to the peer broke: {error.strerror}") from error
        if size == 0:
            raise LinkLost("the peer closed the connection")
        return size

    def pending(self) -> bool:
        """Whether something was received that epoll does not see."""
        return False

    def quiet_s(self) -> float:
        """Seconds since the peer's host has acknowledged anything."""
        return quiet_s(self._sock)

    def abandon(self) -> None:
        """Have ``close`` end it at once."""
        abandon(self._sock)

    def close(self) -> None:
        self._sock.close()


class TlsConnection:
    """A TLS 1.3 connection. ``SSLSocket`` has no sendmsg, and a send must be repeated with the same bytes."""

    def __init__(self, sock: ssl.SSLSocket) -> None:
        prepare(sock)
        self._sock = sock
        self.wants_write = False
        self.sent = 0  # bytes
        self._joined: memoryview | None = None

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, views: deque[memoryview]) -> bool:
        """Send what can be sent. Small frames are joined: a TLS record for each would cost more than the copy."""
        try:
            while views:
                if self._joined is None:
                    self._joined = _join_small(views)
                sent = self._sock.send(self._joined)
                self.sent += sent
                rest = self._joined[sent:]
                self._joined = None
                if rest:
                    views.appendleft(rest)
            self.wants_write = False
            return True
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            # The same bytes must be offered again; they stay in self._joined, with a place holder so that
            # `views` is not empty while something is unsent.
            if self._joined is not None:
                views.appendleft(self._joined)
                self._joined = None
            self.wants_write = True
            return False
        except OSError as error:
            raise LinkLost(f"the TLS connection to the peer broke while sending: {error}") from error

    def receive(self, view: memoryview) -> int:
        """Bytes received; decrypts until the TLS layer wants more, because epoll does not see what it holds."""
        filled = 0
        try:
            while filled < len(view):
                size = self._sock.recv_into(view[filled:])
                if size == 0:
                    if filled:
                        return filled
                    raise LinkLost("the peer closed the connection")
                filled += size
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return filled
        except OSError as error:
            if filled:
                return filled
            raise LinkLost(f"the TLS connection to the peer broke: {error}") from error
        return filled

    def pending(self) -> bool:
        """Whether the TLS layer holds decrypted bytes, which epoll does not see."""
        return self._sock.pending() > 0

    def quiet_s(self) -> float:
        """Seconds since the peer's host has acknowledged anything."""
        return quiet_s(self._sock)

    def abandon(self) -> None:
        """Have ``close`` end it at once."""
        abandon(self._sock)

    def close(self) -> None:
        self._sock.close()


Connection = PlainConnection | TlsConnection

JOIN_LIMIT = 16 << 10  # the size of a TLS record


def _join_small(views: deque[memoryview]) -> memoryview:
    """Take one view, or several small ones joined into one buffer, from the left of ``views``."""
    first = views.popleft()
    if len(first) >= JOIN_LIMIT or not views:
        return first
    parts, total = [first], len(first)
    while views and total + len(views[0]) <= JOIN_LIMIT:
        part = views.popleft()
        parts.append(part)
        total += len(part)
    return first if len(parts) == 1 else memoryview(b"".join(parts))


def prepare(sock: socket.socket) -> None:
    """Options of a mirror connection: no delay, probes, little waiting unsent in the kernel."""
    sock.setblocking(False)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, TCP_NOTSENT_LOWAT_BYTES)


LAST_ACK_RECEIVED = 8 + 12 * 4  # tcpi_last_ack_recv in struct tcp_info of linux/tcp.h: milliseconds


def quiet_s(sock: socket.socket) -> float:
    """Seconds since the last acknowledgement came, of data or of a probe of a closed window. 0 where there are none."""
    if sock.family == socket.AF_UNIX:
        return 0.0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LAST_ACK_RECEIVED + 4)
    milliseconds: int = struct.unpack_from("=I", info, LAST_ACK_RECEIVED)[0]
    return milliseconds / 1000


def abandon(sock: socket.socket) -> None:
    """Have ``close`` end a connection at once. Otherwise a peer that does not read would keep it half open for minutes,
    with all that was sent and not received (socket(7), SO_LINGER).
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))


@dataclass(frozen=True)
class TlsFiles:
    """The three PEM files of one side: its certificate, its key, and the authority that signed the peer's."""

    certificate: str
    key: str
    authority: str

    def context(self, server: bool) -> ssl.SSLContext:
        """A TLS 1.3 context that demands a certificate of the peer. Raises BadConfiguration."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # servers are known by their certificate, not by a name in a directory
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise BadConfiguration(f"TLS: cannot use {self.certificate} with {self.key}: {error}") from error
        try:
            context.load_verify_locations(self.authority)
        except (OSError, ssl.SSLError) as error:
            raise BadConfiguration(f"TLS: cannot use {self.authority}: {error}") from error
        return context


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` (IPv6 in brackets) as a pair. Raises BadConfiguration."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    digits = port.isascii() and port.isdigit() and len(port) < 6
    if not colon or not host or "[" in host or "]" in host or not digits or not 0 < int(port) < 65536:
        raise BadConfiguration(f"{text!r} is not an address: give HOST:PORT, for example 10.0.0.2:5600")
    if ":" in host and not bracketed:
        raise BadConfiguration(f"{text!r} is not an address: put the IPv6 address in brackets, as in [::1]:5600")
    return host, int(port)
