"""What the world says is possible gets a delay when it becomes possible, and is dropped when it stops being so."""

from __future__ import annotations

from collections.abc import Iterator

from hotpair.cluster.module_values import Mirror, MirrorMode, Role, Vm
from hotpair.cluster.simulation import limits, mirrors
from hotpair.cluster.simulation.life import Key, Life

_FLUSHED_FOR = frozenset({"handover", "leave", "left"})  # whoever reads it flushes its copy before it answers


def refresh(life: Life) -> None:
    """What has become possible gets its moment; what is not possible any more is dropped."""
    found = dict.fromkeys(_what_is_possible(life))
    possible = life.possible
    if found.keys() == possible.keys():
        return
    for key in possible:
        if key not in found:
            life.pending.pop(key, None)
    for key in found:
        if key not in possible:
            life.schedule(key, life.now + _delay(life, key), True)
    life.possible = found


def _what_is_possible(life: Life) -> Iterator[Key]:
    world = life.world
    for s in (0, 1):
        server = world.servers[s]
        if not server.up:
            yield ("boot", s)
            continue
        module, mirror = server.module, server.mirror
        if module is None:
            yield ("control starts", s)
        else:
            if (mirror is not module.mirror and mirror != module.mirror) or (
                server.record is not module.record and server.record != module.record
            ):
                yield ("mirror report", s)
            if life.vm(s) is not module.vm:
                yield ("vm report", s)
        if mirror is not None:
            yield from _mirror_can(life, s, mirror)


def _mirror_can(life: Life, s: int, mirror: Mirror) -> Iterator[Key]:
    world = life.world
    if mirror.linked:
        if world.queues[1 - s]:
            yield ("receive", s)
        if world.wire < 0:
            yield ("link loss", s)
    if mirror.role is Role.TARGET:
        return
    if not (life.disk_errors[0] or life.disk_errors[1] or life.disk_full[1 - s]):
        if not mirror.linked and mirrors.can_connect(world, s):
            yield ("connect", s)
        if mirror.mode is MirrorMode.FILLING and mirrors.can_fill(world, s):
            yield ("fill", s)
    server = world.servers[s]
    if server.vm:
        if mirror.mode is MirrorMode.FROZEN:
            yield ("fence itself", s)
        elif mirror.mode in (MirrorMode.ALONE, MirrorMode.FILLING, MirrorMode.PAIRED) and server.held < 0:
            yield ("write", s)
        if server.held < 0 and world.acked & ~life.watch.flushed:
            yield ("flush", s)


def _delay(life: Life, key: Key) -> float:
    uniform = life.random.uniform
    match key[0]:
        case "boot":
            return max(life.down_until[key[1]] - life.now, 0.0) + uniform(0.0, 1.0)
        case "control starts":
            return max(life.control_until[key[1]] - life.now, 0.0) + uniform(0.05, 0.5)
        case "mirror report":
            return uniform(0.001, 0.03)
        case "vm report":
            module = life.world.servers[key[1]].module
            is_starting = module is not None and module.vm is Vm.STARTING
            return uniform(0.5, 3.0) if is_starting else uniform(0.01, 0.3)
        case "receive":
            if life.slow_delays:
                return uniform(0.05, 2.0)
            flushes = life.world.queues[1 - key[1]][0][0] in _FLUSHED_FOR
            return uniform(0.001, 0.5) if flushes else uniform(0.0001, 0.003)
        case "link loss":
            return uniform(0.0, 0.02) if life.world.link and uniform(0, 1) < 0.7 else uniform(0.5, 1.5)
        case "connect":
            return uniform(0.05, 1.0)
        case "fill":
            return uniform(0.001, 0.02)
        case "fence itself":
            return limits.fence_after_s(life.kind)
        case "write":
            busy = life.now < life.busy_until
            return life.random.expovariate(1 / 0.7 if busy else 1 / 12.0)
        case "flush":
            return life.random.expovariate(1 / 4.0 if life.now < life.busy_until else 1 / 40.0)
    raise AssertionError(key)
