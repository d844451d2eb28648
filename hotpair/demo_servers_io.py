"""Two whole servers on one machine, with applications that keep a ledger, and a witness if one is wanted.

For the demonstration, and for the tests of the product as a whole: on two loopback addresses, or each server in a
network namespace of its own.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from hotpair.actors.home import Home
from hotpair.api_values import Module
from hotpair.client import ApiError, Client
from hotpair.demo_applications_io import Application, plain_process
from hotpair.replication import fuse_io, mounts_io
from hotpair.run_command import FOLDERS

START_S = 240.0  # two Ray runtimes start, on a machine that others use too
END_S = 40.0
WAIT_S = 60.0
LOOK_S = 0.05  # between two questions to a service
MODULE = "app"
PAIR = "demo"
WITNESS_PORT = 950  # behind the first one, as are those of the modules
MODULE_PORT = 900
BOTH = {"PRIM", "SECOND"}


class DemoFailed(Exception):
    """Something did not happen in time; the text says what, and what both servers said last."""


@dataclass(frozen=True)
class Host:
    """Where a server is, or the witness. `inside`: the words before a command that is to run there."""

    address: str
    networks: Mapping[str, str]
    inside: tuple[str, ...] = ()


ADDRESSES = {"a": "127.0.0.1", "b": "127.0.0.2"}
LOOPBACK = {name: Host(address, {"lan": address}) for name, address in ADDRESSES.items()}
LOOPBACK_WITNESS = Host("127.0.0.3", {})


def hotpair_command(*words: str) -> list[str]:
    """As the installed `hotpair`, with this very interpreter."""
    start = "from hotpair.command_line import main; raise SystemExit(main())"
    return [sys.executable, "-P", "-c", start, *words]


class _Process:
    """A service of hotpair's in the foreground, with its log."""

    def __init__(self, log: Path, inside: Sequence[str]) -> None:
        self.log = log
        self._inside = inside
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def start(self, *words: str) -> None:
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*self._inside, *hotpair_command(*words)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
            )

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait(END_S)
            self._process = None

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self.wait()


class Witness:
    """`hotpair witness`, that can be ended and started again on the same data."""

    def __init__(self, folder: Path, host: Host, port: int) -> None:
        self.address = f"{host.address}:{port}"
        self.key = secrets.token_hex(32)
        self._data, self._keys = folder / "witness", folder / "witness-keys.toml"
        _write_secret(self._keys, f'{PAIR} = "{self.key}"\n')
        self._service = _Process(folder / "witness.log", host.inside)

    def start(self) -> None:
        given = ["--listen", self.address, "--data", str(self._data), "--keys", str(self._keys)]
        self._service.start("witness", *given, "--insecure-no-tls")

    def kill(self) -> None:
        self._service.kill()


class Server:
    """One server's home, its service, and everything that belongs to it."""

    def __init__(self, name: str, folder: Path, ray_port: int, inside: Sequence[str] = ()) -> None:
        self.name = name
        self.folder = folder / name
        self.home = Home.at(str(self.folder))
        self._ray_port = ray_port
        self._service = _Process(folder / f"{name}.log", inside)

    def start(self) -> None:
        """As a host that has booted."""
        given = ["--home", str(self.folder), "--server", self.name, "--ray-port", str(self._ray_port)]
        self._service.start("run", *given)

    def client(self) -> Client:
        return Client.here(self.home)

    def data(self, directory: str) -> Path:
        """Where its application sees it."""
        return self.folder / directory

    def modules(self) -> dict[str, Module]:
        """By name; empty while the service does not answer."""
        try:
            with self.client() as client:
                return {module.module: module for module in client.modules()}
        except ApiError:
            return {}

    def state(self, module: str = MODULE) -> str:
        """With "green" behind it where it is; empty while the service does not answer, or has not opened it."""
        return _state(self.modules().get(module))

    def states(self) -> dict[str, str]:
        return {name: _state(module) for name, module in self.modules().items()}

    def processes(self) -> list[psutil.Process]:
        """The service, its Ray, its actors, its mirrors and its applications; and only its own."""
        service = self._service.pid
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = [*process.cmdline(), *process.environ().values()]
                # with the slash: the server a's folder is how the path of the application begins, too
                is_named = any(f"{self.folder}/" in f"{word}/" for word in words)
                if is_named or service in [process.pid, *(one.pid for one in process.parents())]:
                    found.append(process)
        return found

    def find(self, *words: str) -> list[psutil.Process]:
        """Those of its processes whose name or command line has one of these words."""
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = " ".join([process.name(), *process.cmdline()])
                if any(word in line for word in words):
                    found.append(process)
        return found

    def cut_power(self) -> None:
        """kill -9 of everything that it runs, all at once; its mounts go as well."""
        everything: list[psutil.Process] = []
        while found := [one for one in self.processes() if one not in everything]:
            for process in found:
                with contextlib.suppress(psutil.Error):
                    process.suspend()  # nobody sees another one's end, or starts one more
            everything += found
        for process in everything:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for mount in reversed(mounts_io.read_table()):
            if mounts_io.is_within(mount.point, os.fsencode(self.folder)) and mount.kind == fuse_io.FUSE_KIND:
                fuse_io.abort_connection(int(mount.device.partition(b":")[2]))
                fuse_io.unmount(mount.point)
        psutil.wait_procs(everything, END_S)
        self._service.wait()

    def end(self) -> None:
        """Its power is cut, and nothing is left outside its home either."""
        self.cut_power()
        shutil.rmtree(Path(FOLDERS, str(self._ray_port)), ignore_errors=True)

    def last_words(self) -> str:
        """The end of each of its logs."""
        said = [f"--- {self.name}: {self.states()!r}"]
        paths = [self._service.log, *Path(self.home.state).glob("modules/*/events.jsonl")]
        for path in (*paths, *Path(self.home.state).glob("modules/*/mirror.log")):
            if path.exists():
                said.append(f"{path}:\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(said)


def _are_green(both: Sequence[Module]) -> bool:
    return {one.state for one in both} == BOTH and all(one.ready and one.peer_ready for one in both)


def _state(module: Module | None) -> str:
    if module is None or module.state is None:
        return ""
    return f"{module.state} green" if module.ready else module.state


class TwoServers:
    """`first_port`: this many of the following are used: 1000. `looking` is called at each look of `until`."""

    def __init__(
        self,
        folder: Path,
        first_port: int,
        applications: Sequence[Application],
        arbitration: str,
        hosts: Mapping[str, Host],
        witness: Host | None,
    ) -> None:
        self.folder = folder
        self.applications = {one.name: one for one in applications}
        self.looking: Callable[[], None] = lambda: None
        self.servers = {
            name: Server(name, folder, first_port + 400 * number, host.inside)
            for number, (name, host) in enumerate(hosts.items())
        }
        self.witness = None if witness is None else Witness(folder, witness, first_port + WITNESS_PORT)
        if self.witness is not None:
            arbitration = f'kind = "witness"\nwitness = {{ address = "{self.witness.address}", tls = false }}\n'
        key = secrets.token_hex(32)
        for name, server in self.servers.items():
            (server.folder / "modules").mkdir(parents=True)
            (server.folder / "cluster.toml").write_text(_cluster(arbitration, hosts))
            _write_secret(server.folder / "pair.key", key)
            if self.witness is not None:
                _write_secret(server.folder / "witness.key", self.witness.key)
            for number, application in enumerate(applications):
                directory = server.folder / application.directory
                directory.mkdir(parents=True)
                application.fill(directory, application.data_on == name)
                text = _module(application, first_port + MODULE_PORT + number)
                (server.folder / "modules" / f"{application.name}.toml").write_text(text)

    def __getitem__(self, name: str) -> Server:
        return self.servers[name]

    def start(self) -> None:
        """Until both services answer, and have opened all modules."""
        if self.witness is not None:
            self.witness.start()
        for server in self.servers.values():
            server.start()
        for server in self.servers.values():
            self.until_open(server)

    def until_open(self, server: Server) -> float:
        def is_open() -> bool:
            states = server.states()
            return states.keys() == self.applications.keys() and all(states.values())

        return self.until(is_open, f"{server.name} answers", START_S)

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = WAIT_S) -> float:
        """How long it took, in seconds. Raises DemoFailed."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > limit_s:
                words = "\n".join(server.last_words() for server in self.servers.values())
                raise DemoFailed(f"not within {limit_s:g} s: {what}\n{words}")
            self.looking()
            time.sleep(LOOK_S)
        return time.monotonic() - began

    def until_states(self, a: str, b: str, limit_s: float = WAIT_S, module: str = MODULE) -> float:
        both = f"{module} on a is {a!r} and on b is {b!r}"
        return self.until(lambda: (self["a"].state(module), self["b"].state(module)) == (a, b), both, limit_s)

    def are_green(self) -> bool:
        """All modules, each PRIM on one server and SECOND on the other, and each has heard that of the other."""
        a, b = self["a"].modules(), self["b"].modules()
        return all(_are_green([found[name] for found in (a, b) if name in found]) for name in self.applications)

    def until_green(self, limit_s: float = START_S) -> float:
        return self.until(self.are_green, "all modules are green on both servers", limit_s)

    def command(self, server: str, command: str, module: str = MODULE) -> None:
        """Raises ApiError when it is refused."""
        with self[server].client() as client:
            client.command(module, command)

    def acknowledged(self, module: str = MODULE) -> int:
        """The highest number of which the application was told that it is on disk."""
        return self.applications[module].acknowledged()

    def journal(self, server: str, module: str = MODULE) -> list[int]:
        """The numbers that are there, as the application on that server sees them."""
        application = self.applications[module]
        return application.numbers(self[server].data(application.directory))

    def until_more(self, lines: int = 20, module: str = MODULE) -> float:
        """Wait until the application has written so many more, wherever it runs; how long that took."""
        application = self.applications[module]
        before = application.ledger.stat().st_size if application.ledger.exists() else 0
        return self.until(lambda: len(application.said(before)) >= lines, f"{module} writes")

    def end(self) -> None:
        for server in self.servers.values():
            server.end()
        if self.witness is not None:
            self.witness.kill()
        for mount in reversed(mounts_io.read_table()):
            if mounts_io.is_within(mount.point, os.fsencode(self.folder)):
                fuse_io.unmount(mount.point)


def _write_secret(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def _cluster(arbitration: str, hosts: Mapping[str, Host]) -> str:
    servers = ""
    for name, host in hosts.items():
        networks = ", ".join(f'{network} = "{address}"' for network, address in host.networks.items())
        servers += f'[[servers]]\nname = "{name}"\naddress = "{host.address}"\nnetworks = {{ {networks} }}\n'
    return f'name = "{PAIR}"\n{servers}[arbitration]\n{arbitration}[security]\ntls = false\n'


def _module(application: Application, port: int) -> str:
    return (
        f'directory = "{application.directory}"\nmirror_port = {port}\ndata_on = "{application.data_on}"\n'
        f'[mirror]\ncache = "page"\n[vm]\n{application.vm}'
    )


@contextmanager
def two_servers(
    first_port: int,
    arbitration: str = 'kind = "none"\n',
    *,
    applications: Callable[[Path], Sequence[Application]] = lambda folder: [plain_process(MODULE, "a", folder)],
    hosts: Mapping[str, Host] = LOOPBACK,
    witness: Host | None = None,
) -> Iterator[TwoServers]:
    """Both started, and all modules running and green, each where its data was. Nothing is left of it.

    `applications` makes them, given a folder outside the servers. With a `witness` there is no other arbitration.
    """
    folder = Path(tempfile.mkdtemp(prefix="hotpair-two-", dir="/var/tmp"))
    servers = TwoServers(folder, first_port, applications(folder), arbitration, hosts, witness)
    try:
        servers.start()
        for name in hosts:
            for module in servers.applications:
                servers.command(name, "start", module)
        servers.until_green()
        yield servers
    finally:
        servers.end()
        shutil.rmtree(folder)
