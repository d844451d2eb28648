"""Which pulses are believed: two servers that restart as they like are, recordings never, on whichever network."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hotpair.cluster.pulse import ECHOES, Pulse, Refusal
from hotpair.cluster.pulse_guard import RETIRED, WINDOW, Guard, Judged, judge, renew

numbers = count(1)


def unused() -> bytes:
    return next(numbers).to_bytes(16, "big")


@dataclass
class End:
    """One process of one server, which sends and judges pulses as pulse_io.py does."""

    name: str
    peer: str
    incarnation: bytes = field(default_factory=unused)
    rounds: int = 0
    counters: Counter[str] = field(default_factory=Counter)
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        self.guard = Guard(self.name, self.peer, unused())

    def says(self, **fields: Any) -> Pulse:
        self.rounds += 1
        network = fields.get("network", "lan")
        self.counters[network] += 1
        standard: dict[str, Any] = {
            "sender": self.name,
            "network": network,
            "incarnation": self.incarnation,
            "counter": self.counters[network],
            "round": self.rounds,
            "boot": "b",
            "challenge": self.guard.challenge,
            "echoes": self.guard.echoes,
            "configuration": b"c",
        }
        return Pulse(**standard | fields)

    def hears(self, pulse: Pulse, network: str = "lan") -> Judged:
        judged = judge(self.guard, pulse, network, unused())
        self.guard = judged.guard
        return judged

    def refuses(self, pulse: Pulse, network: str = "lan") -> Refusal:
        refused = self.hears(pulse, network).refused
        assert refused is not None
        return refused.reason


def believed(judged: Judged) -> bool:
    return judged.refused is None


def acquainted() -> tuple[End, End]:
    a, b = End("a", "b"), End("b", "a")
    assert b.refuses(a.says()) is Refusal.UNPROVEN
    assert believed(a.hears(b.says()))
    assert believed(b.hears(a.says()))
    return a, b


def test_two_servers_that_start_believe_each_other_after_three_pulses() -> None:
    a, b = acquainted()
    for _ in range(100):
        assert believed(a.hears(b.says())) and believed(b.hears(a.says()))
    assert b.guard.echoes == (a.guard.challenge,) and a.guard.echoes == (b.guard.challenge,)


def test_a_restarted_sender_is_believed_as_soon_as_it_has_heard_us() -> None:
    _, b = acquainted()
    again = End("a", "b")
    assert b.refuses(again.says()) is Refusal.UNPROVEN
    again.hears(b.says())
    assert believed(b.hears(again.says()))


def test_nothing_recorded_of_any_former_start_is_believed_however_often_the_sender_restarts() -> None:
    a, b = acquainted()
    recorded = []
    for _ in range(RETIRED + 5):
        for _ in range(3):
            pulse = a.says()
            recorded.append(pulse)
            assert believed(b.hears(pulse))
            a.hears(b.says())
        a = End("a", "b")
        b.hears(a.says())
        a.hears(b.says())
        assert believed(b.hears(a.says()))
    assert {b.refuses(pulse) for pulse in recorded} == {Refusal.REPLAYED, Refusal.UNPROVEN}
    assert believed(b.hears(a.says()))


def test_a_restarted_receiver_believes_nothing_recorded_before_its_start() -> None:
    a, b = acquainted()
    recorded = [a.says() for _ in range(5)]
    b = End("b", "a")
    assert {b.refuses(pulse) for pulse in recorded} == {Refusal.UNPROVEN}
    a.hears(b.says())  # not believed by it either: b's restart returns no challenge of its guard yet
    b.hears(a.says())
    a.hears(b.says())
    assert believed(b.hears(a.says()))
    assert believed(a.hears(b.says()))


def test_a_restarted_receiver_does_not_believe_what_the_same_peer_sent_before() -> None:
    """The peer's process is the same, and so are its counters; on each network the recordings are older."""
    a, b = acquainted()
    recorded = [a.says(network=network) for network in ("lan", "direct") for _ in range(5)]
    b = End("b", "a")
    b.hears(a.says())
    a.hears(b.says())
    assert believed(b.hears(a.says()))
    assert [b.refuses(pulse, pulse.network) for pulse in recorded] == [Refusal.REPLAYED] * 5 + [Refusal.UNPROVEN] * 5
    assert believed(b.hears(a.says(network="direct"), "direct"))


def test_recordings_do_not_keep_a_restarted_pair_apart() -> None:
    """An old start's recordings arrive between all genuine pulses; the challenge of the new start is returned too."""
    a, b = acquainted()
    recorded = [a.says() for _ in range(3)]
    a, b = End("a", "b"), End("b", "a")
    for pulse in recorded:
        b.refuses(pulse)
        b.hears(a.says())
        b.refuses(pulse)
        a.hears(b.says())
    assert believed(b.hears(a.says()))
    assert a.guard.believed == b.incarnation


def test_a_pulse_counts_once() -> None:
    a, b = acquainted()
    pulse = a.says()
    assert believed(b.hears(pulse))
    assert b.refuses(pulse) is Refusal.REPLAYED


def test_pulses_that_overtake_each_other_count_and_lost_ones_are_counted() -> None:
    a, b = acquainted()
    first = a.says()
    assert believed(b.hears(first))
    before = b.guard.lines["lan"].lost
    late, lost, early = a.says(), a.says(), a.says()
    assert believed(b.hears(early))
    assert b.guard.lines["lan"].lost == before + 2
    assert believed(b.hears(late))
    assert b.refuses(late) is Refusal.REPLAYED
    assert b.guard.lines["lan"].lost == before + 1
    assert lost.counter == early.counter - 1


@pytest.mark.parametrize(("behind", "counts"), [(WINDOW - 1, True), (WINDOW, False), (WINDOW + 1, False)])
def test_what_comes_too_late_is_refused_unseen(behind: int, counts: bool) -> None:
    a, b = acquainted()
    late = a.says(counter=1000 - behind)
    assert believed(b.hears(a.says(counter=1000)))
    assert believed(b.hears(late)) is counts


def test_a_pulse_recorded_on_one_network_proves_nothing_on_another() -> None:
    a, b = acquainted()
    pulse = a.says()
    assert b.refuses(pulse, "direct") is Refusal.MISDIRECTED
    assert believed(b.hears(pulse, "lan"))
    assert believed(b.hears(a.says(network="direct", counter=1), "direct"))


def test_our_own_pulses_sent_back_are_refused() -> None:
    a, b = acquainted()
    assert a.refuses(a.says()) is Refusal.MISDIRECTED
    assert a.refuses(replace(b.says(), sender="c")) is Refusal.MISDIRECTED


def test_a_process_that_was_replaced_stays_replaced() -> None:
    a, b = acquainted()
    again = End("a", "b")
    again.hears(b.says())
    assert believed(b.hears(again.says()))
    a.hears(b.says())  # it still runs, and hears the new challenge
    assert b.refuses(a.says()) is Refusal.REPLAYED
    assert believed(b.hears(again.says()))


def test_after_a_doubt_only_what_was_made_since_is_fresh() -> None:
    a, b = acquainted()
    a.hears(b.says())
    in_the_socket = a.says()
    b.guard = renew(b.guard, unused())
    judged = b.hears(in_the_socket)
    assert believed(judged) and not judged.fresh
    a.hears(b.says())
    judged = b.hears(a.says())
    assert believed(judged) and judged.fresh


def test_two_suspended_servers_find_each_other_on_a_network_that_was_down_before() -> None:
    a, b = acquainted()
    a.hears(b.says())
    for end in (a, b):
        end.guard = renew(renew(end.guard, unused()), unused())
        end.guard = replace(end.guard, proved_by=unused())  # long ago
    for _ in range(2):
        a.hears(b.says(network="direct"), "direct")
        b.hears(a.says(network="direct"), "direct")
    assert believed(b.hears(a.says(network="direct"), "direct"))
    assert believed(a.hears(b.says(network="direct"), "direct"))


def test_the_number_of_echoes_is_bounded_and_the_peer_is_always_among_them() -> None:
    a, b = acquainted()
    for _ in range(3 * ECHOES):
        b.refuses(End("a", "b").says())
    assert len(b.guard.echoes) == ECHOES
    assert a.guard.challenge in b.guard.echoes


NETWORKS = ("lan", "direct")


class Recordings(RuleBasedStateMachine):
    """Two servers that restart, and an attacker that keeps all pulses and delivers any of them at any time.

    A recording must never be believed: neither twice by one process, nor by its successor, which remembers nothing, nor
    after its sender has ended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ends = [End("a", "b"), End("b", "a")]
        self.delivered: list[list[Pulse]] = [[], []]  # to a, to b

    @rule(receiver=st.integers(0, 1), network=st.sampled_from(NETWORKS))
    def genuine(self, receiver: int, network: str) -> None:
        pulse = self.ends[1 - receiver].says(network=network)
        self.delivered[receiver].append(pulse)
        self.ends[receiver].hears(pulse, network)

    @rule(server=st.integers(0, 1))
    def restart(self, server: int) -> None:
        old = self.ends[server]
        self.ends[server] = End(old.name, old.peer)

    @rule(server=st.integers(0, 1))
    def suspend(self, server: int) -> None:
        self.ends[server].guard = renew(self.ends[server].guard, unused())

    @precondition(lambda self: any(self.delivered))
    @rule(receiver=st.integers(0, 1), data=st.data())
    def recording(self, receiver: int, data: st.DataObject) -> None:
        if self.delivered[receiver]:
            pulse = data.draw(st.sampled_from(self.delivered[receiver]))
            assert not believed(self.ends[receiver].hears(pulse, pulse.network))

    @rule(network=st.sampled_from(NETWORKS))
    def become_acquainted(self, network: str) -> None:
        """Whatever happened before, four exchanges later both believe each other."""
        for _ in range(4):
            self.genuine(0, network)
            self.genuine(1, network)
        for i in (0, 1):
            assert self.ends[i].guard.believed == self.ends[1 - i].incarnation
            assert believed(self.ends[i].hears(self.ends[1 - i].says(network=network), network))

    @invariant()
    def everything_is_bounded(self) -> None:
        for end in self.ends:
            assert len(end.guard.retired) <= RETIRED
            assert len(end.guard.echoes) <= ECHOES and len(end.guard.candidates) <= ECHOES
            assert set(end.guard.lines) <= set(NETWORKS)
            assert all(line.lost >= 0 for line in end.guard.lines.values())


class ManyRecordings(Recordings):
    pass


TestRecordings = Recordings.TestCase
TestRecordings.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)

TestManyRecordings = pytest.mark.long(ManyRecordings.TestCase)
TestManyRecordings.settings = settings(max_examples=1000, stateful_step_count=40, deadline=None)
