"""Small scopes explored completely, and each rule left out once: the checkers can fail."""

from __future__ import annotations

import pytest

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.module_events import Command
from hotpair.cluster.simulation.actions import Scope
from hotpair.cluster.simulation.explore import explore, main
from tests.left_out import LEFT_OUT, LeftOut

ALL = Scope(Kind.NONE).faults


@pytest.mark.parametrize("kind", [Kind.WITNESS, Kind.FENCE, Kind.NONE, Kind.MANUAL])
def test_a_command_alone_is_safe_and_live(kind: Kind) -> None:
    commands = (Command.START, Command.STOP, Command.SWAP, Command.RESTART, Command.STOPSTART)
    outcome = explore(Scope(kind, commands=commands), 0, 2)
    assert outcome.wrong == "", "\n".join(outcome.trace)
    assert outcome.complete
    assert outcome.transitions > 500


@pytest.mark.parametrize(
    ("kind", "start", "least"),
    [
        (Kind.WITNESS, "in-sync", 5_000),
        (Kind.WITNESS, "apart", 2_000),
        (Kind.FENCE, "in-sync", 2_000),
        (Kind.FENCE, "apart", 1_000),
        (Kind.NONE, "in-sync", 1_000),
        (Kind.NONE, "apart", 500),
    ],
)
def test_any_single_fault_is_survived(kind: Kind, start: str, least: int) -> None:
    outcome = explore(Scope(kind, writes=2 if start == "apart" else 1), 1, 0, start)
    assert outcome.wrong == "", "\n".join(outcome.trace)
    assert outcome.complete
    assert outcome.transitions > least


@pytest.mark.parametrize("kind", [Kind.FENCE, Kind.NONE])
def test_a_fault_in_the_middle_of_a_command_is_survived(kind: Kind) -> None:
    outcome = explore(Scope(kind), 1, 1)
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


@pytest.mark.parametrize("left_out", LEFT_OUT, ids=lambda rule: rule.name)
def test_a_rule_that_is_left_out_is_noticed(left_out: LeftOut, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scope with the rule is clean: with up to one fault it is explored here, with two by the full run."""
    if left_out.faults <= 1:
        with_it = explore(left_out.scope, left_out.faults, left_out.commands, left_out.start)
        assert with_it.wrong == "", "\n".join(with_it.trace)
    for module, name, instead in left_out.patches:
        monkeypatch.setattr(module, name, instead)
    outcome = explore(left_out.scope, left_out.faults, left_out.commands, left_out.start)
    assert outcome.wrong and outcome.trace
    assert not outcome.wrong.startswith("assertion"), "an invariant must notice it, not the code itself"


def test_the_command_prints_what_it_explored(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--kind", "none", "--faults", "0", "--commands", "1", "--only-commands", "stop"]) == 0
    printed = capsys.readouterr().out
    assert "nothing wrong" in printed
    assert "states" in printed
