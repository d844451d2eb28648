"""Two servers with modules whose applications write down when they were started, when they ended, when they wrote."""

from __future__ import annotations

import os
import secrets
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.failover.figures import APPLICATION, Mark, kind_of, marks_of
from bench.process import BenchError
from hotpair.api_values import Module
from hotpair.client import ApiError, Client
from hotpair.demo_servers_io import ADDRESSES, Server

FIRST_PORT = 26000  # of the two runtimes' ports, in a network namespace of its own
FIRST_MIRROR_PORT = 27000
PORTS_APART = 400
LOOK_S = 0.02
GONE_S = 5.0  # for a killed process that waits for a disk
PAUSE_S = 0.002  # between two writes of an application that writes

# Foreground, ends at once on SIGTERM. Its block is always the same one: what is measured is the way, not the disk.
PROGRAM = f"""
import os, signal, sys, time
marks, server = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), os.environ["HOTPAIR_SERVER"]
def end(number, frame):
    os.write(marks, b"ended %.6f %s\\n" % (time.time(), server.encode()))
    os._exit(0)
signal.signal(signal.SIGTERM, end)
while sys.argv[2] == "idle":
    signal.pause()
data = os.open("data", os.O_RDWR | os.O_CREAT, 0o600)
writes = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
while True:
    os.pwrite(data, bytes(4096), 0)
    os.fsync(data)
    os.write(writes, b"%.6f\\n" % time.time())
    time.sleep({PAUSE_S})
"""

NO_ARBITER = 'kind = "none"\n'
POWERED_OFF = "off"  # a folder with a file for each server whose peer was cut


def fencing(folder: Path) -> str:
    """Says that the peer of the server that asks is off, when the benchmark has cut it."""
    look = f"test -e {folder / POWERED_OFF}/peer-of-$HOTPAIR_SERVER"
    return f'kind = "fence"\n[arbitration.fence]\ntimeout_s = 2\ncommand = ["/bin/sh", "-c", "{look}"]\n'


@dataclass(frozen=True)
class Cut:
    """`at`: seconds since 1970. `gone_s`: until the kernel had ended the mirrors, and with them their connections."""

    at: float
    gone_s: float


class Pair:
    """`writes`: the applications write all the time. `arbitration`, `heartbeat`: tables of cluster.toml."""

    def __init__(self, folder: Path, modules: int, *, writes: bool, arbitration: str, heartbeat: str = "") -> None:
        folder.mkdir()
        self.folder = folder
        self.modules = [f"m{number:02d}" for number in range(1, modules + 1)]
        self.servers = {
            name: Server(name, folder, FIRST_PORT + PORTS_APART * number) for number, name in enumerate(ADDRESSES)
        }
        (folder / APPLICATION).write_text(PROGRAM)
        (folder / POWERED_OFF).mkdir()
        key = secrets.token_hex(32)
        for server in self.servers.values():
            (server.folder / "modules").mkdir(parents=True)
            (server.folder / "cluster.toml").write_text(_cluster(arbitration, heartbeat))
            path = server.folder / "pair.key"
            path.touch(0o600)
            path.write_text(key)
            for number, module in enumerate(self.modules):
                (server.folder / module).mkdir()
                text = self._module(module, FIRST_MIRROR_PORT + number, list(ADDRESSES)[number % 2], writes=writes)
                (server.folder / "modules" / f"{module}.toml").write_text(text)

    def _module(self, module: str, port: int, data_on: str, *, writes: bool) -> str:
        words = [str(self.marks_file), "write" if writes else "idle", str(self.writes_file)]
        program = f"exec {sys.executable} -I {self.folder / APPLICATION} {' '.join(words)}"
        start = f'LC_ALL=C; echo "started $EPOCHREALTIME $HOTPAIR_SERVER" >> {self.marks_file}; {program}'
        return (
            f'directory = "{module}"\nmirror_port = {port}\ndata_on = "{data_on}"\nboot = "on"\n'
            f'[mirror]\ncache = "page"\n[vm]\ndriver = "command"\n'
            f'[vm.options]\nstart = ["/bin/bash", "-c", \'{start}\']\n'
        )

    @property
    def marks_file(self) -> Path:
        return self.folder / "marks"

    @property
    def writes_file(self) -> Path:
        return self.folder / "writes"

    # ---- what can be done to it

    def start(self, *names: str) -> None:
        """These servers, or both, as hosts that have booted."""
        for name in names or ADDRESSES:
            self._says_off(name).unlink(missing_ok=True)
            self.servers[name].start()

    def cut(self, name: str, *, silent: bool) -> Cut:
        """kill -9 of everything that this server runs. The mirrors first: with all of it at once, they would wait for
        the few processors that other processes of the same server need for their own ends.

        `silent`: nothing that the two mirrors and heartbeats say arrives any more, from just before.
        """
        processes = self.servers[name].processes()
        processes.sort(key=lambda one: kind_of(one.cmdline()) != "mirrors")
        mirrors = [os.pidfd_open(one.pid) for one in processes if kind_of(one.cmdline()) == "mirrors"]
        if silent:
            _nft(_silence(f"{FIRST_MIRROR_PORT}-{FIRST_MIRROR_PORT + len(self.modules)}"))
        at = time.time()
        self._says_off(name).touch()
        for one in processes:
            try:
                os.kill(one.pid, 9)
            except ProcessLookupError:
                continue  # it has just ended
        for descriptor in mirrors:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll(GONE_S * 1000)
            os.close(descriptor)
        return Cut(at, time.time() - at)

    def _says_off(self, name: str) -> Path:
        """What the fencing command looks for when the other one asks."""
        other = next(one for one in ADDRESSES if one != name)
        return self.folder / POWERED_OFF / f"peer-of-{other}"

    def tidy(self, name: str) -> None:
        """After a cut: what is left of the server's mounts, and of the silence."""
        self.servers[name].cut_power()
        _nft(f"table inet {_TABLE}\ndelete table inet {_TABLE}\n")

    def end(self) -> None:
        for server in self.servers.values():
            server.cut_power()

    # ---- what can be seen of it

    def seen(self, name: str) -> list[Module]:
        """Empty while the service does not answer."""
        try:
            with self.servers[name].client() as client:
                return client.modules()
        except ApiError:
            return []

    def client(self, name: str) -> Client:
        return self.servers[name].client()

    def is_green(self) -> bool:
        """All modules, on both: one runs it, the other can take over, and each has heard that of the other."""
        both = [self.seen(name) for name in ADDRESSES]
        green = [one.ready and one.peer_ready for found in both for one in found]
        return (
            len(green) == len(self.modules) * len(both)
            and all(green)
            and all({one.state for one in pair} == {"PRIM", "SECOND"} for pair in zip(*both, strict=True))
        )

    def primary(self) -> str:
        """Of the first module."""
        for name in ADDRESSES:
            if any(one.module == self.modules[0] and one.state in ("PRIM", "ALONE") for one in self.seen(name)):
                return name
        raise BenchError(f"no server runs {self.modules[0]}: {self.last_words()}")

    def marks(self) -> list[Mark]:
        return marks_of(self.marks_file.read_text()) if self.marks_file.exists() else []

    def writes(self, since: float) -> list[float]:
        """When a write was acknowledged, from a while ago on."""
        times = self.writes_file.read_bytes().split(b"\n")[:-1] if self.writes_file.exists() else []
        return [time for time in map(float, times) if time > since]

    def events(self, name: str, since: float) -> list[dict[str, Any]]:
        """The first module's on that server, with their time after `since`."""
        with self.client(name) as client:
            found = client.events(self.modules[0])
        return [{**one, "at": round(one["at"] - since, 3)} for one in found if one["at"] >= since - 0.001]

    def until(self, condition: Callable[[], bool], what: str, limit_s: float, look_s: float = LOOK_S) -> float:
        """How long it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > limit_s:
                raise BenchError(f"not within {limit_s:g} s: {what}. {self.last_words()}")
            time.sleep(look_s)
        return time.monotonic() - began

    def last_words(self) -> str:
        """What both servers say of their modules, and the end of their logs."""
        said = []
        for name, server in self.servers.items():
            states = [f"{one.module} {one.state} {one.reason or one.problem}" for one in self.seen(name)]
            logged = (server.folder / "service.log").read_text(errors="replace")[-1500:]
            said.append(f"{name}: {', '.join(states) or 'no answer'}\n{logged}")
        return "\n".join(said)


_TABLE = "hotpair_bench"


def _silence(ports: str) -> str:
    """Rules for nft(8): dropped where it arrives, so that who sends is told nothing."""
    ways = "\n".join(f"{kind} {end} {ports} drop" for kind in ("tcp", "udp") for end in ("sport", "dport"))
    return f"table inet {_TABLE} {{\nchain silence {{\ntype filter hook input priority 0\n{ways}\n}}\n}}\n"


def _nft(rules: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=rules, text=True, capture_output=True, timeout=10, check=False)
    if done.returncode:
        raise BenchError(f"nft: {done.stderr.strip()}")


def _cluster(arbitration: str, heartbeat: str) -> str:
    servers = "".join(
        f'[[servers]]\nname = "{name}"\naddress = "{address}"\nnetworks = {{ lan = "{address}" }}\n'
        for name, address in ADDRESSES.items()
    )
    return f'name = "bench"\n{servers}[heartbeat]\n{heartbeat}[arbitration]\n{arbitration}[security]\ntls = false\n'
