"""Exhaustive exploration: every interleaving of two real state machines and a model of the rest, breadth first.

    python -m hotpair.cluster.simulation.explore --kind witness --faults 2 --commands 1

Prints the number of states, or the shortest trace to a world in which an invariant does not hold. Liveness: from every
world in which the module has to run, a world in which it does must be reachable without any further fault or command.
"""

from __future__ import annotations

import argparse
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.module_events import Command
from hotpair.cluster.simulation import invariants
from hotpair.cluster.simulation.actions import FREE, Action, Scope, Sort, actions, cuts, describe, pay, perform
from hotpair.cluster.simulation.canonical import canonical
from hotpair.cluster.simulation.world import (
    NAMES,
    Server,
    World,
    changed,
    pair_apart,
    pair_in_sync,
    pair_split,
    under_policies,
)
from hotpair.cluster.split_brain import MANUAL, MOST_CHANGES, SERVER, WORDS

MOST_STATES = 20_000_000  # more do not fit into memory


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


class Explorer:
    """One exploration; made for one run."""

    def __init__(self, scope: Scope, start: World, most: int = MOST_STATES) -> None:
        self._scope = scope
        self._most = most
        self._index: dict[tuple[object, ...], int] = {}
        self._worlds: list[World] = []
        self._parents = array("l")
        self._actions: list[Action | None] = []
        self._depth = array("H")
        self._servers: tuple[dict[Server, tuple[int, Server]], ...] = ({}, {})  # one each: their settings differ
        self._server_ids: dict[int, int] = {}
        self._free = array("L")  # targets of the actions that cost nothing, of one world after the other
        self._first_free = array("L", [0])
        self._transitions = 0
        self._add(canonical(start), -1, None)

    def run(self, *, liveness: bool = True, progress: Callable[[int], None] | None = None) -> Outcome:
        began = time.monotonic()
        i = 0
        wrong, at = "", -1
        kind = self._scope.kind
        while i < len(self._worlds) and not wrong:
            world = self._worlds[i]
            for action, sort in self._possible(world):
                try:
                    raw = pay(perform(world, action, self._scope), sort)
                    after = canonical(raw)
                except AssertionError as error:
                    wrong, at = f"assertion: {error!r} in {describe(action)}", i
                    break
                self._transitions += 1
                known = len(self._worlds)
                j = self._add(after, i, action)
                if sort == FREE:
                    self._free.append(j)
                if j == known:
                    why = invariants.wrong(self._worlds[j], kind) or invariants.nothing_backwards(world, raw)
                    why = why or invariants.one_copy_stays(after)
                    if why:
                        wrong, at = why, j
                        break
            self._first_free.append(len(self._free))
            i += 1
            if progress is not None and i % 20000 == 0:
                progress(i)
            if len(self._worlds) > self._most:
                break
        complete = i == len(self._worlds) and not wrong
        if complete and liveness:
            wrong, at = self._stuck()
        trace = self._trace(at) if wrong else ()
        depth = max(self._depth) if self._depth else 0
        return Outcome(len(self._worlds), self._transitions, depth, complete, time.monotonic() - began, wrong, trace)

    def _possible(self, world: World) -> list[tuple[Action, Sort]]:
        found: list[tuple[Action, Sort]] = []
        for action, sort in actions(world, self._scope):
            found.append((action, sort))
            if world.faults > sort.faults:
                dear = Sort(sort.faults + 1, sort.commands)
                found.extend((cut, dear) for cut in cuts(world, action, self._scope))
        return found

    def _add(self, world: World, parent: int, action: Action | None) -> int:
        key = (self._number(world, 0), self._number(world, 1), *world[1:])
        j = self._index.get(key)
        if j is None:
            j = self._index[key] = len(self._worlds)
            a, b = (self._servers[s][world.servers[s]][1] for s in (0, 1))
            self._worlds.append(world._replace(servers=(a, b)))
            self._parents.append(parent)
            self._actions.append(action)
            self._depth.append(self._depth[parent] + 1 if parent >= 0 else 0)
        return j

    def _number(self, world: World, s: int) -> int:
        """Equal servers are one object with one number: comparing and hashing a world is cheap then."""
        server = world.servers[s]
        number = self._server_ids.get(id(server))
        if number is not None:
            return number
        known = self._servers[s]
        found = known.get(server)
        if found is None:
            found = known[server] = (len(known), server)
            self._server_ids[id(server)] = found[0]
        return found[0]

    # ---- liveness

    def _stuck(self) -> tuple[str, int]:
        goals = (
            ("never runs again", invariants.runs, invariants.must_run),
            ("never in sync again", invariants.in_sync, invariants.must_be_in_sync),
            ("never stops", invariants.nothing_to_stop, invariants.must_stop),
            ("the split brain never ends", self._is_decided, invariants.must_end_split),
        )
        first, into = self._reversed()
        for name, goal, must in goals:
            good = bytearray(len(self._worlds))
            work = [
                i
                for i, world in enumerate(self._worlds)
                if goal(world, self._scope.kind) or (goal != self._is_decided and self._is_excused(world))
            ]
            for i in work:
                good[i] = 1
            while work:
                i = work.pop()
                for j in into[first[i] : first[i + 1]]:
                    if not good[j]:
                        good[j] = 1
                        work.append(j)
            for i, world in enumerate(self._worlds):
                if not good[i] and must(world):
                    return f"liveness: {name}", i
        return "", -1

    def _is_excused(self, world: World) -> bool:
        """Where both may run apart, and after an override, a split brain may come of it: the operator's to end."""
        may_split = self._scope.kind in (Kind.NONE, Kind.PING) or world.overridden
        return may_split and invariants.is_operators(world)

    def _is_decided(self, world: World, kind: Kind) -> bool:
        """No split brain, or one that the policy leaves to the operator."""
        policy = self._scope.policy
        a, b = (changed(server) for server in world.servers)
        return policy == MANUAL or not invariants.is_split(world) or (policy == MOST_CHANGES and a == b)

    def _reversed(self) -> tuple[array[int], array[int]]:
        """The free actions backwards: `into[first[i]:first[i + 1]]` lead to i."""
        count = len(self._worlds)
        first = array("L", bytes(8 * (count + 1)))
        for j in self._free:
            first[j + 1] += 1
        for i in range(count):
            first[i + 1] += first[i]
        place = array("L", first)
        into = array("L", bytes(8 * len(self._free)))
        for i in range(count):
            for j in self._free[self._first_free[i] : self._first_free[i + 1]]:
                into[place[j]] = i
                place[j] += 1
        return first, into

    # ---- telling

    def _trace(self, i: int) -> tuple[str, ...]:
        lines = [show(self._worlds[i])]
        while i >= 0:
            action = self._actions[i]
            if action is not None:
                lines.append(describe(action))
            i = self._parents[i]
        return tuple(reversed(lines))


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
    return Explorer(scope, _begin(scope, faults, commands, start)).run(liveness=liveness)


def _begin(scope: Scope, faults: int, commands: int, start: str) -> World:
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
    explorer = Explorer(scope, _begin(scope, given.faults, given.commands, given.start), given.most)
    began = time.monotonic()

    def progress(done: int) -> None:
        print(f"  {done} expanded, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)

    outcome = explorer.run(liveness=not given.no_liveness, progress=progress)
    for line in outcome.trace:
        print(line)
    if outcome.wrong:
        print(f"VIOLATION {outcome.wrong}")
    else:
        print("nothing wrong" if outcome.complete else "not complete")
    print(
        f"{outcome.states} states, {outcome.transitions} transitions, depth {outcome.depth}, "
        f"complete: {outcome.complete}, {outcome.seconds:.1f} s"
    )
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
