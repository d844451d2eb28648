"""hotpair itself: a source and a target in the foreground, and the questions and orders that go to the source."""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import msgpack

from bench.mounts import is_mounted, unmount_below
from bench.process import BenchError, Child, command
from bench.systems.base import COLD, DATA, SPARSE, Abilities
from bench.systems.ports import free_port

MODULE = "hotpair.replication"
CONTROL_TIMEOUT_S = 30.0
READY_TIMEOUT_S = 600.0


class Hotpair:
    """One pair. The directory `first` is mounted over by the source; `second` is the target's copy."""

    def __init__(self, tls: bool = False, sparse_bytes: int = 0) -> None:
        self.name = "hotpair-tls" if tls else "hotpair"
        self.abilities = Abilities(files=frozenset({DATA} if tls else {DATA, COLD, SPARSE}))
        self._tls = tls
        self._sparse_bytes = sparse_bytes
        self._children: dict[str, Child] = {}
        self._below = -1

    def prepare(self, directory: Path) -> None:
        """Make the directories; what is put into `first` before `start` is there when the pair starts."""
        self.directory = directory
        self.first, self.second = directory / "first", directory / "second"
        for each in (self.first, self.second, directory / "state-first", directory / "state-second"):
            each.mkdir()
        # Opened before the source mounts over it: the way to the source's own copy below the mount.
        self._below = os.open(self.first, os.O_RDONLY | os.O_DIRECTORY)
        self._address = f"127.0.0.1:{free_port()}"
        if self._tls:
            make_certificates(directory)

    def start(self, directory: Path) -> None:
        self.prepare(directory)
        if self._sparse_bytes:
            (self.first / SPARSE).touch()
            os.truncate(self.first / SPARSE, self._sparse_bytes)
        self.start_target()
        self.start_source()

    def start_target(self) -> None:
        arguments: list[str | Path] = [
            "--dir",
            self.second,
            "--state",
            self.directory / "state-second",
            "--listen",
            self._address,
        ]
        self._run("target", arguments)

    def start_source(self) -> None:
        """Returns when the pair is in sync."""
        arguments: list[str | Path] = [
            "--dir",
            self.first,
            "--state",
            self.directory / "state-first",
            "--peer",
            self._address,
        ]
        self._run("source", arguments)
        if not is_mounted(self.first):
            raise BenchError("the source says that it is ready and has mounted nothing")

    def _run(self, role: str, arguments: list[str | Path]) -> None:
        line: list[str | Path] = [sys.executable, "-m", MODULE, role, *arguments]
        if self._tls:
            line += ["--tls-certificate", self.directory / f"{role}.pem", "--tls-key", self.directory / f"{role}.key"]
            line += ["--tls-ca", self.directory / "ca.pem"]
        # Not from the repository's root: its folder `hotpair` is not the whole package.
        self._children[role] = Child(line, self.directory / role, self.directory)
        self._children[role].wait_ready(READY_TIMEOUT_S)

    def stop_one(self, role: str) -> None:
        if code := self._children[role].stop():
            raise BenchError(f"hotpair's {role} ended with {code}: {self._children[role].last_words()}")

    def pid(self, role: str) -> int:
        return self._children[role].pid

    def control(self, name: str, **arguments: object) -> dict[str, Any]:
        return control(self.directory / "state-first" / "control.sock", name, arguments)

    def wait_state(self, wanted: str, timeout_s: float) -> dict[str, Any]:
        """Until the source's status shows this state; returns that status."""
        deadline = time.monotonic() + timeout_s
        while (status := self.control("status"))["state"] != wanted:
            for child in self._children.values():
                child.check_alive()
            if time.monotonic() > deadline:
                raise BenchError(f"state {status['state']} instead of {wanted} after {timeout_s:.0f} s")
            time.sleep(0.01)
        return status

    def target(self, name: str) -> list[str]:
        return [f"--filename={self.first / name}"]

    def create(self, name: str, size: int) -> None:
        if name == SPARSE and (self.first / name).exists():
            return
        with (self.first / name).open("xb") as file:
            os.truncate(file.fileno(), size)

    def processes(self) -> dict[str, int]:
        return {role: child.pid for role, child in self._children.items()}

    def copies(self) -> list[Path]:
        return [Path(f"/proc/{os.getpid()}/fd/{self._below}"), self.second]

    def stop(self) -> None:
        self.stop_one("source")
        self.stop_one("target")
        if is_mounted(self.first):
            raise BenchError("the source has ended and has left its mount")

    def abandon(self) -> None:
        for child in self._children.values():
            child.kill()
        if self._children:
            unmount_below(self.directory)

    def close(self) -> None:
        """Let go of the directory below the mount, once the copies have been compared."""
        if self._below >= 0:
            os.close(self._below)
            self._below = -1


def control(path: Path, name: str, arguments: dict[str, object]) -> dict[str, Any]:
    """One request on a control socket: frames of a 4-byte big-endian length and msgpack."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(CONTROL_TIMEOUT_S)
            connection.connect(str(path))
            request = msgpack.packb([1, name, arguments])
            connection.sendall(len(request).to_bytes(4, "big") + request)
            length = int.from_bytes(_receive(connection, 4), "big")
            _, outcome, result = msgpack.unpackb(_receive(connection, length))
    except (OSError, ValueError) as error:
        raise BenchError(f"hotpair's control socket, {name}: {error}") from error
    if outcome != "ok":
        raise BenchError(f"hotpair refuses {name}: {result}")
    return dict(result)


def _receive(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = connection.recv(size - len(received))
        if not piece:
            raise OSError("closed before the answer was complete")
        received += piece
    return received


def make_certificates(directory: Path) -> None:
    """A certificate authority and one certificate for each role, all valid for one day and for loopback."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    authority = ["-x509", "-days", "1", "-subj", "/CN=hotpair benchmark"]
    command("openssl", "req", *authority, *key, "-keyout", directory / "ca.key", "-out", directory / "ca.pem")
    signed: list[str | Path] = ["-x509", "-days", "1", "-CA", directory / "ca.pem", "-CAkey", directory / "ca.key"]
    extensions = ["subjectAltName=IP:127.0.0.1,DNS:localhost", "extendedKeyUsage=serverAuth,clientAuth"]
    added = ["-addext", "basicConstraints=critical,CA:FALSE"]
    for extension in extensions:
        added += ["-addext", extension]
    for role in ("source", "target"):
        files: list[str | Path] = ["-keyout", directory / f"{role}.key", "-out", directory / f"{role}.pem"]
        command("openssl", "req", *signed, "-subj", f"/CN={role}", *added, *key, *files)
