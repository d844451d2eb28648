"""The verdict `go alone` of a supervisor: a record in the place of another, if that is still there. Pure code.

The supervisor has asked arbitration with the record that it knew. What it was granted counts for that record only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hotpair.cluster import record as records
from hotpair.cluster.record import Record
from hotpair.replication.errors import MirrorError


@dataclass(frozen=True)
class GoAlone:
    """``record`` is to be stored if the present one is ``based_on``."""

    based_on: Record
    record: Record


def decoded(name: str, encoded: object) -> Record:
    """The record that a verdict holds under this name. Raises MirrorError."""
    if type(encoded) is not bytes:
        raise MirrorError(f"give {name} as a record in its encoded form")
    try:
        return records.decode(encoded)
    except (records.RecordDamaged, records.RecordVersion) as error:
        raise MirrorError(f"{name}: {error}") from error


def verdict_of(arguments: dict[str, Any]) -> GoAlone | None:
    """The supervisor's verdict; None when a person says it, who gives no records. Raises MirrorError."""
    if not arguments:
        return None
    if set(arguments) != {"based_on", "record"}:
        raise MirrorError("go_alone takes based_on and record, or nothing")
    return GoAlone(decoded("based_on", arguments["based_on"]), decoded("record", arguments["record"]))


def objection(present: Record, verdict: GoAlone) -> str | None:
    """Why the verdict's record cannot take the place of the present one; None when it can."""
    given = verdict.record
    if present != verdict.based_on:
        return "the record is another one by now than the verdict is based on"
    if not given.solo or given.in_sync or given.inconsistent or given.outdated:
        return "the verdict's record does not say that this copy goes on alone"
    if (given.root, given.copy, given.log_counter) != (present.root, present.copy, present.log_counter):
        return "the verdict's record is not of this copy"
    if given.epoch < present.epoch or given.term < present.term:
        return "the verdict's record goes back behind the present one"
    if given.generation == present.generation and not present.solo:
        return "the verdict's record begins no generation of its own"
    return None
