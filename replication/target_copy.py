"""The target's own copy: its directory, its record and what it kept from when it was a source, as the record changes.

Each change is durable before whoever asked for it says so. It must not know of a connection.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.record import Record
from hotpair.replication import clean_stop_io, keeper_io, layout_io, linux_io
from hotpair.replication.copy_identity_io import claim_copy
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.marks_message import encode_marks
from hotpair.replication.objects_io import ensure_identity, largest_file, write_identity
from hotpair.replication.own_log_io import NAME as LOG_NAME
from hotpair.replication.own_log_io import bytes_changed, read_own_log
from hotpair.replication.process_io import boot_id
from hotpair.replication.salvage import is_given_up
from hotpair.replication.salvage_io import path_of
from hotpair.replication.target_start import TargetOptions
from hotpair.replication.unsalvage_io import is_whole

log = logging.getLogger("hotpair.replication")


class TargetCopy:
    """One for the life of the process. Raises BadConfiguration when the copy cannot be a target."""

    def __init__(self, options: TargetOptions) -> None:
        self._options = options
        self._record_path = os.path.join(options.state, "record")
        self.record = self._load_record()
        self._check_salvaged()
        keeper_io.take_away(options.state, options.directory)  # of a source that was killed here
        self.root_fd = layout_io.open_data(options.directory, self.record.root if self.record is not None else None)
        self.identity = claim_copy(self.root_fd, options.directory, self.record)
        self.record = replace(self.record, copy=self.identity) if self.record is not None else None
        self.changed = clean_stop_io.changed_since(options.state, self.root_fd, self.identity)  # None: unknown
        self.root_identity = ensure_identity(self.root_fd)
        self._log_path = os.path.join(options.state, LOG_NAME)
        self.largest_file = largest_file(self.root_fd)
        self.boot = boot_id()
        self.bytes_changed = bytes_changed(options.state, self.record)

    def _load_record(self) -> Record | None:
        try:
            return record_io.load(self._record_path)
        except (records.RecordDamaged, records.RecordVersion) as error:
            raise BadConfiguration(str(error)) from error

    def _check_salvaged(self) -> None:
        """What a copy that lost a split brain has of its own is overwritten by what this process does."""
        record, folder = self.record, self._options.salvage_folder
        if record is None or not is_given_up(record):
            return
        path = path_of(folder if folder is not None else self._options.state, record.generation)
        if not is_whole(path, record.generation):
            raise BadConfiguration(
                f"this copy was given up after a split brain, and what it has of its own is not saved in {path} yet: "
                f"run `salvage` with --generation {record.generation.hex()} before"
            )

    @property
    def inconsistent(self) -> bool:
        """Whether a reintegration into this copy has begun and not ended."""
        return self.record is not None and self.record.inconsistent

    def store(self, record: Record) -> None:
        """Make a record durable before anything that follows from it."""
        record_io.store(self._record_path, record)
        self.record = record

    def own_marks(self) -> tuple[list[Any] | None, int]:
        """What this copy may have that the source's has not, from our own dirty log, and its extent shift.

        None: everything. Of a copy that is half copied the source knows already; one that was given up after a split
        brain tells its own: all that it has changed is overwritten.
        """
        if self.record is None or (self.record.inconsistent and not is_given_up(self.record)):
            return [], 0
        marks, shift = read_own_log(self._options.state, self.record)
        return (None if marks is None else encode_marks(marks)), shift

    # --- what becomes of it ---------------------------------------------------------------------------------------

    def adopt_root(self, identity: bytes) -> None:
        """A copy without a record becomes one of the source's module: its root directory gets that identity."""
        write_identity(self.root_fd, identity)
        os.fsync(self.root_fd)  # before a record names it
        self.root_identity = identity

    def give_up(self, generation: bytes) -> None:
        """Before the first byte changes: inconsistent, durably, in the source's generation. Then our log may go."""
        if self.record is None:
            self.store(
                Record(
                    generation=generation,
                    last_role="SECOND",
                    inconsistent=True,
                    boot=self.boot,
                    configuration=b"",
                    root=self.root_identity,
                    copy=self.identity,
                )
            )
        else:
            self.store(records.begin_reintegration_as_target(self.record, generation))
        self._remove_log()
        self.bytes_changed = None
        clean_stop_io.remove_table(self._options.state)  # the source has noted what it told
        self.changed = set()

    def take_over(self, record: Record, theirs: Record) -> Record:
        """Make this copy the primary, durably: its new record."""
        self._remove_log()
        taken = records.take_over(record, theirs, boot=self.boot)
        self.store(taken)
        return taken

    def leave(self) -> None:
        """The source goes on alone from here: outdated, durably, with all that it acknowledged here [R11].

        Raises OSError: the copy could not be flushed, and stays as it is.
        """
        assert self.record is not None
        linux_io.syncfs(self.root_fd)
        self.store(records.mark_outdated(self.record))

    def become_outdated(self) -> bool:
        """Have it on record that the source has what this copy has not. Whether it is; not of an inconsistent copy."""
        if self.record is None or self.record.inconsistent:
            return False
        try:
            linux_io.syncfs(self.root_fd)
            self.store(records.mark_outdated(replace(self.record, in_sync=False)))
        except (OSError, record_io.RecordNotStored) as failure:
            log.error("cannot record that this copy is outdated: %s", failure)
            return False
        return True

    def _remove_log(self) -> None:
        if os.path.exists(self._log_path):
            os.unlink(self._log_path)

    # --- as others see the directory ------------------------------------------------------------------------------

    def show(self) -> None:
        """The module's directory shows this copy, for whoever looks at it."""
        layout_io.show(self._options.directory, self.root_fd)

    def close(self) -> None:
        """A clean stop: all is flushed, nobody sees the copy, and what it is like then is noted."""
        linux_io.syncfs(self.root_fd)
        layout_io.hide(self._options.directory)
        if self.record is not None:
            clean_stop_io.write_table(self._options.state, self.root_fd, self.identity)
