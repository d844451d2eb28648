"""Verify, the content of files: chunks are read by the helper, and compared by the target at their place in the stream.

The rule is reintegration's: a chunk that a live operation touches while it is read is read again, after three tries by
the loop; the flag is checked and the CHECK queued in one step. A chunk that differs is read once more by the loop and
compared again before it is reported. It must not know directories, the link's state or who asked.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from hotpair.replication import comparison, helper, linux_io
from hotpair.replication.chunks import Chunk, FileJob
from hotpair.replication.dirty_log import Extents
from hotpair.replication.frames import Kind
from hotpair.replication.helper_io import Helper
from hotpair.replication.limits import CHUNK, CHUNK_RETRIES, CHUNKS_READ_AHEAD
from hotpair.replication.operations import Operation
from hotpair.replication.pace import Pace
from hotpair.replication.source import Source
from hotpair.replication.verify_report import Difference, Report

CONTENT = "content"
Ask = Callable[[tuple[Any, ...], Callable[[Any], None]], None]


class Content:
    """The files whose content is to be compared, a few chunks at a time."""

    def __init__(
        self,
        source: Source,
        root_fd: int,
        helper_process: Helper,
        report: Report,
        ask: Ask,
        release: Callable[[bytes], None],
        repair: bool,
    ) -> None:
        self._source = source
        self._root_fd = root_fd
        self._helper = helper_process
        self._report = report
        self._ask = ask
        self._release = release  # the file's comparison has ended
        self._repair = repair
        self._slots = helper_process.slots
        self._queue: deque[FileJob] = deque()
        self._jobs: dict[bytes, FileJob] = {}
        self._paths: dict[bytes, bytes] = {}
        self._sizes: dict[bytes, int] = {}  # as listed; what the file has is known when it is opened
        self._reading: dict[int, Chunk] = {}  # by token of the helper's job
        self._ready: deque[tuple[Chunk, int, bytes]] = deque()  # read; with its size and digest
        self._sending: set[Chunk] = set()  # repaired: the stream needs their memory
        self._found: dict[Chunk, Difference] = {}
        self._written: set[FileJob] = set()  # repaired: the target's modification time is that of the repair
        self._in_work = 0
        self._closed = False
        self.pace = Pace()
        self.bytes_done = 0
        self.bytes_total = 0
        self.files_done = 0

    @property
    def busy(self) -> bool:
        """Whether a file waits or is in work."""
        return bool(self._jobs)

    def add(self, identity: bytes, handle: bytes, path: bytes, size: int) -> None:
        """Compare a file that the target knows."""
        if identity in self._jobs:  # a second name that it has just been given
            self._release(identity)
            return
        job = FileJob(identity, handle, whole=True)
        self._jobs[identity] = job
        self._paths[identity] = path
        self._sizes[identity] = size
        self._queue.append(job)
        self.bytes_total += size

    def removed(self, identity: bytes) -> None:
        """The last name of a file is gone, and the target has been told."""
        job = self._jobs.get(identity)
        if job is not None:
            job.cancelled = True
            job.ranges.clear()

    # --- reading --------------------------------------------------------------------------------------------------

    def read_more(self) -> None:
        """Give the helper as many chunks as may be in work."""
        while self._queue and self._slots and self._in_work < CHUNKS_READ_AHEAD and self.pace.may_begin(self._in_work):
            job = self._queue[0]
            if job.cancelled or (job.fd < 0 and not self._open(job)) or not job.ranges:
                self._queue.popleft()
                if not job.in_work:
                    self._close(job)
                continue
            start, end = job.ranges[0]
            size = min(CHUNK, end - start)
            if start + size >= end:
                job.ranges.popleft()
            else:
                job.ranges[0] = (start + size, end)
            chunk = Chunk(job, start, size, self._slots.pop())
            job.in_work.append(chunk)
            self._in_work += 1
            self.pace.spend(size)
            self._read(chunk)

    def _open(self, job: FileJob) -> bool:
        """Open a file; False when it is gone."""
        try:
            job.fd = linux_io.open_by_handle(self._root_fd, job.handle, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return False
        self._source.apply_local()
        size = os.fstat(job.fd).st_size
        self.bytes_total += size - self._sizes[job.identity]
        self._sizes[job.identity] = size
        job.ranges = deque([(0, size)] if size else [])
        self._source.chunks[job.identity] = job
        return True

    def _close(self, job: FileJob) -> None:
        identity = job.identity
        del self._jobs[identity]
        del self._paths[identity]
        del self._sizes[identity]
        if job.fd >= 0:
            self._source.chunks.pop(identity, None)
            if job in self._written and not job.cancelled:
                mtime_ns = os.fstat(job.fd).st_mtime_ns
                self._source.operation((Kind.ATTRIBUTES, identity, None, None, None, mtime_ns))
            os.close(job.fd)
            job.fd = -1
        self._written.discard(job)
        self.files_done += 1
        self._release(identity)

    def _read(self, chunk: Chunk) -> None:
        self._source.apply_local()  # a write that was sent and not applied here yet must be seen by the reader
        token = self._helper.new_token()
        self._reading[token] = chunk
        self._helper.reading[token] = chunk.slot
        chunk.touched = False
        if not self._helper.ask(["chunk", token, chunk.offset, chunk.size, chunk.slot, True], chunk.job.fd):
            raise AssertionError("the helper's socket holds more than its chunks")

    def answered(self, answer: list[Any]) -> bool:
        """The helper has something to say; False when it is not about a chunk of ours."""
        chunk = self._reading.pop(answer[0], None)
        if chunk is None:
            return False
        del self._helper.reading[answer[0]]
        _, kind, size, digest = answer
        if kind == helper.FAILED:
            self._done(chunk)
            self._source.disk_failed(f"reading for verify: {os.strerror(size)}")
        else:
            self._ready.append((chunk, size, zero_digest(size) if kind == helper.ZEROS else digest))
        return True

    # --- comparing ------------------------------------------------------------------------------------------------

    def check_next(self) -> bool:
        """Have the target compare one chunk that was read; False when none is ready."""
        while self._ready:
            chunk, size, digest = self._ready.popleft()
            if chunk.job.cancelled:
                self._done(chunk)
            elif chunk.touched and chunk.tries < CHUNK_RETRIES:
                chunk.tries += 1
                self._read(chunk)
            elif chunk.touched:  # the VM writes here all the time
                self._check_here(chunk, again=False)
                return True
            elif not size:
                self._done(chunk)
            else:
                self._check(chunk, size, digest, again=False)
                return True
        return False

    def _check(self, chunk: Chunk, size: int, digest: bytes, again: bool) -> None:
        fields = (Kind.CHECK, chunk.job.identity, chunk.offset, size, digest)
        self._ask(fields, lambda same: self._checked(chunk, size, again, same))

    def _check_here(self, chunk: Chunk, again: bool) -> None:
        """Read a chunk in the loop and have it compared: no write can come in between."""
        self._source.apply_local()
        size = self._pread(chunk)
        if size:
            self._check(chunk, size, _digest(self._helper.chunk(chunk.slot, size)), again)
        else:
            self._done(chunk)

    def _pread(self, chunk: Chunk) -> int:
        try:
            return os.preadv(chunk.job.fd, (self._helper.chunk(chunk.slot, chunk.size),), chunk.offset)
        except OSError as error:
            self._source.disk_failed(f"reading for verify: {error.strerror}")
            return 0

    def _checked(self, chunk: Chunk, size: int, again: bool, same: bool | None) -> None:
        """The target has compared a chunk; None: it has lost the file meanwhile."""
        found = self._found.get(chunk)
        if chunk.job.cancelled:
            self._done(chunk)
        elif same:
            if found is not None:
                self._report.repaired(found)
            self._done(chunk)
        elif not again:
            self._check_here(chunk, again=True)
        elif found is not None:  # repaired, and different again
            self._done(chunk)
        else:
            path = self._paths[chunk.job.identity]
            what = comparison.MISSING if same is None else CONTENT
            self._found[chunk] = self._report.add(path, [what], chunk.offset, size)
            if self._repair and same is not None:
                self._send_again(chunk)
            else:
                self._done(chunk)

    # --- repairing ------------------------------------------------------------------------------------------------

    def _send_again(self, chunk: Chunk) -> None:
        shift = self._source.shift
        first, last = chunk.offset >> shift, (chunk.offset + chunk.size - 1) >> shift
        mark = Extents(chunk.job.identity, first, last)
        self._source.change((mark,), lambda: self._send(chunk), _whatever_comes)

    def _send(self, chunk: Chunk) -> list[Operation]:
        """Its mark is durable: read and send the chunk in one step."""
        if self._closed:
            return []
        size = 0 if chunk.job.cancelled else self._pread(chunk)
        if size:
            self._written.add(chunk.job)
            self._sending.add(chunk)
            data = self._helper.chunk(chunk.slot, size)
            self._source.send_data(chunk.job.identity, chunk.offset, data, self._sent, chunk)
        else:
            self._done(chunk)
        return []

    def _sent(self, chunk: Chunk) -> None:
        """The target has it; or nobody will, because the source goes on alone."""
        self._sending.discard(chunk)
        if self._closed:
            self._slots.append(chunk.slot)
        elif chunk.job.cancelled:
            self._done(chunk)
        else:
            self._check_here(chunk, again=True)

    # --- the end --------------------------------------------------------------------------------------------------

    def _done(self, chunk: Chunk) -> None:
        if self._closed:
            return
        job = chunk.job
        self._slots.append(chunk.slot)
        self._found.pop(chunk, None)
        job.in_work.remove(chunk)
        self._in_work -= 1
        self.bytes_done += chunk.size
        if not job.in_work and not job.ranges and (not self._queue or self._queue[0] is not job):
            self._close(job)

    def close(self) -> None:
        """Give back what is open. A slot that the helper or the stream still uses comes back when they are done."""
        self._closed = True
        used = {*self._reading.values(), *self._sending}
        for job in list(self._jobs.values()):
            self._slots += [chunk.slot for chunk in job.in_work if chunk not in used]
            job.in_work.clear()
            self._close(job)
            self.files_done -= 1
        self._queue.clear()


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=helper.DIGEST_BYTES).digest()


@lru_cache(maxsize=4)
def zero_digest(size: int) -> bytes:
    """The digest of so many zeros: holes are not read."""
    return _digest(bytes(size))


def _whatever_comes(_: OSError | None) -> None:
    """A repair that could not be made stays in the report as it is."""
