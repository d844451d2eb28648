"""The rules of STOP, WAIT and SECOND: what follows from what is known while the VM does not run here. Pure code.

Each rule looks at the whole state, not at what has changed, so it is right after a restart and after a lost report.
"""

from __future__ import annotations

from hotpair.cluster import module_rules as rules
from hotpair.cluster import record
from hotpair.cluster.arbitration import Purpose
from hotpair.cluster.module_draft import Draft
from hotpair.cluster.module_events import Leave, SetTimer, Timer
from hotpair.cluster.module_values import HowToStop, Mirror, MirrorMode, PeerView, Plan, Reason, Role, State, Vm
from hotpair.cluster.record import Rule, Side
from hotpair.cluster.split_brain import Decision


def off(draft: Draft) -> bool:
    """See to it that neither VM nor mirror runs; whether that is so. The VM goes first."""
    draft.stop_vm(HowToStop.KILL)
    if draft.module.vm is not Vm.OFF:
        return False
    draft.stop_mirror()
    return draft.module.mirror is None


def stop_state(draft: Draft) -> None:
    """STOP: nothing runs, and the peer is answered."""
    if off(draft):
        consent(draft)


def consent(draft: Draft) -> None:
    """Answer the peer's question, with the mirror closed and the record durable first [R7, R8]."""
    module = draft.module
    peer = module.peer
    if peer is None or peer.request is None or peer.request == module.consent:
        return
    own = module.record
    if rules.may_yield(module, peer):
        assert own is not None
        draft.store(record.mark_outdated(own), flush=True)
    if rules.may_consent(draft.module, peer):
        draft.change(consent=peer.request)


def wait_state(draft: Draft) -> None:
    """WAIT: find the rule that lets the module go on."""
    module = draft.module
    mirror = module.mirror
    if mirror is not None and mirror.role is Role.TARGET and is_served(mirror):
        draft.enter(State.SECOND)
        return
    if mirror is not None and mirror.role is Role.SOURCE and mirror.mode in _GOING and not module.held:
        draft.enter(State.PRIM if mirror.mode is MirrorMode.PAIRED else State.ALONE)
        return
    if module.vm is not Vm.OFF or (mirror is not None and mirror.mode is MirrorMode.FAILED):
        off(draft)
        return
    if mirror is not None and mirror.mode in (MirrorMode.STARTING, MirrorMode.STOPPING):
        return
    if module.held:
        draft.because(Reason.CHECKER)
        draft.stop_mirror()
        if draft.module.mirror is None:
            consent(draft)  # it has nothing to lose by it if it is outdated
        return
    if module.asking is not None and module.asking.purpose in (Purpose.OPERATOR, Purpose.OPERATOR_FORCED):
        return
    if module.peer is None:
        _without_peer(draft)
    else:
        _with_peer(draft, module.peer)


_GOING = (MirrorMode.FILLING, MirrorMode.ALONE, MirrorMode.PAIRED)


def is_served(target: Mirror) -> bool:
    """A target that is in sync (its session may be resumed), or being copied to just now."""
    return target.mode is MirrorMode.PAIRED or (target.mode is MirrorMode.FILLING and target.linked)


def _without_peer(draft: Draft) -> None:
    """Starting without the peer, or SECOND's take-over: by the arbiter, or not at all."""
    module = draft.module
    if module.request is not None or module.yields is not None:
        draft.change(request=None, yields=None)
    if module.listening and rules.purpose_of(module) is not Purpose.SOLO_START:
        draft.because(Reason.PEER_UNKNOWN)  # not heard yet is not lost
        return
    if module.mirror is not None and module.mirror.role is Role.TARGET:
        draft.stop_mirror()  # its session is closed before anything is asked
        return
    if module.mirror is not None and not rules.frozen(module):
        return
    purpose = rules.purpose_of(module)
    if purpose is None:
        draft.because(_why_not(draft))
    elif purpose is Purpose.SOLO_START and rules.may_start_solo_at_once(module):
        draft.go_alone(None)
    elif not rules.may_ask(module, purpose):
        draft.because(Reason.NOT_ASKED)
    elif module.asking is None and not module.refused and not rules.linked(module):
        draft.ask(purpose)


def _why_not(draft: Draft) -> Reason:
    own = draft.module.record
    if own is None:
        return Reason.PEER_UNKNOWN
    if own.inconsistent:
        return Reason.INCONSISTENT
    if own.outdated:
        return Reason.OUTDATED
    return Reason.MAINTENANCE if draft.module.maintenance and own.in_sync else Reason.PEER_UNKNOWN


_UNDECIDED = {
    Rule.NO_RECORD: Reason.NO_RECORD,
    Rule.BOTH_INCONSISTENT: Reason.BOTH_INCONSISTENT,
    Rule.UNRELATED: Reason.UNRELATED,
    Rule.REFUSED: Reason.REFUSED_COPY,
}


def _with_peer(draft: Draft, peer: PeerView) -> None:
    """The peer answers, so the arbiter has no say: meet it, or have its consent."""
    if draft.module.asking is not None or draft.module.refused:
        draft.forget_questions()
        draft.change(refused=False)
    module = draft.module
    own = module.record
    if rules.is_consent(module, peer) and (module.mirror is None or rules.frozen(module)):
        draft.go_alone(None)
        return
    if peer.request is not None and own is not None and not rules.current(module):
        draft.stop_mirror()  # nothing may come in while the peer is let go on alone
        consent(draft)
        draft.because(Reason.OUTDATED if own.outdated else Reason.INCONSISTENT)
        return
    if rules.must_be_outdated(module, peer):
        draft.stop_mirror()
        if draft.module.mirror is None:
            assert own is not None
            draft.store(record.mark_outdated(own), flush=True)
    wants = rules.wants_consent(draft.module, peer)
    if wants and module.request is None:
        draft.change(request=draft.fresh())
    if not wants and module.request is not None:
        draft.change(request=None)
    _propose(draft, peer)


def _propose(draft: Draft, peer: PeerView) -> None:
    """Start the mirror in the role that the table proposes; the mirrors decide at their hello."""
    _clear_outdated(draft)
    module = draft.module
    met = rules.meeting(module, peer)
    if met.rule is Rule.SPLIT_BRAIN:
        _end_split_brain(draft, peer)
        met = rules.meeting(draft.module, peer)
        if met.rule is Rule.SPLIT_BRAIN:
            return
    answer_yielding(draft, None)
    if met.source is Side.NOBODY:
        draft.because(_UNDECIDED[met.rule])
        draft.stop_mirror()
        return
    if peer.state is State.STOP:
        asking = module.request is not None
        draft.because(Reason.PEER_STOPPED if asking else Reason.PEER_NEWER)
        draft.stop_mirror()
        return
    role = Role.SOURCE if met.source is Side.ME else Role.TARGET
    if role is Role.SOURCE and module.record is not None and not rules.current(module):
        draft.because(Reason.OUTDATED)  # nobody's copy is better, and this one is no source: the mirror would refuse
        draft.stop_mirror()
        return
    mirror = draft.module.mirror
    if mirror is not None and mirror.role is not role:
        draft.stop_mirror()
    elif mirror is None:
        draft.start_mirror(role, alone=role is Role.SOURCE and module.record is None and peer.record is None)
    draft.because(Reason.MEETING)


def _end_split_brain(draft: Draft, peer: PeerView) -> None:
    """By the policy the losing side gives its copy up, durably: when nothing runs on it any more, and the peer has said
    since then that its own copy stays."""
    decided = rules.decision(draft.module)
    assert decided is not None
    draft.because(rules.reason_of(decided, draft.module))
    answer_yielding(draft, decided)
    draft.stop_mirror()
    module = draft.module
    if not rules.must_give_up(module, decided):
        draft.change(yields=None)
    elif module.mirror is None and rules.is_kept(module, peer):
        assert module.record is not None and module.vm is Vm.OFF
        draft.change(yields=None)
        draft.store(record.give_up(module.record))
    elif module.mirror is None and module.yields is None:
        draft.change(yields=draft.fresh())


def answer_yielding(draft: Draft, decided: Decision | None) -> None:
    """Say to a peer that asks whether to give its copy up that this one stays, as long as that is so."""
    peer = draft.module.peer
    keeps = peer.yields if peer is not None and decided is not None and decided.stays is Side.ME else None
    if draft.module.keeps != keeps:
        draft.change(keeps=keeps)


def _clear_outdated(draft: Draft) -> None:
    """Outdated towards a peer of the same generation that is outdated or inconsistent as well: it was nobody's [R4]."""
    own, peer = draft.module.record, draft.module.peer
    if own is None or not own.outdated or peer is None or peer.record is None or draft.module.mirror is not None:
        return
    theirs = peer.record
    if theirs.generation == own.generation and not own.inconsistent and (theirs.outdated or theirs.inconsistent):
        draft.store(record.clear_outdated(own))


def second_state(draft: Draft) -> None:
    """SECOND: a target with a connection, or with a session that may be resumed."""
    module = draft.module
    mirror, peer = module.mirror, module.peer
    if module.vm is not Vm.OFF:
        draft.stop_vm(HowToStop.KILL)
    stopping = mirror is not None and mirror.mode is MirrorMode.STOPPING
    if mirror is None or not (stopping or (mirror.role is Role.TARGET and is_served(mirror))):
        draft.enter(State.WAIT, Reason.MEETING)
        wait_state(draft)
        return
    if mirror.linked or mirror.mode is MirrorMode.STOPPING:
        draft.because(Reason.NOTHING)
        return
    if mirror.mode is MirrorMode.PAIRED and (module.listening if peer is None else not _is_left(draft, peer)):
        draft.because(Reason.LINK_LOST)
        return
    draft.stop_mirror()  # the session is closed, never read again
    draft.enter(State.WAIT, Reason.PEER_UNKNOWN)


def _is_left(draft: Draft, peer: PeerView) -> bool:
    return rules.has_gone(draft.module, peer) or rules.is_overtaken(draft.module, peer)


def leave(draft: Draft) -> None:
    """The planned stop of a SECOND: PRIM acknowledges it in the stream, or it stops in sync [R15]."""
    module = draft.module
    mirror = module.mirror
    if mirror is not None and mirror.mode is MirrorMode.PAIRED and mirror.linked and module.plan is Plan.STOP:
        draft.do(Leave())
        draft.do(SetTimer(Timer.LEAVE, module.settings.leave_s))
        draft.set_plan(Plan.LEAVE)
        return
    if mirror is not None and mirror.mode is MirrorMode.PAIRED and mirror.linked and module.plan is Plan.LEAVE:
        return
    stopped(draft)


def stopped(draft: Draft) -> None:
    """Everything down, then STOP, or WAIT again when it is a stopstart or a checker's wait."""
    if not off(draft):
        return
    draft.set_plan(None)
    if draft.module.wanted:
        draft.enter(State.WAIT)
        wait_state(draft)
    else:
        draft.enter(State.STOP, Reason.STOPPED)
        stop_state(draft)
