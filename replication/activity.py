"""The activity log: the set of marks in memory, and which of them may be removed from the dirty log, when.

Knows: marks, ticks, and which of its records the dirty log has made durable. Must not know: files, clocks, flushing
(the caller flushes both copies between `victims` and `finish_eviction`), how records are written.

A mark is *staged* (its record is not yet being flushed), *in flight* (it is), then *durable*. Only a durable mark
lets a change go ahead. The write path, for each write to one extent:

    extents = activity.marks_of(identity).extents     # once for each open file
    if extent in extents: extents[extent] = activity.tick, and go ahead
    elif activity.is_marked(identity, first, last): go ahead
    else: stage the record that activity.mark(identity, first, last) returns, if any,
          wait for `commit_ended`, and begin again

A removal is written only if nothing was accepted for the extent since the flush that justifies it began. No code is
spent on that in the write path: a selection ends the current tick, so whatever is used afterwards has a higher one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from hotpair.replication.dirty_log import (
    LARGEST_EXPANDED_EXTENTS,
    Extents,
    FileMarks,
    LogRecord,
    Mark,
    Marks,
    Metadata,
    Names,
    Ranges,
    add,
    add_range,
    merged_extents,
    overlap,
    remove,
    subtract_range,
)
from hotpair.replication.limits import HOT_EXTENTS

EVICTED_SHARE = 4  # a quarter at a time: one at a time costs a flush of both copies for every cold write


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Marks that leave if nothing uses them before `finish_eviction`; they stay valid until then.

    To be flushed on both copies in the meantime: the files in `extents`, `ranges`, `metadata`, the directories in
    `names`. Every change accepted before the selection was made must have been applied before that flush begins.
    """

    tick: int
    extents: dict[bytes, tuple[int, ...]]
    ranges: dict[bytes, tuple[tuple[int, int], ...]]
    metadata: tuple[bytes, ...]
    names: tuple[bytes, ...]


class ActivityLog:
    """All marks of one module. `tick` counts selections; `limit` is the number of marks above which some leave."""

    def __init__(self, marks: Marks | None = None, limit: int = HOT_EXTENTS) -> None:
        self.tick = 1
        self.limit = limit
        self.frozen = False
        self._durable = marks if marks is not None else Marks()
        self._staged = Marks()
        self._in_flight = Marks()
        tables = sum(len(file.extents) + len(file.ranges) for file in self._durable.files.values())
        self._count = tables + len(self._durable.metadata) + len(self._durable.names)
        self._open: set[bytes] = set()
        self._eviction: Selection | None = None
        self._selections: dict[Selection, None] = {}
        # Long ranges accepted while a selection is outstanding; the ticks in `extents` cannot speak for them.
        self._used_ranges: dict[bytes, Ranges] = {}

    # ---- marking

    def marks_of(self, identity: bytes) -> FileMarks:
        """The durable marks of a file, for the write path; the same object until `release`."""
        self._open.add(identity)
        return self._durable_file(identity)

    def runs_of(self, identity: bytes) -> Ranges:
        """The durably marked extents of a file, open or not, as (first, last)."""
        file = self._durable.files.get(identity)
        return file.runs() if file is not None else []

    def metadata_marks(self, identities: Iterable[bytes]) -> list[Metadata]:
        """The durable marks that there are for the metadata of these."""
        marked = self._durable.metadata
        return [Metadata(identity) for identity in identities if identity in marked]

    def release(self, identity: bytes) -> None:
        """No open file uses what `marks_of` returned any more."""
        self._open.discard(identity)
        self._drop_if_empty(identity)

    def is_marked(self, identity: bytes, first: int, last: int) -> bool:
        """May a change to extents `first` to `last` (inclusive) go ahead? To be told so counts as a use of them."""
        if not self._durable.covers(identity, first, last):
            return False
        self._use(identity, first, last)
        return True

    def has(self, mark: Mark) -> bool:
        """`is_marked` for every kind of mark."""
        if isinstance(mark, Extents):
            return self.is_marked(mark.identity, mark.first, mark.last)
        table = self._durable.metadata if isinstance(mark, Metadata) else self._durable.names
        if mark.identity in table:
            table[mark.identity] = self.tick
            return True
        return False

    def mark(self, identity: bytes, first: int, last: int) -> LogRecord | None:
        """Have extents `first` to `last` (inclusive) marked. Returns the record to stage, None if already there."""
        return self._request(Extents(identity, first, last))

    def mark_metadata(self, identity: bytes) -> LogRecord | None:
        return self._request(Metadata(identity))

    def mark_names(self, identity: bytes) -> LogRecord | None:
        return self._request(Names(identity))

    def union(self, other: Marks) -> list[LogRecord]:
        """Add the peer's marks. Returns the records to stage; the peer drops its log after they are durable."""
        records = [self.mark(identity, first, last) for identity, first, last in other]
        records += [self.mark_metadata(identity) for identity in other.metadata]
        records += [self.mark_names(identity) for identity in other.names]
        return [record for record in records if record is not None]

    # ---- commits of the dirty log

    def commit_began(self) -> None:
        """All records returned so far were written and are being flushed (DirtyLog.begin_commit gave a descriptor)."""
        waiting = self._in_flight
        assert not (waiting.files or waiting.metadata or waiting.names), "a commit began while another was in flight"
        self._staged, self._in_flight = self._in_flight, self._staged

    def commit_ended(self) -> None:
        """That flush succeeded: its marks count from now on. (After a failed flush nothing counts: no call.)"""
        for identity, file in self._in_flight.files.items():
            durable = self._durable_file(identity)
            before = len(durable.extents) + len(durable.ranges)
            durable.extents.update(dict.fromkeys(file.extents, self.tick))
            for first, last in file.ranges:
                add_range(durable.ranges, first, last)
            self._count += len(durable.extents) + len(durable.ranges) - before
            for first, last in file.ranges:
                self._use(identity, first, last)
        for table, added in (
            (self._durable.metadata, self._in_flight.metadata),
            (self._durable.names, self._in_flight.names),
        ):
            before = len(table)
            table.update(dict.fromkeys(added, self.tick))
            self._count += len(table) - before
        self._in_flight = Marks()

    # ---- leaving

    def extents_named(self) -> int:
        """How many extents the durable marks name; see FileMarks."""
        return self._durable.extents_named()

    @property
    def count(self) -> int:
        """Durable marks: extents, long ranges (one each), metadata and names."""
        return self._count

    def victims(self) -> Selection | None:
        """The least recently used quarter, to be flushed and then removed; None while there is no need.

        Long ranges all leave each time: they come from truncate and discard, are seldom used again, and whatever
        was written in them since stays marked by itself. One eviction is outstanding at a time, none when frozen.
        """
        if self.frozen or self._eviction is not None or self.count <= self.limit:
            return None
        durable = self._durable
        tables = [file.extents.values() for file in durable.files.values()]
        ticks = sorted(chain(*tables, durable.metadata.values(), durable.names.values()))
        quarter = len(ticks) // EVICTED_SHARE
        threshold = ticks[quarter] if ticks else 0
        of_threshold = quarter - bisect_left(ticks, threshold)  # how many of this tick leave; all older ones do

        def leaves(tick: int) -> bool:
            nonlocal of_threshold
            if tick == threshold:
                of_threshold -= 1
                return of_threshold >= 0
            return tick < threshold

        extents: dict[bytes, tuple[int, ...]] = {}
        for identity, file in durable.files.items():
            if leaving := tuple(extent for extent, tick in file.extents.items() if leaves(tick)):
                extents[identity] = leaving
        ranges = {identity: tuple(file.ranges) for identity, file in durable.files.items() if file.ranges}
        metadata = tuple(identity for identity, tick in durable.metadata.items() if leaves(tick))
        names = tuple(identity for identity, tick in durable.names.items() if leaves(tick))
        self._eviction = Selection(self.tick, extents, ranges, metadata, names)
        self.tick += 1
        self._selections[self._eviction] = None
        return self._eviction

    def select(self, marks: Iterable[Mark]) -> Selection:
        """These marks, because the caller copies them now: for reintegration, in any mode. Call it before reading."""
        selection = self._selected(self.tick, marks)
        self.tick += 1
        self._selections[selection] = None
        return selection

    def part(self, selection: Selection, marks: Iterable[Mark]) -> Selection | None:
        """Those of these marks that nothing has used since the selection was made, as one that ends by itself.

        None if there are none, or the selection is not outstanding any more."""
        part = self._selected(selection.tick, marks)
        if selection not in self._selections or not (part.extents or part.ranges or part.metadata or part.names):
            return None
        self._selections[part] = None
        return part

    def _selected(self, tick: int, marks: Iterable[Mark]) -> Selection:
        """What of these marks is durable and was not used after the tick (long ranges: known when it ends)."""
        extents: dict[bytes, tuple[int, ...]] = {}
        ranges: dict[bytes, Ranges] = {}
        metadata, names = [], []
        for mark in marks:
            if isinstance(mark, Metadata):
                if self._durable.metadata.get(mark.identity, tick + 1) <= tick:
                    metadata.append(mark.identity)
            elif isinstance(mark, Names):
                if self._durable.names.get(mark.identity, tick + 1) <= tick:
                    names.append(mark.identity)
            elif (file := self._durable.files.get(mark.identity)) is not None:
                chosen = tuple(one for one in file.extents_in(mark.first, mark.last) if file.extents[one] <= tick)
                if chosen:
                    extents[mark.identity] = extents.get(mark.identity, ()) + chosen
                for first, last in overlap(file.ranges, mark.first, mark.last):
                    add_range(ranges.setdefault(mark.identity, []), first, last)
        chosen_ranges = {identity: tuple(parts) for identity, parts in ranges.items()}
        return Selection(tick, extents, chosen_ranges, tuple(metadata), tuple(names))

    def finish_eviction(self, selection: Selection) -> list[LogRecord]:
        """Both copies have flushed what was selected: forget what was not used since, and return the removals.

        They must be staged at once, before the record of any later mark. Empty if the selection was aborted."""
        if not self._ends(selection):
            return []
        records = [
            remove(Extents(identity, first, last))
            for identity in selection.extents.keys() | selection.ranges.keys()
            for first, last in self._drop_unused(selection, identity)
        ]
        for identity in selection.metadata:
            if self._durable.metadata.get(identity, self.tick) <= selection.tick:
                del self._durable.metadata[identity]
                records.append(remove(Metadata(identity)))
                self._count -= 1
        for identity in selection.names:
            if self._durable.names.get(identity, self.tick) <= selection.tick:
                del self._durable.names[identity]
                records.append(remove(Names(identity)))
                self._count -= 1
        self._forget_used_ranges()
        return records

    def abort_eviction(self, selection: Selection) -> None:
        """The flush did not happen: everything selected stays."""
        self._ends(selection)
        self._forget_used_ranges()

    def freeze(self) -> None:
        """Going alone: nothing is evicted any more, and what was on its way out stays."""
        self.frozen = True
        self._selections.clear()
        self._eviction = None
        self._forget_used_ranges()

    def thaw(self) -> None:
        """In sync again (PRIM): evictions may begin."""
        self.frozen = False

    def snapshot(self) -> Marks:
        """A copy of all marks, also those not durable yet: for compaction, and as the list of what to copy."""
        copy = Marks()
        for part in (self._durable, self._in_flight, self._staged):
            for record in part.records():
                copy.apply(record)
        return copy

    # ---- inside

    def _durable_file(self, identity: bytes) -> FileMarks:
        file = self._durable.files.get(identity)
        if file is None:
            file = self._durable.files[identity] = FileMarks()
        return file

    def _drop_if_empty(self, identity: bytes) -> None:
        file = self._durable.files.get(identity)
        if file is not None and not file and identity not in self._open:
            del self._durable.files[identity]

    def _request(self, mark: Mark) -> LogRecord | None:
        """A mark that is staged or in flight needs no second record; its change waits all the same."""
        staged, in_flight = self._staged, self._in_flight
        if self.has(mark):
            return None
        if isinstance(mark, Extents):
            where = (mark.identity, mark.first, mark.last)
            present = staged.covers(*where) or in_flight.covers(*where)
        elif isinstance(mark, Metadata):
            present = mark.identity in staged.metadata or mark.identity in in_flight.metadata
        else:
            present = mark.identity in staged.names or mark.identity in in_flight.names
        if present:
            return None
        record = add(mark)
        staged.apply(record)
        return record

    def _use(self, identity: bytes, first: int, last: int) -> None:
        """A change within durable marks was accepted outside the fast path."""
        if last - first < LARGEST_EXPANDED_EXTENTS:
            file = self._durable.files[identity]
            before = len(file.extents)
            for extent in range(first, last + 1):  # what only a range marked is on the fast path from now on
                file.extents[extent] = self.tick
            self._count += len(file.extents) - before
        elif self._selections:
            add_range(self._used_ranges.setdefault(identity, []), first, last)

    def _ends(self, selection: Selection) -> bool:
        """Is it outstanding? From here on it is not."""
        if selection not in self._selections:
            return False
        del self._selections[selection]
        if self._eviction is selection:
            self._eviction = None
        return True

    def _forget_used_ranges(self) -> None:
        if not self._selections:
            self._used_ranges.clear()

    def _drop_unused(self, selection: Selection, identity: bytes) -> Ranges:
        """Forget what was selected of one file and not used since; returns what leaves the dirty log.

        A range keeps the extents that are in the table: some may have no other record in the log."""
        file = self._durable.files.get(identity)
        if file is None:
            return []
        size = len(file.extents) + len(file.ranges)
        staying: Ranges = list(self._used_ranges.get(identity, ()))
        for part in (self._staged, self._in_flight):  # a change to these waits for a commit: they are in use
            if identity in part.files:
                for first, last in part.files[identity].runs():
                    add_range(staying, first, last)
        gone = [
            extent
            for extent in selection.extents.get(identity, ())
            if file.extents.get(extent, self.tick) <= selection.tick and not overlap(staying, extent, extent)
        ]
        for extent in gone:
            file.extents.pop(extent, None)
        leaving: Ranges = []
        for first, last in selection.ranges.get(identity, ()):
            leaving += overlap(file.ranges, first, last)
        for first, last in staying:
            subtract_range(leaving, first, last)
        for first, last in list(leaving):
            for extent in file.extents_in(first, last):
                subtract_range(leaving, extent, extent)
        for first, last in leaving:
            subtract_range(file.ranges, first, last)
        removed = merged_extents(gone)  # a range that still covered one of them would be in `staying`
        for first, last in leaving:
            add_range(removed, first, last)
        self._count += len(file.extents) + len(file.ranges) - size
        self._drop_if_empty(identity)
        return removed
