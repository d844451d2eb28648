"""A file system in memory that records what was asked of it, and every state a power cut may leave it in.

What a power cut may do, taken as widely as POSIX allows: of what was written to a file since its last fsync any part
may have arrived, in units of a sector, the last one perhaps half; names change in order, and none of the changes since
the directory's last fsync need have arrived. What was flushed is there.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

SECTOR = 512
FEW_FRAGMENTS = 4  # up to this many, every subset of them
FEW_COMBINATIONS = 2000  # of several files' states at one moment; beyond it they vary one at a time

Image = dict[str, bytes]  # what is found after the power cut: path -> content


@dataclass(frozen=True)
class Write:
    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True)
class Resize:
    """Truncated to `size`, or extended to it with zeros if `grow`."""

    inode: int
    size: int
    grow: bool


@dataclass(frozen=True)
class Sync:
    inode: int


@dataclass(frozen=True)
class Create:
    path: str
    inode: int


@dataclass(frozen=True)
class Rename:
    source: str
    destination: str


@dataclass(frozen=True)
class Unlink:
    path: str


@dataclass(frozen=True)
class SyncDirectory:
    pass


@dataclass(frozen=True)
class Note:
    """Not an operation: what the test holds to be true from here on."""

    value: Any


Operation = Write | Resize | Sync | Create | Rename | Unlink | SyncDirectory | Note


@dataclass
class Disk:
    """One directory. `durable` and `names` have arrived; the pending lists may or may not have."""

    durable: dict[int, bytes] = field(default_factory=dict)
    pending: dict[int, list[Write | Resize]] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)
    pending_names: list[Create | Rename | Unlink] = field(default_factory=list)

    @classmethod
    def holding(cls, image: Image) -> Disk:
        numbered = list(enumerate(image.items()))
        return cls({inode: data for inode, (_, data) in numbered}, {}, {path: inode for inode, (path, _) in numbered})

    def apply(self, operation: Operation) -> None:
        if isinstance(operation, Write | Resize):
            self.pending.setdefault(operation.inode, []).append(operation)
        elif isinstance(operation, Sync):
            self.durable[operation.inode] = self.content(operation.inode)
            self.pending.pop(operation.inode, None)
        elif isinstance(operation, Create | Rename | Unlink):
            self.pending_names.append(operation)
        elif isinstance(operation, SyncDirectory):
            self.names = self.live_names()
            self.pending_names = []

    def content(self, inode: int) -> bytes:
        return _applied(self.durable.get(inode, b""), self.pending.get(inode, []))

    def live_names(self, changes: int | None = None) -> dict[str, int]:
        """The names after the first so many pending changes; all of them by default."""
        names = dict(self.names)
        for change in self.pending_names[:changes]:
            if isinstance(change, Create):
                names[change.path] = change.inode
            elif isinstance(change, Rename):
                names[change.destination] = names.pop(change.source)
            else:
                names.pop(change.path, None)
        return names

    def crash_states(self) -> Iterator[Image]:
        """Every state that a power cut at this moment may leave (without repetitions for one set of names)."""
        variants: dict[int, list[bytes]] = {}
        for changes in range(len(self.pending_names) + 1):
            names = self.live_names(changes)
            for inode in names.values():
                if inode not in variants:
                    variants[inode] = _variants(self.durable.get(inode, b""), self.pending.get(inode, []))
            paths = list(names)
            choices = [variants[names[path]] for path in paths]
            size = 1
            for choice in choices:
                size *= len(choice)
            if size <= FEW_COMBINATIONS:
                for contents in product(*choices):
                    yield dict(zip(paths, contents, strict=True))
                continue
            for index, choice in enumerate(choices):
                for others in (0, 1):  # `_variants` begins with nothing arrived, all arrived
                    rest = [other[min(others, len(other) - 1)] for other in choices]
                    for content in choice:
                        yield dict(zip(paths, [*rest[:index], content, *rest[index + 1 :]], strict=True))


def _applied(content: bytes, changes: list[Write | Resize]) -> bytes:
    data = bytearray(content)
    for change in changes:
        if isinstance(change, Write):
            data.extend(bytes(max(0, change.offset - len(data))))
            data[change.offset : change.offset + len(change.data)] = change.data
        elif change.size > len(data):
            data.extend(bytes(change.size - len(data)))
        elif not change.grow:
            del data[change.size :]
    return bytes(data)


def _fragments(changes: list[Write | Resize]) -> list[Write | Resize]:
    """The changes in the units in which they arrive."""
    fragments: list[Write | Resize] = []
    for change in changes:
        if isinstance(change, Resize):
            fragments.append(change)
            continue
        position, end = change.offset, change.offset + len(change.data)
        while position < end:
            until = min(end, (position // SECTOR + 1) * SECTOR)
            piece = change.data[position - change.offset : until - change.offset]
            fragments.append(Write(change.inode, position, piece))
            position = until
    return fragments


def _variants(durable: bytes, changes: list[Write | Resize]) -> list[bytes]:
    """What may be found in one file: first with none of the changes, then with all."""
    fragments = _fragments(changes)
    count = len(fragments)
    every = range(count)
    chosen: list[tuple[int, ...]] = [(), tuple(every)]
    if count <= FEW_FRAGMENTS:
        chosen += [subset for size in range(1, count) for subset in combinations(every, size)]
    else:
        chosen += [(one,) for one in every]
        chosen += [tuple(other for other in every if other != one) for one in every]
        chosen += [tuple(range(size)) for size in every]
    found = [_applied(durable, [fragments[index] for index in subset]) for subset in chosen]
    for index, torn in enumerate(fragments):
        if isinstance(torn, Write):
            half = Write(torn.inode, torn.offset, torn.data[: len(torn.data) // 2])
            found.append(_applied(durable, [*fragments[:index], half]))
    return list(dict.fromkeys(found))


class ProcessDied(Exception):
    """The process was killed before this call."""


class RecordingFiles:
    """Stands in for OsFiles of record_io and dirty_log_io. Paths are those of files in one directory.

    `fail`: the next call with this label raises this errno. `short`: the next pwrite with one of these labels writes
    half. `die_before`: the process is killed there. `skip`: flushes with these labels do nothing and say that all is
    well, for showing that the checks notice.
    """

    def __init__(self, disk: Disk | None = None, skip: frozenset[str] = frozenset()) -> None:
        self.disk = disk or Disk()
        self.first = copy.deepcopy(self.disk)
        self.trace: list[Operation] = []
        self.labels: list[str] = []
        self.skip = skip
        self.fail: dict[str, int] = {}
        self.short: set[str] = set()
        self.die_before: str | None = None
        self._open: dict[int, int | None] = {}  # descriptor -> inode, None for the directory
        self._next = 100

    def note(self, value: Any) -> None:
        self._do(Note(value))

    def process_dies(self) -> None:
        """Its descriptors are closed; the page cache is not affected."""
        self._open.clear()

    @property
    def open_descriptors(self) -> int:
        return len(self._open)

    def open(self, label: str, path: str, flags: int, mode: int) -> int:
        self._called(label)
        inode: int | None = None
        if not flags & os.O_DIRECTORY:
            inode = self.disk.live_names().get(path)
            if inode is None:
                if not flags & os.O_CREAT:
                    raise FileNotFoundError(path)
                inode = self._number()
                self._do(Create(path, inode))
            elif flags & os.O_TRUNC:
                self._do(Resize(inode, 0, False))
        fd = self._number()
        self._open[fd] = inode
        return fd

    def close(self, label: str, fd: int) -> None:
        self._called(label)
        self._open.pop(fd, None)

    def size(self, label: str, fd: int) -> int:
        self._called(label)
        return len(self.disk.content(self._inode(fd)))

    def pread(self, label: str, fd: int, length: int, offset: int) -> bytes:
        self._called(label)
        return self.disk.content(self._inode(fd))[offset : offset + length]

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> int:
        self._called(label)
        if label in self.short:
            self.short.remove(label)
            data = data[: len(data) // 2]
        self._do(Write(self._inode(fd), offset, bytes(data)))
        return len(data)

    def fallocate(self, label: str, fd: int, offset: int, length: int) -> None:
        self._called(label)
        self._do(Resize(self._inode(fd), offset + length, True))

    def fdatasync(self, label: str, fd: int) -> None:
        self.fsync(label, fd)

    def fsync(self, label: str, fd: int) -> None:
        self._called(label)
        if label not in self.skip:
            inode = self._open[fd]
            self._do(SyncDirectory() if inode is None else Sync(inode))

    def rename(self, label: str, source: str, destination: str) -> None:
        self._called(label)
        assert source in self.disk.live_names()
        self._do(Rename(source, destination))

    def unlink(self, label: str, path: str) -> None:
        self._called(label)
        self._do(Unlink(path))

    def _called(self, label: str) -> None:
        self.labels.append(label)
        if label == self.die_before:
            self.die_before = None
            raise ProcessDied(label)
        if label in self.fail:
            code = self.fail.pop(label)
            raise OSError(code, os.strerror(code))

    def _do(self, operation: Operation) -> None:
        self.trace.append(operation)
        self.disk.apply(operation)

    def _inode(self, fd: int) -> int:
        inode = self._open[fd]
        assert inode is not None
        return inode

    def _number(self) -> int:
        self._next += 1
        return self._next


def crash_states(files: RecordingFiles) -> Iterator[tuple[int, Any, Image]]:
    """For every prefix of the trace: its length, the last note in it (None before the first), each possible state."""
    disk, note = copy.deepcopy(files.first), None
    seen: set[tuple[tuple[str, bytes], ...]] = set()
    for length, operation in enumerate(files.trace, 1):
        disk.apply(operation)
        if isinstance(operation, Note):
            note = operation.value
            seen.clear()  # the same state under another promise is another case
        for image in disk.crash_states():
            key = tuple(sorted(image.items()))
            if key not in seen:
                seen.add(key)
                yield length, note, image
