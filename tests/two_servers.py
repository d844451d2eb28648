"""Two real servers on one machine: two services with a Ray runtime each, on two loopback addresses.

The module's application is a small program that appends numbered lines to a file on the mirrored directory, each
synced, and says what it has written to a file outside: the ledger, which outlives every server. So what was
acknowledged can be held against what is there after a failover.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
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
from tests.mirror_pair import abort_mounts_below

START_S = 120.0  # two Ray runtimes on a machine that others use too
END_S = 40.0
ADDRESSES = {"a": "127.0.0.1", "b": "127.0.0.2"}
RAY_PORTS = {"a": 23000, "b": 24000}
MIRROR_PORT = 25810


APPLICATION = """
import os, sys
directory, ledger = sys.argv[1], sys.argv[2]
path = os.path.join(directory, "journal")
data = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
said = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
size = os.fstat(data).st_size
last = os.pread(data, 64, max(0, size - 64)).split(b"\\n")[-2:]
number = int(last[0] or b"0") if size else 0
while True:
    number += 1
    line = b"%d\\n" % number
    os.write(data, line)
    os.fsync(data)
    os.write(said, line)
"""


class Server:
    """One server's home, its service, and everything that belongs to it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder / name
        self.home = Home.at(str(self.folder))
        self.log = self.folder / "service.log"
        self.service: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with open(self.log, "ab") as log:
            self.service = subprocess.Popen(
                [sys.executable, "-P", "-c", "from hotpair.command_line import main; raise SystemExit(main())", "run"]
                + ["--home", str(self.folder), "--server", self.name, "--ray-port", str(RAY_PORTS[self.name])],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def client(self) -> Client:
        return Client.here(self.home)

    def state(self, module: str = "app") -> str:
        """With "green" behind it where it is; empty while the service does not answer, or has not opened it."""
        try:
            with self.client() as client:
                found = client.module(module)
        except ApiError:
            return ""
        if found.state is None:
            return ""
        return f"{found.state} green" if found.ready else found.state

    def processes(self) -> list[psutil.Process]:
        """The service, its Ray, its actors, its mirrors and its applications; and only its own."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = [*process.cmdline(), *process.environ().values()]
                if any(str(self.folder) in word for word in words) or (
                    self.service is not None and self.service.pid in [one.pid for one in process.parents()]
                ):
                    found.append(process)
        return found

    def cut_power(self) -> None:
        """kill -9 of everything it runs, all at once; its mounts go as well."""
        everything = self.processes()
        for process in everything:
            with contextlib.suppress(psutil.Error):
                process.suspend()  # nobody sees another one's end
        for process in everything:
            with contextlib.suppress(psutil.Error):
                process.kill()
        abort_mounts_below(str(self.folder))
        psutil.wait_procs(everything, END_S)
        if self.service is not None:
            self.service.wait(END_S)
            self.service = None

    def stop(self) -> None:
        """The service only: what it has started goes on."""
        if self.service is not None:
            self.service.send_signal(signal.SIGTERM)
            self.service.wait(END_S)
            self.service = None


class TwoServers:
    """`arbitration`: the table of cluster.toml."""

    def __init__(self, folder: Path, arbitration: str = 'kind = "none"\n', heartbeat: str = "") -> None:
        self.folder = folder
        self.ledger = folder / "ledger"
        self.servers = {name: Server(name, folder) for name in ADDRESSES}
        key = secrets.token_hex(32)
        (folder / "application.py").write_text(APPLICATION)
        for server in self.servers.values():
            (server.folder / "modules").mkdir(parents=True)
            (server.folder / "app").mkdir()
            (server.folder / "cluster.toml").write_text(_cluster(arbitration, heartbeat))
            (server.folder / "modules" / "app.toml").write_text(self._module(server))
            path = server.folder / "pair.key"
            path.touch(0o600)
            path.write_text(key)

    def _module(self, server: Server) -> str:
        # the same text on both servers: the application is told its directory by the driver
        command = [sys.executable, "-I", str(self.folder / "application.py"), ".", str(self.ledger)]
        return (
            f'directory = "app"\nmirror_port = {MIRROR_PORT}\ndata_on = "a"\n[mirror]\ncache = "page"\n'
            f'[vm]\ndriver = "command"\n[vm.options]\nstart = {json.dumps(command)}\n'
        )

    def __getitem__(self, name: str) -> Server:
        return self.servers[name]

    def start(self) -> None:
        for server in self.servers.values():
            server.start()
        for server in self.servers.values():
            self.until(lambda server=server: server.state() != "", f"{server.name} answers", START_S)  # type: ignore[misc]

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = 60.0) -> float:
        """How long it took, in seconds."""
        began = time.monotonic()
        while not condition():
            took = time.monotonic() - began
            assert took < limit_s, f"not within {limit_s:g} s: {what}\n{self.report()}"
            time.sleep(0.05)  # of other processes, over a socket
        return time.monotonic() - began

    def until_states(self, a: str, b: str, limit_s: float = 60.0) -> float:
        return self.until(
            lambda: (self["a"].state(), self["b"].state()) == (a, b), f"a is {a!r} and b is {b!r}", limit_s
        )

    def command(self, server: str, command: str) -> None:
        with self[server].client() as client:
            client.command("app", command)

    def acknowledged(self) -> int:
        """How many lines the application has been told are on disk, in its last life or an earlier one."""
        if not self.ledger.exists():
            return 0
        return max((int(line) for line in self.ledger.read_bytes().split(b"\n")[:-1]), default=0)

    def journal(self, server: str) -> list[int]:
        """The lines that are there, as the application on that server sees them."""
        data = (self[server].folder / "app" / "journal").read_bytes()
        return [int(line) for line in data.split(b"\n")[:-1]]

    def more(self, lines: int = 20) -> None:
        """Wait until the application has written so many more, wherever it runs."""
        before = os.path.getsize(self.ledger) if self.ledger.exists() else 0
        self.until(
            lambda: self.ledger.exists() and self.ledger.read_bytes()[before:].count(b"\n") >= lines, "more is written"
        )

    def report(self) -> str:
        said = []
        for server in self.servers.values():
            said.append(f"--- {server.name}: {server.state()!r}")
            for path in (server.log, Path(server.home.event_log("app")), Path(server.home.mirror_log("app"))):
                if path.exists():
                    said.append(f"{path}:\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(said)

    def end(self) -> None:
        for server in self.servers.values():
            server.cut_power()


def _cluster(arbitration: str, heartbeat: str) -> str:
    servers = "".join(
        f'[[servers]]\nname = "{name}"\naddress = "{address}"\nnetworks = {{ lan = "{address}" }}\n'
        for name, address in ADDRESSES.items()
    )
    return f'name = "test"\n{servers}[arbitration]\n{arbitration}[security]\ntls = false\n{heartbeat}'


@contextmanager
def two_servers(arbitration: str = 'kind = "none"\n', heartbeat: str = "") -> Iterator[TwoServers]:
    """Started, and the module running: a is PRIM, b is SECOND, both green. Nothing is left of it."""
    folder = Path(tempfile.mkdtemp(prefix="hotpair-two-", dir="/var/tmp"))
    servers = TwoServers(folder, arbitration, heartbeat)
    try:
        servers.start()
        servers.command("a", "start")
        servers.command("b", "start")
        servers.until_states("PRIM green", "SECOND green")
        yield servers
    finally:
        servers.end()
        shutil.rmtree(folder)
