"""So many modules on both servers while nothing happens: until when they are green, and what they cost then."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import psutil

from bench.failover.figures import Idle, Results, Use, kind_of, samples_of
from bench.failover.measures import Plan, running
from bench.failover.pair import NO_ARBITER, Pair
from bench.measure import machine_busy_s, memory, processor_s
from bench.process import BenchError
from hotpair.demo_servers_io import ADDRESSES

SETTLE_S = 5.0  # after the last one is green: what was started for the start only ends
ANSWER_S = 30.0  # until the metrics have every module's pulses


def measure_idle(plan: Plan, directory: Path, results: Results) -> None:
    if not plan.selected("idle"):
        return
    for modules in plan.steps:
        began = time.monotonic()
        with running(Pair(directory / f"idle-{modules}", modules, writes=False, arbitration=NO_ARBITER)) as pair:
            green_s = time.monotonic() - began
            plan.say(f"{modules} modules: all green after {green_s:.1f} s")
            idle = _look(pair, green_s, plan.seconds)
        results.idle.append(idle)
        results.add("lost", idle.lost, modules=modules)
        whole = idle.whole
        plan.say(
            f"{modules} modules: {whole.processes} processes, {whole.pss_bytes / 2**20:,.0f} MiB and "
            f"{whole.processor * 100:.1f} % of a processor for each server; {idle.lost} of {idle.sent} pulses lost"
        )


def _look(pair: Pair, green_s: float, seconds: float) -> Idle:
    pulses = _pulses(pair)
    time.sleep(SETTLE_S)
    kinds = {process.pid: _kind(process) for name in ADDRESSES for process in pair.servers[name].processes()}
    before, busy, began = {pid: processor_s([pid]) for pid in kinds}, machine_busy_s(), time.monotonic()
    time.sleep(seconds)
    took = time.monotonic() - began
    used = {pid: max(0.0, processor_s([pid]) - before[pid]) for pid in kinds}  # 0: it has ended
    others = (machine_busy_s() - busy - sum(used.values())) / took
    later = _pulses(pair)
    return Idle(
        len(pair.modules),
        green_s,
        took,
        _uses(kinds, used, took),
        others,
        round(later["sent"] - pulses["sent"]),
        round(later["lost"] - pulses["lost"]),
    )


def _uses(kinds: Mapping[int, str], used: Mapping[int, float], took: float) -> dict[str, Use]:
    """The mean of both servers."""
    count: Counter[str] = Counter()
    pss: Counter[str] = Counter()
    processor: dict[str, float] = {}
    servers = len(ADDRESSES)
    for pid, kind in kinds.items():
        try:
            pss[kind] += memory(pid).pss_bytes
        except OSError:
            continue  # it has ended since
        count[kind] += 1
        processor[kind] = processor.get(kind, 0.0) + used[pid] / took
    return {kind: Use(count[kind] // servers, pss[kind] // servers, processor[kind] / servers) for kind in count}


def _kind(process: psutil.Process) -> str:
    try:
        return kind_of(process.cmdline())
    except psutil.Error:
        return "other"


def _pulses(pair: Pair) -> dict[str, float]:
    """Of both servers, all modules together: as it was after the first question. An answer may say how it was at the
    question before, so all is asked until each module has sent more than the first answer says.
    """
    first: dict[tuple[str, str], float] = {}
    end = time.monotonic() + ANSWER_S
    while time.monotonic() < end:
        lost, sent = 0.0, dict[tuple[str, str], float]()
        for name in ADDRESSES:
            with pair.client(name) as client:
                text = client.metrics()
            lost += sum(samples_of(text, "hotpair_pulses_lost_total").values())
            for labels, count in samples_of(text, "hotpair_pulses_sent_total").items():
                sent[name, labels] = count
                first.setdefault((name, labels), count)
        if len(sent) >= len(pair.modules) * len(ADDRESSES) and all(sent[key] > first[key] for key in sent):
            return {"sent": sum(sent.values()), "lost": lost}
        time.sleep(0.5)
    raise BenchError(f"not every module's pulses are in the metrics. {pair.last_words()}")
