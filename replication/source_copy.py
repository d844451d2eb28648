"""The source's own copy: its directory, its record and its dirty log, as it starts from them and as it writes them.

Starting is recovering: the record must allow it, and a log that cannot be read means that everything is dirty.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.record import Record
from hotpair.replication import dirty_log
from hotpair.replication.activity import ActivityLog
from hotpair.replication.clean_stop_io import changed_since
from hotpair.replication.copy_identity_io import claim_copy
from hotpair.replication.dirty_log import DirtyLogUnusable
from hotpair.replication.dirty_log_io import DirtyLog, DirtyLogFailed
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.layout_io import open_data
from hotpair.replication.objects_io import ensure_identity, largest_file, new_identity
from hotpair.replication.process_io import boot_id
from hotpair.replication.snapshot_io import forget_snapshots
from hotpair.replication.source_marks import MarkCommits
from hotpair.replication.source_start import SourceOptions, adoptable
from hotpair.replication.walk_io import check_kinds

log = logging.getLogger("hotpair.replication")


class OwnCopy:
    """One for the life of the process. Raises BadConfiguration when the copy cannot be a source."""

    def __init__(self, options: SourceOptions) -> None:
        self._options = options
        self._record_path = os.path.join(options.state, "record")
        stored = self._load_record()
        known_root = stored.root if stored is not None else None
        self.kept = adoptable(options)
        self.root_fd = self.kept.root_fd if self.kept is not None else open_data(options.directory, known_root)
        forget_snapshots(self.root_fd)
        check_kinds(self.root_fd, options.directory)
        self.identity = claim_copy(self.root_fd, options.directory, stored)
        self.changed = changed_since(options.state, self.root_fd, self.identity)  # since a clean stop, None: unknown
        self.largest_file = largest_file(self.root_fd)
        self.boot = boot_id()
        self.root_identity = ensure_identity(self.root_fd)
        self.record = replace(stored, copy=self.identity) if stored is not None else self._first_record()
        self.log, marks = self._open_log()
        self.activity = ActivityLog(marks, options.hot_extents)

    def _load_record(self) -> Record | None:
        try:
            record = record_io.load(self._record_path)
        except (records.RecordDamaged, records.RecordVersion) as error:
            raise BadConfiguration(str(error)) from error
        if record is not None and record.inconsistent:
            raise BadConfiguration(
                "this copy is inconsistent (a reintegration into it was interrupted): it can only be a target"
            )
        if record is not None and record.outdated:
            raise BadConfiguration("this copy is outdated: the other server has newer data; it can only be a target")
        if record is not None and self._options.alone and not record.solo:
            raise BadConfiguration(
                "--alone: by its record this copy does not go on alone, the other server may have newer data: start it "
                "without --alone, so that it meets that one first"
            )
        return record

    def _first_record(self) -> Record:
        record = Record(
            generation=new_identity(),
            last_role="ALONE",
            solo=True,
            boot=self.boot,
            configuration=b"",
            root=self.root_identity,
            copy=self.identity,
        )
        record_io.store(self._record_path, record)
        return record

    def _open_log(self) -> tuple[DirtyLog, dirty_log.Marks]:
        path = os.path.join(self._options.state, "dirty-log")
        shift = self._options.extent_size.bit_length() - 1
        try:
            opened, recovered = DirtyLog.open(path, self.record, extent_shift=shift)
            marks = recovered.marks
        except DirtyLogUnusable as error:
            first = self.record.log_counter == 0
            if not first:
                log.warning("%s", error)
            marks = dirty_log.Marks()
            opened = DirtyLog.create(
                path,
                root=self.root_identity,
                generation=self.record.generation,
                boot=self.boot,
                extent_shift=shift,
                counter=self.record.log_counter + 1,
                is_everything=not first,
            )
        if opened.counter != self.record.log_counter:
            self.store(replace(self.record, log_counter=opened.counter))
        opened.confirm_record(opened.counter)
        opened.compact(marks)  # each start moves the counter on, so that a log restored from a backup is known as such
        self.store(replace(self.record, log_counter=opened.counter))
        opened.confirm_record(opened.counter)
        return opened, marks

    def store(self, record: Record) -> None:
        """Make a record durable before anything that follows from it."""
        record_io.store(self._record_path, record)
        self.record = record

    def go_solo(self, marks: MarkCommits, given: Record | None = None) -> None:
        """A new generation, solo, durable: the log first, then the record, which may be given by a verdict."""
        alone = given if given is not None else records.go_alone(self.record, new_identity(), boot=self.boot)
        if alone.generation != self.record.generation:
            marks.stage(dirty_log.generation(alone.generation))
            marks.commit_now()
        if alone != self.record:
            self.store(alone)

    def compact(self, clear_everything: bool = False) -> None:
        """Write the log anew with what is marked now. It must be idle."""
        if self.log.failure is not None:
            return  # everything counts as dirty until the mirror is started again with room for its state
        try:
            self.log.compact(self.activity.snapshot(), clear_everything=clear_everything)
        except DirtyLogFailed as error:
            log.error("%s", error)  # the old log is as good
            return
        self.store(replace(self.record, log_counter=self.log.counter))
        self.log.confirm_record(self.log.counter)
