"""A client's way to the API of one server: over its Unix socket, or over the network, for https in TLS.

A connection is kept for the next question, and made anew when the server has ended it meanwhile. Nothing is asked
twice: a command that was not answered may have been heard. Limits are in seconds, for each step: to connect, a silence.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LARGEST_ANSWER = 64 << 20  # bytes: a thousand events and 25 modules' metrics are far less
LONGEST_LINE = 1 << 20  # of a stream: one event
PIECE_BYTES = 64 << 10

FAILURES = (OSError, http.client.HTTPException, UnicodeError)  # UnicodeError: for a host that cannot be a name

Connect = Callable[[float], http.client.HTTPConnection]


@dataclass(frozen=True)
class Answer:
    status: int
    reason: str
    body: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


def over_socket(path: str) -> Connect:
    def connect(limit_s: float) -> http.client.HTTPConnection:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(limit_s)
            sock.connect(path)
        except OSError:
            sock.close()
            raise
        made = http.client.HTTPConnection("hotpair", timeout=limit_s)
        made.sock = sock
        return made

    return connect


def over_network(url: str, tls: ssl.SSLContext) -> Connect:
    """ValueError for what is no http or https URL."""
    parts = urlsplit(url)
    host, port = parts.hostname, parts.port
    if host is None or parts.scheme not in ("http", "https"):
        raise ValueError(f"{url} is no server's address: give https://HOST:PORT")

    def connect(limit_s: float) -> http.client.HTTPConnection:
        made = (
            http.client.HTTPConnection(host, port or http.client.HTTP_PORT, timeout=limit_s)
            if parts.scheme == "http"
            else http.client.HTTPSConnection(host, port or http.client.HTTPS_PORT, timeout=limit_s, context=tls)
        )
        made.connect()
        return made

    return connect


class Connection:
    """Not for several threads. Its methods raise FAILURES. `above`: what each path begins with, behind a proxy."""

    def __init__(self, connect: Connect, headers: Mapping[str, str] | None = None, above: str = "") -> None:
        self._connect = connect
        self._headers = dict(headers or {})
        self._above = above
        self._kept: http.client.HTTPConnection | None = None

    def close(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            kept.close()

    def ask(self, method: str, path: str, body: object, limit_s: float) -> Answer:
        """`body`: sent as JSON; None: nothing is sent."""
        kept, self._kept = self._kept, None
        if kept is not None and not _goes_on(kept):
            kept.close()
            kept = None
        asked = kept or self._connect(limit_s)
        try:
            asked.sock.settimeout(limit_s)
            answer = _whole(self._begun(asked, method, path, body))
        except BaseException:
            asked.close()
            raise
        self._kept = asked
        return answer

    @contextlib.contextmanager
    def stream(self, path: str, limit_s: float) -> Iterator[tuple[Answer, Iterator[str]]]:
        """The answer, and when it is a success its lines instead of its body. Has a connection of its own."""
        asked = self._connect(limit_s)
        with contextlib.closing(asked):
            begun = self._begun(asked, "GET", path, None)
            with contextlib.closing(begun):
                head = Answer(begun.status, begun.reason, b"")
                yield (head, _lines(begun)) if head.is_success else (_whole(begun), iter(()))

    def _begun(
        self, asked: http.client.HTTPConnection, method: str, path: str, body: object
    ) -> http.client.HTTPResponse:
        sent = (
            None
            if body is None
            else json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        )
        kind = {} if body is None else {"Content-Type": "application/json"}
        asked.request(method, self._above + path, sent, {**self._headers, **kind})
        return asked.getresponse()


def _goes_on(kept: http.client.HTTPConnection) -> bool:
    """Nothing is to be read from one that waits for a question, but its end."""
    sock: Any = kept.sock  # None when the last answer said that it was the last
    if sock is None:
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return not poll.poll(0)


def _whole(answer: http.client.HTTPResponse) -> Answer:
    body = answer.read(LARGEST_ANSWER + 1)
    if len(body) > LARGEST_ANSWER:
        raise http.client.HTTPException(f"the answer has more than {LARGEST_ANSWER} bytes")
    if answer.length:  # it ended before, which is no error to read()
        raise http.client.IncompleteRead(body, answer.length)
    return Answer(answer.status, answer.reason, body)


def _lines(answer: http.client.HTTPResponse) -> Iterator[str]:
    """Not by readline(), to which a stream that was cut off is one that has ended."""
    left = b""
    while piece := answer.read1(PIECE_BYTES):
        *whole, left = (left + piece).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode(errors="replace")
        if len(left) > LONGEST_LINE:
            raise http.client.HTTPException(f"a line has more than {LONGEST_LINE} bytes")
