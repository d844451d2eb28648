"""The dirty log on disk: its only writer.

For one event-loop thread. A commit is two halves, so that the loop never waits for a flush: `begin_commit` writes the
batch and names the descriptor whose fdatasync the caller runs (kernel AIO), `end_commit` takes its result. `create`,
`open`, `commit_now`, `compact` and `set_everything` do wait. Every call to the operating system goes through `files`
with a label, so that a test can fail exactly that one.

Starting: load the record, `open`; store the record with `log.counter` and call `confirm_record`; `compact` with all
marks and store the record again. (That gives each run a log file of its own: one restored from a backup is noticed,
and pages that the disk never took after a failed flush are not believed.)

Going alone: stage `generation(new)`, `commit_now`, then store the record. In that order `check` accepts any crash.
"""

from __future__ import annotations

import errno
import os
import secrets
from dataclasses import replace
from typing import NoReturn, Protocol

from hotpair.cluster.record import Record
from hotpair.replication.dirty_log import (
    EVERYTHING,
    FLAG_OFFSET,
    GENERATION,
    ID_BYTES,
    NO_ID,
    RECORD_BYTES,
    RECORDS_OFFSET,
    DirtyLogUnusable,
    Header,
    LogRecord,
    Marks,
    Recovered,
    check,
    encode_batch,
    encode_header,
    generation,
    is_removal,
    recover,
)
from hotpair.replication.errors import MirrorError

ALLOCATION_STEP_BYTES = 1 << 20
# Space is filled with zeros when it is allocated. Then a commit changes no metadata and its flush is one disk write. In
# space that is only reserved, each flush would commit the file system's journal, and with it (ext4, data=ordered) all
# that the module's files have been allocated meanwhile.
ZEROS_BYTES = 256 << 10
LARGEST_LOG_BYTES = 256 << 20  # 5.5 million marks, read in some 10 s at start; beyond it everything is dirty
COMPACTED_GARBAGE_RECORDS = 65536  # 3 MiB: below that a compaction costs more than it saves


class DirtyLogFailed(MirrorError):
    """The log could not be written or flushed. `fatal`: nothing can be staged or committed any more.

    After ENOSPC or EDQUOT the caller sets the "everything is dirty" flag and may go on; after any other errno (EIO)
    the local disk has failed.
    """

    def __init__(self, path: str, doing: str, code: int, fatal: bool) -> None:
        full = code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        todo = "free space on the state disk" if full else "the state disk has failed: replace it"
        super().__init__(f"dirty log {path}: {doing}: {os.strerror(code)}; {todo}")
        self.errno = code
        self.fatal = fatal


class Files(Protocol):
    """The calls used here, as in `os`, each with a label first that says what it is for."""

    def open(self, label: str, path: str, flags: int, mode: int) -> int: ...
    def close(self, label: str, fd: int) -> None: ...
    def size(self, label: str, fd: int) -> int: ...
    def pread(self, label: str, fd: int, length: int, offset: int) -> bytes: ...
    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> int: ...
    def fallocate(self, label: str, fd: int, offset: int, length: int) -> None: ...
    def fdatasync(self, label: str, fd: int) -> None: ...
    def fsync(self, label: str, fd: int) -> None: ...
    def rename(self, label: str, source: str, destination: str) -> None: ...
    def unlink(self, label: str, path: str) -> None: ...


class OsFiles:
    """The real ones. Each raises OSError."""

    def open(self, label: str, path: str, flags: int, mode: int) -> int:
        return os.open(path, flags, mode)

    def close(self, label: str, fd: int) -> None:
        os.close(fd)

    def size(self, label: str, fd: int) -> int:
        return os.fstat(fd).st_size

    def pread(self, label: str, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def pwrite(self, label: str, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def fallocate(self, label: str, fd: int, offset: int, length: int) -> None:
        os.posix_fallocate(fd, offset, length)  # ENOSPC comes here, before a byte is written
        zeros = bytes(min(length, ZEROS_BYTES))
        for start in range(offset, offset + length, ZEROS_BYTES):
            os.pwrite(fd, zeros[: offset + length - start], start)

    def fdatasync(self, label: str, fd: int) -> None:
        os.fdatasync(fd)

    def fsync(self, label: str, fd: int) -> None:
        os.fsync(fd)

    def rename(self, label: str, source: str, destination: str) -> None:
        os.rename(source, destination)

    def unlink(self, label: str, path: str) -> None:
        os.unlink(path)


class DirtyLog:
    """See the module's text. Made by `create` or `open`, never directly."""

    def __init__(self, path: str, files: Files, step: int) -> None:
        self.path = path
        self.failure: DirtyLogFailed | None = None
        self.is_everything = False
        self._files = files
        self._step = step
        self._staged: list[LogRecord] = []
        self._in_flight: list[LogRecord] | None = None

    def _adopt(self, fd: int, recovered: Recovered, allocated: int, confirmed: bool) -> None:
        """Write to this file from now on."""
        self.is_everything = recovered.everything
        self._fd = fd
        self._header = recovered.header
        self._seed = recovered.header.seed
        self._generations = (recovered.generation, recovered.previous_generation)
        self._end = recovered.end_offset
        self._allocated = allocated
        self._next_batch = recovered.next_batch
        self._removals = recovered.removals
        self._compact_above = COMPACTED_GARBAGE_RECORDS
        self._confirmed = confirmed

    @classmethod
    def create(
        cls,
        path: str,
        *,
        root: bytes,
        generation: bytes,
        boot: str,
        extent_shift: int,
        counter: int,
        marks: Marks | None = None,
        is_everything: bool = False,
        files: Files | None = None,
        step: int = ALLOCATION_STEP_BYTES,
    ) -> DirtyLog:
        """A new log in place of whatever is at `path`, durable on return. `counter`: the record's `log_counter` + 1
        (any number if there is no record yet); the record is stored afterwards. Raises DirtyLogFailed."""
        files = files or OsFiles()
        header = Header(root, NO_ID, counter, generation, NO_ID, boot, extent_shift)
        log = cls(path, files, step)
        try:
            new = _write_new(path, files, step, header, marks or Marks(), is_everything)
            log._adopt(*new, confirmed=False)
            _give_name(path, files)
        except OSError as error:
            raise DirtyLogFailed(path, "creating it", error.errno or errno.EIO, True) from error
        return log

    @classmethod
    def open(
        cls,
        path: str,
        record: Record,
        *,
        extent_shift: int,
        files: Files | None = None,
        step: int = ALLOCATION_STEP_BYTES,
    ) -> tuple[DirtyLog, Recovered]:
        """Recover the log that belongs to `record`, and make durable what is returned: the process before may have
        died between writing and flushing. Raises DirtyLogUnusable (compare everything, `create`), DirtyLogFailed."""
        files = files or OsFiles()
        try:
            fd = files.open("log.open", path, os.O_RDWR | os.O_CLOEXEC, 0)
        except FileNotFoundError as error:
            raise DirtyLogUnusable("there is none") from error
        except OSError as error:
            raise DirtyLogUnusable(f"it cannot be opened ({error.strerror})") from error
        try:
            data = _read_all(fd, files)
            recovered = recover(data)
            check(recovered, record, extent_shift)
            log = cls(path, files, step)
            log._adopt(fd, recovered, len(data), recovered.header.counter == record.log_counter)
            log._settle(recovered, record)
        except OSError as error:
            files.close("log.close", fd)
            raise DirtyLogFailed(path, "opening it", error.errno or errno.EIO, True) from error
        except MirrorError:
            files.close("log.close", fd)
            raise
        return log, recovered

    @property
    def counter(self) -> int:
        """What the record's `log_counter` must be."""
        return self._header.counter

    @property
    def generation(self) -> bytes:
        """The generation that the durable log belongs to."""
        return self._generations[0]

    def confirm_record(self, log_counter: int) -> None:
        """A record with this `log_counter` is durable. Only then may the log be compacted: the counter of a log may be
        one ahead of its record's, never two."""
        self._confirmed = log_counter == self.counter

    # ---- commits

    def stage(self, record: LogRecord) -> None:
        """Append to the batch that the next commit writes."""
        self._raise_failure()
        assert len(record.identity) == ID_BYTES, "ids are 16 bytes"
        self._staged.append(record)

    def begin_commit(self) -> int | None:
        """Write what is staged. Returns the descriptor to fdatasync, whose result goes to `end_commit`; None if
        nothing is staged or the commit before has not ended."""
        self._raise_failure()
        if not self._staged or self._in_flight is not None:
            return None
        data = encode_batch(self._staged, self._next_batch, self._seed)
        try:
            self._grow(self._end + len(data))
            written = self._files.pwrite("log.commit.write", self._fd, data, self._end)
            if written != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self._fail("writing a batch", error.errno or errno.EIO)
        self._end += len(data)
        self._next_batch += 1
        self._in_flight, self._staged = self._staged, []
        return self._fd

    def end_commit(self, code: int) -> None:
        """The flush ended with this errno; 0: the batch is durable. Otherwise DirtyLogFailed, from now on: a failed
        flush is never repeated, the second one could succeed without having written anything."""
        assert self._in_flight is not None, "no commit is in flight"
        records, self._in_flight = self._in_flight, None
        if code:
            self._fail("flushing a batch", code)
        for record in records:
            if record.kind == GENERATION:
                self._generations = (record.identity, self._generations[0])
            elif record.kind == EVERYTHING:
                self.is_everything = True
            elif is_removal(record):
                self._removals += 1

    def commit_now(self) -> None:
        """Write what is staged and wait until it is durable. The commit before must have ended: the error of its flush
        would be reported to whoever flushes first."""
        assert self._in_flight is None, "a commit is in flight"
        fd = self.begin_commit()
        if fd is None:
            return
        code = 0
        try:
            self._files.fdatasync("log.commit.flush", fd)
        except OSError as error:
            code = error.errno or errno.EIO
        self.end_commit(code)

    def set_everything(self) -> None:
        """Set the "everything is dirty" flag in place; durable on return. Works when the disk is full, and is tried
        even after a failure. Raises DirtyLogFailed: then stop, nothing is left to record a change with."""
        try:
            if self._files.pwrite("log.flag.write", self._fd, b"\1", FLAG_OFFSET) != 1:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self._files.fdatasync("log.flag.flush", self._fd)
        except OSError as error:
            self._fail('setting the "everything is dirty" flag', error.errno or errno.EIO)
        self.is_everything = True

    # ---- compaction

    def should_compact(self) -> bool:
        """Is more than half of the log superseded, and may it be compacted now?"""
        records = (self._end - RECORDS_OFFSET) // RECORD_BYTES
        garbage = 2 * self._removals  # each with the mark that it removed
        worth_it = garbage > max(self._compact_above, records // 2) or self._end > LARGEST_LOG_BYTES // 2
        return worth_it and self._confirmed and self._in_flight is None and self.failure is None

    def compact(self, marks: Marks, *, clear_everything: bool = False) -> None:
        """Replace the log by one with just these marks and the next counter; durable on return. What is staged stays
        staged. Then the caller stores the record with `counter` and calls `confirm_record`.

        `marks` are all there are, also those staged (ActivityLog.snapshot). `clear_everything`: a full comparison
        has ended. Raises DirtyLogFailed; a full disk before the new log has its name leaves the old one in use.
        """
        self._raise_failure()
        assert self._in_flight is None, "a commit is in flight"
        assert self._confirmed, "the record does not have this log's counter yet"
        current, previous = self._generations
        header = replace(self._header, counter=self.counter + 1, generation=current, previous_generation=previous)
        kept = self.is_everything and not clear_everything
        try:
            new = _write_new(self.path, self._files, self._step, header, marks, kept)
        except OSError as error:
            code = error.errno or errno.EIO
            if code not in (errno.ENOSPC, errno.EDQUOT):
                self._fail("compacting it", code)
            self._compact_above += COMPACTED_GARBAGE_RECORDS  # not at once again
            raise DirtyLogFailed(self.path, "compacting it", code, False) from error
        old = self._fd
        self._adopt(*new, confirmed=False)
        self._files.close("log.close", old)
        try:
            _give_name(self.path, self._files)
        except OSError as error:
            self._fail("giving the compacted log its name", error.errno or errno.EIO)

    def close(self) -> None:
        """Give the descriptor back. Nothing is flushed: a log is always in order."""
        self._files.close("log.close", self._fd)

    # ---- inside

    def _settle(self, recovered: Recovered, record: Record) -> None:
        """Make durable what was recovered: what is only in the page cache may be lost with the next power cut."""
        self._files.fsync("log.open.flush", self._fd)
        _flush_directory(self.path, self._files)
        if recovered.torn_until > recovered.end_offset:
            # The number of a torn batch is used again, so nothing of it may remain behind the next one.
            zeros = bytes(recovered.torn_until - recovered.end_offset)
            if self._files.pwrite("log.repair.write", self._fd, zeros, recovered.end_offset) != len(zeros):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._files.fdatasync("log.repair.flush", self._fd)
            self._allocated = max(self._allocated, recovered.torn_until)
        for lost in recovered.torn:
            self.stage(lost)
        if recovered.generation != record.generation:  # it went ahead of a record that was never stored
            self.stage(generation(record.generation))
        self.commit_now()

    def _grow(self, size: int) -> None:
        if size > LARGEST_LOG_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        if size > self._allocated:
            length = _rounded_up(size, self._step) - self._allocated
            self._files.fallocate("log.commit.allocate", self._fd, self._allocated, length)
            self._allocated += length

    def _raise_failure(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _fail(self, doing: str, code: int) -> NoReturn:
        self.failure = DirtyLogFailed(self.path, doing, code, True)
        raise self.failure


def _rounded_up(size: int, step: int) -> int:
    return -(-size // step) * step


def _read_all(fd: int, files: Files) -> bytes:
    try:
        size = files.size("log.size", fd)
        if size > 2 * LARGEST_LOG_BYTES:
            raise DirtyLogUnusable(f"it has {size} bytes, more than this program writes")
        data = bytearray()
        while len(data) < size and (piece := files.pread("log.read", fd, size - len(data), len(data))):
            data += piece
        return bytes(data)
    except OSError as error:
        raise DirtyLogUnusable(f"it cannot be read ({error.strerror})") from error


def _write_new(
    path: str, files: Files, step: int, header: Header, marks: Marks, is_everything: bool
) -> tuple[int, Recovered, int]:
    """A durable log that has no name yet: its descriptor, what it says, and its size. Raises OSError."""
    records = marks.records()
    header = replace(header, nonce=secrets.token_bytes(ID_BYTES), initial_records=len(records))
    block = encode_header(header).ljust(FLAG_OFFSET, b"\0") + (b"\1" if is_everything else b"\0")
    data = block.ljust(RECORDS_OFFSET, b"\0") + encode_batch(records, 0, header.seed)
    size = _rounded_up(len(data) + 1, step)
    fd = files.open("log.new.open", path + ".new", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if len(data) > LARGEST_LOG_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        files.fallocate("log.new.allocate", fd, 0, size)
        if files.pwrite("log.new.write", fd, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        files.fsync("log.new.flush", fd)
    except OSError:
        files.close("log.close", fd)
        files.unlink("log.new.unlink", path + ".new")
        raise
    batches, generations = (1 if records else 0), (header.generation, header.previous_generation)
    return fd, Recovered(header, Marks(), len(data), len(data), batches, is_everything, *generations), size


def _give_name(path: str, files: Files) -> None:
    files.rename("log.new.rename", path + ".new", path)
    _flush_directory(path, files)


def _flush_directory(path: str, files: Files) -> None:
    fd = files.open("log.directory.open", os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0)
    try:
        files.fsync("log.directory.flush", fd)
    finally:
        files.close("log.directory.close", fd)
