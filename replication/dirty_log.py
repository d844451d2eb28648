"""The dirty log: what may differ between the two copies, and its form on disk.

Knows: marks, their bytes, and when a log can be trusted. Must not know: files, clocks, the stream, who writes.
Source of the rules: design/mirror.md, "The dirty log".

    offset 0      header: 4096 bytes, crc32 in its last 4
    offset 4096   the "everything is dirty" flag: one byte in a block of its own, so that setting it can tear nothing
    offset 8192   records of 48 bytes; zeros after the last one

Records are written in batches, and a batch only after the flush of the one before has finished. So a crash leaves
at most one batch incomplete, the last: that is what tells a torn tail (normal) from damage (never trusted).
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hotpair.cluster.record import Record
from hotpair.replication.errors import MirrorError

MAGIC = b"HOTPDLOG"
VERSION = 1
HEADER_BYTES = 4096
FLAG_OFFSET = 4096
RECORDS_OFFSET = 8192
RECORD_BYTES = 48
ID_BYTES = 16
NO_ID = bytes(ID_BYTES)
TO_END_OF_FILE = 2**64 - 1

# A mark of up to this many extents is kept extent by extent: a large write stays on the fast path of later writes.
# A larger one is one range, however long: a discard of a terabyte must cost neither memory nor time.
LARGEST_EXPANDED_EXTENTS = 32

_HEADER = struct.Struct("<8sHBxIQQ16s16s16s16s64s")
_CRC = struct.Struct("<I")
_BODY = struct.Struct("<B3xII16sQQ")  # kind, batch, records that follow in the batch, identity, first, last

Ranges = list[tuple[int, int]]  # inclusive extent numbers: sorted, disjoint, not adjacent


class DirtyLogUnusable(MirrorError):
    """The log cannot be trusted. The caller compares everything and creates a new log."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"dirty log unusable: {reason}; the whole module is compared with the peer")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Extents:
    """Extents `first` to `last` (numbers, inclusive) of a file; `last` = TO_END_OF_FILE means however long it is."""

    identity: bytes
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """Mode, owner, times, size or extended attributes of a file or directory."""

    identity: bytes


@dataclass(frozen=True, slots=True)
class Names:
    """The entries of a directory."""

    identity: bytes


Mark = Extents | Metadata | Names

ADD_EXTENTS, REMOVE_EXTENTS, ADD_METADATA, REMOVE_METADATA, ADD_NAMES, REMOVE_NAMES, GENERATION, EVERYTHING = range(
    1, 9
)


class LogRecord(NamedTuple):
    """One record of the log; `first` and `last` are extent numbers, 0 where the kind has none."""

    kind: int
    identity: bytes
    first: int = 0
    last: int = 0


def add(mark: Mark) -> LogRecord:
    if isinstance(mark, Extents):
        return LogRecord(ADD_EXTENTS, mark.identity, mark.first, mark.last)
    return LogRecord(ADD_METADATA if isinstance(mark, Metadata) else ADD_NAMES, mark.identity)


def remove(mark: Mark) -> LogRecord:
    if isinstance(mark, Extents):
        return LogRecord(REMOVE_EXTENTS, mark.identity, mark.first, mark.last)
    return LogRecord(REMOVE_METADATA if isinstance(mark, Metadata) else REMOVE_NAMES, mark.identity)


def generation(identity: bytes) -> LogRecord:
    """The log's marks belong to this generation from here on."""
    return LogRecord(GENERATION, identity)


def everything() -> LogRecord:
    """All that the module holds may differ. Only a new log (compaction with clear_everything) ends it."""
    return LogRecord(EVERYTHING, NO_ID)


def is_removal(record: LogRecord) -> bool:
    return record.kind in (REMOVE_EXTENTS, REMOVE_METADATA, REMOVE_NAMES)


# ---- sets of marks


def add_range(ranges: Ranges, first: int, last: int) -> None:
    start = end = bisect_left(ranges, first, key=lambda kept: kept[1] + 1)
    while end < len(ranges) and ranges[end][0] <= last + 1:
        first, last = min(first, ranges[end][0]), max(last, ranges[end][1])
        end += 1
    ranges[start:end] = [(first, last)]


def subtract_range(ranges: Ranges, first: int, last: int) -> None:
    start = end = bisect_left(ranges, first, key=lambda kept: kept[1])
    left: Ranges = []
    while end < len(ranges) and ranges[end][0] <= last:
        low, high = ranges[end]
        if low < first:
            left.append((low, first - 1))
        if high > last:
            left.append((last + 1, high))
        end += 1
    ranges[start:end] = left


def overlap(ranges: Ranges, first: int, last: int) -> Ranges:
    """The parts of `ranges` that lie in `first` to `last`."""
    found: Ranges = []
    for low, high in ranges[bisect_left(ranges, first, key=lambda kept: kept[1]) :]:
        if low > last:
            break
        found.append((max(low, first), min(high, last)))
    return found


def merged_extents(extents: Iterable[int]) -> Ranges:
    merged: Ranges = []
    for extent in sorted(extents):
        if merged and merged[-1][1] == extent - 1:
            merged[-1] = (merged[-1][0], extent)
        else:
            merged.append((extent, extent))
    return merged


class FileMarks:
    """The marked extents of one file. The write path uses `extents` directly, which is why it is a bare dict.

    `extents` maps an extent number to the tick of its last use (0 after recovery); `ranges` holds long marks.
    An extent may be in both: the range marks it, the dict says when it was last used.
    """

    __slots__ = ("extents", "ranges")

    def __init__(self) -> None:
        self.extents: dict[int, int] = {}
        self.ranges: Ranges = []

    def __bool__(self) -> bool:
        return bool(self.extents or self.ranges)

    def add(self, first: int, last: int, tick: int = 0) -> None:
        if last - first < LARGEST_EXPANDED_EXTENTS:
            for extent in range(first, last + 1):
                self.extents[extent] = tick
        else:
            add_range(self.ranges, first, last)

    def remove(self, first: int, last: int) -> None:
        for extent in self.extents_in(first, last):
            del self.extents[extent]
        subtract_range(self.ranges, first, last)

    def extents_in(self, first: int, last: int) -> list[int]:
        """The numbers in `extents` from `first` to `last`, at the cost of the smaller of the two."""
        if last - first < len(self.extents):
            return [extent for extent in range(first, last + 1) if extent in self.extents]
        return [extent for extent in self.extents if first <= extent <= last]

    def covers(self, first: int, last: int) -> bool:
        if first == last and first in self.extents:
            return True
        gaps = [(first, last)]
        for low, high in overlap(self.ranges, first, last):
            subtract_range(gaps, low, high)
        return all(
            high - low < len(self.extents) and all(extent in self.extents for extent in range(low, high + 1))
            for low, high in gaps
        )

    def extents_named(self) -> int:
        """How many extents are marked. A mark to the end of the file counts as one: its length is not known here."""
        total = len(self.extents)
        for first, last in self.ranges:
            if last == TO_END_OF_FILE:
                last = first
            marked = range(first, last + 1)
            smaller, larger = (self.extents, marked) if len(self.extents) < len(marked) else (marked, self.extents)
            total += len(marked) - sum(map(larger.__contains__, smaller))
        return total

    def runs(self) -> Ranges:
        """All that is marked, merged."""
        merged = merged_extents(self.extents)
        for first, last in self.ranges:
            add_range(merged, first, last)
        return merged


class Marks:
    """A set of marks: extents by file, metadata by object, names by directory. The latter two map to a tick as well."""

    __slots__ = ("files", "metadata", "names")

    def __init__(self) -> None:
        self.files: dict[bytes, FileMarks] = {}
        self.metadata: dict[bytes, int] = {}
        self.names: dict[bytes, int] = {}

    def __iter__(self) -> Iterator[tuple[bytes, int, int]]:
        """What is to be copied: (identity, first, last), runs merged, in ascending order within a file."""
        for identity, file in self.files.items():
            for first, last in file.runs():
                yield identity, first, last

    def extents_named(self) -> int:
        """How many extents are marked, in all files; see FileMarks."""
        return sum(file.extents_named() for file in self.files.values())

    def covers(self, identity: bytes, first: int, last: int) -> bool:
        file = self.files.get(identity)
        return file is not None and file.covers(first, last)

    def apply(self, record: LogRecord, tick: int = 0) -> None:
        """Carry out one record; GENERATION and EVERYTHING do not concern the marks."""
        kind, identity, first, last = record
        if kind == ADD_EXTENTS:
            file = self.files.get(identity)
            if file is None:
                file = self.files[identity] = FileMarks()
            file.add(first, last, tick)
        elif kind == REMOVE_EXTENTS:
            file = self.files.get(identity)
            if file is not None:
                file.remove(first, last)
                if not file:
                    del self.files[identity]
        elif kind == ADD_METADATA:
            self.metadata[identity] = tick
        elif kind == REMOVE_METADATA:
            self.metadata.pop(identity, None)
        elif kind == ADD_NAMES:
            self.names[identity] = tick
        elif kind == REMOVE_NAMES:
            self.names.pop(identity, None)

    def records(self) -> list[LogRecord]:
        """The fewest records that add all of it."""
        extents = [LogRecord(ADD_EXTENTS, identity, first, last) for identity, first, last in self]
        metadata = [LogRecord(ADD_METADATA, identity) for identity in self.metadata]
        return extents + metadata + [LogRecord(ADD_NAMES, identity) for identity in self.names]


# ---- bytes


@dataclass(frozen=True)
class Header:
    """`counter` grows by one with each new log; `nonce` is random and seeds the checksums, so that bytes left by an
    earlier use of the same blocks never count. `initial_records` (all of batch 0) were durable before the log got its
    name: a fault among them is damage, never a torn tail. Extents are 2**extent_shift bytes."""

    root: bytes
    nonce: bytes
    counter: int
    generation: bytes
    previous_generation: bytes
    boot: str
    extent_shift: int
    initial_records: int = 0

    @property
    def seed(self) -> int:
        return zlib.crc32(self.nonce)


def encode_header(header: Header) -> bytes:
    ids = (header.root, header.nonce, header.generation, header.previous_generation)
    boot = header.boot.encode()
    assert all(len(identity) == ID_BYTES for identity in ids) and len(boot) <= 64, "ids are 16 bytes, boot at most 64"
    counts = (header.extent_shift, 0, header.counter, header.initial_records)
    block = _HEADER.pack(MAGIC, VERSION, *counts, *ids, boot).ljust(HEADER_BYTES - _CRC.size, b"\0")
    return block + _CRC.pack(zlib.crc32(block))


def decode_header(block: bytes) -> Header:
    if len(block) != HEADER_BYTES or block[: len(MAGIC)] != MAGIC:
        raise DirtyLogUnusable("this is not a dirty log, or its beginning is missing")
    if _CRC.unpack(block[-_CRC.size :])[0] != zlib.crc32(block[: -_CRC.size]):
        raise DirtyLogUnusable("the header's checksum is wrong")
    fields = _HEADER.unpack_from(block)
    if fields[1] != VERSION:
        raise DirtyLogUnusable(f"the log has format version {fields[1]}, this program reads {VERSION}")
    _, _, extent_shift, _, counter, initial, root, nonce, generation_, previous, boot = fields
    text = boot.rstrip(b"\0").decode(errors="replace")
    return Header(root, nonce, counter, generation_, previous, text, extent_shift, initial)


def encode_batch(records: Sequence[LogRecord], batch: int, seed: int) -> bytes:
    """All records of one batch, to be written by one call. `batch` counts from 0 within one log."""
    pieces: list[bytes] = []
    following = len(records)
    for kind, identity, first, last in records:
        following -= 1
        body = _BODY.pack(kind, batch, following, identity, first, last)
        pieces += (_CRC.pack(zlib.crc32(body, seed)), body)
    return b"".join(pieces)


class _Stored(NamedTuple):
    batch: int
    following: int
    record: LogRecord


def _decode_record(view: memoryview, offset: int, seed: int) -> _Stored | None:
    """The record at `offset`; None if there is none, or not one of this log."""
    slot = view[offset : offset + RECORD_BYTES]
    if len(slot) < RECORD_BYTES or _CRC.unpack_from(slot)[0] != zlib.crc32(slot[_CRC.size :], seed):
        return None
    kind, batch, following, identity, first, last = _BODY.unpack_from(slot, _CRC.size)
    if kind == 0:  # a slot of zeros, with a nonce for which that happens to be its checksum
        return None
    if kind > EVERYTHING or first > last:
        raise DirtyLogUnusable(f"the record at offset {offset} makes no sense (kind {kind}, {first} to {last})")
    return _Stored(batch, following, LogRecord(kind, identity, first, last))


@dataclass(frozen=True)
class Recovered:
    """What a log says. `end_offset`: where batch `next_batch` goes. Bytes from there to `torn_until` are a torn batch:
    they must be durably zero before anything is written there. `torn` holds the marks found in it, which are in
    `marks` too; they were never reported durable, so dropping them would be right as well (over-marking is)."""

    header: Header
    marks: Marks
    end_offset: int
    torn_until: int
    next_batch: int
    everything: bool
    generation: bytes
    previous_generation: bytes
    removals: int = 0
    torn: list[LogRecord] = field(default_factory=list)


def recover(data: bytes) -> Recovered:
    """Read a whole log. A torn tail is cut off; raises DirtyLogUnusable for everything else that is not right."""
    header = decode_header(data[:HEADER_BYTES])
    if len(data) < RECORDS_OFFSET:
        raise DirtyLogUnusable("the log ends before its first record")
    seed, view = header.seed, memoryview(data)
    written_until = max(len(data.rstrip(b"\0")), RECORDS_OFFSET)
    marks, is_everything = Marks(), data[FLAG_OFFSET] != 0
    current, previous = header.generation, header.previous_generation
    offset, batch, removals = RECORDS_OFFSET, 0, 0
    while (records := _read_batch(view, offset, batch, seed)) is not None:
        if batch == 0 and header.initial_records and len(records) != header.initial_records:
            break
        for record in records:
            marks.apply(record)
            removals += is_removal(record)
            if record.kind == GENERATION:
                current, previous = record.identity, current
            elif record.kind == EVERYTHING:
                is_everything = True
        offset += RECORD_BYTES * len(records)
        batch += 1
    if batch == 0 and header.initial_records:
        raise DirtyLogUnusable(f"the {header.initial_records} marks it was created with are damaged")
    torn: list[LogRecord] = []
    torn_until = offset
    for position in range(offset, written_until, RECORD_BYTES):
        stored = _decode_record(view, position, seed)
        torn_until = position + RECORD_BYTES
        if stored is None:
            continue
        if stored.batch != batch:
            raise DirtyLogUnusable(f"batch {batch} at offset {offset} is damaged, batch {stored.batch} follows it")
        if not is_removal(stored.record) and stored.record.kind != GENERATION:
            torn.append(stored.record)
            marks.apply(stored.record)
            is_everything = is_everything or stored.record.kind == EVERYTHING
    return Recovered(header, marks, offset, torn_until, batch, is_everything, current, previous, removals, torn)


def _read_batch(view: memoryview, offset: int, batch: int, seed: int) -> list[LogRecord] | None:
    """All records of the batch that begins at `offset`; None unless it is complete and has this number."""
    records: list[LogRecord] = []
    expected: int | None = None
    while expected != 0:
        stored = _decode_record(view, offset, seed)
        if stored is None or stored.batch != batch or (expected is not None and stored.following != expected - 1):
            return None
        records.append(stored.record)
        expected = stored.following
        offset += RECORD_BYTES
    return records


def check(recovered: Recovered, record: Record, extent_shift: int) -> None:
    """Do this log and this durable record belong together? Raises DirtyLogUnusable if not.

    The log changes first, the record after it; a crash between the two is normal. So the log's counter may be one
    ahead (compaction), and its generation may be the one that follows the record's (going alone).
    """
    header = recovered.header
    if header.root != record.root:
        raise DirtyLogUnusable("it belongs to another directory (root id differs)")
    if header.extent_shift != extent_shift:
        raise DirtyLogUnusable(f"its extents are 2**{header.extent_shift} bytes, now 2**{extent_shift} are configured")
    if header.counter < record.log_counter:
        raise DirtyLogUnusable(f"it is older (counter {header.counter}) than the record ({record.log_counter})")
    if header.counter > record.log_counter + 1:
        raise DirtyLogUnusable(f"the record ({record.log_counter}) is older than the log (counter {header.counter})")
    if record.generation not in (recovered.generation, recovered.previous_generation):
        raise DirtyLogUnusable("it belongs to another generation of the data")
