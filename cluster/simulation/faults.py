"""What goes wrong in one simulated life of a pair: a list of faults with times, drawn from a seed. Pure code.

The list is made before the simulation begins, so that it can be shrunk: the same seed with fewer faults is another life
of the same pair. Faults come in bunches: two that meet within seconds find what none of them finds alone; and in half
of the lives there is a scenario beside them, which aims at a narrow moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.checker_rules import Action as CheckerAction
from hotpair.cluster.module_events import Command
from hotpair.cluster.simulation.fault_list import WHOLE, Detail, Fault
from hotpair.cluster.simulation.scenarios import scenario
from hotpair.cluster.simulation.world import NAMES
from hotpair.cluster.split_brain import MANUAL

QUIET_FROM_S = 440.0  # every fault has ended by then, whatever its length
RUNS_BY_S = 510.0
IN_SYNC_BY_S = 580.0
END_S = 600.0
MOST_FAULTS = 12
SCENARIOS = 0.5  # the part of the lives that has one of scenarios.py beside its random faults

# name: how often, beside the others
_WEIGHTS: dict[str, int] = {
    "power cut": 8,
    "power cut of both": 2,
    "control plane dies": 6,
    "mirror dies": 6,
    "vm dies": 3,
    "death between two effects": 8,
    "link fails": 8,
    "link slow": 2,
    "partition": 8,
    "network fails": 3,  # detail: which one
    "one way": 3,  # detail: which one, or WHOLE; nothing gets from this server to its peer
    "pulses lost": 2,  # detail: the part that is lost
    "pulses late": 3,  # detail: up to how many seconds; some come twice
    "control plane freezes": 3,
    "mirror freezes": 2,
    "server freezes": 4,
    "clock jumps": 2,  # detail: seconds
    "arbiter down": 5,
    "arbiter slow": 3,
    "arbiter not reached": 3,
    "disk errors": 3,
    "disk full": 2,
    "disk replaced": 1,
    "command": 14,  # detail: the command
    "checker": 2,  # detail: the action
}
_ARBITERS = frozenset(
    {"arbiter down", "arbiter slow", "arbiter not reached", "arbiter does not hear", "answers repeated"}
)
_COMMANDS: dict[Command, int] = {
    Command.START: 3,
    Command.STOP: 4,
    Command.RESTART: 1,
    Command.STOPSTART: 2,
    Command.SWAP: 6,
    Command.PRIM: 2,
    Command.PRIM_FORCE: 2,
    Command.SECOND: 1,
    Command.SECOND_FULL: 1,
    Command.MAINTENANCE_ON: 1,
    Command.MAINTENANCE_OFF: 1,
}
_CHECKER = (CheckerAction.WAIT, CheckerAction.RESTART, CheckerAction.STOPSTART, CheckerAction.SWAP)


@dataclass(frozen=True)
class Plan:
    """One simulated life. `rates`: how fast each server's clock runs; `ends_started`: the operator starts all at the
    end; `policies`: for a split brain, in each server's configuration."""

    seed: int
    kind: Kind
    faults: tuple[Fault, ...]
    starts_apart: bool = False
    rates: tuple[float, float] = (1.0, 1.0)
    fails_back: bool = False
    ends_started: bool = True
    policies: tuple[str, str] = (MANUAL, MANUAL)

    def only(self, chosen: tuple[int, ...]) -> Plan:
        """The same with these of its faults."""
        return replace(self, faults=tuple(self.faults[i] for i in chosen))


def plan(seed: int, kind: Kind, policy: str = MANUAL) -> Plan:
    """`policy`: of both servers, for a split brain; the faults are the same with any."""
    random = Random(f"{kind.value} {seed}")
    names = [name for name in _WEIGHTS if _may_happen(name, kind)]
    weights = [_WEIGHTS[name] for name in names]
    faults: list[Fault] = []
    for _ in range(random.randint(1, 4)):
        moment = random.uniform(15.0, 330.0)
        for _ in range(random.choice((1, 2, 2, 3, 3, 4))):
            name = random.choices(names, weights)[0]
            at = moment + random.choice((0.0, random.uniform(0.0, 0.1), random.uniform(0.0, 8.0)))
            faults.append(_fault(random, at, name))
    faults.sort(key=lambda fault: fault.at_s)
    faults = faults[:MOST_FAULTS]
    rates = tuple(random.choice((1.0, random.uniform(0.9999, 1.0001), random.uniform(0.95, 1.05))) for _ in NAMES)
    starts_apart, fails_back, ends_started = random.random() < 0.2, random.random() < 0.1, random.random() < 0.8
    if len(faults) < MOST_FAULTS and random.random() < 0.4:
        faults = sorted([*faults, _in_the_middle(random, faults)], key=lambda fault: fault.at_s)
    if random.random() < SCENARIOS:
        more = [fault for fault in scenario(random, faults) if _may_happen(fault.name, kind)]
        if len(faults) + len(more) <= MOST_FAULTS:
            faults = sorted([*faults, *more], key=lambda fault: fault.at_s)
    return Plan(
        seed, kind, tuple(faults), starts_apart, (rates[0], rates[1]), fails_back, ends_started, (policy, policy)
    )


def _may_happen(name: str, kind: Kind) -> bool:
    return not (name in _ARBITERS and kind in (Kind.NONE, Kind.MANUAL))


def _in_the_middle(random: Random, faults: list[Fault]) -> Fault:
    """The link fails just when the mirrors agree on something: after that many messages of a hello, a handover, ..."""
    near = random.choice(faults)
    length = random.choice((random.uniform(0.05, 1.0), random.uniform(1.0, 20.0)))
    name = random.choice(("link fails in the middle", "link fails in the middle", "partition in the middle"))
    return Fault(near.at_s, name, 0, round(length, 3), random.randint(1, 4))


def _fault(random: Random, at_s: float, name: str) -> Fault:
    server = random.randrange(2)
    length = random.choice((random.uniform(0.05, 1.0), random.uniform(1.0, 8.0), random.uniform(5.0, 70.0)))
    detail: Detail = 0
    match name:
        case "power cut" | "power cut of both" | "disk replaced":
            length = random.uniform(4.0, 70.0)
        case "control plane dies":
            length = random.choice((random.uniform(0.1, 2.0), random.uniform(1.0, 60.0)))
        case "mirror dies" | "vm dies" | "clock jumps":
            detail = round(random.uniform(1.0, 20.0), 2) if name == "clock jumps" else 0
            length = 0.0
        case "death between two effects":
            dies = random.choice(("control plane", "server"))
            detail, length = f"{dies} after {random.randint(0, 3)}", random.uniform(0.2, 30.0)
        case "network fails" | "one way":
            detail = random.choice((0, 1, WHOLE)) if name == "one way" else random.randrange(2)
        case "pulses lost":
            detail = round(random.uniform(0.1, 0.9), 2)
        case "pulses late":
            detail = round(random.uniform(0.1, 6.0), 2)
        case "command":
            chosen = random.choices(list(_COMMANDS), list(_COMMANDS.values()))[0]
            detail, length = chosen.value, 0.0
        case "checker":
            detail = random.choice(_CHECKER).value
    return Fault(round(at_s, 3), name, server, round(length, 3), detail)
