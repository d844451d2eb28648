"""The guards of the module state machine: each rule of design/protocol.md that it holds up, at one place. Pure code.

[Rn] is the rule of the model behind the protocol: leaving one out has a counterexample (tests/test_explore.py leaves
them out). Held up elsewhere: R1 and R14 in the record's own changes, R10 and the order of R1 in the mirror.
"""

from __future__ import annotations

from hotpair.cluster import arbitration, record, split_brain
from hotpair.cluster.arbitration import Answer, Claim, Purpose, Standing, Verdict
from hotpair.cluster.module_values import MirrorMode, Module, PeerView, Reason, Role, State
from hotpair.cluster.record import Meeting, Record, Rule, Side
from hotpair.cluster.split_brain import Branch, Decision, Why


def meeting(module: Module, view: PeerView) -> Meeting:
    """The table, from both records [R4]; a copy not written since the host's reboot goes before one that was [R11]."""
    settings = module.settings
    return record.meet(
        module.record,
        view.record,
        boot_unchanged(module.record, module.boot),
        boot_unchanged(view.record, view.boot),
        first=settings.first,
        preferred=settings.preferred,
        data_on=settings.data_on,
    )


def boot_unchanged(of: Record | None, boot: str) -> bool:
    """[R11]"""
    return of is None or of.boot == boot


def current(module: Module) -> bool:
    """Whether this copy could be run at all: never an outdated one, never a half-copied one."""
    return record.is_usable(module.record)


def linked(module: Module) -> bool:
    return module.mirror is not None and module.mirror.linked


def frozen(module: Module) -> bool:
    mirror = module.mirror
    return mirror is not None and mirror.role is Role.SOURCE and mirror.mode is MirrorMode.FROZEN


def descends(newer: Record | None, older: Record | None) -> bool:
    """Whether `newer` names the generation of `older` among those before its own."""
    if newer is None or older is None or newer.generation == older.generation:
        return False
    return older.generation in (newer.base, *newer.ancestors)


# ---- asking the arbiter


def purpose_of(module: Module) -> Purpose | None:
    """What for arbitration could be asked in this situation; None: nothing but the peer or the operator helps."""
    own = module.record
    if own is None or not current(module):
        return None
    if module.state is State.PRIM:
        return Purpose.GO_ALONE
    if own.solo:
        return Purpose.SOLO_START
    if not own.in_sync or module.maintenance:
        return None
    return Purpose.GO_ALONE if module.live else Purpose.START_ALONE


def may_ask(module: Module, purpose: Purpose) -> bool:
    """`fence`, `ping` and `none` grant only what was lost live: after a restart the peer may have gone on [R12]."""
    return arbitration.can_grant(module.settings.kind, purpose)


def may_start_solo_at_once(module: Module) -> bool:
    """Without an arbiter that keeps epochs nobody else could have been let on [R13]."""
    kind = module.settings.kind
    return arbitration.asked(kind, Purpose.SOLO_START) is arbitration.Asked.NOT_ASKED


def may_take_command(module: Module) -> bool:
    """An arbiter that keeps epochs must first move its epoch to this server for `prim` [R13]."""
    kind = module.settings.kind
    return arbitration.asked(kind, Purpose.OPERATOR) is arbitration.Asked.NOT_ASKED


def verdict(module: Module, claim: Claim, answer: Answer) -> Verdict:
    """What an answer is worth: only to the claim being waited for, from the record's own epoch [R6]."""
    own = module.record
    if own is not None and own.epoch != claim.epoch:
        return Verdict.IGNORED
    return arbitration.judge(module.settings.kind, claim, answer)


def may_use_grant(module: Module, purpose: Purpose) -> bool:
    """A grant that comes after a reconnect, or to a copy that is outdated by now, is not used [R6].

    Unless the operator has said that there is no better copy.
    """
    return (current(module) or purpose is Purpose.OPERATOR_FORCED) and not linked(module)


# ---- consent


def may_consent(module: Module, view: PeerView) -> bool:
    """Whether this server, its mirror closed, may let the asking peer go on alone [R7].

    A copy that is outdated or inconsistent has nothing to lose.
    """
    own = module.record
    return module.mirror is None and (own is None or own.outdated or own.inconsistent)


def may_yield(module: Module, view: PeerView) -> bool:
    """A stopped server still answers: unless the table makes its copy the newer one, it gives consent [R8].

    Copies of one generation of which neither went on are equal, whoever was primary; unless the peer's host alone has
    rebooted since, which may have cost it acknowledged writes [R11].
    """
    if module.state is not State.STOP or not current(module) or module.mirror is not None:
        return False
    met = meeting(module, view)
    if met.rule is Rule.SAME:
        mine = boot_unchanged(module.record, module.boot)
        return not (mine and not boot_unchanged(view.record, view.boot))
    return met.source is Side.PEER


def is_consent(module: Module, view: PeerView) -> bool:
    """Only the echo of our present request, from a copy that durably cannot run, and with no link to it [R7]."""
    own, theirs = module.record, view.record
    if module.request is None or view.consent != module.request or own is None:
        return False
    return (theirs is None or theirs.outdated or theirs.inconsistent) and current(module) and not linked(module)


def wants_consent(module: Module, view: PeerView) -> bool:
    """In WAIT: the peer does not run, and could let us."""
    if not current(module):
        return False
    theirs, met = view.record, meeting(module, view)
    if view.state is State.STOP:
        return met.source is Side.ME or met.rule is Rule.SAME
    behind = theirs is None or theirs.outdated or theirs.inconsistent
    return behind and met.source is Side.ME and view.state is not State.ALONE and view.state is not State.PRIM


# ---- split brain


def decision(module: Module) -> Decision | None:
    """What the policy says about a split brain; None when there is none, or the peer is not heard."""
    peer, own = module.peer, module.record
    if peer is None or peer.record is None or own is None or meeting(module, peer).rule is not Rule.SPLIT_BRAIN:
        return None
    settings = module.settings
    return split_brain.decide(
        Branch(settings.server, module.state is State.STOP, own, settings.split_brain, module.bytes_changed),
        Branch(settings.peer, peer.state is State.STOP, peer.record, peer.policy, peer.bytes_changed),
    )


def must_give_up(module: Module, decided: Decision) -> bool:
    """Nothing is given up by itself under maintenance."""
    return decided.stays is Side.PEER and not module.maintenance


def is_kept(module: Module, view: PeerView) -> bool:
    """The peer's copy stays, said after this one had stopped: an old pulse may be from before the peer gave its own up.

    Once this copy is given up such a question of the peer is never answered, so not both can be.
    """
    return module.yields is not None and view.keeps == module.yields


def is_given_up(own: Record | None) -> bool:
    """This copy lost a split brain and nothing of it is overwritten yet: the first write of a target ends `solo`."""
    return own is not None and own.solo and own.inconsistent


def is_unrelated(module: Module) -> bool:
    """Both went on and no policy can tell how to end it: after a split brain in which an operator forced one side."""
    return module.peer is not None and meeting(module, module.peer).rule is Rule.UNRELATED


_SPLIT_BRAIN = {
    Why.MANUAL: Reason.SPLIT_BRAIN,
    Why.NO_SPLIT_BRAIN: Reason.SPLIT_BRAIN,
    Why.POLICIES_DIFFER: Reason.SPLIT_POLICIES_DIFFER,
    Why.TIE: Reason.SPLIT_TIE,
    Why.UNKNOWN: Reason.SPLIT_UNKNOWN,
    Why.OUTDATED: Reason.SPLIT_OUTDATED,
    Why.STOPPED: Reason.SPLIT_STOPPED,
}


def reason_of(decided: Decision, module: Module) -> Reason:
    """For the operator."""
    if decided.stays is Side.PEER:
        return Reason.SPLIT_MAINTENANCE if module.maintenance else Reason.SPLIT_LOST
    return Reason.SPLIT_WON if decided.stays is Side.ME else _SPLIT_BRAIN[decided.why]


# ---- what is heard of the peer


def is_overtaken(module: Module, view: PeerView) -> bool:
    """The peer shows a generation that descends from mine, durably: it has gone on without me [R3]."""
    return descends(view.record, module.record)


def must_be_outdated(module: Module, view: PeerView) -> bool:
    """Told only by a generation that is durable at the peer, never by a peer that is about to ask [R3]."""
    own = module.record
    return own is not None and not own.outdated and not own.inconsistent and is_overtaken(module, view)


def has_taken_over(module: Module, view: PeerView) -> bool:
    """The outcome of a handover whose answer was lost: same generation, the peer is PRIM with a higher term [R9]."""
    own, theirs = module.record, view.record
    if own is None or theirs is None or theirs.generation != own.generation:
        return False
    return theirs.term > own.term and theirs.last_role in ("PRIM", "ALONE")


def has_gone(module: Module, view: PeerView) -> bool:
    """In SECOND, the link lost and pulses alive: the peer does not run any more, so nothing is to be resumed."""
    return view.state not in (State.PRIM, State.ALONE)


# ---- the records' changes that need this server's knowledge


def alone(module: Module, fresh: bytes, epoch: int | None) -> Record:
    """The record with which this server goes on alone; `epoch` only from an own grant [R2]."""
    assert module.record is not None
    return record.go_alone(module.record, fresh, granted_epoch=epoch, boot=module.boot)


def overriding(module: Module, fresh: bytes, epoch: int | None) -> Record:
    """The record of `prim --force`: the next synchronisation is a full one."""
    assert module.record is not None
    return record.override(module.record, fresh, granted_epoch=epoch, boot=module.boot)


def after_refusal(own: Record | None, answer: Answer) -> Record | None:
    """A refusal changes nothing in the record: neither the epoch [R2] nor `outdated` [R5]."""
    return own


def outdated_after_leaving(own: Record, is_acknowledged: bool) -> Record:
    """A SECOND that stops is outdated only when PRIM has acknowledged its leaving; else it stops in sync [R15]."""
    return record.mark_outdated(own) if is_acknowledged else own


def is_settled(module: Module) -> bool:
    """Nothing that was asked before this connection can be granted any more [R6]."""
    assert module.record is not None
    return not arbitration.keeps_epochs(module.settings.kind) or module.settled == module.record.epoch


def agreement(own: Record, standing: Standing) -> arbitration.Comparison:
    """The pair's epoch beside the arbiter's [R6]."""
    return arbitration.compare(own.epoch, standing)
