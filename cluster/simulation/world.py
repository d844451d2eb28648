"""Two servers as the state machines see them: disks, copies, mirrors, VMs, networks, arbiter. One immutable value.

The state machines in it are the real ones, and so are the records and their changes. Everything else is a model: what
the mirror processes do at hello, reintegration, offer, handover and verdicts follows replication/, a write is a bit
in a copy. What could happen next is a list of actions (actions.py); who chooses among them, an explorer or a seeded
scheduler, is not known here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from hotpair.cluster.arbitration import NEVER_MOVED, Claim, Kind, Standing, keeps_epochs
from hotpair.cluster.module_events import Answered, Look, Looked, Now, Started
from hotpair.cluster.module_machine import step
from hotpair.cluster.module_values import (
    Mirror,
    MirrorMode,
    Module,
    PeerView,
    Role,
    Settings,
    State,
    Vm,
    view,
)
from hotpair.cluster.record import Record, Side
from hotpair.cluster.split_brain import MANUAL

NAMES = ("a", "b")
BOOT = "now"  # a host's boot id; a reboot makes the record's an old one, which is all that is ever compared
OLD_BOOT = "old"
ROOT = b"r" * 16
MOST_WRITES = 4000  # of one world; a write is a bit
EVERYTHING = 1 << MOST_WRITES  # in a dirty log: full comparison


def named(number: int) -> bytes:
    """A canonical id. Numbers from 200 are those just made, renamed before anybody sees them."""
    return bytes(15) + bytes([number])


FRESH = named(200)


class Server(NamedTuple):
    """`copy`, `volatile`, `dirty` are sets of writes as bits; `held` is the write that waits for its answer, or -1.

    module is None while the control plane is dead. Everything from `up` to `held` dies with the host, except record,
    wanted, maintenance, copy, dirty and salvaged, which are on its disk; `volatile` is the part of the copy that is
    not. `salvaged`: writes of a copy that was given up, saved to a file.
    """

    up: bool
    module: Module | None
    mirror: Mirror | None
    vm: bool
    held: int
    record: Record | None
    wanted: bool
    maintenance: bool
    copy: int
    volatile: int
    dirty: int
    salvaged: int = 0


class World(NamedTuple):
    """`wire` is the server whose source has the connection, or -1. `queues[s]` is on its way from s, or unread.

    `requests`: (server, claim id or look id, claim or None) on the way to the arbiter; `answers` on the way back.
    `overridden`: an operator has chosen a copy, and the data is what was chosen; `forced`: against the arbiter.
    `fresh`: the id of the next generation. An explorer renames it after each action, a simulation gives a new one.
    `unsaved`: writes of a copy that lost a split brain, overwritten before they were saved.
    """

    servers: tuple[Server, Server]
    queues: tuple[tuple[tuple[object, ...], ...], tuple[tuple[object, ...], ...]]
    wire: int
    link: bool
    net: bool
    arbiter_up: bool
    standing: Standing
    requests: tuple[tuple[int, Claim | Look], ...]
    answers: tuple[tuple[int, Answered | Looked], ...]
    acked: int
    written: int
    faults: int
    commands: int
    overridden: bool
    forced: bool
    fresh: bytes = FRESH
    unsaved: int = 0


def settings(kind: Kind, server: int, policy: str = MANUAL) -> Settings:
    return Settings(
        pair="p",
        module="m",
        server=NAMES[server],
        peer=NAMES[1 - server],
        kind=kind,
        first=Side.ME if server == 0 else Side.PEER,
        split_brain=policy,
    )


def first_record(generation: int = 1, epoch: int = 0) -> Record:
    return Record(
        generation=named(generation),
        epoch=epoch,
        last_role="PRIM",
        in_sync=True,
        boot=BOOT,
        configuration=b"",
        root=ROOT,
    )


def pair_in_sync(kind: Kind, faults: int, commands: int) -> World:
    """A green pair, PRIM on the first server."""
    epoch = _first_epoch(kind)
    base = first_record(epoch=epoch)
    records = (base, replace(base, last_role="SECOND"))
    mirrors = (
        Mirror(Role.SOURCE, MirrorMode.PAIRED, True, True, True),
        Mirror(Role.TARGET, MirrorMode.PAIRED, True, True),
    )
    modules = [
        Module(
            settings=settings(kind, s),
            record=records[s],
            wanted=True,
            boot=BOOT,
            state=(State.PRIM, State.SECOND)[s],
            live=True,
            mirror=mirrors[s],
            vm=(Vm.ON, Vm.OFF)[s],
            settled=epoch if s == 0 else None,
            agreed=s == 0,
        )
        for s in (0, 1)
    ]
    views: list[PeerView] = [view(module) for module in modules]
    modules = [replace(modules[s], peer=views[1 - s]) for s in (0, 1)]
    views = [view(module) for module in modules]
    modules = [replace(modules[s], peer=views[1 - s]) for s in (0, 1)]
    servers = tuple(Server(True, modules[s], mirrors[s], s == 0, -1, records[s], True, False, 0, 0, 0) for s in (0, 1))
    standing = Standing(epoch, NAMES[0]) if epoch else NEVER_MOVED
    return _world((servers[0], servers[1]), 0, faults, commands)._replace(standing=standing)


def _first_epoch(kind: Kind) -> int:
    """Whoever is in sync has moved the arbiter's epoch, where one keeps any."""
    return 1 if keeps_epochs(kind) else 0


def pair_apart(kind: Kind, faults: int, commands: int) -> World:
    """The first server went on alone, the second has just come back: reintegration begins."""
    world = pair_in_sync(kind, faults, commands)
    epoch = _first_epoch(kind)
    old = first_record(epoch=epoch)
    solo = replace(
        old, generation=named(2), base=named(1), ancestors=(named(1),), in_sync=False, solo=True, epoch=2 * epoch
    )
    records = (replace(solo, last_role="ALONE"), replace(old, last_role="SECOND", boot=OLD_BOOT))
    mirror = Mirror(Role.SOURCE, MirrorMode.ALONE)
    first = Module(
        settings=settings(kind, 0),
        record=records[0],
        wanted=True,
        boot=BOOT,
        state=State.ALONE,
        mirror=mirror,
        vm=Vm.ON,
    )
    second, _ = step(
        Module(settings=settings(kind, 1)), Started(records[1], True, False, BOOT, None, Vm.OFF), Now(0.0, FRESH)
    )
    servers = (
        Server(True, first, mirror, True, -1, records[0], True, False, 1, 1, 1),
        Server(True, second, None, False, -1, records[1], True, False, 0, 0, 0),
    )
    standing = Standing(2, NAMES[0]) if epoch else NEVER_MOVED
    return world._replace(servers=servers, wire=-1, standing=standing, acked=1, written=1)


def pair_split(kind: Kind, faults: int, commands: int) -> World:
    """Both went on alone, each with a write of its own, and are about to hear each other."""
    world = pair_in_sync(kind, faults, commands)
    base = first_record(1)
    for s in (0, 1):
        own = replace(
            base,
            generation=named(2 + s),
            base=base.generation,
            ancestors=(base.generation,),
            term=s,
            last_role="ALONE",
            in_sync=False,
            solo=True,
        )
        mirror = Mirror(Role.SOURCE, MirrorMode.ALONE)
        module = Module(
            settings=settings(kind, s),
            record=own,
            wanted=True,
            boot=BOOT,
            state=State.ALONE,
            mirror=mirror,
            vm=Vm.ON,
        )
        world = put(world, s, Server(True, module, mirror, True, -1, own, True, False, 1 << s, 1 << s, 1 << s))
    return world._replace(wire=-1, acked=3, written=2)


def under_policies(world: World, policies: tuple[str, str]) -> World:
    """The same, with these split brain policies in the two configurations, known to both."""
    for s in (0, 1):
        module = world.servers[s].module
        if module is not None:
            peer = None if module.peer is None else replace(module.peer, policy=policies[1 - s])
            own = replace(module.settings, split_brain=policies[s])
            world = change(world, s, module=replace(module, settings=own, peer=peer))
    return world


def _world(servers: tuple[Server, Server], wire: int, faults: int, commands: int) -> World:
    return World(
        servers=servers,
        queues=((), ()),
        wire=wire,
        link=True,
        net=True,
        arbiter_up=True,
        standing=Standing(0, None),
        requests=(),
        answers=(),
        acked=0,
        written=0,
        faults=faults,
        commands=commands,
        overridden=False,
        forced=False,
    )


def put(world: World, s: int, server: Server) -> World:
    servers = (server, world.servers[1]) if s == 0 else (world.servers[0], server)
    return world._replace(servers=servers)


def change(world: World, s: int, **fields: object) -> World:
    return put(world, s, world.servers[s]._replace(**fields))  # type: ignore[arg-type]


def own_changes(server: Server) -> int:
    """The writes of this copy that its own log names."""
    return server.copy if server.dirty & EVERYTHING else server.copy & server.dirty


def changed(server: Server) -> int | None:
    """How much its log names; None when it says "everything"."""
    return None if server.dirty & EVERYTHING else server.dirty.bit_count()


def send(world: World, s: int, *message: object) -> World:
    """Into the stream, if there still is one; nobody notices when there is not."""
    if world.wire < 0:
        return world
    queues = list(world.queues)
    queues[s] = (*queues[s], message)
    return world._replace(queues=(queues[0], queues[1]))


def clear_queue(world: World, s: int) -> World:
    """What s has sent is not read any more."""
    if not world.queues[s]:
        return world
    queues = list(world.queues)
    queues[s] = ()
    return world._replace(queues=(queues[0], queues[1]))


def acknowledge(world: World, s: int, write: int) -> World:
    """The VM on s gets its answer."""
    return change(world._replace(acked=world.acked | 1 << write), s, held=-1)


def flush(world: World, *servers: int) -> World:
    for s in servers:
        if world.servers[s].volatile:
            world = change(world, s, volatile=0)
    return world
