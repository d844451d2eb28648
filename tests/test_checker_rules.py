"""From checkers to actions: confirmed, counted, never two at once, none in maintenance."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster.checker_rules import (
    Act,
    Action,
    ActionFailed,
    Checker,
    CheckerStatus,
    Commanded,
    Effect,
    Event,
    Left,
    Maintenance,
    Memory,
    Reported,
    Resume,
    Rule,
    Rules,
    Started,
    Tick,
    begin,
    due_at,
    keep_from_starting,
    step,
)

CONFIRM = 15.0


def rules(max_loop: int = 3, loop_interval_s: float = 86400.0, **actions: Action) -> Rules:
    return Rules({name: Rule(name, action, CONFIRM) for name, action in actions.items()}, max_loop, loop_interval_s)


def play(memory: Memory, table: Rules, *events: tuple[float, Event]) -> tuple[Memory, list[Effect]]:
    effects: list[Effect] = []
    for now, event in events:
        memory, more = step(memory, event, now, table)
        effects += more
    return memory, effects


def actions(effects: list[Effect]) -> list[Action | str]:
    return [effect.action if isinstance(effect, Act) else "resume" for effect in effects]


def down(name: str) -> Reported:
    return Reported(name, up=False, text="no answer")


def up(name: str) -> Reported:
    return Reported(name, up=True)


# ---- confirmation


@pytest.mark.parametrize("action", list(Action))
def test_a_rule_acts_when_its_checker_was_down_for_the_whole_time(action: Action) -> None:
    table = rules(tcp=action)
    memory, effects = play(begin(table, 0.0), table, (1.0, up("tcp")), (10.0, down("tcp")), (24.9, Tick()))
    assert effects == [] and due_at(memory, table) == 25.0
    memory, effects = play(memory, table, (25.0, Tick()))
    assert actions(effects) == [action]
    assert isinstance(effects[0], Act) and effects[0].checker == "tcp" and "no answer" in effects[0].reason
    assert due_at(memory, table) is None
    assert play(memory, table, (26.0, Tick()), (99.0, down("tcp")), (100.0, Tick()))[1] == []


def test_one_report_of_up_begins_the_confirmation_again() -> None:
    table = rules(tcp=Action.RESTART)
    events: list[tuple[float, Event]] = [(0.0, down("tcp")), (14.0, up("tcp")), (14.5, down("tcp")), (29.0, Tick())]
    memory, effects = play(begin(table, 0.0), table, *events)
    assert effects == []
    assert actions(play(memory, table, (29.5, Tick()))[1]) == [Action.RESTART]


def test_a_checker_that_has_not_reported_does_nothing() -> None:
    table = rules(tcp=Action.STOP, ping=Action.WAIT)
    assert play(begin(table, 0.0), table, (1000.0, Tick()))[1] == []


def test_a_report_of_an_unknown_checker_is_ignored() -> None:
    table = rules(tcp=Action.STOP)
    memory = begin(table, 0.0)
    assert play(memory, table, (0.0, down("removed"))) == (memory, [])


# ---- one action at a time


def test_the_strongest_of_several_confirmed_rules_is_done() -> None:
    for first, second in product(Action, Action):
        table = rules(a=first, b=second)
        _, effects = play(begin(table, 0.0), table, (0.0, down("a")), (0.0, down("b")), (CONFIRM, Tick()))
        strongest = min((first, second), key=list(Action).index)
        others = [action for action in actions(effects) if action is not Action.NONE]
        assert others == ([] if strongest is Action.NONE else [strongest])
        assert actions(effects).count(Action.NONE) == (first, second).count(Action.NONE)


def test_between_an_action_and_the_start_nothing_else_happens() -> None:
    table = rules(a=Action.STOPSTART, b=Action.RESTART)
    memory, effects = play(begin(table, 0.0), table, (0.0, down("a")), (5.0, down("b")), (CONFIRM, Tick()))
    assert actions(effects) == [Action.STOPSTART]
    memory, effects = play(memory, table, (60.0, Tick()), (60.0, down("b")), (90.0, Tick()))
    assert effects == []
    memory, effects = play(memory, table, (90.0, Started()), (95.0, down("b")), (109.0, Tick()))
    assert effects == []
    assert actions(play(memory, table, (110.0, Tick()))[1]) == [Action.RESTART]


def test_an_action_that_failed_is_tried_again_after_another_confirmation() -> None:
    table = rules(a=Action.SWAP)
    memory, effects = play(begin(table, 0.0), table, (0.0, down("a")), (CONFIRM, Tick()), (20.0, ActionFailed()))
    assert actions(effects) == [Action.SWAP]
    assert due_at(memory, table) == 35.0
    memory, effects = play(memory, table, (34.0, Tick()), (35.0, Tick()))
    assert actions(effects) == [Action.SWAP]
    assert len(memory.actions_at) == 2


# ---- waiting


def test_a_module_waits_until_every_checker_that_holds_it_is_up() -> None:
    table = rules(lan=Action.WAIT, router=Action.WAIT, tcp=Action.RESTART)
    memory, effects = play(begin(table, 0.0), table, (0.0, down("lan")), (10.0, down("router")), (CONFIRM, Tick()))
    assert actions(effects) == [Action.WAIT] and memory.held == {"lan"}
    memory, effects = play(memory, table, (16.0, down("tcp")), (25.0, Tick()), (60.0, Tick()))
    assert effects == [] and memory.held == {"lan", "router"}
    memory, effects = play(memory, table, (61.0, up("lan")), (62.0, Tick()))
    assert effects == []
    memory, effects = play(memory, table, (63.0, up("router")), (64.0, Tick()))
    assert actions(effects) == ["resume"] and "lan, router" in effects[0].reason
    memory, effects = play(memory, table, (65.0, Started()), (90.0, Tick()))
    assert effects == [] and memory.under_way is None


def test_what_is_to_be_up_before_a_start_and_is_not() -> None:
    table = rules(lan=Action.WAIT, disk=Action.WAIT, vm=Action.WAIT, tcp=Action.STOP)
    memory, _ = play(begin(table, 0.0), table, (0.0, up("disk")), (0.0, down("tcp")))
    assert keep_from_starting(memory, table, {"lan", "disk", "tcp"}) == ("lan",)
    memory, _ = play(memory, table, (1.0, down("disk")))
    assert keep_from_starting(memory, table, {"lan", "disk", "tcp"}) == ("disk", "lan")


# ---- the loop counter


def fail_once(memory: Memory, table: Rules, now: float) -> tuple[Memory, list[Effect]]:
    return play(memory, table, (now, Started()), (now, down("tcp")), (now + CONFIRM, Tick()))


@pytest.mark.parametrize("action", [Action.RESTART, Action.STOPSTART, Action.SWAP, Action.WAIT])
def test_the_action_after_the_last_allowed_one_is_a_stop_with_the_reason(action: Action) -> None:
    table = rules(max_loop=3, tcp=action)
    memory = begin(table, 0.0)
    for i in range(3):
        memory, effects = fail_once(memory, table, 100.0 * i)
        assert actions(effects) == [action]
    memory, effects = fail_once(memory, table, 300.0)
    assert actions(effects) == [Action.STOP] and memory.held == frozenset()
    assert "automatic action 4 within 86400 s" in effects[0].reason
    assert play(memory, table, (1e6, Tick()), (2e6, down("tcp")))[1] == []


@pytest.mark.parametrize(("since_first", "expected"), [(999.0, Action.STOP), (1000.0, Action.RESTART)])
def test_actions_older_than_the_interval_do_not_count(since_first: float, expected: Action) -> None:
    table = rules(max_loop=2, loop_interval_s=1000.0, tcp=Action.RESTART)
    memory, _ = fail_once(begin(table, 0.0), table, 0.0)
    memory, _ = fail_once(memory, table, 500.0)
    assert actions(fail_once(memory, table, since_first)[1]) == [expected]


def test_an_operators_command_clears_the_counter_and_interval_0_does_not_count() -> None:
    for table, forgetful in ((rules(1, tcp=Action.RESTART), True), (rules(1, 0.0, tcp=Action.RESTART), False)):
        memory = begin(table, 0.0)
        for i in range(5):
            memory, effects = fail_once(memory, table, 100.0 * i)
            assert actions(effects) == [Action.RESTART]
            if forgetful:
                memory, _ = play(memory, table, (memory.now, Commanded()))


def test_an_unlimited_action_is_not_counted() -> None:
    table = rules(max_loop=1, tcp=Action.NONE)
    memory = begin(table, 0.0)
    for i in range(3):
        memory, effects = fail_once(memory, table, 100.0 * i)
        assert actions(effects) == [Action.NONE] and memory.actions_at == ()


# ---- maintenance


def test_maintenance_suspends_and_its_end_begins_the_confirmation_again() -> None:
    table = rules(tcp=Action.RESTART, lan=Action.WAIT)
    memory, effects = play(
        begin(table, 0.0), table, (0.0, Maintenance(True)), (1.0, down("tcp")), (1.0, down("lan")), (500.0, Tick())
    )
    assert effects == [] and memory.checkers["tcp"].status is CheckerStatus.DOWN and due_at(memory, table) is None
    memory, effects = play(memory, table, (500.0, Maintenance(False)), (514.0, Tick()))
    assert effects == []
    assert actions(play(memory, table, (515.0, Tick()))[1]) == [Action.WAIT]


def test_a_held_module_resumes_only_after_maintenance() -> None:
    table = rules(lan=Action.WAIT)
    memory, _ = play(begin(table, 0.0), table, (0.0, down("lan")), (CONFIRM, Tick()))
    memory, effects = play(memory, table, (20.0, Maintenance(True)), (21.0, up("lan")), (22.0, Tick()))
    assert effects == []
    assert actions(play(memory, table, (30.0, Maintenance(False)))[1]) == ["resume"]


# ---- what cannot be said, what comes up, what does not run here


def test_what_cannot_be_said_ends_the_confirmation_and_lets_nothing_go() -> None:
    table = rules(tcp=Action.RESTART, lan=Action.WAIT)
    events: list[tuple[float, Event]] = [(0.0, down("tcp")), (14.0, Reported("tcp", None)), (99.0, Tick())]
    memory, effects = play(begin(table, 0.0), table, *events)
    assert effects == [] and memory.checkers["tcp"].status is CheckerStatus.INIT
    memory, effects = play(memory, table, (100.0, down("lan")), (115.0, Tick()), (116.0, Reported("lan", None)))
    assert actions(effects) == [Action.WAIT] and memory.held == {"lan"}
    assert actions(play(memory, table, (117.0, up("lan")))[1]) == ["resume"]


def test_a_down_counts_only_when_the_module_had_its_time_to_come_up_or_was_up() -> None:
    table = Rules({"tcp": Rule("tcp", Action.RESTART, CONFIRM, start_s=60.0)}, 3, 86400.0)
    started, _ = play(begin(table, 0.0), table, (100.0, Started()))
    memory, effects = play(started, table, (101.0, down("tcp")), (159.0, down("tcp")), (159.5, Tick()))
    assert effects == [] and memory.checkers["tcp"].status is CheckerStatus.INIT
    memory, effects = play(memory, table, (160.0, down("tcp")), (174.0, Tick()))
    assert effects == []
    assert actions(play(memory, table, (175.0, Tick()))[1]) == [Action.RESTART]
    memory, _ = play(started, table, (110.0, up("tcp")), (111.0, down("tcp")))
    assert actions(play(memory, table, (126.0, Tick()))[1]) == [Action.RESTART]


def test_nothing_is_due_where_the_module_does_not_run() -> None:
    table = rules(tcp=Action.STOP, lan=Action.SWAP)
    memory, _ = play(begin(table, 0.0), table, (0.0, down("tcp")), (0.0, down("lan")), (1.0, Left(frozenset({"lan"}))))
    assert [memory.checkers[name].status for name in ("tcp", "lan")] == [CheckerStatus.INIT, CheckerStatus.DOWN]
    memory, effects = play(memory, table, (99.0, Tick()), (99.0, down("tcp")), (200.0, Tick()))
    assert effects == [] and due_at(memory, table) is None
    memory, effects = play(memory, table, (201.0, Started()), (202.0, down("lan")), (217.0, Tick()))
    assert actions(effects) == [Action.SWAP]


def test_a_module_that_waits_is_held_by_those_who_still_look() -> None:
    table = rules(lan=Action.WAIT, tcp=Action.WAIT)
    memory, effects = play(begin(table, 0.0), table, (0.0, down("lan")), (0.0, down("tcp")), (CONFIRM, Tick()))
    assert actions(effects) == [Action.WAIT] and memory.held == {"lan", "tcp"}
    memory, _ = play(memory, table, (16.0, Left(frozenset({"lan"}))))
    assert memory.held == {"lan"}
    assert actions(play(memory, table, (17.0, up("lan")))[1]) == ["resume"]
    memory, effects = play(memory, table, (17.0, Left(frozenset())))
    assert (memory.held, effects) == (frozenset(), [])


# ---- any order of anything

NAMES = ("a", "b", "c")
LEFT: list[Event] = [Left(frozenset()), Left(frozenset({"a"})), Left(frozenset({"a", "b", "c"}))]
PLAIN: list[Event] = [Tick(), Started(), ActionFailed(), Commanded(), Maintenance(True), Maintenance(False), *LEFT]
events = st.lists(
    st.tuples(
        st.sampled_from([0.0, 1.0, 5.0, 14.5, 15.0, 30.0, 100.0]),
        st.one_of(
            st.builds(Reported, st.sampled_from((*NAMES, "unknown")), st.sampled_from([True, False, False, None])),
            st.sampled_from([Tick(), *PLAIN]),
        ),
    ),
    max_size=80,
)


@given(events, st.tuples(*[st.sampled_from(Action)] * 3), st.integers(1, 3), st.sampled_from([0.0, 60.0, 1000.0]))
@settings(max_examples=250, deadline=None)
def test_whatever_happens_every_action_is_confirmed_single_and_within_the_limit(
    story: list[tuple[float, Event]], kinds: tuple[Action, ...], max_loop: int, interval: float
) -> None:
    table = rules(max_loop, interval, **dict(zip(NAMES, kinds, strict=True)))
    memory, now = begin(table, 0.0), 0.0
    down_since: dict[str, float] = {}
    maintenance, running, under_way = False, True, None
    automatic: list[float] = []
    for delay, event in story:
        now += delay
        before = memory
        memory, effects = step(memory, event, now, table)
        match event:
            case Reported(name, True | None):
                down_since.pop(name, None)
            case Reported(name, False):
                down_since.setdefault(name, now)
            case Started():
                down_since, under_way, running = {}, None, True
            case Left(still):
                down_since = {name: since for name, since in down_since.items() if name in still}
                running = False
            case ActionFailed():
                under_way = None
            case Commanded():
                automatic = []
            case Maintenance(on):
                maintenance = on
        assert not (maintenance and effects)
        for effect in effects:
            if isinstance(effect, Resume):
                assert under_way is Action.WAIT
                assert before.held and not before.held & down_since.keys()
                continue
            assert running
            assert now - down_since[effect.checker] >= CONFIRM
            if effect.action is Action.NONE:
                continue
            assert under_way is None
            under_way = effect.action
            assert effect.action in (table.rules[effect.checker].action, Action.STOP)
            if effect.action is not Action.STOP:
                automatic = [at for at in automatic if now - at < interval] + [now]
                assert interval == 0 or len(automatic) <= max_loop
        assert len(memory.actions_at) <= max_loop
        assert memory.held == frozenset() or memory.under_way is Action.WAIT
        due = due_at(memory, table)
        assert due is None or (running and not maintenance and due > now)


def test_the_table_is_total() -> None:
    """Every kind of event meets a checker in every status, held or not, in maintenance or not."""
    table = rules(a=Action.WAIT)
    kinds: list[Event] = [up("a"), down("a"), Reported("a", None), *PLAIN]
    for event, status, held, maintenance in product(kinds, CheckerStatus, (False, True), (False, True)):
        memory = Memory(
            {"a": Checker(status, 0.0)},
            0.0,
            under_way=Action.WAIT if held else None,
            held=frozenset({"a"} if held else ()),
            maintenance=maintenance,
        )
        after, effects = step(memory, event, 100.0, table)
        expected = status
        if isinstance(event, Reported):
            expected = {True: CheckerStatus.UP, False: CheckerStatus.DOWN, None: CheckerStatus.INIT}[event.up]
        elif isinstance(event, Started) or (isinstance(event, Left) and "a" not in event.still):
            expected = CheckerStatus.INIT
        assert after.checkers["a"].status is expected
        if maintenance and event != Maintenance(False):
            assert effects == []
