"""The last consistent copy, kept while a reintegration fills the target: its names, and the record of a restored copy.

Knows: what the folders in the mirror's own folder are called, what of the old record is true again after a restore.
Must not know: files, processes, how a tree is cloned. The folders:

    snapshot-GENERATION   complete and durable; the generation is the last in which the copy was consistent
    making-TOKEN          being written, by a helper or by a restore; worth nothing when who wrote it has died
    removing-TOKEN        being removed; what is in it was replaced or is not needed any more

Only a rename makes or ends a snapshot, so a crash leaves it whole or leaves none.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from hotpair.cluster import record as records
from hotpair.cluster.record import Record

TREE: Final = b"tree"  # in a snapshot: the copy, without the mirror's own folder
RECORD: Final = b"record"  # in a snapshot: the record that belonged to it, in its own checksummed form

_SNAPSHOT: Final = re.compile(rb"snapshot-[0-9a-f]{32}")
_LEFTOVER: Final = re.compile(rb"(making|removing)-[0-9a-f]{1,32}")


def name_of(generation: bytes) -> bytes:
    """The folder of the snapshot of a copy in this generation."""
    return b"snapshot-" + generation.hex().encode()


def is_snapshot(name: bytes) -> bool:
    """Whether this is the name of a complete snapshot."""
    return _SNAPSHOT.fullmatch(name) is not None


def is_leftover(name: bytes) -> bool:
    """Whether this is the name of something that only waits to be removed, once its writer has died."""
    return _LEFTOVER.fullmatch(name) is not None


def making(token: str) -> bytes:
    """The folder in which one attempt writes."""
    return b"making-" + token.encode()


def removing(token: str) -> bytes:
    """The folder that takes what is to be removed."""
    return b"removing-" + token.encode()


def restored(old: Record, now: Record) -> Record:
    """The record of a copy that was put back to what it was under ``old``; ``now`` is that of the half-copied one.

    Generation and lineage are the old ones: they name what the copy holds again. It is outdated, because the server it
    was filled from has gone on in a later generation, with writes that it acknowledged; and not in sync, or it could be
    granted a take-over over them. Epoch and term never go back on a disk. The dirty log was dropped when the
    reintegration began, and the peer has taken from its own what it had copied: a new one, which says "everything",
    takes the next counter.
    """
    assert now.inconsistent and not old.inconsistent, "a half-copied tree is replaced by a consistent one"
    assert old.root == now.root and old.copy == now.copy, "a copy is restored from its own snapshot"
    return records.mark_outdated(
        replace(
            old,
            in_sync=False,
            epoch=max(old.epoch, now.epoch),
            term=max(old.term, now.term),
            log_counter=max(old.log_counter, now.log_counter) + 1,
        )
    )
