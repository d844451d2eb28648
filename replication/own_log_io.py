"""The dirty log that a copy kept while it was a source, read by a process that is none."""

from __future__ import annotations

import logging
import os
from typing import Final

from hotpair.cluster.record import Record
from hotpair.replication import dirty_log
from hotpair.replication.dirty_log import DirtyLogUnusable, Marks
from hotpair.replication.dirty_log_io import DirtyLog

log = logging.getLogger("hotpair.replication")

NAME: Final = "dirty-log"


def read_own_log(state: str, record: Record) -> tuple[Marks | None, int]:
    """What the copy with this record may have that the other has not, and the extent shift; None: everything.

    A copy that was only ever a target has no log, and nothing of its own.
    """
    path = os.path.join(state, NAME)
    if not os.path.exists(path):
        return (Marks() if record.last_role == "SECOND" else None), 0
    try:
        with open(path, "rb") as file:
            shift = dirty_log.decode_header(file.read(dirty_log.HEADER_BYTES)).extent_shift
        opened, recovered = DirtyLog.open(path, record, extent_shift=shift)
    except DirtyLogUnusable as error:
        log.warning("%s", error)
        return None, 0
    opened.close()
    return (None if recovered.everything else recovered.marks), shift


def bytes_changed(state: str, record: Record | None) -> int | None:
    """Bytes of the extents that the log of a copy names which went on alone; None: of another copy, or not known.

    What a mirror process reports under this name; this is for when none runs, or one that is no source.
    """
    if record is None or not record.solo:
        return None
    marks, shift = read_own_log(state, record)
    return None if marks is None else marks.extents_named() << shift
