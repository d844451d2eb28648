"""What the mirrors and the VMs do at their moments: mirrors.py, with disks that can fail."""

from __future__ import annotations

from dataclasses import replace

from hotpair.cluster.module_values import MirrorMode, Role
from hotpair.cluster.simulation import mirrors
from hotpair.cluster.simulation.life import Life
from hotpair.cluster.simulation.world import EVERYTHING, MOST_WRITES, change, flush


def receive(life: Life, s: int) -> None:
    if life.disk_errors[s] or (life.disk_full[s] and _is_target(life, s)):
        _disk_fails(life, s)
        return
    life.world = mirrors.receive(life.world, s)


def _is_target(life: Life, s: int) -> bool:
    mirror = life.world.servers[s].mirror
    return mirror is not None and mirror.role is Role.TARGET


def lose_link(life: Life, s: int) -> None:
    life.world = mirrors.lose_link(life.world, s)


def connect(life: Life, s: int) -> None:
    life.connections += 1
    life.world = mirrors.connect(life.world, s)


def fill(life: Life, s: int) -> None:
    life.world = mirrors.fill(life.world, s)


def fence_itself(life: Life, s: int) -> None:
    life.world = mirrors.fence_itself(life.world, s)


def write(life: Life, s: int) -> None:
    if life.world.written >= MOST_WRITES:
        return
    if life.disk_errors[s]:
        _disk_fails(life, s)
    elif life.disk_full[s]:
        server = life.world.servers[s]
        if server.mirror is not None and server.mirror.mode is MirrorMode.ALONE:
            life.world = change(life.world, s, dirty=server.dirty | EVERYTHING)  # the log is full
    else:
        life.world = mirrors.write(life.world, s)
        life.result.writes += 1


def _disk_fails(life: Life, s: int) -> None:
    """An error is sticky: a source in sync leaves the module to its peer, a target ends."""
    server = life.world.servers[s]
    mirror, record = server.mirror, server.record
    if mirror is None or record is None:
        return
    if mirror.role is Role.TARGET:
        life.world = mirrors.die(life.world, s)
    elif mirror.mode in (MirrorMode.PAIRED, MirrorMode.FROZEN):
        failed = replace(record, inconsistent=True, in_sync=False)
        life.world = life.watch.disk_failed(change(mirrors.fail_tap(life.world, s), s, record=failed), s)


def flush_both(life: Life, s: int) -> None:
    """The guest flushes: both copies while there are two, and what was acknowledged is promised for good."""
    world = life.world
    server = world.servers[s]
    if server.mirror is None or life.disk_errors[s]:
        return
    if server.mirror.mode is MirrorMode.PAIRED:
        if world.wire != s or world.queues != ((), ()) or server.held >= 0:
            return
        life.world = change(flush(world, 0, 1), s, dirty=0)
    elif server.mirror.mode in (MirrorMode.ALONE, MirrorMode.FILLING):
        life.world = flush(world, s)
    else:
        return
    life.watch.flushed |= life.world.acked & server.copy
