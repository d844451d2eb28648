"""What hotpair must reach, as ratios within one run, and whether it did. Pure: results in, rows out."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.results import Results, Sample
from bench.workloads import MIB

SUBJECT = "hotpair"
IDLE_BYTES = 64 * MIB
# workload, the system it is compared with, at least this many times its operations per second
_RATIOS = (
    ("4k-qd1", "gluster", 2.0),
    ("4k-qd1", "qemu", 1.3),
    ("4k-qd1", "c-loop", 0.70),
    ("4k-qd16", "gluster", 18.0),
    ("4k-qd16", "qemu", 8.0),
    ("4k-qd16", "c-loop", 0.70),
    ("4k-qd32", "gluster", 18.0),
    ("4k-qd32", "qemu", 8.0),
    ("4k-qd32", "c-loop", 0.70),
    ("1m-qd8", "gluster", 3.5),
    ("1m-qd8", "qemu", 1.8),
    ("1m-qd8", "c-loop", 0.90),
)


@dataclass(frozen=True)
class Row:
    """One target. `value` and `reached` are None when the run did not measure it."""

    what: str
    against: str
    at_least: bool
    limit: float
    unit: str
    value: float | None

    @property
    def reached(self) -> bool | None:
        if self.value is None:
            return None
        return self.value >= self.limit if self.at_least else self.value <= self.limit


def rows(results: Results) -> list[Row]:
    """The reach table of one run."""
    samples = {(sample.system, sample.workload, sample.round): sample for sample in results.samples}

    def ratio(one: tuple[str, str], other: tuple[str, str], value: Callable[[Sample], float] = _iops) -> float | None:
        """The middle one of the rounds' ratios: the machine is not the same from one round to the next."""
        found = [
            value(sample) / value(beside)
            for (*what, number), sample in samples.items()
            if tuple(what) == one and (beside := samples.get((*other, number))) is not None and value(beside)
        ]
        return statistics.median(found) if found else None

    table = [
        Row(workload, other, True, limit, "x", ratio((SUBJECT, workload), (other, workload)))
        for workload, other, limit in _RATIOS
    ]
    table += _resync_rows(results.resync)
    table.append(Row("idle memory, 100 GiB sparse module", "", False, IDLE_BYTES / MIB, "MiB", _idle(results.memory)))
    beside = ratio((SUBJECT, "4k-qd1-readers"), (SUBJECT, "4k-qd1"))
    table.append(Row("4k-qd1 beside 16 cold readers", "without readers", True, 0.25, "x", beside))
    reads = ratio((SUBJECT, "4k-qd1-readers"), ("plain", "4k-qd1-readers"), _reads)
    table.append(Row("cold reads beside 4k-qd1", "plain", True, 0.3, "x", reads))
    sparse = ratio((SUBJECT, "sparse-qd16"), (SUBJECT, "4k-qd16"))
    table.append(Row("4k-qd16 over 100 GiB", "over 256 MiB", True, 0.5, "x", sparse))
    return table


def _iops(sample: Sample) -> float:
    return sample.iops


def _reads(sample: Sample) -> float:
    return sample.readers_iops


def _resync_rows(resync: Mapping[str, Any]) -> list[Row]:
    rates = resync.get("full_sync", {}).get("bytes_per_s", {})
    slower = min(rates["disk"], rates["loopback"]) if rates else None
    back = resync.get("reintegration", {})
    scanned = max(back["source_read_bytes"], back["target_read_bytes"]) if back else None
    p99 = resync.get("p99", {})
    return [
        Row(
            "full synchronisation", "slower of disk and TCP copy", True, 0.7, "x", _ratio(rates.get("hotpair"), slower)
        ),
        # All bytes over loopback, so one hundredth for frame headers, acknowledgements and the comparison of trees.
        Row(
            *("reintegration: bytes sent", "changed extents", False, 1.01, "x"),
            _ratio(back.get("sent_bytes"), back.get("changed_extents_bytes")),
        ),
        # Reading the changed extents twice on one side is well below this; a full scan is above.
        Row(*("reintegration: bytes read", "whole file", False, 0.5, "x"), _ratio(scanned, back.get("file_bytes"))),
        Row(
            *("4k p99 in reintegration", "without", False, 1.2, "x"),
            _ratio(p99.get("during_us"), p99.get("without_us")),
        ),
    ]


def _idle(memory: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]]) -> float | None:
    """The resident memory of the larger of both processes, in MiB."""
    processes = memory.get(SUBJECT, {}).get("idle", {})
    return max((each["rss_bytes"] / MIB for each in processes.values()), default=None)


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None
