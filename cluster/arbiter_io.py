"""What all arbiters have in common, and the two that need nobody: `none` and `manual`."""

from __future__ import annotations

from typing import Protocol

from hotpair.cluster.arbitration import (
    Answer,
    Asked,
    Claim,
    Kind,
    Standing,
    asked,
    granted,
    refused_by_table,
)


class Arbiter(Protocol):
    """One way to decide who may go on. Both calls block, never longer than the time limit given when it was made."""

    @property
    def kind(self) -> Kind: ...

    def claim(self, claim: Claim) -> Answer:
        """Ask. An arbiter that cannot be reached is an answer with `reachable` False, never an exception."""

    def look(self, pair: str, module: str) -> Standing | None:
        """Where the module stands, without moving it; None if unreachable, or if this kind keeps no epochs."""


class NoArbiter:
    """`none`: whoever was live when the link broke goes on. Two servers that do not see each other both do."""

    kind = Kind.NONE

    def claim(self, claim: Claim) -> Answer:
        if asked(self.kind, claim.purpose) is Asked.NOTHING:
            return granted(claim, "arbitration 'none' grants whatever is asked: the peer may be running as well")
        return refused_by_table(self.kind, claim)

    def look(self, pair: str, module: str) -> Standing | None:
        return None


class ManualArbiter:
    """`manual`: nothing is ever granted, the operator decides."""

    kind = Kind.MANUAL

    def claim(self, claim: Claim) -> Answer:
        return refused_by_table(self.kind, claim)

    def look(self, pair: str, module: str) -> Standing | None:
        return None
