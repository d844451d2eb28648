"""Pulses over UDP: one socket for each configured network, for use in somebody else's event loop.

Nothing here waits. The loop watches `descriptors()` for reading and calls `receive`; it calls `send` at `due_at`, and
whenever it has something new to say after `hurry`. A network whose address is not there (an unplugged adapter, an
address that is configured later) is no error at the start: it is tried again at each round, and `traffic` says why it
does not work.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hotpair.cluster import pulse_guard
from hotpair.cluster.pulse import (
    ID_BYTES,
    LARGEST_PULSE_BYTES,
    ModuleView,
    Pulse,
    PulseRefused,
    Refusal,
    decode,
    pack,
)

DATAGRAMS_PER_TURN = 64  # read at once from one socket, so that a flood does not starve the loop
# The socket's address or interface is not what it was. Others pass, and a socket that cannot send may still receive.
NEW_SOCKET = frozenset({errno.EADDRNOTAVAIL, errno.EINVAL, errno.ENODEV, errno.ENXIO})
HURRY_S = 0.05  # between two rounds at least: what changes often does not become a flood


@dataclass(frozen=True)
class Network:
    """Numeric addresses, IPv4 or IPv6 (with %interface if link-local), and UDP ports."""

    name: str
    here: tuple[str, int]
    peer: tuple[str, int]


@dataclass(frozen=True)
class View:
    """What to say: see `Pulse` and `ModuleView`."""

    boot: str
    configuration: bytes
    hears: tuple[str, ...] = ()
    modules: tuple[ModuleView, ...] = ()


@dataclass(frozen=True)
class Heard:
    """A believed pulse. `fresh`: made after the last `doubt` (or start) of this side, see pulse_guard.py."""

    network: str
    pulse: Pulse
    fresh: bool


@dataclass
class Traffic:
    """What happened on one network since the start. `problem`: why nothing can be sent now, None when it can.

    `unsent`: datagrams the operating system did not take. `refused`: received, but not believed, by reason.
    """

    sent: int = 0
    unsent: int = 0
    received: int = 0
    lost: int = 0
    refused: Counter[Refusal] = field(default_factory=Counter)
    refusal: str | None = None
    problem: str | None = None


class Pulses:
    """Both directions of one pair, on one server. Not for use by several threads."""

    def __init__(
        self,
        me: str,
        peer: str,
        key: bytes,
        networks: list[Network],
        pulse_s: float,
        *,
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._me = me
        self._key = key
        self._networks = {network.name: network for network in networks}
        self._pulse_s = pulse_s
        self._random = random
        self._incarnation = random(ID_BYTES)
        self._guard = pulse_guard.Guard(me, peer, random(ID_BYTES))
        self._sockets: dict[str, socket.socket] = {}
        self._counters = dict.fromkeys(self._networks, 1)
        self._round = 0
        self._sent_at: float | None = None
        self._hurry = True
        self.traffic: Mapping[str, Traffic] = {name: Traffic() for name in self._networks}

    def open(self) -> None:
        """Open what can be opened; the rest at the next `send`."""
        for network in self._networks.values():
            self._open(network)

    def close(self) -> None:
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()

    def descriptors(self) -> dict[int, str]:
        """The open sockets and their networks. May change with each `open`, `send` and `close`."""
        return {opened.fileno(): name for name, opened in self._sockets.items()}

    def due_at(self, now: float) -> float:
        """When to send the next round. Rounds that were missed are not made up for."""
        if self._sent_at is None:
            return now
        return max(now, self._sent_at + (HURRY_S if self._hurry else self._pulse_s))

    def hurry(self) -> None:
        """Something changed: send the next round as soon as possible."""
        self._hurry = True

    def doubt(self) -> None:
        """This server was suspended: what waits in the sockets is not fresh."""
        self._guard = pulse_guard.renew(self._guard, self._random(ID_BYTES))
        self._hurry = True

    def send(self, view: View, now: float) -> None:
        """One round over every network."""
        self._sent_at, self._hurry = now, False
        self._round += 1
        for network in self._networks.values():
            if network.name in self._sockets or self._open(network):
                self._send(network, view)

    def receive(self, network: str) -> list[Heard]:
        """What has arrived, at most DATAGRAMS_PER_TURN; the loop asks again if there is more."""
        opened, traffic, heard = self._sockets.get(network), self.traffic[network], list[Heard]()
        for _ in range(DATAGRAMS_PER_TURN if opened is not None else 0):
            assert opened is not None
            try:
                data = opened.recv(LARGEST_PULSE_BYTES + 1)
            except BlockingIOError:
                break
            except OSError as error:
                self._failed(network, error)
                break
            traffic.received += 1
            try:
                heard.append(self._believe(data, network))
            except PulseRefused as refused:
                traffic.refused[refused.reason] += 1
                traffic.refusal = str(refused)
        return heard

    def _believe(self, data: bytes, network: str) -> Heard:
        """Raises PulseRefused."""
        pulse = decode(data, self._key)
        before = self._guard.echoes
        judged = pulse_guard.judge(self._guard, pulse, network, self._random(ID_BYTES))
        self._guard = judged.guard
        if judged.guard.echoes != before:  # the other side waits for it
            self._hurry = True
        if judged.refused is not None:
            raise judged.refused
        self.traffic[network].lost = judged.guard.lines[network].lost
        return Heard(network, pulse, judged.fresh)

    def _send(self, network: Network, view: View) -> None:
        traffic, opened = self.traffic[network.name], self._sockets[network.name]
        pulse = Pulse(
            sender=self._me,
            network=network.name,
            incarnation=self._incarnation,
            counter=self._counters[network.name],
            round=self._round,
            boot=view.boot,
            challenge=self._guard.challenge,
            echoes=self._guard.echoes,
            hears=view.hears,
            configuration=view.configuration,
            modules=view.modules,
        )
        datagrams = pack(pulse, self._key)
        self._counters[network.name] += len(datagrams)
        for i, datagram in enumerate(datagrams):
            try:
                opened.sendto(datagram, _resolved(network.peer)[1])
                traffic.sent += 1
                traffic.problem = None
            except OSError as error:  # a full buffer included
                traffic.unsent += len(datagrams) - i
                self._failed(network.name, error)
                return

    def _open(self, network: Network) -> bool:
        try:
            family, address = _resolved(network.here)
            opened = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._failed(network.name, error)
            return False
        try:
            if family == socket.AF_INET6:
                opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            opened.bind(address)
        except OSError as error:
            opened.close()
            self._failed(network.name, error)
            return False
        self._sockets[network.name] = opened
        self.traffic[network.name].problem = None
        return True

    def _failed(self, network: str, error: OSError) -> None:
        """Until the next round. Errors of a single network are its status, never the end of the others."""
        if error.errno in NEW_SOCKET and (opened := self._sockets.pop(network, None)) is not None:
            opened.close()
        here, peer = self._networks[network].here, self._networks[network].peer
        self.traffic[network].problem = f"{error.strerror or error} (from {here[0]}:{here[1]} to {peer[0]}:{peer[1]})"


def _resolved(address: tuple[str, int]) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    """The family and the socket address of a numeric address. Raises OSError; asks no name server."""
    found = socket.getaddrinfo(*address, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)
    return found[0][0], found[0][4]
