"""The figures that need one module: failovers, swaps, write gaps. Each run is said as soon as it is known."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.failover.figures import Results, first_after, gap_around
from bench.failover.pair import NO_ARBITER, Pair, fencing
from bench.process import BenchError
from hotpair.demo_servers_io import ADDRESSES

GREEN_S = 180.0
FAILOVER_S = 60.0
PATIENCE_S = 20.0  # for each module
LOOK_SELDOM_S = 0.2  # while many processes start on few processors
AFTER_S = 1.0  # writes that are waited for after the longest gap
BEFORE_S = 2.0  # writes that show what is usual

# What else must be set for timeout_s = 1: at least four pulses in it, and an arbiter that is sure by itself.
ONE_SECOND = "timeout_s = 1\npulse_s = 0.25\n"


@dataclass(frozen=True)
class Plan:
    """What is to be measured. `selected`: by the name of a figure."""

    runs: int
    steps: tuple[int, ...]
    seconds: float
    selected: Callable[[str], bool]
    say: Callable[[str], None]


@contextlib.contextmanager
def running(pair: Pair) -> Iterator[Pair]:
    """Both servers, from their start until everything is green; nothing is left of them."""
    try:
        pair.start()
        limit_s = GREEN_S + PATIENCE_S * len(pair.modules)
        pair.until(pair.is_green, "all modules are green", limit_s, LOOK_SELDOM_S)
        yield pair
    finally:
        pair.end()  # its folder goes with all others when the run's namespaces have ended


def measure_one_module(plan: Plan, directory: Path, results: Results) -> None:
    plain = [name for name in ("failover", "swap", "freeze", "freeze-silent") if plan.selected(name)]
    if plain:
        folder = directory / "plain"
        with running(Pair(folder, 1, writes=True, arbitration=NO_ARBITER)) as pair:
            for name in plain:
                _repeat(plan, name, pair, results)
    if plan.selected("failover-1s"):
        folder = directory / "fast"
        with running(Pair(folder, 1, writes=True, arbitration=fencing(folder), heartbeat=ONE_SECOND)) as pair:
            _repeat(plan, "failover-1s", pair, results)


def _repeat(plan: Plan, name: str, pair: Pair, results: Results) -> None:
    for run in range(plan.runs):
        measured, details = _MEASURES[name](pair)
        results.add(name, measured, **details)
        plan.say(f"{name} {run + 1}/{plan.runs}: {measured:.3f} s")


Measured = tuple[float, dict[str, object]]


def _failover(pair: Pair) -> Measured:
    """The primary is cut; it comes back as the other's peer."""
    primary = pair.primary()
    other = _other(primary)
    cut = pair.cut(primary, silent=False).at
    pair.until(lambda: first_after(pair.marks(), "started", other, cut) is not None, f"{other} starts it", FAILOVER_S)
    started = first_after(pair.marks(), "started", other, cut)
    assert started is not None
    pair.until(lambda: [one.state for one in pair.seen(other) if one.ready] == ["ALONE"], f"{other} is ALONE", GREEN_S)
    details: dict[str, object] = {"primary": primary, "events": pair.events(other, cut)}
    _come_back(pair, primary)
    return started - cut, details


def _swap(pair: Pair) -> Measured:
    primary = pair.primary()
    other = _other(primary)
    before = max((mark.at for mark in pair.marks()), default=0.0)
    with pair.client(primary) as client:
        client.command(pair.modules[0], "swap")
    pair.until(lambda: first_after(pair.marks(), "started", other, before) is not None, f"{other} starts it", GREEN_S)
    pair.until(lambda: pair.is_green() and pair.primary() == other, "swapped", GREEN_S)
    ended = first_after(pair.marks(), "ended", primary, before)
    started = first_after(pair.marks(), "started", other, before)
    if ended is None or started is None:
        raise BenchError(f"the application did not write down its end: {pair.marks()[-4:]}")
    details: dict[str, object] = {name: pair.events(name, ended) for name in ADDRESSES}
    return started - ended, details


def _freeze(pair: Pair, *, silent: bool = False) -> Measured:
    """The secondary is cut; it comes back."""
    primary = pair.primary()
    secondary = _other(primary)
    began = max(pair.writes(0.0), default=0.0)
    pair.until(lambda: max(pair.writes(began), default=began) > began + BEFORE_S, "it writes", FAILOVER_S)
    done = pair.cut(secondary, silent=silent)
    cut = done.at
    alone = f"{primary} goes on alone"
    pair.until(lambda: [one.state for one in pair.seen(primary)] == ["ALONE"], alone, FAILOVER_S)
    gone_on = max(pair.writes(cut), default=cut)
    pair.until(lambda: max(pair.writes(cut), default=cut) > gone_on + AFTER_S, "it writes again", FAILOVER_S)
    gap = gap_around(pair.writes(cut - BEFORE_S), cut, gone_on)
    details: dict[str, object] = {
        "primary": primary,
        "longest_s": gap.longest,
        "usual_s": gap.usual,
        "began_after_s": gap.began,
        "mirror_gone_after_s": done.gone_s,  # a killed process waits for its disk and for a processor, too
        "events": pair.events(primary, cut),
    }
    _come_back(pair, secondary)
    return gap.beyond, details


def _come_back(pair: Pair, name: str) -> None:
    pair.tidy(name)
    pair.start(name)
    pair.until(pair.is_green, f"{name} is back, both are green", GREEN_S)


def _other(name: str) -> str:
    return next(one for one in ADDRESSES if one != name)


_MEASURES: dict[str, Callable[[Pair], Measured]] = {
    "failover": _failover,
    "failover-1s": _failover,
    "swap": _swap,
    "freeze": _freeze,
    "freeze-silent": lambda pair: _freeze(pair, silent=True),
}
