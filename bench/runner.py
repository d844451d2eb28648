"""Starts the selected systems, measures them in interleaved rounds, verifies what they wrote, stops them."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import fio
from bench.compare import differences, flush
from bench.measure import machine_busy_s, memory, prefer, processor_s
from bench.process import BenchError
from bench.results import DISTURBED, Results, Sample
from bench.systems.base import COLD, DATA, SPARSE, System
from bench.systems.hotpair import Hotpair
from bench.systems.registry import factories
from bench.workloads import (
    WORKLOADS,
    Sizes,
    Workload,
    fill_options,
    global_options,
    reader_options,
    verify_options,
)

TRIES = 3
FILL_S = 15.0
VERIFY_S = 10.0


@dataclass(frozen=True)
class Plan:
    seconds: float
    rounds: int
    repeats: Iterator[int]  # gives out how often disturbed measurements may be repeated in the whole run
    sizes: Sizes
    selected: Callable[[str, str], bool]  # (system, workload)
    say: Callable[[str], None]


def measure_systems(plan: Plan, directory: Path, results: Results) -> None:
    """The whole life of all selected systems; what goes wrong with one is an error in the results."""
    running: list[System] = []
    try:
        for name, make in factories(plan.sizes).items():
            if any(plan.selected(name, workload.name) for workload in WORKLOADS):
                _start(plan, make(), directory / name, running, results)
        for number in range(plan.rounds):
            _round(plan, number, running, results, directory)
        for system in list(running):
            _finish(plan, system, running, results, directory)
    finally:
        for system in running:
            system.abandon()


def _start(plan: Plan, system: System, directory: Path, running: list[System], results: Results) -> None:
    plan.say(f"{system.name}: start")
    directory.mkdir()
    files = {
        file
        for workload in WORKLOADS
        if plan.selected(system.name, workload.name) and workload.fits(system.abilities)
        for file in workload.files()
    } | {DATA}
    try:
        system.start(directory)
        prefer(system.processes().values())  # those too that have made a session of their own
        time.sleep(1.0)
        results.memory[system.name] = {"idle": _memory(system)}
        for name, size in ((DATA, plan.sizes.data), (COLD, plan.sizes.cold), (SPARSE, plan.sizes.sparse)):
            if name in files:
                system.create(name, size)
                for options in fill_options(system.abilities, name, size):
                    fill = fio.run([*options, *system.target(name)], directory, FILL_S)
                if name == SPARSE:
                    plan.say(f"{system.name}: first write to each extent: {fill.writes['fill'].iops:.0f} /s")
        _settle(system)
    except (BenchError, OSError) as error:
        results.errors.append(f"{system.name} does not start: {error}")
        system.abandon()
        return
    except BaseException:
        system.abandon()
        raise
    running.append(system)


def _round(plan: Plan, number: int, running: list[System], results: Results, directory: Path) -> None:
    for workload in WORKLOADS:
        order = list(running) if number % 2 == 0 else list(reversed(running))
        for system in order:
            if not workload.fits(system.abilities) or not plan.selected(system.name, workload.name):
                continue
            try:
                sample = _measure_undisturbed(plan, system, workload, number, directory)
            except (BenchError, OSError) as error:
                results.errors.append(f"{system.name}, {workload.name}: {error}")
                system.abandon()
                running.remove(system)
                continue
            results.samples.append(sample)
            plan.say(
                f"round {number + 1}/{plan.rounds} {workload.name:15} {system.name:12} {sample.iops:9.0f} /s"
                f"  {sample.bytes_per_s / 1e6:7.0f} MB/s  p99 {sample.p99_us:8.0f} us"
                f"  others {sample.disturbance:.2f} CPU"
            )


def _measure_undisturbed(plan: Plan, system: System, workload: Workload, number: int, directory: Path) -> Sample:
    """Measure again when something else used the processors; the least disturbed sample counts."""
    best = _measure(plan, system, workload, number, directory)
    for _ in range(TRIES - 1):
        if best.disturbance <= DISTURBED or next(plan.repeats, None) is None:
            break
        best = min(best, _measure(plan, system, workload, number, directory), key=lambda each: each.disturbance)
    return best


def _measure(plan: Plan, system: System, workload: Workload, number: int, directory: Path) -> Sample:
    arguments = [
        *global_options(system.abilities, plan.seconds),
        *("--name=main", *workload.options, *system.target(workload.file)),
    ]
    if workload.file == SPARSE:
        arguments.append(f"--size={plan.sizes.sparse}")
    if workload.readers:
        for copy in system.copies():
            flush(copy, COLD, forget=True)
        seed = int.from_bytes(os.urandom(4), "big")
        arguments += [*reader_options(workload.readers, seed), f"--size={plan.sizes.cold}", *system.target(COLD)]
    pids = system.processes().values()
    busy, used, since = machine_busy_s(), processor_s(pids), time.monotonic()
    run = fio.run(arguments, directory, plan.seconds)
    used, elapsed = processor_s(pids) - used, time.monotonic() - since
    busy = machine_busy_s() - busy
    _settle(system)
    parts = [part["main"] for part in (run.writes, run.reads) if "main" in part]
    operations = sum(each.operations for each in [*run.reads.values(), *run.writes.values()])
    if not parts:
        raise BenchError("fio did nothing")
    return Sample(
        system=system.name,
        workload=workload.name,
        round=number,
        iops=sum(part.iops for part in parts),
        bytes_per_s=sum(part.bytes_per_s for part in parts),
        p50_us=parts[0].p50_us,
        p99_us=parts[0].p99_us,
        p999_us=parts[0].p999_us,
        processor_us=used / operations * 1e6,
        readers_iops=run.reads["readers"].iops if "readers" in run.reads else 0.0,
        disturbance=max(0.0, busy - used - run.processor_s) / elapsed,
    )


def _settle(system: System) -> None:
    """Write back what a measurement has left, so that the kernel does not do it in the middle of the next one."""
    for copy in system.copies():
        flush(copy)


def _finish(plan: Plan, system: System, running: list[System], results: Results, directory: Path) -> None:
    """Verify by checksums through the system, stop it, compare its copies: a fast wrong result is an error."""
    plan.say(f"{system.name}: verify, stop, compare")
    try:
        results.memory[system.name]["used"] = _memory(system)
        for options in verify_options(system.abilities):
            fio.run([*options, *system.target(DATA)], directory, VERIFY_S)
        system.stop()
        running.remove(system)
        copies = system.copies()
        found = differences(*copies) if len(copies) == 2 else []
        results.errors += [f"{system.name}: the copies differ: {each}" for each in found]
        if not found:
            results.verified.append(system.name)
    except (BenchError, OSError) as error:
        results.errors.append(f"{system.name}, at its end: {error}")
        system.abandon()
    if isinstance(system, Hotpair):
        system.close()


def _memory(system: System) -> dict[str, dict[str, int]]:
    return {name: asdict(memory(pid)) for name, pid in system.processes().items()}
