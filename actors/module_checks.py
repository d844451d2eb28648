"""One module's checkers at work: what is found goes into the rules, what they say goes to the module. No Ray in here.

In the supervisor, beside the module's runner, because the rules need what only the state machine knows: whether the
module runs here, whether an action could be done, what the operator has ordered. Nothing is waited for but the durable
write of the loop counter. What is checked on this machine is reported by the prober (prober.py); only the kind "module"
is looked at from here, since the supervisor is who knows.

`follow` is called after each event of the module, `hear` with each report and each tick. Both bring everything in line:
which checks are made, whether a checker holds the module, when the next tick is due.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hotpair.cluster import check_times, checker_rules
from hotpair.cluster.check_times import Turn, Turns
from hotpair.cluster.checker_rules import Act, Action, ActionFailed, Left, Reported, Tick
from hotpair.cluster.checks import (
    HERE_ONLY,
    Checked,
    Finding,
    Found,
    Watch,
    may_be_held,
    runs,
    standing_of,
    to_watch,
    unknown,
)
from hotpair.cluster.configuration import Module as Configured
from hotpair.cluster.loop_counter_io import LoopCounter
from hotpair.cluster.module_events import CheckerActed, Commanded, Event, Reply
from hotpair.cluster.module_values import Module, Reason, State, Vm

NOT_YET = unknown("not looked at yet")
NOT_NOW = unknown("not looked at while the module does not run here")
ROUNDS = 20  # an action changes the module, which changes what is checked; it comes to an end long before
LEAST_WAIT_S = 0.001


class Runner(Protocol):
    @property
    def module(self) -> Module: ...
    def handle(self, event: Event, replies: Callable[[Reply], None] | None = None) -> None: ...


class Counter(Protocol):
    """What is durable when the call returns. Raises NotStored."""

    def store_loop(self, counter: LoopCounter) -> None: ...


class Diary(Protocol):
    def add(self, kind: str, **fields: Any) -> None: ...


@dataclass(frozen=True)
class Shown:
    """For people. `since`: seconds since 1970 from which on it was found like that."""

    name: str
    kind: str
    finding: Finding
    since: float
    detail: str


class ModuleChecks:
    """Not for several threads. Whatever a port raises goes up: nothing was done that needed it."""

    def __init__(
        self,
        configured: Configured,
        runner: Runner,
        counter: LoopCounter,
        *,
        watch: Callable[[Watch], None],
        tick_after: Callable[[float], None],
        other: Callable[[str], Module | None],
        shelf: Counter,
        diary: Diary,
        clock: Callable[[], float],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """`tick_after`: call `hear(Tick())` once after so many seconds, instead of when it was asked to before."""
        now, wall = clock(), wall_clock()
        self._configured = configured
        self._checkers = {one.name: one for one in configured.checkers}
        self._rules = configured.rules
        self._before_start = frozenset(one.name for one in configured.checkers if one.before_start)
        self._runner = runner
        self._watch = watch
        self._tick_after = tick_after
        self._other = other
        self._shelf = shelf
        self._diary = diary
        self._clock = clock
        self._wall_clock = wall_clock
        self._stopped = counter.stopped
        counted = tuple(now - max(0.0, wall - at) for at in counter.actions_at)
        begun = replace(checker_rules.begin(self._rules, now), actions_at=counted)
        self._memory, _ = checker_rules.step(begun, Left(frozenset()), now, self._rules)
        self._module = Module(settings=runner.module.settings)
        self._told = Watch(frozenset(), 0)
        self._own: Turns = {
            one.name: Turn(one.period_s, one.timeout_s) for one in configured.checkers if one.kind in HERE_ONLY
        }
        self._found = {name: Shown(name, one.kind, *_plain(NOT_YET, wall)) for name, one in self._checkers.items()}

    # ---- what people ask

    def shown(self) -> list[Shown]:
        """In the order of their names."""
        return [self._found[name] for name in sorted(self._found)]

    def reason(self, module: Module) -> str:
        """What the module's reason leaves open: which checker holds it, or why it was stopped; empty for nothing."""
        if module.state is State.STOP:
            return self._stopped
        if module.state is not State.WAIT or module.reason is not Reason.CHECKER:
            return ""
        return "; ".join(f"{name}: {self._found[name].detail}" for name in self._holding())

    # ---- what happens

    def hold_before_start(self) -> None:
        """Before the module's first event, when nothing of it runs: it waits for what a start has to wait for."""
        if self._holding():
            self._runner.handle(CheckerActed(Action.WAIT))

    def follow(self, event: Event) -> None:
        """The module has taken an event."""
        if isinstance(event, Commanded):
            self._feed(checker_rules.Commanded())
            if self._stopped and self._runner.module.wanted:
                self._stopped = ""
                self._store()
        self._bring_in_line()

    def hear(self, said: Checked | Tick) -> None:
        """A check was made, or time has passed."""
        if isinstance(said, Checked):
            if said.run != self._told.run or said.checker not in self._told.names:
                return  # late: the module was started since, or is not looked at any more
            self._note(said.checker, said.found)
            self._feed(_reported(said.checker, said.found))
        else:
            self._look_at_modules()
            self._feed(Tick())
        self._bring_in_line()

    # ---- to the rules, and from them

    def _feed(self, event: checker_rules.Event) -> None:
        before = self._memory
        self._memory, effects = checker_rules.step(before, event, self._clock(), self._rules)
        if self._memory.actions_at != before.actions_at:
            self._store()  # counted before it is done: one that takes the server down counts as well
        for effect in effects:
            if isinstance(effect, Act):
                self._act(effect)
            else:
                self._diary.add("checker", text=f"Holds the module no longer: {effect.reason}")

    def _act(self, act: Act) -> None:
        if act.action is Action.NONE:
            self._diary.add("checker", checker=act.checker, action="none", text=f"Nothing is done: {act.reason}")
            return
        if act.action is Action.STOP:
            self._stopped = f"Stopped: {act.reason}."
            self._store()
        answers: list[Reply] = []
        self._runner.handle(CheckerActed(act.action), answers.append)
        refused = next((answer.why for answer in answers if not answer.accepted), "")
        text = f"{act.action.value}: {act.reason}" + (f". It cannot be done: {refused}" if refused else "")
        self._diary.add("checker", checker=act.checker, action=act.action.value, accepted=not refused, text=text)
        if refused:
            self._feed(ActionFailed())

    def _store(self) -> None:
        now, wall = self._clock(), self._wall_clock()
        times = tuple(round(wall - (now - at), 3) for at in self._memory.actions_at)
        self._shelf.store_loop(LoopCounter(times, self._stopped))

    # ---- bringing in line

    def _bring_in_line(self) -> None:
        for _ in range(ROUNDS):
            module = self._runner.module
            self._tell_the_rules(module)
            if self._runner.module is module and not self._hold():
                break
        else:
            raise AssertionError(f"the checkers do not settle: {self._runner.module}")
        self._wake()

    def _tell_the_rules(self, module: Module) -> None:
        """What has become of the module since this was called last."""
        before, self._module = self._module, module
        if module.maintenance != before.maintenance:
            self._feed(checker_rules.Maintenance(module.maintenance))
        began = runs(module) and not runs(before)
        came_on = runs(module) and module.vm is Vm.ON and before.vm is not Vm.ON
        if began or came_on:
            self._feed(checker_rules.Started())
        names = to_watch(module, self._configured.checkers, self._memory.held)
        if not runs(module) and (runs(before) or names != self._told.names):
            self._feed(Left(names))
        self._look_at(Watch(names, self._told.run + (began or came_on)))

    def _look_at(self, wanted: Watch) -> None:
        if wanted == self._told:
            return
        for name in self._told.names - wanted.names:
            self._found[name] = replace(self._found[name], finding=Finding.UNKNOWN, detail=NOT_NOW.detail)
        anew, self._told = wanted.run != self._told.run, wanted
        self._own = check_times.watch(self._own, wanted.names & self._own.keys(), self._clock(), anew=anew)
        self._watch(wanted)

    def _holding(self) -> tuple[str, ...]:
        """For which checkers the module has to wait."""
        held = self._memory.held
        if may_be_held(self._module):
            held |= set(checker_rules.keep_from_starting(self._memory, self._rules, self._before_start))
        return tuple(sorted(held))

    def _hold(self) -> bool:
        """Say to the module whether it is held; whether that was news."""
        module = self._runner.module
        wanted = bool(self._holding()) and not module.maintenance
        if wanted is module.held:
            return False
        if not wanted or may_be_held(module):
            self._runner.handle(CheckerActed(Action.WAIT if wanted else None))
        return self._runner.module is not module

    def _look_at_modules(self) -> None:
        self._own, due, _ = check_times.begin_due(self._own, self._clock())
        for name in due:
            self._own = check_times.ended(self._own, name)
            wanted = self._checkers[name].options["module"]
            found = standing_of(wanted, self._other(wanted))
            self._note(name, found)
            self._feed(_reported(name, found))

    def _note(self, name: str, found: Found) -> None:
        """For people; a change goes to the event log."""
        was = self._found[name]
        if found.finding is was.finding:
            self._found[name] = replace(was, detail=found.detail)
            return
        self._found[name] = Shown(name, was.kind, *_plain(found, self._wall_clock()))
        self._diary.add(
            "checker", checker=name, was=was.finding.value, now=found.finding.value, text=f"{name} {_says(found)}"
        )

    def _wake(self) -> None:
        now = self._clock()
        due = checker_rules.due_at(self._memory, self._rules)
        own = check_times.next_at(self._own, now)
        self._tick_after(max(LEAST_WAIT_S, (own if due is None else min(own, due)) - now))


def _plain(found: Found, at: float) -> tuple[Finding, float, str]:
    return found.finding, round(at, 3), found.detail


def _reported(name: str, found: Found) -> Reported:
    return Reported(name, found.finding.is_up, found.detail)


def _says(found: Found) -> str:
    how = {Finding.UP: "is up", Finding.DOWN: "is down", Finding.UNKNOWN: "cannot be said"}[found.finding]
    return f"{how}: {found.detail}"
