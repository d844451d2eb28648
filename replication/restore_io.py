"""The command `restore`: a target that was left half copied is put back to its last consistent copy.

The snapshot is cloned again and stays whole until the record says what the copy is. So each step may be interrupted and
all of them repeated, also when another reintegration has begun and was interrupted in between: until the record is
stored the copy is inconsistent, with a snapshot.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from typing import Final

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.record import Record
from hotpair.replication import (
    clean_stop_io,
    keeper_io,
    layout_io,
    linux_io,
    own_attributes_io,
    snapshot,
    snapshot_helper,
    snapshot_io,
    tree_io,
)
from hotpair.replication.clone_io import DIRECTORY_FLAGS, Cloner
from hotpair.replication.copy_identity_io import claim_copy
from hotpair.replication.dirty_log_io import DirtyLog
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.limits import EXTENT_SIZE
from hotpair.replication.objects_io import PRIVATE_NAME
from hotpair.replication.process_io import lock_state

TRASH: Final = b"trash"  # of the interrupted reintegration: what it holds has an identity that is in the snapshot too

NOTHING_TO_DO: Final = "this copy is not inconsistent: there is nothing to restore"
NO_SNAPSHOT: Final = (
    "there is no snapshot of an earlier copy (its file system cannot share file contents, or the log said why none "
    "could be made): only a reintegration from the other server, or a backup, makes this copy consistent"
)


class Restore:
    """One run. ``step`` is called with a label before each change, so that a test can stop there."""

    def __init__(self, directory: bytes, state: str, step: Callable[[str], None] = lambda _: None) -> None:
        self._directory = directory
        self._state = state
        self._step = step
        self._record_path = os.path.join(state, "record")

    def run(self) -> list[str]:
        """Put the copy back; what to tell the user. Raises BadConfiguration (nothing was changed), MirrorError."""
        if not os.path.isdir(self._state):
            raise BadConfiguration(f"--state {self._state}: there is none: give the state directory of this copy")
        lock_fd = lock_state(self._state)
        try:
            now = self._load_record()
            keeper_io.take_away(self._state, self._directory)  # of a source that was killed here
            root_fd = layout_io.open_data(self._directory, now.root)
            try:
                claim_copy(root_fd, self._directory, now)
                with layout_io.said(f"--dir {os.fsdecode(self._directory)}"):
                    restored = self._restore(root_fd, now)
            finally:
                os.close(root_fd)
        finally:
            os.close(lock_fd)
        return [
            f"restored: the copy of generation {restored.generation.hex()}",
            "it is outdated: the other server had gone on from there, and what was written since is only on that one",
        ]

    def _load_record(self) -> Record:
        try:
            record = record_io.load(self._record_path)
        except (records.RecordDamaged, records.RecordVersion) as error:
            raise BadConfiguration(str(error)) from error
        if record is None or not record.inconsistent:
            raise BadConfiguration(NOTHING_TO_DO)
        return record

    def _restore(self, root_fd: int, now: Record) -> Record:
        private_fd = snapshot_helper.private_folder(root_fd)
        try:
            kept, old = self._find(private_fd, now)
            self._remove_leftovers(root_fd, private_fd)
            self._put_back(root_fd, private_fd, kept)
            record = self._remember(snapshot.restored(old, now))
            self._step("put the snapshot away")
            snapshot_io.put_away(private_fd)
            self._remove_leftovers(root_fd, private_fd)
        finally:
            os.close(private_fd)
        return record

    def _find(self, private_fd: int, now: Record) -> tuple[bytes, Record]:
        """The snapshot, and the record that belonged to it. Raises BadConfiguration."""
        found = [name for name in map(os.fsencode, os.listdir(private_fd)) if snapshot.is_snapshot(name)]
        if not found:
            raise BadConfiguration(NO_SNAPSHOT)
        if len(found) > 1:
            raise BadConfiguration(f"there are several snapshots in {os.fsdecode(PRIVATE_NAME)}, and only one is made")
        fd = os.open(found[0] + b"/" + snapshot.RECORD, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=private_fd)
        try:
            old = records.decode(os.read(fd, records.LARGEST_RECORD_BYTES + 1))
        except (records.RecordDamaged, records.RecordVersion) as error:
            raise BadConfiguration(
                f"the record in the snapshot cannot be used, nothing was changed: {error}"
            ) from error
        finally:
            os.close(fd)
        if old.inconsistent or (old.root, old.copy) != (now.root, now.copy):
            raise BadConfiguration("the snapshot is not one of this copy: nothing was changed")
        return found[0], old

    def _remove_leftovers(self, root_fd: int, private_fd: int) -> None:
        self._step("remove leftovers")
        names = [name for name in map(os.fsencode, os.listdir(private_fd)) if snapshot.is_leftover(name)]
        snapshot_helper.remove(root_fd, names)

    def _put_back(self, root_fd: int, private_fd: int, kept: bytes) -> None:
        """Clone the snapshot, then let its entries and those of the copy change places."""
        self._step("clone")
        new = snapshot.making(secrets.token_hex(8))
        os.mkdir(new, 0o700, dir_fd=private_fd)
        source_fd = os.open(kept + b"/" + snapshot.TREE, DIRECTORY_FLAGS, dir_fd=private_fd)
        new_fd = os.open(new, DIRECTORY_FLAGS, dir_fd=private_fd)
        old = snapshot.removing(secrets.token_hex(8))
        os.mkdir(old, 0o700, dir_fd=private_fd)
        old_fd = os.open(old, DIRECTORY_FLAGS, dir_fd=private_fd)
        try:
            cloner = Cloner(
                root_fd, own_attributes_io.KEPT, own_attributes_io.IDENTITY, lambda: self._step("clone one")
            )
            cloner.clone(source_fd, new_fd)
            self._step("flush the clone")
            linux_io.syncfs(root_fd)
            self._put_trash_away(private_fd)
            self._move(root_fd, old_fd, "take away", PRIVATE_NAME)
            self._move(new_fd, root_fd, "put back", b"")
            self._step("describe the root")
            tree_io.set_description(root_fd, tree_io.describe(source_fd))
            status = os.fstat(source_fd)
            linux_io.utimens_empty(root_fd, status.st_atime_ns, status.st_mtime_ns)
            self._step("flush the copy")
            linux_io.syncfs(root_fd)
        finally:
            for fd in (source_fd, new_fd, old_fd):
                os.close(fd)

    def _put_trash_away(self, private_fd: int) -> None:
        self._step("put the trash away")
        try:
            os.rename(TRASH, snapshot.removing(secrets.token_hex(8)), src_dir_fd=private_fd, dst_dir_fd=private_fd)
        except FileNotFoundError:
            pass

    def _move(self, from_fd: int, to_fd: int, label: str, leave_out: bytes) -> None:
        for name in map(os.fsencode, os.listdir(from_fd)):
            if name != leave_out:
                self._step(label)
                linux_io.renameat2(from_fd, name, to_fd, name, linux_io.RENAME_NOREPLACE)

    def _remember(self, record: Record) -> Record:
        """The copy is what the record says: first that all is to be compared, then the record."""
        self._step("remove the table")
        clean_stop_io.remove_table(self._state)
        self._step("make the log")
        DirtyLog.create(
            os.path.join(self._state, "dirty-log"),
            root=record.root,
            generation=record.generation,
            boot=record.boot,
            extent_shift=EXTENT_SIZE.bit_length() - 1,
            counter=record.log_counter,
            is_everything=True,
        ).close()
        self._step("store the record")
        record_io.store(self._record_path, record)
        return record
