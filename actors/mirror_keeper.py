"""Keeps one module's mirror process: starts it, takes it on, tells it verdicts, hears its reports. No Ray in here.

The process is nobody's child and outlives this one: it is found again by its control socket. Its reports are levels,
so a verdict that is lost is given again by the state machine at the next report, and nothing here is repeated.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hotpair.actors.event_log_io import Note
from hotpair.actors.shelf_io import RECORD_FILE
from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.module_events import MirrorReported
from hotpair.cluster.module_values import Mirror, MirrorMode, Role
from hotpair.cluster.record import Record, RecordDamaged, RecordVersion
from hotpair.replication import own_log_io
from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import MirrorError, Refused

log = logging.getLogger("hotpair.mirror")

CONNECT_S = 60.0  # from its start to its control socket: it mounts, and reads the dirty log, before
LOOK_S = 0.02  # between two looks whether that socket is there
SETTLE_S = 30.0  # who asks how it is while it is being started waits so long for what comes of that
GRACE_S = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)  # before a process that has died at once is reported gone, by how often it did
LIVED_S = 10.0  # a process that lived so long did not die at once
SALVAGE_S = 24 * 3600.0
TURN_S = 0.2  # for a verdict that is on its way: its answer is a report, too
ANSWER_S = 0.2  # for a report that is asked for
NO_REPORT = (KeyError, ValueError, RecordDamaged, RecordVersion)
LINE = "\n"
WORDS = 2000  # bytes of its log that are repeated when it does not come up


@dataclass(frozen=True)
class MirrorFacts:
    """What does not change while a module is open. `here`: where a target listens; `peer`: where the other's does.

    options         of `python -m hotpair.replication`, for both roles, and for a source only
    overwrite_mark  a file: while it is there, and no record, a target replaces what it finds in its directory
    """

    module: str
    directory: str
    state: str
    log: str
    here: tuple[str, int]
    peer: tuple[str, int]
    options: tuple[str, ...] = ()
    source_options: tuple[str, ...] = ()
    overwrite_mark: str = ""


def arguments(facts: MirrorFacts, role: Role, *, alone: bool, overwrite: bool = False) -> list[str]:
    """Of `python -m hotpair.replication`."""
    common = [role.value, "--dir", facts.directory, "--state", facts.state, *facts.options]
    if role is Role.TARGET:
        return [*common, "--listen", f"{facts.here[0]}:{facts.here[1]}", *(("--overwrite",) if overwrite else ())]
    peer = f"{facts.peer[0]}:{facts.peer[1]}"
    return [*common, "--peer", peer, *facts.source_options, *(("--alone",) if alone else ())]


def reported(fields: Mapping[str, Any]) -> MirrorReported:
    """A report of the control socket as an event. KeyError, ValueError, RecordDamaged: it is not one."""
    mirror = Mirror(
        Role(fields["role"]),
        MirrorMode(fields["mode"]),
        linked=fields["linked"],
        session=fields["session"],
        in_sync=fields["in_sync"],
        asked=fields["asked"],
        agreeing=fields["agreeing"],
    )
    record = fields["record"]
    return MirrorReported(mirror, None if record is None else records.decode(record), fields["bytes_changed"])


class MirrorKeeper:
    """Methods return at once; `hear` is called from threads of its own, one report after the other."""

    def __init__(
        self,
        facts: MirrorFacts,
        hear: Callable[[MirrorReported | Note], None],
        says: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """`says` gets the reason why it is not in sync, before the report that it belongs to; only when it changes."""
        self._facts = facts
        self._hear = hear
        self._says = says
        self.reason = ""
        self._lock = threading.Lock()
        self._talking = threading.Lock()  # held while a verdict is on its way: what is reported meanwhile waits
        self._verdicts: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._watching: ControlClient | None = None
        self._least = 0  # reports with a lower number are older than the last verdict
        self._told = 0
        self._end_at_once = False
        self._settled = threading.Condition(self._lock)
        self._coming = False  # it is being started, and nothing was heard of it yet
        self._last: MirrorReported | None = None
        self._died = 0  # times in a row, soon after its start, without having been told to end
        self._is_to_end = False
        self._closed = False
        self._salvage_said = ""
        threading.Thread(target=self._give_verdicts, name="mirror verdicts", daemon=True).start()

    # ---- at the beginning and the end

    def find(self) -> MirrorReported:
        """What runs at the beginning; it is watched from here on."""
        self._last = self._find()
        return self._last

    def now(self) -> MirrorReported:
        """As it was heard last, or found; while it is being started, what comes of that."""
        with self._settled:
            self._settled.wait_for(lambda: not self._coming, SETTLE_S)
            assert self._last is not None, "it is looked for first"
            return self._last

    def _find(self) -> MirrorReported:
        try:
            client = ControlClient(self._facts.state)
        except MirrorError:
            return self._gone()
        news = client.watch()
        try:
            fields = next(news)
        except MirrorError:
            client.close()
            return self._gone()
        first = reported(fields)
        self._because(fields.get("reason", ""))
        with self._lock:
            self._watching = client
            self._told = fields["number"]
        threading.Thread(target=self._watch, args=(client, news), name="mirror reports", daemon=True).start()
        return first

    def close(self) -> None:
        """Stop watching; the process goes on."""
        with self._lock:
            self._closed = True
            client, self._watching = self._watching, None
        self._verdicts.put(None)
        if client is not None:
            client.close()

    # ---- what the state machine says

    def start(self, role: Role, *, alone: bool, salvage: bytes | None) -> None:
        """One that is there, or is being started, is told of again: whoever says this had not heard of it."""
        work = (role, alone, salvage)
        with self._lock:
            coming, there, last = self._coming, self._watching is not None, self._last
            if not coming and not there:
                self._end_at_once, self._is_to_end, self._coming = False, False, True
        if coming:
            return
        if there and last is not None:
            self._hear(last)
            return
        threading.Thread(target=self._start, args=work, name="mirror start", daemon=True).start()

    def stop(self) -> None:
        self._is_to_end = True
        self._verdict("shutdown")

    def go_alone(self, based_on: Record, record: Record) -> None:
        self._verdict("go_alone", based_on=records.encode(based_on), record=records.encode(record))

    def fail_tap(self) -> None:
        self._verdict("fail_tap")

    def hand_over(self) -> None:
        self._is_to_end = True
        self._verdict("handover")

    def leave(self) -> None:
        self._is_to_end = True
        self._verdict("leave")

    def agree(self, based_on: Record, epoch: int, *, mine_first: bool) -> None:
        self._verdict("agree", based_on=records.encode(based_on), epoch=epoch, mine_first=mine_first)

    def report(self) -> None:
        """Have the process say how it is, if it answers within a moment; what is news has been heard on return."""
        if not self._talking.acquire(timeout=TURN_S):
            return
        try:
            with ControlClient(self._facts.state, ANSWER_S) as client:
                self._tell(client.ask("report"))
        except MirrorError as error:
            log.info("%s: report: %s", self._facts.module, error)
        except NO_REPORT as error:
            self._is_no_report(error)
        finally:
            self._talking.release()

    def status(self) -> Mapping[str, Any]:
        """For people; empty when none runs."""
        try:
            with ControlClient(self._facts.state) as client:
                return client.ask("status")
        except MirrorError:
            return {}

    # ---- threads

    def _verdict(self, command: str, **given: Any) -> None:
        self._verdicts.put((command, given))

    def _give_verdicts(self) -> None:
        """One after the other, in their order."""
        while (verdict := self._verdicts.get()) is not None:
            with self._talking:
                self._give(*verdict)

    def _give(self, command: str, given: dict[str, Any]) -> None:
        try:
            with ControlClient(self._facts.state) as client:
                self._least = client.ask(command, **given).get("number", 0)
        except Refused as refusal:
            log.warning("%s: %s: %s", self._facts.module, command, refusal)
            self._is_to_end = self._is_to_end and command == "shutdown"  # a handover, a leave: it goes on
            self._least = refusal.report["number"]
            self._told = self._least - 1  # heard again: what was assumed is not so
            self._tell(refusal.report)
        except MirrorError as error:
            with self._lock:
                self._end_at_once = self._coming and command == "shutdown"  # it is not up yet
            log.info("%s: %s: %s", self._facts.module, command, error)

    def _tell(self, fields: Mapping[str, Any]) -> None:
        """A report, unless it is older than a verdict that was carried out, or than the last one."""
        if fields["number"] > self._told and fields["number"] >= self._least:
            self._told = fields["number"]
            report = reported(fields)
            self._because(fields.get("reason", ""))  # one of before the service was upgraded has none
            self._say(report)

    def _say(self, report: MirrorReported) -> None:
        with self._settled:
            self._last, self._coming = report, False
            self._settled.notify_all()
        self._hear(report)

    def _because(self, reason: str) -> None:
        if reason != self.reason:
            self.reason = reason
            self._says(reason)

    def _is_no_report(self, error: Exception) -> None:
        log.error("%s: the mirror reports what is no report: %r", self._facts.module, error)

    def _start(self, role: Role, alone: bool, salvage: bytes | None) -> None:
        facts, began = self._facts, time.monotonic()
        time.sleep(GRACE_S[min(self._died, len(GRACE_S) - 1)])
        if salvage is not None and not self._salvage(salvage):
            self._report_gone(began)
            return
        readable, written = os.pipe()
        client, said_before = None, 0
        try:
            with os.fdopen(written, "wb"), open(facts.log, "ab", buffering=0) as output:
                said_before = output.tell()
                # Its end of the pipe goes with the process: that it has died shows without waiting for a time limit.
                subprocess.run(
                    ["setsid", "--fork", sys.executable, "-P", "-m", "hotpair.replication"]
                    + arguments(facts, role, alone=alone, overwrite=os.path.exists(facts.overwrite_mark)),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    pass_fds=[written],
                    check=True,
                )
            client = self._connect(readable, began)
        except (OSError, subprocess.CalledProcessError) as error:
            log.error("%s: the mirror cannot be started: %s", facts.module, error)
        finally:
            os.close(readable)
        if client is None:
            words = self._words(said_before)
            log.error("%s: the mirror did not come up as %s: %s", facts.module, role.value, words)
            self._report_gone(began, f"it did not come up as {role.value}: {words.rpartition(LINE)[2]}")
            return
        with self._lock:
            if self._closed:
                client.close()
                return
            self._watching = client
            ends = self._end_at_once
        if ends:
            self._verdict("shutdown")
        with self._talking:
            self._least = self._told = 0
        self._watch(client, client.watch(), began)

    def _connect(self, readable: int, began: float) -> ControlClient | None:
        """Its control socket, once it is there; None when the process ends before."""
        poll = select.poll()
        poll.register(readable, select.POLLIN)
        while time.monotonic() < began + CONNECT_S:
            try:
                return ControlClient(self._facts.state)
            except MirrorError:
                if poll.poll(LOOK_S * 1000):
                    return None
        return None

    def _watch(self, client: ControlClient, news: Iterator[Mapping[str, Any]], began: float = 0.0) -> None:
        try:
            for fields in news:
                with self._talking:
                    self._tell(fields)
        except MirrorError as error:
            log.info("%s: %s", self._facts.module, error)
        except NO_REPORT as error:
            self._is_no_report(error)
        finally:
            client.close()
        with self._lock:
            if self._closed or self._watching is not client:
                return
            self._watching = None
        self._report_gone(began)

    def _report_gone(self, began: float, why: str = "") -> None:
        is_well = self._is_to_end or time.monotonic() - began > LIVED_S
        self._died = 0 if is_well else self._died + 1
        with self._talking:
            self._because(why)
            self._say(self._gone())

    def _gone(self) -> MirrorReported:
        """No process: the record as it is on disk."""
        try:
            record = record_io.load(os.path.join(self._facts.state, RECORD_FILE))
        except (RecordDamaged, RecordVersion, record_io.RecordNotStored) as error:
            log.error("%s: %s", self._facts.module, error)
            record = None
        return MirrorReported(None, record, own_log_io.bytes_changed(self._facts.state, record))

    def _salvage(self, generation: bytes) -> bool:
        facts = self._facts
        done = subprocess.run(
            [sys.executable, "-P", "-m", "hotpair.replication", "salvage", "--dir", facts.directory]
            + ["--state", facts.state, "--generation", generation.hex()],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=SALVAGE_S,
            check=False,
        )
        if done.returncode:
            text = f"what only this server has is not saved, and nothing is copied over it: {done.stderr.strip()}"
        else:
            text = done.stdout.strip()
        if text != self._salvage_said:
            self._salvage_said = text
            self._hear(Note(text))
        return not done.returncode

    def _words(self, since: int) -> str:
        """The end of what it wrote to its log."""
        try:
            with open(self._facts.log, "rb") as opened:
                opened.seek(max(since, os.fstat(opened.fileno()).st_size - WORDS))
                return opened.read(WORDS).decode(errors="replace").strip()
        except OSError as error:
            return f"({error})"
