"""Starts this server's Ray runtime, says when it is up and when it has ended, and ends it. Ray itself is not imported.

The runtime is a child: `ray start --block` ends when any part of it has, and takes the rest along. What must outlive it
(mirrors, VMs) is nobody's child here.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

import psutil

from hotpair.actors.ray_profile import Ports, environment, start_arguments

START_S = 90.0  # until it says that it is up, on a machine that has just booted
STOP_S = 15.0  # until all its processes have gone
STARTED = "Ray runtime started."
LINES = 60  # of its output are kept, for the reason of its end


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
        self.environment = {entry.name: entry.value for entry in environment(token(os.path.join(state, "token")))}
        self._arguments = start_arguments(ports, folder, processors)
        self._process: subprocess.Popen[str] | None = None
        self._started = threading.Event()  # or it never will be
        self._said: list[str] = []
        self._up = False

    def start(self, ended: Callable[[], None]) -> None:
        """`ended` is called once, from a thread, when the runtime is gone. Raises RuntimeFailed, also when given up."""
        process = self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ray.scripts.scripts", *self._arguments],
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
        its own."""
        if self._process is None:
            return []
        try:
            found = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    def stop(self) -> None:
        """End it, with all its processes; who does not go is killed."""
        process = self._process
        if process is None:
            return
        everything = self.processes()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(everything, STOP_S)
        for one in left:
            one.kill()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        while left := _in_session(process.pid):  # what was just being started when all of it was looked for
            for one in left:
                one.kill()
            psutil.wait_procs(left, STOP_S)
        self._process = None


def _in_session(leader: int) -> list[psutil.Process]:
    """All that run in the session of this process, which may have ended; an actor's own sessions are others."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
