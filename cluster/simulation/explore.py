"""Exhaustive exploration: every interleaving of two real state machines and a model of the rest, breadth first.

    python -m hotpair.cluster.simulation.explore --kind witness --faults 2 --commands 1

Prints the number of states, or a trace to a world in which an invariant does not hold: the shortest, what is urgent not
counted. Liveness: from every world in which the module has to run, a world in which it does must be reachable without
any further fault or command.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.module_events import Command
from hotpair.cluster.simulation import goals, invariants
from hotpair.cluster.simulation.actions import FREE, Action, Scope, Sort, actions, cuts, describe, pay, perform, urgent
from hotpair.cluster.simulation.canonical import Canonical
from hotpair.cluster.simulation.remembered import Kept, remembering
from hotpair.cluster.simulation.world import NAMES, World, pair_apart, pair_in_sync, pair_split, under_policies
from hotpair.cluster.simulation.world_store import WorldStore
from hotpair.cluster.split_brain import MANUAL, SERVER, WORDS

MOST_STATES = 20_000_000  # a state takes about 700 bytes, with what is remembered beside it
PROGRESS_STATES = 50_000
MOST_URGENT = 100  # urgent things, one after the other: far more than the reports and pulses that can be due


@dataclass(frozen=True)
class Outcome:
    """`wrong` is empty when nothing was found. `trace`: one line for each action, then the world it ends in."""

    states: int
    transitions: int
    depth: int
    complete: bool
    seconds: float
    wrong: str
    trace: tuple[str, ...]


class Wrong(NamedTuple):
    """What was found, after these actions in world `parent`, and the world in which it shows."""

    what: str
    parent: int
    actions: tuple[Action, ...]
    world: World


class Way(NamedTuple):
    """From one world that is kept to the next one: an action, then all that is urgent.

    `reached`: goals that are reached on the way; `must`: those that a world on the way must reach, and has not yet.
    """

    actions: tuple[Action, ...]
    end: World
    reached: int
    must: int


class Explorer:
    """One exploration; made for one run.

    A world without faults left in which something is urgent has only that one future: it is looked at, and passed
    through; it is neither kept nor counted as a state.
    """

    def __init__(self, scope: Scope, start: World, most: int = MOST_STATES) -> None:
        self._scope = scope
        self._most = most
        keep = Kept()
        self._machine = remembering(keep)
        self._canonical = Canonical(keep, scope.kind, is_power_lost=scope.power or "power" in scope.faults)
        self._worlds = WorldStore()
        self._parents = array("L")
        self._depth = array("H")
        self._marks = bytearray()  # of each world, for liveness
        self._free = array("L")  # targets of the actions that cost nothing, of one world after the other
        self._first_free = array("Q", [0])
        self._transitions = 0
        self._began = time.monotonic()
        self._add(self._canonical(start), 0)

    def run(self, *, liveness: bool = True, progress: Callable[[str], None] | None = None) -> Outcome:
        i = 0
        wrong: Wrong | None = None
        while i < len(self._worlds) <= self._most and wrong is None:
            wrong = self._expand(i)
            i += 1
            if progress is not None and i % PROGRESS_STATES == 0:
                progress(self._progress(i))
        complete = i == len(self._worlds) and wrong is None
        if complete and liveness:
            what, at = goals.stuck(self._marks, self._free, self._first_free)
            wrong = Wrong(what, at, (), self._worlds[at]) if what else None
        what, trace = ("", ()) if wrong is None else (wrong.what, self._trace(wrong))
        seconds = time.monotonic() - self._began
        return Outcome(len(self._worlds), self._transitions, max(self._depth), complete, seconds, what, trace)

    def _expand(self, i: int) -> Wrong | None:
        """All that can happen in world i; the first thing that is wrong in that."""
        world = self._worlds[i]
        for action, sort in self._possible(world):
            way = self._go(world, action, sort)
            if isinstance(way, Wrong):
                return way._replace(parent=i)
            j = self._add(way.end, i)
            self._marks[j] |= way.must << goals.MUST
            if sort == FREE:
                self._marks[i] |= way.reached
                self._free.append(j)
        self._first_free.append(len(self._free))
        return None

    def _possible(self, world: World) -> list[tuple[Action, Sort]]:
        found: list[tuple[Action, Sort]] = []
        for action, sort in actions(world, self._scope, self._machine):
            found.append((action, sort))
            if world.faults > sort.faults:
                dear = Sort(sort.faults + 1, sort.commands)
                found.extend((cut, dear) for cut in cuts(world, action, self._scope, self._machine))
        return found

    def _go(self, world: World, action: Action, sort: Sort) -> Way | Wrong:
        done = [action]
        reached = must = 0
        while True:
            try:
                after = pay(perform(world, action, self._scope, self._machine), sort)
            except AssertionError as error:
                return Wrong(f"assertion: {error!r} in {describe(action)}", -1, tuple(done), world)
            self._transitions += 1
            why = self._check(world, after)
            if why:
                return Wrong(why, -1, tuple(done), after)
            after = self._canonical(after)
            following = None if after.faults else urgent(after, self._scope, self._machine)
            if following is None:
                return Way(tuple(done), after, reached, must)
            mark = goals.mark(after, self._scope)
            reached |= mark & goals.REACHED
            must = must & ~mark | mark >> goals.MUST
            world, action, sort = after, following, FREE
            done.append(action)
            if len(done) > MOST_URGENT:
                return Wrong("what is urgent never ends", -1, tuple(done), world)

    def _check(self, before: World, after: World) -> str | None:
        why = invariants.wrong(after, self._scope.kind) or invariants.nothing_backwards(before, after)
        return why or invariants.one_copy_stays(after)

    def _add(self, world: World, parent: int) -> int:
        known = len(self._worlds)
        j = self._worlds.add(world)
        if j == known:
            self._parents.append(parent)
            self._depth.append(self._depth[parent] + 1 if j else 0)
            self._marks.append(goals.mark(world, self._scope))
        return j

    # ---- telling

    def _progress(self, done: int) -> str:
        """One line; depth is that of the worlds being expanded."""
        seconds = time.monotonic() - self._began
        return (
            f"{seconds:.0f} s: {done} of {len(self._worlds)} states expanded, {self._transitions} transitions, "
            f"depth {self._depth[done - 1]}, {done / seconds:.0f} a second, {_memory_mib()} MiB"
        )

    def _trace(self, wrong: Wrong) -> tuple[str, ...]:
        lines = [show(wrong.world), *map(describe, reversed(wrong.actions))]
        i = wrong.parent
        while i:
            parent = self._parents[i]
            lines.extend(map(describe, reversed(self._actions_between(parent, i))))
            i = parent
        return tuple(reversed(lines))

    def _actions_between(self, parent: int, i: int) -> tuple[Action, ...]:
        """The first ones that lead there: found again, not kept."""
        world = self._worlds[parent]
        for action, sort in self._possible(world):
            way = self._go(world, action, sort)
            if isinstance(way, Way) and self._worlds.add(way.end) == i:
                return way.actions
        raise AssertionError("this world does not follow from its parent")


def _memory_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def show(world: World) -> str:
    """A world in a few lines."""
    lines = [f"  arbiter {world.standing} acked {world.acked:b} queues {world.queues} wire {world.wire}"]
    for s in (0, 1):
        server = world.servers[s]
        record, module, mirror = server.record, server.module, server.mirror
        marks = ""
        if record is not None:
            flags = ("in_sync", "solo", "inconsistent", "outdated")
            marks = f"g{record.generation[-1]} e{record.epoch} t{record.term} {record.last_role} " + " ".join(
                flag for flag in flags if getattr(record, flag)
            )
        state = "down" if not server.up else "no control plane" if module is None else module.state.value
        reason = "" if module is None else f" ({module.reason.name}, plan {module.plan})"
        process = "no mirror" if mirror is None else f"{mirror.role.value} {mirror.mode.value} linked={mirror.linked}"
        lines.append(
            f"  {NAMES[s]}: {state}{reason}; {process}; vm={server.vm} held={server.held}; {marks}; "
            f"copy {server.copy:b} log {server.dirty:b}"
        )
    return "\n".join(lines)


STARTS = {"in-sync": pair_in_sync, "apart": pair_apart, "split": pair_split}
COMMANDS: tuple[Command, ...] = (Command.START, Command.STOP, Command.SWAP)


def explore(scope: Scope, faults: int, commands: int, start: str = "in-sync", *, liveness: bool = True) -> Outcome:
    return Explorer(scope, begin(scope, faults, commands, start)).run(liveness=liveness)


def begin(scope: Scope, faults: int, commands: int, start: str = "in-sync") -> World:
    return under_policies(STARTS[start](scope.kind, faults, commands), (scope.policy, scope.policy))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="explore", description=__doc__.split("\n")[0])
    parser.add_argument("--kind", choices=[kind.value for kind in Kind], default="witness")
    parser.add_argument("--faults", type=int, default=1)
    parser.add_argument("--commands", type=int, default=1)
    parser.add_argument("--writes", type=int, default=1)
    parser.add_argument("--start", choices=sorted(STARTS), default="in-sync")
    parser.add_argument("--power", action="store_true", help="power cuts, which lose what was not flushed")
    parser.add_argument(
        "--only-faults", help="comma separated, of crash control mirror vm link network arbiter cut late"
    )
    parser.add_argument("--only-commands", help="comma separated")
    parser.add_argument("--late-reports", action="store_true", help="control planes may lag behind mirror and VM")
    parser.add_argument("--stale-pulses", action="store_true", help="pulses may be old")
    parser.add_argument("--split-brain", choices=[*WORDS, *(SERVER + name for name in NAMES)], default=MANUAL)
    parser.add_argument("--no-liveness", action="store_true")
    parser.add_argument("--most", type=int, default=MOST_STATES, help="give up after that many states")
    given = parser.parse_args(arguments)
    scope = Scope(Kind(given.kind), given.writes)
    faults = scope.faults if given.only_faults is None else frozenset(given.only_faults.split(","))
    if given.power:
        faults |= {"power"}
    chosen = COMMANDS
    if given.only_commands is not None:
        chosen = tuple(Command(name) for name in given.only_commands.split(","))
    scope = Scope(
        Kind(given.kind), given.writes, faults, chosen, given.power, given.late_reports, given.stale_pulses,
        given.split_brain,
    )  # fmt: skip
    explorer = Explorer(scope, begin(scope, given.faults, given.commands, given.start), given.most)

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    outcome = explorer.run(liveness=not given.no_liveness, progress=progress)
    for line in outcome.trace:
        print(line)
    if outcome.wrong:
        print(f"VIOLATION {outcome.wrong}")
    else:
        print("nothing wrong" if outcome.complete else "not complete")
    print(
        f"{outcome.states} states, {outcome.transitions} transitions, depth {outcome.depth}, "
        f"complete: {outcome.complete}, {outcome.seconds:.1f} s, {_memory_mib()} MiB"
    )
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
