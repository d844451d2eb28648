"""Arbitration without any input and output: who may be granted what, and what an answer is worth."""

from __future__ import annotations

import secrets
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster.arbiter_io import Arbiter, ManualArbiter, NoArbiter
from hotpair.cluster.arbitration import (
    LARGEST_EPOCH,
    NEVER_MOVED,
    Answer,
    Asked,
    Claim,
    Comparison,
    Kind,
    Purpose,
    Standing,
    Verdict,
    asked,
    can_grant,
    compare,
    granted,
    judge,
    move,
    refused,
    unreachable,
)
from hotpair.cluster.fence_io import FenceArbiter, PeerOff
from hotpair.cluster.ping_io import PingArbiter, Target
from hotpair.cluster.witness import MODULES_PER_PAIR, decide, look

RESTARTS = (Purpose.START_ALONE, Purpose.SOLO_START)
EPOCH_KEEPERS = (Kind.WITNESS, Kind.ETCD)
names = st.sampled_from(["a", "b"])
purposes = st.sampled_from(Purpose)
# What two servers that know each other can come across, and what a restored backup or a stranger can add
epochs = st.integers(0, 6) | st.sampled_from([LARGEST_EPOCH - 1, LARGEST_EPOCH])
standings = st.just(NEVER_MOVED) | st.builds(Standing, epochs.filter(bool), names)


def make(server: str, epoch: int, purpose: Purpose, module: str = "vm") -> Claim:
    identifier = secrets.token_bytes(16)
    return Claim(request_id=identifier, pair="p", module=module, server=server, epoch=epoch, purpose=purpose)


claims = st.builds(make, names, epochs, purposes)


class Memory:
    """A store that forgets nothing until its end."""

    def __init__(self) -> None:
        self.table: dict[tuple[str, str], Standing] = {}

    def standing(self, pair: str, module: str) -> Standing | None:
        return self.table.get((pair, module))

    def modules(self, pair: str) -> int:
        return sum(key[0] == pair for key in self.table)

    def replace(self, claim: Claim, before: Standing | None, after: Standing) -> None:
        assert self.table.get((claim.pair, claim.module)) == before
        self.table[claim.pair, claim.module] = after


# ---- the table of kinds and purposes

NEXT, TAKE, SEIZE, FREE, NEVER = Asked.NEXT, Asked.TAKE, Asked.SEIZE, Asked.NOT_ASKED, Asked.NEVER
SPECIFIED = {
    #             go alone        start alone  solo start  settle  prim  prim --force
    Kind.WITNESS: (NEXT, NEXT, NEXT, NEXT, TAKE, SEIZE),
    Kind.ETCD: (NEXT, NEXT, NEXT, NEXT, TAKE, SEIZE),
    Kind.FENCE: (Asked.PEER_OFF, NEVER, FREE, FREE, FREE, FREE),
    Kind.PING: (Asked.ADDRESS, NEVER, FREE, FREE, FREE, FREE),
    Kind.NONE: (Asked.NOTHING, NEVER, FREE, FREE, FREE, FREE),
    Kind.MANUAL: (NEVER, NEVER, FREE, FREE, FREE, FREE),
}


def test_the_table_is_the_specified_one_and_total() -> None:
    table = {kind: tuple(asked(kind, purpose) for purpose in Purpose) for kind in Kind}
    assert table == SPECIFIED


def test_only_kinds_that_keep_epochs_can_grant_after_a_restart() -> None:
    assert {kind for kind in Kind for purpose in RESTARTS if can_grant(kind, purpose)} == set(EPOCH_KEEPERS)


def test_manual_can_never_grant() -> None:
    assert not any(can_grant(Kind.MANUAL, purpose) for purpose in Purpose)


@pytest.mark.parametrize("purpose", Purpose)
def test_arbiters_without_epochs_do_what_the_table_says(purpose: Purpose) -> None:
    called = []

    def off(claim: Claim, timeout_s: float) -> PeerOff:
        called.append(claim)
        return PeerOff(True, "power is off")

    arbiters: list[Arbiter] = [NoArbiter(), ManualArbiter(), FenceArbiter(off), PingArbiter([Target("127.0.0.1")])]
    for arbiter in arbiters:
        claim = make("a", 3, purpose)
        answer = arbiter.claim(claim)
        assert answer.granted == can_grant(arbiter.kind, purpose), arbiter.kind
        assert answer.reachable and answer.reason and (answer.epoch, answer.holder) == (None, None)
        assert (judge(arbiter.kind, claim, answer) is Verdict.GRANTED) == answer.granted
        assert arbiter.look("p", "vm") is None
    assert len(called) == (purpose is Purpose.GO_ALONE)  # nobody is fenced for nothing


# ---- moving the epoch on


def test_the_first_of_two_gets_it_and_the_other_does_not() -> None:
    store = Memory()
    assert decide(store, make("b", 0, Purpose.GO_ALONE)).granted
    answer = decide(store, make("a", 0, Purpose.GO_ALONE))
    assert (answer.granted, answer.epoch, answer.holder, answer.reachable) == (False, 1, "b", True)


def test_a_lost_answer_can_be_asked_for_again() -> None:
    store = Memory()
    first = decide(store, make("a", 0, Purpose.GO_ALONE))
    again = decide(store, make("a", 0, Purpose.START_ALONE))  # it died in between
    assert (first.granted, first.epoch, again.granted, again.epoch) == (True, 1, True, 1)


def test_a_server_may_move_on_what_the_peer_held_when_they_were_in_sync() -> None:
    assert move(Standing(4, "b"), make("a", 4, Purpose.GO_ALONE)).after == Standing(5, "a")


@pytest.mark.parametrize("purpose", [purpose for purpose in Purpose if purpose is not Purpose.OPERATOR_FORCED])
def test_an_arbiter_restored_from_a_backup_never_grants(purpose: Purpose) -> None:
    claim = make("a", 5, purpose)
    for standing in (Standing(3, "a"), Standing(4, "b"), NEVER_MOVED):
        decision = move(standing, claim)
        assert not decision.granted and decision.after == standing and "ALARM" in decision.reason
        for kind in EPOCH_KEEPERS:
            assert judge(kind, claim, refused(claim, "", standing)) is Verdict.BEHIND
    assert compare(5, Standing(3, "a")) is Comparison.ARBITER_BEHIND


def test_the_operator_may_override_an_arbiter_that_is_behind_and_it_is_ahead_then() -> None:
    assert move(Standing(3, "b"), make("a", 5, Purpose.OPERATOR_FORCED)).after == Standing(6, "a")


def test_prim_takes_the_epoch_unless_it_names_the_peer() -> None:
    for standing in (Standing(5, "a"), Standing(9, "a")):
        assert move(standing, make("a", 5, Purpose.OPERATOR)).after == Standing(standing.epoch + 1, "a")
    assert move(NEVER_MOVED, make("a", 0, Purpose.OPERATOR)).after == Standing(1, "a")
    for epoch in (5, 6, 9):
        assert not move(Standing(epoch, "b"), make("a", 5, Purpose.OPERATOR)).granted
        assert move(Standing(epoch, "b"), make("a", 5, Purpose.OPERATOR_FORCED)).after == Standing(epoch + 1, "a")


@given(standings, claims)
@settings(max_examples=400)
def test_one_claim(now: Standing, claim: Claim) -> None:
    decision = move(now, claim)
    assert decision.reason
    if not decision.granted:
        assert decision.after == now
        return
    assert decision.after.holder == claim.server and decision.after.epoch > claim.epoch
    assert decision.after == now or decision.after.epoch > now.epoch
    again = move(decision.after, replace(claim, request_id=secrets.token_bytes(16)))
    if decision.after.epoch == LARGEST_EPOCH > claim.epoch + 1:
        return  # the operator is at the end of all epochs
    assert again.granted and again.after.holder == claim.server  # the answer was lost
    if asked(Kind.WITNESS, claim.purpose) is NEXT:
        assert decision.after == Standing(claim.epoch + 1, claim.server) == again.after
        assert now.epoch == claim.epoch or now == decision.after


@given(st.lists(claims, max_size=30))
@settings(max_examples=300)
def test_whatever_is_claimed_no_epoch_is_granted_to_two_servers(asked_for: list[Claim]) -> None:
    store = Memory()
    holders: dict[int, str] = {}
    highest = 0
    for claim in asked_for:
        before = look(store, "p", "vm")
        answer = decide(store, claim)
        after = look(store, "p", "vm")
        assert (answer.epoch, answer.holder) == (after.epoch, after.holder)
        assert after.epoch >= highest
        highest = after.epoch
        if answer.granted:
            assert answer.epoch is not None
            assert holders.setdefault(answer.epoch, claim.server) == claim.server
            assert judge(Kind.WITNESS, claim, answer) is Verdict.GRANTED
        else:
            assert after == before


@given(st.lists(st.tuples(names, st.booleans()), max_size=30))
def test_servers_that_only_name_what_they_were_granted(story: list[tuple[str, bool]]) -> None:
    """Live claims without an operator: who does not hold the newest epoch is refused until the pair meets again."""
    store = Memory()
    known = {"a": 0, "b": 0}
    running = ""  # in whose name the epoch moved since they last met
    for server, they_meet in story:
        if they_meet:
            known = dict.fromkeys(known, max(known.values()))
            running = ""
            continue
        answer = decide(store, make(server, known[server], Purpose.GO_ALONE))
        assert answer.granted == (running in ("", server))
        if answer.granted:
            assert answer.epoch is not None
            known[server], running = answer.epoch, server


def test_the_epochs_have_an_end_and_it_is_an_answer() -> None:
    for purpose in Purpose:
        decision = move(Standing(LARGEST_EPOCH, "a"), make("a", LARGEST_EPOCH, purpose))
        assert not decision.granted and "last" in decision.reason
    assert move(Standing(LARGEST_EPOCH - 1, "b"), make("a", LARGEST_EPOCH - 1, Purpose.GO_ALONE)).granted


def test_a_pair_has_a_limited_number_of_modules() -> None:
    store = Memory()
    for number in range(MODULES_PER_PAIR):
        assert decide(store, make("a", 0, Purpose.GO_ALONE, f"vm{number}")).granted
    answer = decide(store, make("a", 0, Purpose.GO_ALONE, "one more"))
    assert not answer.granted and str(MODULES_PER_PAIR) in answer.reason
    assert decide(store, make("a", 1, Purpose.GO_ALONE, "vm7")).granted  # those that are there are served


# ---- what an answer is worth

answers = st.builds(
    lambda identifier, grant, standing, reachable: Answer(
        request_id=identifier,
        granted=grant,
        epoch=standing.epoch if standing else None,
        holder=standing.holder if standing else None,
        reason="",
        reachable=reachable,
    ),
    st.just(b"") | st.binary(min_size=16, max_size=16),
    st.booleans(),
    st.none() | standings,
    st.booleans(),
)


@given(st.sampled_from(Kind), claims, answers)
@settings(max_examples=600)
def test_judging_is_total_and_grants_only_what_can_be_granted(kind: Kind, claim: Claim, answer: Answer) -> None:
    assert judge(kind, claim, answer) is Verdict.IGNORED  # it is for another request
    answer = replace(answer, request_id=claim.request_id)
    verdict = judge(kind, claim, answer)
    if verdict is Verdict.GRANTED:
        assert can_grant(kind, claim.purpose) and answer.granted and answer.reachable
        if kind in EPOCH_KEEPERS:
            assert answer.holder == claim.server and answer.epoch is not None and answer.epoch > claim.epoch
    if verdict is Verdict.OVERRIDDEN:
        assert claim.purpose is Purpose.OPERATOR_FORCED
    if verdict is Verdict.WITHOUT:
        assert kind not in EPOCH_KEEPERS and claim.purpose not in (Purpose.GO_ALONE, Purpose.START_ALONE)


def test_prim_without_an_answer_needs_force() -> None:
    for kind in EPOCH_KEEPERS:
        plain, forced = make("a", 5, Purpose.OPERATOR), make("a", 5, Purpose.OPERATOR_FORCED)
        assert judge(kind, plain, unreachable(plain, "away")) is Verdict.UNREACHABLE
        assert judge(kind, forced, unreachable(forced, "away")) is Verdict.OVERRIDDEN
        assert judge(kind, plain, refused(plain, "", Standing(5, "b"))) is Verdict.REFUSED


def test_a_grant_of_another_epoch_is_not_an_answer() -> None:
    claim = make("a", 5, Purpose.GO_ALONE)
    assert judge(Kind.WITNESS, claim, granted(claim, "", Standing(6, "a"))) is Verdict.GRANTED
    for wrong in (Standing(7, "a"), Standing(6, "b"), Standing(5, "a"), None):
        assert judge(Kind.WITNESS, claim, granted(claim, "", wrong)) is Verdict.IGNORED


@pytest.mark.parametrize(
    ("field", "value"),
    [("request_id", b"short"), ("pair", ""), ("module", "x" * 65), ("server", "a\nb"), ("epoch", -1), ("epoch", True)],
)
def test_a_claim_that_makes_no_sense_is_not_made(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        replace(make("a", 0, Purpose.GO_ALONE), **{field: value})  # type: ignore[arg-type]
