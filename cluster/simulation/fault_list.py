"""One fault of a simulated life: a value, and its words. Pure code."""

from __future__ import annotations

from dataclasses import dataclass

from hotpair.cluster.simulation.world import NAMES

PRIMARY, SECONDARY = 2, 3  # for a server's index: whoever runs the VM when the fault begins, and the other one
WHOLE = -1  # of a network fault: all networks

_WHO = (*NAMES, "PRIM", "SECOND")

Detail = int | float | str


@dataclass(frozen=True)
class Fault:
    """`server` is its index, or PRIMARY or SECONDARY; for what belongs to neither it is 0. `detail` depends on the
    name, see `describe`."""

    at_s: float
    name: str
    server: int = 0
    length_s: float = 0.0
    detail: Detail = 0

    def describe(self) -> str:
        where = "" if self.name in COMMON else f"{_WHO[self.server]}: "
        what = f" {self.detail}" if self.detail != 0 else ""
        length = f" for {self.length_s:.2f} s" if self.length_s else ""
        return f"{self.at_s:8.2f} {where}{self.name}{what}{length}"


COMMON = frozenset(
    {
        "power cut of both",
        "link fails",
        "link fails in the middle",
        "partition in the middle",
        "link slow",
        "partition",
        "pulses lost",
        "pulses late",
        "arbiter down",
    }
    | {"arbiter slow", "answers repeated"}
)
