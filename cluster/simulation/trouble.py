"""The faults of faults.py, when their moment has come: how each begins and ends."""

from __future__ import annotations

from dataclasses import replace

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.checker_rules import Action as CheckerAction
from hotpair.cluster.module_events import Command
from hotpair.cluster.module_values import State
from hotpair.cluster.simulation import control, hosts, invariants, limits, mirrors
from hotpair.cluster.simulation.fault_list import PRIMARY, SECONDARY, WHOLE, Fault
from hotpair.cluster.simulation.faults import QUIET_FROM_S
from hotpair.cluster.simulation.life import CONTROL, MIRROR, Life
from hotpair.cluster.simulation.watch import Violation
from hotpair.cluster.simulation.world import NAMES, World, change

ARMED_S = 60.0
# faults in which the two still hear each other
_LEAVES_PULSES = frozenset(
    {"link fails", "link fails in the middle", "partition in the middle", "link slow", "mirror dies", "mirror freezes"}
    | {"vm dies", "arbiter down", "arbiter slow", "arbiter not reached", "arbiter does not hear", "answers repeated"}
    | {"disk full", "checker"}
)

_HAPPENS_LATER = frozenset(
    {"death between two effects", "link fails in the middle", "partition in the middle", "command", "checker"}
)


def break_in_the_middle(life: Life, before: World) -> None:
    """Count the messages that are no writes; with the last one it breaks, before or after it is read."""
    assert life.middle is not None
    name, left, length_s, until_s = life.middle
    for s in (0, 1):
        queue = life.world.queues[s]
        if len(queue) > len(before.queues[s]) and queue[-1][0] not in ("write", "applied"):
            left -= 1
    life.middle = (name, left, length_s, until_s) if life.now < until_s else None
    if left <= 0 and life.middle is not None:
        life.middle = None
        life.soon(0.0, 0.004, "break", Fault(life.now, name, 0, length_s))


def planned_fault(life: Life, number: int) -> None:
    begin_fault(life, life.plan.faults[number])


def _who(life: Life, server: int) -> int:
    """The index; whoever runs the VM, or is to, is the primary."""
    if server not in (PRIMARY, SECONDARY):
        return server
    modules = [one.module for one in life.world.servers]
    runs = [module is not None and module.state in (State.PRIM, State.ALONE) for module in modules]
    primary = 1 if runs[1] and not runs[0] else 0
    return primary if server == PRIMARY else 1 - primary


def begin_fault(life: Life, fault: Fault) -> None:
    life.say(f"--- {fault.describe().strip()}")
    s = _who(life, fault.server)
    fault = replace(fault, server=s)
    length = min(fault.length_s, max(QUIET_FROM_S - 10.0 - life.now, 0.05))
    if fault.name not in _LEAVES_PULSES:
        life.watch.deaf_at = max(life.watch.deaf_at, life.now + length)
    if fault.name not in _HAPPENS_LATER:
        life.happened(fault.name)
    match fault.name:
        case "power cut":
            _watch_survivor(life, s, length)
            hosts.lose_power(life, s, length)
        case "power cut of both":
            hosts.lose_power(life, 0, length)
            hosts.lose_power(life, 1, length * life.random.uniform(0.5, 1.5))
        case "control plane dies":
            life.control_until[s] = life.now + length
            life.world = change(life.world, s, module=None)
        case "mirror dies":
            if life.world.servers[s].mirror is not None:
                life.world = mirrors.die(life.world, s)
        case "vm dies":
            life.world = change(life.world, s, vm=False)
        case "death between two effects":
            who, after = str(fault.detail).split(" after ")
            life.death[s] = (int(after), who, length, min(life.now + ARMED_S, QUIET_FROM_S - 40.0))
        case "link fails in the middle" | "partition in the middle":
            life.middle = (fault.name.removesuffix(" in the middle"), int(fault.detail), length, life.now + ARMED_S)
        case "control plane freezes":
            hosts.freeze(life, CONTROL, s, length)
        case "mirror freezes":
            hosts.freeze(life, MIRROR, s, length)
        case "server freezes":
            hosts.freeze(life, CONTROL, s, length)
            hosts.freeze(life, MIRROR, s, length)
        case "clock jumps":
            life.clock_offset[s] += float(fault.detail)
        case "disk replaced":
            hosts.replace_disk(life, s, length)
        case "command":
            control.command(life, s, Command(fault.detail))
        case "checker":
            control.check_fails(life, s, CheckerAction(fault.detail), length)
        case _:
            _hold_up(life, fault, +1)
            life.later(life.now + length, ("fault ends", fault))


def end_fault(life: Life, fault: Fault) -> None:
    life.say(f"--- ends: {fault.name}")
    _hold_up(life, fault, -1)


def _hold_up(life: Life, fault: Fault, by: int) -> None:
    """Begin (+1) or end (-1) what lasts."""
    paths, s = life.paths, fault.server
    match fault.name:
        case "link fails":
            paths.link_down += by
        case "link slow":
            life.slow_delays = by > 0
        case "partition":
            paths.link_down += by
            for network in paths.blocked:
                network[0] += by
                network[1] += by
        case "network fails":
            paths.blocked[int(fault.detail)][0] += by
            paths.blocked[int(fault.detail)][1] += by
        case "one way":
            for number, network in enumerate(paths.blocked):
                if fault.detail in (number, WHOLE):
                    network[s] += by
        case "pulses lost" | "pulses late":
            _keep(paths.losses if fault.name == "pulses lost" else paths.delays, float(fault.detail), by)
        case "arbiter down":
            life.arbiter_down += by
        case "arbiter slow":
            life.arbiter_slow += by
            if fault.detail:
                _keep(life.arbiter_takes_s, float(fault.detail), by)
        case "arbiter not reached":
            life.arbiter_apart[s] += by
        case "arbiter does not hear":
            life.arbiter_deaf[s] += by
        case "answers repeated":
            life.answers_repeated += by
        case "disk errors":
            life.disk_errors[s] += by
        case "disk full":
            life.disk_full[s] += by
        case _:
            raise AssertionError(fault)
    link, net = paths.link(), paths.is_whole()
    if (link, net) != (life.world.link, life.world.net):
        if life.world.link and not link:
            _lose_what_is_on_its_way(life)
        wire = life.world.wire if link else -1
        life.world = life.world._replace(link=link, net=net, wire=wire)


def _keep(values: list[float], value: float, by: int) -> None:
    if by > 0:
        values.append(value)
    else:
        values.remove(value)


def _lose_what_is_on_its_way(life: Life) -> None:
    """Of what was sent, the last part may not arrive any more; the first part can still be read."""
    a, b = (queue[: life.random.randint(0, len(queue))] if queue else queue for queue in life.world.queues)
    life.world = life.world._replace(queues=(a, b))


def _watch_survivor(life: Life, s: int, length_s: float) -> None:
    """8: a green pair survives the loss of one host, when nothing else happens: SECOND takes over, and PRIM's VM is not
    even stopped."""
    world = life.world
    module, other = world.servers[s].module, world.servers[1 - s].module
    if module is None or other is None or life.watch.in_sync_since < 0:
        return
    survives_s = limits.survives_s(life.kind)
    held_up = (
        life.arbiter_down, life.arbiter_slow, *life.arbiter_apart, *life.arbiter_deaf, *life.disk_errors,
        *life.disk_full, life.slow_delays, not life.paths.is_whole(), life.death[1 - s] is not None,
        max(life.frozen_until.values()) > life.now, life.kind is Kind.MANUAL, other.maintenance,
        length_s < survives_s, not other.wanted, other.plan is not None,
    )  # fmt: skip
    if not any(held_up):
        key = ("survived", 1 - s, len(life.result.faults), world.servers[1 - s].vm)
        life.later(life.now + survives_s, key)


def must_have_survived(life: Life, s: int, faults: int, had_vm: bool) -> None:
    if len(life.result.faults) != faults:
        return
    if not invariants.runs(life.world):
        raise Violation(f"shown_truly: {NAMES[s]} was shown green and does not run")
    if had_vm and life.now - life.vm_stopped_at[s] <= limits.survives_s(life.kind):
        raise Violation(f"shown_truly: {NAMES[s]} was shown green, and its VM was stopped when the other was lost")
