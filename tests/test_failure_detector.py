"""Lost neither too early nor too late, whatever comes when; and what a suspension of this server makes doubtful."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster.failure_detector import (
    Believed,
    Change,
    Detector,
    Doubted,
    NetworkChanged,
    NetworkStatus,
    PeerChanged,
    PeerStatus,
    link_heard,
    pulse_heard,
    start,
    tick,
)

TIMEOUT = 5.0
BOTH = ("direct", "lan")


def begun(now: float = 100.0) -> Detector:
    return start(BOTH, TIMEOUT, now)


def ticks(detector: Detector, until: float, step: float = 1.0) -> tuple[Detector, list[Change]]:
    """Look at the clock as often as is asked for, the last time exactly at `until`."""
    changes: list[Change] = []
    while detector.now < until:
        detector, more = tick(detector, min(detector.now + step, until))
        changes += more
    return detector, changes


def heard(detector: Detector, now: float, network: str = "lan", hears: tuple[str, ...] = BOTH) -> Detector:
    detector, _ = ticks(detector, now)
    return pulse_heard(detector, network, hears, now, fresh=True)[0]


def peer(changes: list[Change]) -> list[tuple[PeerStatus, float]]:
    return [(change.status, change.since) for change in changes if isinstance(change, PeerChanged)]


def of_network(changes: list[Change], name: str) -> list[tuple[NetworkStatus, float]]:
    return [
        (change.status, change.since)
        for change in changes
        if isinstance(change, NetworkChanged) and change.network == name
    ]


# ---- the peer


def test_a_peer_that_is_never_heard_is_lost_when_it_was_listened_for_long_enough() -> None:
    detector, changes = ticks(begun(), 105.0)
    assert detector.status is PeerStatus.LISTENING and not changes
    detector, changes = ticks(detector, 105.5)
    assert peer(changes) == [(PeerStatus.LOST, 100.0)]
    assert of_network(changes, "lan") == [(NetworkStatus.DOWN, 100.0)]


def test_a_pulse_on_any_network_or_the_link_keeps_the_peer_alive() -> None:
    detector = heard(heard(begun(), 101.0, "lan"), 101.0, "direct")
    detector = heard(detector, 105.5, "direct")
    detector, changes = ticks(detector, 107.0)
    assert changes == [NetworkChanged("lan", NetworkStatus.UP, NetworkStatus.DOWN, 101.0)]
    for second in range(108, 140):
        detector, changes = link_heard(detector, float(second), fresh=True)
        assert peer(changes) == []
    assert detector.status is PeerStatus.ALIVE
    assert {network.status for network in detector.networks.values()} == {NetworkStatus.DOWN}
    assert detector.heard_on == ()


def test_the_last_evidence_counts_wherever_it_came_from() -> None:
    detector = heard(begun(), 101.0)
    detector, _ = link_heard(ticks(detector, 103.0)[0], 103.0, fresh=True)
    assert detector.lost_at == math.nextafter(108.0, math.inf)
    detector, changes = ticks(detector, 108.0)
    assert peer(changes) == []
    assert detector.lost_at is not None
    detector, changes = tick(detector, detector.lost_at)
    assert peer(changes) == [(PeerStatus.LOST, 103.0)]
    assert detector.lost_at is None


def test_a_peer_that_pulses_exactly_at_the_timeout_does_not_flap() -> None:
    detector = heard(begun(), 100.0)
    changes: list[Change] = []
    for beat in range(1, 20):
        detector, more = ticks(detector, 100.0 + beat * TIMEOUT)  # the clock is looked at before the pulse is read
        changes += more
        detector, more = pulse_heard(detector, "lan", BOTH, detector.now, fresh=True)
        changes += more
    assert peer(changes) == [] and of_network(changes, "lan") == []


def test_a_lost_peer_that_is_heard_again_is_alive_at_once() -> None:
    detector, _ = ticks(heard(begun(), 101.0), 120.0)
    detector, changes = pulse_heard(detector, "lan", BOTH, 120.0, fresh=True)
    assert peer(changes) == [(PeerStatus.ALIVE, 120.0)]
    assert of_network(changes, "lan") == [(NetworkStatus.UP, 120.0)]


def test_a_repeated_tick_changes_nothing() -> None:
    detector, _ = ticks(heard(begun(), 101.0), 120.0)
    assert tick(detector, 120.0) == (detector, [])


# ---- one way


def test_a_network_on_which_the_peer_does_not_hear_us_is_one_way() -> None:
    detector = begun()
    for half in range(202, 216):
        detector = heard(detector, half / 2, "lan", hears=())
    assert detector.networks["lan"].status is NetworkStatus.ONE_WAY
    assert detector.networks["lan"].since == 101.0
    assert detector.heard_on == ("lan",) and detector.one_way
    detector, changes = pulse_heard(detector, "lan", ("lan",), detector.now, fresh=True)
    assert of_network(changes, "lan") == [(NetworkStatus.UP, detector.now)] and not detector.one_way


def test_two_servers_that_start_are_not_one_way_while_they_get_to_hear_each_other() -> None:
    detector = heard(begun(), 101.0, hears=())
    detector = heard(detector, 101.0 + TIMEOUT / 2, hears=())
    assert detector.networks["lan"].status is NetworkStatus.UP
    detector = heard(detector, 104.0, hears=())
    assert detector.networks["lan"].status is NetworkStatus.ONE_WAY


def test_one_network_that_works_both_ways_is_enough_not_to_be_one_way() -> None:
    detector = begun()
    for half in range(202, 216):
        detector = heard(heard(detector, half / 2, "lan", ("direct",)), half / 2, "direct", ("direct",))
    assert detector.networks["lan"].status is NetworkStatus.ONE_WAY
    assert detector.networks["direct"].status is NetworkStatus.UP
    assert not detector.one_way


def test_what_the_peer_said_before_the_network_was_down_does_not_count_after() -> None:
    detector = heard(begun(), 101.0, "lan", hears=())
    for second in range(102, 115):
        detector = heard(detector, float(second), "direct", hears=("direct",))
    assert detector.networks["lan"].status is NetworkStatus.DOWN
    detector = heard(detector, 115.0, "lan", hears=("direct",))
    assert detector.networks["lan"].status is NetworkStatus.UP


# ---- doubt


@pytest.mark.parametrize(("gap", "doubts"), [(TIMEOUT / 2, False), (math.nextafter(TIMEOUT / 2, 9), True), (60, True)])
def test_a_gap_of_more_than_half_the_timeout_is_a_suspension(gap: float, doubts: bool) -> None:
    detector = heard(start(BOTH, TIMEOUT, 0.0), 0.0)
    detector, changes = tick(detector, gap)
    assert detector.doubtful is doubts
    assert (Doubted(gap) in changes) is doubts
    assert peer(changes) == ([(PeerStatus.LISTENING, gap)] if doubts else [])


def test_what_waited_in_the_socket_is_no_evidence_and_what_was_made_since_is() -> None:
    detector = heard(begun(), 101.0)
    detector, changes = pulse_heard(detector, "lan", BOTH, 200.0, fresh=False)  # read before the clock was looked at
    assert [type(change) for change in changes] == [Doubted, NetworkChanged, PeerChanged]
    detector, changes = link_heard(detector, 200.1, fresh=False)
    assert changes == [] and detector.status is PeerStatus.LISTENING and detector.heard_on == ()
    detector, changes = pulse_heard(detector, "lan", BOTH, 200.2, fresh=True)
    assert changes[0] == Believed() and peer(changes) == [(PeerStatus.ALIVE, 200.2)]
    detector, changes = pulse_heard(detector, "direct", BOTH, 200.3, fresh=False)  # in time again: any one counts
    assert detector.networks["direct"].status is NetworkStatus.UP


def test_a_doubting_server_calls_the_peer_lost_only_after_listening_again() -> None:
    detector = heard(begun(), 101.0)
    detector, _ = tick(detector, 200.0)
    detector, changes = ticks(detector, 205.0)
    assert peer(changes) == []
    detector, changes = ticks(detector, 206.0)
    assert peer(changes) == [(PeerStatus.LOST, 200.0)]
    assert detector.doubtful


def test_a_clock_that_goes_back_is_a_bug() -> None:
    detector = heard(begun(), 101.0)
    with pytest.raises(AssertionError, match="monotonic"):
        tick(detector, 100.9)
    with pytest.raises(AssertionError, match="monotonic"):
        link_heard(detector, 100.9, fresh=True)


# ---- any order of anything

steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.25, 2.0, 2.5, 2.5000001, 2.75, 5.0, 5.0000001, 17.0]) | st.floats(0, 7),
        st.sampled_from(["tick", "tick", "tick", "lan", "direct", "link"]),
        st.booleans(),
        st.sets(st.sampled_from(BOTH)),
    ),
    max_size=60,
)


@given(steps, st.sampled_from([0.0, 1e6 + 0.1]))
@settings(max_examples=250, deadline=None)
def test_lost_exactly_when_all_was_silent_for_longer_than_the_timeout(
    events: list[tuple[float, str, bool, set[str]]], begin: float
) -> None:
    """Beside an independent account of evidence, exact where floats are not."""
    detector = start(BOTH, TIMEOUT, begin)
    now, evidence, doubtful, unheard = begin, begin, False, True
    for delay, what, fresh, hears in events:
        before, now = now, now + delay
        if now - before > TIMEOUT / 2:
            evidence, doubtful, unheard = now, True, True
        if what == "tick":
            detector, changes = tick(detector, now)
        else:
            if fresh or not doubtful:
                evidence, doubtful, unheard = now, False, False
            if what == "link":
                detector, changes = link_heard(detector, now, fresh=fresh)
            else:
                detector, changes = pulse_heard(detector, what, hears, now, fresh=fresh)
        silent = Fraction(now) - Fraction(evidence)
        if silent <= TIMEOUT:
            assert detector.status is not PeerStatus.LOST
            assert detector.status is (PeerStatus.LISTENING if unheard else PeerStatus.ALIVE)
        elif silent > TIMEOUT + Fraction(1, 10**6):
            assert detector.status is PeerStatus.LOST
        assert detector.doubtful is doubtful
        assert (detector.lost_at is None) is (detector.status is PeerStatus.LOST)
        for change in changes:
            if isinstance(change, PeerChanged | NetworkChanged):
                assert change.was is not change.status and change.since <= now
        for network in detector.networks.values():
            if network.status in (NetworkStatus.UP, NetworkStatus.ONE_WAY):
                assert detector.status is PeerStatus.ALIVE and now - network.heard_at <= TIMEOUT


@given(steps)
@settings(max_examples=100, deadline=None)
def test_what_changed_tells_the_whole_story(events: list[tuple[float, str, bool, set[str]]]) -> None:
    """Whoever follows the changes alone knows the status, and each begins where the one before ended."""
    detector, now = begun(0.0), 0.0
    story: dict[str, list[Change]] = {"peer": [], "lan": [], "direct": []}
    for delay, what, fresh, hears in events:
        now += delay
        if what == "tick":
            detector, changes = tick(detector, now)
        elif what == "link":
            detector, changes = link_heard(detector, now, fresh=fresh)
        else:
            detector, changes = pulse_heard(detector, what, hears, now, fresh=fresh)
        for change in changes:
            if isinstance(change, NetworkChanged):
                story[change.network].append(change)
            elif isinstance(change, PeerChanged):
                story["peer"].append(change)
    for name, told in story.items():
        status = detector.status if name == "peer" else detector.networks[name].status
        assert not told or told[-1].status is status  # type: ignore[union-attr]
        for one, following in pairwise(told):
            assert one.status is following.was  # type: ignore[union-attr]


@given(st.floats(0, 1e9), st.floats(0.01, 1e4))
def test_lost_at_is_the_first_moment_of_loss(begin: float, timeout_s: float) -> None:
    detector = start(BOTH, timeout_s, begin)
    assert detector.lost_at is not None
    awake = replace(detector, now=detector.lost_at)  # as if the clock had been looked at all the time
    assert tick(awake, detector.lost_at)[0].status is PeerStatus.LOST
    before = math.nextafter(detector.lost_at, -math.inf)
    assert tick(replace(detector, now=before), before)[0].status is PeerStatus.LISTENING
