"""The source's mirror process: it joins the parts and runs the loop around them. It carries out verdicts, makes none.

Whoever runs it (a supervisor through the control socket, or ``--alone-after`` in the foreground) decides when a frozen
source goes on alone or stops. How it starts: source_start, source_copy; the connection to the target: source_session;
what it is told to do: source_verdicts; how it ends: source_stop; what others see of it: source_standing and, from the
control socket's threads, source_control.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from hotpair.replication import frames, fuse_io, linux_io
from hotpair.replication.errors import LinkLost, ProtocolError
from hotpair.replication.flusher_io import Flusher
from hotpair.replication.frames import Kind
from hotpair.replication.helper_io import Helper
from hotpair.replication.limits import COLD_READS_BESIDE_WRITES, COLD_READS_PER_TURN, DESCRIPTORS_SPARE, SPIN_S
from hotpair.replication.link_io import Connector, Delivery
from hotpair.replication.loop_io import Loop
from hotpair.replication.modes import PRIM
from hotpair.replication.process_io import descriptor_limit, lock_state
from hotpair.replication.reports_io import Reports
from hotpair.replication.source import Source
from hotpair.replication.source_control import SourceControl
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_report import SourceReport
from hotpair.replication.source_session import UNANSWERED, Phase, Session
from hotpair.replication.source_standing import Standing
from hotpair.replication.source_start import Mount, SourceOptions
from hotpair.replication.source_stop import CleanStop
from hotpair.replication.source_verdicts import Verdicts
from hotpair.replication.spin import Spinner
from hotpair.replication.tap_fuse import FuseTap
from hotpair.replication.tap_prune import Pruner

log = logging.getLogger("hotpair.replication")

TICK_S: Final = 0.1


class SourceProcess:
    """Made once for the life of the process."""

    def __init__(self, options: SourceOptions, say: Callable[[str], None]) -> None:
        self._lock = lock_state(options.state)
        fuse_io.check_kernel()
        self._copy = OwnCopy(options)
        self._activity = self._copy.activity
        self._flushes = Flusher()
        self.source = Source(
            self._copy.log,
            self._activity,
            self._flushes,
            options.extent_size,
            options.durability == "disk",
            self._copy.largest_file,
        )
        self.source.on_disk_failure = self._disk_failed
        self.source.flushes.sync_file_system = self._sync_file_system
        self._delivery = Delivery()
        self._connector = Connector(*options.peer, options.tls, self._delivery)
        self._loop = Loop()
        self._spinner = Spinner(SPIN_S)
        self._standing = Standing(self.source, say)
        self._starts_alone = options.alone
        self._ticked_at = 0.0
        self._exit_code = 0
        self._evicting = False
        self._helper = Helper(1)
        limit = descriptor_limit() - DESCRIPTORS_SPARE
        self._mount = Mount(options, self._copy.kept, self._copy.root_fd)
        self.tap = FuseTap(
            self._mount.fuse_fd,
            self._copy.root_fd,
            self.source,
            self._activity,
            limit // 2,
            options.cache,
            os.path.join(options.state, "journal"),
            self._mount.adopted,
        )
        self._pruner = Pruner(self._mount.fuse_fd, self.tap.nodes, options.known_objects)
        self.source.known.nodes = self.tap.nodes
        self.source.times.path_fd = self.tap.objects.descriptors.get
        self._join(options)

    def _join(self, options: SourceOptions) -> None:
        """The parts that decide what is said and done, each with what it may use."""
        own_copy, source, tap, standing = self._copy, self.source, self.tap, self._standing
        self._session = session = Session(
            options, own_copy, source, tap, self._helper, self._connector, self._loop, standing
        )
        session.admit_changes(own_copy.changed)
        self._stop = CleanStop(own_copy, source, self._mount, tap, self._helper, session, standing)
        self.verdicts = session.verdicts = Verdicts(
            options, own_copy, source, tap, self._helper, session, self._stop, self._mount, standing
        )
        self._report = SourceReport(own_copy, source, session, self.verdicts, standing)
        self.reports = Reports(self._report.compose, self._delivery.put)
        standing.changed = self.reports.changed
        self.control = SourceControl(
            self._delivery, own_copy, source, self._mount, tap, session, self.verdicts, standing, self.reports
        )

    # --- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until stopped; the exit code."""
        for sig in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sig, self._signalled)
        self._loop.watch(self._mount.fuse_fd, self._take)
        self._loop.watch(self._delivery.fileno(), self._delivered)
        self._loop.watch(self._flushes.fileno(), self._flushes.completed)
        self._loop.watch(self._helper.fileno(), self._helped)
        self._loop.watch(self.tap.files.cold_reads.fileno(), self.tap.files.cold_reads.completed)
        if self._starts_alone:
            self.verdicts.alone_now()
        self._session.connect(time.monotonic())
        if self._mount.adopted:
            self._standing.say("adopted the mount")
            self.tap.ask_again()
        poll = self._loop.poll
        handlers = self._loop.handlers
        source = self.source
        fuse_fd = self._mount.fuse_fd
        spinner = self._spinner
        begin_reads, reads_wait = self.tap.files.cold_reads.begin_some, False
        loop, session, stop = self._loop, self._session, self._stop
        while not stop.ended:
            if reads_wait:
                events = poll(0)
            else:
                events = spinner.poll(poll, session.connection is not None) or poll(TICK_S)
            try:
                for fd, _ in events:
                    handler = handlers.get(fd)
                    if handler is not None:
                        handler()
                if stop.ended:
                    break
                source.turn_end()
                reads_wait = begin_reads(COLD_READS_BESIDE_WRITES if source.inflight else COLD_READS_PER_TURN)
                if source.reintegration is not None:
                    source.reintegration.step()
                    source.turn_end()
                if source.verification is not None:
                    source.verification.step()
                    source.turn_end()
                session.watch_writes()
                if source.congested or not self.tap.ready:
                    loop.pause(fuse_fd)
                elif loop.paused:
                    loop.unpause(fuse_fd)
                now = time.monotonic()
                if now - self._ticked_at >= TICK_S:
                    self._ticked_at = now
                    self._tick(now)
                if source.broken is not None:
                    raise source.broken
            except LinkLost as error:
                session.link_lost(f"{error}{UNANSWERED if session.phase is Phase.GREETING else ''}")
            except ProtocolError as error:
                reason = frames.text(str(error))
                source.message(Kind.REFUSED, reason)
                source.send()
                session.link_lost(reason)
        return self._exit_code

    def _take(self) -> None:
        try:
            self.tap.take()
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            self._loop.unwatch(self._mount.fuse_fd)
            self._mount.mounted = False
            if not self._standing.failed:  # else it is we who have aborted it, and a verdict says when to end
                self._standing.say("unmounted")
                self.verdicts.begin_stop()

    def _helped(self) -> None:
        for answer in self._helper.answers():
            reintegration = self.source.reintegration
            if reintegration is not None and reintegration.answered(answer):
                continue
            if self.source.verification is None or not self.source.verification.answered(answer):
                self._helper.abandon(answer[0])

    def _sync_file_system(self, fd: int, done: Callable[[int], None]) -> None:
        """Flush a file system from a thread, because it may take long."""

        def flush() -> None:
            code = 0
            try:
                linux_io.syncfs(fd)
            except OSError as error:
                code = error.errno or errno.EIO
            self._delivery.put(lambda: done(code))

        threading.Thread(target=flush, name="syncfs", daemon=True).start()

    def _signalled(self, _signal: int, _frame: object) -> None:
        self.verdicts.begin_stop()

    def _delivered(self) -> None:
        for item in self._delivery.take():
            if callable(item):
                item()
            elif self._session.connection is not None or self._standing.stopping or self._standing.failed:
                item.close()
            else:
                self._session.connected(item)

    def _disk_failed(self, what: str) -> None:
        self._copy.store(replace(self._copy.record, inconsistent=True, in_sync=False, solo=False))
        self._standing.say(f"disk failed: {what}")
        self._standing.reason = f"disk failed: {what}"
        self._exit_code = 1
        self._stop.clean = False
        self.verdicts.begin_stop()

    # --- time ---------------------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        source = self.source
        self._session.tick(now)
        self.verdicts.tick(now)
        if source.mode is PRIM and not source.inflight:
            source.times.carry_all()
            source.turn_end()
        if self._copy.log.should_compact():
            source.marks.when_idle(self._copy.compact)
        self._evict()
        self._pruner.step()
        self._report.tick(now)
        self.reports.publish()
        if self._standing.stopping:
            self._stop.step()

    def _evict(self) -> None:
        """Let the least recently used marks go, a quarter at a time, after both copies have flushed."""
        source = self.source
        if source.mode is not PRIM or not self._standing.in_sync or self._evicting:
            return
        selection = self._activity.victims()
        if selection is None:
            return
        self._evicting = True
        log.debug("evicting marks of %d files", len(selection.extents))

        def flushed(error: int) -> None:
            self._evicting = False
            if error or source.mode is not PRIM:
                self._activity.abort_eviction(selection)
                return
            for record in self._activity.finish_eviction(selection):
                source.marks.stage(record)

        source.flushes.flush_everything(self._copy.root_fd, flushed)
