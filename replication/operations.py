"""What a change becomes when it is to be sent to the target. The formats are in frames.py."""

from __future__ import annotations

from typing import Any, NamedTuple

from hotpair.replication.frames import Kind
from hotpair.replication.nodes import Node


class Operation(NamedTuple):
    """One change to be sent: the objects that the target must know for it, and the frame without its number."""

    needs: tuple[Node, ...]
    fields: tuple[Any, ...]


class PartlyApplied(Exception):
    """A change of several steps failed after the first: what was done is sent all the same, then the error answered."""

    def __init__(self, error: OSError, operations: list[Operation]) -> None:
        super().__init__(str(error))
        self.error = error
        self.operations = operations


def attributes(
    node: Node, mode: int | None = None, uid: int | None = None, gid: int | None = None, mtime_ns: int | None = None
) -> tuple[Any, ...]:
    """The fields of an ATTRIBUTES operation; None leaves an attribute as it is."""
    return (Kind.ATTRIBUTES, node.identity, mode, uid, gid, mtime_ns)
