"""Spinning goes on while it pays, and ceases when it does not. With a clock of our own, in which a look takes 1 us."""

from __future__ import annotations

from hotpair.replication.spin import GIVE_UP, RETRY, TRIAL, Events, Spinner

SPIN_US = 100.0
EVENT: Events = [(3, 1)]


class World:
    """A clock in microseconds that moves on with each look, and events that come at given times."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0
        self.comes_at: float | None = None
        self.asides = 0
        self.spinner = Spinner(SPIN_US, lambda: self.now, self.aside)

    def aside(self) -> None:
        """Somebody else has the processor for a moment."""
        self.asides += 1

    def poll(self, timeout: float) -> Events:
        assert timeout == 0, "a look never waits"
        self.looks += 1
        self.now += 1
        if self.comes_at is None or self.now < self.comes_at:
            return []
        self.comes_at = None
        return EVENT

    def turn(self, event_in_us: float | None, outstanding: bool = True) -> bool:
        """One turn of a loop; whether it has spun. An event that has not come while it spun is slept for."""
        before = self.looks
        self.comes_at = None if event_in_us is None else self.now + event_in_us
        found = self.spinner.poll(self.poll, outstanding)
        assert bool(found) == (event_in_us is not None and self.comes_at is None)
        return self.looks - before > 1

    def spins(self, turns: int, event_in_us: float | None) -> int:
        """How many of so many such turns spin."""
        return sum(self.turn(event_in_us) for _ in range(turns))


def test_event_within_the_time_is_found_without_sleeping() -> None:
    world = World()
    assert world.spins(1000, SPIN_US / 2) == 1000


def test_event_that_is_there_needs_no_spinning() -> None:
    world = World()
    assert world.spins(1000, 0) == 0


def test_steps_aside_before_each_further_look() -> None:
    world = World()
    world.turn(SPIN_US / 2)
    assert world.asides == world.looks - 1 > 10
    world.turn(0)
    assert world.asides == world.looks - 2  # what is there at the first look is taken at once


def test_nothing_outstanding_nothing_spun() -> None:
    world = World()
    assert not any(world.turn(None, outstanding=False) for _ in range(100))


def test_a_spin_ends_in_time() -> None:
    world = World()
    world.turn(None)
    assert SPIN_US <= world.now <= SPIN_US + 2


def test_spinning_that_does_not_pay_ceases() -> None:
    world = World()
    assert world.spins(GIVE_UP, None) == GIVE_UP
    assert world.spins(RETRY - 1, None) == 0
    world.now = 0
    assert world.spins(100 * RETRY, None) <= 100 * TRIAL
    assert world.now <= 100 * (TRIAL * SPIN_US + RETRY + 2 * TRIAL), "an idle loop costs little more than its looks"


def test_events_that_come_too_late_do_not_pay() -> None:
    world = World()
    world.spins(GIVE_UP, SPIN_US * 3)
    assert world.spins(RETRY - 1, SPIN_US * 3) == 0


def test_fruitful_spins_make_up_for_fruitless_ones() -> None:
    """Every second one pays: it goes on. One in three: it ceases for a while."""
    half, third = World(), World()
    assert sum(half.spins(1, None) + half.spins(1, SPIN_US / 2) for _ in range(200)) == 400
    assert sum(third.spins(2, None) + third.spins(1, SPIN_US / 2) for _ in range(200)) < 300


def test_credit_has_a_limit() -> None:
    """However long it has paid, it ceases as soon."""
    world = World()
    world.spins(10_000, SPIN_US / 2)
    assert world.spins(1000, None) < GIVE_UP + 1000 // RETRY * TRIAL + TRIAL


def test_it_is_tried_again_and_stays_when_it_pays_again() -> None:
    world = World()
    world.spins(GIVE_UP, None)
    assert world.spins(RETRY - 1, SPIN_US / 2) == 0
    assert world.spins(1000, SPIN_US / 2) == 1000
