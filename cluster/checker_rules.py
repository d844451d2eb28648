"""From "the checker says down" to "restart the VM": rules, confirmation, and a limit on automatic actions. Pure code.

Knows: what each checker last said, the module's rules, the times of the automatic actions. Must not know: how anything
is checked, roles, the peer, clocks. Whether an action is possible now (a swap needs a green peer) is the state
machine's business; it reports back that the module was started, or that an action could not be done.

`step(memory, event, now, rules)` returns the new memory and the effects in order. The table is total:

| event \\ the checker is | INIT | UP | DOWN |
|---|---|---|---|
| reported up | UP | - | UP, holds the module no longer |
| reported down | DOWN, confirmation begins; - in the first `start_s` | DOWN, confirmation begins | - |
| reported unknown | - | INIT | INIT, confirmation ends |
| tick | - | - | down for `confirm_s`: the action |
| module started | INIT | INIT | INIT |
| module left | INIT, if nothing looks any more | the same | the same; nothing comes out until it is started |
| action failed | - | - | confirmation begins again |
| maintenance begins | - | - | - (nothing comes out until it is lifted) |
| maintenance ends | - | - | confirmation begins again |
| operator's command | - | - | - (the automatic actions so far are forgotten) |

A report of a checker that has no rule (any more) is ignored: it may be late. Unknown is neither up nor down: a check
that cannot be carried out (no such interface, no such command) is no reason to stop what may be running well, nor to
let go what waits. A guest takes its time to boot: for `start_s` after a start a down counts only if it was up before.

Several confirmed at once: the strongest action is done. From then until the module was started, or the action failed,
there is no other one, whatever the checkers say about a module in between. WAIT holds the module until every checker
that asked for it is up; `Resume` says so, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import assert_never


class Action(Enum):
    """The automatic actions, the strongest first."""

    STOP = "stop"
    WAIT = "wait"
    SWAP = "swap"
    STOPSTART = "stopstart"
    RESTART = "restart"
    NONE = "none"


_STRENGTH = {action: -i for i, action in enumerate(Action)}
_LOOPING = frozenset({Action.WAIT, Action.SWAP, Action.STOPSTART, Action.RESTART})  # what brings the module back


class CheckerStatus(Enum):
    """INIT: has not said up or down since the module was started, or cannot say it any more."""

    INIT = "init"
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True)
class Rule:
    """When `checker` has been down for `confirm_s`: `action`. `start_s`: so long the module may take to come up."""

    checker: str
    action: Action
    confirm_s: float
    start_s: float = 0.0


@dataclass(frozen=True)
class Rules:
    """A module's rules, one for each checker. `loop_interval_s` 0: no limit on automatic actions."""

    rules: Mapping[str, Rule]
    max_loop: int
    loop_interval_s: float

    def __post_init__(self) -> None:
        assert self.max_loop >= 1 and self.loop_interval_s >= 0
        assert all(name == rule.checker and min(rule.confirm_s, rule.start_s) >= 0 for name, rule in self.rules.items())


# ---- events


@dataclass(frozen=True)
class Reported:
    """A checker's result, None if it cannot be said; `text` is its own explanation."""

    checker: str
    up: bool | None
    text: str = ""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Started:
    """The module was started (again): what was seen before says nothing about it."""


@dataclass(frozen=True)
class Left:
    """The module does not run here any more, or not as it should: no action is due. `still`: who goes on looking."""

    still: frozenset[str]


@dataclass(frozen=True)
class ActionFailed:
    """The state machine could not do the last action; the rules try again after another `confirm_s`."""


@dataclass(frozen=True)
class Maintenance:
    """Begun or lifted by the operator."""

    on: bool


@dataclass(frozen=True)
class Commanded:
    """The operator gave a command: somebody looks after the module."""


Event = Reported | Tick | Started | Left | ActionFailed | Maintenance | Commanded


# ---- effects


@dataclass(frozen=True)
class Act:
    """Do it now. For NONE: only say it."""

    action: Action
    checker: str
    reason: str


@dataclass(frozen=True)
class Resume:
    """No checker holds the module in WAIT any more."""

    reason: str


Effect = Act | Resume


@dataclass(frozen=True)
class Checker:
    """`since`: when the status began, or the confirmation if that began later. `told`: a rule NONE was reported."""

    status: CheckerStatus
    since: float
    told: bool = False
    text: str = ""


@dataclass(frozen=True)
class Memory:
    """What is known of one module on this server.

    actions_at      times of the automatic actions that still count, at most `max_loop`
    under_way       the action after which the module has not been started yet
    held            the checkers for which it waits
    running         started, and not left since
    started_at      the last time
    """

    checkers: Mapping[str, Checker]
    now: float
    actions_at: tuple[float, ...] = ()
    under_way: Action | None = None
    held: frozenset[str] = frozenset()
    maintenance: bool = False
    running: bool = True
    started_at: float = -math.inf


def begin(rules: Rules, now: float) -> Memory:
    """No checker has reported yet."""
    return Memory({name: Checker(CheckerStatus.INIT, now) for name in rules.rules}, now)


def keep_from_starting(memory: Memory, rules: Rules, before_start: Collection[str]) -> tuple[str, ...]:
    """The checkers with the action WAIT that do not let the module start: down, or not reported yet.

    `before_start`: those that run before the module is started; the others have nothing to look at until then.
    """
    return tuple(
        name
        for name, rule in sorted(rules.rules.items())
        if rule.action is Action.WAIT and name in before_start and memory.checkers[name].status is not CheckerStatus.UP
    )


def due_at(memory: Memory, rules: Rules) -> float | None:
    """When the next `Tick` is needed, if nothing else happens before; None if only an event can change something."""
    if memory.maintenance or not memory.running:
        return None
    waiting = [
        checker.since + rules.rules[name].confirm_s
        for name, checker in memory.checkers.items()
        if checker.status is CheckerStatus.DOWN and _may_act(memory, name, rules)
    ]
    return min(waiting, default=None)


def step(memory: Memory, event: Event, now: float, rules: Rules) -> tuple[Memory, list[Effect]]:
    """One event. `rules` are those of `begin`: new rules begin anew."""
    assert now >= memory.now, "the clock is monotonic"
    memory = replace(memory, now=now)
    match event:
        case Reported():
            memory = _reported(memory, event, rules)
        case Tick():
            pass
        case Started():
            fresh = _each(memory, lambda checker: Checker(CheckerStatus.INIT, now))
            memory = replace(fresh, under_way=None, held=frozenset(), running=True, started_at=now)
        case Left(still):
            kept = {
                name: checker if name in still else Checker(CheckerStatus.INIT, now)
                for name, checker in memory.checkers.items()
            }
            memory = replace(memory, checkers=kept, held=memory.held & still, running=False)
        case ActionFailed():
            memory = replace(_each(memory, _confirm_again(now)), under_way=None, held=frozenset())
        case Maintenance(on):
            if memory.maintenance and not on:
                memory = _each(memory, _confirm_again(now))
            memory = replace(memory, maintenance=on)
        case Commanded():
            memory = replace(memory, actions_at=())
        case _ as never:
            assert_never(never)
    return (memory, []) if memory.maintenance else _decide(memory, rules)


def _each(memory: Memory, change: Callable[[Checker], Checker]) -> Memory:
    return replace(memory, checkers={name: change(checker) for name, checker in memory.checkers.items()})


def _confirm_again(now: float) -> Callable[[Checker], Checker]:
    def change(checker: Checker) -> Checker:
        return replace(checker, since=now, told=False) if checker.status is CheckerStatus.DOWN else checker

    return change


_STATUS = {True: CheckerStatus.UP, False: CheckerStatus.DOWN, None: CheckerStatus.INIT}


def _reported(memory: Memory, event: Reported, rules: Rules) -> Memory:
    checker = memory.checkers.get(event.checker)
    if checker is None:
        return memory
    status = _STATUS[event.up]
    comes_up = memory.running and memory.now < memory.started_at + rules.rules[event.checker].start_s
    if status is CheckerStatus.DOWN and checker.status is CheckerStatus.INIT and comes_up:
        status = CheckerStatus.INIT
    if status is checker.status:
        changed = replace(checker, text=event.text)
    else:
        changed = Checker(status, memory.now, text=event.text)
    return replace(memory, checkers={**memory.checkers, event.checker: changed})


def _may_act(memory: Memory, name: str, rules: Rules) -> bool:
    """Whether a confirmed rule of this checker would change anything."""
    action = rules.rules[name].action
    if action is Action.NONE:
        return not memory.checkers[name].told
    if action is Action.WAIT and memory.under_way is Action.WAIT:
        return name not in memory.held
    return memory.under_way is None


def _decide(memory: Memory, rules: Rules) -> tuple[Memory, list[Effect]]:
    """What follows from the checkers now."""
    if not memory.running:
        return _let_go(memory)
    confirmed = [
        rule
        for name, rule in sorted(rules.rules.items())
        if memory.checkers[name].status is CheckerStatus.DOWN
        and memory.now >= memory.checkers[name].since + rule.confirm_s
        and _may_act(memory, name, rules)
    ]
    memory, effects = _tell(memory, [rule for rule in confirmed if rule.action is Action.NONE])
    acting = [rule for rule in confirmed if rule.action is not Action.NONE]
    if memory.under_way is not None:  # held already: further ones only hold it longer
        memory = replace(memory, held=memory.held.union(rule.checker for rule in acting))
    elif acting:
        memory, act = _act(memory, rules, acting)
        effects.append(act)
    memory, resumed = _let_go(memory)
    return memory, [*effects, *resumed]


def _tell(memory: Memory, confirmed: list[Rule]) -> tuple[Memory, list[Effect]]:
    effects: list[Effect] = [Act(Action.NONE, rule.checker, _reason(memory, rule)) for rule in confirmed]
    told = {rule.checker: replace(memory.checkers[rule.checker], told=True) for rule in confirmed}
    return replace(memory, checkers={**memory.checkers, **told}), effects


def _act(memory: Memory, rules: Rules, confirmed: list[Rule]) -> tuple[Memory, Act]:
    """The strongest of the confirmed rules, or the end of the loop."""
    rule = max(confirmed, key=lambda candidate: _STRENGTH[candidate.action])
    action, reason = rule.action, _reason(memory, rule)
    counted = rules.loop_interval_s > 0 and action in _LOOPING
    recent = tuple(at for at in memory.actions_at if memory.now - at < rules.loop_interval_s)
    if counted and len(recent) >= rules.max_loop:
        reason = (
            f"{reason}; this would be automatic action {len(recent) + 1} within {rules.loop_interval_s:g} s, of which "
            f"{rules.max_loop} are allowed. Repair the cause, then start the module"
        )
        action = Action.STOP
    elif counted:
        recent = (*recent, memory.now)
    held = frozenset(one.checker for one in confirmed if one.action is Action.WAIT and action is Action.WAIT)
    return replace(memory, actions_at=recent, under_way=action, held=held), Act(action, rule.checker, reason)


def _let_go(memory: Memory) -> tuple[Memory, list[Effect]]:
    holding = {name for name in memory.held if memory.checkers[name].status is not CheckerStatus.UP}
    if not memory.held or holding:
        return memory, []
    return replace(memory, held=frozenset()), [Resume(f"up again: {', '.join(sorted(memory.held))}")]


def _reason(memory: Memory, rule: Rule) -> str:
    checker = memory.checkers[rule.checker]
    what = f": {checker.text}" if checker.text else ""
    return f"checker {rule.checker} has been down for {memory.now - checker.since:.0f} s{what}"
