"""Seeds spread over a Ray cluster: starts the process that talks to Ray, and hands on what it says. No ray in here.

A process of its own, because Ray may wait for minutes for a cluster that is not there, writes to the terminal, and ends
a process that has lost its cluster. This one is left behind at any moment: when the pipe to it is closed it cancels its
tasks and goes, and when that takes too long it is killed, whereupon Ray ends the tasks.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import IO

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.simulation.batch import CHUNK, Lost
from hotpair.cluster.simulation.watch import Result
from hotpair.cluster.split_brain import MANUAL

REACH_S = 5.0  # for a connection to the address, before Ray is asked at all
START_S = 60.0  # until the cluster has answered and every machine has said its version; Ray's own limits are below that
STOP_S = 10.0  # for cancelling and disconnecting
MOST_WORDS = 300  # characters of a message of Ray's that are repeated
PROFILE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "2",  # attempts to reach the cluster; something listens there
    "RAY_gcs_server_request_timeout_seconds": "15",
}


class ClusterRefused(Exception):
    """Nothing was run: there is no such cluster, or it cannot be used. One line."""


# ---- what the driver says


@dataclass(frozen=True)
class Refused:
    """The first and last thing it says, instead of `Started`."""

    why: str


@dataclass(frozen=True)
class Started:
    """Connected, and every machine has this version of hotpair."""


@dataclass(frozen=True)
class Done:
    """The seeds from `first` on: as many as a task has."""

    first: int
    results: list[Result]


@dataclass(frozen=True)
class Failed:
    """A task that has failed for good, and the first of its seeds."""

    first: int
    why: str


@dataclass(frozen=True)
class Ended:
    """The last thing it says. `why` is for the seeds of which nothing was heard, if there are any."""

    why: str


# ---- the run


@contextmanager
def lives_on_ray(
    address: str, kind: Kind, seeds: range, policy: str = MANUAL, *, start_s: float = START_S
) -> Iterator[Iterator[Result | Lost]]:
    """Connected when entered. One result for each seed, as they are ready; a seed without one is part of a `Lost`.

    `address` is HOST:PORT of the cluster's head, or "auto"; `policy` as in `lives`. Raises ClusterRefused, within the
    times above.
    """
    _reach(address)
    ours, theirs = Pipe()
    descriptor = theirs.fileno()
    command = [sys.executable, "-P", "-m", "hotpair.actors.simulation_driver"]
    command += [str(descriptor), address, kind.value, policy, str(seeds.start), str(seeds.stop)]
    with tempfile.TemporaryFile() as log, closing(ours):
        with closing(theirs):
            # a session of its own: Ctrl-C is for us, and reaches it through the pipe
            process = subprocess.Popen(
                command,
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | PROFILE,
            )
        try:
            if not ours.poll(start_s):
                process.kill()
                raise ClusterRefused(f"no Ray cluster at {address}: no answer within {start_s:.0f} s")
            message = _next(ours)
            if isinstance(message, Refused):
                raise ClusterRefused(message.why)
            if not isinstance(message, Started):
                raise ClusterRefused(f"no Ray cluster at {address}: {_last_words(process, log)}")
            yield _heard(ours, seeds, lambda: _last_words(process, log))
        finally:
            ours.close()
            _end(process)


def _heard(ours: Connection, seeds: range, last_words: Callable[[], str]) -> Iterator[Result | Lost]:
    heard: set[int] = set()
    while isinstance(message := _next(ours), Done | Failed):
        heard.add(message.first)
        chunk = chunk_of(seeds, message.first)
        if isinstance(message, Failed):
            yield Lost(chunk, message.why)
        else:
            assert [result.seed for result in message.results] == list(chunk)
            yield from message.results
    missing = list(not_heard(seeds, heard))
    if missing:
        why = message.why if isinstance(message, Ended) else last_words()
        yield from (Lost(part, why) for part in missing)


def chunk_of(seeds: range, first: int) -> range:
    """The seeds of one task."""
    return range(first, min(first + CHUNK, seeds.stop))


def not_heard(seeds: range, heard: set[int]) -> Iterator[range]:
    """What is left when the tasks that begin with these seeds are taken away; neighbours are put together."""
    begin: int | None = None
    for first in range(seeds.start, seeds.stop, CHUNK):
        if first not in heard:
            begin = first if begin is None else begin
        elif begin is not None:
            yield range(begin, first)
            begin = None
    if begin is not None:
        yield range(begin, seeds.stop)


# ---- the edges


def _reach(address: str) -> None:
    """Whether anything listens there: it is known at once, and Ray would try again and again."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")  # where Ray looks first
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ClusterRefused(f"{address!r} is no address of a Ray cluster: HOST:PORT of its head, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_S).close()
    except (OSError, UnicodeError) as error:
        raise ClusterRefused(f"no Ray cluster at {address}: {getattr(error, 'strerror', None) or error}") from error


def _next(ours: Connection) -> object:
    """What it says next; None when it has gone, perhaps in the middle of a message."""
    try:
        return ours.recv()
    except (EOFError, OSError):
        return None


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """Why it has gone, as far as it says. Ray marks what is fatal with C, and writes where it was after that."""
    _end(process)
    log.seek(0)
    lines = [line.strip() for line in log.read().decode("utf-8", "replace").splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("[") and " C " in line]
    said = (fatal or lines or ["it said nothing"])[-1]
    return f"the process that talks to Ray ended with {process.returncode}: {said[:MOST_WORDS]}"
