"""The target's hold on its snapshot: made before the copy becomes inconsistent, kept until it is in sync again.

The work is done by a helper process (snapshot_helper.py) while the loop goes on; only renames are done here. A snapshot
that cannot be made is logged, and the reintegration goes on without: the copy that is being made is worth more.
"""

from __future__ import annotations

import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from hotpair.cluster import record as records
from hotpair.cluster.record import Record
from hotpair.replication import clone_io, snapshot
from hotpair.replication.errors import LinkLost
from hotpair.replication.limits import SNAPSHOT_LEFTOVERS
from hotpair.replication.snapshot_helper import private_folder

log = logging.getLogger("hotpair.replication")

Watch = Callable[[int, Callable[[], None]], None]
Unwatch = Callable[[int], None]


@dataclass
class Making:
    """A snapshot that is being made."""

    token: str
    record: Record
    process: subprocess.Popen[bytes]
    limit_s: float
    until: float  # monotonic, seconds
    done: Callable[[], None] | None  # None: nobody waits for it any more


class Snapshots:
    """One for the life of a target process. Its loop watches what ``watch`` is given."""

    def __init__(self, root_fd: int, watch: Watch, unwatch: Unwatch) -> None:
        # A file of its own for the helpers: one that outlives this process must not hold the lock on the root
        self._root_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
        self._private_fd = private_folder(root_fd)
        self._watch = watch
        self._unwatch = unwatch
        self._possible = clone_io.can_clone(root_fd)
        self._making: Making | None = None
        self._remover: subprocess.Popen[bytes] | None = None
        self._waiting: Callable[[], None] | None = None  # for space to become free

    @property
    def working(self) -> bool:
        """Whether a beginning reintegration waits for something here."""
        return self._making is not None or self._waiting is not None

    # --- before, and after ----------------------------------------------------------------------------------------

    def prepare(self, record: Record, limit_s: float, done: Callable[[], None]) -> None:
        """Have a snapshot of a consistent copy, if there can be one in that time, then call ``done``.

        Of an inconsistent copy none is made: what was kept when it became so is the last consistent one, and stays.
        Raises LinkLost when an older one cannot be put away, which would be taken for it.
        """
        assert not self.working, "one reintegration at a time"
        if record.inconsistent:
            if self._remover is None:
                done()
            else:
                self._waiting = done
            return
        self.put_away()
        if not self._possible:
            done()
            return
        token = secrets.token_hex(8)
        process = self._start("make", token, records.encode(record).hex())
        making = Making(token, record, process, limit_s, time.monotonic() + limit_s, done)
        self._making = making
        self._when_ended(process, lambda: self._made(making))

    def _made(self, making: Making) -> None:
        if making.process.returncode == 0 and making.done is not None:
            try:
                generation = making.record.generation
                os.rename(
                    snapshot.making(making.token),
                    snapshot.name_of(generation),
                    src_dir_fd=self._private_fd,
                    dst_dir_fd=self._private_fd,
                )
                os.fsync(self._private_fd)
                log.info("a snapshot of the last consistent copy is kept: generation %s", generation.hex())
            except OSError as error:
                log.warning("no snapshot of this copy: %s", error.strerror)
        self._finish(making)

    def _finish(self, making: Making) -> None:
        done, making.done = making.done, None
        if self._making is making:
            self._making = None
        if done is not None:
            done()

    def cancel(self) -> None:
        """The connection that waits is gone."""
        self._waiting = None
        if self._making is not None:
            self._abandon(self._making)

    def tick(self, now: float) -> None:
        """Go on without a snapshot that takes too long. What its helper still writes is never given a name."""
        making = self._making
        if making is not None and now >= making.until:
            log.warning("no snapshot of this copy: it takes longer than %g s", making.limit_s)
            done = making.done
            self._abandon(making)
            if done is not None:
                done()

    def _abandon(self, making: Making) -> None:
        making.done = None
        making.process.kill()
        self._making = None

    # --- removing -------------------------------------------------------------------------------------------------

    def drop(self) -> None:
        """The copy is in sync, or a snapshot would keep it from ever being so: remove it. Raises LinkLost."""
        self.put_away()
        self.tidy()

    def put_away(self) -> None:
        """No snapshot from here on, durably. Raises LinkLost."""
        try:
            put_away(self._private_fd)
        except OSError as error:
            raise LinkLost(f"an old snapshot cannot be put away: {error.strerror}") from error

    def tidy(self) -> None:
        """Have removed what waits for it; not beside a helper that still writes there."""
        if self._remover is not None or self._making is not None:
            return
        names = [name for name in map(os.fsencode, os.listdir(self._private_fd)) if snapshot.is_leftover(name)]
        if names:
            process = self._start("remove", *map(os.fsdecode, names[:SNAPSHOT_LEFTOVERS]))
            self._remover = process
            self._when_ended(process, self._removed)

    def _removed(self) -> None:
        self._remover = None
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting()

    # --- helpers --------------------------------------------------------------------------------------------------

    def _start(self, command: str, *arguments: str) -> subprocess.Popen[bytes]:
        module = "hotpair.replication.snapshot_helper"
        return subprocess.Popen(
            [sys.executable, "-m", module, command, str(self._root_fd), *arguments],
            pass_fds=(self._root_fd,),
            cwd="/",
            stdin=subprocess.DEVNULL,
        )

    def _when_ended(self, process: subprocess.Popen[bytes], then: Callable[[], None]) -> None:
        fd = os.pidfd_open(process.pid)

        def ended() -> None:
            self._unwatch(fd)
            os.close(fd)
            process.wait()
            then()

        self._watch(fd, ended)


def put_away(private_fd: int) -> None:
    """Make what snapshots there are something to be removed, durably. Raises OSError."""
    found = [name for name in map(os.fsencode, os.listdir(private_fd)) if snapshot.is_snapshot(name)]
    for name in found:
        new = snapshot.removing(secrets.token_hex(8))
        os.rename(name, new, src_dir_fd=private_fd, dst_dir_fd=private_fd)
    if found:
        os.fsync(private_fd)


def forget_snapshots(root_fd: int) -> None:
    """A server whose copy is the source has no use for one that a crash has left: it would be taken for a later one."""
    private_fd = private_folder(root_fd)
    try:
        put_away(private_fd)
    finally:
        os.close(private_fd)
