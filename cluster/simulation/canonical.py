"""One name for worlds that differ only in the names of ids: what the explorer's hashing rests on.

Generations are renamed in the order in which they are met, and an ancestor that no record anywhere has as its
generation or its base is dropped: no copy can ever be of that generation again, so no meeting can depend on it.
Ids of claims, looks and questions are only ever compared with the one being waited for: all others become one. Two late
claims that are then the same count once: the arbiter grants the second again without a change, or refuses it.
Terms are compared only with each other: the lowest becomes 0. A fence, unlike a witness, acts only while its asker
waits: it is its child.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hotpair.cluster.arbitration import Asked, Claim, Kind, asked, keeps_epochs
from hotpair.cluster.module_events import Answered, Look, Looked
from hotpair.cluster.module_values import Module, PeerView
from hotpair.cluster.record import Record
from hotpair.cluster.simulation.world import Server, World, named

WAITED_FOR = named(100)
LATE = named(101)
_ID_TEXT = tuple(named(number) for number in range(1, 60))


def canonical(world: World) -> World:
    return _rename_generations(_rename_questions(_rename_requests(world)))


# ---- requests to the arbiter


def _rename_requests(world: World) -> World:
    servers = world.servers
    if (
        not world.requests
        and not world.answers
        and all(
            (module := server.module) is None
            or (
                (module.asking is None or module.asking.request_id == WAITED_FOR)
                and module.looking in (None, WAITED_FOR)
            )
            for server in servers
        )
    ):
        return world
    kind = next((server.module.settings.kind for server in servers if server.module is not None), Kind.WITNESS)
    requests: list[tuple[int, Claim | Look]] = []
    for s, request in world.requests:
        module = servers[s].module
        if isinstance(request, Look):
            if module is not None and module.looking == request.request_id:
                requests.append((s, _LOOK))
        elif isinstance(request, Claim):
            waited = module is not None and module.asking is not None and module.asking.request_id == request.request_id
            if waited or (keeps_epochs(kind) and _counts(request, world)):
                requests.append((s, _with_id(request, WAITED_FOR if waited else LATE)))
    answers: list[tuple[int, Answered | Looked]] = []
    for s, answer in world.answers:
        module = servers[s].module
        if isinstance(answer, Looked):
            if module is not None and module.looking == answer.request_id:
                answers.append((s, replace(answer, request_id=WAITED_FOR)))
        elif module is not None and module.asking is not None and module.asking.request_id == answer.answer.request_id:
            answers.append((s, Answered(replace(answer.answer, request_id=WAITED_FOR))))
    renamed = tuple(_wait_for(server) for server in servers)
    return world._replace(
        servers=(renamed[0], renamed[1]),
        requests=tuple(sorted(dict.fromkeys(requests), key=repr)),
        answers=tuple(sorted(answers, key=repr)),
    )


def _counts(claim: Claim, world: World) -> bool:
    """Whether the arbiter could still move for it: epochs only grow, so one that was passed is never named again."""
    return claim.epoch >= world.standing.epoch or asked(Kind.WITNESS, claim.purpose) is not Asked.NEXT


_LOOK = Look(WAITED_FOR)


def _with_id(claim: Claim, request_id: bytes) -> Claim:
    return claim if claim.request_id == request_id else replace(claim, request_id=request_id)


def _wait_for(server: Server) -> Server:
    module = server.module
    if module is None:
        return server
    asking, looking = module.asking, module.looking
    if (asking is None or asking.request_id == WAITED_FOR) and looking in (None, WAITED_FOR):
        return server
    return server._replace(
        module=replace(
            module,
            asking=None if asking is None else _with_id(asking, WAITED_FOR),
            looking=None if looking is None else WAITED_FOR,
        )
    )


# ---- questions to the peer, for consent and after a split brain, and their answers


def _rename_questions(world: World) -> World:
    return _rename_pair(_rename_pair(world, "request", "consent"), "yields", "keeps")


def _rename_pair(world: World, question: str, answer: str) -> World:
    for s in (0, 1):
        mine, theirs = world.servers[s].module, world.servers[1 - s].module
        my_peer = mine.peer if mine is not None else None
        their_peer = theirs.peer if theirs is not None else None
        order: dict[bytes, bytes] = {}
        found = (
            getattr(mine, question, None),
            getattr(their_peer, question, None),
            getattr(theirs, answer, None),
            getattr(my_peer, answer, None),
        )
        for i, name in enumerate(found):
            if name is not None and name not in order:
                order[name] = WAITED_FOR if i == 0 else _ID_TEXT[len(order)]
        if all(old == new for old, new in order.items()):
            continue
        if mine is not None:
            mine = replace(mine, peer=_renamed(my_peer, answer, order))
            mine = _renamed(mine, question, order)
        if theirs is not None:
            theirs = replace(theirs, peer=_renamed(their_peer, question, order))
            theirs = _renamed(theirs, answer, order)
        both = list(world.servers)
        both[s] = both[s]._replace(module=mine)
        both[1 - s] = both[1 - s]._replace(module=theirs)
        world = world._replace(servers=(both[0], both[1]))
    return world


def _renamed(value: Any, name: str, order: dict[bytes, bytes]) -> Any:
    old = getattr(value, name, None)
    return value if old is None else replace(value, **{name: order[old]})


# ---- generations


def _rename_generations(world: World) -> World:
    names: dict[bytes, bytes] = {}
    ancestors: set[bytes] = set()
    seen: set[int] = set()
    terms: set[int] = set()

    def meet(record: Record | None) -> None:
        if record is None or id(record) in seen:
            return
        seen.add(id(record))
        terms.add(record.term)
        for generation in (record.generation, record.base):
            if generation is not None and generation not in names:
                names[generation] = _ID_TEXT[len(names)]
        ancestors.update(record.ancestors)

    for server in world.servers:
        meet(server.record)
        module = server.module
        if module is not None:
            meet(module.record)
            if module.peer is not None:
                meet(module.peer.record)
    for queue in world.queues:
        for message in queue:
            for part in message:
                if isinstance(part, Record):
                    meet(part)
                elif isinstance(part, bytes) and part not in names:
                    names[part] = _ID_TEXT[len(names)]
    lowest = min(terms, default=0)
    if not lowest and ancestors <= names.keys() and all(old == new for old, new in names.items()):
        return world
    cache: dict[int, Record] = {}

    def rename(record: Record | None) -> Record | None:
        if record is None:
            return None
        known = cache.get(id(record))
        if known is None:
            known = cache[id(record)] = replace(
                record,
                generation=names[record.generation],
                term=record.term - lowest,
                base=None if record.base is None else names[record.base],
                ancestors=tuple(names[old] for old in record.ancestors if old in names),
            )
        return known

    def rename_module(module: Module | None) -> Module | None:
        if module is None:
            return None
        peer: PeerView | None = module.peer
        if peer is not None:
            peer = replace(peer, record=rename(peer.record))
        return replace(module, record=rename(module.record), peer=peer)

    servers = tuple(
        server._replace(record=rename(server.record), module=rename_module(server.module)) for server in world.servers
    )
    queues = tuple(
        tuple(
            tuple(
                rename(part) if isinstance(part, Record) else names[part] if isinstance(part, bytes) else part
                for part in message
            )
            for message in queue
        )
        for queue in world.queues
    )
    return world._replace(servers=(servers[0], servers[1]), queues=(queues[0], queues[1]))
