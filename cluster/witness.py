"""The witness: a table of standings, one for each module of each pair, that servers move on.

Knows: the table and its limits. Must not know: where it is kept, the network, clocks.
"""

from __future__ import annotations

from typing import Protocol

from hotpair.cluster.arbitration import NEVER_MOVED, Answer, Claim, Standing, granted, move, refused

MODULES_PER_PAIR = 256  # 25 at a time; an epoch is never forgotten, so renamed modules keep theirs
HISTORY_PER_MODULE = 100  # changes kept for the operator's eyes


class Store(Protocol):
    """Where the table is kept. Nobody else changes it between two calls of one claim."""

    def standing(self, pair: str, module: str) -> Standing | None:
        """Where a module stands, None if it was never moved."""

    def modules(self, pair: str) -> int:
        """How many modules of a pair have a standing."""

    def replace(self, claim: Claim, before: Standing | None, after: Standing) -> None:
        """Move the claim's module on. Durable on return; raises when it is not known to be."""


def look(store: Store, pair: str, module: str) -> Standing:
    """Where a module stands; epoch 0 without a holder when nobody ever moved it."""
    return store.standing(pair, module) or NEVER_MOVED


def decide(store: Store, claim: Claim) -> Answer:
    """Grant or refuse. A grant is durable when this returns."""
    before = store.standing(claim.pair, claim.module)
    now = before or NEVER_MOVED
    decision = move(now, claim)
    if not decision.granted:
        return refused(claim, decision.reason, now)
    if decision.after != now:
        if before is None and store.modules(claim.pair) >= MODULES_PER_PAIR:
            return refused(claim, f"the pair has {MODULES_PER_PAIR} modules here already, which is the limit", now)
        store.replace(claim, before, decision.after)
    return granted(claim, decision.reason, decision.after)
