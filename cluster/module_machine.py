"""The module state machine: who runs the VM. One total table, one step. Pure code.

Knows: the module's state, what is reported of mirror, VM, peer and arbiter, the rules (module_rules.py). Must not know:
Ray, sockets, files, clocks, randomness. Source of the rules: design/protocol.md.

`step(module, event, now)` returns the new state and the effects in order. A handler notes what the event says, then the
state's rule is applied to everything that is known (module_waiting.py, module_running.py): a level, not an edge, so a
lost, late or repeated report does no harm. The table says for every state and every event which handler it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hotpair.cluster import module_rules as rules
from hotpair.cluster.arbitration import Answer, Comparison, Purpose, Verdict
from hotpair.cluster.module_commands import act_for_checker, obey
from hotpair.cluster.module_draft import Draft
from hotpair.cluster.module_events import (
    Agree,
    Answered,
    CancelTimer,
    CheckerActed,
    Commanded,
    Doubted,
    Effect,
    Event,
    Looked,
    MirrorReported,
    Now,
    PeerHeard,
    PeerLost,
    SetTimer,
    Started,
    Timer,
    TimerFired,
    VmReported,
)
from hotpair.cluster.module_running import alone_state, give_way, look, prim_state
from hotpair.cluster.module_values import MirrorMode, Module, Plan, Reason, Role, State, Vm
from hotpair.cluster.module_waiting import leave, second_state, stop_state, stopped, wait_state

Handler = Callable[[Draft, Any], None]


def step(module: Module, event: Event, now: Now) -> tuple[Module, tuple[Effect, ...]]:
    """What the module does about an event. AssertionError for an event that cannot come in this state: a bug."""
    handler = TABLE[module.state][type(event)]
    assert handler is not FORBIDDEN, f"{type(event).__name__} in {module.state.value}"
    if handler is IGNORED:
        return module, ()
    draft = Draft(module, now)
    handler(draft, event)
    _settle(draft)
    return draft.finished()


def FORBIDDEN(draft: Draft, event: Any) -> None:
    """It cannot come in this state: the supervisor has a bug."""
    raise AssertionError(event)


def IGNORED(draft: Draft, event: Any) -> None:
    """It may come, late or repeated, and means nothing in this state."""


# ---- the states' rules

_RULES: dict[State, Callable[[Draft], None]] = {
    State.STOP: stop_state,
    State.WAIT: wait_state,
    State.ALONE: alone_state,
    State.PRIM: prim_state,
    State.SECOND: second_state,
}


MOST_STATES_IN_A_STEP = 5  # no rule leads back to where it came from: each state at most once


def _settle(draft: Draft) -> None:
    """Apply the rules until the state stays: what a new state's rule would do must not wait for another event."""
    for _ in range(MOST_STATES_IN_A_STEP):
        before = draft.module.state
        _apply_rule(draft)
        if draft.module.state is before:
            return
    raise AssertionError(f"the rules do not settle: {draft.before}")


def _apply_rule(draft: Draft) -> None:
    """The state's rule, or the plan's next step where there is nothing to run any more."""
    state, plan = draft.module.state, draft.module.plan
    if plan is None or state not in (State.WAIT, State.SECOND):
        _RULES[state](draft)
    elif plan in (Plan.STOP, Plan.STOPSTART, Plan.LEAVE, Plan.HANDING_OVER_TO_STOP):
        if state is State.SECOND:
            leave(draft)
        else:
            stopped(draft)
    else:
        draft.set_plan(None)  # a swap or a restart of what does not run
        _RULES[state](draft)


# ---- handlers: note what the event says


def adopt(draft: Draft, event: Started) -> None:
    """Starting is recovering: whatever mirror and VM are found running are taken on as they are."""
    mirror, own = event.mirror, event.record
    draft.change(
        record=own,
        wanted=event.wanted,
        maintenance=event.maintenance,
        boot=event.boot,
        mirror=mirror,
        vm=event.vm,
        bytes_changed=event.bytes_changed,
        live=mirror is not None and mirror.session,
        listening=True,
    )
    is_idle = mirror is None and event.vm is Vm.OFF
    if is_idle and not event.wanted:
        draft.enter(State.STOP, Reason.STOPPED)
        return
    draft.enter(_adopted_state(draft.module), Reason.PEER_UNKNOWN)
    if not event.wanted:
        draft.set_plan(Plan.HANDING_OVER_TO_STOP if mirror is not None and mirror.asked else Plan.STOP)
    elif mirror is not None and mirror.asked:
        draft.set_plan(Plan.HANDING_OVER)


def _adopted_state(module: Module) -> State:
    """A source that was in sync may still hold acknowledged writes' VM; one that never was waits for its hello."""
    mirror, own = module.mirror, module.record
    if mirror is None or own is None:
        return State.WAIT
    if mirror.role is Role.TARGET:
        return State.SECOND
    if mirror.mode in (MirrorMode.ALONE, MirrorMode.FILLING):
        return State.ALONE
    if mirror.mode is MirrorMode.PAIRED or (mirror.mode is MirrorMode.FROZEN and module.vm is Vm.ON):
        return State.PRIM
    return State.PRIM if mirror.mode is MirrorMode.FROZEN and mirror.session else State.WAIT


def hear_peer(draft: Draft, event: PeerHeard) -> None:
    draft.change(peer=event.view, listening=False)


def lose_peer(draft: Draft, event: PeerLost) -> None:
    draft.change(peer=None, listening=False)


def hear_mirror(draft: Draft, event: MirrorReported) -> None:
    """The mirror's report, and the record as it has durably written it."""
    mirror, own = event.mirror, event.record
    before = draft.module.mirror
    is_in_sync = mirror is not None and mirror.linked and mirror.in_sync
    if not is_in_sync or before is None or not before.in_sync:
        draft.unsettle()
    elif draft.module.record != own:
        draft.change(agreed=False)
    live = own is not None and own.in_sync and (draft.module.live or (mirror is not None and mirror.session))
    draft.change(mirror=mirror, record=own, live=live, bytes_changed=event.bytes_changed)


def hear_vm(draft: Draft, event: VmReported) -> None:
    draft.change(vm=event.vm)


def take_answer(draft: Draft, event: Answered) -> None:
    """The arbiter's answer, if it is to the claim being waited for [R6]."""
    module = draft.module
    claim = module.asking
    if claim is None:
        return
    verdict = rules.verdict(module, claim, event.answer)
    if verdict is Verdict.IGNORED:
        return
    draft.do(CancelTimer(Timer.ANSWER))
    draft.change(asking=None)
    if claim.purpose is Purpose.SETTLE:
        _take_settled(draft, verdict, event.answer)
        return
    if verdict in (Verdict.GRANTED, Verdict.WITHOUT, Verdict.OVERRIDDEN):
        _granted(draft, claim.purpose, event.answer.epoch if verdict is Verdict.GRANTED else None)
        return
    own = rules.after_refusal(module.record, event.answer)
    if own != module.record and own is not None and module.mirror is None:
        draft.store(own)
    reason = _NOT_GRANTED[verdict]
    if module.state is State.PRIM and verdict is not Verdict.UNREACHABLE:
        give_way(draft, reason)
    _try_later(draft, reason)


_NOT_GRANTED = {
    Verdict.REFUSED: Reason.ARBITER_REFUSED,
    Verdict.BEHIND: Reason.ARBITER_BEHIND,
    Verdict.UNREACHABLE: Reason.ARBITER_UNREACHABLE,
}


def _try_later(draft: Draft, reason: Reason) -> None:
    draft.because(reason)
    draft.change(refused=True)
    draft.retry_later()


def _granted(draft: Draft, purpose: Purpose, epoch: int | None) -> None:
    module = draft.module
    if not rules.may_use_grant(module, purpose):
        return
    if module.mirror is None or rules.frozen(module):
        draft.go_alone(epoch, is_forced=purpose is Purpose.OPERATOR_FORCED)


def _take_settled(draft: Draft, verdict: Verdict, answer: Answer) -> None:
    """The arbiter has moved on in our name: nothing asked before can be granted any more. Or it had moved on before:
    the pair goes there, and asks again from there. The server that it names records its epoch first [R6]."""
    module = draft.module
    own, mirror = module.record, module.mirror
    if own is None or mirror is None or mirror.agreeing:
        return
    if verdict is Verdict.GRANTED:
        draft.change(settled=answer.epoch)
    elif verdict is not Verdict.REFUSED or answer.epoch is None or answer.epoch <= own.epoch:
        _try_later(draft, Reason.ARBITER_BEHIND if verdict is Verdict.BEHIND else Reason.ARBITER_AWAY)
        return
    assert answer.epoch is not None
    draft.do(Agree(own, answer.epoch, answer.holder != module.settings.peer))
    draft.change(mirror=replace(mirror, agreeing=True))


def take_look(draft: Draft, event: Looked) -> None:
    """Whether the arbiter still stands where the pair does; if not, agreement begins anew [R6]."""
    module = draft.module
    if module.looking is None or event.request_id != module.looking or module.record is None:
        return
    draft.do(CancelTimer(Timer.ANSWER))
    draft.change(looking=None)
    if event.standing is None:
        draft.unsettle()  # what is not known to be granted is not shown green
        _try_later(draft, Reason.ARBITER_AWAY)
    elif rules.agreement(module.record, event.standing) is Comparison.EQUAL:
        draft.do(SetTimer(Timer.AGREEMENT, module.settings.agreement_s))
    else:
        draft.unsettle()


def hear_timer(draft: Draft, event: TimerFired) -> None:
    """A time limit is over. One that was cancelled late means nothing."""
    match event.timer:
        case Timer.RETRY:
            draft.change(refused=False)
        case Timer.ANSWER:
            claim = draft.module.asking
            if claim is not None and claim.purpose is Purpose.OPERATOR_FORCED:
                draft.change(asking=None)
                _granted(draft, claim.purpose, None)
            elif claim is not None or draft.module.looking is not None:
                serves = claim is None or claim.purpose is Purpose.SETTLE
                draft.unsettle()
                draft.change(asking=None)
                _try_later(draft, Reason.ARBITER_AWAY if serves else Reason.ARBITER_UNREACHABLE)
        case Timer.AGREEMENT:
            look(draft)
        case Timer.LEAVE:
            if draft.module.plan is Plan.LEAVE:
                draft.set_plan(Plan.STOP)
                draft.stop_mirror()


def hear_command(draft: Draft, event: Commanded) -> None:
    obey(draft, event.command)


def hear_checker(draft: Draft, event: CheckerActed) -> None:
    act_for_checker(draft, event.action)


def doubt(draft: Draft, event: Doubted) -> None:
    """What was asked before the server was suspended is not waited for; the peer may speak before it is asked again."""
    draft.forget_questions()
    draft.change(refused=True, reason=Reason.DOUBTED)
    draft.retry_later()


# ---- the table

_COMMON: dict[type, Handler] = {
    Started: FORBIDDEN,
    PeerHeard: hear_peer,
    PeerLost: lose_peer,
    MirrorReported: hear_mirror,
    VmReported: hear_vm,
    Answered: IGNORED,
    Looked: IGNORED,
    TimerFired: hear_timer,
    Commanded: hear_command,
    CheckerActed: hear_checker,
    Doubted: doubt,
}

TABLE: dict[State, dict[type, Handler]] = {
    State.STOP: {**_COMMON, Started: adopt, TimerFired: IGNORED},
    State.WAIT: {**_COMMON, Answered: take_answer},
    State.ALONE: _COMMON,
    State.PRIM: {**_COMMON, Answered: take_answer, Looked: take_look},
    State.SECOND: _COMMON,
}
