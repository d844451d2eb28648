"""The source's half of reintegration: walk the tree, then copy what may differ, while the VM writes.

It knows which directories the target has been brought to (visited), which files need content, and which chunks are
being read. A live operation that the target cannot take yet is not sent and puts its directory back on the list; a
chunk that a live write touches while it is read is read again. It must not know FUSE, verdicts or time limits.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from hotpair.replication import helper, linux_io
from hotpair.replication.activity import ActivityLog, Selection
from hotpair.replication.chunks import Chunk, FileJob
from hotpair.replication.copied import Copied
from hotpair.replication.dirty_log import TO_END_OF_FILE, Extents, Mark, Metadata, Names
from hotpair.replication.errors import LinkLost, ProtocolError
from hotpair.replication.frames import Kind
from hotpair.replication.helper_io import Helper
from hotpair.replication.limits import CHUNK, CHUNK_RETRIES, CHUNKS_IN_WORK, LISTING_BYTES
from hotpair.replication.nodes import Node, NodeTable
from hotpair.replication.pace import Pace
from hotpair.replication.source import Source

log = logging.getLogger("hotpair.replication")


class Directory:
    """A directory that is to be listed, or whose listing is under way."""

    __slots__ = ("again", "began", "entries", "handle", "identity", "removed")

    def __init__(self, identity: bytes, handle: bytes) -> None:
        self.identity = identity
        self.handle = handle
        self.entries: list[list[Any]] = []
        self.began: Selection | None = None  # since its listing was asked for
        self.again = False  # something changed in it since its listing began
        self.removed = False


class Reintegration:
    """One reintegration, from the target's confirmation that it is durably inconsistent to the offer of sync."""

    def __init__(
        self,
        source: Source,
        activity: ActivityLog,
        nodes: NodeTable,
        root_fd: int,
        root: Node,
        helper_process: Helper,
        full: bool,
        finished: Callable[[], None],
    ) -> None:
        self._source = source
        self._activity = activity
        self._nodes = nodes
        self._root_fd = root_fd
        self._root = root
        self._helper = helper_process
        self._full = full  # compare the content of every file, not only what the log names
        self._finished = finished
        self.compared: frozenset[bytes] = frozenset()  # files whose marked content is compared, and copied if different
        self._visited: set[bytes] = set()
        self._waiting: dict[bytes, Directory] = {root.identity: Directory(root.identity, root.handle)}
        self._listing: dict[int, Directory] = {}  # by token of the helper's job
        self._answering: dict[bytes, dict[bytes, bytes]] = {}  # directory -> handles of its files, until WANTED came
        self._jobs: dict[bytes, FileJob] = {}
        self._queue: deque[FileJob] = deque()
        self._opened: set[FileJob] = set()
        self._chunks: dict[int, Chunk] = {}  # by token
        self._checks: dict[int, Chunk] = {}  # by sequence number of the CHECK
        self._slots = helper_process.slots
        self._closed = False
        self.flushed = False  # the target has flushed, or is about to, all that it has been sent
        self._walk_again = False
        self._changed: set[bytes] = set()  # objects changed while a listing is under way
        self._started_at = time.monotonic()
        self.copied = Copied(source, activity, root_fd, self._started_at)
        self.bytes_done = 0
        self.bytes_left = 0
        self.bytes_sent = 0
        self.pace = Pace()
        source.chunks.clear()

    # --- what the core asks ---------------------------------------------------------------------------------------

    def knows(self, node: Node) -> bool:
        """Whether the target has this object where the source has it."""
        if node.is_directory:
            return node.identity in self._visited
        return node.parent is not None and node.parent.identity in self._visited

    def made(self, node: Node) -> None:
        """A directory was made and the target was told: it is empty on both sides."""
        if node.is_directory:
            self._visited.add(node.identity)

    def unsent(self, nodes: Iterable[Node]) -> None:
        """An operation on these objects was not sent: their directories must be listed again."""
        for node in nodes:
            if node.is_directory:
                self._put_back(node.identity, node.handle)
            elif node.parent is not None:
                self._put_back(node.parent.identity, node.parent.handle)
            else:
                self._walk_again = True  # none of its names is known; the next walk finds one

    def _put_back(self, identity: bytes, handle: bytes) -> None:
        """List a directory once more. One that was never in our hands is found when its parent is listed."""
        for directory in self._listing.values():
            if directory.identity == identity:
                directory.again = True
                return
        if identity in self._visited:
            self._visited.discard(identity)
            self._waiting[identity] = Directory(identity, handle)

    def removed(self, identity: bytes) -> None:
        """The last name of an object is gone: neither it nor its content is of use to the target any more."""
        self._waiting.pop(identity, None)
        self._visited.discard(identity)
        for directory in self._listing.values():
            if directory.identity == identity:
                directory.removed = True
        for files in self._answering.values():
            files.pop(identity, None)
        job = self._jobs.pop(identity, None)
        if job is not None:
            job.cancelled = True
            job.ranges.clear()

    def holds(self, identity: bytes) -> bool:
        """Whether the target must keep the object although the kernel has forgotten it."""
        if identity in self._jobs or identity in self._waiting:
            return True
        if any(directory.identity == identity for directory in self._listing.values()):
            return True
        return any(identity in files for files in self._answering.values())

    # --- the tree -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Start what can be started now; called by the loop after each turn."""
        self._list_more()
        if not self._waiting and not self._listing:
            self._read_more()
            self._finish_if_done()
        self.copied.step(time.monotonic())

    def _list_more(self) -> None:
        while self._waiting and not self._listing and len(self._source.out) < 64:
            _, directory = self._waiting.popitem()
            token = self._helper.new_token()
            if not self._helper.ask(["list", token, directory.handle], self._root_fd):
                self._waiting[directory.identity] = directory
                return
            directory.again = False
            directory.entries = []
            directory.began = self.copied.begins()
            self._listing[token] = directory

    def answered(self, answer: list[Any]) -> bool:
        """The helper has something to say; False when it is not about this reintegration."""
        token = answer[0]
        directory = self._listing.get(token)
        chunk = self._chunks.pop(token, None)
        if directory is not None:
            self._listed(token, directory, answer[1], answer[2])
        elif chunk is not None:
            del self._helper.reading[token]
            self._read(chunk, answer[1], answer[2], answer[3])
        return directory is not None or chunk is not None

    def _listed(self, token: int, directory: Directory, kind: str, content: Any) -> None:
        if kind == "part":
            directory.entries += content
            return
        del self._listing[token]
        assert directory.began is not None, "a listing came that was not asked for"
        self._listing_ended(directory, kind, content)
        self.copied.ends(directory.began)

    def _listing_ended(self, directory: Directory, kind: str, content: Any) -> None:
        if kind == "refused":
            self._source.broken = LinkLost(f"not reintegrated: {content}")
            return
        if kind == "gone" or directory.removed:
            return
        changed = any(entry[1] in self._changed for entry in directory.entries)
        if not self._listing:
            self._changed.clear()
        if directory.again or changed:
            self._waiting[directory.identity] = Directory(directory.identity, directory.handle)
            return
        self._send_listing(directory, content)

    def _send_listing(self, directory: Directory, attributes: list[Any]) -> None:
        """From here on the target's directory is what ours is: listing and live operations follow in one stream."""
        source = self._source
        entries = []
        files: dict[bytes, bytes] = {}
        by_identity = self._nodes.by_identity
        parent = by_identity.get(directory.identity)
        for name, identity, what, size, mtime_ns, links, handle in directory.entries:
            kind = stat.S_IFMT(what[0])
            node = by_identity.get(identity)
            if node is not None and parent is not None and (node.parent is None or links == 1):
                node.parent, node.name = parent, name
            hold = False
            if kind == stat.S_IFREG:
                files[identity] = handle
                hold = self._needs_content(identity)
            elif kind == stat.S_IFDIR and identity not in self._visited:
                self._waiting.setdefault(identity, Directory(identity, handle))
            entries.append([name, identity, what, size, mtime_ns, links, hold])
            if hold:
                self._add_job(identity, handle, whole=False)
        self._answering[directory.identity] = files
        self.flushed = False
        parts = _parts(entries)
        for number, part in enumerate(parts):
            source.operation((Kind.LISTING, directory.identity, attributes, part, number == len(parts) - 1))
        self._listed_marks(directory)
        directory.entries = []
        self._visited.add(directory.identity)
        for entry in entries:
            node = by_identity.get(entry[1])
            if node is not None:
                source.known.declare_at(node, directory.identity, entry[0])

    def _listed_marks(self, directory: Directory) -> None:
        """What the listing has told the target needs no mark, once it is flushed."""
        assert directory.began is not None
        marks: list[Mark] = [Names(directory.identity), Metadata(directory.identity)]
        marks += self._activity.metadata_marks(entry[1] for entry in directory.entries)
        self.copied.has(directory.began, marks)

    def _needs_content(self, identity: bytes) -> bool:
        return self._full or self._activity.runs_of(identity) != []

    def wanted(self, directory: bytes, whole: list[bytes], last: bool) -> None:
        """The target says which files of a directory it has no content of."""
        files = self._answering.get(directory, {})
        for identity in whole:
            handle = files.get(identity)
            if handle is not None:
                self._add_job(identity, handle, whole=True)
        if last:
            self._answering.pop(directory, None)

    # --- content --------------------------------------------------------------------------------------------------

    def _add_job(self, identity: bytes, handle: bytes, whole: bool) -> None:
        job = self._jobs.get(identity)
        if job is None or job.fd >= 0:
            if job is not None:
                job.cancelled = True  # it began with fewer marks than there are now
                job.ranges.clear()
            job = FileJob(identity, handle, whole)
            self._jobs[identity] = job
            self._queue.append(job)
        job.whole = job.whole or whole

    def _open(self, job: FileJob) -> bool:
        """Open a file and find out which bytes are to be read; False when it is gone."""
        try:
            job.fd = linux_io.open_by_handle(self._root_fd, job.handle, os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return False
        self._opened.add(job)
        self.flushed = False
        self._source.apply_local()
        job.began = self.copied.begins()
        size = os.fstat(job.fd).st_size
        if job.whole or self._full:
            job.ranges = deque([(0, size)] if size else [])
        else:
            shift = self._source.shift
            runs = self._activity.runs_of(job.identity)
            clipped = ((first << shift, size if last >= size >> shift else (last + 1) << shift) for first, last in runs)
            job.ranges = deque((start, end) for start, end in clipped if start < end)
        self.bytes_left += sum(end - start for start, end in job.ranges)
        # The size may have changed since the listing: what follows it in the stream is right.
        self._source.operation((Kind.TRUNCATE, job.identity, size))
        self._source.chunks[job.identity] = job
        return True

    def _close(self, job: FileJob) -> None:
        """A file is done: carry its modification time, which the copying has changed there, and let it go."""
        current = self._jobs.get(job.identity) is job
        if current:
            del self._jobs[job.identity]
        if self._source.chunks.get(job.identity) is job:
            del self._source.chunks[job.identity]
        if job.fd < 0:
            return
        if current:
            self._file_copied(job)
            mtime_ns = os.fstat(job.fd).st_mtime_ns
            self._source.operation((Kind.ATTRIBUTES, job.identity, None, None, None, mtime_ns))
            node = self._nodes.by_identity.get(job.identity)
            if node is None or node.declared != self._source.session:
                self._source.operation((Kind.FORGET, job.identity))
        if job.began is not None:
            self.copied.ends(job.began)
        self._opened.discard(job)
        os.close(job.fd)
        job.fd = -1

    def _file_copied(self, job: FileJob) -> None:
        """All of a file that was to be copied is there."""
        self._extents_copied(job, TO_END_OF_FILE)
        if job.whole:
            self._source.operation((Kind.COMPLETE, job.identity))
            self.copied.has_whole_file()

    def _extents_copied(self, job: FileJob, last: int) -> None:
        """Nothing up to this extent is left to be copied; what was not marked when the file was opened has no part."""
        if last >= job.done_until and not job.cancelled and job.began is not None:
            self.copied.has(job.began, [Extents(job.identity, job.done_until, last)])
            job.done_until = last + 1

    def _read_more(self) -> None:
        """Give the helper as many chunks as there are slots, while the link keeps up."""
        source = self._source
        while self._slots and self._queue and len(source.out) < 4:
            if not self.pace.may_begin(CHUNKS_IN_WORK - len(self._slots)):
                break
            job = self._queue[0]
            if job.cancelled or (job.fd < 0 and not self._open(job)):
                self._queue.popleft()
                if not job.in_work:
                    self._close(job)
                continue
            if not job.ranges:
                self._queue.popleft()
                if not job.in_work:
                    self._close(job)
                continue
            start, end = job.ranges[0]
            size = min(CHUNK - start % CHUNK, end - start)
            if start + size >= end:
                job.ranges.popleft()
            else:
                job.ranges[0] = (start + size, end)
            chunk = Chunk(job, start, size, self._slots.pop())
            chunk.began = time.monotonic()
            chunk.writes_before = source.writes
            job.in_work.append(chunk)
            self._ask(chunk)

    def _ask(self, chunk: Chunk) -> None:
        self._source.apply_local()  # a write that was sent and not applied here yet must be seen by the reader
        token = self._helper.new_token()
        self._chunks[token] = chunk
        self._helper.reading[token] = chunk.slot
        chunk.touched = False
        hashed = (self._full or chunk.job.identity in self.compared) and not chunk.job.whole
        job = ["chunk", token, chunk.offset, chunk.size, chunk.slot, hashed]
        if not self._helper.ask(job, chunk.job.fd):
            raise AssertionError("the helper's socket holds more than its chunks")

    def _read(self, chunk: Chunk, kind: str, size: int, digest: bytes) -> None:
        """A chunk was read. In this one step its flag is checked and it is queued, so nothing comes in between."""
        if chunk.job.cancelled:
            self._done(chunk)
            return
        if kind == helper.FAILED:
            self._source.disk_failed(f"reading for reintegration: {os.strerror(size)}")
            return
        if chunk.touched:
            chunk.tries += 1
            if chunk.tries <= CHUNK_RETRIES:
                self._ask(chunk)
                return
            # The VM writes here all the time. The loop reads it itself: no write can come in between.
            self._source.apply_local()
            size = os.preadv(chunk.job.fd, (self._helper.chunk(chunk.slot, chunk.size),), chunk.offset)
            kind, digest = helper.DATA, b""
        if size == 0:
            self._done(chunk)
        elif kind == helper.ZEROS:
            self._zeros(chunk, size)
        elif digest:
            fields = (Kind.CHECK, chunk.job.identity, chunk.offset, size, digest)
            self._checks[self._source.operation(fields)] = chunk
        else:
            self._send(chunk, size)

    def _zeros(self, chunk: Chunk, size: int) -> None:
        fields = (Kind.ZERO, chunk.job.identity, chunk.offset, size)
        self._source.operation(fields, self._done, chunk)

    def _send(self, chunk: Chunk, size: int) -> None:
        self.bytes_sent += size
        self.pace.spend(size)
        data = self._helper.chunk(chunk.slot, size)
        self._source.send_data(chunk.job.identity, chunk.offset, data, self._done, chunk)

    def checked(self, sequence: int, same: bool) -> None:
        """The target has compared a chunk."""
        chunk = self._checks.pop(sequence, None)
        if chunk is None:
            raise ProtocolError("the peer answered a comparison that was not asked for")
        if same or chunk.job.cancelled:
            self._done(chunk)
            return
        chunk.touched = False
        self._source.apply_local()
        size = os.preadv(chunk.job.fd, (self._helper.chunk(chunk.slot, chunk.size),), chunk.offset)
        if size:
            self._send(chunk, size)
        else:
            self._done(chunk)

    def _done(self, chunk: Chunk) -> None:
        """The target has the chunk, or does not need it; its slot is free."""
        if self._closed:
            return
        self._slots.append(chunk.slot)
        self.pace.ended(chunk.began, chunk.size, chunk.writes_before != self._source.writes)
        job = chunk.job
        job.in_work.remove(chunk)
        self.bytes_done += chunk.size
        self.bytes_left = max(0, self.bytes_left - chunk.size)
        if (read_until := job.read_until) is not None:
            self._extents_copied(job, (read_until >> self._source.shift) - 1)
        if not job.in_work and (job.cancelled or not job.ranges) and (not self._queue or self._queue[0] is not job):
            self._close(job)

    # --- the end --------------------------------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return self._copied and not self._walk_again

    @property
    def _copied(self) -> bool:
        return not (self._waiting or self._listing or self._answering or self._queue or self._jobs or self._checks)

    def walk_again(self) -> None:
        """An object lost the name by which the target could have been told of it: the next walk finds another."""
        self._walk_again = True

    def changed(self, identities: Iterable[bytes]) -> None:
        """Operations on these objects were sent: a listing that was read before must not undo them."""
        if self._listing:
            self._changed.update(identities)

    def _finish_if_done(self) -> None:
        if not self._copied:
            return
        if self._walk_again:
            self._walk_again = False
            self._visited.clear()
            self._waiting[self._root.identity] = Directory(self._root.identity, self._root.handle)
            return
        if self.copied.worth_it:
            self.copied.flush()  # what was copied last; its answer may come when the pair is in sync
        self._finished()

    def progress(self) -> dict[str, Any]:
        """Bytes done and left, bytes per second since the beginning, seconds left at that rate; whether everything is
        compared, or only what the logs name is copied."""
        elapsed = max(1e-3, time.monotonic() - self._started_at)
        rate = self.bytes_done / elapsed
        return {
            "full": self._full,
            "bytes_done": self.bytes_done,
            "bytes_left": self.bytes_left,
            "bytes_sent": self.bytes_sent,
            "rate": int(rate),
            "seconds_left": round(self.bytes_left / rate, 1) if rate and self.bytes_left else 0.0,
            "directories_left": len(self._waiting) + len(self._listing),
        }

    def close(self) -> None:
        """The link is gone or the work is done: give back what is open."""
        self._closed = True
        reading = {id(chunk) for chunk in self._chunks.values()}
        for job in self._opened:
            self._slots += [chunk.slot for chunk in job.in_work if id(chunk) not in reading]
            os.close(job.fd)
            job.fd = -1
        self._opened.clear()
        self._jobs.clear()
        self._queue.clear()
        self._source.chunks.clear()


def _parts(entries: list[list[Any]]) -> list[list[list[Any]]]:
    """Entries in parts that fit into one frame each; at least one part."""
    parts: list[list[list[Any]]] = [[]]
    room = LISTING_BYTES
    for entry in entries:
        size = 128 + len(entry[0]) + sum(len(key) + len(value) + 8 for key, value in entry[2][5]) + len(entry[2][4])
        if parts[-1] and size > room:
            parts.append([])
            room = LISTING_BYTES
        parts[-1].append(entry)
        room -= size
    return parts
