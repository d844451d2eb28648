"""What the checkers "vm-state" and "guest-heartbeat" say, from the last look at the VM. Pure.

The VM is looked at every second anyway (vm_keeper.py): the hypervisor is not asked once more for each checker.
"""

from __future__ import annotations

from dataclasses import dataclass

from hotpair.cluster.checks import Found, down, unknown, up
from hotpair.hyperv.driver import Heartbeat, Observation, VmState

LOOK_ROOM_S = 2.0  # between two looks, beyond what one may take


@dataclass(frozen=True)
class Seen:
    """The VM's keeper at one moment.

    last     the last look that succeeded, `age_s` ago; None before the first one
    busy     an order is being carried out
    failed   so many starts in a row have failed
    problem  what went wrong last
    """

    last: Observation | None
    age_s: float
    busy: bool
    failed: int
    problem: str


def vm_state(seen: Seen, timeout_s: float) -> Found:
    if seen.failed:
        return down(seen.problem)
    last = _last(seen, timeout_s)
    if isinstance(last, Found):
        return last
    found = {VmState.ON: up, VmState.STARTING: unknown}.get(last.state, down)
    return found(f"the VM is {last.state.value}{': ' + last.detail if last.detail else ''}")


def guest_heartbeat(seen: Seen, timeout_s: float) -> Found:
    """A guest that never answered in this run has no integration services: that is up."""
    last = _last(seen, timeout_s)
    if isinstance(last, Found):
        return last
    if last.state is not VmState.ON:
        return unknown(f"the VM is {last.state.value}")
    if last.heartbeat is Heartbeat.UNKNOWN:
        return up("the guest has never answered in this run: it has no integration services, or is not up yet")
    age = "" if last.heartbeat_age_s is None else f", {last.heartbeat_age_s:.0f} s ago"
    detail = f": {last.detail}" if last.detail else ""
    if last.heartbeat is Heartbeat.OK:
        return up(f"the guest answers{age}")
    return down(f"the guest has answered before{age}, and does not any more{detail}")


def _last(seen: Seen, timeout_s: float) -> Observation | Found:
    """What cannot be found out is neither up nor down: hypervisors' services are restarted under running VMs."""
    if seen.busy:
        return unknown("the VM is being started or stopped")
    if seen.last is None or seen.age_s > timeout_s + LOOK_ROOM_S:
        return unknown(f"the hypervisor does not say how the VM is{': ' + seen.problem if seen.problem else ''}")
    return seen.last
