"""A source's clean stop: unmount, let what is outstanding finish, flush both copies, forget the marks, end.

Each step has a time limit. Who still uses the mount when it is up loses it; a copy that could not be flushed keeps
its marks.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from dataclasses import replace

from hotpair.replication import dirty_log, fuse_io, keeper_io, linux_io
from hotpair.replication.clean_stop_io import write_table
from hotpair.replication.frames import Kind
from hotpair.replication.helper_io import Helper
from hotpair.replication.modes import FROZEN, PRIM, REINTEGRATING, STOPPED
from hotpair.replication.source import Source
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_session import Session
from hotpair.replication.source_standing import Standing
from hotpair.replication.source_start import Mount
from hotpair.replication.tap_fuse import FuseTap

log = logging.getLogger("hotpair.replication")


class CleanStop:
    """``begin`` starts it, ``step`` is called until it has ``ended``."""

    def __init__(
        self,
        own_copy: OwnCopy,
        source: Source,
        mount: Mount,
        tap: FuseTap,
        helper: Helper,
        session: Session,
        standing: Standing,
    ) -> None:
        self._copy = own_copy
        self._source = source
        self._mount = mount
        self._tap = tap
        self._helper = helper
        self._session = session
        self._standing = standing
        self._stop_at = 0.0
        self._flushed = False
        self.ended = False
        self.last_word = "stopped"
        self.clean = True  # nothing has failed: what is on the disk then is what the mirror left there

    def begin(self, now: float) -> None:
        """From here on no verdict is carried out and no connection is made any more. Its time limit counts once."""
        if not self._standing.stopping:
            self._standing.stopping = True
            self._stop_at = now + 30.0
            self._standing.changed()

    def step(self) -> None:
        """A clean stop: unmount, let what is outstanding finish, flush both copies, forget the marks."""
        source = self._source
        if self._standing.failed:
            self._mount.mounted = False  # nobody can use it: it is taken away at the end, from whoever holds it
        if self._mount.mounted:
            try:
                linux_io.umount2(self._mount.directory, 0)
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() < self._stop_at - 28.0:
                    if error.errno != errno.EBUSY:
                        log.info("unmounting: %s", error.strerror)
                        self._mount.mounted = False
                    return
                log.warning("the mount is busy: taken away from those who use it")
                fuse_io.unmount(self._mount.directory)
            self._mount.mounted = False
        late = time.monotonic() > self._stop_at
        if source.mode is PRIM and self._standing.in_sync and not late:
            if source.inflight or source.has_local_writes:
                return
            if not self._flushed:
                self._flushed = True
                source.times.carry_all()
                source.flushes.flush_everything(self._copy.root_fd, self._stopped)
                source.turn_end()
            return
        if source.mode not in (FROZEN, STOPPED, REINTEGRATING) and source.has_local_writes and not late:
            return
        self._end()

    def _stopped(self, error: int) -> None:
        if not error and self._source.mode is PRIM:
            self._source.marks.when_idle(self._stopped_in_sync)
        else:
            self._end()

    def _stopped_in_sync(self) -> None:
        """Both copies are on disk and equal: nothing needs a mark any more."""
        if self._copy.log.failure is None:
            self._copy.log.compact(dirty_log.Marks())
            self._copy.store(replace(self._copy.record, log_counter=self._copy.log.counter))
        self._source.message(Kind.BYE, "stopped")
        self._source.send()
        self._end()

    def _end(self) -> None:
        self.ended = True
        linux_io.syncfs(self._copy.root_fd)
        self._session.close()
        ours = fuse_io.mount_at(self._mount.directory)
        if ours is not None and ours.connection == self._mount.connection:
            fuse_io.unmount(self._mount.directory)  # and nothing that was mounted there before
        self._mount.abort()  # or who still has a file open would wait for ever: the keeper holds the connection
        self._tap.close(unmounted=True)
        os.close(self._mount.fuse_fd)
        self._helper.close()
        self._copy.log.close()
        if self.clean:
            write_table(self._mount.state, self._copy.root_fd, self._copy.identity)
        fcntl.flock(self._copy.root_fd, fcntl.LOCK_UN)  # helpers share it, and may take a moment to end
        os.close(self._copy.root_fd)
        keeper_io.dismiss(self._mount.state)
        self._standing.say(self.last_word)
