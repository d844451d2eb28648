"""Pairs simulated in time: the same seed is the same life, some hundred lives, all stories, and bugs are noticed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hotpair.cluster import module_rules
from hotpair.cluster.arbitration import Kind
from hotpair.cluster.module_values import Mirror, MirrorMode, Role
from hotpair.cluster.record import go_alone
from hotpair.cluster.simulation.batch import Summary, life, lives, outcome, shrink
from hotpair.cluster.simulation.faults import MOST_FAULTS, QUIET_FROM_S, plan
from hotpair.cluster.simulation.timed import simulate
from hotpair.cluster.simulation.watch import Result, Violation, Watch
from hotpair.cluster.simulation.world import BOOT, change, named, pair_in_sync
from hotpair.simulate_command import main
from tests.protocol_mutants import MUTANTS, broken, hunt
from tests.story import Story, StoryWrong

STORIES = sorted((Path(__file__).parent / "stories").glob("*.story"))


@pytest.mark.parametrize("path", STORIES, ids=lambda path: path.stem)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_story_ends_as_it_is_told(path: Path, seed: int) -> None:
    Story(path, seed).tell()


def test_there_is_a_story_for_each_row_of_the_tables() -> None:
    names = " ".join(path.stem for path in STORIES)
    rows = ("no_record", "no_record_on_one", "both_inconsistent", "same_one_inconsistent", "same_one_solo")
    rows += ("same_one_outdated", "same_rebooted", "split_decided", "split_brain", "base", "ancestor", "unrelated")
    assert [row for row in rows if f"meeting_{row}" not in names] == []
    assert [kind.value for kind in Kind if f"arbitration_{kind.value}" not in names] == []


@pytest.mark.parametrize(
    "text",
    ["policy none\nrun 5 | a SECOND", "policy none\njump", "policy none\nrun 5 | a is well", "record a colour blue"],
)
def test_a_story_that_is_not_so_is_found_out(text: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.story"
    path.write_text(text)
    with pytest.raises(StoryWrong):
        Story(path).tell()


# ---- lives


@pytest.mark.parametrize("kind", [Kind.WITNESS, Kind.NONE, Kind.FENCE])
def test_the_same_seed_is_the_same_life(kind: Kind) -> None:
    for seed in (3, 11, 17):
        traces: list[list[str]] = [[], []]
        results = [simulate(plan(seed, kind), trace.append) for trace in traces]
        assert traces[0] == traces[1] and len(traces[0]) > 20
        assert results[0] == results[1] == life(kind, seed)


@pytest.mark.parametrize(
    ("kind", "seed", "faults"),
    [
        # acknowledged and never flushed: gone with SECOND's power, and with PRIM's disk a moment later
        (Kind.NONE, 12551, (0, 2)),
        (Kind.NONE, 10740, (0, 2, 3)),
        # the disk of PRIM fails, and its mirror dies before the VM is off, which has no disk then
        (Kind.WITNESS, 16903, (0, 1, 2, 3)),
        # an outdated copy beside one that is inconsistent is none: it goes on in the same step
        (Kind.MANUAL, 774, (0, 1, 2, 3)),
    ],
)
def test_what_was_found_once_is_well(kind: Kind, seed: int, faults: tuple[int, ...]) -> None:
    result = simulate(plan(seed, kind).only(faults))
    assert not result.wrong
    assert len(result.faults) >= len(faults)


def test_seeds_differ() -> None:
    assert len({plan(seed, Kind.WITNESS).faults for seed in range(50)}) == 50


@pytest.mark.parametrize(
    ("kind", "seeds"),
    [
        *((Kind.WITNESS, 40), (Kind.NONE, 30), (Kind.FENCE, 15), (Kind.ETCD, 8), (Kind.PING, 8), (Kind.MANUAL, 8)),
        *(pytest.param(kind, 300, marks=pytest.mark.long) for kind in Kind),
    ],
)
def test_no_promise_is_broken(kind: Kind, seeds: int) -> None:
    summary = Summary()
    for result in lives(kind, range(seeds)):
        summary.add(result)
    assert summary.wrong == []
    assert summary.seeds == seeds
    assert summary.writes > 10 * seeds


def test_every_fault_happens_and_ends_in_time() -> None:
    plans = [plan(seed, Kind.WITNESS) for seed in range(300)]
    assert max(len(one.faults) for one in plans) <= MOST_FAULTS
    assert all(fault.at_s < QUIET_FROM_S - 20 for one in plans for fault in one.faults)
    assert len({fault.name for one in plans for fault in one.faults}) == 29


def test_lives_in_several_processes_are_the_same() -> None:
    ordered = sorted(lives(Kind.NONE, range(6), processes=2), key=lambda result: result.seed)
    assert ordered == list(lives(Kind.NONE, range(6)))


# ---- what two failures at the same time may cost, and nothing beyond it

LOST, KEPT = 0b001, 0b110  # acknowledged writes: gone with the power of b, and still there


@pytest.mark.parametrize(
    ("case", "is_excused"),
    [("granted", True), ("died in that step", True), ("peer heard", False), ("another write is gone", False),
     ("flushed", False), ("in sync again since", False), ("still there", True)],
)  # fmt: skip
def test_only_what_a_power_cut_has_cost_is_excused(case: str, is_excused: bool) -> None:
    """b was SECOND, has lost its power, comes back and goes on alone without what it has lost."""
    green = pair_in_sync(Kind.WITNESS, 0, 0)
    module, record = green.servers[1].module, green.servers[1].record
    assert module is not None and record is not None
    if case != "peer heard":
        module = replace(module, peer=None)
    before = change(
        change(green, 0, up=False, module=None, mirror=None, vm=False, copy=LOST | KEPT, dirty=LOST | KEPT),
        1, module=module, mirror=None, copy=LOST | KEPT if case == "still there" else KEPT,
    )._replace(acked=LOST | KEPT, wire=-1)  # fmt: skip
    watch = Watch(Kind.WITNESS, before, Result(0, Kind.WITNESS.value))
    watch.fragile[1] = LOST
    watch.flushed = LOST if case == "flushed" else 0
    if case == "in sync again since":
        before = watch.check(change(before, 1, record=replace(record, inconsistent=True, in_sync=False)), before, 1.0)
    solo = go_alone(record, named(9), granted_epoch=1, boot=BOOT)
    after = change(before, 1, record=solo, module=None if case == "died in that step" else module)
    if case == "another write is gone":
        after = change(after, 1, copy=KEPT & -KEPT)
    after = watch.check(before, after, 2.0)
    runs = change(after, 1, mirror=Mirror(Role.SOURCE, MirrorMode.ALONE), vm=True)
    if is_excused:
        watch.check(after, runs, 3.0)
        assert runs.acked == (LOST | KEPT if case == "still there" else KEPT)
    else:
        with pytest.raises(Violation, match="nothing_lost"):
            watch.check(after, runs, 3.0)


# ---- bugs are noticed


@pytest.mark.parametrize(
    "name",
    ["R5 a refusal counts as a grant", "acknowledged before it is durable", "link loss alone promotes",
     "copied in the wrong direction", "the epoch goes back", "a stale epoch is accepted",
     pytest.param("R9 goes on when the handover breaks", marks=pytest.mark.long),  # a hundred lives each
     pytest.param("R10 released before the target is inconsistent", marks=pytest.mark.long),
     "R15 outdated before the leaving is acknowledged", "the older primary goes on"],
)  # fmt: skip
def test_a_bug_made_on_purpose_is_noticed(name: str) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    found = hunt(mutant, 200)
    assert found.seeds > 0
    assert not found.wrong.startswith("assertion"), "an invariant must notice it, not the code itself"


def test_a_failing_seed_is_shrunk_to_what_it_needs() -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "R5 a refusal counts as a grant")
    with broken(mutant):
        seed = next(seed for seed in range(100) if life(mutant.kind, seed).wrong)
        whole = plan(seed, mutant.kind)
        kept, result = shrink(whole)
        assert result.wrong.startswith("one_lineage")
        assert len(kept) <= 3
        assert simulate(whole.only(kept)) == result
    assert outcome(result) == "VIOLATION"
    assert not simulate(whole.only(kept)).wrong


# ---- the command


def test_the_command_sums_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "lives.json"
    assert main(["--seeds", "6", "--from", "40", "--policy", "none", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "6 seeds" in printed and "seeds/s" in printed and "outcomes" in printed
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [line["seed"] for line in lines] == list(range(40, 46))


def test_a_failing_seed_is_printed_with_what_replays_it(capsys: pytest.CaptureFixture[str]) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "the epoch goes back")
    with broken(mutant):
        assert main(["--seeds", "10", "--shrink"]) == 1
        printed = capsys.readouterr().out
        replays = [line.strip() for line in printed.splitlines() if line.strip().startswith("hotpair simulate")]
        assert any("--only" in line for line in replays)
        for line in replays[:2]:
            assert main(line.split()[2:]) == 1
            assert "VIOLATION" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--seeds", "0"], ["--jobs", "0"], ["--only", "1"], ["--seed", "1", "--only", "99"], ["--policy", "luck"],
     ["--seed", "1", "--only", "x"]],
)  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


# ---- a split brain's policy


def test_a_policy_ends_the_same_life_another_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In several processes as in one; the results name the policy."""
    results: dict[str, list[dict[str, object]]] = {}
    for name, more in (("manual", ()), ("most-changes", ()), ("most-changes", ("--jobs", "2"))):
        file = tmp_path / "lives.json"
        given = ["--seeds", "24", "--policy", "none", "--split-brain", name, "--json", str(file), *more]
        assert main(given) == 0
        assert (name in capsys.readouterr().out) == (name != "manual")
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        results[" ".join((name, *more))] = sorted(lines, key=lambda line: line["seed"])
    manual, policy = results["manual"], results["most-changes"]
    assert results["most-changes --jobs 2"] == policy
    assert {line["split_brain_policy"] for line in policy} == {"most-changes"}
    split = [line["seed"] for line in manual if line["split_brain"] and line["for_operator"]]
    assert len(split) > 3
    ended = [line["seed"] for line in policy if line["seed"] in split and not line["for_operator"]]
    assert len(ended) > len(split) / 2
    assert all(plan(seed, Kind.NONE).faults == plan(seed, Kind.NONE, "most-changes").faults for seed in range(24))


@pytest.mark.parametrize("policy", ["former-primary", "most-changes", "server:a", "server:b"])
def test_no_promise_is_broken_under_a_policy(policy: str) -> None:
    summary = Summary()
    for result in lives(Kind.NONE, range(500, 512), policy=policy):
        summary.add(result)
    assert summary.wrong == []
    assert summary.outcomes["split brain"] > 3


def test_a_policy_that_ends_nothing_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_rules, "must_give_up", lambda module, decided: False)
    wrong = [result.wrong for result in lives(Kind.NONE, range(16), policy="server:a") if result.wrong]
    assert wrong and set(wrong) == {"liveness: the policy does not end the split brain"}


def test_what_replays_a_seed_names_the_policy(capsys: pytest.CaptureFixture[str]) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == "link loss alone promotes")
    with broken(mutant):
        assert main(["--seeds", "10", "--policy", "none", "--split-brain", "server:b", "--shrink"]) == 1
        printed = capsys.readouterr().out
        replays = [line.strip() for line in printed.splitlines() if line.strip().startswith("hotpair simulate")]
        assert any("--only" in line for line in replays)
        for line in replays[:2]:
            assert " --split-brain server:b " in line
            assert main(line.split()[2:]) == 1
            printed = capsys.readouterr().out
            assert "VIOLATION" in printed and "none, server:b, starts" in printed


@pytest.mark.parametrize("policy", ["luck", "", "server:", "server:c", "Manual"])
def test_a_policy_that_there_is_not_is_refused(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--split-brain", policy]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert "--split-brain" in said.err and "former-primary" in said.err
