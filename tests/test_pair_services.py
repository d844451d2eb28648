"""Two services with Ray, from nothing: init, join, a module added while both run, swapped, edited, removed, added anew.

Each server has a mount namespace of its own, so that the module's directory has the same path on both, as on two
machines.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hotpair.client import ApiError
from hotpair.commands import main
from hotpair.demo_servers_io import MODULE, Server
from hotpair.invitations import read_token
from hotpair.invitations_io import invite
from hotpair.join_io import join
from hotpair.pair_home_io import WitnessFiles, init
from hotpair.pair_init import Options
from tests.pair_servers import ADDRESSES, HERE, THERE, free_port

FIRST_RAY_PORT = 24000
WAIT_S = 240.0  # two Ray runtimes start, on a machine that others use too
APPLICATION = "import os, time; open('proof', 'a').write('x'); time.sleep(10**6)"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has mount namespaces, and FUSE")


class Service(Server):
    """`hotpair run` where `shared` is this server's own directory."""

    def __init__(self, name: str, folder: Path, ray_port: int, api_port: int, shared: Path) -> None:
        own = folder / f"vm-of-{name}"
        own.mkdir()
        bind = f'mount --bind "{own}" "{shared}" && exec "$0" "$@"'
        inside = ["unshare", "--mount", "--propagation", "private", "sh", "-c", bind]
        super().__init__(name, folder, ray_port, inside)
        self.own = own
        self._api_port = api_port

    def start(self) -> None:
        given = ["--home", str(self.folder), "--server", self.name, "--ray-port", str(self._ray_port)]
        self._service.start("run", *given, "--api-port", str(self._api_port))

    def answers(self) -> bool:
        try:
            with self.client() as client:
                client.modules()
        except ApiError:
            return False
        return True


@pytest.fixture
def folder() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="hotpair-pair-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made)


def until(servers: list[Service], condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what + "\n" + "\n".join(server.last_words() for server in servers)
        time.sleep(0.1)


@pytest.mark.timeout(1500)
def test_from_nothing_to_a_running_module_and_back(folder: Path) -> None:
    shared, port = folder / "vm", free_port()
    shared.mkdir()
    first, second = servers = [
        Service(name, folder, FIRST_RAY_PORT + 400 * number, port, shared) for number, name in enumerate(ADDRESSES)
    ]
    for server in servers:
        (server.own / MODULE).mkdir()
    (first.own / MODULE / "disk").write_text("what was there before")

    def hotpair(server: Service, *words: str) -> None:
        assert main([*words, "--home", str(server.folder)]) == 0, server.last_words()

    def both(one: str, other: str) -> None:
        until(servers, lambda: (first.state(), second.state()) == (one, other), f"{one}, {other}")

    def add() -> None:
        options = ["--directory", str(shared / MODULE), "--data-on", HERE, "--driver", "command", "--overwrite"]
        command = f"start=[{sys.executable!r}, '-I', '-c', {APPLICATION!r}]".replace('"', "'''")
        hotpair(first, "module", "add", MODULE, *options, "--option", command, "--start")

    pair = Options("rack7", f"{HERE}={ADDRESSES[HERE]}", f"{THERE}={ADDRESSES[THERE]}", arbitration="none")
    try:
        init(first.home, pair, WitnessFiles())
        first.start()
        until(servers, first.answers, "the first service answers")
        join(second.home, f"{ADDRESSES[HERE]}:{port}", read_token(invite(first.home, 30)), THERE, overwrite=False)
        second.start()
        until(servers, second.answers, "the second service answers")
        add()
        both("PRIM green", "SECOND green")
        assert (second.own / MODULE / "disk").read_text() == "what was there before"
        hotpair(first, "swap", MODULE)
        both("SECOND green", "PRIM green")
        hotpair(first, "stop", MODULE)
        until(servers, lambda: first.state() == "STOP", "the first one stops")
        hotpair(second, "stop", MODULE)
        until(servers, lambda: second.state() == "STOP", "the second one stops")
        hotpair(second, "module", "edit", MODULE, "--set", "mirror.durability=disk")
        both("STOP", "STOP")
        for server in servers:
            hotpair(server, "start", MODULE)
        until(servers, lambda: {first.state(), second.state()} == {"PRIM green", "SECOND green"}, "runs as edited")
        for server in sorted(servers, key=lambda one: one.state(), reverse=True):  # SECOND before PRIM
            hotpair(server, "stop", MODULE)
            until(servers, lambda one=server: one.state() == "STOP", "stops")  # type: ignore[misc]
        hotpair(first, "module", "remove", MODULE)
        for server in servers:
            assert server.answers() and server.state() == ""
            assert (server.own / MODULE / "disk").read_text() == "what was there before"
            assert len((server.own / MODULE / "proof").read_text()) >= 3  # each start, on whichever server it was
        add()  # of the same name, by other actors
        both("PRIM green", "SECOND green")
    finally:
        for server in servers:
            server.cut_power()
