"""The model of the two mirror processes and the stream between them. It follows replication/, and uses its records.

What the target's and the source's process do at each message, at the loss of the link, and at each verdict. The
mirror's record is the one on the server's disk: every change here is durable before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hotpair.cluster import module_rules as rules
from hotpair.cluster import record as records
from hotpair.cluster.module_events import Agree, GoAlone
from hotpair.cluster.module_values import Mirror, MirrorMode, Role
from hotpair.cluster.record import Copying, Record, Side
from hotpair.cluster.simulation.world import (
    BOOT,
    EVERYTHING,
    ROOT,
    World,
    acknowledge,
    change,
    clear_queue,
    flush,
    own_changes,
    send,
)


def start(world: World, s: int, role: Role, *, alone: bool) -> World:
    """A source whose copy is not current refuses to start: see the mirror's own check of the record."""
    server = world.servers[s]
    own = server.record
    assert server.mirror is None, "one mirror process per module"
    if role is Role.TARGET:
        assert not server.vm, "a target's directory is not written by a VM"
        idle = Mirror(Role.TARGET, MirrorMode.IDLE)
        return change(world, s, mirror=idle, held=-1)  # it takes the mount of a source that had died away
    if own is None:
        own = Record(generation=world.fresh, last_role="ALONE", solo=True, boot=BOOT, configuration=b"", root=ROOT)
    elif own.inconsistent or own.outdated:
        return world
    goes = alone and own.solo
    mode = MirrorMode.ALONE if goes else MirrorMode.FROZEN
    world = change(world, s, mirror=Mirror(Role.SOURCE, mode), record=own)
    return _release(world, s) if goes else world


def stop(world: World, s: int) -> World:
    """The process ends, with what it has not read; the copy is flushed."""
    mirror = world.servers[s].mirror
    if mirror is None:
        return world
    world = flush(close(world, s), s)
    return change(world, s, mirror=None, held=-1)


def die(world: World, s: int) -> World:
    """The process is killed: a held write stays with the kernel."""
    return change(close(world, s), s, mirror=None)


def close(world: World, s: int) -> World:
    """This end of the connection is gone, and all that was not read here."""
    mirror = world.servers[s].mirror
    if mirror is None or not mirror.linked:
        return world
    return clear_queue(world._replace(wire=-1), 1 - s)


def notices_loss(world: World, s: int) -> bool:
    mirror = world.servers[s].mirror
    return mirror is not None and mirror.linked and world.wire < 0


def lose_link(world: World, s: int) -> World:
    """Writes freeze; a target keeps its session, and drops what it has not read."""
    mirror = world.servers[s].mirror
    assert mirror is not None
    mode = mirror.mode
    if mirror.role is Role.SOURCE:
        mode = {MirrorMode.PAIRED: MirrorMode.FROZEN, MirrorMode.FILLING: MirrorMode.ALONE}.get(mode, mode)
    elif mode is MirrorMode.FILLING:
        mode = MirrorMode.IDLE
    world = clear_queue(world, 1 - s)
    return change(world, s, mirror=replace(mirror, mode=mode, linked=False, in_sync=False, agreeing=False))


# ---- the hello


def can_connect(world: World, s: int) -> bool:
    """Whether the source on s gets a connection on which the hello succeeds: the roles are taken here."""
    mine, theirs = world.servers[s].mirror, world.servers[1 - s].mirror
    if mine is None or theirs is None or mine.linked or theirs.linked or not world.link:
        return False
    if mine.role is not Role.SOURCE or theirs.role is not Role.TARGET or world.queues != ((), ()):
        return False
    if mine.mode not in (MirrorMode.FROZEN, MirrorMode.ALONE):
        return False
    return _resumes(world, s) or _meets(world, s).source is Side.ME


def _resumes(world: World, s: int) -> bool:
    mine, theirs = world.servers[s].mirror, world.servers[1 - s].mirror
    assert mine is not None and theirs is not None
    return mine.session and theirs.session and mine.mode is MirrorMode.FROZEN


def _meets(world: World, s: int) -> records.Meeting:
    mine, theirs = world.servers[s].record, world.servers[1 - s].record
    return records.meet(
        mine,
        theirs,
        rules.boot_unchanged(mine, BOOT),
        rules.boot_unchanged(theirs, BOOT),
        first=Side.ME,
        preferred=Side.ME,
    )


def connect(world: World, s: int) -> World:
    t = 1 - s
    mine, theirs = world.servers[s].mirror, world.servers[t].mirror
    assert mine is not None and theirs is not None
    world = world._replace(wire=s)
    if _resumes(world, s):
        world = change(world, s, mirror=replace(mine, mode=MirrorMode.PAIRED, linked=True, in_sync=True, asked=False))
        world = change(world, t, mirror=replace(theirs, linked=True))
        held = world.servers[s].held
        return send(world, s, "write", held) if held >= 0 else world
    met = _meets(world, s)
    logged = world.servers[s].dirty | world.servers[t].dirty | (EVERYTHING if met.copying is Copying.FULL else 0)
    own = world.servers[s].record
    assert own is not None
    world = change(world, s, mirror=replace(mine, linked=True, session=False), dirty=logged)
    world = change(world, t, mirror=Mirror(Role.TARGET, MirrorMode.IDLE, linked=True))
    return send(world, s, "begin", own.generation)


# ---- messages


def receive(world: World, s: int) -> World:
    """The mirror on s reads the next message."""
    message, *rest = world.queues[1 - s]
    queues = list(world.queues)
    queues[1 - s] = tuple(rest)
    world = world._replace(queues=(queues[0], queues[1]))
    mirror = world.servers[s].mirror
    assert mirror is not None
    handler: Callable[..., World] = (_AT_SOURCE if mirror.role is Role.SOURCE else _AT_TARGET)[str(message[0])]
    return handler(world, s, mirror, *message[1:])


def _apply(world: World, s: int, mirror: Mirror, write: int) -> World:
    server = world.servers[s]
    bit = 1 << write
    return send(change(world, s, copy=server.copy | bit, volatile=server.volatile | bit), s, "applied", write)


def _begin(world: World, s: int, mirror: Mirror, generation: bytes) -> World:
    """Inconsistent, durably, in the source's generation; then this copy's own log may go [R14]."""
    server = world.servers[s]
    own = server.record
    if own is not None and own.solo and own.inconsistent:  # it lost a split brain
        world = world._replace(unsaved=world.unsaved | (own_changes(server) & ~server.salvaged))
    if own is None:
        own = Record(
            generation=generation, last_role="SECOND", inconsistent=True, boot=BOOT, configuration=b"", root=ROOT
        )
    else:
        own = records.begin_reintegration_as_target(own, generation)
    filling = replace(mirror, mode=MirrorMode.FILLING, session=False)
    return send(change(world, s, record=own, dirty=0, salvaged=0, mirror=filling), s, "inconsistent")


def _take_sync(world: World, s: int, mirror: Mirror, source: Record) -> World:
    own = world.servers[s].record
    assert own is not None and own.inconsistent
    taken = records.take_sync_as_target(own, source, boot=BOOT)
    world = change(world, s, record=taken, mirror=replace(mirror, mode=MirrorMode.PAIRED, session=True))
    return send(world, s, "taken")


def _take_over(world: World, s: int, mirror: Mirror, source: Record) -> World:
    own = world.servers[s].record
    if own is None or not mirror.session or not own.in_sync or own.outdated or own.inconsistent:
        return send(world, s, "not handed over")
    world = flush(world, 0, 1)  # both had flushed all that came before the question
    taken = records.take_over(own, source, boot=BOOT)
    world = send(change(world, s, record=taken, dirty=0), s, "handed over", taken)
    return change(clear_queue(world._replace(wire=-1), 1 - s), s, mirror=None)


def _left(world: World, s: int, mirror: Mirror) -> World:
    """PRIM has acknowledged our leaving: outdated, durably, then say so and end [R15]."""
    own = world.servers[s].record
    assert own is not None
    world = change(flush(world, s), s, record=rules.outdated_after_leaving(own, True))
    return change(clear_queue(send(world, s, "gone")._replace(wire=-1), 1 - s), s, mirror=None)


def _agree_at_target(world: World, s: int, mirror: Mirror, epoch: int) -> World:
    own = world.servers[s].record
    assert own is not None
    return send(change(world, s, record=records.agree_on_epoch(own, epoch)), s, "epoch", epoch)


def _applied(world: World, s: int, mirror: Mirror, write: int) -> World:
    if world.servers[s].held != write or mirror.mode is not MirrorMode.PAIRED:
        return world
    return acknowledge(world, s, write)


def _inconsistent(world: World, s: int, mirror: Mirror) -> World:
    """The target is durably inconsistent: new generation, solo, and on [R10]."""
    if mirror.mode not in (MirrorMode.FROZEN, MirrorMode.ALONE):
        return world
    return _go_solo(world, s, replace(mirror, mode=MirrorMode.FILLING, asked=False))


def _go_solo(world: World, s: int, mirror: Mirror) -> World:
    own = world.servers[s].record
    assert own is not None
    world = change(world, s, record=records.go_alone(own, world.fresh, boot=BOOT), mirror=mirror)
    return _release(world, s)


def _release(world: World, s: int) -> World:
    """What was held is in the log and in this copy: it is answered."""
    held = world.servers[s].held
    return acknowledge(world, s, held) if held >= 0 else world


def _taken(world: World, s: int, mirror: Mirror) -> World:
    return change(world, s, mirror=replace(mirror, in_sync=True))


def _handed_over(world: World, s: int, mirror: Mirror, successor: Record) -> World:
    own = world.servers[s].record
    if not mirror.asked or own is None:
        return world
    world = change(world, s, record=records.hand_over(own, successor), dirty=0, mirror=None, held=-1)
    return clear_queue(world._replace(wire=-1), 1 - s)


def _not_handed_over(world: World, s: int, mirror: Mirror) -> World:
    mode = MirrorMode.PAIRED if mirror.mode is MirrorMode.FROZEN else mirror.mode
    return change(world, s, mirror=replace(mirror, asked=False, mode=mode))


def _leave(world: World, s: int, mirror: Mirror) -> World:
    """The target wants to go: both copies flushed, then acknowledged."""
    if mirror.mode is not MirrorMode.PAIRED or not mirror.in_sync:
        return world
    return send(flush(world, s), s, "left")


def _gone(world: World, s: int, mirror: Mirror) -> World:
    """The target is durably outdated, and has closed: consent in the stream."""
    world = lose_link(world._replace(wire=-1), s)
    now = world.servers[s].mirror
    if now is None or now.mode is not MirrorMode.FROZEN or now.asked:
        return world
    return _go_solo(world, s, replace(now, mode=MirrorMode.ALONE, session=False))


def _agree_at_source(world: World, s: int, mirror: Mirror, epoch: int) -> World:
    own = world.servers[s].record
    assert own is not None
    return change(world, s, record=records.agree_on_epoch(own, epoch), mirror=replace(mirror, agreeing=False))


_AT_TARGET: dict[str, Callable[..., World]] = {
    "write": _apply,
    "begin": _begin,
    "offer": _take_sync,
    "handover": _take_over,
    "left": _left,
    "epoch": _agree_at_target,
}
_AT_SOURCE: dict[str, Callable[..., World]] = {
    "applied": _applied,
    "inconsistent": _inconsistent,
    "taken": _taken,
    "handed over": _handed_over,
    "not handed over": _not_handed_over,
    "leave": _leave,
    "gone": _gone,
    "epoch": _agree_at_source,
}


# ---- reintegration


def can_fill(world: World, s: int) -> bool:
    mine, theirs = world.servers[s].mirror, world.servers[1 - s].mirror
    return (
        world.wire == s
        and mine is not None
        and theirs is not None
        and mine.linked
        and theirs.linked
        and mine.mode is MirrorMode.FILLING
        and theirs.mode is MirrorMode.FILLING
    )


def fill(world: World, s: int) -> World:
    """Copy one extent; when nothing is left, flush both and offer sync."""
    t = 1 - s
    mine, theirs = world.servers[s], world.servers[t]
    if mine.dirty:
        differs = (mine.copy ^ theirs.copy) if mine.dirty & EVERYTHING else mine.dirty
        if not differs:
            return change(world, s, dirty=0)
        bit = differs & -differs
        # an extent leaves the log when both copies of it are on disk: the target's alone is not enough
        world = change(world, t, copy=theirs.copy & ~bit | mine.copy & bit, volatile=theirs.volatile & ~bit)
        return change(world, s, dirty=mine.dirty & ~bit, volatile=mine.volatile & ~bit)
    mirror, own = mine.mirror, mine.record
    assert mirror is not None and own is not None
    offered = records.offer_sync_as_source(own)
    world = flush(world, s, t)
    world = change(world, s, record=offered, mirror=replace(mirror, mode=MirrorMode.PAIRED, session=True))
    return send(world, s, "offer", offered)


# ---- verdicts


def go_alone(world: World, s: int, verdict: GoAlone) -> World:
    server = world.servers[s]
    mirror = server.mirror
    if mirror is None or mirror.mode is not MirrorMode.FROZEN or mirror.linked or server.record != verdict.based_on:
        return world  # refused: the next report says how it is
    mirror = replace(mirror, mode=MirrorMode.ALONE, session=False, asked=False)
    return _release(change(world, s, record=verdict.record, mirror=mirror), s)


def fail_tap(world: World, s: int) -> World:
    mirror = world.servers[s].mirror
    if mirror is None or mirror.role is not Role.SOURCE:
        return world
    world = close(world, s)
    return change(world, s, held=-1, mirror=Mirror(Role.SOURCE, MirrorMode.FAILED))


def hand_over(world: World, s: int) -> World:
    server = world.servers[s]
    mirror = server.mirror
    if mirror is None or mirror.mode is not MirrorMode.PAIRED or not mirror.in_sync or world.wire != s or server.vm:
        return world
    world = flush(world, 0, 1)
    world = change(world, s, mirror=replace(mirror, mode=MirrorMode.FROZEN, asked=True))
    return send(world, s, "handover", server.record)


def leave(world: World, s: int) -> World:
    mirror = world.servers[s].mirror
    if mirror is None or mirror.role is not Role.TARGET or not mirror.linked:
        return world
    return send(world, s, "leave")


def agree(world: World, s: int, verdict: Agree) -> World:
    server = world.servers[s]
    mirror = server.mirror
    if (
        mirror is None
        or not mirror.in_sync
        or mirror.mode is not MirrorMode.PAIRED
        or server.record != verdict.based_on
    ):
        return world
    world = change(world, s, mirror=replace(mirror, agreeing=True))
    if verdict.mine_first:
        world = change(world, s, record=records.agree_on_epoch(verdict.based_on, verdict.epoch))
    return send(world, s, "epoch", verdict.epoch)


# ---- the VM's side


def fence_itself(world: World, s: int) -> World:
    """`fence_after_s` is over: the mirror fails its tap by itself, control plane or not."""
    return fail_tap(world, s)


def write(world: World, s: int) -> World:
    """The VM writes. Its mark is durable before it is sent or applied."""
    server = world.servers[s]
    mirror = server.mirror
    assert mirror is not None
    number = world.written
    bit = 1 << number
    world = change(
        world._replace(written=number + 1),
        s,
        copy=server.copy | bit,
        volatile=server.volatile | bit,
        dirty=server.dirty | bit,
        held=number,
    )
    if mirror.mode is MirrorMode.PAIRED:
        return send(world, s, "write", number)
    return acknowledge(world, s, number)
