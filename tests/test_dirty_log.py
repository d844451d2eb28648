"""The dirty log's form: what was written is read, a torn tail is cut off, nothing else that is wrong is believed."""

from __future__ import annotations

import errno
import os
import zlib
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hotpair.cluster.record import Record, go_alone
from hotpair.replication import dirty_log_io
from hotpair.replication.dirty_log import (
    ADD_EXTENTS,
    FLAG_OFFSET,
    HEADER_BYTES,
    NO_ID,
    RECORD_BYTES,
    RECORDS_OFFSET,
    TO_END_OF_FILE,
    DirtyLogUnusable,
    Extents,
    FileMarks,
    Header,
    LogRecord,
    Marks,
    Metadata,
    Names,
    Recovered,
    add,
    add_range,
    check,
    decode_header,
    encode_batch,
    encode_header,
    everything,
    generation,
    recover,
    remove,
    subtract_range,
)
from hotpair.replication.dirty_log_io import DirtyLog, DirtyLogFailed

ROOT, OLD, NEW, A, B = (letter * 16 for letter in (b"r", b"o", b"n", b"A", b"B"))
HEADER = Header(ROOT, b"nonce" + bytes(11), 5, OLD, NO_ID, "3f0c-boot", 22)
SHIFT = 22
RECORD = Record(
    generation=OLD, last_role="PRIM", in_sync=True, boot="boot", configuration=b"", root=ROOT, log_counter=5
)


def log_of(*batches: list[LogRecord], header: Header = HEADER, space: int = 480) -> bytearray:
    """The bytes of a log with these batches, and zeros behind them."""
    data = bytearray(encode_header(header).ljust(RECORDS_OFFSET, b"\0"))
    for number, batch in enumerate(batches):
        data += encode_batch(batch, number, header.seed)
    return data + bytes(space)


def extent(number: int, identity: bytes = A) -> LogRecord:
    return add(Extents(identity, number, number))


def slot(index: int) -> int:
    return RECORDS_OFFSET + index * RECORD_BYTES


def found(recovered: Recovered) -> list[tuple[bytes, int, int]]:
    return list(recovered.marks)


# ---- sets of marks

numbers = st.integers(0, 120)
changes = st.lists(st.tuples(st.booleans(), numbers, st.integers(0, 60)))


@given(changes)
def test_file_marks_against_a_plain_set(steps: list[tuple[bool, int, int]]) -> None:
    marks, plain = FileMarks(), set[int]()
    for adding, first, length in steps:
        part = range(first, first + length + 1)
        (marks.add if adding else marks.remove)(first, first + length)
        (plain.update if adding else plain.difference_update)(part)
    runs = marks.runs()
    assert [number for first, last in runs for number in range(first, last + 1)] == sorted(plain)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(runs))
    assert bool(marks) == bool(plain)
    for first in range(0, 190, 7):
        for last in (first, first + 1, first + 50):
            assert marks.covers(first, last) == plain.issuperset(range(first, last + 1))


@given(changes)
def test_ranges_against_a_plain_set(steps: list[tuple[bool, int, int]]) -> None:
    ranges, plain = list[tuple[int, int]](), set[int]()
    for adding, first, length in steps:
        (add_range if adding else subtract_range)(ranges, first, first + length)
        (plain.update if adding else plain.difference_update)(range(first, first + length + 1))
    assert {number for first, last in ranges for number in range(first, last + 1)} == plain
    assert ranges == sorted(ranges)


def test_a_terabyte_is_one_range() -> None:
    marks = FileMarks()
    marks.add(0, 2**18)
    marks.add(2**18, TO_END_OF_FILE)
    assert (marks.extents, marks.ranges) == ({}, [(0, TO_END_OF_FILE)])
    marks.remove(5, 5)
    assert marks.ranges == [(0, 4), (6, TO_END_OF_FILE)]


# ---- bytes

identities = st.sampled_from([A, B])
any_marks = st.one_of(
    st.builds(lambda identity, first, length: Extents(identity, first, first + length), identities, numbers, numbers),
    st.builds(lambda identity, first: Extents(identity, first, TO_END_OF_FILE), identities, numbers),
    st.builds(Metadata, identities),
    st.builds(Names, identities),
)
any_records = st.one_of(any_marks.map(add), any_marks.map(remove), st.binary(min_size=16, max_size=16).map(generation))
any_batches = st.lists(st.lists(any_records, min_size=1, max_size=25), max_size=6)


@given(any_batches)
def test_what_was_written_is_read(batches: list[list[LogRecord]]) -> None:
    recovered = recover(bytes(log_of(*batches)))
    expected, path = Marks(), [NO_ID, OLD]
    for record in (record for batch in batches for record in batch):
        expected.apply(record)
        path += [record.identity] * (record == generation(record.identity))
    assert recovered.header == HEADER
    assert found(recovered) == list(expected)
    assert (recovered.marks.metadata, recovered.marks.names) == (expected.metadata, expected.names)
    assert [recovered.previous_generation, recovered.generation] == path[-2:]
    assert recovered.next_batch == len(batches)
    assert recovered.end_offset == recovered.torn_until == slot(sum(map(len, batches)))
    assert not recovered.everything and not recovered.torn


@given(st.lists(any_marks))
def test_a_set_of_marks_becomes_few_records_and_the_same_set(added: list[Extents | Metadata | Names]) -> None:
    marks, again = Marks(), Marks()
    for mark in added:
        marks.apply(add(mark))
    for record in marks.records():
        again.apply(record)
    assert list(again) == list(marks)
    assert (again.metadata, again.names) == (marks.metadata, marks.names)
    assert len(marks.records()) <= len(added)


@settings(max_examples=60)
@given(any_batches.filter(bool), st.data())
def test_a_torn_tail_costs_only_the_last_batch(batches: list[list[LogRecord]], data: st.DataObject) -> None:
    """Any part of the last batch may have arrived, in pieces of any size: never an error, nothing before it lost."""
    whole = bytes(log_of(*batches))
    without = bytes(log_of(*batches[:-1]).ljust(len(whole), b"\0"))
    start, end = slot(sum(map(len, batches[:-1]))), len(whole) - 480
    torn = bytearray(without)
    for first, last in data.draw(st.lists(st.tuples(st.integers(start, end), st.integers(start, end)), max_size=4)):
        torn[first:last] = whole[first:last]
    recovered, before = recover(bytes(torn)), recover(without)
    if recovered.next_batch == len(batches):
        assert found(recovered) == found(recover(whole)), "all of it is there"
        return
    assert recovered.end_offset == before.end_offset == start
    assert recovered.next_batch == len(batches) - 1
    assert recovered.generation == before.generation, "a generation counts with its whole batch only"
    kept = Marks()
    for record in before.marks.records() + recovered.torn:
        kept.apply(record)
    assert list(kept) == found(recovered), "no removal of it counts, its marks may"
    assert any(torn[recovered.torn_until :]) is False


@settings(max_examples=60)
@given(any_batches.filter(lambda batches: len(batches) > 1), st.data())
def test_damage_before_the_last_batch_is_never_believed(batches: list[list[LogRecord]], data: st.DataObject) -> None:
    damaged = log_of(*batches)
    position = data.draw(st.integers(RECORDS_OFFSET, slot(sum(map(len, batches[:-1]))) - 1))
    damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DirtyLogUnusable, match="is damaged"):
        recover(bytes(damaged))


def test_a_batch_is_complete_only_with_all_its_records_in_order() -> None:
    """Two batches of one number, the second written over the first: neither is whole."""
    data = log_of([extent(1), remove(Extents(A, 1, 1)), extent(3)])
    data[slot(1) : slot(2)] = encode_batch([extent(9)], 0, HEADER.seed)
    recovered = recover(bytes(data))
    assert recovered.next_batch == 0 and len(recovered.torn) == 3


def test_every_bit_flip_in_the_header_is_noticed() -> None:
    data = log_of([extent(1)])
    for position in range(HEADER_BYTES):
        for bit in range(8) if position < 256 or position > HEADER_BYTES - 8 else [position % 8]:
            data[position] ^= 1 << bit
            with pytest.raises(DirtyLogUnusable):
                recover(bytes(data))
            data[position] ^= 1 << bit
    assert found(recover(bytes(data))) == [(A, 1, 1)]


def test_every_truncation_of_the_blocks_before_the_records_is_noticed() -> None:
    data = bytes(log_of([extent(1)]))
    for length in (0, 1, 7, 100, HEADER_BYTES - 1, HEADER_BYTES, RECORDS_OFFSET - 1):
        with pytest.raises(DirtyLogUnusable):
            recover(data[:length])
    for length in range(RECORDS_OFFSET, len(data), 5):
        assert found(recover(data[:length])) == ([(A, 1, 1)] if length >= slot(1) else [])


def test_another_version_says_so() -> None:
    block = bytearray(encode_header(HEADER))
    block[8] = 2
    block[-4:] = zlib.crc32(block[:-4]).to_bytes(4, "little")
    with pytest.raises(DirtyLogUnusable, match=r"version 2.*whole module is compared"):
        decode_header(bytes(block))


def test_records_of_an_earlier_use_of_the_blocks_do_not_count() -> None:
    earlier = replace(HEADER, nonce=b"another" + bytes(9))
    stale = encode_batch([extent(8)], 1, earlier.seed)
    recovered = recover(bytes(log_of([extent(1)], space=0) + stale))
    assert found(recovered) == [(A, 1, 1)]


def test_zeros_are_no_record_whatever_the_nonce() -> None:
    """Nonces exist for which the checksum of a slot of zeros is zero."""
    nonce = bytes.fromhex("00000000000000000000000012b0df45")
    assert zlib.crc32(bytes(RECORD_BYTES - 4), zlib.crc32(nonce)) == 0
    recovered = recover(bytes(log_of(header=replace(HEADER, nonce=nonce))))
    assert recovered.next_batch == 0 and not found(recovered)


def test_the_marks_that_a_log_was_created_with_are_never_a_torn_tail() -> None:
    header = replace(HEADER, initial_records=3)
    data = log_of([extent(1), extent(2), extent(3)], header=header)
    assert len(recover(bytes(data)).marks.files[A].extents) == 3
    for damaged in (slot(0), slot(1) + 20, slot(3) - 1):
        copy = bytearray(data)
        copy[damaged] ^= 1
        with pytest.raises(DirtyLogUnusable, match="3 marks it was created with"):
            recover(bytes(copy))
    with pytest.raises(DirtyLogUnusable, match="3 marks it was created with"):
        recover(bytes(log_of([extent(1), extent(2)], header=header)))


def test_everything_by_record_and_by_flag() -> None:
    assert recover(bytes(log_of([everything()]))).everything
    for value in (1, 0x80, 0xFF):
        data = log_of([extent(1)])
        data[FLAG_OFFSET] = value
        assert recover(bytes(data)).everything
    torn = log_of([everything(), extent(1)])
    torn[slot(1)] ^= 1
    assert recover(bytes(torn)).everything, "too much is allowed"


def test_a_record_of_an_unknown_kind_is_not_skipped() -> None:
    with pytest.raises(DirtyLogUnusable, match="makes no sense"):
        recover(bytes(log_of([LogRecord(99, A)])))
    with pytest.raises(DirtyLogUnusable, match="makes no sense"):
        recover(bytes(log_of([LogRecord(ADD_EXTENTS, A, 5, 4)])))


# ---- log and record


@pytest.mark.parametrize(
    ("header", "fields", "reason"),
    [
        ({}, {}, None),
        ({"counter": 6}, {}, None),
        ({"counter": 7}, {}, "record .5. is older than the log"),
        ({"counter": 4}, {}, "older .counter 4. than the record"),
        ({"root": A}, {}, "another directory"),
        ({"extent_shift": 23}, {}, "extents are"),
        ({"generation": NEW, "previous_generation": OLD}, {}, None),
        ({"generation": NEW}, {}, "another generation"),
        ({"generation": OLD, "previous_generation": A}, {"generation": NEW}, "another generation"),
    ],
)
def test_log_and_record_belong_together(
    header: dict[str, object], fields: dict[str, object], reason: str | None
) -> None:
    recovered = recover(bytes(log_of(header=replace(HEADER, **header))))  # type: ignore[arg-type]
    record = replace(RECORD, **fields)  # type: ignore[arg-type]
    if reason is None:
        check(recovered, record, SHIFT)
        return
    with pytest.raises(DirtyLogUnusable, match=reason):
        check(recovered, record, SHIFT)


def test_a_log_may_be_one_generation_ahead_and_not_two() -> None:
    one = recover(bytes(log_of([generation(NEW)])))
    check(one, RECORD, SHIFT)
    check(one, replace(RECORD, generation=NEW), SHIFT)
    with pytest.raises(DirtyLogUnusable):
        check(recover(bytes(log_of([generation(NEW)], [generation(A)]))), RECORD, SHIFT)


# ---- the writer, on a real file system


def new_log(path: str, **options: object) -> DirtyLog:
    standard = {"root": ROOT, "generation": OLD, "boot": "boot", "extent_shift": SHIFT, "counter": 5}
    log = DirtyLog.create(path, **standard | options)  # type: ignore[arg-type]
    log.confirm_record(log.counter)
    return log


def reopened(path: str, record: Record = RECORD) -> Recovered:
    log, recovered = DirtyLog.open(path, record, extent_shift=SHIFT)
    log.close()
    return recovered


def test_commit_in_two_halves(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    log = new_log(path)
    assert log.begin_commit() is None, "nothing is staged"
    log.stage(extent(1))
    fd = log.begin_commit()
    assert fd is not None
    log.stage(extent(2))
    assert log.begin_commit() is None, "the one before is in flight"
    os.fdatasync(fd)
    log.end_commit(0)
    log.commit_now()
    log.close()
    assert found(reopened(path)) == [(A, 1, 2)]
    assert os.listdir(tmp_path) == ["log"]


def test_a_failed_flush_is_final(tmp_path: Path) -> None:
    log = new_log(str(tmp_path / "log"))
    log.stage(extent(1))
    log.begin_commit()
    with pytest.raises(DirtyLogFailed, match="replace it") as caught:
        log.end_commit(errno.EIO)
    assert caught.value.fatal and caught.value.errno == errno.EIO
    for attempt in (log.begin_commit, log.commit_now, lambda: log.stage(extent(2)), lambda: log.compact(Marks())):
        with pytest.raises(DirtyLogFailed):
            attempt()
    assert not log.should_compact()
    log.set_everything()
    assert reopened(log.path).everything


def test_it_grows_in_steps(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    log = new_log(path, step=16384)
    sizes = set()
    for number in range(400):
        log.stage(extent(number))
        log.commit_now()
        sizes.add(os.path.getsize(path))
    assert sizes == {16384, 32768}
    assert found(reopened(path)) == [(A, 0, 399)]


def test_a_log_has_a_largest_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty_log_io, "LARGEST_LOG_BYTES", 10_000)
    log = new_log(str(tmp_path / "log"), step=4096)
    for number in range(100):
        log.stage(extent(number))
    with pytest.raises(DirtyLogFailed) as caught:
        log.commit_now()
    assert caught.value.errno == errno.EFBIG
    log.set_everything()


def test_compaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dirty_log_io, "COMPACTED_GARBAGE_RECORDS", 20)
    path = str(tmp_path / "log")
    log = new_log(path)
    marks = Marks()
    for number in range(10):
        log.stage(extent(number))
        log.stage(remove(Extents(A, number, number)))
    log.stage(extent(50))
    log.stage(generation(NEW))
    log.commit_now()
    assert not log.should_compact()
    log.stage(remove(Extents(A, 77, 77)))
    log.commit_now()
    assert log.should_compact()
    marks.apply(extent(50))
    marks.apply(extent(60))
    log.stage(extent(60))
    log.compact(marks)
    assert (log.counter, log.generation) == (6, NEW)
    assert not log.should_compact()
    with pytest.raises(AssertionError, match="the record does not have"):
        log.compact(marks)
    log.stage(extent(70))
    log.commit_now()
    assert found(reopened(path)) == [(A, 50, 50), (A, 60, 60), (A, 70, 70)], "its record is still one behind"
    behind, _ = DirtyLog.open(path, RECORD, extent_shift=SHIFT)
    with pytest.raises(AssertionError, match="the record does not have"):
        behind.compact(marks)
    log.confirm_record(6)
    log.compact(marks)
    with pytest.raises(DirtyLogUnusable):
        reopened(path)
    assert os.listdir(tmp_path) == ["log"]


def test_damage_to_what_a_log_began_with_is_not_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "log"
    marks = Marks()
    marks.apply(extent(1))
    marks.apply(extent(5))
    new_log(str(path), marks=marks).close()
    assert found(reopened(str(path))) == [(A, 1, 1), (A, 5, 5)]
    damaged = bytearray(path.read_bytes())
    damaged[slot(1)] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(DirtyLogUnusable, match="2 marks it was created with"):
        reopened(str(path))


def test_everything_survives_compaction_until_it_is_cleared(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    log = new_log(path, is_everything=True)
    log.compact(Marks())
    assert log.is_everything and reopened(path).everything
    log.confirm_record(6)
    log.compact(Marks(), clear_everything=True)
    assert not log.is_everything
    assert not reopened(path, replace(RECORD, log_counter=6)).everything


def test_going_alone_and_the_crash_before_its_record(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    log = new_log(path)
    alone = go_alone(RECORD, NEW)
    log.stage(generation(alone.generation))
    log.commit_now()
    assert log.generation == NEW
    log, recovered = DirtyLog.open(path, RECORD, extent_shift=SHIFT)
    assert recovered.generation == NEW
    assert log.generation == OLD, "the record decides"
    log.stage(generation(A))
    log.commit_now()
    assert reopened(path, replace(RECORD, generation=A)).generation == A


def test_opening_what_is_not_there_or_not_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with pytest.raises(DirtyLogUnusable, match="there is none"):
        reopened(str(path))
    for content in (b"", b"something else", bytes(20_000)):
        path.write_bytes(content)
        with pytest.raises(DirtyLogUnusable):
            reopened(str(path))


def test_a_torn_tail_is_repaired_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "log"
    torn = log_of([extent(1)], [extent(2), remove(Extents(A, 1, 1)), extent(3)])
    torn[slot(1) + 9] ^= 1
    path.write_bytes(torn)
    log, recovered = DirtyLog.open(str(path), RECORD, extent_shift=SHIFT)
    assert found(recovered) == [(A, 1, 1), (A, 3, 3)]
    again = recover(path.read_bytes())
    assert found(again) == found(recovered) and again.end_offset == again.torn_until and again.next_batch == 2
    log.stage(extent(4))
    log.commit_now()
    assert found(reopened(str(path))) == [(A, 1, 1), (A, 3, 4)]
