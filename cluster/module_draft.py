"""A step being made: the state so far and the effects so far. Pure code; one lives as long as one step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hotpair.cluster import module_rules as rules
from hotpair.cluster.arbitration import Claim, Purpose
from hotpair.cluster.module_events import (
    DURABLE,
    Ask,
    CancelTimer,
    Effect,
    GoAlone,
    Now,
    Remember,
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
from hotpair.cluster.module_states import TRANSITIONS
from hotpair.cluster.module_values import (
    HowToStop,
    Mirror,
    MirrorMode,
    Module,
    PeerView,
    Plan,
    Reason,
    Role,
    State,
    Vm,
    view,
)
from hotpair.cluster.record import Record


class Draft:
    """Changes go through `change`, so that the state's fields have one writer."""

    def __init__(self, module: Module, now: Now) -> None:
        self.before = module
        self.module = module
        self.now = now
        self._durable: list[Effect] = []
        self._effects: list[Effect] = []

    def change(self, **fields: Any) -> None:
        self.module = replace(self.module, **fields)

    def do(self, effect: Effect) -> None:
        (self._durable if isinstance(effect, DURABLE) else self._effects).append(effect)

    def fresh(self) -> bytes:
        """The step's one new id. Generations, claims, questions and looks are never compared with each other."""
        return self.now.fresh

    def finished(self) -> tuple[Module, tuple[Effect, ...]]:
        """Durable effects first; a pulse at the end when what it says has changed.

        How much a copy has changed waits for the next regular one.
        """
        last: list[Effect] = []
        if self.module.reason is not self.before.reason:
            last.append(Tell(self.module.reason))
        if _told_at_once(self.module) != _told_at_once(self.before):
            last.append(SendPulse())
        return self.module, (*self._durable, *self._effects, *last)

    # ---- changes that belong together

    def enter(self, state: State, reason: Reason = Reason.NOTHING) -> None:
        """Another state: what was asked in the old one is not waited for any more."""
        assert (self.module.state, state) in TRANSITIONS, f"{self.module.state.value} to {state.value}"
        self.forget_questions()
        self.change(state=state, reason=reason, refused=False, keeps=None)

    def forget_questions(self) -> None:
        """Answers that come now are late, and ignored [R6]."""
        self.unsettle()
        module = self.module
        if module.asking is not None:
            self.do(CancelTimer(Timer.ANSWER))
        if module.asking or module.request or module.yields:
            self.change(asking=None, request=None, yields=None)

    def unsettle(self) -> None:
        """Nothing is known of the arbiter's epoch any more, or it has to be moved on again [R6]."""
        module = self.module
        claim = module.asking
        if claim is not None and claim.purpose is Purpose.SETTLE:
            self.do(CancelTimer(Timer.ANSWER))
            self.change(asking=None)
        if module.looking is not None:
            self.do(CancelTimer(Timer.ANSWER))
        if module.looking or module.agreed or module.settled is not None:
            self.change(looking=None, agreed=False, settled=None)

    def because(self, reason: Reason) -> None:
        if self.module.reason is not reason:
            self.change(reason=reason)

    def store(self, record: Record, *, flush: bool = False) -> None:
        assert self.module.mirror is None, "while a mirror process runs, it keeps the record"
        if record != self.module.record:
            self.do(Store(record, flush))
            self.change(record=record)

    def remember(self, *, wanted: bool | None = None, maintenance: bool | None = None) -> None:
        module = self.module
        wanted = module.wanted if wanted is None else wanted
        maintenance = module.maintenance if maintenance is None else maintenance
        if (wanted, maintenance) != (module.wanted, module.maintenance):
            self.do(Remember(wanted, maintenance))
            self.change(wanted=wanted, maintenance=maintenance)

    def start_mirror(self, role: Role, *, alone: bool = False) -> None:
        module = self.module
        assert module.mirror is None
        if role is Role.TARGET and module.record is not None and rules.is_given_up(module.record):
            self.do(Salvage(module.record.generation))
        self.do(StartMirror(role, alone))
        self.change(mirror=Mirror(role, MirrorMode.STARTING))

    def stop_mirror(self) -> None:
        mirror = self.module.mirror
        if mirror is not None and mirror.mode is not MirrorMode.STOPPING:
            self.do(StopMirror())
            self.change(mirror=Mirror(mirror.role, MirrorMode.STOPPING))

    def start_vm(self) -> None:
        if self.module.vm is Vm.OFF:
            self.do(StartVm())
            self.change(vm=Vm.STARTING)

    def stop_vm(self, how: HowToStop) -> None:
        """A kill is repeated over an orderly stop that is under way."""
        vm = self.module.vm
        if vm in (Vm.STARTING, Vm.ON) or (vm is Vm.STOPPING and how is HowToStop.KILL and self.module.plan is not None):
            self.do(StopVm(how))
            self.change(vm=Vm.STOPPING)

    def set_plan(self, plan: Plan | None) -> None:
        if self.module.plan is not plan:
            self.change(plan=plan)

    def retry_later(self) -> None:
        self.do(SetTimer(Timer.RETRY, self.module.settings.retry_s))

    def ask(self, purpose: Purpose) -> None:
        """A claim with a fresh id; its answer counts only while it is waited for [R6]."""
        module, settings = self.module, self.module.settings
        assert module.asking is None
        epoch = module.record.epoch if module.record is not None else 0
        claim = Claim(
            request_id=self.fresh(),
            pair=settings.pair,
            module=settings.module,
            server=settings.server,
            epoch=epoch,
            purpose=purpose,
        )
        self.do(Ask(claim))
        self.do(SetTimer(Timer.ANSWER, settings.ask_timeout_s))
        self.change(asking=claim)
        if purpose is not Purpose.SETTLE and module.reason not in _ASKED_BEFORE:  # nothing waits for a settlement
            self.because(Reason.ASKING)

    def go_alone(self, epoch: int | None, *, is_forced: bool = False) -> None:
        """Ask, make the generation durable, then tell [R3]: the new record is on disk before anything is released.

        A source that holds writes gets it as its verdict, and reports; otherwise the supervisor stores it itself.
        """
        module = self.module
        record = module.record
        assert record is not None and (is_forced or rules.current(module))
        change = rules.overriding if is_forced else rules.alone
        new = change(module, self.fresh(), epoch)
        self.forget_questions()
        if module.mirror is not None:
            assert rules.frozen(module), "only a source that holds its writes is given this verdict"
            self.do(GoAlone(record, new))
            self.change(mirror=Mirror(Role.SOURCE, MirrorMode.STARTING))
            return
        self.store(new)
        self.start_mirror(Role.SOURCE, alone=True)
        self.enter(State.ALONE)


# They say that it is asked again.
_ASKED_BEFORE = (Reason.ARBITER_UNREACHABLE, Reason.ARBITER_REFUSED, Reason.ARBITER_BEHIND)


def _told_at_once(module: Module) -> PeerView:
    said = view(module)
    return said if said.bytes_changed is None else replace(said, bytes_changed=None)
