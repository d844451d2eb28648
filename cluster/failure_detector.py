"""Does the peer live, and which networks work: from what was heard, and when. Pure code.

Knows: times of evidence, as arguments, monotonic. Must not know: clocks, sockets, roles, what follows for the VM.

Evidence of life is an authentic pulse on any network, or the mirror link answering (a received operation,
acknowledgement or probe). The peer is *lost* when there was none, anywhere, for more than `timeout_s`; a pulse that
arrives at exactly that age is in time, so a peer that pulses at that period does not flap.

Use a clock that goes on while the host is suspended (CLOCK_BOOTTIME on Linux), or a suspension does not show. A gap of
more than `timeout_s` / 2 between two looks at the clock means that this server was not running. What lies in its
sockets then may be as old as the gap, so it *doubts*: everything counts as unheard, and only *fresh* evidence ends
that: what was provably made after the gap (pulse_guard.py: it returns a challenge made since). Without any, the peer is
lost `timeout_s` after the gap was noticed, not at once: that the time passed here says nothing about the peer.

A network is *one way* when the peer comes through on it and says for `timeout_s` / 2 that it does not hear us there.

Each function returns the new state and what changed, in order, for the log and the state machine.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum


class PeerStatus(Enum):
    """LISTENING: nothing heard yet, since the start or since a doubt, and not for long enough to call it lost."""

    LISTENING = "listening"
    ALIVE = "alive"
    LOST = "lost"


class NetworkStatus(Enum):
    """The same for one network; ONE_WAY: heard there, but the peer does not hear this server on it."""

    LISTENING = "listening"
    UP = "up"
    ONE_WAY = "one way"
    DOWN = "down"


@dataclass(frozen=True)
class PeerChanged:
    """`since` is when it became so: for LOST, the last evidence."""

    was: PeerStatus
    status: PeerStatus
    since: float


@dataclass(frozen=True)
class NetworkChanged:
    """As PeerChanged, for one network."""

    network: str
    was: NetworkStatus
    status: NetworkStatus
    since: float


@dataclass(frozen=True)
class Doubted:
    """This server was not running for `gap_s`: its role is doubtful until there is fresh evidence. Make a new
    challenge (pulse_guard.renew) before anything else is received."""

    gap_s: float


@dataclass(frozen=True)
class Believed:
    """The doubt is over: the peer was heard after it."""


Change = PeerChanged | NetworkChanged | Doubted | Believed


@dataclass(frozen=True)
class Network:
    """`heard_at`: the last pulse, or when listening began; `unheard_at`: since when the peer says that it does not hear
    us here, without a break."""

    status: NetworkStatus
    since: float
    heard_at: float
    unheard_at: float | None = None


@dataclass(frozen=True)
class Detector:
    """`evidence_at`: the last evidence, or when listening began. `now`: the last look at the clock."""

    timeout_s: float
    now: float
    evidence_at: float
    status: PeerStatus
    since: float
    networks: Mapping[str, Network]
    doubtful: bool = False

    @property
    def heard_on(self) -> tuple[str, ...]:
        """What to say in our own pulses: the networks on which the peer comes through."""
        through = (NetworkStatus.UP, NetworkStatus.ONE_WAY)
        return tuple(sorted(name for name, network in self.networks.items() if network.status in through))

    @property
    def one_way(self) -> bool:
        """The peer is heard by pulses, and on no network does it hear us: it will take us for lost."""
        heard = [self.networks[name].status for name in self.heard_on]
        return bool(heard) and all(status is NetworkStatus.ONE_WAY for status in heard)

    @property
    def lost_at(self) -> float | None:
        """The first moment at which `tick` will call the peer lost; None when it is."""
        if self.status is PeerStatus.LOST:
            return None
        return math.nextafter(self.evidence_at + self.timeout_s, math.inf)


def start(networks: Collection[str], timeout_s: float, now: float) -> Detector:
    """Nothing heard yet."""
    assert timeout_s > 0 and networks
    listening = Network(NetworkStatus.LISTENING, now, now)
    return Detector(timeout_s, now, now, PeerStatus.LISTENING, now, dict.fromkeys(networks, listening))


def tick(detector: Detector, now: float) -> tuple[Detector, list[Change]]:
    """Look at the clock: at least every `timeout_s` / 4, and at `lost_at`."""
    detector, changes = _look(detector, now)
    return _judge(detector, changes)


def pulse_heard(
    detector: Detector, network: str, peer_hears: Collection[str], now: float, *, fresh: bool
) -> tuple[Detector, list[Change]]:
    """A believed pulse came on `network`; the peer says in it on which networks it hears us."""
    assert network in detector.networks, f"{network} is not one of this pair's networks"
    detector, changes = _look(detector, now)
    if detector.doubtful and not fresh:
        return _judge(detector, changes)
    # While it doubted, nothing that the peer said before counts.
    detector, changes = _trust(detector, changes)
    heard = dict(detector.networks)
    heard[network] = replace(heard[network], heard_at=now)
    for name, entry in heard.items():
        since = None if name in peer_hears else entry.unheard_at if entry.unheard_at is not None else now
        heard[name] = replace(entry, unheard_at=since)
    if heard[network].status in (NetworkStatus.LISTENING, NetworkStatus.DOWN):
        if network not in peer_hears:  # it can hear us only after we were heard again: the time runs from here
            heard[network] = replace(heard[network], unheard_at=now)
        heard[network], changes = _become(network, heard[network], NetworkStatus.UP, now, changes)
    return _judge(*_evidence(replace(detector, networks=heard), now, changes))


def link_heard(detector: Detector, now: float, *, fresh: bool) -> tuple[Detector, list[Change]]:
    """The peer's mirror process answered on the link. `fresh`: what it answered was sent after the last doubt."""
    detector, changes = _look(detector, now)
    if detector.doubtful and not fresh:
        return _judge(detector, changes)
    detector, changes = _trust(detector, changes)
    return _judge(*_evidence(detector, now, changes))


def _look(detector: Detector, now: float) -> tuple[Detector, list[Change]]:
    """Take the time; after a gap forget everything that was heard."""
    assert now >= detector.now, "the clock is monotonic"
    gap_s = now - detector.now
    looked = replace(detector, now=now)
    if gap_s <= detector.timeout_s / 2:
        return looked, []
    changes: list[Change] = [Doubted(gap_s)]
    networks = {}
    for name, network in detector.networks.items():
        unheard = replace(network, heard_at=now, unheard_at=None)
        networks[name], changes = _become(name, unheard, NetworkStatus.LISTENING, now, changes)
    forgetful = replace(looked, networks=networks, evidence_at=now, doubtful=True)
    return _become_peer(forgetful, PeerStatus.LISTENING, now, changes)


def _trust(detector: Detector, changes: list[Change]) -> tuple[Detector, list[Change]]:
    if not detector.doubtful:
        return detector, changes
    return replace(detector, doubtful=False), [*changes, Believed()]


def _evidence(detector: Detector, now: float, changes: list[Change]) -> tuple[Detector, list[Change]]:
    return _become_peer(replace(detector, evidence_at=now), PeerStatus.ALIVE, now, changes)


def _judge(detector: Detector, changes: list[Change]) -> tuple[Detector, list[Change]]:
    """What follows from the times. The only place where the limits are compared."""
    now, timeout_s = detector.now, detector.timeout_s
    networks = {}
    for name, entry in detector.networks.items():
        status, since = entry.status, now
        if now > entry.heard_at + timeout_s:
            status, since = NetworkStatus.DOWN, entry.heard_at
        elif entry.status in (NetworkStatus.UP, NetworkStatus.ONE_WAY):
            unheard = entry.unheard_at is not None and now > entry.unheard_at + timeout_s / 2
            status = NetworkStatus.ONE_WAY if unheard else NetworkStatus.UP
            since = entry.unheard_at if unheard and entry.unheard_at is not None else now
        networks[name], changes = _become(name, entry, status, since, changes)
    detector = replace(detector, networks=networks)
    if now > detector.evidence_at + timeout_s:
        return _become_peer(detector, PeerStatus.LOST, detector.evidence_at, changes)
    return detector, changes


def _become(
    name: str, network: Network, status: NetworkStatus, since: float, changes: list[Change]
) -> tuple[Network, list[Change]]:
    if status is network.status:
        return network, changes
    changed = NetworkChanged(name, network.status, status, since)
    return replace(network, status=status, since=since), [*changes, changed]


def _become_peer(
    detector: Detector, status: PeerStatus, since: float, changes: list[Change]
) -> tuple[Detector, list[Change]]:
    if status is detector.status:
        return detector, changes
    return replace(detector, status=status, since=since), [*changes, PeerChanged(detector.status, status, since)]
