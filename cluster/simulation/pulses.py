"""Pulses over two networks, heard through the real failure detector. The clock is an argument; no IO.

Datagrams are a model: each carries the sender's whole view, its incarnation and counter, its challenge and the echo of
the peer's, and is believed by the rules of pulse_guard.py: a counter counts once, a process that is not the one
believed must return the present challenge, and only what returns it ends a doubt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hotpair.cluster import failure_detector
from hotpair.cluster.failure_detector import Change, Detector, Doubted, NetworkStatus, PeerStatus
from hotpair.cluster.module_values import PeerView

NETWORKS = ("link", "lan")
PULSE_S = 0.5
TIMEOUT_S = 5.0


@dataclass(frozen=True)
class Datagram:
    sender: int
    network: int
    incarnation: int
    counter: int
    challenge: int
    echo: int
    view: PeerView
    hears: tuple[str, ...]


class Paths:
    """What gets through from one server to the other; every number counts the faults that hold it up."""

    def __init__(self) -> None:
        self.blocked = [[0, 0] for _ in NETWORKS]  # by network, then by sender
        self.link_down = 0
        self.losses: list[float] = []
        self.delays: list[float] = []

    def gets_through(self, network: int, sender: int) -> bool:
        return not self.blocked[network][sender]

    def link(self) -> bool:
        """A connection needs both directions."""
        return not (self.link_down or self.blocked[0][0] or self.blocked[0][1])

    def any(self, sender: int) -> bool:
        return not (self.blocked[0][sender] and self.blocked[1][sender])

    def is_calm(self) -> bool:
        return not (self.losses or self.delays)

    def is_whole(self) -> bool:
        return self.is_calm() and self.blocked == [[0, 0], [0, 0]]


class Ear:
    """One process of a control plane: what it has heard, and what it says. It ends with the process."""

    def __init__(self, server: int, incarnation: int, local_s: float) -> None:
        self.server = server
        self.incarnation = incarnation
        self.challenge = incarnation
        self.echo = 0
        self.peer_incarnation = 0
        self.peer_counter = 0
        self.counter = 0
        self.detector: Detector = failure_detector.start(NETWORKS, TIMEOUT_S, local_s)

    def says(self, network: int, view: PeerView) -> Datagram:
        return Datagram(
            self.server, network, self.incarnation, self.counter, self.challenge, self.echo, view,
            self.detector.heard_on,
        )  # fmt: skip

    def looks(self, local_s: float, challenge: int) -> list[Change]:
        self.detector, changes = failure_detector.tick(self.detector, local_s)
        self._renew(changes, challenge)
        return changes

    def hears_link(self, local_s: float, challenge: int) -> list[Change]:
        self.detector, changes = failure_detector.link_heard(self.detector, local_s, fresh=True)
        self._renew(changes, challenge)
        return changes

    def hears(self, datagram: Datagram, local_s: float, challenge: int) -> tuple[bool, bool, list[Change]]:
        """Whether what it says is new; whether the echo changed, so that a pulse is due; and what the detector says."""
        changes = self.looks(local_s, challenge)
        answers = datagram.challenge != self.echo and datagram.incarnation >= self.peer_incarnation
        if answers:
            self.echo = datagram.challenge
        fresh = datagram.echo == self.challenge
        if datagram.incarnation != self.peer_incarnation:
            if not fresh or datagram.incarnation < self.peer_incarnation:
                return False, answers, changes
            self.peer_incarnation, self.peer_counter = datagram.incarnation, 0
        name = NETWORKS[datagram.network]
        self.detector, more = failure_detector.pulse_heard(
            self.detector, name, datagram.hears, local_s, fresh=fresh
        )  # fmt: skip
        is_new = datagram.counter > self.peer_counter and not self.detector.doubtful
        if is_new:
            self.peer_counter = datagram.counter
        return is_new, answers, changes + more

    def _renew(self, changes: list[Change], challenge: int) -> None:
        if changes and isinstance(changes[0], Doubted):
            self.challenge = challenge

    # ---- skipping what changes nothing

    def is_settled(self, hears_pulses: tuple[bool, bool], hears_link: bool) -> bool:
        """Whether more of the same changes nothing but the times."""
        detector = self.detector
        if detector.doubtful or detector.status is PeerStatus.LISTENING:
            return False
        if (detector.status is PeerStatus.ALIVE) != (hears_link or any(hears_pulses)):
            return False
        for name, comes in zip(NETWORKS, hears_pulses, strict=True):
            if (detector.networks[name].status is NetworkStatus.DOWN) == comes:
                return False
            if detector.networks[name].status is NetworkStatus.LISTENING:
                return False
        return True

    def skip(self, local_s: float, hears_pulses: tuple[bool, bool], hears_link: bool) -> None:
        """As if the same had been heard all the time until then."""
        detector = self.detector
        assert local_s >= detector.now - PULSE_S
        now = max(local_s, detector.now)
        networks = {
            name: replace(network, heard_at=now) if comes else network
            for (name, network), comes in zip(detector.networks.items(), hears_pulses, strict=True)
        }
        evidence_at = now if hears_link or any(hears_pulses) else detector.evidence_at
        self.detector = replace(detector, now=now, evidence_at=evidence_at, networks=networks)
