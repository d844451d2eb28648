"""Are two copies of a directory the same, byte for byte? Holes are skipped where both have one."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

CHUNK_BYTES = 4 << 20
# GlusterFS's own book-keeping (hard links to the same data, change indexes): not part of a copy.
IGNORED = {".glusterfs"}


def differences(first: Path, second: Path) -> list[str]:
    """What differs between two directories or two files, in words; empty when nothing does."""
    if first.is_file():
        return _file_differences(first, second)
    names = _names(first)
    found = [f"{name} is in one copy only" for name in sorted(names ^ _names(second))]
    for name in sorted(names & _names(second)):
        found += _file_differences(first / name, second / name)
    return found


def flush(copy: Path, name: str | None = None, forget: bool = False) -> None:
    """Write one file, or every file, of a copy to the disk; with `forget` out of the page cache, too."""
    for file in _files(copy, name):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            if forget:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _files(copy: Path, name: str | None) -> list[Path]:
    if name:
        return [copy / name]
    return [copy / each for each in sorted(_names(copy))] if copy.is_dir() else [copy]


def _names(directory: Path) -> set[str]:
    found = set()
    for folder, folders, files in os.walk(directory):
        folders[:] = [each for each in folders if each not in IGNORED]
        found |= {os.path.relpath(os.path.join(folder, each), directory) for each in files}
    return found


def _file_differences(first: Path, second: Path) -> list[str]:
    with first.open("rb", buffering=0) as one, second.open("rb", buffering=0) as other:
        size, other_size = os.fstat(one.fileno()).st_size, os.fstat(other.fileno()).st_size
        if size != other_size:
            return [f"{first.name}: {size} bytes against {other_size}"]
        for start, end in _union(_data(one.fileno(), size), _data(other.fileno(), size)):
            for offset in range(start, end, CHUNK_BYTES):
                length = min(CHUNK_BYTES, end - offset)
                if os.pread(one.fileno(), length, offset) != os.pread(other.fileno(), length, offset):
                    return [f"{first.name}: different within {length} bytes at {offset}"]
    return []


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The ranges of a file that are not holes, in order."""
    position = 0
    while position < size:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        position = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, position


def _union(first: Iterator[tuple[int, int]], second: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    reached = 0
    for start, end in sorted([*first, *second]):
        if end > reached:
            yield max(start, reached), end
            reached = end
