"""The control socket: how a supervisor asks a mirror process and tells it the verdict.

A Unix stream socket in the state directory. Requests and answers are msgpack arrays behind a 4-byte big-endian length:
``[id, command, {arguments}]`` is answered by ``[id, "ok", {...}]`` or ``[id, "error", text]``; for a refused verdict
the present report follows the text. ``watch`` is answered again and again: with the present report, then with each new
one, until either side closes the connection. Threads of their own serve it, so that reports, verdicts and stop are
answered even while the loop waits for a disk that hangs.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import msgpack

from hotpair.replication.errors import MirrorError, Refused
from hotpair.replication.reports_io import Reports

if TYPE_CHECKING:
    from hotpair.replication.source_process import SourceProcess
    from hotpair.replication.target_process import TargetProcess

log = logging.getLogger("hotpair.replication")

LENGTH: Final = struct.Struct(">I")
REQUEST_LIMIT: Final = 1 << 16
BACKLOG: Final = 64  # connections not accepted yet: more are refused, not kept waiting
WATCH: Final = "watch"
Command = Callable[[dict[str, Any]], dict[str, Any]]


class ControlServer:
    """Serves the control socket until closed."""

    def __init__(self, path: str, commands: dict[str, Command], reports: Reports) -> None:
        self._path = path
        self._commands: dict[str, Command] = {**commands, "report": self._report, WATCH: self._report}
        self._reports = reports
        if os.path.exists(path):
            os.unlink(path)  # the state directory is locked, so that its owner is gone
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        os.chmod(path, 0o600)
        self._listener.listen(BACKLOG)
        threading.Thread(target=self._accept, name="control", daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        finally:
            self._listener.close()
            os.unlink(self._path)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._serve, args=(sock,), name="control client", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as stream:
            while True:
                head = stream.read(LENGTH.size)
                if len(head) < LENGTH.size:
                    return
                (length,) = LENGTH.unpack(head)
                if length > REQUEST_LIMIT:
                    self._send(sock, [0, "error", f"a request of {length} bytes is over the limit of {REQUEST_LIMIT}"])
                    return
                try:
                    number, name, arguments = msgpack.unpackb(stream.read(length))
                except ValueError as error:
                    self._send(sock, [0, "error", f"not a request: {error}"])
                    return
                if name == WATCH:
                    self._watch(sock, number)
                    return
                self._send(sock, self._answer(number, name, arguments))

    def _report(self, _arguments: dict[str, Any]) -> dict[str, Any]:
        return self._reports.latest()[1]

    def _watch(self, sock: socket.socket, number: int) -> None:
        """Send each new report, until the other side closes, or says anything."""
        told = 0
        try:
            with self._reports.watching() as news:
                poll = select.poll()
                poll.register(sock, select.POLLIN)
                poll.register(news, select.POLLIN)
                while True:
                    latest, report = self._reports.latest()
                    if latest != told:
                        told = latest
                        self._send(sock, [number, "ok", report])
                    if any(fd == sock.fileno() for fd, _ in poll.poll()):
                        return
                    os.eventfd_read(news)
        except MirrorError as error:
            self._send(sock, [number, "error", str(error)])
        except (BrokenPipeError, ConnectionResetError):
            return  # it has closed while a report was sent

    def _answer(self, number: int, name: str, arguments: dict[str, Any]) -> list[Any]:
        command = self._commands.get(name)
        if command is None:
            return [number, "error", f"no command {name!r}: there are {', '.join(sorted(self._commands))}"]
        try:
            return [number, "ok", command(arguments)]
        except Refused as error:
            return [number, "error", str(error), error.report]
        except (MirrorError, KeyError, TypeError, ValueError) as error:
            return [number, "error", str(error)]

    def _send(self, sock: socket.socket, answer: list[Any]) -> None:
        body = msgpack.packb(answer)
        sock.sendall(LENGTH.pack(len(body)) + body)


def source_commands(process: SourceProcess) -> dict[str, Command]:
    """What a source can be asked."""
    control, verdicts = process.control, process.verdicts
    return {
        "status": lambda _: control.status(),
        "go_alone": control.go_alone,
        "agree": control.agree,
        "fail_tap": lambda _: control.fail_tap(),
        "stop": lambda _: control.stop(),
        "retry": lambda _: control.ask(verdicts.retry),
        "shutdown": lambda _: control.ask(verdicts.begin_stop),
        "verify_start": lambda arguments: control.ask(lambda: verdicts.start_verify(bool(arguments.get("repair")))),
        "verify_stop": lambda _: control.ask(lambda: verdicts.end_verify("stopped")),
        "handover": lambda _: control.ask(verdicts.hand_over),
        "set_ceiling": lambda arguments: control.ask(lambda: verdicts.set_ceiling(int(arguments["bytes_per_second"]))),
        "set_floor": lambda arguments: control.ask(lambda: verdicts.set_floor(int(arguments["bytes_per_second"]))),
    }


def target_commands(process: TargetProcess) -> dict[str, Command]:
    """What a target can be asked."""
    return {
        "status": lambda _: process.status(),
        "leave": lambda _: process.leave(),
        "shutdown": lambda _: process.shut_down(),
    }
