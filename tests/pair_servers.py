"""Both servers of a pair behind their real APIs, in one process; only modules' helpers are made up (api_server.py).

Their homes are made as an operator makes them: `init` on one, `join` on the other, over TLS on two loopback addresses.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from hotpair.actors.home import Home
from hotpair.actors.supervisor import Supervisor
from hotpair.client import Client
from hotpair.cluster.arbiter_io import NoArbiter
from hotpair.cluster.configuration import Module as Configured
from hotpair.cluster.configuration_io import load_cluster, load_modules
from hotpair.cluster.module_events import Event
from hotpair.cluster.settings import settings_of
from hotpair.cluster.simulation.world import BOOT
from hotpair.http_server_io import Api, serve
from hotpair.invitations import read_token
from hotpair.invitations_io import invite
from hotpair.join_io import join
from hotpair.pair_facts_io import Looks, driver_problem, port_problem
from hotpair.pair_home_io import WitnessFiles, init
from hotpair.pair_init import Options
from tests.api_server import ANSWER_S, Begin, Group, Groups, Mirrors

T = TypeVar("T")
HERE, THERE = "alpha", "beta"
ADDRESSES = {HERE: "127.0.0.1", THERE: "127.0.0.2"}
LOOKS = Looks(fuse=lambda: "", driver=driver_problem, port=port_problem)
OPTIONS = Options("rack7", f"{HERE}=127.0.0.1", f"{THERE}=127.0.0.2", arbitration="manual")


class FailingGroups(Groups):
    """`fails`: what opening a module raises, if anything."""

    def __init__(self, home: Home) -> None:
        super().__init__(home, defaultdict(Begin))
        self.fails: Exception | None = None

    async def open(self, module: Configured, hear: Callable[[Event], None]) -> Group:
        if self.fails is not None:
            raise self.fails
        return await super().open(module, hear)


class PairServer:
    """One server, served when it has been made."""

    def __init__(self, home: Home, name: str, port: int, looks: Looks = LOOKS) -> None:
        self.home = home
        self.name = name
        self._looks = looks
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name)
        self._thread.start()
        try:
            self.supervisor, self.groups, self.api = self.run(self._begin())
        except BaseException:
            self._end_thread()
            raise
        assert not self.api.problem, self.api.problem

    async def _begin(self) -> tuple[Supervisor, FailingGroups, Api]:
        cluster = load_cluster(self.home.configuration)
        groups = FailingGroups(self.home)
        supervisor = Supervisor(
            self.home, cluster, lambda module: settings_of(module, cluster, self.name), groups, NoArbiter(), boot=BOOT
        )
        for module in load_modules(self.home.configuration, cluster).accepted.values():
            await supervisor.add(module)
        api = await serve(
            supervisor, self.home, server=self.name, port=self._port, mirrors=Mirrors(), looks=self._looks
        )
        return supervisor, groups, api

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_S)

    def client(self) -> Client:
        return Client.here(self.home)

    def modules(self) -> dict[str, str]:
        """Names and states of those that are open."""

        async def standings() -> dict[str, str]:
            return {one.module: "" if one.state is None else one.state.value for one in self.supervisor.standings()}

        return self.run(standings())

    def close(self) -> None:
        self.run(self.api.close())
        self.run(self.supervisor.close())
        self._end_thread()

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_S)
        self._loop.close()


class PairServers:
    """`folder`: their homes and the modules' directories are below it."""

    def __init__(self, folder: Path, looks: dict[str, Looks] | None = None) -> None:
        self.folder = folder
        self.port = free_port()
        self.looks = looks or {}
        self.homes = {name: Home.at(str(folder / name)) for name in ADDRESSES}
        self.servers: dict[str, PairServer] = {}
        init(self.homes[HERE], OPTIONS, WitnessFiles())
        self.start(HERE)
        self.join()
        self.start(THERE)

    def join(self, **given: bool) -> list[str]:
        token = read_token(invite(self.homes[HERE], 5))
        where = f"{ADDRESSES[HERE]}:{self.port}"
        return join(self.homes[THERE], where, token, THERE, overwrite=given.get("overwrite", False))

    def __getitem__(self, name: str) -> PairServer:
        return self.servers[name]

    def start(self, name: str) -> None:
        self.servers[name] = PairServer(self.homes[name], name, self.port, self.looks.get(name, LOOKS))

    def stop(self, name: str) -> None:
        self.servers.pop(name).close()

    def directory(self, *servers: str, name: str = "web") -> str:
        """Of a module: on one machine both servers' directories are the same, and only what is said differs."""
        path = self.folder / "vm" / name
        path.mkdir(parents=True, exist_ok=True)
        return str(path)

    def close(self) -> None:
        for name in tuple(self.servers):
            self.stop(name)


def free_port() -> int:
    """On both addresses."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind((ADDRESSES[HERE], 0))
            port: int = first.getsockname()[1]
            with contextlib.suppress(OSError):
                second.bind((ADDRESSES[THERE], port))
                return port


@contextlib.contextmanager
def pair_servers(folder: Path, looks: dict[str, Looks] | None = None) -> Iterator[PairServers]:
    made = PairServers(folder, looks)
    try:
        yield made
    finally:
        made.close()


def tree(home: Home) -> dict[str, bytes]:
    """The configuration and the modules' state on disk: every file with its content, every directory."""
    found: dict[str, bytes] = {}
    for top in (Path(home.configuration, "modules"), Path(home.state, "modules"), Path(home.state, "removed")):
        for path in sorted(top.rglob("*")):
            found[str(path.relative_to(home.configuration))] = path.read_bytes() if path.is_file() else b"directory"
    return found
