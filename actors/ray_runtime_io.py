"""Starts this server's Ray runtime, says when it is up and when it has ended, and ends it. Ray itself is not imported.

The runtime is a child: `ray start --block` ends when any part of it has, and takes the rest along. What must outlive it
(mirrors, VMs) is nobody's child here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil

from hotpair.actors.fork_server_io import RAYLET
from hotpair.actors.ray_profile import Ports, environment, start_arguments
from hotpair.actors.ray_worker import FORK_SERVER

log = logging.getLogger("hotpair.run")

START_S = 90.0  # until it says that it is up, on a machine that has just booted
STOP_S = 15.0  # until all its processes have gone that were killed
STOPS = 3  # times that they are looked for and killed: one may just have started another
STARTED = "Ray runtime started."
LINES = 60  # of its output are kept, for the reason of its end
FIRST_JOB = "01000000"  # Ray counts the programs that connect to a runtime: the one that makes the supervisor
WAITING = 128  # workers that have asked the fork server and are not made yet
WORKERS_IMPORT = ("ray._private.workers.default_worker", "hotpair.actors.ray_actors", "hotpair.service")


class RuntimeFailed(Exception):
    """It did not come up; the text is what it said."""


def token(path: str) -> str:
    """The runtime's token, made when there is none, for its owner only. Raises OSError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path
    with os.fdopen(descriptor, "w", encoding="ascii") as opened:
        opened.write(secrets.token_hex(32))
    return path


class Runtime:
    """One start of Ray. `folder`: a short path (see ray_profile); `state`: where the token lies."""

    def __init__(self, folder: str, state: str, ports: Ports, processors: int) -> None:
        for path in (folder, state):
            os.makedirs(path, mode=0o700, exist_ok=True)
        self.address = f"127.0.0.1:{ports.gcs}"
        self._fork_path = os.path.join(folder, "fork")
        entries = environment(token(os.path.join(state, "token")))
        self.environment = {entry.name: entry.value for entry in entries} | {FORK_SERVER: self._fork_path}
        self._arguments = start_arguments(ports, folder, processors)
        self._process: subprocess.Popen[str] | None = None
        self._fork_server: subprocess.Popen[bytes] | None = None
        self._started = threading.Event()  # or it never will be
        self._said: list[str] = []
        self._up = False

    def start(self, ended: Callable[[], None]) -> None:
        """`ended` is called once, from a thread, when the runtime is gone. Raises RuntimeFailed, also when given up."""
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hotpair.actors.ray_start", *self._arguments],
            cwd="/",
            env=os.environ | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._read, args=(process,), name="ray output", daemon=True).start()
        threading.Thread(target=self._wait, args=(process, ended), name="ray", daemon=True).start()
        self._started.wait(START_S)
        if not self._up:
            self.stop()
            raise RuntimeFailed("Ray does not start. It said:\n" + "".join(self._said[-LINES:]))
        try:
            self._start_fork_server(process)
        except (OSError, psutil.Error) as error:  # workers are started without it, too
            log.warning("no fork server: %s", error)

    def _start_fork_server(self, runtime: subprocess.Popen[str]) -> None:
        """Listening when this returns; who asks waits until it has imported everything.

        Raises OSError and psutil.Error.
        """
        raylets = [one.pid for one in psutil.Process(runtime.pid).children() if one.name() == "raylet"]
        if not raylets:
            return  # it has ended since: so will the runtime
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._fork_path)  # of the runtime before
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(self._fork_path)
            listening.listen(WAITING)
            self._fork_server = subprocess.Popen(
                [sys.executable, "-P", "-m", "hotpair.actors.fork_server_io", *WORKERS_IMPORT],
                cwd="/",
                env=os.environ | self.environment | {RAYLET: str(raylets[0]), "RAY_JOB_ID": FIRST_JOB},
                stdin=listening.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def give_up(self) -> None:
        """Whoever waits in `start` does not any longer, unless it is up. For any thread."""
        self._started.set()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                self._said = [*self._said[-LINES:], line]
                if STARTED in line:
                    self._up = True
                    self._started.set()

    def _wait(self, process: subprocess.Popen[str], ended: Callable[[], None]) -> None:
        """Its end, and not that of its output: what it has started may hold that open."""
        process.wait()
        self._started.set()
        if self._up:
            ended()

    @property
    def last_words(self) -> str:
        return "".join(self._said[-LINES:])

    def processes(self) -> list[psutil.Process]:
        """All of it: the services and the actors' processes, but nothing that an actor has started in a session of
        its own. What started them may have ended."""
        leaders = [one.pid for one in (self._process, self._fork_server) if one is not None]
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) in leaders and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def stop(self) -> None:
        """End all of it at once. Nothing in it has to be told: what counts is durable or will be said again, and what
        has to go on is not among its processes."""
        for _ in range(STOPS):
            if not (everything := self.processes()):
                break
            for one in everything:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            psutil.wait_procs(everything, STOP_S)
        for root in (self._process, self._fork_server):
            if root is not None:
                root.wait()
        self._process = self._fork_server = None
