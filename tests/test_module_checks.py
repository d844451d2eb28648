"""Checkers at work on one server: the real runner, machine and rules; mirror, VM, prober and clock are made up."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import Any

import pytest

from hotpair.actors.module_checks import ModuleChecks
from hotpair.actors.module_runner import ModuleRunner, NotStored
from hotpair.cluster.arbitration import Claim, Kind, granted
from hotpair.cluster.checker_rules import Tick
from hotpair.cluster.checks import HERE_ONLY, Checked, Finding, Found, Watch
from hotpair.cluster.configuration import Module as Configured
from hotpair.cluster.configuration import parse_cluster, parse_module
from hotpair.cluster.loop_counter_io import LoopCounter
from hotpair.cluster.module_events import (
    Answered,
    Command,
    Commanded,
    Event,
    MirrorReported,
    PeerHeard,
    PeerLost,
    Reply,
    Started,
    Timer,
    VmReported,
)
from hotpair.cluster.module_values import (
    HowToStop,
    Mirror,
    MirrorMode,
    Module,
    PeerView,
    Reason,
    Role,
    State,
    Vm,
    ready,
)
from hotpair.cluster.record import Record
from hotpair.cluster.simulation.world import BOOT, first_record, settings

CLUSTER = parse_cluster(
    """
    name = "rack7"
    [[servers]]
    name = "a"
    address = "10.0.0.1"
    networks = { lan = "10.0.0.1" }
    [[servers]]
    name = "b"
    address = "10.0.0.2"
    networks = { lan = "10.0.0.2" }
    [arbitration]
    kind = "none"
    """
)
CONFIRM_S = 15.0
BOOT_S = 120.0
WALL = 1.7e9  # the wall clock when the monotonic one is zero
SOLO = replace(first_record(), solo=True, in_sync=False, last_role="ALONE")

TCP = '[checkers.web]\nkind = "tcp"\naddress = "10.0.0.80:80"\n'
ROUTER = '[checkers.router]\nkind = "ping"\naddress = "10.0.0.254"\n'


def configured(checkers: str, top: str = "") -> Configured:
    text = f'directory = "vm/web"\nmirror_port = 5600\n[vm]\ndriver = "command"\n{top}\n{checkers}'
    return parse_module(text, "web", CLUSTER)


class Server:
    """Mirror and VM do at once what they are told; what is watched finds `finds`, else UP, each second.

    `said`: orders and durable writes, in order. `log`: the event log's texts.
    """

    def __init__(
        self,
        checkers: str,
        *,
        top: str = "",
        record: Record = SOLO,
        counter: LoopCounter | None = None,
        now: float = 1000.0,
        wall: float = WALL,
    ) -> None:
        self.now, self._wall = now, wall - now
        self.record = record
        self.said: list[str] = []
        self.log: list[str] = []
        self.finds: dict[str, Finding] = {}
        self.others: dict[str, Module] = {}
        self.watch = Watch(frozenset(), 0)
        self.counter = counter or LoopCounter()
        self.vm_starts = True
        self.counter_fails = False
        self.claims: list[Claim] = []
        self._events: deque[Event] = deque()
        self._tick_at = float("inf")
        module = configured(checkers, top)
        self._prober = {one.name for one in module.checkers if one.kind not in HERE_ONLY}
        self.runner = ModuleRunner(
            settings(Kind.NONE, 0),
            mirror=self, vm=self, arbiter=self, peer=self, timers=self, shelf=self, diary=self,
            clock=lambda: self.now,
        )  # fmt: skip
        self.checks = ModuleChecks(
            module,
            self.runner,
            self.counter,
            watch=lambda watch: setattr(self, "watch", watch),
            tick_after=lambda after_s: setattr(self, "_tick_at", self.now + after_s),
            other=self.others.get,
            shelf=self,
            diary=self,
            clock=lambda: self.now,
            wall_clock=lambda: self._wall + self.now,
        )

    # ---- what happens

    def open(
        self, *, wanted: bool = True, maintenance: bool = False, mirror: Mirror | None = None, vm: Vm = Vm.OFF
    ) -> Server:
        """As the supervisor does it."""
        if mirror is None and vm is Vm.OFF and not maintenance:
            self.checks.hold_before_start()
        return self.take(Started(self.record, wanted, maintenance, BOOT, mirror, vm))

    def take(self, *events: Event) -> Server:
        self._events.extend(events)
        while self._events:
            event = self._events.popleft()
            self.runner.handle(event)
            self.checks.follow(event)
        return self

    def command(self, command: Command) -> Server:
        return self.take(Commanded(command))

    def go_on(self, seconds: float) -> Server:
        """Second by second: reports, then the tick if it is due."""
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            for name in sorted(self.watch.names & self._prober):
                finding = self.finds.get(name, Finding.UP)
                self.checks.hear(Checked(name, self.watch.run, Found(finding, f"found {finding.value}")))
                self.take()
            if self.now >= self._tick_at:
                self._tick_at = float("inf")
                self.checks.hear(Tick())
                self.take()
        return self

    @property
    def module(self) -> Module:
        return self.runner.module

    def is_in(self, state: State) -> bool:
        return self.runner.module.state is state

    @property
    def vm_orders(self) -> list[str]:
        return [word for word in self.said if word.endswith("vm")]

    def finding(self, name: str) -> Finding:
        return next(one.finding for one in self.checks.shown() if one.name == name)

    # ---- ports

    def start(self, role: Role | None = None, *, alone: bool = False, salvage: bytes | None = None) -> None:
        if role is None:
            self.said.append("start vm")
            self._events.append(VmReported(Vm.ON if self.vm_starts else Vm.OFF))
            return
        self.said.append(f"start {role.value}")
        mode = MirrorMode.IDLE if role is Role.TARGET else MirrorMode.ALONE if alone else MirrorMode.FROZEN
        self._events.append(MirrorReported(Mirror(role, mode), self.record))

    def stop(self, how: HowToStop | None = None) -> None:
        self.said.append("stop mirror" if how is None else "stop vm")
        self._events.append(MirrorReported(None, self.record) if how is None else VmReported(Vm.OFF))

    def go_alone(self, based_on: Record, record: Record) -> None:
        self.record = record
        self._events.append(MirrorReported(Mirror(Role.SOURCE, MirrorMode.ALONE), record))

    def hand_over(self) -> None:
        self.said.append("hand over")

    def fail_tap(self) -> None:
        self.said.append("fail tap")

    def leave(self) -> None:
        self.said.append("leave")

    def agree(self, based_on: Record, epoch: int, *, mine_first: bool) -> None:
        raise AssertionError("there are no epochs without an arbiter")

    def claim(self, claim: Claim) -> None:
        self.said.append("claim")
        self.claims.append(claim)

    def look(self, request_id: bytes) -> None:
        raise AssertionError("there is nothing to look at")

    def say(self, told: PeerView) -> None: ...

    def set(self, timer: Timer, after_s: float) -> None: ...

    def cancel(self, timer: Timer) -> None: ...

    def store(self, record: Record, *, flush: bool) -> None:
        self.record = record

    def remember(self, *, wanted: bool, maintenance: bool) -> None: ...

    def store_loop(self, counter: LoopCounter) -> None:
        if self.counter_fails:
            raise NotStored("the state disk is full")
        self.counter = counter
        self.said.append(f"count {len(counter.actions_at)}")

    def changed(self, before: Module, event: Event, after: Module) -> None: ...

    def told(self, reason: Reason) -> None: ...

    def replied(self, command: str, reply: Reply) -> None: ...

    def add(self, kind: str, **fields: Any) -> None:
        assert kind == "checker"
        self.log.append(fields["text"])


def alone(checkers: str, **more: Any) -> Server:
    """Started alone, booted, and looked at once."""
    server = Server(checkers, **more).open().take(PeerLost()).go_on(2)
    assert (server.module.state, server.module.vm) == (State.ALONE, Vm.ON)
    server.said.clear()
    return server


def prim(checkers: str, **more: Any) -> Server:
    record = first_record()
    server = Server(checkers, record=record, **more)
    paired = Mirror(Role.SOURCE, MirrorMode.PAIRED, True, True, True)
    server.open(mirror=paired, vm=Vm.ON)
    server.take(PeerHeard(PeerView(State.SECOND, True, replace(record, last_role="SECOND"), "b"))).go_on(2)
    assert ready(server.module)
    return server


def second(checkers: str) -> Server:
    record = replace(first_record(), last_role="SECOND")
    server = Server(checkers, record=record)
    server.open(mirror=Mirror(Role.TARGET, MirrorMode.PAIRED, True, True))
    return server.take(PeerHeard(PeerView(State.PRIM, True, first_record(), "b"))).go_on(2)


# ---- restart


def test_a_service_that_does_not_answer_has_the_vm_restarted_after_confirm_s() -> None:
    server = alone(TCP).go_on(60)
    server.finds["web"] = Finding.DOWN
    server.go_on(CONFIRM_S)
    assert server.vm_orders == []
    server.go_on(1)
    assert server.vm_orders == ["stop vm", "start vm"]
    assert server.said.index("count 1") < server.said.index("stop vm"), "counted before it is done"
    assert server.log == [
        "web is up: found up",
        "web is down: found down",
        "restart: checker web has been down for 15 s: found down",
    ]


def test_a_guest_is_given_its_time_to_boot() -> None:
    server = Server(TCP)
    server.finds["web"] = Finding.DOWN
    server.open().take(PeerLost()).go_on(BOOT_S + CONFIRM_S - 1)
    assert server.vm_orders == ["start vm"] and server.finding("web") is Finding.DOWN
    server.go_on(2)
    assert server.vm_orders == ["start vm", "stop vm", "start vm"]


def test_what_cannot_be_said_leads_to_nothing() -> None:
    server = alone(TCP).go_on(60)
    server.finds["web"] = Finding.DOWN
    server.go_on(CONFIRM_S - 2)
    server.finds["web"] = Finding.UNKNOWN
    server.go_on(600)
    assert server.vm_orders == [] and server.finding("web") is Finding.UNKNOWN
    assert server.log[-1] == "web cannot be said: found unknown"


def test_a_report_from_before_the_restart_is_too_late() -> None:
    server = alone(TCP).go_on(60)
    run = server.watch.run
    server.command(Command.RESTART)
    assert server.watch.run > run
    server.checks.hear(Checked("web", run, Found(Finding.DOWN, "of the VM before")))
    assert server.finding("web") is Finding.UNKNOWN


def test_an_operators_restart_is_not_taken_for_a_failure() -> None:
    server = alone('[checkers.vm]\nkind = "vm-state"\nconfirm_s = 0\n')
    server.finds["vm"] = Finding.DOWN
    server.runner.handle(Commanded(Command.RESTART))
    server.checks.follow(Commanded(Command.RESTART))
    assert server.watch.names == frozenset()
    server.checks.hear(Tick())
    assert [line for line in server.log if "restart:" in line] == []


# ---- the loop


def test_after_max_loop_the_module_stops_and_says_why() -> None:
    server = alone(TCP)
    server.finds["web"] = Finding.DOWN
    server.go_on(4 * (BOOT_S + CONFIRM_S + 2))
    assert server.vm_orders == ["stop vm", "start vm"] * 3 + ["stop vm"]
    assert (server.module.state, server.module.wanted) == (State.STOP, False)
    reason = server.checks.reason(server.module)
    assert reason.startswith(
        "Stopped: checker web has been down for 15 s: found down; this would be automatic action 4"
    )
    assert server.counter.stopped == reason, "a restarted service says it as well"
    server.command(Command.START).go_on(2)
    assert server.is_in(State.ALONE)
    assert server.counter == LoopCounter(), "somebody has looked after it"


def test_a_restarted_service_goes_on_counting() -> None:
    """On the same boot, and after one, when the monotonic clock begins anew."""
    before = alone(TCP)
    before.finds["web"] = Finding.DOWN
    before.go_on(2 * (BOOT_S + CONFIRM_S + 2))
    assert len(before.counter.actions_at) == 2
    for now in (before.now + 60, 20.0):
        server = alone(TCP, counter=before.counter, now=now, wall=WALL + before.now + 60)
        server.finds["web"] = Finding.DOWN
        server.go_on(3 * (BOOT_S + CONFIRM_S + 2))
        assert server.vm_orders == ["stop vm", "start vm", "stop vm"]
        assert server.is_in(State.STOP)


@pytest.mark.parametrize(("ago_s", "expected"), [(86000.0, "stop"), (86500.0, "restart"), (-86500.0, "stop")])
def test_what_was_counted_before_gets_old(ago_s: float, expected: str) -> None:
    """A clock that was set back since makes it count longer."""
    server = alone(TCP, counter=LoopCounter((WALL - ago_s,) * 3)).go_on(60)
    server.finds["web"] = Finding.DOWN
    server.go_on(CONFIRM_S + 1)
    assert server.log[-1].startswith(f"{expected}: ")


def test_a_count_that_cannot_be_stored_is_no_action() -> None:
    server = alone(TCP).go_on(60)
    server.finds["web"] = Finding.DOWN
    server.counter_fails = True
    with pytest.raises(NotStored, match="the state disk is full"):
        server.go_on(60)
    assert server.vm_orders == []


def test_a_vm_that_does_not_start_is_given_up_in_the_end() -> None:
    server = Server('[checkers.vm]\nkind = "vm-state"\n')
    server.vm_starts = False
    server.finds["vm"] = Finding.DOWN
    server.runner.handle(Started(SOLO, True, False, BOOT, None, Vm.OFF))
    server.runner.handle(PeerLost())
    server._events.clear()
    for event in (MirrorReported(Mirror(Role.SOURCE, MirrorMode.ALONE), server.record),):
        server.runner.handle(event)
        server.checks.follow(event)
    server._events.clear()  # the order is under way: the VM is neither on nor off
    assert server.watch.names == {"vm"}
    server.go_on(5 * (CONFIRM_S + 1))
    assert not server.module.wanted
    refused = [line for line in server.log if "It cannot be done: The VM does not run here." in line]
    assert len(refused) == 3


# ---- swap


def test_a_swap_goes_to_a_peer_that_can_take_over() -> None:
    server = prim(TCP + 'action = "swap"\n').go_on(60)
    server.finds["web"] = Finding.DOWN
    server.go_on(CONFIRM_S + 1)
    assert server.said[-2:] == ["stop vm", "hand over"]


def test_a_swap_that_is_refused_is_tried_again_counted_and_ends_in_a_stop() -> None:
    server = alone(TCP + 'action = "swap"\n').go_on(60)
    server.finds["web"] = Finding.DOWN
    server.go_on(CONFIRM_S + 1)
    assert server.vm_orders == [] and server.is_in(State.ALONE)
    refusal = "It cannot be done: A swap needs PRIM here and SECOND at the peer, both green."
    assert server.log[-1].endswith(refusal)
    server.go_on(2 * CONFIRM_S)
    assert sum(line.endswith(refusal) for line in server.log) == 3
    server.go_on(CONFIRM_S)
    assert server.is_in(State.STOP) and "automatic action 4" in server.checks.reason(server.module)


# ---- where nothing is done


@pytest.mark.parametrize("action", ["stop", "restart", "stopstart", "swap"])
def test_under_maintenance_it_is_seen_and_nothing_is_done(action: str) -> None:
    server = alone(TCP + f'action = "{action}"\n').go_on(60).command(Command.MAINTENANCE_ON)
    server.finds["web"] = Finding.DOWN
    server.said.clear()
    server.go_on(600)
    assert server.said == [] and server.finding("web") is Finding.DOWN
    server.command(Command.MAINTENANCE_OFF).go_on(CONFIRM_S - 1)
    assert server.said == [], "the confirmation begins again"
    server.go_on(2)
    assert server.said != []


@pytest.mark.parametrize("action", ["stop", "restart", "stopstart", "swap", "none"])
def test_on_the_server_that_does_not_run_it_nothing_is_done(action: str) -> None:
    server = second(TCP + f'action = "{action}"\n' + ROUTER + f'action = "{action}"\n')
    assert server.watch.names == {"router"}, "what can be seen before a start is shown"
    server.finds["router"] = Finding.DOWN
    said = list(server.said)
    server.checks.hear(Checked("web", server.watch.run, Found(Finding.DOWN, "somebody else's")))
    server.go_on(600)
    assert server.said == said and ready(server.module)
    assert server.finding("router") is Finding.DOWN and server.finding("web") is Finding.UNKNOWN


def test_a_module_that_is_stopped_is_not_looked_at() -> None:
    server = Server(TCP + ROUTER).open(wanted=False)
    assert server.watch.names == frozenset()


def test_while_the_mirror_holds_the_writes_nothing_is_done() -> None:
    server = prim(TCP).go_on(60)
    server.finds["web"] = Finding.DOWN
    frozen = Mirror(Role.SOURCE, MirrorMode.FROZEN, session=True)
    server.take(MirrorReported(frozen, server.record)).go_on(600)
    assert server.is_in(State.PRIM) and server.vm_orders == []
    assert server.module.plan is None and server.counter == LoopCounter()


def test_a_server_that_is_cut_off_does_not_give_up_at_once_what_it_runs() -> None:
    """Router and peer are lost together: it is for the arbiter to say who goes on, and then for the confirmed rule."""
    server = prim(ROUTER).go_on(60)
    server.finds["router"] = Finding.DOWN
    server.take(MirrorReported(Mirror(Role.SOURCE, MirrorMode.FROZEN, session=True), server.record)).go_on(5)
    assert server.finding("router") is Finding.DOWN and not server.module.held
    assert server.is_in(State.PRIM) and server.vm_orders == []


def test_a_module_that_changes_its_place_begins_anew() -> None:
    server = prim(TCP).go_on(60)
    server.finds["web"] = Finding.DOWN
    server.go_on(CONFIRM_S - 3)
    server.command(Command.SWAP).go_on(600)
    assert server.said[-2:] == ["stop vm", "hand over"] and server.finding("web") is Finding.UNKNOWN


# ---- waiting


def test_a_start_waits_for_what_it_needs() -> None:
    server = Server(ROUTER)
    server.finds["router"] = Finding.DOWN
    server.open(wanted=False).command(Command.START).take(PeerLost())
    assert (server.module.state, server.module.reason) == (State.WAIT, Reason.CHECKER)
    server.go_on(600)
    assert server.said == [], "not even its mirror is started"
    assert server.checks.reason(server.module) == "router: found down"
    server.finds["router"] = Finding.UNKNOWN
    assert server.go_on(10).module.held, "unknown is not up"
    server.finds["router"] = Finding.UP
    server.go_on(1)
    assert server.is_in(State.ALONE) and server.vm_orders == ["start vm"]
    assert server.counter.actions_at == (), "nothing was stopped"


def test_what_runs_waits_when_it_is_confirmed_and_goes_on_when_it_is_up() -> None:
    server = alone(ROUTER).go_on(60)
    server.finds["router"] = Finding.DOWN
    server.go_on(CONFIRM_S - 1)
    assert server.said == []
    server.go_on(2)
    assert server.is_in(State.WAIT) and server.vm_orders == ["stop vm"]
    server.finds["router"] = Finding.UP
    server.go_on(2)
    assert server.is_in(State.ALONE) and server.vm_orders == ["stop vm", "start vm"]
    assert len(server.counter.actions_at) == 1
    assert "Holds the module no longer: up again: router" in server.log


def test_maintenance_lets_go_what_waits() -> None:
    server = Server(ROUTER)
    server.finds["router"] = Finding.DOWN
    server.open().take(PeerLost()).go_on(10)
    assert server.is_in(State.WAIT)
    server.command(Command.MAINTENANCE_ON)
    assert server.is_in(State.ALONE)


def test_a_second_that_would_wait_is_not_green_and_does_not_take_over() -> None:
    server = second(ROUTER)
    assert ready(server.module)
    server.finds["router"] = Finding.DOWN
    server.go_on(2)
    assert server.is_in(State.SECOND) and not ready(server.module)
    server.take(MirrorReported(Mirror(Role.TARGET, MirrorMode.PAIRED, session=True), server.record), PeerLost())
    assert (server.module.state, server.module.reason) == (State.WAIT, Reason.CHECKER)
    assert "claim" not in server.said
    server.finds["router"] = Finding.UP
    server.go_on(2)
    assert "claim" in server.said


def test_an_outdated_copy_that_waits_for_a_checker_lets_its_peer_go_on() -> None:
    server = Server(ROUTER, record=replace(first_record(), last_role="SECOND", in_sync=False, outdated=True)).open()
    assert (server.module.state, server.module.reason) == (State.WAIT, Reason.CHECKER)
    question = b"?" * 16
    server.take(PeerHeard(PeerView(State.PRIM, False, first_record(), BOOT, request=question)))
    assert server.module.consent == question


def test_what_runs_by_a_grant_that_came_late_is_not_held_any_more() -> None:
    """From then on it is for the confirmed rule."""
    server = second(ROUTER)
    server.take(MirrorReported(Mirror(Role.TARGET, MirrorMode.PAIRED, session=True), server.record), PeerLost())
    server.finds["router"] = Finding.DOWN
    server.go_on(1)
    assert server.module.held
    claim = server.claims[-1]
    server.take(Answered(granted(claim, "nobody else is there")))
    assert server.is_in(State.ALONE) and not server.module.held
    server.go_on(CONFIRM_S + 2)
    assert server.is_in(State.WAIT) and server.module.held


def test_a_service_that_finds_the_module_running_does_not_stop_it_for_what_it_has_not_looked_at_yet() -> None:
    server = prim(ROUTER)
    assert not server.module.held and server.said == []


# ---- another module


def test_a_module_waits_for_another_one_on_either_server() -> None:
    server = Server('[checkers.db]\nkind = "module"\nmodule = "db"\n')
    server.open().take(PeerLost()).go_on(12)
    assert server.module.held and server.finding("db") is Finding.UNKNOWN
    there = Module(settings=settings(Kind.NONE, 0), state=State.SECOND)
    server.others["db"] = there
    assert server.go_on(10).finding("db") is Finding.DOWN
    server.others["db"] = replace(there, peer=PeerView(State.PRIM, True, None, "b"))
    assert server.go_on(10).finding("db") is Finding.UP
    assert server.is_in(State.ALONE)
    server.others["db"] = replace(there, state=State.ALONE, vm=Vm.ON)
    assert server.go_on(10).finding("db") is Finding.UP
