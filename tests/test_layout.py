"""Where a module's data lies, as pure decisions: every state is decided, every interruption recovered, nothing lost."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from hotpair.replication.layout import (
    DATA,
    LONGEST_NAME,
    POINTS,
    Goal,
    Kind,
    Refusal,
    Step,
    decide,
    objection_to_name,
    sibling_of,
)
from hotpair.replication.layout_io import LONGEST_PLAN

STATES = list(itertools.product(Kind, Kind))
CHANGING = (Goal.PROTECT, Goal.UNPROTECT)


@dataclass
class World:
    """The two names, as the steps change them; a step that would lose or cover something fails here."""

    named: Kind
    sibling: Kind
    closable: bool = True

    def do(self, step: Step) -> None:
        match step:
            case Step.MAKE:
                assert self.sibling is Kind.ABSENT
                self.sibling = Kind.EMPTY
            case Step.MARK:
                assert self.sibling is Kind.EMPTY and self.named in DATA
                self.sibling = Kind.OPEN_POINT
            case Step.EXCHANGE:
                assert Kind.POINT not in (self.named, self.sibling), "an immutable directory cannot be renamed"
                assert Kind.ABSENT not in (self.named, self.sibling)
                self.named, self.sibling = self.sibling, self.named
            case Step.CLOSE:
                assert self.named is Kind.OPEN_POINT and self.closable
                self.named = Kind.POINT
            case Step.OPEN:
                assert self.named is Kind.POINT
                self.named = Kind.OPEN_POINT
            case Step.REMOVE:
                assert self.sibling in (Kind.EMPTY, Kind.OPEN_POINT), "only an empty directory that is no data"
                assert self.named in DATA
                self.sibling = Kind.ABSENT
            case Step.DONE:
                raise AssertionError("the end is not done")

    def next(self, goal: Goal) -> Step | Refusal:
        return decide(goal, self.named, self.sibling, self.closable)

    def run(self, goal: Goal, most: int = LONGEST_PLAN) -> list[Step]:
        """The steps that were done: all that are needed, or the first ``most``."""
        done: list[Step] = []
        while len(done) < most:
            step = self.next(goal)
            assert isinstance(step, Step), step
            if step is Step.DONE:
                break
            self.do(step)
            done.append(step)
        return done


def reached(world: World, goal: Goal, data: Kind) -> bool:
    if goal is Goal.UNPROTECT:
        return (world.named, world.sibling) == (data, Kind.ABSENT)
    return (world.named, world.sibling) == (Kind.POINT if world.closable else Kind.OPEN_POINT, data)


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("closable", [True, False])
def test_every_state_is_decided(goal: Goal, closable: bool) -> None:
    for named, sibling in STATES:
        assert isinstance(decide(goal, named, sibling, closable), Step | Refusal)


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("closable", [True, False])
def test_what_is_begun_from_any_state_ends_and_is_never_refused_half_way(goal: Goal, closable: bool) -> None:
    for named, sibling in STATES:
        world = World(named, sibling, closable)
        if isinstance(world.next(goal), Refusal):
            continue
        world.run(goal)
        assert world.next(goal) is Step.DONE, (named, sibling)


@pytest.mark.parametrize("closable", [True, False])
@pytest.mark.parametrize("data", sorted(DATA, key=str))
def test_there_and_back(data: Kind, closable: bool) -> None:
    world = World(data, Kind.ABSENT, closable)
    closing = [Step.CLOSE] if closable else []
    assert world.run(Goal.PROTECT) == [Step.MAKE, Step.MARK, Step.EXCHANGE, *closing]
    assert reached(world, Goal.PROTECT, data)
    assert world.run(Goal.PROTECT) == []
    opening = [Step.OPEN] if closable else []
    assert world.run(Goal.UNPROTECT) == [*opening, Step.EXCHANGE, Step.REMOVE]
    assert reached(world, Goal.UNPROTECT, data)
    assert world.run(Goal.UNPROTECT) == []


@pytest.mark.parametrize("second", CHANGING)
@pytest.mark.parametrize("first", CHANGING)
@pytest.mark.parametrize("closable", [True, False])
@pytest.mark.parametrize("data", sorted(DATA, key=str))
def test_interrupted_after_every_step_either_command_goes_on(
    data: Kind, closable: bool, first: Goal, second: Goal
) -> None:
    for interrupted_after in range(LONGEST_PLAN):
        world = World(data, Kind.ABSENT, closable)
        if first is Goal.UNPROTECT:
            world.run(Goal.PROTECT)
        world.run(first, most=interrupted_after)
        assert [world.named, world.sibling].count(data) >= 1
        world.run(second)
        assert reached(world, second, data), (interrupted_after, world)


@pytest.mark.parametrize("first", CHANGING)
def test_a_mirror_starts_on_whole_data_or_not_at_all(first: Goal) -> None:
    """In the middle of a change it starts on what is certainly the data, or says what to do."""
    for interrupted_after in range(LONGEST_PLAN):
        world = World(Kind.FULL, Kind.ABSENT)
        if first is Goal.UNPROTECT:
            world.run(Goal.PROTECT)
        world.run(first, most=interrupted_after)
        step = world.next(Goal.USE)
        if isinstance(step, Refusal):
            assert step is Refusal.INTERRUPTED and world.named is Kind.FULL and world.sibling is not Kind.ABSENT
            continue
        assert world.run(Goal.USE) in ([], [Step.CLOSE])
        if world.named in DATA:
            assert world.sibling is Kind.ABSENT
        else:
            assert (world.named, world.sibling) == (Kind.POINT, Kind.FULL)


@pytest.mark.parametrize("goal", Goal)
def test_two_directories_with_content_are_left_alone(goal: Goal) -> None:
    full = {Kind.FULL, Kind.SPOILED_POINT}
    for named, sibling in itertools.product(full, full):
        assert isinstance(decide(goal, named, sibling, True), Refusal)


@pytest.mark.parametrize("goal", Goal)
@pytest.mark.parametrize("point", sorted(POINTS, key=str))
def test_a_mount_point_without_data_is_not_taken_for_an_empty_module(goal: Goal, point: Kind) -> None:
    for sibling in (Kind.ABSENT, *POINTS, Kind.SPOILED_POINT):
        assert decide(goal, point, sibling, True) is Refusal.DATA_MISSING


def test_a_refusal_can_be_shown() -> None:
    for refusal in Refusal:
        assert "{" not in refusal.value.format(named="/srv/vm", sibling="/srv/.vm.hotpair")


def test_names() -> None:
    assert sibling_of(b"/srv/vm") == b"/srv/.vm.hotpair"
    assert sibling_of(b"/vm\xff") == b"/.vm\xff.hotpair"
    assert objection_to_name(b"/srv/vm") is None
    assert objection_to_name(b"/srv/.hotpair") is None  # no sibling: nothing is between the two parts
    for wrong in (b"/", b"/srv/.vm.hotpair", b"/srv/" + b"n" * (LONGEST_NAME + 1)):
        assert objection_to_name(wrong), wrong
    assert objection_to_name(b"/srv/" + b"n" * LONGEST_NAME) is None
    assert len(sibling_of(b"/srv/" + b"n" * LONGEST_NAME).rpartition(b"/")[2]) == 255
