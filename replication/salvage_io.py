"""The command `salvage`: what a copy that was given up after a split brain had of its own is saved, before a target
overwrites it.

The file gets its name when it is whole and on disk, so it can be interrupted at any time and begun again. Nothing of
the copy is changed; no mirror process may run on it.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import IO

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.record import Record
from hotpair.replication import keeper_io, layout_io, linux_io, own_attributes_io
from hotpair.replication.copy_identity_io import claim_copy
from hotpair.replication.dirty_log import Marks
from hotpair.replication.errors import BadConfiguration, MirrorError
from hotpair.replication.limits import SALVAGE_CHUNK, SALVAGE_SPARE
from hotpair.replication.own_log_io import read_own_log
from hotpair.replication.process_io import lock_state
from hotpair.replication.salvage import MAGIC, Index, Piece, Saved, encode_end, is_given_up, ranges_to_save
from hotpair.replication.state_files_io import flush_directory, open_private
from hotpair.replication.unsalvage_io import is_whole
from hotpair.replication.walk_io import all_but_directories


class SalvageFailed(MirrorError):
    """There is no salvage file; the copy is as it was."""


def path_of(folder: str, generation: bytes) -> str:
    """Where the salvage file of a generation is, or would be."""
    return os.path.join(folder, f"salvage-{generation.hex()}")


@dataclass(frozen=True)
class Planned:
    """A file that is to be saved, and how it is found again."""

    handle: bytes
    saved: Saved


class Salvage:
    """One run. ``step`` is called with a label before each change, so that a test can stop there.

    ``spare``: bytes that are left free on the disk of the salvage file.
    """

    def __init__(
        self,
        directory: bytes,
        state: str,
        generation: bytes,
        folder: str | None = None,
        step: Callable[[str], None] = lambda _: None,
        spare: int = SALVAGE_SPARE,
    ) -> None:
        self._directory = directory
        self._state = state
        self._generation = generation
        self._folder = folder if folder is not None else state
        self._step = step
        self._spare = spare

    def run(self) -> list[str]:
        """Save it, unless that was done before; what to tell the user. Raises BadConfiguration, SalvageFailed."""
        if not os.path.isdir(self._state):
            raise BadConfiguration(f"--state {self._state}: there is none: give the state directory of this copy")
        path = path_of(self._folder, self._generation)
        lock_fd = lock_state(self._state)
        try:
            record = self._load_record()
            if is_whole(path, self._generation):
                return [f"salvaged before: {path}"]
            keeper_io.take_away(self._state, self._directory)  # of a source that was killed here
            root_fd = layout_io.open_data(self._directory, record.root)
            try:
                claim_copy(root_fd, self._directory, record)
                try:
                    index = self._save(root_fd, record, path)
                except OSError as error:
                    raise SalvageFailed(f"{path}: {error.strerror}: what this copy has is not saved") from error
            finally:
                os.close(root_fd)
        finally:
            os.close(lock_fd)
        return [f"salvaged: {path}", f"{len(index.files)} files, of {len(index.missing)} more nothing is left"]

    def _load_record(self) -> Record:
        try:
            record = record_io.load(os.path.join(self._state, "record"))
        except (records.RecordDamaged, records.RecordVersion) as error:
            raise BadConfiguration(str(error)) from error
        if record is None or not is_given_up(record):
            raise BadConfiguration("this copy was not given up after a split brain: there is nothing to salvage")
        if record.generation != self._generation:
            raise BadConfiguration(
                f"--generation {self._generation.hex()}: the copy that was given up has {record.generation.hex()}"
            )
        return record

    def _save(self, root_fd: int, record: Record, path: str) -> Index:
        marks, shift = read_own_log(self._state, record)
        planned = list(plan(root_fd, marks, shift))
        named = set(marks.files) if marks is not None else set()
        missing = tuple(sorted(named - {one.saved.identity for one in planned}))
        index = Index(self._generation, record.copy or b"", 1 << shift, marks is None, (), missing)
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        temporary = path + ".new"
        if os.path.exists(temporary):
            self._step("remove what was interrupted")
            os.unlink(temporary)
        self._check_room(planned)
        self._step("create")
        try:
            with open(temporary, "xb", opener=open_private) as file:
                whole = self._write(file, root_fd, planned, index)
        except OSError as error:
            os.unlink(temporary)  # the state directory has need of the room
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._no_room(planned) from error
            raise
        self._step("rename")
        os.rename(temporary, path)
        self._step("flush the directory")
        flush_directory(self._folder)
        return whole

    def _write(self, file: IO[bytes], root_fd: int, planned: list[Planned], index: Index) -> Index:
        file.write(MAGIC)
        position = len(MAGIC)
        files = []
        for one in planned:
            self._step("write a file")
            pieces, position = _copy(file, root_fd, one, position)
            files.append(replace(one.saved, pieces=pieces))
        whole = replace(index, files=tuple(files))
        self._step("write the index")
        file.write(encode_end(whole, position))
        file.flush()
        self._step("flush")
        os.fsync(file.fileno())
        return whole

    def _check_room(self, planned: list[Planned]) -> None:
        if self._free() < bytes_of(planned) + self._spare:
            raise self._no_room(planned)

    def _free(self) -> int:
        room = os.statvfs(self._folder)
        return room.f_bavail * room.f_frsize

    def _no_room(self, planned: list[Planned]) -> SalvageFailed:
        needed = (bytes_of(planned) + self._spare >> 20) + 1
        return SalvageFailed(
            f"{self._folder} has {self._free() >> 20} MiB free, and {needed} MiB are needed to save what this copy has "
            "of its own: make room there, or give another directory with --salvage-dir"
        )


def bytes_of(planned: list[Planned]) -> int:
    """How many bytes stand in the file. Zeros that the copy holds as holes are none."""
    return sum(piece.length for one in planned for piece in one.saved.pieces if piece.position is not None)


def plan(root_fd: int, marks: Marks | None, shift: int) -> Iterator[Planned]:
    """The files that the log names (None: all), each once. The positions of their pieces are not known yet."""
    root = os.readlink(b"/proc/self/fd/%d" % root_fd)
    seen: set[bytes] = set()
    for directory_fd, entry in all_but_directories(root_fd):
        if not entry.is_file(follow_symlinks=False):
            continue
        name = os.fsencode(entry.name)
        identity = own_attributes_io.read_at(directory_fd, name, own_attributes_io.IDENTITY) or b""
        if identity in seen or (marks is not None and identity not in marks.files):
            continue
        if identity:
            seen.add(identity)  # by another of its names
        folder = os.readlink(b"/proc/self/fd/%d" % directory_fd).removeprefix(root).lstrip(b"/")
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            size = os.fstat(fd).st_size
            pieces = [
                piece
                for start, end in ranges_to_save(marks, identity, size, shift)
                for piece in _data_and_holes(fd, start, end)
            ]
            handle = linux_io.name_to_handle(fd)
        finally:
            os.close(fd)
        yield Planned(handle, Saved(os.path.join(folder, name), identity, size, tuple(pieces)))


def _data_and_holes(fd: int, start: int, end: int) -> Iterator[Piece]:
    """The pieces of a range: a hole is one without bytes (lseek(2), SEEK_DATA)."""
    while start < end:
        try:
            data = min(os.lseek(fd, start, os.SEEK_DATA), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = end  # nothing but a hole up to the end of the file
        if data > start:
            yield Piece(start, data - start)
        if data < end:
            hole = min(os.lseek(fd, data, os.SEEK_HOLE), end)
            yield Piece(data, hole - data, position=0)
            data = hole
        start = data


def _copy(file: IO[bytes], root_fd: int, one: Planned, position: int) -> tuple[tuple[Piece, ...], int]:
    """The pieces with the positions that they have got, and where the next one goes."""
    fd = linux_io.open_by_handle(root_fd, one.handle, os.O_RDONLY | os.O_CLOEXEC)
    try:
        pieces = []
        for piece in one.saved.pieces:
            if piece.position is None:
                pieces.append(piece)
                continue
            checksum, done = 0, 0
            while done < piece.length:
                data = os.pread(fd, min(SALVAGE_CHUNK, piece.length - done), piece.offset + done)
                if not data:
                    raise SalvageFailed(f"{os.fsdecode(one.saved.path)} was changed while it was saved: begin again")
                checksum = zlib.crc32(data, checksum)
                file.write(data)
                done += len(data)
            pieces.append(Piece(piece.offset, piece.length, position, checksum))
            position += piece.length
    finally:
        os.close(fd)
    return tuple(pieces), position
