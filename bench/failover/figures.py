"""What was measured, as values, and what is made of it: spreads, gaps, kinds of processes, targets. Pure."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any


@dataclass(frozen=True)
class Spread:
    """Of several runs."""

    runs: int
    least: float
    median: float
    most: float


def spread_of(values: Sequence[float]) -> Spread:
    return Spread(len(values), min(values), statistics.median(values), max(values))


@dataclass(frozen=True)
class Target:
    """`limit`: what the slowest run may take. `name`: of the figure."""

    name: str
    what: str
    limit: float
    unit: str
    scale: float = 1.0  # seconds, or pieces, to the unit


TARGETS = (
    Target("failover", "primary cut until the start command, defaults (5 s)", 7.0, "s"),
    Target("failover-1s", "primary cut until the start command, timeout_s = 1", 2.5, "s"),
    Target("swap", "swap: application's end until the start command", 1.5, "s"),
    Target("freeze", "secondary cut, its kernel says so: longest write gap", 50.0, "ms", 1e3),
    Target("freeze-silent", "secondary cut, nobody says so: longest write gap", 2500.0, "ms", 1e3),
    Target("lost", "pulses lost once all are green", 0.0, ""),
)


@dataclass(frozen=True)
class Row:
    """`reached` None: it was not measured."""

    target: Target
    spread: Spread | None

    @property
    def reached(self) -> bool | None:
        return None if self.spread is None else self.spread.most * self.target.scale <= self.target.limit


def rows(values: Mapping[str, Sequence[float]]) -> list[Row]:
    return [Row(target, spread_of(values[target.name]) if values.get(target.name) else None) for target in TARGETS]


# ---- what the application wrote down


@dataclass(frozen=True)
class Mark:
    """A line of the application's: what it did, when (seconds since 1970), on which server."""

    what: str
    at: float
    server: str


def marks_of(text: str) -> list[Mark]:
    """Of whole lines; the last one may be half written."""
    found = []
    for line in text.split("\n")[:-1]:
        what, at, server = line.split()
        found.append(Mark(what, float(at.replace(",", ".")), server))
    return found


def first_after(marks: Iterable[Mark], what: str, server: str, since: float) -> float | None:
    """When it was done there for the first time after that."""
    return min(
        (mark.at for mark in marks if (mark.what, mark.server) == (what, server) and mark.at > since), default=None
    )


@dataclass(frozen=True)
class Gap:
    """Between two acknowledged writes, in seconds. `began`: after the cut. `usual`: the median of those before it."""

    longest: float
    began: float
    usual: float

    @property
    def beyond(self) -> float:
        return self.longest - self.usual


def gap_around(times: Sequence[float], cut: float, until: float) -> Gap:
    """The longest gap that ends after `cut` and begins before `until`. ValueError: there is none."""
    pairs = list(pairwise(times))
    before = [later - earlier for earlier, later in pairs if later <= cut]
    after = [(later - earlier, earlier) for earlier, later in pairs if later > cut and earlier < until]
    if not before or not after:
        raise ValueError("nothing was written before the cut, or nothing after it")
    longest, began = max(after)
    return Gap(longest, began - cut, statistics.median(before))


# ---- processes

_ACTORS = {
    "HeartbeatActor": "heartbeat actors",
    "ReplicationActor": "replication actors",
    "VmActor": "VM actors",
    "SupervisorActor": "supervisor",
}
KINDS = (
    "service",
    "Ray",
    "idle Ray workers",
    "supervisor",
    "heartbeat actors",
    "replication actors",
    "VM actors",
    "mirrors",
    "mirrors' helpers",
    "applications",
    "applications' logs",
    "other",
)
APPLICATION = "application.py"
_RAY = ("gcs_server", "raylet", "ray/", "ray_start", "fork_server", "default_worker", "dashboard", "runtime_env")
_ROLES = ("source", "target")


def kind_of(words: Sequence[str]) -> str:
    """What a process is, by its command line: one of KINDS."""
    line = " ".join(words)
    if line.startswith("ray::"):
        name = re.match(r"ray::(?:[\w-]+/\w+:)?(\w+)", line)
        return _ACTORS.get("" if name is None else name[1], "idle Ray workers" if "IDLE" in line else "Ray")
    if any(word.endswith(APPLICATION) for word in words):
        return "applications"
    if "hotpair.replication" in words:
        return "mirrors" if any(role in words for role in _ROLES) else "mirrors' helpers"
    if "hotpair.replication" in line or "hotpair/replication/" in line:
        return "mirrors' helpers"
    if "hotpair.hyperv" in line:
        return "applications' logs"
    if "run" in words and "--server" in words:
        return "service"
    return "Ray" if any(part in line for part in _RAY) else "other"


@dataclass(frozen=True)
class Use:
    """Of all processes of one kind on one server. `processor`: part of one processor."""

    processes: int
    pss_bytes: int
    processor: float


@dataclass(frozen=True)
class Idle:
    """So many modules while nothing happens. `uses`: of each kind, the mean of both servers.

    others  processors that neither server used meanwhile: what else the machine did
    """

    modules: int
    green_s: float
    seconds: float
    uses: Mapping[str, Use]
    others: float
    sent: int
    lost: int

    @property
    def whole(self) -> Use:
        """Of one server."""
        each = self.uses.values()
        return Use(
            sum(one.processes for one in each), sum(one.pss_bytes for one in each), sum(one.processor for one in each)
        )


_SAMPLE = re.compile(r"^(\w+)(\{[^}]*\})? (\S+)$")


def samples_of(metrics: str, name: str) -> dict[str, float]:
    """Of Prometheus's text: one metric's samples by their labels."""
    samples = (_SAMPLE.match(line) for line in metrics.splitlines())
    return {found[2] or "": float(found[3]) for found in samples if found is not None and found[1] == name}


@dataclass
class Results:
    """`values`: of each figure, one for each run, in seconds or pieces. `details`: of each run, for programs."""

    values: dict[str, list[float]] = field(default_factory=dict)
    details: dict[str, list[Any]] = field(default_factory=dict)
    idle: list[Idle] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def add(self, name: str, value: float, **details: Any) -> None:
        self.values.setdefault(name, []).append(value)
        self.details.setdefault(name, []).append({"value": value, **details})
