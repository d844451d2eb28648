"""Record and dirty log after a power cut at any moment of a random story, in every state the disk may be in.

HOTPAIR_CRASH_STORIES=1000 python -m pytest tests/test_crash_states.py runs so many stories instead of a few.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from hotpair.cluster import record_io
from hotpair.cluster.record import Record, RecordDamaged, RecordVersion, go_alone
from hotpair.replication.activity import ActivityLog
from hotpair.replication.dirty_log import (
    ADD_EXTENTS,
    REMOVE_EXTENTS,
    TO_END_OF_FILE,
    DirtyLogUnusable,
    LogRecord,
    Marks,
    generation,
)
from hotpair.replication.dirty_log_io import DirtyLog, DirtyLogFailed
from tests.crash_states import Disk, Image, ProcessDied, RecordingFiles, Resize, Write, crash_states

RECORD, LOG = "state/record", "state/dirty.log"
SHIFT, STEP = 22, 4096
FILES = [bytes([number]) * 16 for number in (1, 2, 3)]
EXTENTS = 48  # looked at in each file: more than the longest mark that is kept extent by extent
STORIES = int(os.environ.get("HOTPAIR_CRASH_STORIES", "8"))

DEATHS = [
    "log.commit.flush",
    "log.new.write",
    "log.new.flush",
    "log.new.rename",
    "log.directory.flush",
    "record.new.write",
    "record.rename",
    "record.directory.flush",
]

Extent = tuple[bytes, int]


@dataclass(frozen=True)
class Promise:
    """What a power cut must not take away, and what it must not add."""

    marked: frozenset[Extent]
    ever_marked: frozenset[Extent]
    records: tuple[Record, ...]
    everything: tuple[bool, ...]


class Violation(Exception):
    pass


class Story:
    """One server's writes, commits, evictions, compactions, deaths, with what is owed to them written into the trace.

    `changed` is the truth: extents changed on this copy and not flushed on both since. `reported` is what the dirty
    log said to be durable. The flags make the program wrong on purpose.
    """

    def __init__(
        self,
        seed: int,
        skip: frozenset[str] = frozenset(),
        removal_before_flush: bool = False,
        record_before_log: bool = False,
        compact_unconfirmed: bool = False,
    ) -> None:
        self.random = random.Random(seed)
        self.files = RecordingFiles(skip=skip)
        self.removal_before_flush = removal_before_flush
        self.record_before_log = record_before_log
        self.compact_unconfirmed = compact_unconfirmed
        self.record = Record(
            generation=self.id(),
            last_role="PRIM",
            in_sync=True,
            boot="boot",
            configuration=b"digest",
            root=self.id(),
            copy=self.id(),
        )
        self.next_record = self.record
        self.reported: set[Extent] = set()
        self.changed: set[Extent] = set()
        self.changed_since_flush: set[Extent] | None = None
        self.ever: set[Extent] = set()
        self.staged: list[LogRecord] = []
        self.waiting: list[LogRecord] = []
        self.everything: tuple[bool, ...] = (False,)
        self.log = DirtyLog.create(
            LOG,
            root=self.record.root,
            generation=self.record.generation,
            boot="boot",
            extent_shift=SHIFT,
            counter=0,
            files=self.files,
            step=STEP,
        )
        record_io.store(RECORD, self.record, self.files)
        self.log.confirm_record(0)
        self.activity = ActivityLog(limit=8)
        self.promise(self.record)

    def id(self) -> bytes:
        return self.random.randbytes(16)

    def promise(self, *records: Record) -> None:
        marked = frozenset(self.reported | self.changed)
        self.files.note(Promise(marked, frozenset(self.ever), records or (self.record,), self.everything))

    def run(self, steps: int = 20) -> RecordingFiles:
        actions = [self.writes, self.writes, self.commit, self.commit, self.evict, self.compact, self.restart]
        actions.append(self.dies_somewhere)
        moment = self.random.randrange(steps)
        for step in range(steps):
            self.random.choice(actions)()
            if step == moment:
                self.goes_alone()
        self.commit()
        if self.random.random() < 0.5:
            self.disk_full()
        return self.files

    # ---- what happens

    def writes(self) -> None:
        for _ in range(self.random.choice((1, 3, 12, 30))):
            first = self.random.randrange(EXTENTS)
            last = first
            kind = self.random.random()
            if kind < 0.03:
                last = TO_END_OF_FILE
            elif kind < 0.06:
                first, last = 2, 2 + self.random.randrange(40, 45)
            elif kind < 0.2:
                last += 1
            self.write(self.random.choice(FILES), first, last)

    def write(self, identity: bytes, first: int, last: int) -> None:
        mark = LogRecord(ADD_EXTENTS, identity, first, last)
        extents = self.activity.marks_of(identity).extents
        if first == last and first in extents:
            extents[first] = self.activity.tick
            self.accept(mark)
        elif self.activity.is_marked(identity, first, last):
            self.accept(mark)
        else:
            self.waiting.append(mark)
            if (record := self.activity.mark(identity, first, last)) is not None:
                self.stage(record)
                self.ever |= covered(record)
                self.promise()

    def accept(self, mark: LogRecord) -> None:
        self.changed |= covered(mark)
        if self.changed_since_flush is not None:
            self.changed_since_flush |= covered(mark)
        self.promise()

    def stage(self, record: LogRecord) -> None:
        self.staged.append(record)
        self.log.stage(record)

    def commit(self) -> None:
        fd = self.log.begin_commit()
        if fd is None:
            return
        self.activity.commit_began()
        batch, self.staged = self.staged, []
        waiters, self.waiting = self.waiting, []
        code = 0
        try:
            self.files.fdatasync("log.commit.flush", fd)
        except OSError as error:
            code = error.errno or errno.EIO
        self.ended(batch, code)
        for mark in waiters:
            self.write(*mark[1:])

    def ended(self, batch: list[LogRecord], code: int) -> None:
        self.log.end_commit(code)
        self.activity.commit_ended()
        for record in batch:
            if record.kind == ADD_EXTENTS:
                self.reported |= covered(record)
            elif record.kind == REMOVE_EXTENTS:
                self.reported -= covered(record)
        self.reported -= set().union(*(covered(later) for later in self.staged if later.kind == REMOVE_EXTENTS))
        self.promise()

    def evict(self) -> None:
        selection = self.activity.victims()
        if selection is None:
            return
        self.changed_since_flush = set()
        if not self.removal_before_flush:
            self.writes()
            if self.random.random() < 0.5:
                self.commit()
        else:
            self.remove(self.activity.finish_eviction(selection))
            self.commit()
        self.changed = self.changed_since_flush  # both copies have flushed what was accepted before
        self.changed_since_flush = None
        if not self.removal_before_flush:
            self.remove(self.activity.finish_eviction(selection))

    def remove(self, records: list[LogRecord]) -> None:
        for record in records:
            self.stage(record)
            self.reported -= covered(record)
        self.promise()

    def compact(self) -> None:
        self.log.compact(self.activity.snapshot())
        if self.compact_unconfirmed:
            self.log.confirm_record(self.log.counter)
            self.log.compact(self.activity.snapshot())
        if self.random.random() < 0.5:
            self.writes()
            self.commit()
        if self.random.random() < 0.1:
            self.restart()
        else:
            self.store(replace(self.record, log_counter=self.log.counter))

    def store(self, record: Record) -> None:
        self.next_record = record
        self.promise(self.record, record)
        record_io.store(RECORD, record, self.files)
        self.record = record
        self.log.confirm_record(record.log_counter)
        self.promise()

    def goes_alone(self) -> None:
        alone = go_alone(self.record, self.id())
        self.activity.freeze()
        self.commit()
        if self.record_before_log:
            self.store(alone)
        self.log.stage(generation(alone.generation))
        if self.staged:  # waiters that were not released wrote again
            self.activity.commit_began()
        batch, self.staged = self.staged, []
        self.log.commit_now()
        if batch:
            self.activity.commit_ended()
        self.reported |= set().union(*(covered(record) for record in batch))
        if self.random.random() < 0.3:
            self.restart()  # before the record: the old generation again
        elif not self.record_before_log:
            self.store(alone)

    def dies_somewhere(self, label: str | None = None) -> None:
        self.files.die_before = label or self.random.choice(DEATHS)
        try:
            self.commit()
            self.compact()
        except ProcessDied:
            pass
        self.restart()

    def restart(self) -> None:
        """The process is killed; the page cache stays, whether flushed or not."""
        self.files.process_dies()
        frozen, self.staged, self.waiting = self.activity.frozen, [], []
        self.files.die_before, self.changed_since_flush = None, None
        loaded = record_io.load(RECORD, self.files)
        assert loaded is not None and loaded in (self.record, self.next_record)
        self.record = loaded
        self.log, recovered = DirtyLog.open(LOG, self.record, extent_shift=SHIFT, files=self.files, step=STEP)
        self.reported = coverage(recovered.marks)
        self.activity = ActivityLog(recovered.marks, limit=8)
        if frozen:
            self.activity.freeze()
        self.promise()
        if self.log.counter != self.record.log_counter:
            self.store(replace(self.record, log_counter=self.log.counter))

    def disk_full(self) -> None:
        self.everything = (False, True)
        self.promise()
        self.log.set_everything()
        self.everything = (True,)
        self.promise()
        self.log.confirm_record(self.record.log_counter)
        self.compact()


def covered(record: LogRecord) -> set[Extent]:
    last = min(record.last, EXTENTS - 1)
    return {(record.identity, extent) for extent in range(record.first, last + 1)}


def coverage(marks: Marks) -> set[Extent]:
    return set().union(*(covered(LogRecord(ADD_EXTENTS, *part)) for part in marks))


def verify(image: Image, promise: Promise) -> RecordingFiles:
    """Start on what the power cut left. Raises Violation."""
    files = RecordingFiles(Disk.holding(image))
    try:
        record = record_io.load(RECORD, files)
    except (RecordDamaged, RecordVersion) as error:
        raise Violation(f"record: {error}") from error
    if record not in promise.records:
        raise Violation("the record is neither the old nor the new one")
    assert record is not None
    try:
        log, recovered = DirtyLog.open(LOG, record, extent_shift=SHIFT, files=files, step=STEP)
    except DirtyLogUnusable as error:
        raise Violation(f"needless full comparison: {error}") from error
    found = coverage(recovered.marks)
    if not promise.marked <= found:
        raise Violation(f"{len(promise.marked - found)} durable marks are missing")
    if not found <= promise.ever_marked:
        raise Violation("marks that nobody made")
    if recovered.everything not in promise.everything:
        raise Violation("the 'everything is dirty' flag is wrong")
    if log.generation != record.generation:
        raise Violation("the log is not of the record's generation after opening it")
    files.process_dies()
    _, again = DirtyLog.open(LOG, record, extent_shift=SHIFT, files=files, step=STEP)
    if coverage(again.marks) != found or again.torn:
        raise Violation("opening it a second time gives something else")
    return files


def states_of(files: RecordingFiles) -> Iterator[tuple[int, Promise, Image]]:
    return ((length, promise, image) for length, promise, image in crash_states(files) if promise is not None)


def enumerate_stories(seeds: range, **flags: object) -> int:
    """The number of states that were verified. Raises Violation with the seed and the moment."""
    states = 0
    for seed in seeds:
        try:
            files = Story(seed, **flags).run()  # type: ignore[arg-type]
        except (DirtyLogUnusable, AssertionError) as error:
            raise Violation(f"story {seed} fails by itself: {error!r}") from error
        for length, promise, image in states_of(files):
            states += 1
            try:
                verify(image, promise)
            except Violation as violation:
                raise Violation(f"story {seed}, after operation {length}: {violation}") from violation
    return states


def test_nothing_is_lost_whenever_the_power_fails(capsys: pytest.CaptureFixture[str]) -> None:
    states = enumerate_stories(range(STORIES))
    with capsys.disabled():
        print(f"\n{states} crash states of {STORIES} stories")
    assert states > 50 * STORIES


@pytest.mark.parametrize("label", DEATHS)
def test_what_a_killed_process_left_in_the_page_cache_is_not_relied_on(label: str) -> None:
    for seed in range(3):
        story = Story(seed)
        story.writes()
        story.commit()
        story.writes()
        story.dies_somewhere(label)
        story.writes()
        story.commit()
        for _, promise, image in states_of(story.files):
            verify(image, promise)


def test_a_record_that_was_loaded_stays() -> None:
    story = Story(1)
    story.files.die_before = "record.directory.flush"
    alone = go_alone(story.record, story.id())
    with pytest.raises(ProcessDied):
        record_io.store(RECORD, alone, story.files)
    assert len({image[RECORD] for image in story.files.disk.crash_states()}) == 2
    assert record_io.load(RECORD, story.files) == alone
    assert len({image[RECORD] for image in story.files.disk.crash_states()}) == 1


def test_a_log_that_was_opened_stays() -> None:
    story = Story(1)
    story.files.die_before = "log.directory.flush"
    with pytest.raises(ProcessDied):
        story.log.compact(Marks())
    assert len({image[LOG] for image in story.files.disk.crash_states()}) == 2
    DirtyLog.open(LOG, story.record, extent_shift=SHIFT, files=story.files)
    assert len({image[LOG] for image in story.files.disk.crash_states()}) == 1


def enumerate_starts(seeds: range, skip: frozenset[str] = frozenset()) -> int:
    """A second power cut while the program starts after the first one and makes its first mark."""
    states = 0
    first_mark = LogRecord(ADD_EXTENTS, FILES[0], 0, 0)
    for seed in seeds:
        chosen = random.Random(seed)
        for _, promise, image in states_of(Story(seed).run(steps=10)):
            torn = "log.repair.write" in verify(image, promise).labels
            if not torn and chosen.random() < 0.95:
                continue
            files = RecordingFiles(Disk.holding(image), skip)
            record = record_io.load(RECORD, files)
            assert record is not None
            log, _ = DirtyLog.open(LOG, record, extent_shift=SHIFT, files=files, step=STEP)
            log.stage(first_mark)
            log.commit_now()
            later = replace(promise, ever_marked=promise.ever_marked | covered(first_mark))
            for _, _, second in crash_states(files):
                verify(second, later)
                states += 1
    return states


def test_nothing_is_lost_when_the_power_fails_again_while_starting(capsys: pytest.CaptureFixture[str]) -> None:
    states = enumerate_starts(range(1000, 1000 + STORIES))
    with capsys.disabled():
        print(f"\n{states} crash states while starting after a crash")
    assert states > 50 * STORIES


def test_a_broken_repair_is_noticed() -> None:
    with pytest.raises(Violation) as caught:
        enumerate_starts(range(40), frozenset({"log.repair.flush"}))
    print(caught.value)


@pytest.mark.parametrize(
    "flags",
    [
        {"skip": frozenset({"record.new.flush"})},
        {"skip": frozenset({"record.directory.flush"})},
        {"skip": frozenset({"log.commit.flush"})},
        {"skip": frozenset({"log.new.flush"})},
        {"skip": frozenset({"log.directory.flush"})},
        {"skip": frozenset({"log.open.flush"})},
        {"skip": frozenset({"log.flag.flush"})},
        {"removal_before_flush": True},
        {"record_before_log": True},
        {"compact_unconfirmed": True},
    ],
    ids=str,
)
def test_a_broken_program_is_noticed(flags: dict[str, object]) -> None:
    with pytest.raises(Violation) as caught:
        enumerate_stories(range(40), **flags)
    print(caught.value)


def test_each_failing_call_becomes_a_typed_error_and_loses_nothing() -> None:
    labels = set(Story(1).run().labels) | {"log.new.unlink"}
    assert len(labels) > 20
    for label in sorted(labels - {"log.close", "record.close", "record.new.close", "record.directory.close"}):
        for code in (errno.ENOSPC, errno.EIO):
            _tell_story_with_failure(label, code)


def _tell_story_with_failure(label: str, code: int) -> None:
    story = Story(1)
    story.files.fail[label] = code
    try:
        story.run()
    except (DirtyLogFailed, DirtyLogUnusable, RecordDamaged, record_io.RecordNotStored) as error:
        assert os.strerror(code) in str(error)
        owed = story.files.trace
        promise = next(operation.value for operation in reversed(owed) if hasattr(operation, "value"))
        for image in story.files.disk.crash_states():
            verify(image, promise)


def test_a_short_write_is_a_failure() -> None:
    story = Story(2)
    story.writes()
    story.files.short.add("log.commit.write")
    with pytest.raises(DirtyLogFailed, match="free space"):
        story.log.begin_commit()
    with pytest.raises(DirtyLogFailed):
        story.log.begin_commit()
    story.log.set_everything()
    for image in story.files.disk.crash_states():
        files = RecordingFiles(Disk.holding(image))
        _, recovered = DirtyLog.open(LOG, story.record, extent_shift=SHIFT, files=files)
        assert recovered.everything


def test_a_full_disk_does_not_end_a_log_that_only_could_not_be_compacted() -> None:
    story = Story(3)
    before = story.files.open_descriptors
    story.files.fail["log.new.allocate"] = errno.ENOSPC
    with pytest.raises(DirtyLogFailed) as caught:
        story.log.compact(story.activity.snapshot())
    assert not caught.value.fatal
    assert story.files.open_descriptors == before
    assert LOG + ".new" not in story.files.disk.live_names()
    story.writes()
    story.commit()


def test_the_enumerator_knows_what_a_power_cut_may_do() -> None:
    files = RecordingFiles(Disk.holding({"a": b"old!" * 256}))
    fd = files.open("open", "a", os.O_RDWR, 0)
    files.pwrite("write", fd, b"N" * 1024, 0)
    found = {image["a"] for image in files.disk.crash_states()}
    old, new = b"old!" * 128, b"N" * 512
    torn = b"N" * 256 + b"old!" * 64
    assert found == {old + old, new + new, new + old, old + new, torn + old, new + torn}
    files.fsync("flush", fd)
    assert {image["a"] for image in files.disk.crash_states()} == {new + new}
    files.rename("rename", "a", "b")
    assert [set(image) for image in files.disk.crash_states()] == [{"a"}, {"b"}]
    assert files.trace[0] == Write(files.disk.names["a"], 0, b"N" * 1024)
    files.fallocate("allocate", fd, 1024, 512)
    assert isinstance(files.trace[-1], Resize)
    assert {len(image.get("a", image.get("b", b""))) for image in files.disk.crash_states()} == {1024, 1536}
