"""One seeded life of a pair in simulated time: the real step functions, the world's model, faults at their moments.

One random source and one event queue, so a seed always gives the same life. What the world says is possible
(mirrors.py) gets a delay when it becomes possible and is dropped when it stops being so. Pulses go through the real
failure detector; time in which nothing but equal pulses would happen is skipped. The invariants are looked at after
each event, liveness when the faults have stopped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import replace
from random import Random
from typing import Any

from hotpair.cluster.arbitration import Claim, Kind, keeps_epochs
from hotpair.cluster.checker_rules import Action as CheckerAction
from hotpair.cluster.failure_detector import Change, Doubted, PeerChanged, PeerStatus
from hotpair.cluster.module_events import (
    DURABLE,
    Answered,
    Ask,
    CancelTimer,
    CheckerActed,
    Command,
    Commanded,
    Event,
    Look,
    MirrorReported,
    Now,
    PeerHeard,
    PeerLost,
    SendPulse,
    SetTimer,
    Started,
    StartVm,
    StopVm,
    Timer,
    TimerFired,
    VmReported,
)
from hotpair.cluster.module_events import Doubted as ModuleDoubted
from hotpair.cluster.module_machine import step
from hotpair.cluster.module_values import (
    HowToStop,
    Mirror,
    MirrorMode,
    Module,
    PeerView,
    Role,
    Settings,
    State,
    Vm,
    view,
)
from hotpair.cluster.record import Side
from hotpair.cluster.simulation import actions, invariants, mirrors, telling
from hotpair.cluster.simulation.actions import MATERIAL, Scope
from hotpair.cluster.simulation.faults import (
    END_S,
    IN_SYNC_BY_S,
    QUIET_FROM_S,
    RUNS_BY_S,
    WHOLE,
    Fault,
    Plan,
)
from hotpair.cluster.simulation.pulses import NETWORKS, PULSE_S, Datagram, Ear, Paths
from hotpair.cluster.simulation.watch import Result, Violation, Watch
from hotpair.cluster.simulation.world import (
    BOOT,
    EVERYTHING,
    MOST_WRITES,
    NAMES,
    World,
    change,
    flush,
    pair_apart,
    pair_in_sync,
    settings,
)

FENCE_AFTER_S = 2.0  # with a probe a second and a kill of half a second: below TIMEOUT_S
ASK_TIMEOUT_S = 0.9
RETRY_S = 5.0
BUSY_S = 20.0  # after a fault the VM writes a lot
MOST_EVENTS = 60_000  # a life needs some thousand: more is a loop
ARMED_S = 60.0
TAKES_OVER_S = 15.0  # TIMEOUT_S, one refused claim, and a VM that starts

FIRST_ID = 1000  # above all ids of the worlds' starts
_CONTROL, _MIRROR = "control", "mirror"
_ACTS: dict[str, str] = {
    "mirror report": _CONTROL, "vm report": _CONTROL, "timer": _CONTROL, "answer": _CONTROL, "datagram": _CONTROL,
    "command": _CONTROL, "checker": _CONTROL,
    "receive": _MIRROR, "link loss": _MIRROR, "connect": _MIRROR, "fill": _MIRROR, "fence itself": _MIRROR,
    "write": _MIRROR, "flush": _MIRROR,
}  # fmt: skip
# faults in which the two still hear each other
_LEAVES_PULSES = frozenset(
    {"link fails", "link fails in the middle", "link slow", "mirror dies", "mirror freezes", "vm dies", "arbiter down"}
    | {"arbiter slow", "arbiter not reached", "disk full", "checker"}
)

Key = tuple[Any, ...]


class Simulation:
    """One life. `tell` gets a line for everything that happens; `world` is a start of a story's own."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None, world: World | None = None) -> None:
        self.plan = plan
        self.kind = plan.kind
        self.now = 0.0
        self.result = Result(plan.seed, plan.kind.value)
        self.world: World = world or (pair_apart if plan.starts_apart else pair_in_sync)(plan.kind, 0, 0)
        self._scope = Scope(plan.kind)
        self._tell = tell
        self._random = Random(f"delays {plan.kind.value} {plan.seed}")
        self._settings = [_settings(plan, s) for s in (0, 1)]
        self._queue: list[tuple[float, int, Key, bool]] = []
        self._sequence = 0
        self._pending: dict[Key, int] = {}
        self._possible: dict[Key, None] = {}
        self._last_id = FIRST_ID
        self.paths = Paths()
        self._clock_offset = [0.0, 0.0]
        self._ears: list[Ear | None] = [None, None]
        self._beats = [float("inf"), float("inf")]
        self._views: list[tuple[Module, PeerView] | None] = [None, None]
        self._incarnations = 0
        self._down_until = [0.0, 0.0]
        self._control_until = [0.0, 0.0]
        self._frozen_until = {(part, s): 0.0 for part in (_CONTROL, _MIRROR) for s in (0, 1)}
        self._arbiter_down = 0
        self._arbiter_slow = 0
        self._arbiter_apart = [0, 0]
        self._disk_errors = [0, 0]
        self._disk_full = [0, 0]
        self._death: list[tuple[int, str, float, float] | None] = [None, None]
        self._middle: tuple[int, float, float] | None = None
        self._busy_until = 0.0
        self.watch = Watch(plan.kind, self.world, self.result)
        self.slow_delays = False
        for s in (0, 1):
            module = self.world.servers[s].module
            if module is not None:
                self.world = change(self.world, s, module=replace(module, settings=self._settings[s]))
                self._begin_ear(s)
        for number, fault in enumerate(plan.faults):
            self._later(fault.at_s, ("fault", number))
        self._plan_the_end()
        self._give_id()
        self._refresh()

    # ---- the loop

    def run(self, until_s: float = END_S) -> Result:
        """Go on until then, or until an invariant does not hold."""
        try:
            while not self.result.wrong and self._next(until_s):
                if self.result.events > MOST_EVENTS:
                    raise Violation("it never comes to rest: too many events")
        except Violation as violation:
            self._end_wrong(str(violation))
        except AssertionError as error:
            self._end_wrong(f"assertion: {error}")
        return self.result

    def _end_wrong(self, why: str) -> None:
        self.result.wrong = why
        self.result.at_s = round(self.now, 3)
        if self._tell is not None:
            self._tell(f"{self.now:9.3f} VIOLATION {why}")

    def _next(self, until_s: float) -> bool:
        queue = self._queue
        while queue and queue[0][3] and self._pending.get(queue[0][2]) != queue[0][1]:
            heapq.heappop(queue)
        at = queue[0][0] if queue else until_s
        s = 0 if self._beats[0] <= self._beats[1] else 1
        beat = self._beats[s]
        if beat < at:
            if self._skip(s, min(at, until_s)):
                return True
            if beat > until_s:
                self.now = until_s
                return False
            self.now = max(self.now, beat)
            self._beat(s)
            return True
        if at > until_s or not queue:
            self.now = until_s
            return False
        _, _, key, tracked = heapq.heappop(queue)
        if tracked:
            del self._pending[key]
            self._possible.pop(key, None)
        self.now = max(self.now, at)
        part = _ACTS.get(key[0])
        if part is not None and self.now < self._frozen_until[part, key[1]]:
            self._schedule(key, self._frozen_until[part, key[1]] + self._random.uniform(0.0, 0.05), tracked)
            if tracked and key[0] not in ("timer", "vm off"):
                self._possible[key] = None
            return True
        self.result.events += 1
        before = self.world
        getattr(self, "_on_" + key[0].replace(" ", "_"))(*key[1:])
        self._settle(before, key)
        return True

    def _schedule(self, key: Key, at_s: float, tracked: bool) -> None:
        self._sequence += 1
        if tracked:
            self._pending[key] = self._sequence
        heapq.heappush(self._queue, (at_s, self._sequence, key, tracked))

    def _later(self, at_s: float, key: Key) -> None:
        self._schedule(key, at_s, False)

    def _soon(self, low_s: float, high_s: float, *key: Any) -> None:
        self._schedule(key, self.now + self._random.uniform(low_s, high_s), False)

    def _cancel(self, *key: Any) -> None:
        self._pending.pop(key, None)

    def _say(self, line: str) -> None:
        if self._tell is not None:
            self._tell(f"{self.now:9.3f} {line}")

    def _id(self) -> bytes:
        self._last_id += 1
        return self._last_id.to_bytes(16, "big")

    def _give_id(self) -> None:
        self.world = self.world._replace(fresh=self._id())

    # ---- after each event

    def _settle(self, before: World, key: Key) -> None:
        world = self.world
        if world is before:
            self._refresh()
            return
        if self._tell is not None:
            self._tell_changes(before, key)
        if self._middle is not None and world.queues is not before.queues:
            self._break_in_the_middle(before)
        for s in (0, 1):
            old, new = before.servers[s], world.servers[s]
            if new is old:
                continue
            if old.up and not new.up:
                self._went_down(s)
                world = self.world
            if old.module is not None and new.module is None:
                self._control_ended(s)
                world = self.world
            if new.record is not old.record and new.record is not None:
                if new.record.generation == world.fresh:
                    self._give_id()
                    world = self.world
                if new.record.solo and new.module is not None and new.module.peer is None:
                    world = self.world = self.watch.went_alone_unheard(world, s)
                self.watch.generation(world, s, old.record.generation if old.record else b"", new.record.generation)
            if not new.vm:
                self._cancel("vm off", s)
        self.world = self.watch.check(before, world, self.now)
        self._refresh()

    def _went_down(self, s: int) -> None:
        """A host that goes down takes with it what was on no disk; the peer alone may still hold that."""
        if self._down_until[s] <= self.now:
            self._down_until[s] = self.now + self._random.uniform(5.0, 40.0)
        self._frozen_until[_CONTROL, s] = self._frozen_until[_MIRROR, s] = 0.0
        self.world = self.watch.went_down(self.world, s)

    def _control_ended(self, s: int) -> None:
        self._ears[s] = None
        self._beats[s] = float("inf")
        for timer in Timer:
            self._cancel("timer", s, timer)
        if not keeps_epochs(self.kind):  # what asks is the control plane's child
            kept = tuple(request for request in self.world.requests if request[0] != s)
            self.world = self.world._replace(requests=kept)
        self.world = self.world._replace(answers=tuple(a for a in self.world.answers if a[0] != s))
        if self._control_until[s] <= self.now:
            self._control_until[s] = self.now + self._random.uniform(0.2, 2.0)

    def _refresh(self) -> None:
        """What has become possible gets its moment; what is not possible any more is dropped."""
        found = dict.fromkeys(self._what_is_possible())
        possible = self._possible
        if found.keys() == possible.keys():
            return
        for key in possible:
            if key not in found:
                self._pending.pop(key, None)
        for key in found:
            if key not in possible:
                self._schedule(key, self.now + self._delay(key), True)
        self._possible = found

    def _what_is_possible(self) -> Iterator[Key]:
        world = self.world
        for s in (0, 1):
            server = world.servers[s]
            if not server.up:
                yield ("boot", s)
                continue
            module, mirror = server.module, server.mirror
            if module is None:
                yield ("control starts", s)
            else:
                if (mirror is not module.mirror and mirror != module.mirror) or (
                    server.record is not module.record and server.record != module.record
                ):
                    yield ("mirror report", s)
                if self._vm(s) is not module.vm:
                    yield ("vm report", s)
            if mirror is not None:
                yield from self._mirror_can(s, mirror)

    def _mirror_can(self, s: int, mirror: Mirror) -> Iterator[Key]:
        world = self.world
        if mirror.linked:
            if world.queues[1 - s]:
                yield ("receive", s)
            if world.wire < 0:
                yield ("link loss", s)
        if mirror.role is Role.TARGET:
            return
        if not (self._disk_errors[0] or self._disk_errors[1] or self._disk_full[1 - s]):
            if not mirror.linked and mirrors.can_connect(world, s):
                yield ("connect", s)
            if mirror.mode is MirrorMode.FILLING and mirrors.can_fill(world, s):
                yield ("fill", s)
        server = world.servers[s]
        if server.vm:
            if mirror.mode is MirrorMode.FROZEN:
                yield ("fence itself", s)
            elif mirror.mode in (MirrorMode.ALONE, MirrorMode.FILLING, MirrorMode.PAIRED) and server.held < 0:
                yield ("write", s)
            if server.held < 0 and world.acked & ~self.watch.flushed:
                yield ("flush", s)

    def _delay(self, key: Key) -> float:
        uniform = self._random.uniform
        match key[0]:
            case "boot":
                return max(self._down_until[key[1]] - self.now, 0.0) + uniform(0.0, 1.0)
            case "control starts":
                return max(self._control_until[key[1]] - self.now, 0.0) + uniform(0.05, 0.5)
            case "mirror report":
                return uniform(0.001, 0.03)
            case "vm report":
                module = self.world.servers[key[1]].module
                is_starting = module is not None and module.vm is Vm.STARTING
                return uniform(0.5, 3.0) if is_starting else uniform(0.01, 0.3)
            case "receive":
                return uniform(0.05, 2.0) if self.slow_delays else uniform(0.0001, 0.003)
            case "link loss":
                return uniform(0.0, 0.02) if self.world.link and uniform(0, 1) < 0.7 else uniform(0.5, 1.5)
            case "connect":
                return uniform(0.05, 1.0)
            case "fill":
                return uniform(0.001, 0.02)
            case "fence itself":
                return FENCE_AFTER_S
            case "write":
                busy = self.now < self._busy_until
                return self._random.expovariate(1 / 0.7 if busy else 1 / 12.0)
            case "flush":
                return self._random.expovariate(1 / 4.0 if self.now < self._busy_until else 1 / 40.0)
        raise AssertionError(key)

    # ---- pulses

    def _local(self, s: int) -> float:
        return self._clock_offset[s] + self.now * self.plan.rates[s]

    def _begin_ear(self, s: int) -> None:
        self._incarnations += 1
        self._ears[s] = Ear(s, self._incarnations, self._local(s))
        self._beats[s] = self.now + self._random.uniform(0.0, PULSE_S)

    def _challenge(self) -> int:
        self._incarnations += 1
        return self._incarnations

    def _beat(self, s: int) -> None:
        """Every PULSE_S of its own clock: look at the time, probe the link, pulse."""
        ear = self._ears[s]
        if ear is None:
            self._beats[s] = float("inf")
            return
        thaws = self._frozen_until[_CONTROL, s]
        if self.now < thaws:
            self._beats[s] = thaws + self._random.uniform(0.0, 0.02)
            return
        self._beats[s] = self.now + PULSE_S / self.plan.rates[s]
        before = self.world
        changes = ear.looks(self._local(s), self._challenge())
        if self._link_answers(s):
            changes += ear.hears_link(self._local(s), self._challenge())
        self._heard(s, changes)
        self._send_pulse(s)
        if self.world is not before:
            self.result.events += 1
            self._settle(before, ("beat", s))

    def _link_answers(self, s: int) -> bool:
        mirror = self.world.servers[s].mirror
        lives = self.world.wire >= 0 and mirror is not None and mirror.linked and self.paths.link()
        return lives and max(self._frozen_until[_MIRROR, 0], self._frozen_until[_MIRROR, 1]) <= self.now

    def _heard(self, s: int, changes: list[Change]) -> None:
        for found in changes:
            if self.world.servers[s].module is None:
                return
            if isinstance(found, Doubted):
                self._say(f"{NAMES[s]}: doubts, the clock jumped by {found.gap_s:.1f} s")
                self._step(s, ModuleDoubted())
            elif isinstance(found, PeerChanged) and found.status is PeerStatus.LOST:
                self._say(f"{NAMES[s]}: the peer is lost")
                self._step(s, PeerLost())

    def _send_pulse(self, s: int) -> None:
        ear, module = self._ears[s], self.world.servers[s].module
        if ear is None or module is None:
            return
        ear.counter += 1
        said = self._view(s, module)
        for network in range(len(NETWORKS)):
            if not self.paths.gets_through(network, s):
                continue
            if any(self._random.random() < loss for loss in self.paths.losses):
                continue
            datagram = ear.says(network, said)
            late = max(self.paths.delays, default=0.0)
            times = 2 if late and self._random.random() < 0.3 else 1
            for _ in range(times):
                self._soon(0.0001, late or 0.002, "datagram", 1 - s, datagram)

    def _on_datagram(self, s: int, datagram: Datagram) -> None:
        ear, module = self._ears[s], self.world.servers[s].module
        if ear is None or module is None:
            return
        is_new, answers, changes = ear.hears(datagram, self._local(s), self._challenge())
        self._heard(s, changes)
        module = self.world.servers[s].module
        if is_new and module is not None and module.peer != datagram.view:
            self._step(s, PeerHeard(datagram.view))
        if answers:
            self._send_pulse(s)

    def _skip(self, s: int, until_s: float) -> bool:
        """Leave out the pulses up to then, if they would all say and find the same; the next beat is that of s."""
        if self._beats[s] > until_s or not self.paths.is_calm() or self.slow_delays:
            return False
        hears: list[tuple[tuple[bool, bool], bool]] = []
        for t in (0, 1):
            ear, other = self._ears[t], self._ears[1 - t]
            module, theirs = self.world.servers[t].module, self.world.servers[1 - t].module
            if ear is not None and self.now < self._frozen_until[_CONTROL, t]:
                return False
            speaks = other is not None and theirs is not None
            comes = (speaks and self.paths.gets_through(0, 1 - t), speaks and self.paths.gets_through(1, 1 - t))
            link = self._link_answers(t)
            hears.append((comes, link))
            if ear is None or module is None:
                continue
            if not ear.is_settled(comes, link):
                return False
            if theirs is None or other is None or not any(comes):
                continue
            if ear.peer_incarnation != other.incarnation or module.peer != self._view(1 - t, theirs):
                return False
        period = PULSE_S / self.plan.rates[s]
        last = self._beats[s] + period * int((until_s - self._beats[s]) / period)
        for t in (0, 1):
            ear = self._ears[t]
            if ear is not None:
                ear.skip(self._clock_offset[t] + last * self.plan.rates[t], *hears[t])
                each = PULSE_S / self.plan.rates[t]
                self._beats[t] += each * max(0, int((last - self._beats[t]) / each) + 1)
        self.now = max(self.now, last)
        return True

    def _view(self, s: int, module: Module) -> PeerView:
        known = self._views[s]
        if known is None or known[0] is not module:
            known = self._views[s] = (module, view(module))
        return known[1]

    # ---- the control plane

    def _step(self, s: int, event: Event) -> None:
        """One step of the real machine, and its effects; it may die, or its host, between two of them."""
        module = self.world.servers[s].module or Module(settings=self._settings[s])
        module, effects = step(module, event, Now(self.now, self._id()))
        if self._tell is not None and effects:
            names = ", ".join(telling.name(effect) for effect in effects)
            self._say(f"{NAMES[s]}: {telling.name(event)} -> {module.state.value}: {names}")
        if isinstance(event, Commanded) and event.command in actions._OVERRIDES and actions._is_accepted(effects):
            forced = self.world.forced or event.command is Command.PRIM_FORCE
            self.world = self.world._replace(overridden=True, forced=forced)
            self.result.overridden = True
        self.world = change(self.world, s, module=module)
        death = self._death[s]
        material = sum(isinstance(effect, MATERIAL) for effect in effects)
        if death is not None and self.now > death[3]:
            death = self._death[s] = None
        done = 0
        for effect in effects:
            if death is not None and material > death[0] and done == death[0]:
                self._die_between(s, death)
                return
            if self._disk_errors[s] and isinstance(effect, DURABLE):
                self._say(f"{NAMES[s]}: {telling.name(effect)} fails, the control plane ends")
                self.world = change(self.world, s, module=None)
                return
            done += isinstance(effect, MATERIAL)
            self._do(s, effect)

    def _break_in_the_middle(self, before: World) -> None:
        """Count the messages that are no writes; with the last one the link fails, before or after it is read."""
        assert self._middle is not None
        left, length_s, until_s = self._middle
        for s in (0, 1):
            queue = self.world.queues[s]
            if len(queue) > len(before.queues[s]) and queue[-1][0] not in ("write", "applied"):
                left -= 1
        self._middle = (left, length_s, until_s) if self.now < until_s else None
        if left <= 0 and self._middle is not None:
            self._middle = None
            fault = Fault(self.now, "link fails", 0, length_s)
            self._soon(0.0, 0.004, "break", fault)

    def _on_break(self, fault: Fault) -> None:
        self._begin_fault(fault)

    def _die_between(self, s: int, death: tuple[int, str, float, float]) -> None:
        done, who, length_s, _ = death
        self._death[s] = None
        self._say(f"{NAMES[s]}: after {done} effects the {who} dies")
        self._happened("death between two effects")
        if who == "server":
            self._lose_power(s, length_s)
        else:
            self._control_until[s] = self.now + length_s
            self.world = change(self.world, s, module=None)

    def _do(self, s: int, effect: Any) -> None:
        match effect:
            case SetTimer():
                after_s = effect.after_s / self.plan.rates[s]
                self._schedule(("timer", s, effect.timer), self.now + after_s, True)
            case CancelTimer():
                self._cancel("timer", s, effect.timer)
            case SendPulse():
                self._send_pulse(s)
            case StopVm() if effect.how is HowToStop.NORMAL:
                if not self.world.servers[s].vm or ("vm off", s) in self._pending:
                    return
                self._schedule(("vm off", s), self.now + self._random.uniform(0.3, 6.0), True)
            case StartVm():
                self._cancel("vm off", s)
                self.world = actions.do(self.world, s, effect)
            case Ask() | Look():
                self.world = actions.do(self.world, s, effect)
                request = effect.claim if isinstance(effect, Ask) else effect
                self._soon(*self._arbiter_delay(), "arbiter", s, request)
            case _:
                self.world = actions.do(self.world, s, effect)

    def _on_mirror_report(self, s: int) -> None:
        server = self.world.servers[s]
        self._step(s, MirrorReported(server.mirror, server.record))

    def _on_vm_report(self, s: int) -> None:
        self._step(s, VmReported(self._vm(s)))

    def _vm(self, s: int) -> Vm:
        """What its driver finds: a guest that was told to shut down is neither on nor off."""
        if ("vm off", s) in self._pending:
            return Vm.STOPPING
        return Vm.ON if self.world.servers[s].vm else Vm.OFF

    def _on_vm_off(self, s: int) -> None:
        self.world = change(self.world, s, vm=False)

    def _on_timer(self, s: int, timer: Timer) -> None:
        if self.world.servers[s].module is not None:
            self._step(s, TimerFired(timer))

    def _on_boot(self, s: int) -> None:
        self.world = change(self.world, s, up=True)
        self._on_control_starts(s)

    def _on_control_starts(self, s: int) -> None:
        server = self.world.servers[s]
        self._begin_ear(s)
        self._step(s, Started(server.record, server.wanted, server.maintenance, BOOT, server.mirror, self._vm(s)))

    # ---- the arbiter

    def _arbiter_delay(self) -> tuple[float, float]:
        return (0.5, 12.0) if self._arbiter_slow else (0.002, 0.04)

    def _reaches_arbiter(self, s: int) -> bool:
        return not (self._arbiter_down or self._arbiter_apart[s])

    def _on_arbiter(self, s: int, request: Claim | Look) -> None:
        if (s, request) not in self.world.requests:
            return
        if not self._reaches_arbiter(s):
            if self._random.random() < 0.5:
                self._soon(0.5, 10.0, "arbiter", s, request)  # sent again below, long after it was asked
            else:
                kept = tuple(other for other in self.world.requests if other != (s, request))
                self.world = self.world._replace(requests=kept)
            return
        self.world = actions._arbitrate(self.world, s, request, self._scope)
        answer = self.world.answers[-1][1]
        self._soon(*self._arbiter_delay(), "answer", s, answer)
        if self._arbiter_slow:
            self._soon(*self._arbiter_delay(), "answer", s, answer)

    def _on_answer(self, s: int, answer: Answered) -> None:
        self.world = self.world._replace(answers=tuple(a for a in self.world.answers if a != (s, answer)))
        if self.world.servers[s].module is not None and self._reaches_arbiter(s):
            self._step(s, answer)

    # ---- the mirrors and the VM

    def _on_receive(self, s: int) -> None:
        if self._disk_errors[s] or (self._disk_full[s] and self._is_target(s)):
            self._disk_fails(s)
            return
        self.world = mirrors.receive(self.world, s)

    def _is_target(self, s: int) -> bool:
        mirror = self.world.servers[s].mirror
        return mirror is not None and mirror.role is Role.TARGET

    def _on_link_loss(self, s: int) -> None:
        self.world = mirrors.lose_link(self.world, s)

    def _on_connect(self, s: int) -> None:
        self.world = mirrors.connect(self.world, s)

    def _on_fill(self, s: int) -> None:
        self.world = mirrors.fill(self.world, s)

    def _on_fence_itself(self, s: int) -> None:
        self.world = mirrors.fence_itself(self.world, s)

    def _on_write(self, s: int) -> None:
        if self.world.written >= MOST_WRITES:
            return
        if self._disk_errors[s]:
            self._disk_fails(s)
        elif self._disk_full[s]:
            server = self.world.servers[s]
            if server.mirror is not None and server.mirror.mode is MirrorMode.ALONE:
                self.world = change(self.world, s, dirty=server.dirty | EVERYTHING)  # the log is full
        else:
            self.world = mirrors.write(self.world, s)
            self.result.writes += 1

    def _disk_fails(self, s: int) -> None:
        """An error is sticky: a source in sync leaves the module to its peer, a target ends."""
        server = self.world.servers[s]
        mirror, record = server.mirror, server.record
        if mirror is None or record is None:
            return
        if mirror.role is Role.TARGET:
            self.world = mirrors.die(self.world, s)
        elif mirror.mode in (MirrorMode.PAIRED, MirrorMode.FROZEN):
            failed = replace(record, inconsistent=True, in_sync=False)
            self.world = change(mirrors.fail_tap(self.world, s), s, record=failed)

    def _on_flush(self, s: int) -> None:
        """The guest flushes: both copies while there are two, and what was acknowledged is promised for good."""
        world = self.world
        server = world.servers[s]
        if server.mirror is None or self._disk_errors[s]:
            return
        if server.mirror.mode is MirrorMode.PAIRED:
            if world.wire != s or world.queues != ((), ()) or server.held >= 0:
                return
            self.world = change(flush(world, 0, 1), s, dirty=0)
        elif server.mirror.mode in (MirrorMode.ALONE, MirrorMode.FILLING):
            self.world = flush(world, s)
        else:
            return
        self.watch.flushed |= self.world.acked & server.copy

    # ---- faults

    def inject(self, fault: Fault) -> None:
        """The fault happens now; a story's way in."""
        before = self.world
        try:
            self._begin_fault(fault)
            self._settle(before, ("fault",))
        except Violation as violation:
            self._end_wrong(str(violation))

    def keep_down(self, s: int, until_s: float) -> None:
        """A server of a story's start boots then."""
        self._down_until[s] = until_s
        self._pending.pop(("boot", s), None)
        self._possible.pop(("boot", s), None)
        self._refresh()

    def _on_fault(self, number: int) -> None:
        self._begin_fault(self.plan.faults[number])

    def _happened(self, name: str) -> None:
        self.result.faults.append(name)
        self.watch.cause = (name, self.now)
        self._busy_until = self.now + BUSY_S

    def _begin_fault(self, fault: Fault) -> None:
        self._say(f"--- {fault.describe().strip()}")
        s = fault.server
        length = min(fault.length_s, max(QUIET_FROM_S - 10.0 - self.now, 0.05))
        if fault.name not in _LEAVES_PULSES:
            self.watch.deaf_at = max(self.watch.deaf_at, self.now + length)
        if fault.name not in ("death between two effects", "link fails in the middle", "command", "checker"):
            self._happened(fault.name)
        match fault.name:
            case "power cut":
                self._watch_take_over(s, length)
                self._lose_power(s, length)
            case "power cut of both":
                self._lose_power(0, length)
                self._lose_power(1, length * self._random.uniform(0.5, 1.5))
            case "control plane dies":
                self._control_until[s] = self.now + length
                self.world = change(self.world, s, module=None)
            case "mirror dies":
                if self.world.servers[s].mirror is not None:
                    self.world = mirrors.die(self.world, s)
            case "vm dies":
                self.world = change(self.world, s, vm=False)
            case "death between two effects":
                who, after = str(fault.detail).split(" after ")
                self._death[s] = (int(after), who, length, min(self.now + ARMED_S, QUIET_FROM_S - 40.0))
            case "link fails in the middle":
                self._middle = (int(fault.detail), length, self.now + ARMED_S)
            case "control plane freezes":
                self._freeze(_CONTROL, s, length)
            case "mirror freezes":
                self._freeze(_MIRROR, s, length)
            case "server freezes":
                self._freeze(_CONTROL, s, length)
                self._freeze(_MIRROR, s, length)
            case "clock jumps":
                self._clock_offset[s] += float(fault.detail)
            case "disk replaced":
                self._replace_disk(s, length)
            case "command":
                self.command(s, Command(fault.detail))
            case "checker":
                self._check_fails(s, CheckerAction(fault.detail), length)
            case _:
                self._hold_up(fault, +1)
                self._later(self.now + length, ("fault ends", fault))

    def _on_fault_ends(self, fault: Fault) -> None:
        self._say(f"--- ends: {fault.name}")
        self._hold_up(fault, -1)

    def _hold_up(self, fault: Fault, by: int) -> None:
        """Begin (+1) or end (-1) what lasts."""
        paths, s = self.paths, fault.server
        match fault.name:
            case "link fails":
                paths.link_down += by
            case "link slow":
                self.slow_delays = by > 0
            case "partition":
                paths.link_down += by
                for network in paths.blocked:
                    network[0] += by
                    network[1] += by
            case "network fails":
                paths.blocked[int(fault.detail)][0] += by
                paths.blocked[int(fault.detail)][1] += by
            case "one way":
                for number, network in enumerate(paths.blocked):
                    if fault.detail in (number, WHOLE):
                        network[s] += by
            case "pulses lost" | "pulses late":
                values = paths.losses if fault.name == "pulses lost" else paths.delays
                if by > 0:
                    values.append(float(fault.detail))
                else:
                    values.remove(float(fault.detail))
            case "arbiter down":
                self._arbiter_down += by
            case "arbiter slow":
                self._arbiter_slow += by
            case "arbiter not reached":
                self._arbiter_apart[s] += by
            case "disk errors":
                self._disk_errors[s] += by
            case "disk full":
                self._disk_full[s] += by
            case _:
                raise AssertionError(fault)
        link, net = paths.link(), paths.is_whole()
        if (link, net) != (self.world.link, self.world.net):
            wire = self.world.wire if link else -1
            self.world = self.world._replace(link=link, net=net, wire=wire)

    def _watch_take_over(self, s: int, length_s: float) -> None:
        """8: a green SECOND can take over: when PRIM's host alone is lost, and nothing else happens, it does."""
        world = self.world
        module, other = world.servers[s].module, world.servers[1 - s].module
        if module is None or other is None or module.state is not State.PRIM or self.watch.in_sync_since < 0:
            return
        held_up = (
            self._arbiter_down, self._arbiter_slow, *self._arbiter_apart, *self._disk_errors, *self._disk_full,
            self.slow_delays, not self.paths.is_whole(), self._death[1 - s] is not None,
            max(self._frozen_until.values()) > self.now, self.kind is Kind.MANUAL, other.maintenance,
            length_s < TAKES_OVER_S, not other.wanted,
        )  # fmt: skip
        if not any(held_up):
            self._later(self.now + TAKES_OVER_S, ("taken over", 1 - s, len(self.result.faults)))

    def _on_taken_over(self, s: int, faults: int) -> None:
        if len(self.result.faults) == faults and not invariants.runs(self.world):
            raise Violation(f"shown_truly: {NAMES[s]} was shown green and did not take over")

    def _lose_power(self, s: int, length_s: float) -> None:
        """Of what was not flushed some is on the disk and some is not."""
        server = self.world.servers[s]
        self._down_until[s] = max(self._down_until[s], self.now + length_s)
        if not server.up:
            return
        lost = server.volatile & self._random.getrandbits(MOST_WRITES) if server.volatile else 0
        if self._random.random() < 0.5:
            lost = server.volatile
        world = change(self.world, s, copy=server.copy & ~lost, volatile=0)
        record, theirs = server.record, world.servers[1 - s].record
        if record is None or record.solo or theirs is None or theirs.outdated or theirs.inconsistent:
            # the only current copy: as after a power cut of a single machine
            world = world._replace(acked=world.acked & ~(lost & ~self.watch.flushed))
        self.watch.fragile[s] |= lost & world.acked
        union = world.servers[0].copy | world.servers[1].copy
        self.world = actions.crash(world._replace(acked=world.acked & (union | self.watch.flushed)), s)

    def _freeze(self, part: str, s: int, length_s: float) -> None:
        self._frozen_until[part, s] = max(self._frozen_until[part, s], self.now + length_s)
        if part == _MIRROR and length_s > 1.5:
            self._soon(1.0, 1.5, "stall", s)

    def _on_stall(self, s: int) -> None:
        """A mirror that does not answer its probes loses its connection."""
        if self.now < self._frozen_until[_MIRROR, s] and self.world.wire >= 0:
            self.world = self.world._replace(wire=-1)

    def _replace_disk(self, s: int, length_s: float) -> None:
        """The server comes back with an empty one; what only it had is gone by the operator's hand."""
        self._lose_power(s, length_s)
        world = self.world
        other = world.servers[1 - s]
        usable = other.record is not None and not other.record.inconsistent and not other.record.outdated
        if world.acked & ~other.copy or not usable:
            world = world._replace(overridden=True)
            self.result.overridden = True
        self.watch.generations[s].clear()
        self.watch.disk_is_new = True
        self.world = change(world, s, record=None, copy=0, dirty=0, volatile=0)

    def command(self, s: int, what: Command) -> None:
        if self.now < self._frozen_until[_CONTROL, s]:
            self._later(self._frozen_until[_CONTROL, s], ("command", s, what))
        else:
            self._on_command(s, what)

    def _on_command(self, s: int, what: Command) -> None:
        if self.world.servers[s].module is None:
            return
        self._happened(what.value)
        self._step(s, Commanded(what))

    def _check_fails(self, s: int, action: CheckerAction, length_s: float) -> None:
        self._on_checker(s, action)
        if action is CheckerAction.WAIT:
            self._later(self.now + length_s, ("checker", s, None))

    def _on_checker(self, s: int, action: CheckerAction | None) -> None:
        if self.world.servers[s].module is not None:
            self._happened("checker")
            self._step(s, CheckerActed(action))

    # ---- the end: faults have stopped

    def _plan_the_end(self) -> None:
        self._later(QUIET_FROM_S, ("quiet",))
        for at in (470.0, 482.0, 494.0):
            self._later(at, ("operator",))
        self._later(RUNS_BY_S, ("must run",))
        for at in (520.0, 530.0):
            self._later(at, ("operator",))
        self._later(IN_SYNC_BY_S, ("must be in sync",))

    def _on_quiet(self) -> None:
        for s in (0, 1):
            module = self.world.servers[s].module
            if module is None:
                continue
            if module.held:
                self._step(s, CheckerActed(None))
            if module.maintenance:
                self._step(s, Commanded(Command.MAINTENANCE_OFF))
            if self.plan.ends_started and not module.wanted:
                self._step(s, Commanded(Command.START))

    def _on_operator(self) -> None:
        """A split brain, or copies that are not related, are the operator's to end: the second server's is given up."""
        if not invariants.is_operators(self.world):
            return
        self.result.for_operator = True
        for s in (1, 0):
            server, other = self.world.servers[s], self.world.servers[1 - s]
            record, theirs = server.record, other.record
            if server.module is None or record is None or record.inconsistent or not server.wanted or not other.wanted:
                continue
            if theirs is None or theirs.inconsistent or theirs.outdated:
                continue
            if server.module.state in (State.WAIT, State.ALONE):
                self._step(s, Commanded(Command.SECOND_FULL if record.base is None else Command.SECOND))
                return

    def _on_must_run(self) -> None:
        self.watch.must_run(self.world, self.now)

    def _on_must_be_in_sync(self) -> None:
        self.watch.must_be_in_sync(self.world, self.now)

    def _tell_changes(self, before: World, key: Key) -> None:
        for s in (0, 1):
            old, new = before.servers[s], self.world.servers[s]
            if old is not new:
                line, was = telling.describe(self.world, s), telling.describe(before, s)
                if line != was:
                    self._say(f"    {' '.join(str(part) for part in key[:1])} | {line}")
        if before.standing != self.world.standing:
            self._say(f"    arbiter: {self.world.standing}")


def _settings(plan: Plan, s: int) -> Settings:
    preferred = (Side.ME if s == 0 else Side.PEER) if plan.fails_back else Side.NOBODY
    return replace(
        settings(plan.kind, s),
        ask_timeout_s=ASK_TIMEOUT_S,
        retry_s=RETRY_S,
        preferred=preferred,
        automatic_failback=plan.fails_back,
    )


def simulate(plan: Plan, tell: Callable[[str], None] | None = None) -> Result:
    return Simulation(plan, tell).run()
