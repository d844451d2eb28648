"""What a module's three actors are made with. Without Ray: who says what they are need not be able to start them."""

from __future__ import annotations

from dataclasses import dataclass

from hotpair.actors.heartbeat import HeartbeatFacts
from hotpair.actors.mirror_keeper import MirrorFacts
from hotpair.actors.vm_keeper import VmFacts
from hotpair.cluster.configuration import Checker
from hotpair.hyperv.driver import Place


@dataclass(frozen=True)
class GroupFacts:
    """`state`: the module's state directory, for their locks.

    `checkers`: those for which this machine is looked at, with absolute paths.
    """

    module: str
    state: str
    heartbeat: HeartbeatFacts
    mirror: MirrorFacts
    vm: VmFacts
    driver: str
    place: Place
    checkers: tuple[Checker, ...] = ()
