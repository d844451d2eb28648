"""The command `hotpair simulate`: seeds of a pair's life with faults, their summary, and what failed."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from hotpair.actors.simulation_on_ray import ClusterRefused, lives_on_ray
from hotpair.cluster.arbitration import Kind
from hotpair.cluster.simulation.batch import Lost, Summary, lives, quantile, shrink
from hotpair.cluster.simulation.faults import END_S, Plan, plan
from hotpair.cluster.simulation.timed import simulate
from hotpair.cluster.simulation.watch import Result
from hotpair.cluster.simulation.world import NAMES
from hotpair.cluster.split_brain import MANUAL, SERVER, WORDS

MOST_SEEDS = 10_000_000
MOST_SHOWN = 5  # failing seeds printed
INTERRUPTED = 130  # what a shell makes of Ctrl-C
POLICIES = (*WORDS, *(SERVER + name for name in NAMES))  # for a split brain


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 when an invariant did not hold, 2 for arguments that make no sense and for no cluster to run on,
    3 when seeds were lost, 130 after Ctrl-C."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.ray is not None:
        for name in ("jobs", "trace", "seed"):
            if getattr(given, name) is not None and getattr(given, name) is not False:
                parser.error(f"--ray does not go with --{name}: it spreads many seeds over other machines")
    given.jobs = 1 if given.jobs is None else given.jobs
    if not 0 < given.seeds <= MOST_SEEDS:
        parser.error(f"--seeds: from 1 to {MOST_SEEDS}")
    if not 0 < given.jobs <= (os.cpu_count() or 1) * 4:
        parser.error("--jobs: from 1 to four for each processor")
    if given.only is not None and given.seed is None:
        parser.error("--only goes with --seed: the numbers are those of one seed's faults")
    if given.split_brain not in POLICIES:
        print(
            f"hotpair simulate: --split-brain: {given.split_brain!r} is none of {', '.join(POLICIES)}", file=sys.stderr
        )
        return 2
    kind = Kind(given.policy)
    if given.seed is not None:
        return _one(parser, kind, given)
    try:
        return _many(kind, given)
    except ClusterRefused as error:
        print(f"hotpair simulate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("hotpair simulate: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hotpair simulate",
        description="Simulate pairs of servers with faults, on the real state machine, and check what the protocol "
        f"promises. A seed is one life of {END_S / 60:.0f} minutes, always the same.",
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one (default 0)")
    parser.add_argument("--policy", choices=[kind.value for kind in Kind], default="witness", help="arbitration")
    parser.add_argument(
        "--split-brain",
        metavar="POLICY",
        default=MANUAL,
        help=f"whose changes stay after a split brain, on both servers: {', '.join(POLICIES)} (default {MANUAL})",
    )
    parser.add_argument("--jobs", type=int, help="processes (default 1)")
    parser.add_argument("--json", metavar="FILE", help="write the result of each seed there, one line each")
    parser.add_argument("--shrink", action="store_true", help="shorten a failing seed's list of faults")
    parser.add_argument("--seed", type=int, help="only this one, and what became of it")
    parser.add_argument("--only", metavar="N,N", help="with --seed: only these of its faults, by number")
    parser.add_argument("--trace", action="store_true", help="with --seed: everything that happens")
    parser.add_argument("--ray", metavar="ADDRESS", help="spread the seeds over this Ray cluster: HOST:PORT, or auto")
    return parser


def command_for(kind: Kind, seed: int, only: tuple[int, ...] | None = None, policy: str = MANUAL) -> str:
    """What to type to see this seed again."""
    split_brain = "" if policy == MANUAL else f" --split-brain {policy}"
    chosen = "" if only is None else f" --only {','.join(str(number) for number in only) or 'none'}"
    return f"hotpair simulate --policy {kind.value}{split_brain} --seed {seed}{chosen} --trace"


# ---- one seed


def _one(parser: argparse.ArgumentParser, kind: Kind, given: argparse.Namespace) -> int:
    whole = plan(given.seed, kind, given.split_brain)
    chosen = tuple(range(len(whole.faults)))
    if given.only is not None:
        try:
            chosen = () if given.only == "none" else tuple(int(number) for number in given.only.split(","))
        except ValueError:
            parser.error("--only: numbers with commas between them, or none")
        if any(not 0 <= number < len(whole.faults) for number in chosen):
            parser.error(f"--only: seed {given.seed} has the faults 0 to {len(whole.faults) - 1}")
    _print_faults(whole, chosen)
    result = simulate(whole.only(chosen), print if given.trace else None)
    _print_result(result)
    if result.wrong and given.shrink:
        _print_shrunk(whole)
    return 1 if result.wrong else 0


def _print_faults(whole: Plan, chosen: Sequence[int]) -> None:
    policy = "" if whole.policies[0] == MANUAL else f", {whole.policies[0]}"
    print(f"seed {whole.seed}, {whole.kind.value}{policy}, starts {'apart' if whole.starts_apart else 'in sync'}:")
    for number in chosen:
        print(f"  {number:2} at {whole.faults[number].describe()}")


def _print_result(result: Result) -> None:
    for begin, seconds, cause in result.gaps:
        print(f"  no service for {seconds} s from {begin} s, after: {cause}")
    print(f"{result.events} events, {result.writes} writes")
    print(f"VIOLATION at {result.at_s} s: {result.wrong}" if result.wrong else "nothing wrong")


def _print_shrunk(whole: Plan) -> None:
    kept, result = shrink(whole)
    print(f"{len(whole.faults)} faults shrunk to {len(kept)}, at {result.at_s} s: {result.wrong}")
    for number in kept:
        print(f"  {number:2} at {whole.faults[number].describe()}")
    print(f"  {command_for(whole.kind, whole.seed, kept, whole.policies[0])}")


# ---- many seeds


def _many(kind: Kind, given: argparse.Namespace) -> int:
    summary = Summary()
    lost: list[Lost] = []
    began = time.monotonic()
    with ExitStack() as stack:
        results = stack.enter_context(_results(kind, given))  # first: without a cluster no file is overwritten
        out = None if given.json is None else stack.enter_context(open(given.json, "w", encoding="utf-8"))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        task = progress.add_task(kind.value, total=given.seeds)
        for result in results:
            advance = 1
            if isinstance(result, Lost):
                lost.append(result)
                advance = len(result.seeds)
            else:
                summary.add(result)
                if out is not None:
                    out.write(json.dumps(asdict(result)) + "\n")
            wrong = f": {len(summary.wrong)} wrong" if summary.wrong else ""
            missing = f", {sum(len(one.seeds) for one in lost)} lost" if lost else ""
            progress.update(task, advance=advance, description=f"{kind.value}{wrong}{missing}")
    _print_summary(summary, kind, given.split_brain, time.monotonic() - began)
    for failing in sorted(summary.wrong, key=lambda result: result.seed)[:MOST_SHOWN]:
        print(f"VIOLATION seed {failing.seed} at {failing.at_s} s: {failing.wrong}")
        print(f"  {command_for(kind, failing.seed, policy=given.split_brain)}")
        if given.shrink:
            _print_shrunk(plan(failing.seed, kind, given.split_brain))
    _print_lost(lost)
    return 1 if summary.wrong else 3 if lost else 0


def _results(kind: Kind, given: argparse.Namespace) -> AbstractContextManager[Iterator[Result | Lost]]:
    seeds = range(given.first, given.first + given.seeds)
    if given.ray is not None:
        return lives_on_ray(given.ray, kind, seeds, given.split_brain)
    return nullcontext(lives(kind, seeds, given.jobs, given.split_brain))


def _print_lost(lost: Sequence[Lost]) -> None:
    for one in sorted(lost, key=lambda one: one.seeds.start):
        print(f"LOST seeds {one.seeds.start} to {one.seeds.stop - 1}: {one.why}")


def _print_summary(summary: Summary, kind: Kind, policy: str, seconds: float) -> None:
    console = Console()
    with_policy = "" if policy == MANUAL else f", {policy}"
    table = Table(title=f"{summary.seeds} seeds, {kind.value}{with_policy}: faults and service gaps (seconds)")
    columns = ("fault", "times", "gaps", "median", "95 %", "longest", "split brain", "overridden", "violations")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", no_wrap=number == 0)
    for name, row in sorted(summary.rows.items()):
        gaps = sorted(row.gaps)
        spread = [f"{quantile(gaps, part):.1f}" for part in (0.5, 0.95, 1.0)] if gaps else ["", "", ""]
        marks = [str(count or "") for count in (row.split_brains, row.overridden, row.wrong)]
        table.add_row(name, str(row.happened), str(len(gaps)), *spread, *marks)
    console.print(table)
    outcomes = Table(title="outcomes")
    outcomes.add_column("outcome")
    outcomes.add_column("seeds", justify="right")
    for name, count in sorted(summary.outcomes.items(), key=lambda outcome: (-outcome[1], outcome[0])):
        outcomes.add_row(name, str(count))
    console.print(outcomes)
    print(
        f"{summary.seeds} seeds, {summary.events} events, {summary.writes} writes in {seconds:.1f} s: "
        f"{summary.seeds / max(seconds, 1e-9):.1f} seeds/s"
    )


if __name__ == "__main__":
    sys.exit(main())
