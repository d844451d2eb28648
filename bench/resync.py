"""hotpair's full synchronisation and reintegration: how fast, how many bytes, and what the VM's writes notice.

1. A file is synchronised to an empty target, against a plain disk copy and a loopback TCP copy of the same size.
2. The target is stopped, the source goes on alone, 1 % of the file changes in random 4 KiB writes that fall into a
   tenth of its extents, the target returns: bytes sent against changed extents, and bytes read against a full scan.
   This comes before any other write, since extents that were hot when the target went count as changed too.
3. The same with writes all over the file, so that all of it has to be copied, with 4 KiB writes measured meanwhile;
   the same writes are measured before and after it.
"""

import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from bench import fio
from bench.compare import differences, flush
from bench.copying import disk_copy_s, loopback_copy_s
from bench.measure import descendants, loopback_bytes, read_bytes
from bench.process import BenchError, command
from bench.results import Results
from bench.runner import Plan
from bench.systems.base import Abilities
from bench.systems.hotpair import Hotpair
from bench.workloads import BLOCK_BYTES, EXTENT_BYTES, MIB, global_options

NAMES = ("full-sync", "reintegration", "p99-in-reintegration")
FILE = "disk"
RESYNC_TIMEOUT_S = 300.0
STATE_TIMEOUT_S = 60.0
IN_SYNC = "PRIM"


def measure_resync(plan: Plan, directory: Path, results: Results) -> None:
    """The part of the benchmark that only hotpair takes part in."""
    wanted = [name for name in NAMES if plan.selected("hotpair", name)]
    if not wanted:
        return
    pairs: list[Hotpair] = []
    try:
        _full_syncs(plan, directory, results, pairs)
        if wanted != ["full-sync"]:
            _reintegrations(plan, directory, results, pairs[-1], wanted)
        pair = pairs[-1]
        pair.stop()
        found = differences(*pair.copies())
        results.errors += [f"hotpair, after resynchronisation: the copies differ: {each}" for each in found]
    except (BenchError, OSError) as error:
        results.errors.append(f"hotpair, resynchronisation: {error}")
    finally:
        for pair in pairs:
            pair.abandon()
            pair.close()


def _full_syncs(plan: Plan, directory: Path, results: Results, pairs: list[Hotpair]) -> None:
    """The last pair stays up for what follows."""
    size = plan.sizes.resync
    original = directory / "original"
    command("dd", "if=/dev/urandom", f"of={original}", "bs=1M", f"count={size // MIB}", "conv=fsync", timeout_s=300)
    times: dict[str, list[float]] = {"disk": [], "loopback": [], "hotpair": []}
    for number in range(plan.rounds):
        times["disk"].append(disk_copy_s(original, directory / "copy"))
        times["loopback"].append(loopback_copy_s(size))
        if pairs:
            _discard(pairs[-1])
        pair = Hotpair()
        pairs.append(pair)
        home = directory / f"resync-{number}"
        home.mkdir()
        pair.prepare(home)
        os.rename(original, pair.first / FILE)
        flush(pair.first, forget=True)
        pair.start_target()
        since = time.monotonic()
        pair.start_source()
        times["hotpair"].append(time.monotonic() - since)
        rates = ", ".join(f"{name} {size / values[-1] / 1e6:.0f} MB/s" for name, values in times.items())
        plan.say(f"full synchronisation {number + 1}/{plan.rounds}: {rates}")
        if number + 1 < plan.rounds:
            pair.stop()
            os.rename(pair.first / FILE, original)
    results.resync["full_sync"] = {
        "bytes": size,
        "bytes_per_s": {name: size / statistics.median(values) for name, values in times.items()},
        "seconds": times,
    }


def _discard(pair: Hotpair) -> None:
    """Make room: what an earlier pair's target holds is not needed any more."""
    (pair.second / FILE).unlink()
    pair.close()


def _reintegrations(plan: Plan, directory: Path, results: Results, pair: Hotpair, wanted: list[str]) -> None:
    extents = plan.sizes.resync // EXTENT_BYTES
    blocks = plan.sizes.resync // BLOCK_BYTES // 100
    if "reintegration" in wanted:
        results.resync["reintegration"] = _reintegrate(plan, pair, extents // 10, blocks, lambda: None)
    if "p99-in-reintegration" in wanted:
        latencies: dict[str, list[float]] = {"without": [], "during": []}
        states: list[str] = []
        for _ in range(plan.rounds):
            latencies["without"].append(_settled_p99_us(plan, pair, directory))
            state = _measure_meanwhile(plan, pair, directory, extents, blocks, latencies["during"])
            states.append(state)
            latencies["without"].append(_settled_p99_us(plan, pair, directory))
        during = [each for each, state in zip(latencies["during"], states, strict=True) if state == "REINTEGRATING"]
        results.resync["p99"] = {
            "without_us": statistics.median(latencies["without"]),
            # What was measured beside a reintegration that ended meanwhile does not count.
            "during_us": statistics.median(during) if during else None,
            "all_us": latencies,
            "states_at_the_end": states,
        }


def _measure_meanwhile(plan: Plan, pair: Hotpair, directory: Path, extents: int, blocks: int, into: list[float]) -> str:
    """One reintegration of the whole file with 4 KiB writes beside it; returns the state when those ended."""
    state = ""

    def measure() -> None:
        nonlocal state
        pair.wait_state("REINTEGRATING", STATE_TIMEOUT_S)
        into.append(_p99_us(plan, pair, directory))
        state = str(pair.control("status")["state"])

    _reintegrate(plan, pair, extents, blocks, measure)
    return state


def _reintegrate(
    plan: Plan, pair: Hotpair, extents: int, blocks: int, meanwhile: Callable[[], None]
) -> dict[str, float]:
    """Target down, `blocks` random writes into `extents` random extents, target up again until in sync."""
    pair.stop_one("target")
    pair.wait_state("FROZEN", STATE_TIMEOUT_S)
    pair.control("go_alone")
    pair.wait_state("ALONE", STATE_TIMEOUT_S)
    changed = _change(pair.first / FILE, plan.sizes.resync, extents, blocks)
    pids = descendants(pair.pid("source"))
    read = sum(map(read_bytes, pids))
    # Counted by the kernel, not by hotpair; nothing else runs in this network namespace.
    sent = loopback_bytes()
    since = time.monotonic()
    pair.start_target()
    meanwhile()
    pair.wait_state(IN_SYNC, RESYNC_TIMEOUT_S)
    elapsed = time.monotonic() - since
    outcome = {
        "changed_bytes": blocks * BLOCK_BYTES,
        "changed_extents_bytes": changed * EXTENT_BYTES,
        "file_bytes": plan.sizes.resync,
        "sent_bytes": loopback_bytes() - sent,
        "source_read_bytes": sum(map(read_bytes, descendants(pair.pid("source")))) - read,
        "target_read_bytes": sum(map(read_bytes, descendants(pair.pid("target")))),
        "seconds": elapsed,
    }
    plan.say(
        f"reintegration: {changed} changed extents ({outcome['changed_extents_bytes'] / 1e6:.0f} MB),"
        f" sent {outcome['sent_bytes'] / 1e6:.0f} MB in {elapsed:.1f} s"
    )
    return outcome


def _change(path: Path, size: int, extents: int, blocks: int) -> int:
    """Random writes; returns how many extents they really fell into."""
    choice = random.sample(range(size // EXTENT_BYTES), extents)
    descriptor = os.open(path, os.O_WRONLY)
    hit = set()
    try:
        for _ in range(blocks):
            extent = random.choice(choice)
            hit.add(extent)
            offset = extent * EXTENT_BYTES + random.randrange(EXTENT_BYTES // BLOCK_BYTES) * BLOCK_BYTES
            os.pwrite(descriptor, os.urandom(BLOCK_BYTES), offset)
    finally:
        os.close(descriptor)
    return len(hit)


def _settled_p99_us(plan: Plan, pair: Hotpair, directory: Path) -> float:
    for copy in pair.copies():
        flush(copy)
    return _p99_us(plan, pair, directory)


def _p99_us(plan: Plan, pair: Hotpair, directory: Path) -> float:
    job = ["--name=main", "--rw=randwrite", "--bs=4k", "--iodepth=1", f"--size={plan.sizes.resync}"]
    run = fio.run([*global_options(Abilities(), plan.seconds), *job, *pair.target(FILE)], directory, plan.seconds)
    return run.writes["main"].p99_us
