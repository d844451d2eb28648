"""Two whole servers on one machine, on two loopback addresses, with an application that keeps a ledger.

For the demonstration, and for the tests of the product as a whole. The application appends numbered lines to a
journal on the mirrored directory, each flushed, and then says in a file outside what it has written: the ledger
outlives both servers. So what was acknowledged can be held against what is there after a failover.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from hotpair.actors.home import Home
from hotpair.client import ApiError, Client
from hotpair.replication import fuse_io, mounts_io

START_S = 120.0  # two Ray runtimes start, on a machine that others use too
END_S = 40.0
WAIT_S = 60.0
LOOK_S = 0.05  # between two questions to a service
ADDRESSES = {"a": "127.0.0.1", "b": "127.0.0.2"}
MODULE = "app"

APPLICATION = """
import os, sys
ledger = sys.argv[1]
data = os.open("journal", os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
said = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
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


class DemoFailed(Exception):
    """Something did not happen in time; the text says what, and what both servers said last."""


class Server:
    """One server's home, its service, and everything that belongs to it."""

    def __init__(self, name: str, folder: Path, ray_port: int) -> None:
        self.name = name
        self.folder = folder / name
        self.home = Home.at(str(self.folder))
        self._log = self.folder / "service.log"
        self._ray_port = ray_port
        self._service: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """As a host that has booted."""
        with open(self._log, "ab") as log:
            self._service = subprocess.Popen(
                [sys.executable, "-P", "-c", "from hotpair.command_line import main; raise SystemExit(main())", "run"]
                + ["--home", str(self.folder), "--server", self.name, "--ray-port", str(self._ray_port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def client(self) -> Client:
        return Client.here(self.home)

    def state(self) -> str:
        """With "green" behind it where it is; empty while the service does not answer, or has not opened it."""
        try:
            with self.client() as client:
                found = client.module(MODULE)
        except ApiError:
            return ""
        if found.state is None:
            return ""
        return f"{found.state} green" if found.ready else found.state

    def processes(self) -> list[psutil.Process]:
        """The service, its Ray, its actors, its mirrors and its application; and only its own."""
        service = None if self._service is None else self._service.pid
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = [*process.cmdline(), *process.environ().values()]
                # with the slash: the server a's folder is how the path of the application begins, too
                is_named = any(f"{self.folder}/" in f"{word}/" for word in words)
                if is_named or service in [process.pid, *(one.pid for one in process.parents())]:
                    found.append(process)
        return found

    def cut_power(self) -> None:
        """kill -9 of everything that it runs, all at once; its mounts go as well."""
        everything = self.processes()
        for process in everything:
            with contextlib.suppress(psutil.Error):
                process.suspend()  # nobody sees another one's end
        for process in everything:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for mount in reversed(mounts_io.read_table()):
            if mounts_io.is_within(mount.point, os.fsencode(self.folder)):
                if mount.kind == fuse_io.FUSE_KIND:
                    fuse_io.abort_connection(int(mount.device.partition(b":")[2]))
                fuse_io.unmount(mount.point)
        psutil.wait_procs(everything, END_S)
        if self._service is not None:
            self._service.wait(END_S)
            self._service = None

    def last_words(self) -> str:
        """The end of each of its logs."""
        said = [f"--- {self.name}: {self.state()!r}"]
        for path in (self._log, Path(self.home.event_log(MODULE)), Path(self.home.mirror_log(MODULE))):
            if path.exists():
                said.append(f"{path}:\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(said)


class TwoServers:
    """`arbitration`: the table of cluster.toml. `first_port`: this many of the following are used: 1000.

    `checkers`: the module's tables of these.
    """

    def __init__(self, folder: Path, first_port: int, arbitration: str, checkers: str = "") -> None:
        self._ledger = folder / "ledger"
        self.servers = {name: Server(name, folder, first_port + 400 * number) for number, name in enumerate(ADDRESSES)}
        key = secrets.token_hex(32)
        (folder / "application.py").write_text(APPLICATION)
        start = [sys.executable, "-I", str(folder / "application.py"), str(self._ledger)]
        module = (
            f'directory = "{MODULE}"\nmirror_port = {first_port + 900}\ndata_on = "a"\n[mirror]\ncache = "page"\n'
            f'[vm]\ndriver = "command"\n[vm.options]\nstart = {json.dumps(start)}\n{checkers}'
        )
        for server in self.servers.values():
            (server.folder / "modules").mkdir(parents=True)
            (server.folder / MODULE).mkdir()
            (server.folder / "cluster.toml").write_text(_cluster(arbitration))
            (server.folder / "modules" / f"{MODULE}.toml").write_text(module)
            path = server.folder / "pair.key"
            path.touch(0o600)
            path.write_text(key)

    def __getitem__(self, name: str) -> Server:
        return self.servers[name]

    def start(self) -> None:
        """Until both services answer."""
        for server in self.servers.values():
            server.start()
        for server in self.servers.values():
            self._until_open(server)

    def _until_open(self, server: Server) -> None:
        self.until(lambda: server.state() != "", f"{server.name} answers", START_S)

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = WAIT_S) -> float:
        """How long it took, in seconds. Raises DemoFailed."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > limit_s:
                words = "\n".join(server.last_words() for server in self.servers.values())
                raise DemoFailed(f"not within {limit_s:g} s: {what}\n{words}")
            time.sleep(LOOK_S)
        return time.monotonic() - began

    def until_states(self, a: str, b: str, limit_s: float = WAIT_S) -> float:
        both = f"a is {a!r} and b is {b!r}"
        return self.until(lambda: (self["a"].state(), self["b"].state()) == (a, b), both, limit_s)

    def command(self, server: str, command: str) -> None:
        """Raises ApiError when it is refused."""
        with self[server].client() as client:
            client.command(MODULE, command)

    def acknowledged(self) -> int:
        """The highest number of a line of which the application was told that it is on disk."""
        return max(self._said(), default=0)

    def _said(self, since: int = 0) -> list[int]:
        if not self._ledger.exists():
            return []
        return [int(line) for line in self._ledger.read_bytes()[since:].split(b"\n")[:-1]]

    def journal(self, server: str) -> list[int]:
        """The lines that are there, as the application on that server sees them."""
        data = (self[server].folder / MODULE / "journal").read_bytes()
        return [int(line) for line in data.split(b"\n")[:-1]]

    def until_more(self, lines: int = 20) -> float:
        """Wait until the application has written so many more, wherever it runs; how long that took."""
        before = self._ledger.stat().st_size if self._ledger.exists() else 0
        return self.until(lambda: len(self._said(before)) >= lines, "the application writes")

    def end(self) -> None:
        for server in self.servers.values():
            server.cut_power()


def _cluster(arbitration: str) -> str:
    servers = "".join(
        f'[[servers]]\nname = "{name}"\naddress = "{address}"\nnetworks = {{ lan = "{address}" }}\n'
        for name, address in ADDRESSES.items()
    )
    return f'name = "demo"\n{servers}[arbitration]\n{arbitration}[security]\ntls = false\n'


@contextmanager
def two_servers(first_port: int, arbitration: str = 'kind = "none"\n', checkers: str = "") -> Iterator[TwoServers]:
    """Both started, and the module running: a is PRIM, b is SECOND, both green. Nothing is left of it."""
    folder = Path(tempfile.mkdtemp(prefix="hotpair-two-", dir="/var/tmp"))
    servers = TwoServers(folder, first_port, arbitration, checkers)
    try:
        servers.start()
        for name in ADDRESSES:
            servers.command(name, "start")
        servers.until_states("PRIM green", "SECOND green")
        yield servers
    finally:
        servers.end()
        shutil.rmtree(folder)
