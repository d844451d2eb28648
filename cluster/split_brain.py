"""Whose changes stay after a split brain, by the module's policy: one side, or nobody before the operator chooses.

Pure code. Knows: what each server says of itself and its record. Must not know: what is done about it, and when
(module_waiting.py, module_running.py). Source: design/protocol.md, "Split brain".

Each server decides for itself, from its own side and the last pulse of its peer, so the two may look at different
moments and disagree for a while. That must never make both give up their copies:

- `former-primary` and `server:NAME` look only at what stays as it is during a split brain, so any two moments give the
  same side, or nobody.
- `most-changes` compares numbers that only grow until one side is given up, and a server gives its copy up only when
  nothing can write to it any more. If both did, each final number would be below an earlier one of the other's: below
  itself. But the kept side's number falls while the other is copied to, and it may not have heard yet why.
- So a copy is given up only when the peer has answered, to a question asked after everything had stopped here, that its
  own stays. A server that has given up its copy does not answer so.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hotpair.cluster.admission import is_name
from hotpair.cluster.record import Record, Rule, Side, meet

MANUAL, FORMER_PRIMARY, MOST_CHANGES = "manual", "former-primary", "most-changes"
WORDS = (MANUAL, FORMER_PRIMARY, MOST_CHANGES)
SERVER = "server:"  # followed by the name of one of the two servers


def is_policy(text: object) -> bool:
    return isinstance(text, str) and (text in WORDS or (text.startswith(SERVER) and is_name(text.removeprefix(SERVER))))


@dataclass(frozen=True)
class Branch:
    """One server's side of it.

    server         its name in cluster.toml
    is_stopped     the operator has stopped the module there: it would not go on with what is kept
    policy         as that server's configuration has it
    bytes_changed  what its dirty log names since the common base, whole extents; None when that is not known
    """

    server: str
    is_stopped: bool
    record: Record
    policy: str
    bytes_changed: int | None


class Why(Enum):
    """Why it is this side, or nobody."""

    POLICY = "the policy names one side"
    NO_SPLIT_BRAIN = "there is no split brain, or one side was given up before"
    MANUAL = "the policy leaves it to the operator"
    POLICIES_DIFFER = "the two servers have different policies"
    TIE = "the policy finds both sides equal"
    UNKNOWN = "what the policy asks for is not known of both sides"
    OUTDATED = "the copy that the policy names is outdated"
    STOPPED = "the server that the policy names is stopped"


@dataclass(frozen=True)
class Decision:
    """`stays`: whose changes are kept, seen from `mine`. NOBODY: the operator chooses, or removes what `why` says."""

    stays: Side
    why: Why


def decide(mine: Branch, peer: Branch) -> Decision:
    """The same for both servers: from the peer's place it is the same side and the same reason."""
    if meet(mine.record, peer.record, True, True, first=Side.ME).rule is not Rule.SPLIT_BRAIN:
        return Decision(Side.NOBODY, Why.NO_SPLIT_BRAIN)
    if mine.policy != peer.policy:
        return Decision(Side.NOBODY, Why.POLICIES_DIFFER)
    found = _named(mine, peer)
    if found.stays is Side.NOBODY:
        return found
    kept = mine if found.stays is Side.ME else peer
    if kept.record.outdated:
        return Decision(Side.NOBODY, Why.OUTDATED)
    if kept.is_stopped:
        return Decision(Side.NOBODY, Why.STOPPED)
    return found


def _named(mine: Branch, peer: Branch) -> Decision:
    policy = mine.policy
    if policy == MANUAL:
        return Decision(Side.NOBODY, Why.MANUAL)
    if policy == FORMER_PRIMARY:
        return _former_primary(mine.record, peer.record)
    if policy == MOST_CHANGES:
        return _most_changes(mine.bytes_changed, peer.bytes_changed)
    assert policy.startswith(SERVER), policy
    name = policy.removeprefix(SERVER)
    if (mine.server == name) == (peer.server == name):
        return Decision(Side.NOBODY, Why.UNKNOWN)
    return Decision(Side.ME if mine.server == name else Side.PEER, Why.POLICY)


def _former_primary(mine: Record, peer: Record) -> Decision:
    """In sync both have the same term, and only who was not the primary goes on alone with a higher one.

    When a swap was cut off before its answer came, the server that had taken over has a higher term as well; its VM
    has written nothing in the common base then, and the one where it ran is the former primary.
    """
    if mine.term == peer.term:
        return Decision(Side.NOBODY, Why.TIE)
    if abs(mine.term - peer.term) > 1:  # no history is known that leads to that
        return Decision(Side.NOBODY, Why.UNKNOWN)
    return Decision(Side.ME if mine.term < peer.term else Side.PEER, Why.POLICY)


def _most_changes(mine: int | None, peer: int | None) -> Decision:
    if mine is None or peer is None:
        return Decision(Side.NOBODY, Why.UNKNOWN)
    if mine == peer:
        return Decision(Side.NOBODY, Why.TIE)
    return Decision(Side.ME if mine > peer else Side.PEER, Why.POLICY)
