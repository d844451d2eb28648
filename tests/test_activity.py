"""The hot set against a naive model of the dirty log: what is relied on is durable, and stays so."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hotpair.replication.activity import ActivityLog, Selection
from hotpair.replication.dirty_log import (
    ADD_EXTENTS,
    ADD_METADATA,
    ADD_NAMES,
    REMOVE_EXTENTS,
    REMOVE_METADATA,
    REMOVE_NAMES,
    TO_END_OF_FILE,
    Extents,
    LogRecord,
    Marks,
    Metadata,
    Names,
    add,
    remove,
)

FILES = [bytes([number]) * 16 for number in (1, 2)]
EXTENTS = 80
Element = tuple[str, bytes, int]


def elements(record: LogRecord) -> set[Element]:
    """What a record speaks of, one by one, as far as the model looks."""
    if record.kind in (ADD_EXTENTS, REMOVE_EXTENTS):
        last = min(record.last, EXTENTS - 1)
        return {("extent", record.identity, extent) for extent in range(record.first, last + 1)}
    kind = "metadata" if record.kind in (ADD_METADATA, REMOVE_METADATA) else "names"
    return {(kind, record.identity, 0)}


def everything_in(marks: Marks) -> set[Element]:
    return set().union(*(elements(record) for record in marks.records()))


class NaiveLog:
    """The dirty log as a set: `durable`, and the records on their way."""

    def __init__(self) -> None:
        self.durable: set[Element] = set()
        self.in_flight: list[LogRecord] | None = None
        self.staged: list[LogRecord] = []

    @staticmethod
    def applied(to: set[Element], records: list[LogRecord]) -> set[Element]:
        result = set(to)
        for record in records:
            if record.kind in (ADD_EXTENTS, ADD_METADATA, ADD_NAMES):
                result |= elements(record)
            else:
                assert record.kind in (REMOVE_EXTENTS, REMOVE_METADATA, REMOVE_NAMES)
                result -= elements(record)
        return result

    def eventual(self) -> set[Element]:
        return self.applied(self.durable, (self.in_flight or []) + self.staged)

    def reliable(self) -> set[Element]:
        """Durable, and with no removal on its way, wherever the power fails."""
        removed = [
            record
            for record in (self.in_flight or []) + self.staged
            if record.kind in (REMOVE_EXTENTS, REMOVE_METADATA, REMOVE_NAMES)
        ]
        return self.applied(self.durable, removed)


extents = st.integers(0, EXTENTS - 1)
spans = st.one_of(
    extents.map(lambda extent: (extent, extent)),
    st.tuples(extents, st.integers(1, 3)).map(lambda span: (span[0], min(span[0] + span[1], EXTENTS - 1))),
    st.tuples(extents, st.integers(33, 60)).map(lambda span: (span[0], min(span[0] + span[1], EXTENTS - 1))),
    extents.map(lambda extent: (extent, TO_END_OF_FILE)),
)
files = st.sampled_from(FILES)
marks = st.one_of(
    st.builds(lambda identity, span: Extents(identity, *span), files, spans),
    st.builds(Metadata, files),
    st.builds(Names, files),
)


class ActivityMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.activity = ActivityLog(limit=6)
        self.tables = {identity: self.activity.marks_of(identity) for identity in FILES}
        self.log = NaiveLog()
        self.unflushed: set[Element] = set()  # accepted, and not flushed on both copies since
        self.selections: list[tuple[Selection, set[Element]]] = []  # with what was accepted since each
        self.evicting: Selection | None = None
        self.waiting: list[LogRecord] = []

    def accept(self, mark: LogRecord) -> None:
        assert elements(mark) <= self.log.reliable(), "accepted without a durable mark"
        self.unflushed |= elements(mark)
        for _, accepted in self.selections:
            accepted |= elements(mark)

    @rule(identity=files, span=spans)
    def write(self, identity: bytes, span: tuple[int, int]) -> None:
        first, last = span
        table = self.tables[identity].extents
        wanted = LogRecord(ADD_EXTENTS, identity, first, last)
        if last - first < 4 and all(extent in table for extent in range(first, last + 1)):
            for extent in range(first, last + 1):
                table[extent] = self.activity.tick
            self.accept(wanted)
        elif self.activity.is_marked(identity, first, last):
            self.accept(wanted)
        else:
            self.waiting.append(wanted)
            if (record := self.activity.mark(identity, first, last)) is not None:
                assert record == wanted
                self.log.staged.append(record)

    @rule(identity=files, metadata=st.booleans())
    def change_object(self, identity: bytes, metadata: bool) -> None:
        mark = Metadata(identity) if metadata else Names(identity)
        if self.activity.has(mark):
            self.accept(add(mark))
            return
        self.waiting.append(add(mark))
        request = self.activity.mark_metadata if metadata else self.activity.mark_names
        if (record := request(identity)) is not None:
            self.log.staged.append(record)

    @precondition(lambda self: self.log.in_flight is None and self.log.staged)
    @rule()
    def begin_commit(self) -> None:
        self.activity.commit_began()
        self.log.in_flight, self.log.staged = self.log.staged, []

    @precondition(lambda self: self.log.in_flight is not None)
    @rule()
    def end_commit(self) -> None:
        assert self.log.in_flight is not None
        self.log.durable = self.log.applied(self.log.durable, self.log.in_flight)
        self.log.in_flight = None
        self.activity.commit_ended()
        waiting, self.waiting = self.waiting, []
        for mark in waiting:
            if mark.kind == ADD_EXTENTS:
                self.write(mark.identity, (mark.first, mark.last))
            else:
                self.change_object(mark.identity, mark.kind == ADD_METADATA)

    @rule()
    def begin_eviction(self) -> None:
        before = self.activity.count
        selection = self.activity.victims()
        assert (selection is not None) == (
            before > self.activity.limit and not self.activity.frozen and self.evicting is None
        )
        if selection is not None:
            self.selections.append((selection, set()))
            self.evicting = selection

    @rule(chosen=st.lists(marks, min_size=1, max_size=4))
    def begin_copying(self, chosen: list[Extents | Metadata | Names]) -> None:
        self.selections.append((self.activity.select(chosen), set()))

    @precondition(lambda self: self.selections)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.selections) - 1))
        selection, accepted = self.selections.pop(index)
        if selection is self.evicting:
            self.evicting = None
        self.unflushed &= accepted  # both copies have flushed what was accepted before the selection
        records = self.activity.finish_eviction(selection)
        gone = set().union(*(elements(record) for record in records))
        assert not gone & accepted, "removed although something was accepted since the flush began"
        self.log.staged += records
        assert self.activity.finish_eviction(selection) == []

    @precondition(lambda self: self.selections)
    @rule()
    def abort(self) -> None:
        selection, _ = self.selections.pop(0)
        if selection is self.evicting:
            self.evicting = None
        self.activity.abort_eviction(selection)

    @rule()
    def freeze(self) -> None:
        self.activity.freeze()
        for selection, _ in self.selections:
            assert self.activity.finish_eviction(selection) == []
        self.selections.clear()
        self.evicting = None

    @rule()
    def thaw(self) -> None:
        self.activity.thaw()

    @rule(added=st.lists(marks, max_size=5))
    def unite(self, added: list[Extents | Metadata | Names]) -> None:
        other = Marks()
        for mark in added:
            other.apply(add(mark))
        records = self.activity.union(other)
        for _, accepted in self.selections:
            accepted |= everything_in(other)  # what differs for the peer's reasons is not copied by a flush
        self.log.staged += records
        assert everything_in(other) <= self.log.eventual()

    @rule(identity=files)
    def close_and_open(self, identity: bytes) -> None:
        self.activity.release(identity)
        self.tables[identity] = self.activity.marks_of(identity)

    @invariant()
    def what_changed_is_marked(self) -> None:
        assert self.unflushed <= self.log.reliable()

    @invariant()
    def the_memory_agrees_with_the_log(self) -> None:
        assert everything_in(self.activity.snapshot()) == self.log.eventual()
        for identity, table in self.tables.items():
            found = {("extent", identity, extent) for extent in table.extents if extent < EXTENTS}
            assert found <= self.log.reliable()

    @invariant()
    def the_count_is_right(self) -> None:
        durable = self.activity._durable
        tables = sum(len(file.extents) + len(file.ranges) for file in durable.files.values())
        assert self.activity.count == tables + len(durable.metadata) + len(durable.names)


TestActivity = ActivityMachine.TestCase
TestActivity.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# ---- told one by one


def marked(*numbers: int, limit: int = 4) -> tuple[ActivityLog, dict[int, int]]:
    activity = ActivityLog(limit=limit)
    table = activity.marks_of(FILES[0]).extents
    for number in numbers:
        assert activity.mark(FILES[0], number, number) == add(Extents(FILES[0], number, number))
        activity.commit_began()
        activity.commit_ended()
    return activity, table


def test_a_mark_counts_only_when_it_is_durable() -> None:
    activity = ActivityLog()
    table = activity.marks_of(FILES[0]).extents
    assert activity.mark(FILES[0], 7, 7) is not None
    assert activity.mark(FILES[0], 7, 7) is None, "one record is enough"
    assert not table and not activity.is_marked(FILES[0], 7, 7)
    activity.commit_began()
    assert activity.mark(FILES[0], 7, 7) is None
    assert not table and not activity.is_marked(FILES[0], 7, 7)
    activity.commit_ended()
    assert 7 in table and activity.is_marked(FILES[0], 7, 7)


def test_the_least_recently_used_quarter_leaves() -> None:
    activity, table = marked(*range(7), limit=7)
    assert activity.victims() is None, "not above the limit yet"
    activity, table = marked(*range(8), limit=7)
    activity.tick += 1
    for used in (0, 1, 2, 5):
        table[used] = activity.tick
    selection = activity.victims()
    assert selection is not None
    assert selection.extents == {FILES[0]: (3, 4)}
    assert activity.victims() is None, "one eviction at a time"
    assert activity.finish_eviction(selection) == [remove(Extents(FILES[0], 3, 4))], "neighbours share a record"
    assert sorted(table) == [0, 1, 2, 5, 6, 7]
    assert activity.count == 6


def test_a_write_cancels_the_leaving_of_its_extent_without_being_told() -> None:
    activity, table = marked(*range(8))
    selection = activity.victims()
    assert selection is not None and selection.extents[FILES[0]] == (0, 1)
    table[1] = activity.tick  # all that the write path does
    assert activity.finish_eviction(selection) == [remove(Extents(FILES[0], 0, 0))]
    assert 1 in table


@pytest.mark.parametrize("last", [10, 100])
@pytest.mark.parametrize("progress", ["staged", "in flight", "durable"])
def test_an_extent_with_a_waiting_write_does_not_leave(progress: str, last: int) -> None:
    activity, _ = marked(*range(8))
    selection = activity.victims()
    assert selection is not None and selection.extents[FILES[0]] == (0, 1)
    assert activity.mark(FILES[0], 1, last) is not None
    if progress != "staged":
        activity.commit_began()
    if progress == "durable":
        activity.commit_ended()
    assert activity.finish_eviction(selection) == [remove(Extents(FILES[0], 0, 0))]


def test_frozen_it_only_grows() -> None:
    activity, table = marked(*range(8))
    selection = activity.victims()
    assert selection is not None
    activity.freeze()
    assert activity.finish_eviction(selection) == []
    assert activity.victims() is None
    assert len(table) == 8
    copied = activity.select([Extents(FILES[0], 2, 3)])
    assert activity.finish_eviction(copied) == [remove(Extents(FILES[0], 2, 3))], "reintegration does remove"
    activity.thaw()
    assert activity.victims() is not None


def test_a_long_range_is_one_mark_and_keeps_what_was_written_in_it() -> None:
    activity = ActivityLog(limit=0)
    table = activity.marks_of(FILES[0])
    assert activity.mark(FILES[0], 0, TO_END_OF_FILE) is not None
    activity.commit_began()
    activity.commit_ended()
    assert activity.count == 1 and not table.extents
    selection = activity.victims()
    assert selection is not None
    assert activity.is_marked(FILES[0], 1000, 1001)
    assert activity.finish_eviction(selection) == [
        remove(Extents(FILES[0], 0, 999)),
        remove(Extents(FILES[0], 1002, TO_END_OF_FILE)),
    ]
    assert activity.is_marked(FILES[0], 1000, 1001) and not activity.is_marked(FILES[0], 999, 999)


def test_a_long_range_used_while_it_leaves_stays() -> None:
    activity = ActivityLog(limit=0)
    activity.mark(FILES[0], 0, 1000)
    activity.commit_began()
    activity.commit_ended()
    selection = activity.victims()
    assert selection is not None
    assert activity.is_marked(FILES[0], 100, 200)
    assert activity.finish_eviction(selection) == [
        remove(Extents(FILES[0], 0, 99)),
        remove(Extents(FILES[0], 201, 1000)),
    ]


def test_what_the_peer_adds_does_not_leave_with_a_flush_that_began_before() -> None:
    activity = ActivityLog(limit=0)
    activity.mark(FILES[0], 0, 100)
    activity.commit_began()
    activity.commit_ended()
    selection = activity.victims()
    assert selection is not None
    peers = Marks()
    peers.apply(add(Extents(FILES[0], 90, 150)))
    assert activity.union(peers) == [add(Extents(FILES[0], 90, 150))]
    activity.commit_began()
    activity.commit_ended()
    assert activity.finish_eviction(selection) == [remove(Extents(FILES[0], 0, 89))]


def test_files_without_marks_are_forgotten_when_nobody_has_them_open() -> None:
    activity, table = marked(*range(8))
    activity.finish_eviction(activity.select([Extents(FILES[0], 0, 10)]))
    assert not table
    assert activity.marks_of(FILES[0]).extents is table, "still open"
    activity.release(FILES[0])
    assert activity.marks_of(FILES[0]).extents is not table


def test_two_commits_at_once_are_a_bug() -> None:
    activity = ActivityLog()
    activity.mark(FILES[0], 1, 1)
    activity.commit_began()
    with pytest.raises(AssertionError):
        activity.commit_began()
