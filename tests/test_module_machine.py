"""The module state machine by itself: its table is total, its steps are pure, and small stories of the protocol."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hotpair.cluster.arbitration import Answer, Kind, Purpose, Standing
from hotpair.cluster.module_document import document
from hotpair.cluster.module_events import (
    DURABLE,
    EVENTS,
    Agree,
    Answered,
    Ask,
    Command,
    Commanded,
    Effect,
    Event,
    GoAlone,
    HandOver,
    Look,
    Looked,
    MirrorReported,
    Now,
    PeerHeard,
    PeerLost,
    Reply,
    SetTimer,
    Started,
    StartMirror,
    StartVm,
    StopMirror,
    StopVm,
    Store,
    Timer,
    TimerFired,
    VmReported,
)
from hotpair.cluster.module_machine import FORBIDDEN, IGNORED, TABLE, step
from hotpair.cluster.module_states import STATES, TRANSITIONS
from hotpair.cluster.module_values import Mirror, MirrorMode, Module, PeerView, Plan, Reason, Role, State, Vm, ready
from hotpair.cluster.record import Record
from hotpair.cluster.simulation.world import BOOT, first_record, named, settings

NOW = Now(0.0, named(99))
DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "states.md"
PAIRED_SOURCE = Mirror(Role.SOURCE, MirrorMode.PAIRED, linked=True, session=True, in_sync=True)
PAIRED_TARGET = Mirror(Role.TARGET, MirrorMode.PAIRED, linked=True, session=True)
FROZEN = Mirror(Role.SOURCE, MirrorMode.FROZEN, session=True)
IN_SYNC = first_record()
SECOND_RECORD = replace(IN_SYNC, last_role="SECOND")
SOLO = replace(
    IN_SYNC, generation=named(2), base=named(1), ancestors=(named(1),), in_sync=False, solo=True, last_role="ALONE"
)


def run(module: Module, *events: Event) -> tuple[Module, list[Effect]]:
    """The state after all events, and the effects of the last one."""
    effects: tuple[Effect, ...] = ()
    for event in events:
        module, effects = step(module, event, NOW)
    return module, list(effects)


def kinds(effects: list[Effect]) -> list[type]:
    return [type(effect) for effect in effects]


def view(state: State, record: Record | None, **fields: object) -> PeerView:
    return replace(PeerView(state, False, record, BOOT), **fields)  # type: ignore[arg-type]


def started(record: Record | None, kind: Kind = Kind.WITNESS, *, wanted: bool = True, server: int = 0) -> Module:
    """A supervisor that has started and heard nothing of its peer for so long that it is lost."""
    at_boot = Started(record, wanted, False, BOOT, None, Vm.OFF)
    module, _ = run(Module(settings=settings(kind, server)), at_boot, PeerLost())
    return module


def prim(kind: Kind = Kind.WITNESS, **fields: object) -> Module:
    whole: dict[str, object] = {
        "record": IN_SYNC, "wanted": True, "boot": BOOT, "state": State.PRIM, "live": True, "mirror": PAIRED_SOURCE,
        "vm": Vm.ON, "agreed": True, "peer": view(State.SECOND, SECOND_RECORD, ready=True),
    }  # fmt: skip
    return Module(settings=settings(kind, 0), **{**whole, **fields})  # type: ignore[arg-type]


def second(kind: Kind = Kind.WITNESS, **fields: object) -> Module:
    whole: dict[str, object] = {
        "record": SECOND_RECORD, "wanted": True, "boot": BOOT, "state": State.SECOND, "live": True,
        "mirror": PAIRED_TARGET, "peer": view(State.PRIM, IN_SYNC, ready=True),
    }  # fmt: skip
    return Module(settings=settings(kind, 1), **{**whole, **fields})  # type: ignore[arg-type]


def asked(effects: list[Effect]) -> Ask:
    return next(effect for effect in effects if isinstance(effect, Ask))


def answer(ask: Ask, *, granted: bool, epoch: int = 1, holder: str | None = None, reachable: bool = True) -> Answered:
    holder = ask.claim.server if granted else holder
    return Answered(
        Answer(
            request_id=ask.claim.request_id, granted=granted, epoch=epoch if reachable else None,
            holder=holder, reason="", reachable=reachable,
        )
    )  # fmt: skip


# ---- the table


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", EVENTS)
def test_every_state_has_an_entry_for_every_event(state: State, event: type) -> None:
    assert callable(TABLE[state][event])


def test_the_table_names_no_event_that_does_not_exist() -> None:
    assert all(set(row) == set(EVENTS) for row in TABLE.values())
    assert set(TABLE) == set(STATES) == set(State)


def test_only_a_second_start_is_forbidden() -> None:
    forbidden = [(state, event) for state in State for event in EVENTS if TABLE[state][event] is FORBIDDEN]
    assert forbidden == [(state, Started) for state in State if state is not State.STOP]
    with pytest.raises(AssertionError):
        step(prim(), Started(IN_SYNC, True, False, BOOT, None, Vm.OFF), NOW)


def test_what_is_ignored_changes_nothing() -> None:
    alone = prim(state=State.ALONE, record=SOLO, mirror=Mirror(Role.SOURCE, MirrorMode.ALONE))
    assert TABLE[State.ALONE][Answered] is IGNORED
    late = answer(Ask(asked(run(prim(), MirrorReported(FROZEN, IN_SYNC))[1]).claim), granted=True)
    assert step(alone, late, NOW) == (alone, ())


def test_every_state_can_be_entered_and_left() -> None:
    for state in State:
        assert any(after is state and before is not state for before, after in TRANSITIONS)
        assert any(before is state and after is not state for before, after in TRANSITIONS)


def test_the_page_about_the_states_is_current() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == document()


def test_a_step_is_a_function_of_its_arguments() -> None:
    module = prim()
    event = MirrorReported(FROZEN, IN_SYNC)
    before = repr(module)
    assert step(module, event, NOW) == step(module, event, NOW)
    assert repr(module) == before


# ---- losing the peer


def test_a_frozen_prim_asks_and_goes_on_only_with_the_grant_and_a_durable_generation() -> None:
    module, effects = run(prim(), MirrorReported(FROZEN, IN_SYNC))
    ask = asked(effects)
    assert (ask.claim.purpose, ask.claim.epoch) == (Purpose.GO_ALONE, 0)
    assert SetTimer(Timer.ANSWER, 5.0) in effects
    module, effects = run(module, answer(ask, granted=True))
    verdict = next(effect for effect in effects if isinstance(effect, GoAlone))
    assert verdict.based_on == IN_SYNC
    assert (verdict.record.solo, verdict.record.epoch, verdict.record.base) == (True, 1, IN_SYNC.generation)
    assert module.state is State.PRIM  # not before the mirror says that it is durable
    module, effects = run(module, MirrorReported(Mirror(Role.SOURCE, MirrorMode.ALONE), verdict.record))
    assert module.state is State.ALONE


def test_a_refused_prim_stops_its_vm_and_its_record_stays() -> None:
    module, effects = run(prim(), MirrorReported(FROZEN, IN_SYNC))
    module, effects = run(module, answer(asked(effects), granted=False, holder="b"))
    assert StopVm in kinds(effects)
    assert Store not in kinds(effects)
    assert (module.state, module.record, module.reason) == (State.WAIT, IN_SYNC, Reason.ARBITER_REFUSED)


def test_an_answer_after_the_session_was_resumed_is_late() -> None:
    module, effects = run(prim(), MirrorReported(FROZEN, IN_SYNC))
    late = answer(asked(effects), granted=True)
    module, effects = run(module, MirrorReported(PAIRED_SOURCE, IN_SYNC), late)
    assert module.state is State.PRIM
    assert GoAlone not in kinds(effects)


def test_second_closes_its_session_before_it_asks() -> None:
    module, effects = run(second(), MirrorReported(replace(PAIRED_TARGET, linked=False), SECOND_RECORD), PeerLost())
    assert StopMirror in kinds(effects)
    assert Ask not in kinds(effects)
    module, effects = run(module, MirrorReported(None, SECOND_RECORD))
    module, effects = run(module, answer(asked(effects), granted=True))
    assert [kind for kind in kinds(effects) if kind in (Store, StartMirror)] == [Store, StartMirror]
    assert module.state is State.ALONE
    assert StartVm not in kinds(effects)  # the mirror comes first


def test_second_waits_while_the_peer_pulses() -> None:
    module, effects = run(second(), MirrorReported(replace(PAIRED_TARGET, linked=False), SECOND_RECORD))
    assert (module.state, module.reason) == (State.SECOND, Reason.LINK_LOST)
    assert effects and Ask not in kinds(effects)


def test_consent_is_the_echo_of_the_present_request_only() -> None:
    module, _ = run(prim(), MirrorReported(FROZEN, IN_SYNC))
    outdated = replace(SECOND_RECORD, outdated=True)
    assert module.request is not None
    module, effects = run(module, PeerHeard(view(State.STOP, outdated, consent=named(98))))
    assert GoAlone not in kinds(effects)
    module, effects = run(module, PeerHeard(view(State.STOP, outdated, consent=module.request)))
    assert GoAlone in kinds(effects)


def test_a_prim_that_is_overtaken_stops() -> None:
    module, _ = run(prim(Kind.NONE, mirror=FROZEN))
    module, effects = run(module, PeerHeard(view(State.ALONE, SOLO)))
    assert module.state is State.WAIT
    assert StopVm in kinds(effects)


# ---- starting without the peer


@pytest.mark.parametrize("kind", [Kind.FENCE, Kind.PING, Kind.NONE, Kind.MANUAL])
def test_a_copy_in_sync_waits_after_a_restart_where_the_arbiter_cannot_know(kind: Kind) -> None:
    module = started(IN_SYNC, kind)
    assert (module.state, module.asking, module.reason) == (State.WAIT, None, Reason.NOT_ASKED)


def test_a_copy_in_sync_asks_the_witness_after_a_restart() -> None:
    module = started(IN_SYNC)
    assert module.asking is not None and module.asking.purpose is Purpose.START_ALONE


def test_a_solo_copy_starts_at_once_without_an_arbiter_that_keeps_epochs() -> None:
    module = started(SOLO, Kind.NONE)
    assert module.state is State.ALONE
    assert module.record is not None and module.record.generation == SOLO.generation


def test_a_solo_copy_has_the_witness_move_on_first() -> None:
    module = started(SOLO)
    assert (module.state, module.mirror) == (State.WAIT, None)
    assert module.asking is not None and module.asking.purpose is Purpose.SOLO_START


@pytest.mark.parametrize("flag", ["outdated", "inconsistent"])
@pytest.mark.parametrize("kind", Kind)
def test_a_bad_copy_never_starts_alone(kind: Kind, flag: str) -> None:
    module = started(replace(IN_SYNC, in_sync=False, **{flag: True}), kind)  # type: ignore[arg-type]
    assert (module.state, module.asking, module.mirror) == (State.WAIT, None, None)


def test_a_stopped_peer_gives_way_durably_before_it_says_so() -> None:
    module = started(SECOND_RECORD, wanted=False, server=1)
    module, effects = run(module, PeerHeard(view(State.WAIT, IN_SYNC, request=named(7))))
    assert isinstance(effects[0], Store) and effects[0].record.outdated and effects[0].flush
    assert module.consent == named(7)


def test_a_stopped_peer_with_newer_data_does_not_give_way() -> None:
    module = started(SOLO, wanted=False)
    module, effects = run(module, PeerHeard(view(State.WAIT, SECOND_RECORD, request=named(7))))
    assert (module.consent, effects) == (None, [])


# ---- commands


def test_a_swap_is_refused_unless_both_are_green() -> None:
    module, effects = run(prim(peer=view(State.SECOND, SECOND_RECORD)), Commanded(Command.SWAP))
    assert any(isinstance(effect, Reply) and not effect.accepted and effect.why for effect in effects)
    assert module.plan is None


def test_a_swap_stops_the_vm_then_hands_over_then_waits() -> None:
    module, effects = run(prim(), Commanded(Command.SWAP))
    assert StopVm in kinds(effects) and HandOver not in kinds(effects)
    module, effects = run(module, VmReported(Vm.OFF))
    assert HandOver in kinds(effects)
    handed_over = replace(IN_SYNC, last_role="SECOND", term=1)
    module, effects = run(module, MirrorReported(None, handed_over))
    assert (module.state, module.plan) == (State.WAIT, None)


def test_a_handover_that_ended_in_going_alone_starts_the_vm_again() -> None:
    """Found by exploration: swap; the peer crashes when asked; granted; the plan was kept and the mirror restarted."""
    mirror = Mirror(Role.SOURCE, MirrorMode.ALONE)
    module = prim(Kind.FENCE, plan=Plan.HANDING_OVER, vm=Vm.OFF, mirror=replace(FROZEN, asked=True))
    module, effects = run(module, MirrorReported(mirror, SOLO))
    assert (module.state, module.plan) == (State.ALONE, None)
    assert StartVm in kinds(effects) and StopMirror not in kinds(effects)


def test_a_stop_of_alone_ends() -> None:
    """Found by exploration: stopstart in ALONE; the mirror that had ended was started again, for ever."""
    module = prim(state=State.ALONE, record=SOLO, mirror=Mirror(Role.SOURCE, MirrorMode.ALONE), vm=Vm.OFF, wanted=False)
    module, effects = run(replace(module, plan=Plan.STOP), VmReported(Vm.OFF))
    assert StopMirror in kinds(effects)
    module, effects = run(module, MirrorReported(None, SOLO))
    assert module.state is State.STOP
    assert StartMirror not in kinds(effects)


def test_a_role_taken_while_waiting_starts_the_vm_in_the_same_step() -> None:
    """Found by exploration: WAIT, going alone by consent; ALONE was entered and nothing ever started the VM."""
    module = replace(started(SOLO, Kind.WITNESS), mirror=Mirror(Role.SOURCE, MirrorMode.STARTING), asking=None)
    module, effects = run(module, MirrorReported(Mirror(Role.SOURCE, MirrorMode.ALONE), SOLO))
    assert module.state is State.ALONE
    assert StartVm in kinds(effects)


def test_prim_is_refused_for_a_bad_copy_and_while_the_peer_runs() -> None:
    for record, peer in (
        (replace(IN_SYNC, outdated=True), None),
        (replace(IN_SYNC, inconsistent=True), None),
        (IN_SYNC, view(State.ALONE, SOLO)),
    ):
        module = replace(started(record, Kind.NONE, wanted=False), peer=peer)
        _, effects = run(module, Commanded(Command.PRIM))
        assert any(isinstance(effect, Reply) and not effect.accepted for effect in effects)


def test_prim_asks_the_arbiter_first_where_it_keeps_epochs() -> None:
    module, effects = run(started(IN_SYNC, wanted=False), Commanded(Command.PRIM))
    assert asked(effects).claim.purpose is Purpose.OPERATOR
    module, effects = run(module, answer(asked(effects), granted=True, epoch=3))
    assert isinstance(effects[0], Store) and effects[0].record.epoch == 3
    assert module.state is State.ALONE


def test_stop_of_a_stopped_module_and_start_of_a_started_one_are_answered() -> None:
    for module, command in ((started(IN_SYNC, wanted=False), Command.STOP), (started(IN_SYNC), Command.START)):
        _, effects = run(module, Commanded(command))
        assert Reply(True) in effects


# ---- what holds for every step


@pytest.mark.parametrize("command", Command)
@pytest.mark.parametrize("module", [prim(), second(), started(IN_SYNC), started(SOLO, wanted=False)])
def test_every_command_is_answered_once(module: Module, command: Command) -> None:
    _, effects = run(module, Commanded(command))
    assert sum(isinstance(effect, Reply) for effect in effects) == 1


@pytest.mark.parametrize("command", Command)
def test_durable_effects_come_first(command: Command) -> None:
    for module in (prim(), second(), started(IN_SYNC), started(SOLO, wanted=False)):
        _, effects = run(module, Commanded(command))
        durable = [isinstance(effect, DURABLE) for effect in effects]
        assert durable == sorted(durable, reverse=True)


def test_a_module_that_was_refused_tries_again_by_a_timer() -> None:
    module = started(IN_SYNC)
    assert module.asking is not None
    module, effects = run(module, answer(Ask(module.asking), granted=False, reachable=False))
    assert module.refused and SetTimer(Timer.RETRY, 5.0) in effects
    module, effects = run(module, TimerFired(Timer.RETRY))
    assert Ask in kinds(effects)


# ---- epoch agreement [R6]


def at_epoch(record: Record, epoch: int) -> Record:
    return replace(record, epoch=epoch)


def settled(epoch: int = 4) -> Module:
    """PRIM that has just moved the arbiter on to this epoch, and has been told that both records are there."""
    module, effects = run(prim(agreed=False, record=at_epoch(IN_SYNC, epoch - 1)), TimerFired(Timer.RETRY))
    claim = asked(effects)
    assert (claim.claim.purpose, claim.claim.epoch) == (Purpose.SETTLE, epoch - 1)
    own = at_epoch(IN_SYNC, epoch)
    return run(
        module,
        answer(claim, granted=True, epoch=epoch),
        MirrorReported(PAIRED_SOURCE, own),
        PeerHeard(view(State.SECOND, at_epoch(SECOND_RECORD, epoch))),
    )[0]


def test_prim_is_green_when_its_own_claim_has_passed_all_older_ones() -> None:
    module, effects = run(prim(agreed=False), TimerFired(Timer.RETRY))
    claim = asked(effects)
    module, effects = run(module, answer(claim, granted=True, epoch=1))
    assert Agree(IN_SYNC, 1, True) in effects
    assert not ready(module)
    module, _ = run(module, MirrorReported(PAIRED_SOURCE, at_epoch(IN_SYNC, 1)))
    assert not ready(module), "the peer's record is not known to be there yet"
    module, effects = run(module, PeerHeard(view(State.SECOND, at_epoch(SECOND_RECORD, 1))))
    assert ready(module)
    assert SetTimer(Timer.AGREEMENT, module.settings.agreement_s) in effects


def test_the_pair_follows_an_arbiter_that_is_ahead_and_asks_again_from_there() -> None:
    module, effects = run(prim(agreed=False), TimerFired(Timer.RETRY))
    module, effects = run(module, answer(asked(effects), granted=False, epoch=7, holder="b"))
    assert Agree(IN_SYNC, 7, False) in effects, "the server that the arbiter names records it first"
    module, effects = run(module, MirrorReported(PAIRED_SOURCE, at_epoch(IN_SYNC, 7)))
    assert asked(effects).claim.epoch == 7
    assert not ready(module)


def test_an_arbiter_that_is_behind_is_an_alarm() -> None:
    module, effects = run(prim(agreed=False, record=at_epoch(IN_SYNC, 5)), TimerFired(Timer.RETRY))
    module, _ = run(module, answer(asked(effects), granted=False, epoch=2, holder="a"))
    assert module.reason is Reason.ARBITER_BEHIND
    assert module.state is State.PRIM and module.vm is Vm.ON and not ready(module)


def test_green_does_not_flicker_while_the_arbiter_is_looked_at() -> None:
    module, effects = run(settled(4), TimerFired(Timer.AGREEMENT))
    look = next(effect for effect in effects if isinstance(effect, Look))
    assert ready(module)
    module, effects = run(module, Looked(look.request_id, Standing(4, "a")))
    assert ready(module)
    assert SetTimer(Timer.AGREEMENT, module.settings.agreement_s) in effects


@pytest.mark.parametrize("standing", [Standing(5, "b"), Standing(3, "a")], ids=["moved on", "restored from a backup"])
def test_an_arbiter_found_elsewhere_is_asked_at_once(standing: Standing) -> None:
    module, effects = run(settled(4), TimerFired(Timer.AGREEMENT))
    look = next(effect for effect in effects if isinstance(effect, Look))
    module, effects = run(module, Looked(look.request_id, standing))
    assert asked(effects).claim.epoch == 4
    assert not ready(module)


@pytest.mark.parametrize("how", ["said", "silent"])
def test_an_arbiter_that_cannot_be_reached_ends_green_and_is_asked_again_later(how: str) -> None:
    module, effects = run(settled(4), TimerFired(Timer.AGREEMENT))
    look = next(effect for effect in effects if isinstance(effect, Look))
    unreached = Looked(look.request_id, None) if how == "said" else TimerFired(Timer.ANSWER)
    module, effects = run(module, unreached)
    assert not ready(module) and module.reason is Reason.ARBITER_AWAY
    assert SetTimer(Timer.RETRY, module.settings.retry_s) in effects
    _, effects = run(module, TimerFired(Timer.RETRY))
    assert asked(effects).claim.purpose is Purpose.SETTLE


def test_a_lost_link_ends_the_claim_and_what_it_settled() -> None:
    module, effects = run(prim(agreed=False), TimerFired(Timer.RETRY))
    late = asked(effects)
    module, frozen = step(module, MirrorReported(FROZEN, IN_SYNC), Now(0.0, named(98)))
    assert asked(list(frozen)).claim.purpose is Purpose.GO_ALONE
    assert run(module, answer(late, granted=True, epoch=1))[0] == module, "that answer is late"
    module, _ = run(settled(4), MirrorReported(FROZEN, at_epoch(IN_SYNC, 4)))
    assert module.settled is None and not module.agreed


def test_a_claim_to_go_alone_does_not_wait_because_an_earlier_look_failed() -> None:
    """Its writes are held: the retry of another question is seconds away, and the VM would be fenced by then."""
    module, effects = run(settled(4), TimerFired(Timer.AGREEMENT), TimerFired(Timer.ANSWER))
    assert module.refused
    _, effects = run(module, MirrorReported(FROZEN, at_epoch(IN_SYNC, 4)))
    assert asked(effects).claim.purpose is Purpose.GO_ALONE
