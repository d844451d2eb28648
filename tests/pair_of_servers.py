"""A whole pair for the tests: two services with Ray, mirrors, applications and a guest, a witness, cables to pull."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from hotpair.demo_applications_io import Application, guest, plain_process
from hotpair.demo_guest_io import ledger_guest
from hotpair.demo_servers_io import Server, TwoServers, two_servers
from tests.guest import kernel_tree
from tests.two_networks import Networks, networks

DETECTED_S = 30.0  # the default detection takes 5 s; the rest is a busy machine's
BOOTED_S = 60.0  # a guest without KVM
SICK = "sick"  # while there is such a file outside the servers, the process counts as sick
CHECKERS = """
[checkers.health]
kind = "command"
command = ["/usr/bin/test", "!", "-e", "{sick}"]
timeout_s = 10
confirm_s = 12
start_s = 0
action = "restart"
[checkers.vm]
kind = "vm-state"
"""


@dataclass
class Pair:
    """`homes`: where each module belongs, and is brought back to after each story."""

    servers: TwoServers
    networks: Networks
    homes: dict[str, str]

    def __getitem__(self, name: str) -> Server:
        return self.servers[name]

    def cut_power(self, name: str) -> None:
        """Nothing that it runs says farewell to anybody: its cables are dead first."""
        self.networks.cut(name)
        self[name].cut_power()

    def boot(self, name: str) -> None:
        self.networks.heal(name)
        self[name].start()

    def until(self, condition: Callable[[], bool], what: str, limit_s: float = DETECTED_S) -> float:
        return self.servers.until(condition, what, limit_s)

    def until_all(self, server: str, wanted: str, limit_s: float = DETECTED_S) -> float:
        """All modules on this server are in this state."""
        said = dict.fromkeys(self.homes, wanted)
        return self.servers.until(lambda: self[server].states() == said, f"all are {wanted} on {server}", limit_s)

    def until_state(self, module: str, server: str, wanted: str, limit_s: float = DETECTED_S) -> float:
        what = f"{module} is {wanted} on {server}"
        return self.servers.until(lambda: self[server].state(module) == wanted, what, limit_s)

    def until_all_write(self) -> None:
        for module in self.homes:
            self.servers.until_more(5, module)

    def acknowledged(self) -> dict[str, int]:
        return {module: self.servers.acknowledged(module) for module in self.homes}

    def go_home(self) -> None:
        """Green, every module where it belongs, and writing there."""
        self.servers.until_green()
        for module, home in self.homes.items():
            other = "b" if home == "a" else "a"
            if self[home].state(module) != "PRIM green":
                self.servers.command(other, "swap", module)
        for module, home in self.homes.items():
            self.until_state(module, home, "PRIM green", BOOTED_S)
        self.servers.until_green()
        self.until_all_write()

    def nothing_lost(self, acknowledged: dict[str, int]) -> None:
        """Every line that had been acknowledged is there where the module runs, once, in its order."""
        for module, least in acknowledged.items():
            (where,) = [name for name in ("a", "b") if self[name].state(module) in ("PRIM green", "ALONE green")]
            found = self.servers.journal(where, module)
            assert found == list(range(1, len(found) + 1)), f"{module} on {where}: out of order"
            assert len(found) >= least, f"{module} on {where}: {least} acknowledged, {len(found)} there"
            assert not self.servers.applications[module].ran_twice(), module

    def applications(self) -> dict[str, list[psutil.Process]]:
        """What runs of each module, wherever it does."""
        found = {}
        for module, home in self.homes.items():
            mark = str(self.servers.applications[module].ledger)
            found[module] = [one for one in self[home].processes() if _is_application(one, mark)]
        return found

    def mirror(self, server: str, module: str) -> psutil.Process | None:
        """Its mirror process: neither the keeper of its descriptor nor a helper of its own."""
        directory = str(self[server].folder / module)
        found = []
        for one in self[server].find("hotpair.replication"):
            with contextlib.suppress(psutil.Error):
                words = one.cmdline()
                if directory in words and {"source", "target"} & set(words):
                    found.append((one, one.ppid()))
        pids = [one.pid for one, _ in found]
        own = [one for one, parent in found if parent not in pids]
        return own[0] if len(own) == 1 else None

    def said(self, server: str, module: str) -> dict[str, Any]:
        """What its pulses and links are, as people are shown it."""
        with self[server].client() as client:
            return client.details(module).heartbeat

    def findings(self, server: str, module: str) -> dict[str, str]:
        """What its checkers say there."""
        with self[server].client() as client:
            return {one.name: one.finding for one in client.details(module).checkers}

    def until_reason(self, module: str, server: str, words: str) -> None:
        def is_said() -> bool:
            found = self[server].modules().get(module)
            return found is not None and words in found.reason

        self.until(is_said, f"{server} says of {module}: {words}")


def _is_application(process: psutil.Process, mark: str) -> bool:
    """The program itself: who started it has its words on the command line, too."""
    try:
        line = " ".join(process.cmdline())
    except psutil.Error:
        return False
    return mark in line and (" -I " in line or "qemu-system" in line) and "hotpair.hyperv" not in line


@contextmanager
def pair(first_port: int) -> Iterator[Pair]:
    """A process at home on a, a guest on b: a server that fails leaves its own to the other, which has one already."""
    kernel, initrd = ledger_guest(kernel_tree(Path(tempfile.gettempdir()) / f"hotpair-guest-{os.getuid()}"))

    def make(folder: Path) -> Sequence[Application]:
        process = plain_process("app", "a", folder)
        process = replace(process, vm=process.vm + CHECKERS.format(sick=folder / SICK))
        return [process, guest("guest", "b", folder, kernel, initrd)]

    with _pair(first_port, make) as made:
        yield made


@contextmanager
def pair_on_small_disks(first_port: int, own_bytes: int, other_bytes: int) -> Iterator[Pair]:
    """app alone, at home on a, its directories on file systems of these sizes: a's own, and b's."""

    def make(folder: Path) -> Sequence[Application]:
        def fill(directory: Path, has_data: bool) -> None:
            _mount_small(directory, own_bytes if has_data else other_bytes)

        return [replace(plain_process("app", "a", folder), directory="disk/data", fill=fill)]

    with _pair(first_port, make) as made:
        yield made


def _mount_small(directory: Path, size_bytes: int) -> None:
    words = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(directory.parent)]
    subprocess.run(words, check=True)
    directory.mkdir()


@contextmanager
def _pair(first_port: int, make: Callable[[Path], Sequence[Application]]) -> Iterator[Pair]:
    with (
        networks() as cables,
        two_servers(first_port, applications=make, hosts=cables.hosts, witness=cables.witness) as servers,
    ):
        homes = {name: application.data_on for name, application in servers.applications.items()}
        yield Pair(servers, cables, homes)


def tell(scenes: Sequence[Callable[[Pair], None]], given: Pair) -> None:
    """One story after the other, on the same pair: a start of Ray costs more than most of them."""
    for scene in scenes:
        began = time.monotonic()
        scene(given)
        given.go_home()
        print(f"{scene.__name__}: {time.monotonic() - began:.1f} s", flush=True)
