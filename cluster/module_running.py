"""The rules of ALONE and PRIM: what follows from what is known while the VM runs here, or is to. Pure code."""

from __future__ import annotations

from dataclasses import replace

from hotpair.cluster import module_rules as rules
from hotpair.cluster import record
from hotpair.cluster.arbitration import Purpose, keeps_epochs
from hotpair.cluster.module_draft import Draft
from hotpair.cluster.module_events import FailTap, HandOver, Look, SetTimer, Timer
from hotpair.cluster.module_values import HowToStop, Mirror, MirrorMode, PeerView, Plan, Reason, Role, State, Vm, ready
from hotpair.cluster.module_waiting import answer_yielding, off, stopped, wait_state
from hotpair.cluster.record import Side


def give_way(draft: Draft, reason: Reason) -> None:
    """Stop running: the tap fails first, so that nothing is acknowledged while the VM goes down."""
    mirror = draft.module.mirror
    if mirror is not None and mirror.role is Role.SOURCE and mirror.mode is not MirrorMode.STOPPING:
        draft.do(FailTap())
        draft.change(mirror=Mirror(Role.SOURCE, MirrorMode.FAILED))
    draft.stop_vm(HowToStop.KILL)
    draft.set_plan(None if draft.module.wanted else Plan.STOP)
    draft.enter(State.WAIT, reason)
    off(draft)


_STOPPING = (Plan.STOP, Plan.STOPSTART, Plan.HANDING_OVER_TO_STOP)


def alone_state(draft: Draft) -> None:
    """ALONE: the record is solo, the mirror takes writes without a target or fills one."""
    module = draft.module
    mirror, own = module.mirror, module.record
    if mirror is None and module.plan in _STOPPING:
        stopped(draft)
        return
    if mirror is None:
        if own is not None and own.solo and rules.current(module):
            draft.start_mirror(Role.SOURCE, alone=True)
        else:
            give_way(draft, Reason.DISK_FAILED if own is not None and own.inconsistent else Reason.PEER_UNKNOWN)
        return
    if mirror.mode is MirrorMode.PAIRED or (mirror.mode is MirrorMode.FROZEN and own is not None and own.in_sync):
        draft.enter(State.PRIM)
        prim_state(draft)
        return
    if mirror.role is Role.TARGET or mirror.mode is MirrorMode.FAILED:
        give_way(draft, Reason.PEER_UNKNOWN)
        return
    if module.peer is not None and rules.is_overtaken(module, module.peer):
        give_way(draft, Reason.OUTDATED)
        return
    if mirror.mode is MirrorMode.FROZEN and own is not None and own.solo and not mirror.linked:
        draft.go_alone(None)
        return
    if module.plan is not None:
        _plan_alone(draft, module.plan)
        return
    decided = None if mirror.linked else rules.decision(module)  # linked, the hello has found one side given up
    answer_yielding(draft, decided)
    if decided is not None and rules.must_give_up(module, decided):
        give_way(draft, Reason.SPLIT_LOST)
        return
    if mirror.mode in (MirrorMode.ALONE, MirrorMode.FILLING):
        draft.start_vm()
    if decided is not None:
        draft.because(rules.reason_of(decided, module))
    else:
        draft.because(Reason.UNRELATED if not mirror.linked and rules.is_unrelated(module) else Reason.NOTHING)


def _plan_alone(draft: Draft, plan: Plan) -> None:
    """RESTART and STOP go on here; a swap needs a peer in sync, and is given up without one."""
    if plan in (Plan.SWAP, Plan.HANDING_OVER):
        draft.set_plan(None)
        draft.start_vm()
        return
    if draft.module.vm is not Vm.OFF:
        draft.stop_vm(HowToStop.NORMAL)
        return
    if plan is Plan.RESTART:
        draft.set_plan(None)
        draft.start_vm()
    else:
        stopped(draft)


def prim_state(draft: Draft) -> None:
    """PRIM: the peer holds, or may hold, an identical copy. Nothing is acknowledged without it."""
    module = draft.module
    mirror, own = module.mirror, module.record
    if own is None or own.inconsistent:
        give_way(draft, Reason.DISK_FAILED)
    elif mirror is None:
        _mirror_gone(draft)
    elif mirror.role is Role.TARGET or mirror.mode is MirrorMode.FAILED:
        give_way(draft, Reason.PEER_UNKNOWN)
    elif mirror.mode in (MirrorMode.ALONE, MirrorMode.FILLING):
        draft.enter(State.ALONE)
        alone_state(draft)
    elif mirror.mode is MirrorMode.FROZEN and not (mirror.asked and mirror.linked):
        _frozen(draft)
    elif mirror.mode is MirrorMode.PAIRED:
        _paired(draft)


def _mirror_gone(draft: Draft) -> None:
    """Handed over, stopped, or dead: a dead one is started again and finds the VM's disk still held open."""
    module = draft.module
    assert module.record is not None
    if module.plan is Plan.HANDING_OVER and module.record.last_role == "SECOND":
        draft.set_plan(None)
        draft.enter(State.WAIT, Reason.HANDED_OVER)
        wait_state(draft)
    elif module.plan is Plan.HANDING_OVER_TO_STOP:
        if module.record.last_role == "SECOND" and not module.wanted:
            draft.store(record.mark_outdated(module.record), flush=True)  # the peer may go on alone from here [R3]
        stopped(draft)
    elif module.plan is Plan.STOP and module.vm is Vm.OFF:
        stopped(draft)
    elif module.vm is Vm.OFF:
        draft.set_plan(None)
        draft.enter(State.WAIT, Reason.MEETING if module.plan is None else Reason.HANDOVER_UNKNOWN)
        wait_state(draft)
    else:
        draft.start_mirror(Role.SOURCE)


def _frozen(draft: Draft) -> None:
    """The link is lost and writes are held: ask, make the generation durable, then tell [R3]."""
    module = draft.module
    peer = module.peer
    draft.because(Reason.HANDOVER_UNKNOWN if module.plan in _HANDING_OVER else Reason.LINK_LOST)
    if module.plan in (Plan.STOP, Plan.HANDING_OVER_TO_STOP):
        draft.stop_vm(HowToStop.KILL)
        if draft.module.vm is Vm.OFF:
            stopped(draft)
        return
    if peer is not None and (rules.is_overtaken(module, peer) or rules.has_taken_over(module, peer)):
        give_way(draft, Reason.OUTDATED)
        return
    if module.request is None:
        draft.unsettle()
        draft.change(request=draft.fresh(), refused=False)  # this question is a new one
        module = draft.module
    if rules.linked(module):
        return  # a hello is under way: the target is about to be inconsistent
    if peer is not None and rules.is_consent(module, peer):
        draft.go_alone(None)
    elif module.asking is None and not module.refused and rules.may_ask(module, Purpose.GO_ALONE):
        draft.ask(Purpose.GO_ALONE)


_HANDING_OVER = (Plan.HANDING_OVER, Plan.HANDING_OVER_TO_STOP)


def _paired(draft: Draft) -> None:
    """The link is there."""
    module = draft.module
    asks_to_run = module.asking is not None and module.asking.purpose is not Purpose.SETTLE
    if asks_to_run or module.request is not None:
        draft.forget_questions()
    if module.plan is not None:
        _plan_paired(draft, module.plan)
        return
    if not module.refused:  # else the reason says what the arbiter answered
        draft.because(Reason.NOTHING)
    draft.start_vm()
    agree(draft)
    _fail_back(draft)


def agree(draft: Draft) -> None:
    """Epoch agreement: not green before the arbiter has moved on in our name, and both records are there [R6].

    Looking where it stands would not do: a claim of before, held up on its way, could move it after the look.
    """
    module = draft.module
    own, mirror = module.record, module.mirror
    if own is None or mirror is None or not mirror.in_sync or mirror.agreeing or module.agreed:
        return
    if rules.is_settled(module):
        peer = module.peer.record if module.peer is not None else None
        if peer is not None and (peer.generation, peer.epoch) == (own.generation, own.epoch):
            draft.change(agreed=True)
            if keeps_epochs(module.settings.kind):
                draft.do(SetTimer(Timer.AGREEMENT, module.settings.agreement_s))
    elif module.asking is None and not module.refused:
        draft.ask(Purpose.SETTLE)


def look(draft: Draft) -> None:
    """Now and then: does the arbiter still stand where the pair does? Green stays until something else is known."""
    module = draft.module
    if module.agreed and module.looking is None and keeps_epochs(module.settings.kind):
        draft.do(Look(draft.fresh()))
        draft.do(SetTimer(Timer.ANSWER, module.settings.ask_timeout_s))
        draft.change(looking=draft.fresh())


def _fail_back(draft: Draft) -> None:
    settings = draft.module.settings
    if settings.automatic_failback and settings.preferred is Side.PEER and not draft.module.maintenance:
        peer = draft.module.peer
        if peer is not None and may_swap(draft, peer):
            draft.set_plan(Plan.SWAP)
            _plan_paired(draft, Plan.SWAP)


def may_swap(draft: Draft, peer: PeerView | None) -> bool:
    """Both green."""
    return ready(draft.module) and peer is not None and peer.state is State.SECOND and peer.ready


def _plan_paired(draft: Draft, plan: Plan) -> None:
    """SWAP, STOP: VM off, then hand over once. A handover that was refused ends the plan."""
    mirror = draft.module.mirror
    assert mirror is not None
    if plan in _HANDING_OVER:
        if mirror.asked or mirror.mode is not MirrorMode.PAIRED:
            return
        if plan is Plan.HANDING_OVER:  # it is certain that the peer has not taken over: go on here
            draft.set_plan(None)
            draft.start_vm()
        else:
            stopped(draft)
        return
    if draft.module.vm is not Vm.OFF:
        draft.stop_vm(HowToStop.NORMAL)
    elif plan is Plan.RESTART:
        draft.set_plan(None)
        draft.start_vm()
    elif mirror.in_sync and mirror.linked:
        draft.do(HandOver())
        draft.set_plan(Plan.HANDING_OVER if plan is Plan.SWAP else Plan.HANDING_OVER_TO_STOP)
        draft.unsettle()
        draft.change(mirror=replace(mirror, asked=True))
    elif plan is Plan.SWAP:
        draft.set_plan(None)
        draft.start_vm()
    else:
        stopped(draft)
