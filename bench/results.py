"""What was measured, as values: samples, their medians, and everything that goes into the report."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

DISTURBED = 0.25  # processors used by others; the kernel's own threads mostly come to less than 0.1


@dataclass(frozen=True)
class Sample:
    """One workload on one system in one round."""

    system: str
    workload: str
    round: int
    iops: float  # of the job `main`, reads and writes together
    bytes_per_s: float
    p50_us: float  # of its writes
    p99_us: float
    p999_us: float
    processor_us: float  # of all processes of the system, for one operation
    readers_iops: float  # of the cold readers beside it, 0 where there are none
    disturbance: float  # processors that neither fio nor the system used


@dataclass(frozen=True)
class Summary:
    """Medians over the rounds, and how far the rounds were apart."""

    iops: float
    iops_low: float
    iops_high: float
    bytes_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    processor_us: float
    readers_iops: float
    disturbance: float
    rounds: int


@dataclass
class Results:
    samples: list[Sample] = field(default_factory=list)
    # system -> "idle" or "used" -> process -> rss_bytes, pss_bytes
    memory: dict[str, dict[str, dict[str, dict[str, int]]]] = field(default_factory=dict)
    resync: dict[str, Any] = field(default_factory=dict)
    verified: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def summaries(self) -> dict[tuple[str, str], Summary]:
        """By (system, workload), in the order in which they were first measured."""
        groups: dict[tuple[str, str], list[Sample]] = {}
        for sample in self.samples:
            groups.setdefault((sample.system, sample.workload), []).append(sample)
        return {key: summarise(group) for key, group in groups.items()}


def summarise(samples: list[Sample]) -> Summary:
    def middle(values: Iterable[float]) -> float:
        return statistics.median(values)

    return Summary(
        iops=middle(each.iops for each in samples),
        iops_low=min(each.iops for each in samples),
        iops_high=max(each.iops for each in samples),
        bytes_per_s=middle(each.bytes_per_s for each in samples),
        p50_us=middle(each.p50_us for each in samples),
        p99_us=middle(each.p99_us for each in samples),
        p999_us=middle(each.p999_us for each in samples),
        processor_us=middle(each.processor_us for each in samples),
        readers_iops=middle(each.readers_iops for each in samples),
        disturbance=middle(each.disturbance for each in samples),
        rounds=len(samples),
    )
