"""What a mirror process reports to its supervisor, as a value. Pure code.

A report is a level: it says how things are, not what changed, so that a late or a lost one does no harm. Its words are
those of the module state machine. "No process" is reported by nobody: the connection that reports came on has ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from hotpair.cluster import record as records
from hotpair.cluster.record import Record
from hotpair.replication.modes import ALONE, FROZEN, PRIM, REINTEGRATING, STOPPED, Mode

SOURCE: Final = "source"
TARGET: Final = "target"


class Reported(Enum):
    """How far a mirror process is. The state machine adds "starting", for a process that has not reported yet."""

    FROZEN = "frozen"  # source: writes are held; it looks for its target, or waits for a verdict
    FILLING = "filling"  # source: the target is being copied to, writes go on; target: being copied to
    ALONE = "alone"  # source: writes go on, no target
    PAIRED = "paired"  # source: sync was offered, a write needs the target; target: in sync in this session
    FAILED = "failed"  # source: the tap was failed, nothing is acknowledged any more
    IDLE = "idle"  # target: waits for a source
    STOPPING = "stopping"  # it is about to end


MODES: Final[dict[Mode, Reported]] = {
    FROZEN: Reported.FROZEN,
    ALONE: Reported.ALONE,
    REINTEGRATING: Reported.FILLING,
    PRIM: Reported.PAIRED,
    STOPPED: Reported.FAILED,
}


@dataclass(frozen=True)
class Report:
    """How a mirror process is, and its durable record.

    linked         it has a connection to the peer's mirror on which the hello is done
    session        this copy has been in sync in this very process, and the session could be resumed
    in_sync        source: the target has confirmed that it is in sync, in this connection
    asked          source: the peer is being asked to take over, and has not answered
    agreeing       source: an epoch is on its way into both records
    record         as it is on disk; None when there is none yet
    bytes_changed  whole extents that the dirty log names, while the record is solo; None when it says "everything".
                   A mark to the end of a file, however long that is, counts as one extent
    reason         for people: why it is not in sync; empty when it is, or ends
    """

    role: str
    mode: Reported
    linked: bool = False
    session: bool = False
    in_sync: bool = False
    asked: bool = False
    agreeing: bool = False
    record: Record | None = None
    bytes_changed: int | None = None
    reason: str = ""

    def fields(self) -> dict[str, Any]:
        """As it is said on the control socket: the record in its encoded form, None when there is none."""
        return {
            "role": self.role,
            "mode": self.mode.value,
            "linked": self.linked,
            "session": self.session,
            "in_sync": self.in_sync,
            "asked": self.asked,
            "agreeing": self.agreeing,
            "record": records.encode(self.record) if self.record is not None else None,
            "bytes_changed": self.bytes_changed,
            "reason": self.reason,
        }


def of_source(
    mode: Mode,
    *,
    ending: bool,
    linked: bool,
    session: bool,
    in_sync: bool,
    asked: bool,
    agreeing: bool,
    record: Record,
    bytes_changed: int | None,
    reason: str = "",
) -> Report:
    """A source that ends, or whose tap was failed, has nothing to say of a connection."""
    if ending:
        return Report(SOURCE, Reported.STOPPING, record=record, bytes_changed=bytes_changed)
    if mode is STOPPED:
        return Report(SOURCE, Reported.FAILED, record=record, bytes_changed=bytes_changed, reason=reason)
    both = linked and in_sync
    why = "" if both else reason
    return Report(SOURCE, MODES[mode], linked, session, both, asked, both and agreeing, record, bytes_changed, why)


def of_target(
    *,
    ending: bool,
    linked: bool,
    session: bool,
    begun: bool,
    record: Record | None,
    bytes_changed: int | None,
    reason: str = "",
) -> Report:
    """``begun``: a reintegration, in the present connection, is on record."""
    if ending:
        return Report(TARGET, Reported.STOPPING, record=record, bytes_changed=bytes_changed)
    if session:
        mode = Reported.PAIRED
    else:
        mode = Reported.FILLING if begun and linked else Reported.IDLE
    why = "" if session and linked else reason
    return Report(TARGET, mode, linked, session, record=record, bytes_changed=bytes_changed, reason=why)
