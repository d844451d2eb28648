"""One module that is open on this server: what the supervisor holds of it, and how it stands, for people."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from hotpair.actors.event_log_io import EventLog
from hotpair.actors.groups import Group, Report
from hotpair.actors.heartbeat import data_status
from hotpair.actors.module_checks import ModuleChecks
from hotpair.actors.module_runner import ModuleRunner
from hotpair.actors.shelf_io import ModuleShelf
from hotpair.cluster.configuration import Module as Configured
from hotpair.cluster.module_events import Event, Timer
from hotpair.cluster.module_values import Module, PeerView, State, Vm, ready
from hotpair.cluster.wishes_io import Wishes


@dataclass(frozen=True)
class Unreadable:
    """What is known of a module whose record cannot be read. `vm` None: its helpers have not answered."""

    vm: Vm | None
    wishes: Wishes | None


class OpenModule:
    """`group` None: its helpers are being made."""

    def __init__(self, configured: Configured, shelf: ModuleShelf, events: EventLog) -> None:
        self.configured = configured
        self.shelf = shelf
        self.events = events
        self.group: Group | None = None
        self.runner: ModuleRunner | None = None
        self.checks: ModuleChecks | None = None
        self.checks_timer: asyncio.TimerHandle | None = None
        self.timers: dict[Timer, asyncio.TimerHandle] = {}
        self.early: list[Report] = []  # what was reported while its helpers are asked what runs: it is newer than that
        self.of_peer: deque[Event] | None = None  # what the pulses said while the mirror is asked; None: it is not
        self.problem = ""
        self.mirror_says = ""
        self.unreadable: Unreadable | None = None

    @property
    def state(self) -> State | None:
        """None: nothing is decided for it now."""
        return None if self.runner is None else self.runner.module.state


@dataclass(frozen=True)
class Standing:
    """A module as this server knows it, for people and programs.

    `problem`: why it has no runner now; everything else is unknown then, unless its record cannot be read: that is
    WAIT, with what the helpers and the operator said.
    """

    module: str
    state: State | None
    ready: bool
    reason: str
    vm: str
    data: str
    maintenance: bool
    wanted: bool
    plan: str
    peer: str
    peer_ready: bool
    in_sync: bool
    problem: str = ""
    mirror: str = ""  # why it is not in sync, in the mirror's own words


def standing_of(module: OpenModule) -> Standing:
    """How it stands now."""
    if module.runner is None or module.checks is None:
        return _undecided(module)
    now = module.runner.module
    return _decided(now, module, module.checks.reason(now))


def _undecided(module: OpenModule) -> Standing:
    """Nothing is decided for it now."""
    found = module.unreadable
    vm = found.vm if found is not None else None
    wishes = found.wishes if found is not None and found.wishes is not None else Wishes()
    return Standing(
        module=module.configured.name,
        state=None if found is None else State.WAIT,
        ready=False,
        reason=module.problem,
        vm="" if vm is None else vm.value,
        data=data_status(None).value,
        maintenance=wishes.maintenance,
        wanted=wishes.wanted,
        plan="",
        peer="",
        peer_ready=False,
        in_sync=False,
        problem=module.problem,
        mirror=module.mirror_says,
    )


def _decided(now: Module, module: OpenModule, checkers: str) -> Standing:
    peer: PeerView | None = now.peer
    return Standing(
        module=module.configured.name,
        state=now.state,
        ready=ready(now),
        reason=" ".join(filter(None, (now.reason.value, checkers))),
        vm=now.vm.value,
        data=data_status(now.record).value,
        maintenance=now.maintenance,
        wanted=now.wanted,
        plan=now.plan.value if now.plan is not None else "",
        peer=peer.state.value if peer is not None else "",
        peer_ready=peer is not None and peer.ready,
        in_sync=now.mirror is not None and now.mirror.in_sync,
        mirror=module.mirror_says,
    )
