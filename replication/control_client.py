"""Asking a mirror process through its control socket."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

import msgpack

from hotpair.replication.control import LENGTH, WATCH
from hotpair.replication.errors import MirrorError, Refused


class ControlClient:
    """A connection to the control socket in ``state``. Raises MirrorError when the process does not answer."""

    def __init__(self, state: str, timeout_s: float = 5.0) -> None:
        self._path = os.path.join(state, "control.sock")
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout_s)
        self._number = 0
        try:
            self._sock.connect(self._path)
        except OSError as error:
            self._sock.close()
            raise MirrorError(f"{self._path}: {error.strerror}: the mirror process does not run") from error

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """One request; its answer. Raises MirrorError with the process's reason; of a verdict, Refused."""
        self._request(command, arguments)
        return self._answer(command)

    def watch(self) -> Iterator[dict[str, Any]]:
        """The present report, then each new one: waits for it, however long. This connection takes no more requests.

        Raises MirrorError when the process has ended: that is the last thing that it reports.
        """
        self._request(WATCH, {})
        report = self._answer(WATCH)
        self._sock.settimeout(None)
        while True:
            yield report
            report = self._answer(WATCH)

    def _request(self, command: str, arguments: dict[str, Any]) -> None:
        self._number += 1
        body = msgpack.packb([self._number, command, arguments])
        try:
            self._sock.sendall(LENGTH.pack(len(body)) + body)
        except OSError as error:
            raise self._unanswered(command, error) from error

    def _answer(self, command: str) -> dict[str, Any]:
        try:
            (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
            number, outcome, content, *report = msgpack.unpackb(self._exactly(length))
        except OSError as error:
            raise self._unanswered(command, error) from error
        if number != self._number or outcome != "ok":
            raise Refused(str(content), report[0]) if report else MirrorError(str(content))
        answer: dict[str, Any] = content
        return answer

    def _unanswered(self, command: str, error: OSError) -> MirrorError:
        return MirrorError(f"{self._path}: no answer to {command}: {error}")

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self._sock.recv(size - len(data))
            if not part:
                raise MirrorError(f"{self._path}: the mirror process ended")
            data += part
        return bytes(data)

    def close(self) -> None:
        """End the connection. For any thread: one that waits for a report is not left waiting."""
        with contextlib.suppress(OSError):  # the process has ended it already
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
