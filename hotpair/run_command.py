"""`hotpair run`: the service of one server. Starts its Ray runtime and the supervisor in it, and again when it ends.

No Ray in this process: it must outlive any runtime. Mirrors and VMs outlive this one: ending the service leaves them as
they run, and the next one takes them on.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import logging
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hotpair.actors.home import Home
from hotpair.actors.ray_profile import FIRST_PORT, Ports
from hotpair.actors.ray_runtime_io import Runtime, RuntimeFailed
from hotpair.api_values import PORT
from hotpair.cluster.configuration_io import BadKey, load_cluster, load_key
from hotpair.cluster.configuration_keys import ConfigurationError

if TYPE_CHECKING:
    from hotpair.actors.ray_actors import SupervisorActor
    from hotpair.actors.supervisor import Supervisor

log = logging.getLogger("hotpair.run")

AGAIN_S = (1.0, 2.0, 5.0, 10.0, 30.0)  # before Ray is started again, by how often it has ended soon
LIVED_S = 60.0  # a runtime that lived so long did not end soon
BUILD_S = 150.0  # until the supervisor answers
FOLDERS = "/run/hotpair"  # Ray's folders: short paths


class CannotRun(Exception):
    """The service cannot begin: one line that says why and what to do."""


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="hotpair run", description="Run this server's part of the pair.")
    parser.add_argument("--home", metavar="DIR", help="everything below one directory (default: /etc and /var/lib)")
    parser.add_argument("--server", required=True, metavar="NAME", help="this server's name in cluster.toml")
    parser.add_argument("--ray-port", type=int, default=FIRST_PORT, metavar="PORT", help="first of Ray's local ports")
    parser.add_argument("--api-port", type=int, default=PORT, metavar="PORT", help=f"of the HTTP API (default {PORT})")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    home = Home.standard() if given.home is None else Home.at(given.home)
    try:
        check(home, given.server)
        with Service(home, given.server, given.ray_port, given.api_port) as service:
            return service.run()
    except CannotRun as error:
        print(f"hotpair run: {error}", file=sys.stderr)
        return 2


def check(home: Home, server: str) -> None:
    """Raises CannotRun."""
    try:
        cluster = load_cluster(home.configuration)
        load_key(home.below(cluster.security.key_file))
    except (ConfigurationError, BadKey) as error:
        raise CannotRun(str(error)) from error
    names = [one.name for one in cluster.servers]
    if server not in names:
        raise CannotRun(f"cluster.toml has no server {server!r}: --server {' or '.join(names)}")


async def build(home: Home, server: str, api_port: int, actor: SupervisorActor) -> Supervisor:
    """In the supervisor's actor, which has Ray and all the rest. This process has only this function's name."""
    from hotpair.service import build as built

    return await built(home, server, api_port, actor)


class Service:
    """One at a time below a home directory. CannotRun: another one holds it."""

    def __init__(self, home: Home, server: str, ray_port: int, api_port: int) -> None:
        self._api_port = api_port
        self._home = home
        self._server = server
        self._ports = Ports(ray_port)
        self._ending = threading.Event()
        self._ended = threading.Event()  # the runtime, or this service is to end
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()  # the only thing that a signal's handler may touch
        self._runtime: Runtime | None = None
        self._building: subprocess.Popen[bytes] | None = None
        os.makedirs(home.state, mode=0o700, exist_ok=True)
        self._lock = os.open(os.path.join(home.state, "service.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise CannotRun(f"it runs already for {home.state}: stop that one first") from error

    def __enter__(self) -> Service:
        threading.Thread(target=self._wait_for_end, name="end", daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: self._signals.put(number))
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def _wait_for_end(self) -> None:
        """Whatever it waits for at the moment of the signal, it does not wait any longer."""
        self._signals.get()
        self._ending.set()
        self._ended.set()
        runtime, building = self._runtime, self._building
        if runtime is not None:
            runtime.give_up()
        if building is not None:
            building.kill()

    def run(self) -> int:
        """Until SIGTERM."""
        soon = 0
        while not self._ending.is_set():
            began = time.monotonic()
            self._once()
            soon = 0 if time.monotonic() - began > LIVED_S else soon + 1
            if not self._ending.is_set():
                self._ending.wait(AGAIN_S[min(soon, len(AGAIN_S)) - 1] if soon else 0.0)
        return 0

    def _once(self) -> None:
        """One life of the runtime."""
        self._ended.clear()
        folder = os.path.join(FOLDERS, f"{self._ports.first}")
        runtime = self._runtime = Runtime(folder, self._home.ray, self._ports, max(2, os.cpu_count() or 1))
        if self._ending.is_set():
            return
        try:
            runtime.start(self._ended.set)
            if not self._ending.is_set() and self._bootstrap(runtime):
                print("ready", flush=True)
                self._ended.wait()
        except RuntimeFailed as error:
            if not self._ending.is_set():
                log.error("%s", error)
        finally:
            if not self._ending.is_set():
                log.error("Ray has ended, and is started again. It said:\n%s", runtime.last_words)
            runtime.stop()

    def _bootstrap(self, runtime: Runtime) -> bool:
        work = pickle.dumps(functools.partial(build, self._home, self._server, self._api_port))
        with subprocess.Popen(
            [sys.executable, "-P", "-m", "hotpair.actors.ray_bootstrap", runtime.address],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd="/",
            env=os.environ | runtime.environment,
        ) as building:
            self._building = building
            if self._ending.is_set():  # who has set it may have seen none
                building.kill()
            try:
                _, said = building.communicate(work, BUILD_S)
            except subprocess.TimeoutExpired:
                building.kill()
                log.error("the supervisor does not answer within %g s", BUILD_S)
                return False
            finally:
                self._building = None
        if building.returncode and not self._ending.is_set():
            log.error("the supervisor cannot be made: %s", said.decode(errors="replace").strip())
        return not building.returncode
