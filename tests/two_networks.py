"""Hosts in network namespaces of their own: two servers and a witness, with cables that can be pulled.

    lan     the servers' mirror streams and pulses
    direct  pulses only
    third   the servers and the witness

Each cable ends in a switch (a bridge) in a namespace of its own. A cable is pulled at the switch: the host loses the
carrier and keeps its address, as a server whose cable is pulled does. Nothing is left of it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hotpair.demo_servers_io import LOOPBACK, LOOPBACK_WITNESS, Host

NETWORKS = {"lan": "10.77.1", "direct": "10.77.2", "third": "10.77.3"}
PLUGGED = {"a": ("lan", "direct", "third"), "b": ("lan", "direct", "third"), "w": ("third",)}
PULSED = ("lan", "direct")
NUMBERS = {"a": 1, "b": 2, "w": 3}


@dataclass(frozen=True)
class Networks:
    """`hosts`: the two servers. `can_cut`: whether there are namespaces; if not, why is in `problem`."""

    hosts: dict[str, Host]
    witness: Host
    switch: str = ""
    problem: str = ""

    @property
    def can_cut(self) -> bool:
        return self.problem == ""

    def cut(self, host: str, *networks: str) -> None:
        """Pull these cables of this host; all of them if none is named."""
        self._set(host, networks, "down")

    def heal(self, host: str, *networks: str) -> None:
        self._set(host, networks, "up")

    def _set(self, host: str, networks: tuple[str, ...], state: str) -> None:
        if self.can_cut:
            for network in networks or PLUGGED[host]:
                _ip("-n", self.switch, "link", "set", f"{host}-{network}", state)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def networks() -> Iterator[Networks]:
    """On two loopback addresses where there can be no namespaces; nothing can be cut then."""
    mark = f"hotpair-{os.getpid()}"
    spaces = {name: f"{mark}-{name}" for name in (*PLUGGED, "switch")}
    made: list[str] = []
    try:
        try:
            for space in spaces.values():
                _ip("netns", "add", space)
                made.append(space)
            _plug(spaces)
            made_networks = _described(spaces)
        except (OSError, subprocess.CalledProcessError) as error:
            why = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
            print(f"no network namespaces here, so on two loopback addresses: {why}")
            made_networks = Networks(dict(LOOPBACK), LOOPBACK_WITNESS, problem=why)
        yield made_networks
    finally:
        for space in made:
            _ip("netns", "delete", space)


def _plug(spaces: dict[str, str]) -> None:
    switch = spaces["switch"]
    for network in NETWORKS:
        _ip("-n", switch, "link", "add", network, "type", "bridge", "stp_state", "0", "forward_delay", "0")
        _ip("-n", switch, "link", "set", network, "up")
    for host, plugged in PLUGGED.items():
        _ip("-n", spaces[host], "link", "set", "lo", "up")
        for network in plugged:
            port, address = f"{host}-{network}", f"{NETWORKS[network]}.{NUMBERS[host]}/24"
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", network, "netns", spaces[host])
            _ip("-n", switch, "link", "set", port, "master", network, "up")
            _ip("-n", spaces[host], "address", "add", address, "dev", network)
            _ip("-n", spaces[host], "link", "set", network, "up")


def _described(spaces: dict[str, str]) -> Networks:
    found = {}
    for host, number in NUMBERS.items():
        # only the network is another one: what is mounted there is seen here
        inside = ("nsenter", f"--net=/run/netns/{spaces[host]}", "--")
        pulsed = {network: f"{NETWORKS[network]}.{number}" for network in PULSED}
        found[host] = Host(pulsed["lan"] if host != "w" else f"{NETWORKS['third']}.{number}", pulsed, inside)
    witness = found.pop("w")
    return Networks(found, witness, spaces["switch"])
