"""One module's state machine at work: events in, effects out through ports, in order. Plain class, no Ray in it.

The state machine decides (cluster/module_machine.py). Here is done what it says: what must be durable is made so before
anything that comes after it in the same step; the rest goes to the mirror, the VM, the peer, the arbiter and the clock,
none of which is waited for. What they do comes back as events, one at a time, in the thread that owns the runner.

A record that cannot be stored ends the runner: nothing that needs it may happen. Whoever owns it makes a new one, which
takes on what is found running, as after a crash.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from hotpair.cluster.arbitration import Claim
from hotpair.cluster.module_events import (
    Agree,
    Ask,
    CancelTimer,
    Commanded,
    Effect,
    Event,
    FailTap,
    GoAlone,
    HandOver,
    Leave,
    Look,
    Now,
    Remember,
    Reply,
    Salvage,
    SendPulse,
    SetTimer,
    StartMirror,
    StartVm,
    StopMirror,
    StopVm,
    Store,
    Tell,
    Timer,
)
from hotpair.cluster.module_machine import step
from hotpair.cluster.module_values import ID_BYTES, HowToStop, Module, PeerView, Reason, Role, Settings, view
from hotpair.cluster.record import Record


class MirrorPort(Protocol):
    """The module's mirror process. Its reports come back as MirrorReported."""

    def start(self, role: Role, *, alone: bool, salvage: bytes | None) -> None:
        """`salvage`: the generation that was given up, and is to be saved before the target may overwrite it."""

    def stop(self) -> None: ...
    def go_alone(self, based_on: Record, record: Record) -> None: ...
    def fail_tap(self) -> None: ...
    def hand_over(self) -> None: ...
    def leave(self) -> None: ...
    def agree(self, based_on: Record, epoch: int, *, mine_first: bool) -> None: ...


class VmPort(Protocol):
    """The module's VM. What its driver sees comes back as VmReported."""

    def start(self) -> None: ...
    def stop(self, how: HowToStop) -> None: ...


class ArbiterPort(Protocol):
    """The answers come back as Answered and Looked."""

    def claim(self, claim: Claim) -> None: ...
    def look(self, request_id: bytes) -> None: ...


class PeerPort(Protocol):
    """The pulses."""

    def say(self, told: PeerView | None) -> None:
        """What the pulses say from now on, the next one at once; None: there are none."""


class TimerPort(Protocol):
    """Time limits come back as TimerFired."""

    def set(self, timer: Timer, after_s: float) -> None: ...
    def cancel(self, timer: Timer) -> None: ...


class Shelf(Protocol):
    """What is durable when the call returns. Each raises NotStored."""

    def store(self, record: Record, *, flush: bool) -> None:
        """`flush`: the module's directory goes to the disk first."""

    def remember(self, *, wanted: bool, maintenance: bool) -> None: ...


class NotStored(Exception):
    """Something could not be made durable; the text says what and why."""


class Diary(Protocol):
    """The module's event log: one entry for each change of state, with what caused it."""

    def changed(self, before: Module, event: Event, after: Module) -> None: ...
    def told(self, reason: Reason) -> None: ...
    def replied(self, command: str, reply: Reply) -> None: ...


class RunnerEnded(Exception):
    """The runner does nothing any more; the text says why."""


class ModuleRunner:
    """One module on this server. Not for several threads; `handle` may be called while it runs: events queue up."""

    def __init__(
        self,
        settings: Settings,
        *,
        mirror: MirrorPort,
        vm: VmPort,
        arbiter: ArbiterPort,
        peer: PeerPort,
        timers: TimerPort,
        shelf: Shelf,
        diary: Diary,
        clock: Callable[[], float],
        random: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self.module = Module(settings=settings)
        self.ended: str = ""
        self._mirror = mirror
        self._vm = vm
        self._arbiter = arbiter
        self._peer = peer
        self._timers = timers
        self._shelf = shelf
        self._diary = diary
        self._clock = clock
        self._random = random
        self._waiting: deque[tuple[Event, Callable[[Reply], None] | None]] = deque()
        self._busy = False
        self._salvage: bytes | None = None
        self._replies: Callable[[Reply], None] | None = None
        self._command = ""

    @property
    def told(self) -> PeerView:
        """What the pulses of this server say of the module."""
        return view(self.module)

    def handle(self, event: Event, replies: Callable[[Reply], None] | None = None) -> None:
        """Take an event; `replies` hears the answer to a command or a checker's action.

        RunnerEnded: it was lost, make a new runner.
        """
        if self.ended:
            raise RunnerEnded(self.ended)
        self._waiting.append((event, replies))
        if self._busy:
            return
        self._busy = True
        try:
            while self._waiting:
                self._take(*self._waiting.popleft())
        except NotStored as error:
            self.ended = str(error)
            self._waiting.clear()
            raise RunnerEnded(self.ended) from error
        finally:
            self._busy = False

    def _take(self, event: Event, replies: Callable[[Reply], None] | None) -> None:
        before = self.module
        self.module, effects = step(before, event, Now(self._clock(), self._random(ID_BYTES)))
        self._replies, self._command = replies, event.command.value if isinstance(event, Commanded) else ""
        if self.module is not before:
            self._diary.changed(before, event, self.module)
        for effect in effects:
            _CARRY_OUT[type(effect)](self, effect)

    # ---- effects

    def _store(self, effect: Store) -> None:
        self._shelf.store(effect.record, flush=effect.flush)

    def _remember(self, effect: Remember) -> None:
        self._shelf.remember(wanted=effect.wanted, maintenance=effect.maintenance)

    def _to_be_salvaged(self, effect: Salvage) -> None:
        self._salvage = effect.generation

    def _start_mirror(self, effect: StartMirror) -> None:
        salvage, self._salvage = self._salvage, None
        self._mirror.start(effect.role, alone=effect.alone, salvage=salvage)

    def _stop_mirror(self, effect: StopMirror) -> None:
        self._mirror.stop()

    def _go_alone(self, effect: GoAlone) -> None:
        self._mirror.go_alone(effect.based_on, effect.record)

    def _fail_tap(self, effect: FailTap) -> None:
        self._mirror.fail_tap()

    def _hand_over(self, effect: HandOver) -> None:
        self._mirror.hand_over()

    def _leave(self, effect: Leave) -> None:
        self._mirror.leave()

    def _agree(self, effect: Agree) -> None:
        self._mirror.agree(effect.based_on, effect.epoch, mine_first=effect.mine_first)

    def _start_vm(self, effect: StartVm) -> None:
        self._vm.start()

    def _stop_vm(self, effect: StopVm) -> None:
        self._vm.stop(effect.how)

    def _ask(self, effect: Ask) -> None:
        self._arbiter.claim(effect.claim)

    def _look(self, effect: Look) -> None:
        self._arbiter.look(effect.request_id)

    def _say(self, effect: SendPulse) -> None:
        self._peer.say(self.told)

    def _set_timer(self, effect: SetTimer) -> None:
        self._timers.set(effect.timer, effect.after_s)

    def _cancel_timer(self, effect: CancelTimer) -> None:
        self._timers.cancel(effect.timer)

    def _tell(self, effect: Tell) -> None:
        self._diary.told(effect.reason)

    def _reply(self, effect: Reply) -> None:
        if self._command:  # what checkers do is said by who keeps them
            self._diary.replied(self._command, effect)
        if self._replies is not None:
            self._replies(effect)


_CARRY_OUT: dict[type[Effect], Callable[[ModuleRunner, Any], None]] = {
    Store: ModuleRunner._store,
    Remember: ModuleRunner._remember,
    Salvage: ModuleRunner._to_be_salvaged,
    StartMirror: ModuleRunner._start_mirror,
    StopMirror: ModuleRunner._stop_mirror,
    GoAlone: ModuleRunner._go_alone,
    FailTap: ModuleRunner._fail_tap,
    HandOver: ModuleRunner._hand_over,
    Leave: ModuleRunner._leave,
    Agree: ModuleRunner._agree,
    StartVm: ModuleRunner._start_vm,
    StopVm: ModuleRunner._stop_vm,
    Ask: ModuleRunner._ask,
    Look: ModuleRunner._look,
    SendPulse: ModuleRunner._say,
    SetTimer: ModuleRunner._set_timer,
    CancelTimer: ModuleRunner._cancel_timer,
    Tell: ModuleRunner._tell,
    Reply: ModuleRunner._reply,
}
