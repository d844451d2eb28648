"""Many seeds: run them, in this process or in several; shrink one that fails; sum up. No clock."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.simulation.faults import Plan, plan
from hotpair.cluster.simulation.timed import simulate
from hotpair.cluster.simulation.watch import Result
from hotpair.cluster.split_brain import MANUAL

CHUNK = 16  # seeds given to a process at a time


@dataclass(frozen=True)
class Lost:
    """Seeds that were not run, or of which nothing came back."""

    seeds: range
    why: str


def life(kind: Kind, seed: int, policy: str = MANUAL) -> Result:
    return simulate(plan(seed, kind, policy))


def _life(job: tuple[str, int, str]) -> Result:
    return life(Kind(job[0]), *job[1:])


def lives(kind: Kind, seeds: Iterable[int], processes: int = 1, policy: str = MANUAL) -> Iterator[Result]:
    """One result for each seed, in the order in which they are ready. `policy`: of both servers, for a split brain."""
    jobs = ((kind.value, seed, policy) for seed in seeds)
    if processes == 1:
        yield from map(_life, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        yield from pool.imap_unordered(_life, jobs, CHUNK)


# ---- shrinking


def shrink(failing: Plan, run: Callable[[Plan], Result] = simulate, most: int = 400) -> tuple[tuple[int, ...], Result]:
    """The shortest list of its faults, by their numbers, that still breaks the same invariant, and what it broke.

    Faults are left out, halves of the list first; `most` lives are tried.
    """
    kept = tuple(range(len(failing.faults)))
    result = run(failing)
    assert result.wrong, "only a seed that fails is shrunk"
    what = _which(result)
    size = max(len(kept) // 2, 1)
    while kept and most > 0:
        smaller: tuple[int, ...] | None = None
        for start in range(0, len(kept), size):
            tried = kept[:start] + kept[start + size :]
            outcome = run(failing.only(tried))
            most -= 1
            if _which(outcome) == what:
                smaller, result = tried, outcome
                break
        if smaller is not None:
            kept = smaller
            size = max(min(size, len(kept) // 2), 1)
        elif size == 1:
            break
        else:
            size //= 2
    return kept, result


def _which(result: Result) -> str:
    return result.wrong.split(":")[0]


# ---- summing up


@dataclass
class Row:
    """For one kind of fault: how often it happened, and the service gaps that came after it."""

    happened: int = 0
    gaps: list[float] = field(default_factory=list)
    split_brains: int = 0
    overridden: int = 0
    wrong: int = 0


@dataclass
class Summary:
    seeds: int = 0
    events: int = 0
    writes: int = 0
    rows: dict[str, Row] = field(default_factory=dict)
    wrong: list[Result] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        self.seeds += 1
        self.events += result.events
        self.writes += result.writes
        self.outcomes[outcome(result)] += 1
        for name in result.faults:
            self._row(name).happened += 1
        for name in dict.fromkeys(result.faults):
            row = self._row(name)
            row.split_brains += result.split_brain
            row.overridden += result.overridden
            row.wrong += bool(result.wrong)
        for _, seconds, cause in result.gaps:
            self._row(cause).gaps.append(seconds)
        if result.wrong:
            self.wrong.append(result)

    def _row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row())


def outcome(result: Result) -> str:
    """One word or two for a whole life."""
    if result.wrong:
        return "VIOLATION"
    if result.split_brain:
        return "split brain"
    if result.overridden:
        return "overridden by the operator"
    if result.for_operator:
        return "left to the operator"
    return "interrupted" if result.gaps else "went on"


def quantile(values: Sequence[float], part: float) -> float:
    """Of a sorted list that is not empty."""
    return values[min(int(part * len(values)), len(values) - 1)]
