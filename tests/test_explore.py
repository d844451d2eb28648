"""Small scopes explored completely, and each rule left out once: the checkers can fail."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.module_events import Command
from hotpair.cluster.module_values import Module, Role
from hotpair.cluster.simulation import goals, invariants, mirrors
from hotpair.cluster.simulation.actions import Scope, actions, cuts, pay, perform, urgent
from hotpair.cluster.simulation.canonical import Canonical
from hotpair.cluster.simulation.explore import MOST_STATES, Explorer, begin, explore, main
from hotpair.cluster.simulation.world import FRESH, World, change, pair_in_sync
from tests.left_out import LEFT_OUT, LeftOut

ALL = Scope(Kind.NONE).faults


TWICE = (Command.START, Command.STOP, Command.SWAP, Command.RESTART, Command.STOPSTART)


@pytest.mark.parametrize(
    ("kind", "commands"),
    [
        (Kind.WITNESS, TWICE),
        (Kind.FENCE, (Command.STOP, Command.SWAP, Command.RESTART)),
        pytest.param(Kind.FENCE, TWICE, marks=pytest.mark.long),
        (Kind.NONE, TWICE),
        (Kind.MANUAL, TWICE),
    ],
)
def test_a_command_alone_is_safe_and_live(kind: Kind, commands: tuple[Command, ...]) -> None:
    outcome = explore(Scope(kind, commands=commands), 0, 2)
    assert outcome.wrong == "", "\n".join(outcome.trace)
    assert outcome.complete
    assert outcome.transitions > 500


@pytest.mark.parametrize(
    ("kind", "start", "writes", "least"),
    [
        (Kind.WITNESS, "in-sync", 1, 5_000),
        (Kind.WITNESS, "apart", 1, 5_000),
        pytest.param(Kind.WITNESS, "apart", 2, 40_000, marks=pytest.mark.long),
        (Kind.FENCE, "in-sync", 1, 2_000),
        (Kind.FENCE, "apart", 2, 1_000),
        (Kind.NONE, "in-sync", 1, 1_000),
        (Kind.NONE, "apart", 2, 500),
    ],
)
def test_any_single_fault_is_survived(kind: Kind, start: str, writes: int, least: int) -> None:
    outcome = explore(Scope(kind, writes=writes), 1, 0, start)
    assert outcome.wrong == "", "\n".join(outcome.trace)
    assert outcome.complete
    assert outcome.transitions > least


SWAP_ONLY = (Command.SWAP,)


@pytest.mark.parametrize(
    "scope",
    [
        Scope(Kind.WITNESS, faults=frozenset({"crash", "cut", "arbiter"}), commands=SWAP_ONLY),
        Scope(Kind.FENCE, faults=frozenset({"crash", "network"}), commands=SWAP_ONLY),
        Scope(Kind.NONE),
        pytest.param(Scope(Kind.WITNESS), marks=pytest.mark.long),
        pytest.param(Scope(Kind.FENCE), marks=pytest.mark.long),
    ],
    ids=lambda scope: f"{scope.kind.value}, {len(scope.faults)} faults, {len(scope.commands)} commands",
)
def test_a_fault_in_the_middle_of_a_command_is_survived(scope: Scope) -> None:
    outcome = explore(scope, 1, 1)
    assert outcome.wrong == "", "\n".join(outcome.trace)
    assert outcome.complete


@pytest.mark.parametrize("policy", ["former-primary", "most-changes", "server:a", "server:b"])
def test_a_split_brain_is_ended_by_the_policy(policy: str) -> None:
    """The network breaks, both go on alone and write; one copy is always left, and what is lost is saved first."""
    outcome = explore(Scope(Kind.NONE, 2, frozenset({"network", "cut"}), (), policy=policy), 1, 0)
    assert outcome.wrong == "", "\n".join(outcome.trace)
    assert outcome.complete
    assert outcome.transitions > 200


@pytest.mark.parametrize(("policy", "writes"), [("most-changes", 4), ("server:b", 2)])
def test_servers_that_look_at_different_moments_never_both_give_up(policy: str, writes: int) -> None:
    """Pulses may be old, the reports of mirror and VM late, and both VMs go on writing meanwhile.

    Found so: the kept side had copied already, its number had fallen, and it had not heard that the other had given up.
    """
    outcome = explore(Scope(Kind.NONE, writes, frozenset(), (), False, True, True, policy), 0, 0, "split")
    assert outcome.wrong == "", "\n".join(outcome.trace)
    assert outcome.complete


@pytest.mark.parametrize("policy", ["most-changes", "server:b"])
def test_a_split_brain_is_ended_whatever_breaks_in_the_middle(policy: str) -> None:
    faults = frozenset({"network", "link", "crash", "control", "mirror", "cut"})
    outcome = explore(Scope(Kind.NONE, 3, faults, (), policy=policy), 1, 0, "split")
    assert outcome.wrong == "", "\n".join(outcome.trace)
    assert outcome.complete


@pytest.mark.parametrize("is_complete", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("left_out", LEFT_OUT, ids=lambda rule: rule.name)
def test_a_rule_that_is_left_out_is_noticed(
    left_out: LeftOut, is_complete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same scope with the rule is clean: as far as it took to notice, or all of it. Liveness is seen at the end."""
    start = begin(left_out.scope, left_out.faults, left_out.commands, left_out.start)
    with monkeypatch.context() as without:
        for module, name, instead in left_out.patches:
            without.setattr(module, name, instead)
        outcome = Explorer(left_out.scope, start).run()
    assert outcome.wrong and outcome.trace
    assert not outcome.wrong.startswith("assertion"), "an invariant must notice it, not the code itself"
    to_the_end = is_complete or outcome.wrong.startswith("liveness")
    with_it = Explorer(left_out.scope, start, MOST_STATES if to_the_end else outcome.states).run()
    assert with_it.wrong == "", "\n".join(with_it.trace)
    assert with_it.states >= outcome.states or with_it.complete
    assert with_it.complete or not to_the_end


def what_follows(world: World, scope: Scope) -> Iterator[World]:
    """By the real functions, nothing remembered, nothing renamed."""
    for action, sort in actions(world, scope):
        yield pay(perform(world, action, scope), sort)
        if world.faults > sort.faults:
            for cut in cuts(world, action, scope):
                yield pay(perform(world, cut, scope), sort._replace(faults=sort.faults + 1))


def as_it_is(module: Module) -> Module:
    return module


@pytest.mark.parametrize(
    ("kind", "commands", "faults"),
    [
        (Kind.WITNESS, 0, ALL),
        (Kind.FENCE, 0, ALL),
        (Kind.NONE, 1, frozenset({"crash", "cut", "arbiter"})),
        pytest.param(Kind.NONE, 1, ALL, marks=pytest.mark.long),
    ],
    ids=lambda given: f"{len(given)} faults" if isinstance(given, frozenset) else None,
)
def test_nothing_is_missed_by_remembering_and_passing_through(
    kind: Kind, commands: int, faults: frozenset[str]
) -> None:
    scope = Scope(kind, faults=faults, commands=(Command.SWAP,))
    naming = Canonical(as_it_is, kind, is_power_lost=False)
    start = begin(scope, 1, commands)
    found = [start]
    known = {start}
    for world in found:
        for after in what_follows(world, scope):
            name = naming(after)
            if name not in known:
                known.add(name)
                found.append(name)
    kept = sum(world.faults > 0 or urgent(world, scope) is None for world in found)
    outcome = explore(scope, 1, commands)
    assert outcome.states == kept < len(found)


@pytest.mark.parametrize(
    ("kind", "start", "faults"),
    [(Kind.WITNESS, "in-sync", 3), (Kind.WITNESS, "apart", 2), (Kind.FENCE, "in-sync", 2), (Kind.NONE, "split", 2)],
)
def test_a_world_and_its_name_do_the_same(kind: Kind, start: str, faults: int) -> None:
    """Random ways through worlds whose ids, terms and epochs are as they came: what a name leaves out has no effect."""
    commands = (Command.SWAP, Command.STOP, Command.START, Command.PRIM_FORCE)
    scope = Scope(kind, 2, commands=commands, policy="former-primary")
    naming = Canonical(as_it_is, kind, is_power_lost=False)

    def name(world: World) -> World:
        return naming(world)._replace(fresh=FRESH)

    random = Random(f"{kind} {start}")
    for _ in range(30):
        world = begin(scope, faults, 2, start)
        for i in range(80):
            named = name(world)
            after = [*what_follows(world, scope)]
            expected = {name(other) for other in what_follows(named, scope)}
            assert {name(other) for other in after} - {named} == expected - {named}
            assert goals.mark(world, scope) == goals.mark(named, scope)
            assert invariants.wrong(world, kind) == invariants.wrong(named, kind)
            if not after:
                break
            world = random.choice(after)._replace(fresh=(1000 + i).to_bytes(16, "big"))


def test_what_a_dead_source_held_is_gone_when_a_target_takes_its_place() -> None:
    """Found so: it was acknowledged when the server was source again, long after its copy had been overwritten."""
    world = mirrors.die(mirrors.write(pair_in_sync(Kind.WITNESS, 0, 0), 0), 0)
    assert world.servers[0].held == 0, "the kernel still waits for a source"
    world = mirrors.start(change(world, 0, vm=False), 0, Role.TARGET, alone=False)
    assert world.servers[0].held == -1


def test_the_command_prints_what_it_explored(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kind", "none", "--faults", "0", "--commands", "1", "--only-commands", "stop"]) == 0
    printed = capsys.readouterr().out
    assert "nothing wrong" in printed
    assert "states" in printed
