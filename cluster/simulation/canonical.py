"""One name for worlds that differ only in the names of ids: what the explorer's hashing rests on.

Each renaming keeps what any rule can see of a world, so a world and its name do the same, step by step:

- Generations are renamed in the order in which they are met.
- An ancestor that is the generation of no record is dropped: no copy can ever be of that generation again, and
  ancestors are compared with nothing else. So is such a base, unless its record is solo: two that are solo compare
  their bases, and whoever becomes solo gets a new one.
- Terms and epochs are only compared, moved on by one, and copied: the lowest term becomes 0, the lowest epoch 0 or, at
  the arbiter, 1. Epoch 0 at the arbiter means that it never moved, and stays.
- Ids of claims, looks and questions are only ever compared with the one being waited for: all others become one. Two
  late claims that are then the same count once: the arbiter grants the second again without a change, or refuses it.
- A late claim that names an epoch the arbiter has left is dropped: it would be refused, and the refusal ignored.
- What nobody takes or hears any more is dropped: claims of which only a waiting asker's are taken, answers.
- What is not flushed is forgotten where no power is lost. A write that both copies have, and that no loss of power
  takes from one, counts as acknowledged: that only matters for a copy that lacks it, and no copy loses it again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from hotpair.cluster.arbitration import Asked, Claim, Kind, Purpose, Standing, asked, keeps_epochs
from hotpair.cluster.module_events import Answered, Look, Looked
from hotpair.cluster.module_values import Module
from hotpair.cluster.simulation.renaming import NAMES, Renaming, history, renaming_of
from hotpair.cluster.simulation.world import Server, World, named

WAITED_FOR = named(100)
LATE = named(101)


class Canonical:
    """For one exploration: what was found out about a module or a pair of servers is not found out again.

    Modules are told apart by their address, and kept. Equal ones become one object.
    """

    def __init__(self, keep: Callable[[Module], Module], kind: Kind, *, is_power_lost: bool) -> None:
        self._keep = keep
        self._kind = kind
        self._is_power_lost = is_power_lost
        self._waiting: dict[int, tuple[Module, Module]] = {}
        self._on_the_way: dict[tuple[object, ...], tuple[Requests, Answers]] = {}
        self._questions: dict[int, tuple[Module, _Ids]] = {}
        self._names_of_questions: dict[tuple[_Ids, _Ids], tuple[_Ids, _Ids] | None] = {}
        self._asked: dict[tuple[int, _Ids], tuple[Module, Module]] = {}
        self._histories: dict[tuple[int, int], tuple[Server, int]] = {}
        self._history_numbers: dict[tuple[object, ...], int] = {}
        self._renamings: dict[tuple[object, ...], Renaming | None] = {}
        self._equal_renamings: dict[tuple[object, ...], Renaming] = {}

    def __call__(self, world: World) -> World:
        return self._rename_records(self._rename_questions(self._rename_requests(self._forget(world))))

    # ---- the data

    def _forget(self, world: World) -> World:
        a, b = world.servers
        if not self._is_power_lost and (a.volatile or b.volatile):
            a, b = a._replace(volatile=0), b._replace(volatile=0)
            world = world._replace(servers=(a, b))
        safe = a.copy & b.copy & ~(a.volatile | b.volatile)
        return world._replace(acked=world.acked | safe) if safe & ~world.acked else world

    # ---- requests to the arbiter

    def _rename_requests(self, world: World) -> World:
        a, b = world.servers
        one, other = self._wait_for(a), self._wait_for(b)
        requests, answers = world.requests, world.answers
        if requests or answers:
            key = (_waited_for(a), _waited_for(b), requests, answers, world.standing)
            found = self._on_the_way.get(key)
            if found is None:
                found = self._on_the_way[key] = _on_the_way(world, self._kind)
            requests, answers = found
        elif one is a and other is b:
            return world
        return world._replace(servers=(one, other), requests=requests, answers=answers)

    def _wait_for(self, server: Server) -> Server:
        """What it waits for has that id."""
        module = server.module
        if module is None:
            return server
        asking, looking = module.asking, module.looking
        if (asking is None or asking.request_id == WAITED_FOR) and (looking is None or looking == WAITED_FOR):
            return server
        found = self._waiting.get(id(module))
        if found is None:
            found = self._waiting[id(module)] = (module, self._keep(_waiting(module)))
        return server._replace(module=found[1])

    # ---- questions to the peer, for consent and after a split brain, and their answers

    def _rename_questions(self, world: World) -> World:
        a, b = world.servers
        old = (self._ids(a.module), self._ids(b.module))
        if old == _NO_QUESTIONS:
            return world
        if old in self._names_of_questions:
            new = self._names_of_questions[old]
        else:
            new = self._names_of_questions[old] = _named_questions(*old)
        if new is None:
            return world
        return world._replace(
            servers=(self._with_ids(a, old[0], new[0]), self._with_ids(b, old[1], new[1])),
        )

    def _with_ids(self, server: Server, old: _Ids, new: _Ids) -> Server:
        module = server.module
        if module is None or old == new:
            return server
        key = (id(module), new)
        found = self._asked.get(key)
        if found is None:
            found = self._asked[key] = (module, self._keep(_with_ids(module, new)))
        return server._replace(module=found[1])

    def _ids(self, module: Module | None) -> _Ids:
        if module is None:
            return _NO_IDS
        found = self._questions.get(id(module))
        if found is None:
            found = self._questions[id(module)] = (module, _Ids.of(module))
        return found[1]

    # ---- records

    def _rename_records(self, world: World) -> World:
        a, b = world.servers
        key = (self._history(a), self._history(b), world.queues, world.standing, world.requests, world.answers)
        if key in self._renamings:
            renaming = self._renamings[key]
        else:
            renaming = renaming_of(world, self._keep)
            if renaming is not None:
                renaming = self._equal_renamings.setdefault(renaming.key, renaming)
            self._renamings[key] = renaming
        return world if renaming is None else renaming.world(world)

    def _history(self, server: Server) -> int:
        """A number for all that is looked at in this server's records when others are named."""
        key = (id(server.record), id(server.module))
        found = self._histories.get(key)
        if found is None:
            known = self._history_numbers
            found = self._histories[key] = (server, known.setdefault(history(server), len(known)))
        return found[1]


# ---- requests to the arbiter

Requests = tuple[tuple[int, Claim | Look], ...]
Answers = tuple[tuple[int, Answered | Looked], ...]


def _waited_for(server: Server) -> tuple[object, ...]:
    """All that decides what a request or an answer is called."""
    module = server.module
    if module is None:
        return ()
    asking = module.asking
    return (None if asking is None else asking.request_id, module.looking)


def _on_the_way(world: World, kind: Kind) -> tuple[Requests, Answers]:
    servers, standing = world.servers, world.standing
    requests: list[tuple[int, Claim | Look]] = []
    for s, request in world.requests:
        module = servers[s].module
        if isinstance(request, Look):
            if module is not None and module.looking == request.request_id:
                requests.append((s, _LOOK))
        elif isinstance(request, Claim):
            if module is not None and module.asking is not None and module.asking.request_id == request.request_id:
                requests.append((s, _with_id(request, WAITED_FOR)))
            elif keeps_epochs(kind) and not _is_refused(request, kind, standing):
                requests.append((s, _late(request, kind)))
    answers: list[tuple[int, Answered | Looked]] = []
    for s, answer in world.answers:
        module = servers[s].module
        if isinstance(answer, Looked):
            if module is not None and module.looking == answer.request_id:
                answers.append((s, replace(answer, request_id=WAITED_FOR)))
        elif module is not None and module.asking is not None and module.asking.request_id == answer.answer.request_id:
            answers.append((s, Answered(replace(answer.answer, request_id=WAITED_FOR))))
    return tuple(sorted(dict.fromkeys(requests), key=repr)), tuple(sorted(answers, key=repr))


_LOOK = Look(WAITED_FOR)


def _is_refused(late: Claim, kind: Kind, standing: Standing) -> bool:
    """It can move the arbiter neither now nor later: at most it would be granted again what it has moved already."""
    return asked(kind, late.purpose) is Asked.NEXT and late.epoch < standing.epoch


def _late(claim: Claim, kind: Kind) -> Claim:
    """The arbiter asks the same of all three; the asker does not wait any more."""
    if asked(kind, claim.purpose) is Asked.NEXT:
        return replace(claim, request_id=LATE, purpose=Purpose.GO_ALONE)
    return _with_id(claim, LATE)


def _with_id(claim: Claim, request_id: bytes) -> Claim:
    return claim if claim.request_id == request_id else replace(claim, request_id=request_id)


def _waiting(module: Module) -> Module:
    asking, looking = module.asking, module.looking
    return replace(
        module,
        asking=None if asking is None else _with_id(asking, WAITED_FOR),
        looking=None if looking is None else WAITED_FOR,
    )


# ---- questions to the peer


class _Ids(NamedTuple):
    """All ids of questions in a module."""

    request: bytes | None = None
    consent: bytes | None = None
    yields: bytes | None = None
    keeps: bytes | None = None
    peer_request: bytes | None = None
    peer_consent: bytes | None = None
    peer_yields: bytes | None = None
    peer_keeps: bytes | None = None

    @staticmethod
    def of(module: Module) -> _Ids:
        own = (module.request, module.consent, module.yields, module.keeps)
        peer = module.peer
        if peer is None:
            return _Ids(*own)
        return _Ids(*own, peer.request, peer.consent, peer.yields, peer.keeps)


_NO_IDS = _Ids()
_NO_QUESTIONS = (_NO_IDS, _NO_IDS)


def _named_questions(a: _Ids, b: _Ids) -> tuple[_Ids, _Ids] | None:
    """The same ids by their new names; None when they have them."""
    both = [a, b]
    for s in (0, 1):
        for question, answer in (("request", "consent"), ("yields", "keeps")):
            mine, theirs = both[s], both[1 - s]
            order: dict[bytes, bytes] = {}
            found = (
                getattr(mine, question),
                getattr(theirs, "peer_" + question),
                getattr(theirs, answer),
                getattr(mine, "peer_" + answer),
            )
            for i, name in enumerate(found):
                if name is not None and name not in order:
                    order[name] = WAITED_FOR if i == 0 else NAMES[len(order)]
            new = [None if name is None else order[name] for name in found]
            both[s] = mine._replace(**{question: new[0], "peer_" + answer: new[3]})
            both[1 - s] = theirs._replace(**{"peer_" + question: new[1], answer: new[2]})
    return None if both == [a, b] else (both[0], both[1])


def _with_ids(module: Module, new: _Ids) -> Module:
    peer = module.peer
    if peer is not None:
        peer = replace(
            peer, request=new.peer_request, consent=new.peer_consent, yields=new.peer_yields, keeps=new.peer_keeps
        )
    return replace(module, peer=peer, request=new.request, consent=new.consent, yields=new.yields, keeps=new.keeps)
