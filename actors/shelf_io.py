"""Where a module's durable facts lie on this server: the record, what the operator wants,
and the automatic actions that count."""

from __future__ import annotations

import os

from hotpair.actors.module_runner import NotStored
from hotpair.cluster import loop_counter_io, record_io, wishes_io
from hotpair.cluster.loop_counter_io import LoopCounter
from hotpair.cluster.record import Record
from hotpair.cluster.wishes_io import Wishes
from hotpair.replication import linux_io

RECORD_FILE = "record"
WISHES_FILE = "wishes"
LOOP_FILE = "loop"


class ModuleShelf:
    """For ModuleRunner. `state`: the module's; `mirror`: its mirror process's, which keeps the record while it runs.

    `directory` is the module's own, which is mirrored; `boot` is this host's boot id.
    """

    def __init__(self, state: str, mirror: str, directory: str, boot: str) -> None:
        self.record_path = os.path.join(mirror, RECORD_FILE)
        self._wishes = os.path.join(state, WISHES_FILE)
        self._loop = os.path.join(state, LOOP_FILE)
        self._directory = directory
        self._boot = boot
        self._before = Wishes()
        self.going_down = False  # what is stopped now is stopped for the host's sake: it stays wanted
        for path in (state, mirror):
            os.makedirs(path, mode=0o700, exist_ok=True)

    def load(self) -> tuple[Record | None, Wishes]:
        """Raises RecordDamaged, RecordVersion, RecordNotStored or WishesUnusable, each with what to do."""
        record = record_io.load(self.record_path)
        return record, self.load_wishes()

    def load_wishes(self) -> Wishes:
        """Raises WishesUnusable."""
        self._before = wishes_io.load(self._wishes)
        return self._before

    def load_loop(self) -> LoopCounter:
        """Raises LoopCounterUnusable."""
        return loop_counter_io.load(self._loop)

    def store_loop(self, counter: LoopCounter) -> None:
        try:
            loop_counter_io.store(self._loop, counter)
        except loop_counter_io.LoopCounterUnusable as error:
            raise NotStored(str(error)) from error

    def store(self, record: Record, *, flush: bool) -> None:
        try:
            if flush:
                flush_file_system(self._directory)
            record_io.store(self.record_path, record)
        except (OSError, record_io.RecordNotStored) as error:
            raise NotStored(str(error)) from error

    def remember(self, *, wanted: bool, maintenance: bool) -> None:
        wishes = Wishes(wanted or (self.going_down and self._before.wanted), maintenance, self._boot)
        try:
            wishes_io.store(self._wishes, wishes)
        except wishes_io.WishesUnusable as error:
            raise NotStored(str(error)) from error
        self._before = wishes


def flush_file_system(path: str) -> None:
    """Everything on the file system of `path` is on its disk on return (syncfs(2)). Raises OSError.

    A directory that does not exist holds nothing that could be lost.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        linux_io.syncfs(descriptor)
    finally:
        os.close(descriptor)
