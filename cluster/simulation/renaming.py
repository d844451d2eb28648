"""Names for the generations, terms and epochs of a world's records; canonical.py says what is left out, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from hotpair.cluster.arbitration import Answer, Claim, Standing
from hotpair.cluster.module_events import Answered, Look, Looked
from hotpair.cluster.module_values import Module, PeerView
from hotpair.cluster.record import Record
from hotpair.cluster.simulation.world import Server, World, named

NAMES = tuple(named(number) for number in range(1, 60))  # more generations than one world's records can name


def history(server: Server) -> tuple[object, ...]:
    """All that is looked at in this server's records when those of a world are named."""
    records: dict[int, Record] = {}
    _collect(records, server)
    looked_at = [
        (record.generation, record.base, record.ancestors, record.solo, record.term, record.epoch)
        for record in records.values()
    ]
    module = server.module
    asking = None if module is None or module.asking is None else module.asking.epoch
    settled = None if module is None else module.settled
    return (server.record is None, asking, settled, *looked_at)


def renaming_of(world: World, keep: Callable[[Module], Module]) -> Renaming | None:
    """None: all have their names already."""
    names: dict[bytes, bytes] = {}
    records = _records(world)
    for record in records:
        _name(names, record.generation)
    for queue in world.queues:
        for message in queue:
            for part in message:
                if isinstance(part, bytes):
                    _name(names, part)
    alive = frozenset(names)
    for record in records:
        if record.solo and record.base is not None:
            _name(names, record.base)
    term = min((record.term for record in records), default=0)
    epoch = _lowest_epoch(world, records)
    if not (term or epoch or _is_renamed(names) or any(_has_dead(record, alive) for record in records)):
        return None
    return Renaming(names, alive, term, epoch, keep)


def _records(world: World) -> list[Record]:
    """Each once, in an order that depends on where they are."""
    found: dict[int, Record] = {}
    for server in world.servers:
        _collect(found, server)
    for queue in world.queues:
        for message in queue:
            for part in message:
                if isinstance(part, Record):
                    found[id(part)] = part
    return list(found.values())


def _collect(found: dict[int, Record], server: Server) -> None:
    module = server.module
    if server.record is not None:
        found[id(server.record)] = server.record
    if module is not None:
        if module.record is not None:
            found[id(module.record)] = module.record
        if module.peer is not None and module.peer.record is not None:
            found[id(module.peer.record)] = module.peer.record


def _name(names: dict[bytes, bytes], generation: bytes) -> None:
    if generation not in names:
        names[generation] = NAMES[len(names)]


def _is_renamed(names: dict[bytes, bytes]) -> bool:
    return any(old != new for old, new in names.items())


def _has_dead(record: Record, alive: frozenset[bytes]) -> bool:
    if record.base is not None and not record.solo and record.base not in alive:
        return True
    return not alive.issuperset(record.ancestors)


def _lowest_epoch(world: World, records: list[Record]) -> int:
    """How far all epochs can be moved down."""
    standing = world.standing
    if standing.holder is None or any(server.record is None for server in world.servers):
        return 0
    lowest = min(standing.epoch - 1, min(record.epoch for record in records))
    if not lowest:
        return 0
    for server in world.servers:
        if server.module is not None and server.module.asking is not None:
            lowest = min(lowest, server.module.asking.epoch)
        if server.module is not None and server.module.settled is not None:
            lowest = min(lowest, server.module.settled)
    for _, request in world.requests:
        if isinstance(request, Claim):
            lowest = min(lowest, request.epoch)
    for _, answer in world.answers:
        if isinstance(answer, Answered):
            if answer.answer.epoch is not None:
                lowest = min(lowest, answer.answer.epoch - (answer.answer.holder is not None))
        elif answer.standing is not None:
            lowest = min(lowest, answer.standing.epoch - 1)
    for queue in world.queues:
        for message in queue:
            if message[0] == "epoch":
                assert isinstance(message[1], int)
                lowest = min(lowest, message[1])
    return max(lowest, 0)


class Renaming:
    """One, applied to all that is in a world; remembered for each record and module."""

    def __init__(
        self,
        names: dict[bytes, bytes],
        alive: frozenset[bytes],
        term: int,
        epoch: int,
        keep: Callable[[Module], Module],
    ) -> None:
        self.key = (tuple(names.items()), alive, term, epoch)
        self._names = names
        self._alive = alive
        self._term = term
        self._epoch = epoch
        self._keep = keep
        self._records: dict[Record, Record] = {}
        self._modules: dict[int, tuple[Module, Module]] = {}

    def world(self, world: World) -> World:
        a, b = world.servers
        one, other = world.queues
        return world._replace(
            servers=(self._server(a), self._server(b)),
            queues=(tuple(map(self._message, one)), tuple(map(self._message, other))),
            standing=self._standing(world.standing),
            requests=tuple((s, self._claim(request)) for s, request in world.requests),
            answers=tuple((s, self._answer(answer)) for s, answer in world.answers),
        )

    def _server(self, server: Server) -> Server:
        return server._replace(record=self._record(server.record), module=self._module(server.module))

    def _record(self, record: Record | None) -> Record | None:
        if record is None:
            return None
        known = self._records.get(record)
        if known is None:
            base = record.base
            keeps_base = base is not None and (record.solo or base in self._alive)
            known = self._records[record] = replace(
                record,
                generation=self._names[record.generation],
                term=record.term - self._term,
                epoch=record.epoch - self._epoch,
                base=self._names[base] if base is not None and keeps_base else None,
                ancestors=tuple(self._names[old] for old in record.ancestors if old in self._alive),
            )
        return known

    def _module(self, module: Module | None) -> Module | None:
        if module is None:
            return None
        found = self._modules.get(id(module))
        if found is None:
            found = self._modules[id(module)] = (module, self._keep(self._renamed(module)))
        return found[1]

    def _renamed(self, module: Module) -> Module:
        peer: PeerView | None = module.peer
        if peer is not None and peer.record is not None:
            peer = replace(peer, record=self._record(peer.record))
        asking = module.asking
        if asking is not None and self._epoch:
            asking = replace(asking, epoch=asking.epoch - self._epoch)
        settled = None if module.settled is None else module.settled - self._epoch
        return replace(module, record=self._record(module.record), peer=peer, asking=asking, settled=settled)

    def _message(self, message: tuple[object, ...]) -> tuple[object, ...]:
        if message[0] == "epoch":
            assert isinstance(message[1], int)
            return (message[0], message[1] - self._epoch)
        return tuple(
            self._record(part) if isinstance(part, Record) else self._names[part] if isinstance(part, bytes) else part
            for part in message
        )

    def _standing(self, standing: Standing) -> Standing:
        return Standing(standing.epoch - self._epoch, standing.holder) if self._epoch else standing

    def _claim(self, request: Claim | Look) -> Claim | Look:
        if self._epoch and isinstance(request, Claim):
            return replace(request, epoch=request.epoch - self._epoch)
        return request

    def _answer(self, answer: Answered | Looked) -> Answered | Looked:
        if not self._epoch:
            return answer
        if isinstance(answer, Looked):
            standing = answer.standing
            return answer if standing is None else replace(answer, standing=self._standing(standing))
        given: Answer = answer.answer
        return answer if given.epoch is None else Answered(replace(given, epoch=given.epoch - self._epoch))
