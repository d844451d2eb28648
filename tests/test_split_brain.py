"""The split brain policies: one answer from both places, never both copies given up, and what the machine does then."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.module_events import (
    DURABLE,
    Command,
    Commanded,
    Effect,
    Event,
    FailTap,
    MirrorReported,
    PeerHeard,
    PeerLost,
    Reply,
    Salvage,
    SendPulse,
    Started,
    StartMirror,
    StartVm,
    StopMirror,
    StopVm,
    Store,
    VmReported,
)
from hotpair.cluster.module_machine import step
from hotpair.cluster.module_values import Mirror, MirrorMode, Module, PeerView, Reason, Role, State, Vm, view
from hotpair.cluster.record import (
    Record,
    Rule,
    Side,
    begin_reintegration_as_target,
    give_up,
    go_alone,
    meet,
    take_over,
)
from hotpair.cluster.simulation.world import BOOT, first_record, named
from hotpair.cluster.simulation.world import settings as settings_of
from hotpair.cluster.split_brain import (
    FORMER_PRIMARY,
    MANUAL,
    MOST_CHANGES,
    WORDS,
    Branch,
    Decision,
    Why,
    decide,
    is_policy,
)
from tests.test_module_machine import NOW, kinds

ME, PEER, NOBODY = Side.ME, Side.PEER, Side.NOBODY
BASE = first_record()
MINE = replace(
    BASE, generation=named(2), base=named(1), ancestors=(named(1),), in_sync=False, solo=True, last_role="ALONE"
)
THEIRS = replace(MINE, generation=named(3), term=1)
A = Branch("a", False, MINE, MANUAL, 10)
B = Branch("b", False, THEIRS, MANUAL, 20)


def under(policy: str, mine: Branch = A, peer: Branch = B) -> Decision:
    """What is decided, and that the peer decides the same."""
    mine, peer = replace(mine, policy=policy), replace(peer, policy=policy)
    decided, other = decide(mine, peer), decide(peer, mine)
    assert (decided.stays, decided.why) == (other.stays.swapped(), other.why)
    return decided


# ---- the decision


def test_manual_leaves_it_to_the_operator() -> None:
    assert under(MANUAL) == Decision(NOBODY, Why.MANUAL)


@pytest.mark.parametrize(
    ("mine", "peer", "expected"),
    [
        (4, 5, Decision(ME, Why.POLICY)),
        (5, 4, Decision(PEER, Why.POLICY)),
        (4, 4, Decision(NOBODY, Why.TIE)),
        (4, 6, Decision(NOBODY, Why.UNKNOWN)),
    ],
)
def test_the_former_primary_has_the_lower_term(mine: int, peer: int, expected: Decision) -> None:
    sides = replace(A, record=replace(MINE, term=mine)), replace(B, record=replace(THEIRS, term=peer))
    assert under(FORMER_PRIMARY, *sides) == expected


@pytest.mark.parametrize("was_primary", [True, False])
def test_going_alone_tells_the_former_primary_from_the_other(was_primary: bool) -> None:
    """The two records made by the record's own changes, from one pair in sync."""
    prim, second = replace(BASE, term=7), replace(BASE, term=7, last_role="SECOND")
    alone = go_alone_of(prim, 2), go_alone_of(second, 3)
    mine, peer = alone if was_primary else alone[::-1]
    decided = under(FORMER_PRIMARY, replace(A, record=mine), replace(B, record=peer))
    assert decided == Decision(ME if was_primary else PEER, Why.POLICY)


def test_when_a_swap_was_cut_off_the_vm_had_written_where_it_ran_before() -> None:
    asking = replace(BASE, term=7)
    taken = take_over(replace(BASE, term=7, last_role="SECOND"), asking)
    mine, peer = go_alone_of(asking, 2), go_alone_of(taken, 3)
    assert under(FORMER_PRIMARY, replace(A, record=mine), replace(B, record=peer)).stays is ME


def go_alone_of(record: Record, generation: int) -> Record:
    return go_alone(record, named(generation))


@pytest.mark.parametrize(
    ("mine", "peer", "expected"),
    [
        (10, 20, Decision(PEER, Why.POLICY)),
        (20, 10, Decision(ME, Why.POLICY)),
        (0, 1, Decision(PEER, Why.POLICY)),
        (7, 7, Decision(NOBODY, Why.TIE)),
        (0, 0, Decision(NOBODY, Why.TIE)),
        (None, 10, Decision(NOBODY, Why.UNKNOWN)),
        (None, None, Decision(NOBODY, Why.UNKNOWN)),
    ],
)
def test_most_changes_compares_what_is_known(mine: int | None, peer: int | None, expected: Decision) -> None:
    assert under(MOST_CHANGES, replace(A, bytes_changed=mine), replace(B, bytes_changed=peer)) == expected


def test_a_named_server_stays_and_a_strange_name_decides_nothing() -> None:
    assert under("server:a") == Decision(ME, Why.POLICY)
    assert under("server:b") == Decision(PEER, Why.POLICY)
    assert under("server:c") == Decision(NOBODY, Why.UNKNOWN)


@pytest.mark.parametrize("policies", list(product((*WORDS, "server:a", "server:b"), repeat=2)))
def test_different_policies_decide_nothing(policies: tuple[str, str]) -> None:
    decided = decide(replace(A, policy=policies[0]), replace(B, policy=policies[1]))
    assert (decided.why is Why.POLICIES_DIFFER) == (policies[0] != policies[1])


def test_a_kept_copy_must_be_usable_and_its_server_must_go_on() -> None:
    assert under("server:b", A, replace(B, is_stopped=True)) == Decision(NOBODY, Why.STOPPED)
    assert under("server:a", A, replace(B, is_stopped=True)) == Decision(ME, Why.POLICY)
    outdated = replace(B, record=replace(THEIRS, outdated=True))
    assert under("server:b", A, outdated) == Decision(NOBODY, Why.OUTDATED)
    assert under("server:a", A, outdated) == Decision(ME, Why.POLICY)


def test_what_is_a_policy() -> None:
    assert all(map(is_policy, (*WORDS, "server:a", "server:" + "n" * 40)))
    assert not any(map(is_policy, ("", "newest", "server:", "server:" + "n" * 41, "server:a b", None, 1, b"manual")))


ids = st.integers(1, 4).map(named)
records = st.builds(
    Record,
    generation=ids,
    ancestors=st.lists(ids, max_size=2).map(tuple),
    base=st.none() | ids,
    term=st.integers(0, 3),
    last_role=st.sampled_from(["ALONE", "PRIM", "SECOND"]),
    in_sync=st.booleans(),
    solo=st.sampled_from([True, True, True, False]),
    inconsistent=st.sampled_from([False, False, False, True]),
    outdated=st.sampled_from([False, False, False, True]),
    boot=st.just(BOOT),
    configuration=st.just(b""),
    root=st.just(b"r" * 16),
)
branches = st.builds(
    Branch,
    server=st.sampled_from(["a", "b"]),
    is_stopped=st.booleans(),
    record=records,
    policy=st.sampled_from([*WORDS, "server:a", "server:b", "server:c"]),
    bytes_changed=st.none() | st.integers(0, 3),
)


@given(branches, branches, st.booleans())
@settings(max_examples=1500, deadline=None)
def test_both_come_to_the_same_and_only_in_a_split_brain(mine: Branch, peer: Branch, same_base: bool) -> None:
    if same_base:
        peer = replace(peer, record=replace(peer.record, base=mine.record.base), policy=mine.policy)
    decided, other = decide(mine, peer), decide(peer, mine)
    assert (decided.stays, decided.why) == (other.stays.swapped(), other.why)
    split = meet(mine.record, peer.record, True, True, first=ME).rule is Rule.SPLIT_BRAIN
    assert (decided.why is Why.NO_SPLIT_BRAIN) == (not split)
    if decided.stays is not NOBODY:
        kept = mine if decided.stays is ME else peer
        assert decided.why is Why.POLICY and split
        assert not (mine.record.inconsistent or peer.record.inconsistent or kept.record.outdated or kept.is_stopped)


moments = st.lists(st.none() | st.integers(0, 5), min_size=1, max_size=5)


def growing(numbers: list[int | None]) -> list[int | None]:
    """Not known, or never less than before."""
    most = 0
    grown: list[int | None] = []
    for number in numbers:
        if number is not None:
            most += number
        grown.append(None if number is None else most)
    return grown


@given(moments, moments, st.data(), st.sampled_from([FORMER_PRIMARY, MOST_CHANGES, "server:a", "server:b"]))
@settings(max_examples=800, deadline=None)
def test_never_are_both_given_up_however_old_the_peers_pulse(
    mine: list[int | None], peer: list[int | None], data: st.DataObject, policy: str
) -> None:
    """Each gives up at its last moment, when nothing runs any more, and has seen any moment of the other."""
    one, other = growing(mine), growing(peer)
    stopped = st.booleans()

    def side(of: Branch, number: int | None) -> Branch:
        return replace(of, policy=policy, bytes_changed=number, is_stopped=data.draw(stopped))

    at_a = decide(side(A, one[-1]), side(B, data.draw(st.sampled_from(other))))
    at_b = decide(side(B, other[-1]), side(A, data.draw(st.sampled_from(one))))
    assert not (at_a.stays is PEER and at_b.stays is PEER)


# ---- what the machine does


def run(module: Module, *events: Event) -> tuple[Module, list[Effect]]:
    """The state after all events, and the effects of the last one. Durable ones come first in each step."""
    effects: tuple[Effect, ...] = ()
    for event in events:
        module, effects = step(module, event, NOW)
        durable = [isinstance(effect, DURABLE) for effect in effects]
        assert durable == sorted(durable, reverse=True)
    return module, list(effects)


def alone(policy: str, **fields: object) -> Module:
    """The first server, alone with its changes; the peer is not heard yet."""
    whole: dict[str, object] = {
        "record": MINE, "wanted": True, "boot": BOOT, "state": State.ALONE,
        "mirror": Mirror(Role.SOURCE, MirrorMode.ALONE), "vm": Vm.ON, "bytes_changed": 10,
    }  # fmt: skip
    return Module(settings=settings_of(Kind.NONE, 0, policy), **{**whole, **fields})  # type: ignore[arg-type]


def peers(policy: str, **fields: object) -> PeerHeard:
    said = PeerView(State.ALONE, True, THEIRS, BOOT, policy=policy, bytes_changed=20)
    return PeerHeard(replace(said, **fields))  # type: ignore[arg-type]


LOST = ["server:b", MOST_CHANGES]
WON = ["server:a", FORMER_PRIMARY]
GONE = MirrorReported(None, MINE, 10)


@pytest.mark.parametrize("policy", LOST)
def test_the_losing_side_stops_its_vm_then_gives_up_durably_then_saves_then_is_copied_to(policy: str) -> None:
    module, effects = run(alone(policy), peers(policy))
    assert (module.state, module.reason) == (State.WAIT, Reason.SPLIT_LOST)
    assert [kind for kind in kinds(effects) if kind in (FailTap, StopVm, Store, StartMirror)] == [FailTap, StopVm]
    failed = Mirror(Role.SOURCE, MirrorMode.FAILED)
    module, effects = run(module, MirrorReported(failed, MINE, 10))
    assert Store not in kinds(effects) and StopMirror not in kinds(effects)
    module, effects = run(module, VmReported(Vm.OFF))
    assert Store not in kinds(effects) and StopMirror in kinds(effects)
    module, effects = run(module, GONE)
    assert Store not in kinds(effects) and SendPulse in kinds(effects)
    assert module.yields == view(module).yields == NOW.fresh
    module, effects = run(module, peers(policy, keeps=named(98)))
    assert Store not in kinds(effects)  # an answer to another question
    module, effects = run(module, peers(policy, keeps=NOW.fresh))
    assert effects[0] == Store(give_up(MINE))
    assert effects[1:3] == [Salvage(MINE.generation), StartMirror(Role.TARGET)]
    assert module.record == give_up(MINE)


@pytest.mark.parametrize("policy", WON)
@pytest.mark.parametrize("state", [State.ALONE, State.WAIT])
def test_the_kept_side_says_so_to_a_peer_that_asks(policy: str, state: State) -> None:
    waiting: dict[str, object] = {} if state is State.ALONE else {"state": state, "mirror": None, "vm": Vm.OFF}
    module, effects = run(alone(policy, **waiting), peers(policy, state=State.WAIT, yields=named(7)))
    assert view(module).keeps == named(7) and SendPulse in kinds(effects)
    module, _ = run(module, peers("server:c", state=State.WAIT))
    assert view(module).keeps is None


@pytest.mark.parametrize(("policy", "own"), [("server:b", MINE), (MANUAL, MINE), ("server:a", give_up(MINE))])
def test_nobody_else_says_so(policy: str, own: Record) -> None:
    waiting = alone(policy, state=State.WAIT, mirror=None, vm=Vm.OFF, record=own)
    module, _ = run(waiting, peers(policy, state=State.WAIT, yields=named(7)))
    assert view(module).keeps is None


def test_what_grows_while_the_vm_goes_down_counts() -> None:
    """The peer had more when the VM was told to stop; in the end this server has: it is the peer's to give up."""
    module, _ = run(alone(MOST_CHANGES), peers(MOST_CHANGES))
    module, effects = run(module, VmReported(Vm.OFF), MirrorReported(None, MINE, 21))
    assert (module.record, module.reason) == (MINE, Reason.SPLIT_WON)
    assert Store not in kinds(effects) and StartMirror not in kinds(effects)


@pytest.mark.parametrize("policy", WON)
def test_the_kept_side_runs_on_until_the_other_has_given_up(policy: str) -> None:
    module, effects = run(alone(policy), peers(policy))
    assert (module.state, module.vm, module.reason) == (State.ALONE, Vm.ON, Reason.SPLIT_WON)
    assert not set(kinds(effects)) & {FailTap, StopVm, Store, StopMirror}


@pytest.mark.parametrize("policy", WON)
def test_a_kept_side_that_does_not_run_becomes_the_source_when_the_other_has_given_up(policy: str) -> None:
    waiting = alone(policy, state=State.WAIT, mirror=None, vm=Vm.OFF)
    module, effects = run(waiting, peers(policy, state=State.WAIT))
    assert (module.reason, module.mirror) == (Reason.SPLIT_WON, None)
    module, effects = run(module, peers(policy, state=State.WAIT, record=give_up(THEIRS)))
    assert StartMirror(Role.SOURCE) in effects
    assert Salvage not in kinds(effects)


@pytest.mark.parametrize(
    ("mine", "peer", "reason"),
    [
        (MANUAL, peers(MANUAL), Reason.SPLIT_BRAIN),
        (MANUAL, peers("server:b"), Reason.SPLIT_POLICIES_DIFFER),
        ("server:b", peers(MANUAL), Reason.SPLIT_POLICIES_DIFFER),
        (MOST_CHANGES, peers(MOST_CHANGES, bytes_changed=10), Reason.SPLIT_TIE),
        (MOST_CHANGES, peers(MOST_CHANGES, bytes_changed=None), Reason.SPLIT_UNKNOWN),
        ("server:b", peers("server:b", record=replace(THEIRS, outdated=True)), Reason.SPLIT_OUTDATED),
        ("server:b", peers("server:b", state=State.STOP), Reason.SPLIT_STOPPED),
    ],
)
@pytest.mark.parametrize("state", [State.ALONE, State.WAIT])
def test_what_is_not_decided_waits_for_the_operator_and_says_why(
    mine: str, peer: PeerHeard, reason: Reason, state: State
) -> None:
    waiting: dict[str, object] = {} if state is State.ALONE else {"state": state, "mirror": None, "vm": Vm.OFF}
    module, effects = run(alone(mine, **waiting), peer)
    assert (module.state, module.reason, module.record) == (state, reason, MINE)
    assert not set(kinds(effects)) & {FailTap, StopVm, Store, StopMirror, StartMirror}


@pytest.mark.parametrize("state", [State.ALONE, State.WAIT])
def test_under_maintenance_nothing_is_given_up_before_it_is_lifted(state: State) -> None:
    waiting: dict[str, object] = {} if state is State.ALONE else {"state": state, "mirror": None, "vm": Vm.OFF}
    module, effects = run(alone("server:b", maintenance=True, **waiting), peers("server:b"))
    assert (module.state, module.reason, module.record) == (state, Reason.SPLIT_MAINTENANCE, MINE)
    module, effects = run(module, Commanded(Command.MAINTENANCE_OFF))
    assert FailTap in kinds(effects) or module.yields is not None


@pytest.mark.parametrize("policy", [*LOST, FORMER_PRIMARY])
def test_the_only_copy_that_is_not_inconsistent_is_never_given_up(policy: str) -> None:
    """However the peer's numbers are: it has given up, or is half copied."""
    own = replace(MINE, term=2)
    half_copied = begin_reintegration_as_target(THEIRS, MINE.generation)
    for state, bad in product((State.ALONE, State.WAIT), (give_up(THEIRS), half_copied)):
        waiting: dict[str, object] = {} if state is State.ALONE else {"state": state, "mirror": None, "vm": Vm.OFF}
        module, effects = run(alone(policy, record=own, **waiting), peers(policy, record=bad, state=State.WAIT))
        assert module.record == own
        assert Store not in kinds(effects)


def test_a_vm_is_not_started_on_a_side_that_is_lost() -> None:
    module, effects = run(alone("server:b", vm=Vm.OFF), peers("server:b"))
    assert module.state is State.WAIT
    assert StartVm not in kinds(effects)


def test_when_the_peer_is_lost_before_the_copy_is_given_up_it_runs_again() -> None:
    module, _ = run(alone("server:b"), peers("server:b"), VmReported(Vm.OFF), PeerLost())
    module, _ = run(module, GONE)
    assert module.state is State.ALONE
    assert module.record is not None and module.record.generation == MINE.generation
    assert not module.record.inconsistent


def test_an_answer_that_comes_after_this_copy_ran_again_does_not_count() -> None:
    module, _ = run(alone("server:b"), peers("server:b"), VmReported(Vm.OFF), GONE)
    assert module.yields == NOW.fresh
    module, _ = run(module, PeerLost())
    assert (module.state, module.yields) == (State.ALONE, None)
    module, _ = run(module, MirrorReported(Mirror(Role.SOURCE, MirrorMode.ALONE), MINE, 10))
    module, effects = run(module, peers("server:b", keeps=NOW.fresh))
    assert Store not in kinds(effects)
    assert module.record == MINE


def test_a_linked_source_leaves_it_to_the_hello() -> None:
    """The peer has given up already, which its last pulse did not say yet."""
    linked = Mirror(Role.SOURCE, MirrorMode.FILLING, linked=True)
    module, effects = run(alone(MOST_CHANGES, mirror=linked, bytes_changed=1), peers(MOST_CHANGES))
    assert (module.state, module.vm) == (State.ALONE, Vm.ON)
    assert not set(kinds(effects)) & {FailTap, StopVm, StopMirror}


def test_when_the_peer_is_lost_after_the_copy_was_given_up_it_waits() -> None:
    answered = peers("server:b", keeps=NOW.fresh)
    module, _ = run(alone("server:b"), peers("server:b"), VmReported(Vm.OFF), GONE, answered)
    module, effects = run(module, MirrorReported(Mirror(Role.TARGET, MirrorMode.IDLE), give_up(MINE)), PeerLost())
    module, effects = run(module, MirrorReported(None, give_up(MINE)))
    assert (module.state, module.reason) == (State.WAIT, Reason.INCONSISTENT)
    assert StartMirror not in kinds(effects)


def test_saving_is_ordered_again_after_a_restart_and_not_once_it_is_being_overwritten() -> None:
    for own, saves in ((give_up(MINE), True), (replace(give_up(MINE), generation=named(3), solo=False), False)):
        at_boot = Started(own, True, False, BOOT, None, Vm.OFF, 10)
        _, effects = run(Module(settings=settings_of(Kind.NONE, 0, "server:b")), at_boot, peers("server:b"))
        assert StartMirror(Role.TARGET) in effects
        assert (Salvage in kinds(effects)) is saves


def test_what_the_operator_gives_up_is_saved_as_well() -> None:
    waiting = alone(MANUAL, state=State.WAIT, mirror=None, vm=Vm.OFF)
    _, effects = run(waiting, peers(MANUAL), Commanded(Command.SECOND))
    assert effects[0] == Store(give_up(MINE))
    assert Reply(True) in effects
    assert effects.index(Salvage(MINE.generation)) == effects.index(StartMirror(Role.TARGET)) - 1


def test_a_view_says_the_policy_and_how_much_was_changed_alone() -> None:
    assert (view(alone("server:b")).policy, view(alone("server:b")).bytes_changed) == ("server:b", 10)
    assert view(alone("server:b", record=BASE, state=State.WAIT)).bytes_changed is None


def test_no_pulse_of_its_own_is_sent_because_some_more_was_changed() -> None:
    module, _ = run(alone(MOST_CHANGES), peers(MOST_CHANGES, bytes_changed=5))
    _, effects = run(module, MirrorReported(Mirror(Role.SOURCE, MirrorMode.ALONE), MINE, 11))
    assert SendPulse not in kinds(effects)
