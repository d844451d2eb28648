"""Random interleavings: live operations, steps of both loops and of reintegration, deliveries, lost links.

At the end everything is let run: the copies are equal, each request was answered once, nothing is held.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hotpair.replication import linux_io
from hotpair.replication.limits import CHUNK
from hotpair.replication.modes import ALONE, FROZEN, PRIM
from tests.stream_pair import StreamPair
from tests.stream_vm import Inode, Request, Vm, fill, settle

DIRECTORIES = [b"", b"A", b"B", b"A/D", b"B/D", b"A/D/E", b"E"]
NAMES = [b"A", b"B", b"D", b"E", b"f", b"g", b"h"]
PATHS = st.builds(
    lambda directory, name: (directory + b"/" + name).lstrip(b"/"), *map(st.sampled_from, (DIRECTORIES, NAMES))
)
OFFSETS = st.sampled_from([0, 1, 4095, 65535, 65536, 200_000, CHUNK - 1, CHUNK, CHUNK + 70_000])
SIZES = st.sampled_from([1, 7, 4096, 70_000])
TREE = ["A/", "A/f", "A/D/", "A/D/g", "A/D/E/", "A/D/E/h", "B/", "B/f", "B/g"]

# What may refuse an operation is no concern here: both copies must agree all the same.
MAY_FAIL = (Vm.Locked, FileNotFoundError, NotADirectoryError)


class Interleavings(RuleBasedStateMachine):
    """The steps are those of the two processes' loops, in any order in which they can happen."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = StreamPair()
        self.vm = Vm(self.stream)
        self.requests: list[Request] = []
        self.opened: list[Inode] = []

    def teardown(self) -> None:
        try:
            self._end()
        finally:
            self.stream.close()

    def _end(self) -> None:
        stream, vm = self.stream, self.vm
        if stream.source.mode is FROZEN and stream.source.connection is None:
            stream.source.go_alone()
        stream.synchronise()
        vm.hear()
        assert vm.pending == {}
        assert all(request.answered for request in self.requests)
        assert stream.differences("files") == []
        stream.check_nothing_is_held()
        assert stream.lost == [] and stream.disk_failures == []

    @initialize(full=st.booleans(), hard=st.booleans(), connected=st.booleans())
    def begin_with_a_tree(self, full: bool, hard: bool, connected: bool) -> None:
        pair = self.stream, self.vm
        fill(pair, *TREE)
        fill(pair, "big", content=bytes(range(1, 251)) * 1450)
        if hard:
            os.link(f"{self.stream.source_dir}/A/f", f"{self.stream.source_dir}/B/h")
        if full:
            settle(pair)
            self.stream.synchronise(full=True)
            if not connected:
                self.stream.go_alone()

    # --- the VM ---------------------------------------------------------------------------------------------------

    def _try(self, send: Callable[[], Request]) -> None:
        try:
            self.requests.append(send())
        except MAY_FAIL:
            pass

    def _file(self, path: bytes) -> Inode | None:
        """A regular file, open; or one that is open already, when there is none under this path."""
        try:
            inode = self.vm.find(path)
            if inode.directory:
                return None
            if inode.handle < 0:
                self.vm.open(path)
                self.opened.append(inode)
            return inode
        except MAY_FAIL:
            open_ones = [inode for inode in self.opened if inode.handle >= 0]
            return open_ones[len(path) % len(open_ones)] if open_ones else None

    @rule(path=PATHS)
    def create(self, path: bytes) -> None:
        try:
            self.vm.find(path)
        except FileNotFoundError:
            self._try(lambda: self.vm.create(path))
        except MAY_FAIL:
            pass

    @rule(path=PATHS)
    def mkdir(self, path: bytes) -> None:
        self._try(lambda: self.vm.mkdir(path))

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        self._try(lambda: self.vm.unlink(path))

    @rule(old=PATHS, new=PATHS, exchange=st.booleans())
    def rename(self, old: bytes, new: bytes, exchange: bool) -> None:
        if (new + b"/").startswith(old + b"/") or (old + b"/").startswith(new + b"/"):
            return  # the kernel refuses it by itself
        self._try(lambda: self.vm.rename(old, new, linux_io.RENAME_EXCHANGE if exchange else 0))

    @rule(old=PATHS, new=PATHS)
    def link(self, old: bytes, new: bytes) -> None:
        try:
            if self.vm.find(old).directory:
                return
        except MAY_FAIL:
            return
        self._try(lambda: self.vm.link(old, new))

    @rule(path=st.one_of(PATHS, st.just(b"big")), offset=OFFSETS, size=SIZES, seed=st.integers(0, 255))
    def write(self, path: bytes, offset: int, size: int, seed: int) -> None:
        file = self._file(path)
        if file is not None:
            self._try(lambda: self.vm.write(file, offset, bytes([seed]) * size))

    @rule(path=st.one_of(PATHS, st.just(b"big")), size=st.one_of(OFFSETS, st.just(1 << 20)))
    def truncate(self, path: bytes, size: int) -> None:
        file = self._file(path)
        if file is not None:
            self._try(lambda: self.vm.truncate(file, size))

    @rule(path=st.one_of(PATHS, st.just(b"big")), offset=OFFSETS, size=SIZES)
    def punch(self, path: bytes, offset: int, size: int) -> None:
        file = self._file(path)
        if file is not None:
            self._try(lambda: self.vm.punch(file, offset, size))

    @rule(path=PATHS, mode=st.sampled_from([0o600, 0o640, 0o755, 0o711]))
    def chmod(self, path: bytes, mode: int) -> None:
        self._try(lambda: self.vm.chmod(self.vm.find(path), mode))

    @rule(path=PATHS)
    def fsync(self, path: bytes) -> None:
        file = self._file(path)
        if file is not None:
            self._try(lambda: self.vm.fsync(file))

    @rule()
    def close_files(self) -> None:
        for inode in self.opened:
            if inode.handle >= 0 and not inode.locks:
                self.vm.close(inode)

    @rule(path=PATHS)
    def forget(self, path: bytes) -> None:
        try:
            self.vm.forget(path)
        except MAY_FAIL:
            pass

    @rule()
    def evict(self) -> None:
        self.vm.evict_all()

    # --- the loops ------------------------------------------------------------------------------------------------

    @rule()
    def take(self) -> None:
        self.stream.take()

    @rule()
    def turn(self) -> None:
        self.stream.turn()

    @rule()
    def helper_performs(self) -> None:
        self.stream.helper.perform()

    @rule()
    def helper_answers(self) -> None:
        self.stream.answer()

    @rule()
    def flushes_end(self) -> None:
        self.stream.flushed()

    @rule(count=st.integers(1, 3))
    def deliver_frames(self, count: int) -> None:
        self.stream.deliver_frames(count)

    @rule(size=st.integers(1, 2000))
    def deliver_bytes(self, size: int) -> None:
        self.stream.deliver(size)

    @rule(count=st.integers(1, 3))
    def deliver_back(self, count: int) -> None:
        self.stream.deliver_back(count)

    @rule(times=st.integers(1, 12))
    def go_on(self, times: int) -> None:
        for _ in range(times):
            self.stream.one_of_each()

    # --- the link -------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.stream.source.mode is ALONE and self.stream.source.connection is None)
    @rule(full=st.booleans())
    def reintegrate(self, full: bool) -> None:
        self.stream.begin(full)

    @precondition(lambda self: self.stream.source.connection is not None)
    @rule(kill=st.booleans())
    def lose_the_link(self, kill: bool) -> None:
        synchronised = self.stream.in_sync
        if kill:
            self.stream.kill_target()
        else:
            self.stream.cut()
        self.resumable = synchronised and not kill

    @precondition(lambda self: self.stream.source.mode is FROZEN and self.stream.source.connection is None)
    @rule(verdict=st.sampled_from(["resume", "go alone"]))
    def verdict(self, verdict: str) -> None:
        if verdict == "resume" and self.resumable:
            self.stream.resume()
        else:
            self.stream.source.go_alone()

    # --- always ---------------------------------------------------------------------------------------------------

    @invariant()
    def answers_are_heard(self) -> None:
        self.vm.hear()  # raises when a request is answered twice

    @invariant()
    def no_trouble(self) -> None:
        assert self.stream.lost == []

    @invariant()
    def what_was_acknowledged_in_sync_is_on_the_target(self) -> None:
        """At rest in sync, nothing may differ even though nobody has settled anything."""
        stream = self.stream
        source = stream.source
        if (
            source.mode is not PRIM
            or not stream.in_sync
            or source.inflight
            or source.has_local_writes
            or self.vm.pending
        ):
            return
        assert stream.differences() == []


TestInterleavings = Interleavings.TestCase
TestInterleavings.settings = settings(
    max_examples=int(os.environ.get("HOTPAIR_EXAMPLES", "60")),
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
