"""What a server recorded of its files at its own clean stop, and which of them are not as they were then.

Knows: rows, and how two listings in nearly the same order are compared without holding either. Must not know: files,
directories, the log. A row that differs, or that was not there, only ever adds to what is compared by content: no
table, or one that is too old, can hide nothing that the dirty log knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, NamedTuple

from hotpair.replication.dirty_log import ID_BYTES, TO_END_OF_FILE, Extents, Marks, add
from hotpair.replication.limits import CHANGED_FILES, UNMATCHED_FILES


class Row(NamedTuple):
    """A regular file: identity, bytes, times in nanoseconds, inode number."""

    identity: bytes
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


class TableDamaged(Exception):
    """The table is not what was written, or not of this copy: which files were changed cannot be said."""


class TooManyChanged(Exception):
    """More than is worth telling one by one: everything is compared."""


def changed_files(recorded: Iterable[Row], present: Iterable[Row]) -> set[bytes]:
    """The identities of files that are not as they were recorded; one that is gone is not among them.

    Both are read side by side. What is not met at the same place waits for its counterpart, so that memory holds what
    has moved and not the whole tree. Raises TooManyChanged.
    """
    changed: set[bytes] = set()
    only_recorded: dict[bytes, Row] = {}
    only_present: dict[bytes, Row] = {}
    for old, new in zip_longest(recorded, present):
        if old == new:
            continue
        if old is not None:
            _meet(old, only_present, only_recorded, changed)
        if new is not None:
            _meet(new, only_recorded, only_present, changed)
        if len(changed) > CHANGED_FILES or len(only_recorded) + len(only_present) > UNMATCHED_FILES:
            raise TooManyChanged
    changed.update(only_present)
    if len(changed) > CHANGED_FILES:
        raise TooManyChanged
    return changed


def _meet(row: Row, others: dict[bytes, Row], own: dict[bytes, Row], changed: set[bytes]) -> None:
    counterpart = others.pop(row.identity, None)
    if counterpart is None:
        own[row.identity] = row
    elif counterpart != row:
        changed.add(row.identity)


def row_of(fields: Any) -> Row:
    """A row from its fields. Raises TableDamaged."""
    if type(fields) is not list or len(fields) != len(Row._fields) or type(fields[0]) is not bytes:
        raise TableDamaged("a row makes no sense")
    return Row(*fields)


def identities(message: Any) -> Iterator[bytes]:
    """The files that the target names as changed. Raises TypeError or ValueError when it names none properly."""
    if type(message) is not list:
        raise TypeError("the changed files are no list")
    for identity in message:
        if type(identity) is not bytes or len(identity) != ID_BYTES:
            raise ValueError(f"{identity!r} is not an identity")
        yield identity


def whole_files(changed: Iterable[bytes]) -> Marks:
    """Marks on all of these files' content."""
    marks = Marks()
    for identity in changed:
        marks.apply(add(Extents(identity, 0, TO_END_OF_FILE)))
    return marks
