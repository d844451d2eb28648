"""QEMU's blockdev-mirror, write-blocking, to an NBD server on loopback.

The mirrored disk is reached through an NBD export on a Unix socket by fio's own nbd engine. The FUSE export would be
closer to how the others are reached, but QEMU refuses it: a writable one takes the `resize` permission on its node
(QEMU's block/export/fuse.c), and a mirror job does not share that. This is to QEMU's advantage: its requests do not go
through the kernel's FUSE code, and there are as many under way as fio likes.

QEMU's NBD server before version 8.1 does not set TCP_NODELAY: with two answers under way it waits for the peer's
delayed acknowledgement, 40 ms, and comes to 54 writes/s. Loopback address 127.0.0.2 gets a route with immediate
acknowledgements, so that what is compared is not that mistake.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

from bench.process import BenchError, Child, command, wait_until
from bench.systems.base import DATA, Abilities
from bench.systems.ports import free_port

DAEMON = "qemu-storage-daemon"
TARGET_ADDRESS = "127.0.0.2"


class Qemu:
    """One raw file on each side, through the page cache (cache.direct=off)."""

    name = "qemu"
    abilities = Abilities(files=frozenset({DATA}), engine="nbd")

    def __init__(self, disk_bytes: int) -> None:
        self._disk_bytes = disk_bytes
        self._children: dict[str, Child] = {}

    def start(self, directory: Path) -> None:
        self._first, self._second = directory / "first.raw", directory / "second.raw"
        self._socket, control = directory / "disk.socket", directory / "qmp"
        for path in (self._first, self._second):
            with path.open("xb") as file:
                os.truncate(file.fileno(), self._disk_bytes)
        route = ["local", f"{TARGET_ADDRESS}/32", "dev", "lo", "table", "local", "src", "127.0.0.1", "quickack", "1"]
        command("ip", "route", "replace", *route)
        port = free_port()
        export = "type=nbd,id=export,node-name=disk,name=disk,writable=on"
        self._run(
            *("target", directory, self._second),
            *("--nbd-server", f"addr.type=inet,addr.host={TARGET_ADDRESS},addr.port={port}", "--export", export),
        )
        server = f"server.type=inet,server.host={TARGET_ADDRESS},server.port={port}"
        self._run(
            *("source", directory, self._first),
            *("--chardev", f"socket,id=qmp,path={control},server=on,wait=off", "--monitor", "chardev=qmp"),
            *(
                "--blockdev",
                f"node-name=copy,driver=nbd,export=disk,{server}",
                "--nbd-server",
                f"addr.type=unix,addr.path={self._socket}",
                "--export",
                export,
            ),
        )
        self._qmp = Qmp(control)
        job = {"job-id": "mirror", "device": "disk", "target": "copy", "sync": "full", "copy-mode": "write-blocking"}
        self._qmp.call("blockdev-mirror", **job)
        wait_until(self._is_mirroring, "ready mirror job", 60, list(self._children.values()))

    def _run(self, role: str, directory: Path, disk: Path, *arguments: str) -> None:
        pid_file = directory / f"{role}.pid"
        node = f"node-name=disk,driver=file,cache.direct=off,filename={disk}"
        line = [DAEMON, "--blockdev", node, *arguments, "--pidfile", str(pid_file)]
        child = self._children[role] = Child(line, directory / role, directory)
        wait_until(pid_file.exists, pid_file.name, 30, [child])

    def _is_mirroring(self) -> bool:
        jobs = self._qmp.call("query-jobs")
        if not jobs:
            raise BenchError(f"the mirror job has gone: {self._children['source'].last_words()}")
        return bool(jobs[0]["status"] == "ready")

    def target(self, name: str) -> list[str]:
        return [f"--uri=nbd+unix:///disk?socket={self._socket}"]

    def create(self, name: str, size: int) -> None:
        if size != self._disk_bytes:
            raise BenchError("a QEMU disk is made with its size")

    def processes(self) -> dict[str, int]:
        return {role: child.pid for role, child in self._children.items()}

    def copies(self) -> list[Path]:
        return [self._first, self._second]

    def stop(self) -> None:
        if not self._is_mirroring():
            raise BenchError("the mirror job is not ready any more")
        self._qmp.call("quit")  # cancels the job; the copy stays what it was at that moment
        source = self._children["source"]
        wait_until(lambda: source.process.poll() is not None, "end of the source", 30)
        for role, child in self._children.items():
            if code := child.stop():
                raise BenchError(f"{DAEMON} ({role}) ended with {code}: {child.last_words()}")

    def abandon(self) -> None:
        for child in self._children.values():
            child.kill()


class Qmp:
    """QEMU's control protocol: JSON objects, one in each line; events are skipped."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._lines.readline()  # the greeting
        self.call("qmp_capabilities")

    def call(self, name: str, **arguments: object) -> Any:
        self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise BenchError(f"QEMU, {name}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise BenchError(f"QEMU, {name}: no answer")
