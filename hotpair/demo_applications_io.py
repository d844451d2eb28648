"""What the demonstration's servers run: applications that keep a ledger, a plain process or a QEMU guest.

Both write numbers to the mirrored directory, each flushed, and say each in a file outside when it is on disk. That
ledger outlives the servers: what was acknowledged can be held against what is there after a failover.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hotpair.demo_guest_io import numbers_on

DISK_BYTES = 16 << 20  # some 32,000 numbers
TWO = b"two at a time"

PROCESS = f"""
import fcntl, os, sys
said = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
try:
    fcntl.flock(said, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    os.write(said, {TWO!r} + b"\\n")
    sys.exit(1)
data = os.open("journal", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
size = os.fstat(data).st_size
lines = os.pread(data, 64, max(0, size - 64)).split(b"\\n")
number = int(lines[-2]) if size else 0
while True:
    number += 1
    line = b"%d\\n" % number
    os.write(data, line)
    os.fsync(data)
    os.write(said, line)
"""


@dataclass(frozen=True)
class Application:
    """One module. `vm`: its [vm] table. `directory`: below a server's home.

    ledger   what it said, one number on each line
    fill     called with each server's directory, and whether the data is to be there
    numbers  what is there, read below a directory
    """

    name: str
    directory: str
    data_on: str
    vm: str
    ledger: Path
    fill: Callable[[Path, bool], None]
    numbers: Callable[[Path], list[int]]

    def said(self, since: int = 0) -> list[int]:
        """The numbers that were acknowledged, from that byte of the ledger on."""
        if not self.ledger.exists():
            return []
        words = self.ledger.read_bytes()[since:].split(b"\n")[:-1]
        return [int(word) for word in words if word.strip().isdigit()]

    def acknowledged(self) -> int:
        """The highest number of which the application was told that it is on disk."""
        return max(self.said(), default=0)

    def ran_twice(self) -> bool:
        """Whether one was started while another one still ran. A guest cannot tell."""
        return self.ledger.exists() and TWO in self.ledger.read_bytes()


def plain_process(name: str, data_on: str, folder: Path) -> Application:
    """`folder`: outside the servers, for its program and its ledger."""
    program, ledger = folder / "application.py", folder / f"{name}.ledger"
    program.write_text(PROCESS)
    start = [sys.executable, "-I", str(program), str(ledger)]
    vm = f'driver = "command"\n[vm.options]\nstart = {json.dumps(start)}\n'
    return Application(name, name, data_on, vm, ledger, lambda directory, has_data: None, _lines)


def _lines(directory: Path) -> list[int]:
    data = (directory / "journal").read_bytes()
    return [int(line) for line in data.split(b"\n")[:-1]]


def guest(name: str, data_on: str, folder: Path, kernel: bytes, initrd: bytes, ballast_bytes: int = 0) -> Application:
    """See demo_guest_io for what it does. Without KVM it takes some seconds to boot.

    `ballast_bytes`: of a file that nobody changes, so that copying only what changed differs from copying everything.
    """
    ledger = folder / f"{name}.ledger"
    channel = f"file,id=ledger,path={ledger},append=on"
    console = f"file,id=console,path={folder / name}.console,append=on"
    arguments = ["-chardev", console, "-serial", "chardev:console", "-chardev", channel, "-serial", "chardev:ledger"]
    description = (
        'memory = "128m"\nkernel = "kernel"\ninitrd = "initrd"\nappend = "console=ttyS0 quiet panic=-1"\n'
        f'guest_agent = false\narguments = {json.dumps(arguments)}\n[[disks]]\nfile = "disk.raw"\n'
    )

    def fill(directory: Path, has_data: bool) -> None:
        if not has_data:
            return
        (directory / "kernel").write_bytes(kernel)
        (directory / "initrd").write_bytes(initrd)
        (directory / "vm.toml").write_text(description)
        with open(directory / "disk.raw", "wb") as disk:
            disk.truncate(DISK_BYTES)
        if ballast_bytes:
            (directory / "ballast").write_bytes(os.urandom(ballast_bytes))

    return Application(name, name, data_on, 'driver = "qemu"\n', ledger, fill, _sectors)


def _sectors(directory: Path) -> list[int]:
    return numbers_on((directory / "disk.raw").read_bytes())
