"""What happens in a simulation, in words. Pure code."""

from __future__ import annotations

from hotpair.cluster.module_events import Answered, Ask, CancelTimer, Commanded, PeerHeard, Reply, SetTimer, TimerFired
from hotpair.cluster.simulation.world import NAMES, World


def name(thing: object) -> str:
    if isinstance(thing, SetTimer | CancelTimer | TimerFired):
        return f"{type(thing).__name__} {thing.timer.value}"
    if isinstance(thing, Commanded):
        return f"command {thing.command.value}"
    if isinstance(thing, Reply):
        return "accepted" if thing.accepted else f"refused: {thing.why}"
    if isinstance(thing, Ask):
        return f"Ask {thing.claim.purpose.value} from epoch {thing.claim.epoch}"
    if isinstance(thing, Answered):
        answer = thing.answer
        return f"answer {'granted' if answer.granted else 'refused'} (epoch {answer.epoch}, {answer.holder})"
    if isinstance(thing, PeerHeard):
        return f"heard {thing.view.state.value}"
    return type(thing).__name__


def describe(world: World, s: int) -> str:
    server = world.servers[s]
    record, module, mirror = server.record, server.module, server.mirror
    state = "down" if not server.up else "no control plane" if module is None else module.state.value
    why = "" if module is None else f" ({module.reason.name}{', ' + module.plan.value if module.plan else ''})"
    process = "no mirror"
    if mirror is not None:
        marks = [name for name in ("linked", "session", "in_sync", "asked", "agreeing") if getattr(mirror, name)]
        process = f"{mirror.role.value} {' '.join([mirror.mode.value, *marks])}"
    said = "no record"
    if record is not None:
        marks = [name for name in ("in_sync", "solo", "inconsistent", "outdated") if getattr(record, name)]
        generation = int.from_bytes(record.generation, "big")
        said = f"g{generation} e{record.epoch} t{record.term} {' '.join([record.last_role, *marks])}"
    held = f", holds {server.held}" if server.held >= 0 else ""
    return f"{NAMES[s]}: {state}{why}; {process}; vm {'on' if server.vm else 'off'}{held}; {said}"
