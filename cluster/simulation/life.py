"""What one simulated life is at a moment: the world, the clock, what is due, and what is wrong just now.

One random source and one queue of what is due, so a seed always gives the same life. Each room changes it: control.py,
hearing.py, serving.py, hosts.py, trouble.py; the loop is in timed.py.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

from hotpair.cluster.module_values import Module, PeerView, Settings, Vm, view
from hotpair.cluster.record import Side
from hotpair.cluster.settings import retry_s
from hotpair.cluster.simulation import limits
from hotpair.cluster.simulation.actions import Scope
from hotpair.cluster.simulation.faults import Plan
from hotpair.cluster.simulation.pulses import Ear, Paths
from hotpair.cluster.simulation.watch import Result, Watch
from hotpair.cluster.simulation.world import World, change, pair_apart, pair_in_sync, settings, under_policies

BUSY_S = 20.0  # after a fault the VM writes a lot

FIRST_ID = 1000  # above all ids of the worlds' starts
CONTROL, MIRROR = "control", "mirror"  # what can be frozen

Key = tuple[Any, ...]


class Life:
    """`tell` gets a line for everything that happens; `world` is a start of a story's own."""

    def __init__(self, plan: Plan, tell: Callable[[str], None] | None = None, world: World | None = None) -> None:
        self.plan = plan
        self.kind = plan.kind
        self.now = 0.0
        self.result = Result(plan.seed, plan.kind.value, split_brain_policy=plan.policies[0])
        self.world: World = world or (pair_apart if plan.starts_apart else pair_in_sync)(plan.kind, 0, 0)
        self.scope = Scope(plan.kind)
        self.tell = tell
        self.random = Random(f"delays {plan.kind.value} {plan.seed}")
        self.settings = [_settings(plan, s) for s in (0, 1)]
        self.queue: list[tuple[float, int, Key, bool]] = []
        self.sequence = 0
        self.pending: dict[Key, int] = {}
        self.possible: dict[Key, None] = {}
        self.last_id = FIRST_ID
        self.paths = Paths()
        self.clock_offset = [0.0, 0.0]
        self.ears: list[Ear | None] = [None, None]
        self.beats = [float("inf"), float("inf")]
        self.views: list[tuple[Module, PeerView] | None] = [None, None]
        self.incarnations = 0
        self.connections = 0
        self.down_until = [0.0, 0.0]
        self.control_until = [0.0, 0.0]
        self.frozen_until = {(part, s): 0.0 for part in (CONTROL, MIRROR) for s in (0, 1)}
        self.arbiter_down = 0
        self.arbiter_slow = 0
        self.arbiter_takes_s: list[float] = []
        self.arbiter_apart = [0, 0]
        self.arbiter_deaf = [0, 0]
        self.answers_repeated = 0
        self.disk_errors = [0, 0]
        self.disk_full = [0, 0]
        self.death: list[tuple[int, str, float, float] | None] = [None, None]
        self.middle: tuple[str, int, float, float] | None = None
        self.busy_until = 0.0
        self.vm_stopped_at = [float("-inf"), float("-inf")]
        self.watch = Watch(plan.kind, self.world, self.result, knows_past=world is None)
        self.slow_delays = False
        for s in (0, 1):
            module = self.world.servers[s].module
            if module is not None:
                self.world = change(self.world, s, module=replace(module, settings=self.settings[s]))
        self.world = under_policies(self.world, plan.policies)

    def schedule(self, key: Key, at_s: float, tracked: bool) -> None:
        self.sequence += 1
        if tracked:
            self.pending[key] = self.sequence
        heapq.heappush(self.queue, (at_s, self.sequence, key, tracked))

    def later(self, at_s: float, key: Key) -> None:
        self.schedule(key, at_s, False)

    def soon(self, low_s: float, high_s: float, *key: Any) -> None:
        self.schedule(key, self.now + self.random.uniform(low_s, high_s), False)

    def cancel(self, *key: Any) -> None:
        self.pending.pop(key, None)

    def say(self, line: str) -> None:
        if self.tell is not None:
            self.tell(f"{self.now:9.3f} {line}")

    def new_id(self) -> bytes:
        self.last_id += 1
        return self.last_id.to_bytes(16, "big")

    def give_id(self) -> None:
        self.world = self.world._replace(fresh=self.new_id())

    def local(self, s: int) -> float:
        return self.clock_offset[s] + self.now * self.plan.rates[s]

    def challenge(self) -> int:
        self.incarnations += 1
        return self.incarnations

    def view(self, s: int, module: Module) -> PeerView:
        known = self.views[s]
        if known is None or known[0] is not module:
            known = self.views[s] = (module, view(module))
        return known[1]

    def vm(self, s: int) -> Vm:
        """What its driver finds: a guest that was told to shut down is neither on nor off."""
        if ("vm off", s) in self.pending:
            return Vm.STOPPING
        return Vm.ON if self.world.servers[s].vm else Vm.OFF

    def happened(self, name: str) -> None:
        self.result.faults.append(name)
        self.watch.cause = (name, self.now)
        self.busy_until = self.now + BUSY_S


def _settings(plan: Plan, s: int) -> Settings:
    preferred = (Side.ME if s == 0 else Side.PEER) if plan.fails_back else Side.NOBODY
    return replace(
        settings(plan.kind, s, plan.policies[s]),
        ask_timeout_s=limits.ask_timeout_s(plan.kind),
        retry_s=retry_s(plan.kind),
        preferred=preferred,
        automatic_failback=plan.fails_back,
    )
