"""What the API's routes about the pair work with, made for one server."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from hotpair.actors.home import Home
from hotpair.actors.supervisor import Supervisor
from hotpair.cluster.configuration import Cluster
from hotpair.cluster.configuration_io import load_key
from hotpair.invitations_io import Welcome
from hotpair.pair_administration import PairAdministration
from hotpair.pair_channel_io import PeerChannel
from hotpair.pair_facts_io import REAL, Looks
from hotpair.pair_gate import PairGate
from hotpair.pair_participant import Here
from hotpair.pair_remote import There


@dataclass(frozen=True)
class PairServed:
    """`gate` raises BadKey while the pair's key cannot be used."""

    administration: PairAdministration
    gate: Callable[[], PairGate]
    welcome: Welcome
    here: Here
    there: There

    def close(self) -> None:
        self.here.close()
        self.there.close()
        self.welcome.close()


def pair_served(
    supervisor: Supervisor,
    home: Home,
    server: str,
    port: int,
    *,
    forget: Callable[[str], None],
    looks: Looks = REAL,
) -> PairServed:
    """`port`: of the API, the same on both servers."""
    cluster = supervisor.cluster
    peer = cluster.peer_of(server).name
    here = Here(supervisor, home, server, looks=looks, forget=forget)
    there = There(peer, PeerChannel(cluster, home, server, port))
    return PairServed(
        PairAdministration(here, there, home),
        _gate(cluster, home, server, peer),
        Welcome(home, cluster, server),
        here,
        there,
    )


def _gate(cluster: Cluster, home: Home, server: str, peer: str) -> Callable[[], PairGate]:
    """One for as long as the service lives, made when the key is there."""
    made: list[PairGate] = []

    def gate() -> PairGate:
        if not made:
            key = load_key(home.below(cluster.security.key_file))
            made.append(PairGate(key, server, peer, clock=time.monotonic, random=secrets.token_bytes))
        return made[0]

    return gate
