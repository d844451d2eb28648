"""A module's checkers become probes: the VM's own from its keeper, the others on this machine (probes_io.py)."""

from __future__ import annotations

import threading
from collections.abc import Callable

from hotpair.actors import probes_io, vm_checks
from hotpair.actors.prober import Prober
from hotpair.actors.vm_keeper import VmKeeper
from hotpair.cluster.check_times import Turn
from hotpair.cluster.checks import VM_STATE, Checked, Found
from hotpair.cluster.configuration import Checker

GUEST_HEARTBEAT = "guest-heartbeat"


def prober_of(checkers: tuple[Checker, ...], module: str, keeper: VmKeeper, hear: Callable[[Checked], None]) -> Prober:
    """At work in a thread of its own, until it is closed; looks at nothing until it is told what."""
    prober = Prober(
        {one.name: Turn(one.period_s, one.timeout_s) for one in checkers},
        {one.name: _probe(one, module, keeper) for one in checkers},
        hear,
    )
    threading.Thread(target=prober.run, name="checks", daemon=True).start()
    return prober


def _probe(checker: Checker, module: str, keeper: VmKeeper) -> Callable[[float], Found]:
    if checker.kind == VM_STATE:
        return lambda timeout_s: vm_checks.vm_state(keeper.seen(), timeout_s)
    if checker.kind == GUEST_HEARTBEAT:
        return lambda timeout_s: vm_checks.guest_heartbeat(keeper.seen(), timeout_s)
    return probes_io.probe_of(checker, module)
