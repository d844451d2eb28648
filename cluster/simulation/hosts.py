"""Hosts that lose their power, freeze, or come back with an empty disk."""

from __future__ import annotations

from hotpair.cluster.module_values import MirrorMode
from hotpair.cluster.simulation import actions
from hotpair.cluster.simulation.life import CONTROL, MIRROR, Life
from hotpair.cluster.simulation.world import MOST_WRITES, OLD_BOOT, change


def went_down(life: Life, s: int) -> None:
    """A host that goes down takes with it what was on no disk; the peer alone may still hold that."""
    if life.down_until[s] <= life.now:
        life.down_until[s] = life.now + life.random.uniform(5.0, 40.0)
    life.frozen_until[CONTROL, s] = life.frozen_until[MIRROR, s] = 0.0
    life.world = life.watch.went_down(life.world, s)


def lose_power(life: Life, s: int, length_s: float) -> None:
    """Of what was not flushed some is on the disk and some is not."""
    server = life.world.servers[s]
    life.down_until[s] = max(life.down_until[s], life.now + length_s)
    if not server.up:
        return
    lost = server.volatile & life.random.getrandbits(MOST_WRITES) if server.volatile else 0
    if life.random.random() < 0.5:
        lost = server.volatile
    world = change(life.world, s, copy=server.copy & ~lost, volatile=0)
    record, theirs = server.record, world.servers[1 - s].record
    mirror = server.mirror
    # what a source in sync has answered is on both, whatever the other one's record says by now
    on_both = mirror is not None and mirror.linked and mirror.mode is MirrorMode.PAIRED
    is_behind = theirs is None or theirs.inconsistent or (theirs.outdated and not on_both)
    has_rebooted = theirs is not None and theirs.boot == OLD_BOOT
    if record is None or record.solo or is_behind or has_rebooted:
        # the only current copy: as after a power cut of a single machine; or both have lost their power since they were
        # in sync, and what was never flushed is promised by neither
        world = world._replace(acked=world.acked & ~(lost & ~life.watch.flushed))
    life.watch.fragile[s] |= lost & world.acked
    union = world.servers[0].copy | world.servers[1].copy
    life.world = actions.crash(world._replace(acked=world.acked & (union | life.watch.flushed)), s)


def freeze(life: Life, part: str, s: int, length_s: float) -> None:
    life.frozen_until[part, s] = max(life.frozen_until[part, s], life.now + length_s)
    if part == MIRROR and length_s > 1.5:
        life.soon(1.0, 1.5, "stall", s)


def stall(life: Life, s: int) -> None:
    """A mirror that does not answer its probes loses its connection."""
    if life.now < life.frozen_until[MIRROR, s] and life.world.wire >= 0:
        life.world = life.world._replace(wire=-1)


def replace_disk(life: Life, s: int, length_s: float) -> None:
    """The server comes back with an empty one; what only it had is gone by the operator's hand."""
    lose_power(life, s, length_s)
    world = life.world
    other = world.servers[1 - s]
    usable = other.record is not None and not other.record.inconsistent and not other.record.outdated
    if world.acked & ~other.copy or not usable:
        world = world._replace(overridden=True)
        life.result.overridden = True
    life.watch.generations[s].clear()
    life.watch.disk_is_new = True
    life.world = change(world, s, record=None, copy=0, dirty=0, volatile=0)
