"""Arbitration: what a server asks an arbiter, what the arbiter may answer, and what the answer is worth.

Knows: kinds of arbiters, purposes of a claim, epochs, names. Must not know: sockets, files, commands, clocks, random.
Source of the rules: design/protocol.md, "Arbitration", "Starting without the peer", "Losing the peer" and "Planned
actions"; [Rn] is a rule of the model checked there.

An epoch-keeping arbiter (witness, etcd) holds one `Standing` for each module of a pair: a number that only grows, and
the server in whose name it was last moved on. A server names the epoch of its own durable record; whoever can move the
standing from there to the next epoch in its own name may go on. Two servers with the same record cannot both do that.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeGuard

ID_BYTES = 16
NAME_BYTES = 64  # pair, module, server: far longer than anybody types, short enough for one small frame
REASON_BYTES = 400  # two lines in a log
ARBITER_TIMEOUT_S = 3.0  # default time limit of one claim: below the timeout_s of 5 after which a peer counts as dead
FENCE_TIMEOUT_S = 30.0  # a management controller takes its time to switch a server off and to say that it is
LARGEST_EPOCH = 2**63 - 1  # what SQLite stores in an integer; unreachable by counting


class Kind(Enum):
    WITNESS = "witness"
    ETCD = "etcd"
    FENCE = "fence"
    PING = "ping"
    NONE = "none"
    MANUAL = "manual"


class Purpose(Enum):
    """Why a server asks."""

    GO_ALONE = "go alone"  # live when the link broke: PRIM frozen, or SECOND in sync
    START_ALONE = "start alone"  # restarted with a copy in sync, no peer: it may have gone on
    SOLO_START = "solo start"  # restarted with a solo copy, no peer
    SETTLE = "settle"  # PRIM, its peer in sync: no claim made before this one is to be granted any more
    OPERATOR = "prim"
    OPERATOR_FORCED = "prim --force"  # the operator asserts that the peer is off


class Asked(Enum):
    """What an arbiter of one kind is asked for one purpose."""

    NEXT = "move the epoch from the one named to the next"
    TAKE = "move the epoch on, unless it names the peer"
    SEIZE = "move the epoch on, whatever it says"
    PEER_OFF = "confirm that the peer is off"
    ADDRESS = "reach an address"
    NOTHING = "nothing: granted at once"
    NOT_ASKED = "not asked: the protocol lets the server go on without an arbiter"
    NEVER = "never granted"


_BY_EPOCH = {
    Purpose.GO_ALONE: Asked.NEXT,
    Purpose.START_ALONE: Asked.NEXT,
    Purpose.SOLO_START: Asked.NEXT,  # [R13]
    Purpose.SETTLE: Asked.NEXT,  # [R6]
    Purpose.OPERATOR: Asked.TAKE,
    Purpose.OPERATOR_FORCED: Asked.SEIZE,
}


def _without_epoch(live: Asked) -> dict[Purpose, Asked]:
    """The column of a kind that remembers nothing: it cannot know what happened while this server was down [R12]."""
    return {
        Purpose.GO_ALONE: live,
        Purpose.START_ALONE: Asked.NEVER,
        Purpose.SOLO_START: Asked.NOT_ASKED,
        Purpose.SETTLE: Asked.NOT_ASKED,
        Purpose.OPERATOR: Asked.NOT_ASKED,
        Purpose.OPERATOR_FORCED: Asked.NOT_ASKED,
    }


_TABLE: dict[Kind, dict[Purpose, Asked]] = {
    Kind.WITNESS: _BY_EPOCH,
    Kind.ETCD: _BY_EPOCH,
    Kind.FENCE: _without_epoch(Asked.PEER_OFF),
    Kind.PING: _without_epoch(Asked.ADDRESS),
    Kind.NONE: _without_epoch(Asked.NOTHING),
    Kind.MANUAL: _without_epoch(Asked.NEVER),
}


def asked(kind: Kind, purpose: Purpose) -> Asked:
    """What this kind is asked for this purpose. Total."""
    return _TABLE[kind][purpose]


def can_grant(kind: Kind, purpose: Purpose) -> bool:
    """Whether an arbiter of this kind can ever grant this. Where it is not asked it grants nothing either."""
    return asked(kind, purpose) not in (Asked.NOT_ASKED, Asked.NEVER)


def keeps_epochs(kind: Kind) -> bool:
    return kind in (Kind.WITNESS, Kind.ETCD)


def is_name(value: object) -> TypeGuard[str]:
    """Whether it can name a pair, a module or a server: printable, 1 to 64 bytes."""
    if not isinstance(value, str) or not value.isprintable() or value != value.strip():
        return False
    return 0 < len(value.encode(errors="replace")) <= NAME_BYTES


def is_epoch(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= LARGEST_EPOCH


def is_id(value: object) -> TypeGuard[bytes]:
    return isinstance(value, bytes) and len(value) == ID_BYTES


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One request. `request_id` is fresh and random; `epoch` is the one I name: my record's. ValueError: nonsense."""

    request_id: bytes
    pair: str
    module: str
    server: str
    epoch: int
    purpose: Purpose

    def __post_init__(self) -> None:
        if not is_id(self.request_id):
            raise ValueError(f"a request id has {ID_BYTES} bytes")
        for what in ("pair", "module", "server"):
            if not is_name(getattr(self, what)):
                raise ValueError(f"{what} {getattr(self, what)!r}: a name has 1 to {NAME_BYTES} printable bytes")
        if not is_epoch(self.epoch):
            raise ValueError(f"epoch {self.epoch!r}: an epoch is a whole number from 0 to {LARGEST_EPOCH}")


@dataclass(frozen=True)
class Standing:
    """Where a module's epoch stands, and who moved it there. Epoch 0 without a holder: never moved, or unknown."""

    epoch: int
    holder: str | None

    def __post_init__(self) -> None:
        if not is_epoch(self.epoch):
            raise ValueError(f"epoch {self.epoch!r}")
        if self.holder is None:
            if self.epoch:
                raise ValueError(f"epoch {self.epoch} has no holder")
        elif not self.epoch or not is_name(self.holder):
            raise ValueError(f"epoch {self.epoch} held by {self.holder!r}")


NEVER_MOVED = Standing(0, None)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`epoch` and `holder` are the arbiter's now, None where it keeps none. `reason` is one sentence for the operator.

    `reachable` False: nothing is known; the epoch may even have been moved (the last call may have happened).
    """

    request_id: bytes
    granted: bool
    epoch: int | None
    holder: str | None
    reason: str
    reachable: bool


def granted(claim: Claim, reason: str, standing: Standing | None = None) -> Answer:
    return _answer(claim, True, standing, reason, True)


def refused(claim: Claim, reason: str, standing: Standing | None = None) -> Answer:
    return _answer(claim, False, standing, reason, True)


def unreachable(claim: Claim, reason: str) -> Answer:
    return _answer(claim, False, None, reason, False)


def _answer(claim: Claim, grant: bool, standing: Standing | None, reason: str, reachable: bool) -> Answer:
    return Answer(
        request_id=claim.request_id,
        granted=grant,
        epoch=None if standing is None else standing.epoch,
        holder=None if standing is None else standing.holder,
        reason=reason,
        reachable=reachable,
    )


def refused_by_table(kind: Kind, claim: Claim) -> Answer:
    """The answer where the table already says no."""
    if asked(kind, claim.purpose) is Asked.NOT_ASKED:
        return refused(claim, f"arbitration {kind.value!r} keeps no epoch and is not asked for {claim.purpose.value!r}")
    if kind is Kind.MANUAL:
        return refused(claim, "arbitration 'manual': the operator decides")
    assert asked(kind, claim.purpose) is Asked.NEVER, "asked only where the table says no"
    return refused(claim, f"arbitration {kind.value!r} cannot know whether the peer went on while this server was down")


# ---- arbiters that keep epochs


@dataclass(frozen=True)
class Move:
    """What an epoch-keeping arbiter does with a claim. `after` is made durable before the answer is given."""

    granted: bool
    after: Standing
    reason: str


def move(now: Standing, claim: Claim) -> Move:
    """The decision of a witness or an etcd cluster; `after` differs from `now` only when granted.

    Idempotent: a claim that was granted is granted again, unchanged, while the epoch stands where it moved it [R6].
    """
    named, me = claim.epoch, claim.server
    if (now.epoch, now.holder) == (named + 1, me):
        return Move(True, now, f"epoch {now.epoch} is already held by {me}")
    what = _TABLE[Kind.WITNESS][claim.purpose]
    if now.epoch < named and what is not Asked.SEIZE:
        return Move(
            False,
            now,
            f"ALARM: the arbiter stands at epoch {now.epoch}, the pair at {named}: it was restored from a backup, or "
            "is another one",
        )
    if what is Asked.NEXT and now.epoch != named:
        return Move(False, now, f"epoch {now.epoch} is held by {now.holder}, {me} knows only {named}")
    if what is Asked.TAKE and now.holder not in (None, me):
        return Move(False, now, f"epoch {now.epoch} names {now.holder}, which may be running: --force if it is off")
    highest = max(now.epoch, named)
    if highest == LARGEST_EPOCH:
        return Move(False, now, f"epoch {highest} is the last")
    after = Standing(highest + 1, me)
    return Move(True, after, f"epoch moved from {now.epoch} to {after.epoch} for {me}")


class Comparison(Enum):
    """The pair's epoch beside the arbiter's [R6]."""

    EQUAL = "equal"
    ARBITER_AHEAD = "the arbiter is ahead: the server it names records its epoch first, then the other"
    ARBITER_BEHIND = "the arbiter is behind: refuse, alarm"


def compare(epoch: int, standing: Standing) -> Comparison:
    if standing.epoch == epoch:
        return Comparison.EQUAL
    return Comparison.ARBITER_AHEAD if standing.epoch > epoch else Comparison.ARBITER_BEHIND


# ---- what an answer is worth to the server that asked


class Verdict(Enum):
    """Whether the server may do what it claimed. The caller's own conditions (no link, not outdated) come on top."""

    GRANTED = "granted"
    WITHOUT = "no arbiter has a say in this"
    OVERRIDDEN = "not granted, but the operator asserts that the peer is off"
    REFUSED = "refused"
    BEHIND = "refused: the arbiter is behind the pair (alarm)"
    UNREACHABLE = "the arbiter cannot be reached"
    IGNORED = "not an answer to this claim"


def judge(kind: Kind, claim: Claim, answer: Answer) -> Verdict:
    """What an answer means for the claim being waited for. Total; an answer to anything else is IGNORED."""
    if answer.request_id != claim.request_id:
        return Verdict.IGNORED
    what = asked(kind, claim.purpose)
    if what is Asked.NOT_ASKED:
        return Verdict.WITHOUT
    if answer.granted:
        return Verdict.GRANTED if _grant_fits(kind, what, claim, answer) else Verdict.IGNORED
    if what is Asked.SEIZE:
        return Verdict.OVERRIDDEN
    if not answer.reachable:
        return Verdict.UNREACHABLE
    if answer.epoch is not None and answer.epoch < claim.epoch:
        return Verdict.BEHIND
    return Verdict.REFUSED


def _grant_fits(kind: Kind, what: Asked, claim: Claim, answer: Answer) -> bool:
    """Whether this is a grant that an arbiter of this kind can give for this claim."""
    if not answer.reachable or what is Asked.NEVER:
        return False
    if not keeps_epochs(kind):
        return answer.epoch is None and answer.holder is None
    if answer.epoch is None or answer.holder != claim.server:
        return False
    return answer.epoch == claim.epoch + 1 if what is Asked.NEXT else answer.epoch > claim.epoch
