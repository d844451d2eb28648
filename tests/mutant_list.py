"""The bugs that ``make code-mutants`` makes: each one breaks a sentence of the contract that a test must hold us to.

A place is known by a string that occurs once in its file; keep it short, so that it survives edits nearby.
"""

# ruff: noqa: E501 - a place in the code is quoted as it is

from __future__ import annotations

from tests.mutants import Mutant

CONTRACT = "tests/test_contract.py::"
STREAM = "tests/test_stream_pair.py::"
WALK = "tests/test_stream_walk.py::"
COPIED_TESTS, INTERRUPTED = "tests/test_copied.py::", "tests/test_interrupted.py::"
LOG = "tests/test_dirty_log.py::"
ACTIVITY = "tests/test_activity.py::"
RECORD = "tests/test_record.py::"
LYING = "tests/test_lying_target.py::"
LAYOUT = "tests/test_layout_io.py::"
POSIX = "tests/test_posix_difference.py::"
SNAPSHOT = "tests/test_snapshot.py::"
PACE = "tests/test_pace.py::"
COPIES_TESTS, CLEAN_STOP = "tests/test_copies.py::", "tests/test_clean_stop.py::"

TOLD, AGREE_AND_LEAVE = "tests/test_verdicts.py::", "tests/test_agree_and_leave.py::"
SALVAGE = "tests/test_salvage.py::"

SOURCE, SOURCE_PROCESS = "replication/source.py", "replication/source_process.py"
FLUSHES, COMMITS = "replication/source_flushes.py", "replication/source_marks.py"
OWN_COPY, SESSION = "replication/source_copy.py", "replication/source_session.py"
VERDICTS = "replication/source_verdicts.py"
TARGET, TARGET_PROCESS = "replication/target.py", "replication/target_process.py"
TARGET_COPY, TARGET_SESSION = "replication/target_copy.py", "replication/target_session.py"
TARGET_GREETING = "replication/target_greeting.py"
OPERATIONS = "replication/target_operations.py"
LISTING, REINTEGRATION = "replication/listing.py", "replication/reintegration.py"
COPIED = "replication/copied.py"
TAP, TAP_FILES, TAP_NAMES = "replication/tap_fuse.py", "replication/tap_files.py", "replication/tap_names.py"
TAP_DIRECTORIES, TAP_ATTRIBUTES = "replication/tap_directories.py", "replication/tap_attributes.py"
TAP_SET_ID = "replication/tap_set_id.py"
MARKS, MARKS_IO, ACTIVE = "replication/dirty_log.py", "replication/dirty_log_io.py", "replication/activity.py"
LAYOUT_PURE, LAYOUT_IO, MOUNTS = "replication/layout.py", "replication/layout_io.py", "replication/mounts_io.py"
OWN_ATTRIBUTES, COPY_IDENTITY = "replication/own_attributes_io.py", "replication/copy_identity_io.py"
SNAPSHOT_PURE, SNAPSHOT_IO = "replication/snapshot.py", "replication/snapshot_io.py"
SNAPSHOT_HELPER, CLONE, RESTORE = (
    "replication/snapshot_helper.py",
    "replication/clone_io.py",
    "replication/restore_io.py",
)
TABLE, TABLE_IO = "replication/clean_stop.py", "replication/clean_stop_io.py"
GO_ALONE, SALVAGED = "replication/go_alone.py", "replication/salvage.py"
AGREEMENT, LEAVE = "replication/source_agreement.py", "replication/source_leave.py"
OBJECTS, FRAMES, DURABLE = "replication/objects_io.py", "replication/frames.py", "cluster/record.py"


def mutant(name: str, breaks: str, *edits: tuple[str, str, str], tests: tuple[str, ...]) -> Mutant:
    return Mutant(name, breaks, edits, tests)


ACKNOWLEDGEMENTS = (
    mutant(
        "write acknowledged before the peer has it",
        "A write is answered when it is applied here, although the target has not acknowledged it.",
        (
            SOURCE,
            "self.inflight.append((sequence, frame, self._written, slot))",
            "self.inflight.append((sequence, frame, _nothing, slot))",
        ),
        (
            SOURCE,
            "            if error is not None:\n                failed.append(",
            "            if error is None:\n                self._written(slot)\n            else:\n                failed.append(",
        ),
        tests=(CONTRACT + "test_write_is_answered_when_both_copies_have_it",),
    ),
    mutant(
        "write acknowledged when it is sent",
        "A write is answered when it has been given to the connection.",
        (
            SOURCE,
            "self.inflight.append((sequence, frame, self._written, slot))",
            "self.inflight.append((sequence, frame, _nothing, slot))\n                self._after_sending.append(lambda: self._written(slot))",
        ),
        (
            SOURCE,
            "        if self.out:\n            self.send()\n        if self._local:",
            "        if self.out:\n            self.send()\n            after, self._after_sending = self._after_sending, []\n            for act in after:\n                act()\n        if self._local:",
        ),
        tests=(CONTRACT + "test_write_is_answered_when_both_copies_have_it",),
    ),
    mutant(
        "write acknowledged before the local copy has it",
        "What the target has acknowledged is answered although it is not applied here yet.",
        (
            SOURCE,
            "        if self._local:\n            self.apply_local()\n        if self.marks.staged",
            "        if self._local and not self.inflight:\n            self.apply_local()\n        if self.marks.staged",
        ),
        (
            SOURCE,
            "        if self._local:\n            self.apply_local()  # what is answered now must be here as well\n",
            "",
        ),
        tests=(CONTRACT + "test_write_is_answered_when_both_copies_have_it",),
    ),
    mutant(
        "change acknowledged before the peer has it",
        "A namespace or attribute change is answered when it is applied here.",
        (
            SOURCE,
            "self._enqueue(sendable[-1].fields, _call, done)\n                return",
            "self._enqueue(sendable[-1].fields, _nothing, None)",
        ),
        tests=(CONTRACT + "test_other_changes_are_answered_when_both_copies_have_them",),
    ),
    mutant(
        "target acknowledges more than it has applied",
        "The target says that it has applied the operation after the last one.",
        (
            TARGET,
            "self.say(APPLIED, self.applied)\n        if self.out:",
            "self.say(APPLIED, self.applied + 1)\n        if self.out:",
        ),
        tests=(CONTRACT + "test_session_goes_on_where_the_target_is",),
    ),
    mutant(
        "lost link does not freeze",
        "When the link is lost the source goes on alone without a verdict.",
        (
            SOURCE,
            "        if self.mode is PRIM:\n            self.mode = FROZEN\n",
            "        if self.mode is PRIM:\n            self.go_alone()\n",
        ),
        tests=(CONTRACT + "test_lost_link_freezes_until_the_verdict",),
    ),
    mutant(
        "frozen write fails",
        "A write during the freeze is answered with an error.",
        (
            SOURCE,
            "            self.held.append(lambda: self.write(node, offset, size, slot))\n",
            "            self.fail_write(slot, errno.EIO)\n",
        ),
        tests=(CONTRACT + "test_lost_link_freezes_until_the_verdict",),
    ),
    mutant(
        "stop acknowledges what is held",
        "The verdict stop answers held changes as if they had been made.",
        (
            SOURCE,
            "            done(OSError(errno.EIO, os.strerror(errno.EIO)))\n            return\n        if self._local:",
            "            done(None)\n            return\n        if self._local:",
        ),
        tests=(CONTRACT + "test_lost_link_freezes_until_the_verdict",),
    ),
    mutant(
        "going alone answers before it applies",
        "The verdict go alone answers writes that were sent and not yet applied here.",
        (
            SOURCE,
            "        self.inflight = deque()\n        self.apply_local()\n        for _",
            "        self.inflight = deque()\n        for _",
        ),
        (
            SOURCE,
            "        self._release_held()\n\n    def stop(self)",
            "        self._local.clear()\n        self._release_held()\n\n    def stop(self)",
        ),
        tests=(CONTRACT + "test_going_alone_applies_what_it_answers",),
    ),
    mutant(
        "read before the pending write",
        "A read does not see a write that was sent and not yet applied here.",
        (
            TAP_FILES,
            "        if self._source.has_local_writes:\n            self._source.apply_local()\n        if node.cold and ",
            "        if node.cold and ",
        ),
        tests=(CONTRACT + "test_read_sees_the_write_that_was_sent_and_not_yet_applied",),
    ),
)

MARKING = (
    mutant(
        "mark of a write after its data",
        "A write to a cold extent goes ahead while its mark is being made durable.",
        (
            SOURCE,
            "            self.marks.after([mark], lambda: self.write(node, offset, size, slot))\n            return\n",
            "            self.marks.after([mark], lambda: None)\n",
        ),
        tests=(CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",),
    ),
    mutant(
        "mark of a change after the change",
        "Any other change goes ahead while its marks are being made durable.",
        (
            SOURCE,
            "            self.marks.after(missing, lambda: self.change((), perform, done))\n            return\n",
            "            self.marks.after(missing, lambda: None)\n",
        ),
        tests=(CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",),
    ),
    mutant(
        "mark counts before its flush",
        "A mark counts as durable when it is written to the log and not flushed.",
        (
            COMMITS,
            "        self._flushes.flush_local(fd, FlushWait(None, self._committed), True)",
            "        self._committed(0)",
        ),
        tests=(CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",),
    ),
    mutant(
        "second change overtakes the commit of its mark",
        "A change whose mark is in the commit under way does not wait for that commit.",
        (
            ACTIVE,
            "        if not self._durable.covers(identity, first, last):\n            return False\n",
            "        if not self._durable.covers(identity, first, last):\n            return self._in_flight.covers(identity, first, last)\n",
        ),
        tests=(
            ACTIVITY + "test_a_mark_counts_only_when_it_is_durable",
            CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",
        ),
    ),
    mutant(
        "no marks while alone",
        "The source that is alone does not mark what it changes.",
        (
            SOURCE,
            "elif not node.orphan and not self.activity.is_marked(node.identity, first, last):",
            "elif self.mode is not ALONE and not node.orphan and not self.activity.is_marked(node.identity, first, last):",
        ),
        tests=(CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",),
    ),
    mutant(
        "long write marks its first extent only",
        "Of a write over several extents only the first is marked.",
        (SOURCE, "mark = Extents(node.identity, first, last)", "mark = Extents(node.identity, first, first)"),
        tests=(CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",),
    ),
    mutant(
        "truncate marks one extent",
        "A truncation marks the extent of the new end and not what follows.",
        (
            TAP_ATTRIBUTES,
            "marks.append(Extents(node.identity, first, TO_END))",
            "marks.append(Extents(node.identity, first, first))",
        ),
        tests=(
            CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",
            CONTRACT + "test_bytes_that_came_back_from_beyond_a_truncation_are_zeros_on_both_copies",
        ),
    ),
    mutant(
        "punch hole marks its first extent only",
        "Of a hole over several extents only the first is marked.",
        (
            TAP_FILES,
            "mark = Extents(node.identity, offset >> shift, (offset + length - 1) >> shift)",
            "mark = Extents(node.identity, offset >> shift, offset >> shift)",
        ),
        tests=(CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",),
    ),
    mutant(
        "rename marks one directory",
        "A rename marks the directory that it takes a name from and not the one that gets it.",
        (
            TAP_NAMES,
            "marks = (Names(old_parent.identity), Names(new_parent.identity))",
            "marks = (Names(old_parent.identity),)",
        ),
        tests=(CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",),
    ),
    mutant(
        "marks leave before the flush",
        "The least recently used marks leave the log without any flush of the copies.",
        (SOURCE_PROCESS, "        source.flushes.flush_everything(self._copy.root_fd, flushed)", "        flushed(0)"),
        tests=(CONTRACT + "test_marks_leave_the_log_when_both_copies_have_flushed",),
    ),
    mutant(
        "marks leave before the peer has flushed",
        "Marks leave the log when the source alone has flushed.",
        (
            FLUSHES,
            "            wait.remote = True\n            self._waits[self._source.operation(wait.asked)] = wait\n        self.sync_file_system(",
            "            self._source.operation(wait.asked)\n        self.sync_file_system(",
        ),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "marks leave before the source has flushed",
        "Marks leave the log when the target alone has flushed.",
        (
            FLUSHES,
            "        self.sync_file_system(root_fd, lambda error: self._local_done(wait, error))",
            "        self._local_done(wait, 0)",
        ),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "use of a hot extent is not noted",
        "A write to a marked extent does not keep its mark from leaving with a flush that began before.",
        (SOURCE, "            extents[first] = tick\n", ""),
        tests=(CONTRACT + "test_mark_stays_when_its_extent_is_written_while_both_copies_flush",),
    ),
    mutant(
        "mark leaves while a write waits for it",
        "A mark that is requested again while it leaves, leaves all the same.",
        (
            ACTIVE,
            "        for part in (self._staged, self._in_flight):  # a change",
            "        for part in ():  # a change",
        ),
        tests=(ACTIVITY + "test_an_extent_with_a_waiting_write_does_not_leave",),
    ),
    mutant(
        "marks leave while alone",
        "A frozen activity log lets marks leave.",
        (ACTIVE, "if self.frozen or self._eviction is not None", "if self._eviction is not None"),
        tests=(ACTIVITY + "test_frozen_it_only_grows",),
    ),
    mutant(
        "eviction under way survives going alone",
        "What was on its way out when the link was lost leaves although the target has gone.",
        (
            ACTIVE,
            "        self._selections.clear()\n        self._eviction = None\n",
            "        self._eviction = None\n",
        ),
        tests=(ACTIVITY + "test_frozen_it_only_grows",),
    ),
)

FLUSHES = (
    mutant(
        "fsync without the target's flush",
        "fsync is answered when the source has flushed.",
        (
            FLUSHES,
            "            self._source.times.carry(node)\n            wait.remote = True\n            self._waits[self._source.operation(wait.asked)] = wait\n",
            "            self._source.times.carry(node)\n            self._source.operation(wait.asked)\n",
        ),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "fsync without the local flush",
        "fsync is answered when the target has flushed.",
        (FLUSHES, "        self.flush_local(node.data_fd, wait, data_only)", "        self._local_done(wait, 0)"),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "fsync of a directory on one side",
        "fsync of a directory is answered when the source has flushed.",
        (
            FLUSHES,
            "        if self._source.known.sends(node):\n            wait.remote = True\n            self._waits[self._source.operation(wait.asked)] = wait\n        self.flush_local(fd,",
            "        self.flush_local(fd,",
        ),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "flush acknowledged when it is merely applied",
        "The acknowledgement of a FLUSH in the stream counts as the flush.",
        (
            SOURCE,
            "            _, _, done, argument = inflight.popleft()\n            done(argument)\n",
            "            number, _, done, argument = inflight.popleft()\n            done(argument)\n            self.flushes.flushed(number)\n",
        ),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "target skips the flush of a file",
        "The target says flushed without flushing.",
        (
            OPERATIONS,
            "            self._target.flush(self._target.open_data(item), data_only, flushed)",
            "            flushed(0)",
        ),
        tests=(
            CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",
            CONTRACT + "test_targets_flush_reaches_the_disk",
        ),
    ),
    mutant(
        "target skips the flush of a directory",
        "The target says flushed without flushing the directory.",
        (OPERATIONS, "            self._target.flush(fd, data_only, close_then_say)", "            close_then_say(0)"),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "target skips the flush of everything",
        "The target says flushed without flushing its file system.",
        (
            TARGET_SESSION,
            "            try:\n                linux_io.syncfs(self._copy.root_fd)\n            except OSError as error:\n                code =",
            "            try:\n                pass\n            except OSError as error:\n                code =",
        ),
        tests=(CONTRACT + "test_targets_flush_reaches_the_disk",),
    ),
    mutant(
        "source skips the flush of everything",
        "Marks leave the log although the source has not flushed its file system.",
        (SOURCE_PROCESS, "                linux_io.syncfs(fd)\n", "                pass\n"),
        tests=(CONTRACT + "test_sources_flush_of_everything_reaches_the_disk",),
    ),
    mutant(
        "O_DSYNC is a plain write",
        "A write with O_DSYNC or O_SYNC is answered without a flush.",
        (
            TAP,
            "slot.synchronous = bool(flags & SYNCHRONOUS) and not write_flags & abi.WRITE_CACHE",
            "slot.synchronous = False",
        ),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "O_SYNC is a plain write",
        "Only O_DSYNC counts, and not the bit that is O_SYNC's own.",
        (SOURCE, "        if slot.synchronous or self.durable:", "        if self.durable:"),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "durability disk is ignored",
        "With durability disk a write is answered from the page caches.",
        (SOURCE, "        if slot.synchronous or self.durable:", "        if slot.synchronous:"),
        tests=(CONTRACT + "test_flush_is_answered_when_both_copies_have_flushed",),
    ),
    mutant(
        "failed flush is not sticky",
        "After a failed flush the source goes on acknowledging.",
        (FLUSHES, '            self._source.disk_failed(f"flushing: {os.strerror(error)}")\n', "            pass\n"),
        tests=(CONTRACT + "test_failed_flush_of_the_source_is_sticky",),
    ),
    mutant(
        "failed flush is acknowledged",
        "fsync is answered with success although the local flush failed.",
        (FLUSHES, "        wait.error = wait.error or error\n", ""),
        tests=(CONTRACT + "test_failed_flush_of_the_source_is_sticky",),
    ),
    mutant(
        "target goes on after a failed flush",
        "The target applies what follows a flush that failed.",
        (OPERATIONS, '                self._target.failed = f"flushing: {os.strerror(error)}"\n', ""),
        tests=(CONTRACT + "test_failed_flush_of_the_target_ends_the_stream",),
    ),
    mutant(
        "target says flushed after a failed flush",
        "A flush that failed on the target is acknowledged.",
        (
            OPERATIONS,
            "                self._target.on_failure(sequence, OSError(error, os.strerror(error)))\n            else:\n                self._target.say(Kind.FLUSHED, sequence)",
            "                self._target.on_failure(sequence, OSError(error, os.strerror(error)))\n            self._target.say(Kind.FLUSHED, sequence)",
        ),
        (TARGET, "        if failed is not None:\n            raise TargetFailed(failed)\n", ""),
        tests=(CONTRACT + "test_failed_flush_of_the_target_ends_the_stream",),
    ),
    mutant(
        "source closes a file that is unflushed",
        "A file is closed before what was written through it is flushed; its error is reported to nobody.",
        (
            TAP_FILES,
            "        if node.unflushed:\n            self._source.flushes.flush_before_close",
            "        if False:\n            self._source.flushes.flush_before_close",
        ),
        tests=(CONTRACT + "test_file_is_not_closed_while_it_is_unflushed",),
    ),
    mutant(
        "target closes a file that is unflushed",
        "The target closes a file before what was written through it is flushed.",
        (
            TARGET,
            "        if item.unflushed:\n            item.flushing = True",
            "        if False:\n            item.flushing = True",
        ),
        tests=(CONTRACT + "test_file_is_not_closed_while_it_is_unflushed",),
    ),
    mutant(
        "lost answer to a flush",
        "After a resume the answer to a flush that was lost is waited for in vain, or taken for given.",
        (
            FLUSHES,
            "                self._waits[self._source.operation(wait.asked)] = wait\n",
            "                wait.remote = False\n                self._flush_step(wait)\n",
        ),
        tests=(CONTRACT + "test_flush_is_asked_again_when_its_answer_was_lost",),
    ),
    mutant(
        "old flush answers the new session",
        "The end of an old session's flush is told to the new one as the answer to its own.",
        (OPERATIONS, "            if serial != self._target.serial:\n                return\n", ""),
        tests=(CONTRACT + "test_answer_to_an_old_sessions_flush_is_not_given_in_the_new_one",),
    ),
)

STREAMING = (
    mutant(
        "target goes on after a failed operation",
        "The target applies what follows an operation that failed.",
        (TARGET, '        raise TargetFailed(f"operation {sequence}: {error.strerror}") from error', "        return"),
        tests=(CONTRACT + "test_target_applies_nothing_after_a_failed_operation",),
    ),
    mutant(
        "target does not check the order of writes",
        "A write with another number than the next is applied.",
        (
            TARGET,
            "                    if sequence != self.applied + 1:\n                        self._out_of_order(sequence)\n",
            "",
        ),
        tests=(CONTRACT + "test_target_refuses_an_operation_out_of_its_order",),
    ),
    mutant(
        "target does not check the order of operations",
        "An operation with another number than the next is applied.",
        (
            TARGET,
            "        sequence = fields[1]\n        if sequence != self.applied + 1:\n            self._out_of_order(sequence)\n",
            "        sequence = fields[1]\n",
        ),
        tests=(CONTRACT + "test_target_refuses_an_operation_out_of_its_order",),
    ),
    mutant(
        "names from the peer are not checked",
        "A name with a slash or .. leads out of the module's directory.",
        (
            OBJECTS,
            '    if type(name) is not bytes or not name or name in (b".", b"..") or b"/" in name or b"\\0" in name:',
            "    if type(name) is not bytes:",
        ),
        tests=(CONTRACT + "test_target_refuses_names_that_lead_elsewhere",),
    ),
    mutant(
        "names of a listing are not checked",
        "A name in a listing leads out of the module's directory.",
        (LISTING, "target.name_in(item, entry[0]): entry for", "entry[0]: entry for"),
        tests=(CONTRACT + "test_target_refuses_names_that_lead_elsewhere",),
    ),
    mutant(
        "length of a frame is not checked",
        "The target waits for a frame of any length.",
        (
            TARGET,
            "                if length > MAX_MESSAGE or not length:\n                    frames.check_length(length)\n",
            "",
        ),
        tests=(CONTRACT + "test_target_ends_the_connection_at_a_frame_beyond_the_limits",),
    ),
    mutant(
        "length of a payload is not checked",
        "The target waits for a payload of any length.",
        (
            TARGET,
            "                    if type(count) is not int or not 0 < count <= MAX_PAYLOAD:\n                        frames.payload_size(fields)\n",
            "",
        ),
        tests=(CONTRACT + "test_target_ends_the_connection_at_a_frame_beyond_the_limits",),
    ),
    mutant(
        "version of the peer is not checked",
        "A peer that speaks another version of the protocol is served.",
        (FRAMES, "    if version != PROTOCOL_VERSION:", "    if False:"),
        tests=(CONTRACT + "test_target_refuses_whom_it_cannot_serve",),
    ),
    mutant(
        "resume skips an operation",
        "After a resume the first operation that the target lacks is not sent.",
        (
            SOURCE,
            "self.out.extend(frame for _, frame, _, _ in self.inflight)",
            "self.out.extend([frame for _, frame, _, _ in self.inflight][1:])",
        ),
        tests=(CONTRACT + "test_session_goes_on_where_the_target_is",),
    ),
    mutant(
        "resume repeats operations",
        "After a resume what the target has applied is sent again.",
        (SOURCE, "        self.acknowledged(applied)\n        self.out.clear()", "        self.out.clear()"),
        tests=(CONTRACT + "test_session_goes_on_where_the_target_is",),
    ),
    mutant(
        "bytes of the old connection stay",
        "A frame that was cut off is completed with bytes of the next connection.",
        (TARGET, "        self.out.clear()\n        self._start = self._end = 0\n", "        self.out.clear()\n"),
        tests=(CONTRACT + "test_session_goes_on_where_the_target_is",),
    ),
    mutant(
        "old connection is served after a new hello",
        "The target applies what an old session still has in its socket.",
        (
            TARGET_SESSION,
            "        if self._target.connection is not None:\n            self.drop_connection()\n        self._offered = ",
            "        old = self._target.connection\n        self._target.connection = None\n        self._offered = ",
        ),
        (
            TARGET_SESSION,
            "        self._loop.watch(connection.fileno(), self._receive)\n",
            "        self._loop.watch(connection.fileno(), self._receive)\n        if old is not None:\n            self._target.connection = old\n",
        ),
        tests=(CONTRACT + "test_old_sessions_connection_changes_nothing_after_the_new_hello",),
    ),
    mutant(
        "any session is resumed",
        "The target resumes whatever session the source names.",
        (
            TARGET_SESSION,
            'resume = self.identity is not None and hello.get("session") == self.identity',
            'resume = hello.get("session") is not None',
        ),
        tests=(CONTRACT + "test_target_resumes_only_its_own_session",),
    ),
    mutant(
        "session is resumed without being named",
        "A target in sync resumes with a source that does not know its session.",
        (
            TARGET_SESSION,
            'resume = self.identity is not None and hello.get("session") == self.identity',
            "resume = self.identity is not None",
        ),
        tests=(CONTRACT + "test_target_resumes_only_its_own_session",),
    ),
    mutant(
        "session outlives a failed operation",
        "A target that failed an operation resumes the session as if it were in sync.",
        (
            TARGET_SESSION,
            "        if isinstance(error, ProtocolError | TargetFailed):\n            self.identity = None\n",
            "",
        ),
        tests=(CONTRACT + "test_target_that_failed_is_outdated_on_disk_before_it_says_so",),
    ),
)

DECISIONS = (
    mutant(
        "newer data is overwritten",
        "The source reintegrates a target whose copy descends from its own.",
        (SESSION, "        if meeting.source is not Side.ME:\n", "        if meeting.source is Side.NOBODY:\n"),
        tests=(CONTRACT + "test_source_does_not_overwrite_what_may_be_newer",),
    ),
    mutant(
        "unrelated data is overwritten",
        "The source reintegrates a target whose copy has nothing to do with its own.",
        (SESSION, "        if meeting.source is not Side.ME:\n", "        if meeting.source is Side.PEER:\n"),
        tests=(CONTRACT + "test_source_does_not_overwrite_what_may_be_newer",),
    ),
    mutant(
        "wrong direction along the ancestors",
        "Of two copies the one that is the other's base is the source.",
        (
            DURABLE,
            "source = _the_one(mine.base == peer.generation, peer.base == mine.generation)",
            "source = _the_one(peer.base == mine.generation, mine.base == peer.generation)",
        ),
        tests=(RECORD + "test_each_row_from_both_sides",),
    ),
    mutant(
        "inconsistent copy is a source",
        "A source starts from a copy whose reintegration was interrupted.",
        (OWN_COPY, "record is not None and record.inconsistent:\n            raise", "False:\n            raise"),
        tests=(CONTRACT + "test_source_does_not_start_from_a_copy_that_is_not_current",),
    ),
    mutant(
        "outdated copy is a source",
        "A source starts from a copy that is known to be outdated.",
        (OWN_COPY, "record is not None and record.outdated:\n            raise", "False:\n            raise"),
        tests=(CONTRACT + "test_source_does_not_start_from_a_copy_that_is_not_current",),
    ),
    mutant(
        "directory is not known by its identity",
        "A mirror starts on another directory, such as the mount point of a disk that is not mounted.",
        (OBJECTS, "    if expected is not None and identity != expected:\n", "    if False:\n"),
        tests=(
            CONTRACT + "test_source_does_not_start_from_a_copy_that_is_not_current[another directory]",
            CONTRACT + "test_target_refuses_a_directory_that_is_not_the_modules",
        ),
    ),
    mutant(
        "target does not tell its identity",
        "A target starts on another directory although its record knows the right one.",
        (
            TARGET_COPY,
            "layout_io.open_data(options.directory, self.record.root if self.record is not None else None)",
            "layout_io.open_data(options.directory, None)",
        ),
        tests=(CONTRACT + "test_target_refuses_a_directory_that_is_not_the_modules",),
    ),
    mutant(
        "target serves another module",
        "The target lets another module's source overwrite its copy.",
        (TARGET_GREETING, '    elif hello["root"] != own_copy.record.root:\n', "    elif False:\n"),
        tests=(CONTRACT + "test_target_refuses_whom_it_cannot_serve",),
    ),
    mutant(
        "foreign files are overwritten",
        "A target whose directory holds something that was never a copy takes part.",
        (TARGET_GREETING, "        if entries and not options.overwrite:\n", "        if False:\n"),
        tests=(CONTRACT + "test_target_keeps_what_was_never_a_copy",),
    ),
    mutant(
        "target too small for the source's files",
        "A target is admitted whose file system cannot hold the largest file.",
        (
            TARGET_GREETING,
            "if type(largest) is not int or largest > own_copy.largest_file:",
            "if type(largest) is not int:",
        ),
        tests=(CONTRACT + "test_target_refuses_whom_it_cannot_serve",),
    ),
    mutant(
        "first reintegration is not recorded",
        "A target without a record lets itself be filled without one that says inconsistent.",
        (TARGET_COPY, "                    inconsistent=True,\n", "                    inconsistent=False,\n"),
        tests=(CONTRACT + "test_target_says_what_it_is_when_that_is_on_disk",),
    ),
    mutant(
        "reintegration is not recorded on disk",
        "The target says that it is inconsistent and has not stored it.",
        (
            TARGET_COPY,
            "            self.store(records.begin_reintegration_as_target(self.record, generation))",
            "            self.record = records.begin_reintegration_as_target(self.record, generation)",
        ),
        tests=(CONTRACT + "test_target_says_what_it_is_when_that_is_on_disk",),
    ),
    mutant(
        "reintegration is recorded after the answer",
        "The target says that it is inconsistent before it has stored it.",
        (
            TARGET_SESSION,
            "        if self._copy.record is None and self._copy.root_identity != ",
            "        self._target.say(Kind.INCONSISTENT, generation)\n        self._target.send()\n        if self._copy.record is None and self._copy.root_identity != ",
        ),
        (
            TARGET_SESSION,
            '        self._say("state REINTEGRATING")\n        self._target.say(Kind.INCONSISTENT, generation)',
            '        self._say("state REINTEGRATING")',
        ),
        tests=(CONTRACT + "test_target_does_not_say_what_it_could_not_store",),
    ),
    mutant(
        "inconsistent is not set by the record",
        "The record's change at the beginning of a reintegration leaves it consistent.",
        (
            DURABLE,
            "generation=source_generation, inconsistent=True, in_sync=False",
            "generation=source_generation, inconsistent=record.inconsistent, in_sync=False",
        ),
        tests=(RECORD + "test_one_reintegration",),
    ),
    mutant(
        "sync is taken before it is stored",
        "The target says that it is in sync before it has stored it.",
        (
            TARGET_SESSION,
            "        self._copy.store(records.take_sync_as_target(",
            "        self._target.say(Kind.TAKEN, encoded)\n        self._target.send()\n        self._copy.store(records.take_sync_as_target(",
        ),
        tests=(CONTRACT + "test_target_does_not_say_what_it_could_not_store",),
    ),
    mutant(
        "sync is taken without a reintegration",
        "A target that did not begin a reintegration takes the offer of sync.",
        (
            TARGET_SESSION,
            "        if self._copy.record is None or not self._copy.record.inconsistent or not self.begun:\n            raise",
            "        if self._copy.record is None:\n            raise",
        ),
        tests=(CONTRACT + "test_sync_is_not_taken_without_a_reintegration",),
    ),
    mutant(
        "operations are applied without a reintegration",
        "A target changes a copy that is not on record as inconsistent.",
        (TARGET, "            self.admits_operations = False\n", "            self.admits_operations = True\n"),
        tests=(LYING + "test_nothing_changes_before_the_copy_is_on_record_as_inconsistent",),
    ),
    mutant(
        "any sync is taken",
        "A target takes an offer of sync from a source that is not in sync itself.",
        (TARGET_SESSION, "if not theirs.in_sync or theirs.solo or", "if theirs.solo or"),
        tests=(LYING + "test_offer_of_sync_that_does_not_fit",),
    ),
    mutant(
        "sync is offered before the target has flushed",
        "In sync is recorded on both servers while the content is in the target's page cache.",
        (SESSION, "        if not reintegration.flushed:\n", "        if False:\n"),
        tests=(CONTRACT + "test_source_offers_sync_when_the_target_has_flushed",),
    ),
    mutant(
        "solo is kept when sync is offered",
        "The source offers sync and still counts as having gone on alone.",
        (
            DURABLE,
            'return replace(record, solo=False, in_sync=True, last_role="PRIM")',
            'return replace(record, in_sync=True, last_role="PRIM")',
        ),
        tests=(RECORD + "test_one_reintegration",),
    ),
    mutant(
        "offer of sync is not stored",
        "The source offers sync before its record says so.",
        (
            SESSION,
            "        self._copy.store(records.offer_sync_as_source(self._copy.record))",
            "        self._copy.record = records.offer_sync_as_source(self._copy.record)",
        ),
        tests=(CONTRACT + "test_source_takes_each_step_when_the_one_before_is_durable",),
    ),
    mutant(
        "copying begins before the target is inconsistent",
        "The source sends what changes the target's copy before the target has recorded that it is inconsistent.",
        (
            SESSION,
            "        self._source.message(Kind.BEGIN_REINTEGRATION, self._copy.record.generation, full)",
            "        self._source.message(Kind.BEGIN_REINTEGRATION, self._copy.record.generation, full)\n        self._start_reintegration(connection)",
        ),
        tests=(CONTRACT + "test_source_takes_each_step_when_the_one_before_is_durable",),
    ),
    mutant(
        "everything flag is ignored",
        "After the loss of the log only what a new, empty one names is compared.",
        (
            SESSION,
            "full = meeting.copying is Copying.FULL or self._copy.log.is_everything or bool(unknown)",
            "full = meeting.copying is Copying.FULL or bool(unknown)",
        ),
        tests=(CONTRACT + "test_everything_is_compared_when_the_log_was_lost",),
    ),
    mutant(
        "everything flag is cleared too early",
        "The everything flag goes when sync is offered and not when it is taken.",
        (
            SESSION,
            "        self._source.message(Kind.OFFER_SYNC, records.encode(self._copy.record))",
            "        self._source.message(Kind.OFFER_SYNC, records.encode(self._copy.record))\n        self._copy.compact(clear_everything=True)",
        ),
        tests=(CONTRACT + "test_source_takes_each_step_when_the_one_before_is_durable",),
    ),
    mutant(
        "marks of the target are not merged",
        "What the target has written by itself stays on it after the reintegration.",
        (
            SESSION,
            "self._copy.activity.union(marks)",
            "self._copy.activity.union(decode_marks([]))",
        ),
        tests=(
            CONTRACT + "test_source_takes_each_step_when_the_one_before_is_durable",
            CONTRACT + "test_what_the_lost_source_had_alone_is_copied_over_when_it_comes_back_as_target",
        ),
    ),
    mutant(
        "marks of the target are not told",
        "A source that comes back as target does not say what it has changed.",
        (
            TARGET_COPY,
            "        if self.record is None or (self.record.inconsistent and not is_given_up(self.record)):\n            return [], 0\n",
            "        return [], 0\n",
        ),
        tests=(CONTRACT + "test_what_the_lost_source_had_alone_is_copied_over_when_it_comes_back_as_target",),
    ),
    mutant(
        "marks of the target are not durable when it drops its log",
        "The target is told to begin before the source's log names what it had.",
        (
            SESSION,
            "        self._source.marks.commit_now()\n        self._identity = None",
            "        self._identity = None",
        ),
        tests=(CONTRACT + "test_marks_of_the_target_are_durable_before_it_is_told_to_begin",),
    ),
    mutant(
        "writes alone before the generation is stored",
        "The first write alone is answered before the new generation is durable.",
        (
            VERDICTS,
            "        self._copy.go_solo(self._source.marks, record)\n        self._source.go_alone()\n",
            "        self._source.go_alone()\n        self._copy.go_solo(self._source.marks, record)\n",
        ),
        tests=(CONTRACT + "test_write_is_not_answered_when_the_new_generation_cannot_be_stored",),
    ),
    mutant(
        "no new generation alone",
        "Going alone does not begin a generation of its own.",
        (
            VERDICTS,
            "        self._copy.go_solo(self._source.marks, record)\n        self._source.go_alone()\n",
            "        self._source.go_alone()\n",
        ),
        tests=(CONTRACT + "test_generation_is_durable_before_the_first_write_alone_is_answered",),
    ),
    mutant(
        "log does not follow the generation",
        "Going alone stores the record and not the log's generation.",
        (OWN_COPY, "            marks.stage(dirty_log.generation(alone.generation))\n", ""),
        tests=(CONTRACT + "test_generation_is_durable_before_the_first_write_alone_is_answered",),
    ),
    mutant(
        "failed target does not record it",
        "A target that failed an operation says that it is outdated without having stored it.",
        (
            TARGET_COPY,
            "            self.store(records.mark_outdated(replace(self.record, in_sync=False)))\n",
            "",
        ),
        tests=(CONTRACT + "test_target_that_failed_is_outdated_on_disk_before_it_says_so",),
    ),
    mutant(
        "failed target that could not record it lies",
        "A target that could not store that it is outdated says that it is.",
        (
            TARGET_COPY,
            "failure)\n            return False\n",
            "failure)\n            return True\n",
        ),
        tests=(CONTRACT + "test_target_that_failed_is_outdated_on_disk_before_it_says_so",),
    ),
)

REINTEGRATING = (
    mutant(
        "reintegration does not give way to the VM",
        "A VM that writes has about the latency that it has without a reintegration.",
        ("replication/pace.py", "        self._polite = met\n", "        self._polite = False\n"),
        tests=(PACE + "test_a_chunk_that_met_writes_is_followed_by_a_rest",),
    ),
    mutant(
        "a VM that writes all the time is never mirrored again",
        "However much the VM writes, the pair is in sync within a bounded time.",
        ("replication/pace.py", "            if self.floor:\n", "            if False:\n"),
        tests=(PACE + "test_slow_servers_copy_the_floor_in_any_case",),
    ),
    mutant(
        "chunk flag is not checked",
        "A chunk that was read before a write and sent after it overwrites the write for ever.",
        (REINTEGRATION, "        if chunk.touched:\n", "        if False:\n"),
        tests=(STREAM + "test_chunk_read_before_a_change_and_sent_after_it_is_read_again",),
    ),
    mutant(
        "chunk is read again before the write is applied here",
        "The second read of a touched chunk does not see the write that touched it.",
        (
            REINTEGRATION,
            "        self._source.apply_local()  # a write that was sent",
            "        # a write that was sent",
        ),
        tests=(STREAM + "test_chunk_is_read_again_only_after_the_write_is_applied_here",),
    ),
    mutant(
        "extents leave without being copied",
        "Files that the log names are not copied.",
        (REINTEGRATION, "return self._full or self._activity.runs_of(identity) != []", "return self._full"),
        tests=(
            STREAM + "test_chunk_read_before_a_change_and_sent_after_it_is_read_again",
            CONTRACT + "test_marks_are_durable_before_anything_changes_anywhere",
        ),
    ),
    mutant(
        "last extent is not copied",
        "Of what the log names in a file the last extent is left out.",
        (
            REINTEGRATION,
            "size if last >= size >> shift else (last + 1) << shift",
            "size if last >= size >> shift else last << shift",
        ),
        tests=(CONTRACT + "test_extents_that_the_log_names_are_copied",),
    ),
    mutant(
        "hard links are split",
        "A further name of a file becomes a file of its own on the target.",
        (LISTING, "        if present and self._is_another(fd, name, identity):", "        if False:"),
        (LISTING, "and self._link_moved(fd, name, identity):", "and False:"),
        (
            LISTING,
            "        known = target.objects.get(identity)\n        if known is not None:\n            try:\n                if known.kind",
            "        known = target.objects.get(identity)\n        if known is not None and known.kind == stat.S_IFDIR:\n            try:\n                if known.kind",
        ),
        tests=(
            CONTRACT + "test_names_of_one_file_stay_names_of_one_file",
            WALK + "test_names_change_at_each_moment_of_the_walk[make a second name-0]",
        ),
    ),
    mutant(
        "unfinished file counts as complete",
        "A file whose copying was interrupted is taken for equal afterwards.",
        (
            LISTING,
            "        return own_attributes_io.read(path_fd, own_attributes_io.WHOLE) is not None",
            "        return False",
        ),
        tests=(CONTRACT + "test_interrupted_copy_of_a_file_is_not_taken_for_complete",),
    ),
    mutant(
        "name alone identifies",
        "An object with the same name and another identity is taken for the same.",
        (LISTING, "                if entry is None or entry[1] != identity:", "                if entry is None:"),
        (
            LISTING,
            "        if read_identity(path_fd) != identity:\n            raise",
            "        if False:\n            raise",
        ),
        tests=(CONTRACT + "test_same_name_with_another_identity_is_another_file",),
    ),
    mutant(
        "what came in after the flush is not flushed",
        "Content that was sent after the target's flush is offered as in sync without another one.",
        (
            REINTEGRATION,
            "        self._answering[directory.identity] = files\n        self.flushed = False\n",
            "        self._answering[directory.identity] = files\n",
        ),
        (
            REINTEGRATION,
            "        self._opened.add(job)\n        self.flushed = False\n",
            "        self._opened.add(job)\n",
        ),
        tests=(CONTRACT + "test_what_came_after_the_flush_is_flushed_again",),
    ),
)

CONTINUING = (
    mutant(
        "a mark leaves before the target has flushed",
        "What has been copied leaves the log when it has been sent.",
        (
            COPIED,
            "flush_everything(self._root_fd, flushed)",
            "flush_everything(self._root_fd, flushed)\n        flushed(0)",
        ),
        tests=(
            COPIED_TESTS + "test_what_both_have_flushed_leaves_the_log_while_the_rest_is_copied",
            COPIED_TESTS + "test_marks_stay_when_the_link_is_lost_before_the_answer",
        ),
    ),
    mutant(
        "a mark leaves before this copy is flushed",
        "The target's flush alone makes marks leave.",
        (
            "replication/source_flushes.py",
            "        self.sync_file_system(root_fd, lambda error: self._local_done(wait, error))",
            "        self._local_done(wait, 0)",
        ),
        tests=(COPIED_TESTS + "test_marks_stay_until_our_own_copy_is_flushed",),
    ),
    mutant(
        "a mark leaves although its extent was changed after it was copied",
        "What was accepted between the copy and the flush is not looked at.",
        (COPIED, "self._activity.part(began, marks)", "self._activity.select(marks)"),
        tests=(COPIED_TESTS + "test_mark_stays_when_its_extent_is_written_between_its_copy_and_the_flush",),
    ),
    mutant(
        "a mark leaves although its extent was changed while the copies flush",
        "What was accepted since the flush began is not looked at.",
        (
            ACTIVE,
            "            if file.extents.get(extent, self.tick) <= selection.tick and not",
            "            if extent in file.extents and not",
        ),
        tests=(COPIED_TESTS + "test_change_at_each_step_of_a_reintegration_keeps_its_mark",),
    ),
    mutant(
        "the mark of an extent leaves that is half copied",
        "Of a file that is being copied one extent too many is taken for copied.",
        (REINTEGRATION, "(read_until >> self._source.shift) - 1)", "read_until >> self._source.shift)"),
        tests=(COPIED_TESTS + "test_half_copied_extent_keeps_its_mark",),
    ),
    mutant(
        "copied marks stay",
        "Nothing leaves the log while a reintegration runs.",
        (REINTEGRATION, "        self.copied.step(time.monotonic())\n", ""),
        tests=(INTERRUPTED + "test_link_cut_at_half",),
    ),
    mutant(
        "a new file counts as complete before it is flushed",
        "An interruption by a power cut leaves a file that counts as complete, and is not.",
        (LISTING, "        self._complete.add(item.handle)", "        self._is_complete(item.handle)"),
        tests=(COPIED_TESTS + "test_new_file_counts_as_complete_when_it_is_flushed[False]",),
    ),
    mutant(
        "what a flush has overtaken comes back from the trash",
        "An object comes back that lacks what was copied into the one that took its place.",
        (LISTING, "        if not os.listdir(self._trash_fd):\n            return\n", "        return\n"),
        tests=(COPIED_TESTS + "test_what_lies_in_the_trash_since_before_a_flush_does_not_come_back",),
    ),
    mutant(
        "one of two objects of one identity is taken blindly",
        "What stands under a name is kept although live changes go to another object of that identity.",
        (LISTING, "        if present and self._is_another", "        if present and links > 1 and self._is_another"),
        tests=(COPIED_TESTS + "test_two_objects_of_one_identity",),
    ),
    mutant(
        "a moved file is copied whole",
        "A file whose new directory is listed first is made anew.",
        (LISTING, "and self._link_moved(fd, name, identity):", "and False:"),
        tests=(COPIED_TESTS + "test_moved_file_is_not_copied_whichever_directory_is_listed_first",),
    ),
    mutant(
        "a former source that takes over again compares everything",
        "The log that it gave up as a target is missed.",
        (
            DURABLE,
            "        outdated=False,\n        boot=record.boot if boot is None else boot,\n        log_counter=0,\n",
            "        outdated=False,\n        boot=record.boot if boot is None else boot,\n",
        ),
        tests=(INTERRUPTED + "test_take_over_and_back_copies_the_union_of_both_logs[target stopped]",),
    ),
)

OBJECTS_AND_ERRORS = (
    mutant(
        "open file without a name is replicated",
        "Writes to a file whose last name is gone are sent to a target that does not have it any more.",
        (TAP_NAMES, "            node.orphan = True\n            node.declared = -1", "            node.declared = -1"),
        tests=(CONTRACT + "test_open_file_without_a_name_is_written_here_only",),
    ),
    mutant(
        "rename over a file in two steps",
        "Between them the replaced file stands under the old name: a crash there leaves it so.",
        (
            TAP_NAMES,
            "        if replaced.is_directory:\n            if any(",
            "        if True:\n            if replaced.is_directory and any(",
        ),
        tests=(STREAM + "test_rename_over_a_file_is_whole_between_any_two_system_calls",),
    ),
    mutant(
        "target keeps what was unlinked",
        "The target does not forget an object whose last name is gone.",
        (
            OPERATIONS,
            "        if last:\n            self._vanish(identity)",
            "        if False:\n            self._vanish(identity)",
        ),
        tests=(CONTRACT + "test_open_file_without_a_name_is_written_here_only",),
    ),
    mutant(
        "second name is taken for the last",
        "Unlinking one of several names makes the file one that has none.",
        (TAP_NAMES, "            last = directory or links == 1\n", "            last = True\n"),
        tests=(CONTRACT + "test_names_of_one_file_stay_names_of_one_file",),
    ),
    mutant(
        "full disk of the source is not repaired on the target",
        "A write that failed on the source for lack of space stays on the target.",
        (
            SOURCE,
            "        operations: list[Operation] = []\n        if self.known.sends(node):\n            try:",
            "        operations: list[Operation] = []\n        if False:\n            try:",
        ),
        tests=(STREAM + "test_failed_write_is_taken_back_on_the_target_and_later_ones_are_not",),
    ),
    mutant(
        "short write counts as a whole one",
        "A write that the disk took in part is answered as written.",
        (
            SOURCE,
            "            if size > PIECE or os.pwrite(node.data_fd, data, offset) != size:",
            "            if size > PIECE or not os.pwrite(node.data_fd, data, offset):",
        ),
        tests=(STREAM + "test_failed_write_is_taken_back_on_the_target_and_later_ones_are_not",),
    ),
    mutant(
        "repair overtakes later writes",
        "The repair of a failed write undoes writes on the target that were sent before it.",
        (
            SOURCE,
            "            if error is not None:\n                failed.append((node, offset, len(data), slot, error))",
            "            if error is not None:\n                self._write_failed(node, offset, len(data), slot, error)",
        ),
        tests=(STREAM + "test_failed_write_is_taken_back_on_the_target_and_later_ones_are_not",),
    ),
    mutant(
        "lookup of .. leads out",
        "The parent of the module's directory can be looked up through the mount.",
        (TAP_DIRECTORIES, '        if name == b"..":\n            raise OSError(errno.ENOENT, "")\n', ""),
        tests=(CONTRACT + "test_lookup_does_not_lead_out_of_the_mount",),
    ),
    mutant(
        "own folder is shown",
        "The mirror's own folder can be looked up through the mount.",
        (
            TAP_DIRECTORIES,
            '        if parent is self._root and name == PRIVATE_NAME:\n            raise OSError(errno.ENOENT, "")\n        try:\n            fd = open_path',
            "        try:\n            fd = open_path",
        ),
        tests=(CONTRACT + "test_lookup_does_not_lead_out_of_the_mount",),
    ),
    mutant(
        "own attribute is listed",
        "The mirror's own attribute is listed through the mount.",
        (TAP_ATTRIBUTES, "for name in names if not name.startswith(hidden)", "for name in names"),
        tests=(CONTRACT + "test_own_attributes_cannot_be_seen_or_changed",),
    ),
    mutant(
        "own attribute is read",
        "The mirror's own attribute is read through the mount.",
        (
            TAP_ATTRIBUTES,
            '        if name.startswith(HIDDEN_XATTRS):\n            raise OSError(errno.ENODATA, "")\n        value =',
            "        value =",
        ),
        tests=(CONTRACT + "test_own_attributes_cannot_be_seen_or_changed",),
    ),
    mutant(
        "own attribute is overwritten",
        "A guest changes the identity of a file.",
        (
            TAP_ATTRIBUTES,
            '        if name.startswith(HIDDEN_XATTRS):\n            raise OSError(errno.EPERM, "")\n',
            "",
        ),
        tests=(CONTRACT + "test_own_attributes_cannot_be_seen_or_changed",),
    ),
    mutant(
        "set-id bits survive a write",
        "A write by somebody without the right keeps set-user-id, a way to root.",
        (TAP, "if write_flags & abi.WRITE_KILL_SUIDGID and node.has_set_id is not False:", "if False:"),
        tests=(
            CONTRACT + "test_write_of_a_stranger_clears_set_id_bits_on_both_copies",
            POSIX + "test_scenario[mirror-writes_clear_set_id_bits]",
        ),
    ),
    mutant(
        "set-id bits survive on the target",
        "set-user-id is cleared on the source only.",
        (
            TAP_SET_ID,
            "            node.has_set_id = None\n            return content(node, attributes(node, cleared))",
            "            node.has_set_id = None\n            return []",
        ),
        tests=(CONTRACT + "test_write_of_a_stranger_clears_set_id_bits_on_both_copies",),
    ),
)

DIRTY_LOG = (
    mutant(
        "torn tail is kept",
        "What a torn batch left behind stays in the file, behind the batch that takes its number.",
        (MARKS_IO, "        if recovered.torn_until > recovered.end_offset:\n", "        if False:\n"),
        tests=(LOG + "test_a_torn_tail_is_repaired_on_disk",),
    ),
    mutant(
        "incomplete batch counts",
        "Of a batch that was not completed the removals count.",
        (
            MARKS,
            "if not is_removal(stored.record) and stored.record.kind != GENERATION:",
            "if stored.record.kind != GENERATION:",
        ),
        tests=(CONTRACT + "test_removal_in_a_batch_that_was_not_completed_does_not_count",),
    ),
    mutant(
        "damage in the middle is cut off",
        "Damage before the last batch is taken for a torn tail: its marks are lost.",
        (
            MARKS,
            '        if stored.batch != batch:\n            raise DirtyLogUnusable(f"batch',
            '        if stored.batch != batch:\n            continue\n            raise DirtyLogUnusable(f"batch',
        ),
        tests=(LOG + "test_damage_before_the_last_batch_is_never_believed",),
    ),
    mutant(
        "first marks are a torn tail",
        "Damage to the marks that a log was created with is taken for a torn tail.",
        (MARKS, "    if batch == 0 and header.initial_records:\n        raise", "    if False:\n        raise"),
        tests=(LOG + "test_the_marks_that_a_log_was_created_with_are_never_a_torn_tail",),
    ),
    mutant(
        "everything flag in the log is not read",
        "The flag that is set when the log cannot be written means nothing after a restart.",
        (MARKS, "marks, is_everything = Marks(), data[FLAG_OFFSET] != 0", "marks, is_everything = Marks(), False"),
        tests=(LOG + "test_everything_by_record_and_by_flag",),
    ),
    mutant(
        "everything flag is lost by a compaction",
        "A compaction clears the everything flag although nothing was compared.",
        (MARKS_IO, "kept = self.is_everything and not clear_everything", "kept = False"),
        tests=(LOG + "test_everything_survives_compaction_until_it_is_cleared",),
    ),
    mutant(
        "older log is believed",
        "A log that was restored from a backup is believed.",
        (MARKS, "    if header.counter < record.log_counter:\n", "    if False:\n"),
        tests=(LOG + "test_log_and_record_belong_together",),
    ),
    mutant(
        "log of another generation is believed",
        "A log that belongs to another lineage of the data is believed.",
        (
            MARKS,
            "    if record.generation not in (recovered.generation, recovered.previous_generation):\n",
            "    if False:\n",
        ),
        tests=(LOG + "test_log_and_record_belong_together",),
    ),
    mutant(
        "commit without a flush",
        "commit_now returns before the batch is on disk.",
        (MARKS_IO, '            self._files.fdatasync("log.commit.flush", fd)\n', "            pass\n"),
        tests=("tests/test_crash_states.py::test_nothing_is_lost_whenever_the_power_fails",),
    ),
    mutant(
        "compacted log is not flushed",
        "A compacted log takes the old one's name before its content is on disk.",
        (MARKS_IO, '        files.fsync("log.new.flush", fd)\n', ""),
        tests=("tests/test_crash_states.py::test_nothing_is_lost_whenever_the_power_fails",),
    ),
    mutant(
        "record is not flushed",
        "The durable record takes its name before its content is on disk.",
        ("cluster/record_io.py", '        files.fsync(f"{what}.new.flush", fd)\n', ""),
        tests=("tests/test_crash_states.py::test_nothing_is_lost_whenever_the_power_fails",),
    ),
)

FAIL_CLOSED = (
    mutant(
        "the copy is shown writable",
        "On the target the named directory is a bind mount that can be written to.",
        (MOUNTS, "restricted = _MOUNT_ATTR_RDONLY | ", "restricted = "),
        tests=(LAYOUT + "test_the_copy_is_shown_read_only",),
    ),
    mutant(
        "the copy is shown with device files",
        "The target's bind mount is not nodev.",
        (MOUNTS, " | _MOUNT_ATTR_NODEV", ""),
        tests=(LAYOUT + "test_the_copy_is_shown_read_only",),
    ),
    mutant(
        "the copy is shown with set-id bits",
        "The target's bind mount is not nosuid.",
        (MOUNTS, " | _MOUNT_ATTR_NOSUID", ""),
        tests=(LAYOUT + "test_the_copy_is_shown_read_only",),
    ),
    mutant(
        "the mount point is not made immutable",
        "A protected directory can be written to while the mirror is down.",
        (LAYOUT_IO, 'self._calls.set_immutable("close", fd, True)', "pass"),
        tests=(LAYOUT + "test_there_and_back",),
    ),
    mutant(
        "names are exchanged before the mark is on disk",
        "After a power cut an empty data directory and its mount point cannot be told apart.",
        (LAYOUT_IO, '                    calls.flush("mark.flush", fd)\n', ""),
        tests=(LAYOUT + "test_each_change_is_on_disk_before_the_next",),
    ),
    mutant(
        "a directory in use is protected",
        "A VM that has its disk open goes on writing to the data, past the mirror.",
        (LAYOUT_IO, "                    before_exchange()\n", "                    pass\n"),
        tests=(LAYOUT + "test_a_directory_in_use",),
    ),
    mutant(
        "other mount namespaces are not looked at",
        "A VM in a container that has its disk open is not found.",
        ("replication/users_io.py", "appearances(read_table(name), holder.device, place)", "[]"),
        tests=(LAYOUT + "test_in_use_in_another_mount_namespace",),
    ),
    mutant(
        "a change between looking and locking is not seen",
        "The mirror works on a directory that is not the data any more.",
        (LAYOUT_IO, "if not os.path.samestat(os.fstat(root_fd), os.stat(place.data())):", "if False:"),
        tests=(LAYOUT + "test_a_directory_that_changes_while_it_is_opened",),
    ),
    mutant(
        "a mount point is taken for an empty module",
        "A mirror starts on the empty mount point when the data beside it is missing.",
        (LAYOUT_PURE, "if sibling in DATA else Refusal.DATA_MISSING", "if True else Refusal.DATA_MISSING"),
        tests=("tests/test_layout.py::test_a_mount_point_without_data_is_not_taken_for_an_empty_module",),
    ),
    mutant(
        "an interrupted change is started upon",
        "A mirror starts in the named directory although the exchange is half prepared.",
        (
            LAYOUT_PURE,
            "Goal.UNPROTECT: Step.REMOVE, Goal.USE: Refusal.INTERRUPTED},\n    Kind.FULL",
            "Goal.UNPROTECT: Step.REMOVE, Goal.USE: Step.DONE},\n    Kind.FULL",
        ),
        tests=("tests/test_layout.py::test_a_mirror_starts_on_whole_data_or_not_at_all",),
    ),
    mutant(
        "the data is not locked while it moves",
        "The data of a running mirror is moved away under it.",
        ("replication/protect_io.py", "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass"),
        tests=(LAYOUT + "test_a_running_mirror_is_not_disturbed",),
    ),
    mutant(
        "a stale bind mount stays",
        "A target's old bind mount is left below the new one.",
        (LAYOUT_IO, "            place.uncover()\n", ""),
        tests=(LAYOUT + "test_a_stale_bind_mount_is_replaced",),
    ),
    mutant(
        "the target leaves its bind mount",
        "After a clean end the copy is still shown.",
        (TARGET_COPY, "        layout_io.hide(self._options.directory)\n", ""),
        tests=("tests/test_fail_closed.py::test_a_pair_of_protected_directories",),
    ),
    mutant(
        "a killed source's mount is in the way",
        "A server whose source was killed cannot be started as the target.",
        (
            TARGET_COPY,
            "        keeper_io.take_away(options.state, options.directory)  # of a source that was killed here\n",
            "",
        ),
        tests=("tests/test_fail_closed.py::test_a_killed_target_becomes_the_source",),
    ),
)

COPIES = (
    mutant(
        "the copies are not told apart",
        "A server takes the directory of the other one for its own.",
        (COPY_IDENTITY, "        if present != record.copy:", "        if False:"),
        tests=(
            COPIES_TESTS + "test_the_other_copys_directory_is_refused",
            "tests/test_faults_start.py::test_swapped_directories",
        ),
    ),
    mutant(
        "the copy's id is not recorded by the source",
        "The first record of a source names no copy.",
        (OWN_COPY, "            copy=self.identity,\n", ""),
        tests=(COPIES_TESTS + "test_each_copy_keeps_its_own_id",),
    ),
    mutant(
        "the copy's id is not recorded by the target",
        "The first record of a target names no copy.",
        (TARGET_COPY, "                    copy=self.identity,\n", ""),
        tests=(COPIES_TESTS + "test_each_copy_keeps_its_own_id",),
    ),
    mutant(
        "an older record names no copy",
        "A source whose record is of the version before goes on without a copy id.",
        (OWN_COPY, "replace(stored, copy=self.identity) if stored is not None", "stored if stored is not None"),
        tests=(COPIES_TESTS + "test_a_record_of_before_gets_the_id",),
    ),
    mutant(
        "the copy's id is made anew",
        "A first start that was interrupted gives the directory another id when it is repeated.",
        (
            COPY_IDENTITY,
            "    if present is not None and len(present) == IDENTITY_SIZE:\n        return present\n",
            "",
        ),
        tests=(COPIES_TESTS + "test_an_interrupted_first_start",),
    ),
    mutant(
        "own user attributes are shown",
        "What stands in the user namespace is shown, and replicated, as if it were the VM's.",
        (OWN_ATTRIBUTES, "HIDDEN_XATTRS: Final = (TRUSTED, USER)", "HIDDEN_XATTRS: Final = (TRUSTED,)"),
        tests=(COPIES_TESTS + "test_either_namespace", COPIES_TESTS + "test_each_copy_keeps_its_own_id"),
    ),
    mutant(
        "no fall-back to user attributes",
        "Without the right to trusted attributes nothing works.",
        (OWN_ATTRIBUTES, "        _write_user(path, name, value, flags)\n", "        raise\n"),
        tests=(COPIES_TESTS + "test_a_target_without_privilege",),
    ),
    mutant(
        "what cannot be mirrored is found too late",
        "A source without trusted attributes serves a tree with symlinks in it.",
        (OWN_COPY, "        check_kinds(self.root_fd, options.directory)\n", ""),
        tests=(COPIES_TESTS + "test_a_source_that_holds_what_it_cannot_mirror",),
    ),
    mutant(
        "an object without an identity ends the helper",
        "A listing with something in it that gets no identity ends the mirror.",
        (
            "replication/helper.py",
            "                    if error.errno not in NOT_PERMITTED:\n                        raise\n",
            "                    raise\n",
        ),
        tests=(COPIES_TESTS + "test_a_file_that_gets_no_identity_is_no_crash",),
    ),
    mutant(
        "the table of a clean stop is not written by the source",
        "What was changed on a stopped source is not found.",
        (
            "replication/source_stop.py",
            "            write_table(self._mount.state, self._copy.root_fd, self._copy.identity)",
            "            pass",
        ),
        tests=(CLEAN_STOP + "test_changed_behind_the_mirrors_back",),
    ),
    mutant(
        "the table of a clean stop is not written by the target",
        "What was changed on a stopped target is not found.",
        (
            TARGET_COPY,
            "            clean_stop_io.write_table(self._options.state, self.root_fd, self.identity)",
            "            pass",
        ),
        tests=(CLEAN_STOP + "test_changed_behind_the_mirrors_back",),
    ),
    mutant(
        "the source does not hear of files changed on the target",
        "The target keeps what it found for itself.",
        (TARGET_SESSION, '            "changed": sorted(self._copy.changed or ()),\n', ""),
        tests=(CLEAN_STOP + "test_changed_behind_the_mirrors_back",),
    ),
    mutant(
        "changed files are copied, not compared",
        "A file whose times alone have changed is copied as a whole.",
        (REINTEGRATION, "(self._full or chunk.job.identity in self.compared)", "self._full"),
        tests=(CLEAN_STOP + "test_changed_behind_the_mirrors_back",),
    ),
    mutant(
        "changed files are not in the log before the table goes",
        "A source that dies before the reintegration forgets what was changed.",
        (SESSION, "            self._mark_changed()\n            self._source.marks.commit_now()\n", ""),
        tests=(CLEAN_STOP + "test_what_was_found_outlives_a_crash",),
    ),
    mutant(
        "the target's table goes at its start",
        "A target that dies before a source has noted what was changed forgets it.",
        (
            TARGET_COPY,
            "        self._log_path = os.path.join(",
            "        clean_stop_io.remove_table(options.state)\n        self._log_path = os.path.join(",
        ),
        tests=(CLEAN_STOP + "test_a_targets_table_stays_until_a_source_has_noted_it",),
    ),
    mutant(
        "the source's table stays",
        "After a crash all that was written since the last clean stop is compared.",
        (SESSION, "        remove_table(self._options.state)\n", ""),
        tests=(CLEAN_STOP + "test_changed_behind_the_mirrors_back", CLEAN_STOP + "test_a_crash_is_no_clean_stop"),
    ),
    mutant(
        "the target's table stays",
        "After a crash all that was written since the last clean stop is compared.",
        (TARGET_COPY, "        clean_stop_io.remove_table(self._options.state)", "        pass"),
        tests=(CLEAN_STOP + "test_changed_behind_the_mirrors_back",),
    ),
    mutant(
        "a damaged table says that nothing was changed",
        "A table that cannot be read is taken for none.",
        (
            TABLE_IO,
            '        log.warning("everything is compared: the table',
            '        return set()\n        log.warning("everything is compared: the table',
        ),
        tests=(CLEAN_STOP + "test_a_damaged_table",),
    ),
    mutant(
        "a source with a damaged table compares nothing",
        "That all may have been changed is not noted.",
        (
            SESSION,
            "        if changed is None:\n            self._copy.log.set_everything()\n",
            "        if changed is None:\n            pass\n",
        ),
        tests=(CLEAN_STOP + "test_a_damaged_table_of_either_side",),
    ),
    mutant(
        "a target with a damaged table compares nothing",
        "That all may have been changed is not said.",
        (TARGET_SESSION, "marks if self._copy.changed is not None else None", "marks"),
        tests=(CLEAN_STOP + "test_a_damaged_table_of_either_side",),
    ),
    mutant(
        "a table is not checked",
        "A flipped bit in the table hides a change.",
        (TABLE_IO, "    if size < 0 or digest.digest() != os.pread(fd, DIGEST_BYTES, size):", "    if size < 0:"),
        tests=(CLEAN_STOP + "test_a_damaged_table",),
    ),
)

SNAPSHOTS = (
    mutant(
        "a half-copied tree takes the place of the snapshot",
        "A reintegration that begins again keeps the first snapshot, the last consistent copy.",
        (SNAPSHOT_IO, "        if record.inconsistent:\n", "        if False:\n"),
        tests=(SNAPSHOT + "test_the_first_one_is_kept",),
    ),
    mutant(
        "a snapshot is kept for ever",
        "It is removed when the target is in sync.",
        (TARGET_SESSION, "Kind.TAKEN, encoded)\n        self._snapshots.drop()\n", "Kind.TAKEN, encoded)\n"),
        tests=(SNAPSHOT + "test_removed_when_in_sync",),
    ),
    mutant(
        "a snapshot left by a crash is kept",
        "In sync, and killed before it could remove it.",
        (TARGET_PROCESS, "            self._snapshots.put_away()  #", "            pass  #"),
        tests=(SNAPSHOT + "test_left_by_a_crash_after_sync",),
    ),
    mutant(
        "a source keeps a snapshot",
        "It would be taken for a later one.",
        (OWN_COPY, "        forget_snapshots(self.root_fd)\n", ""),
        tests=(SNAPSHOT + "test_left_by_a_crash_after_sync",),
    ),
    mutant(
        "inconsistent before the snapshot is made",
        "The snapshot is complete and durable before the first byte changes.",
        (
            SNAPSHOT_IO,
            "        token = secrets.token_hex(8)\n",
            "        token = secrets.token_hex(8)\n        done()\n",
        ),
        tests=(SNAPSHOT + "test_the_loop_goes_on_and_the_time_is_bounded",),
    ),
    mutant(
        "the target is silent while a snapshot is made",
        "It says that it is busy.",
        (TARGET_SESSION, "(self._flushing_all or self._snapshots.working)", "self._flushing_all"),
        tests=(SNAPSHOT + "test_the_loop_goes_on_and_the_time_is_bounded",),
    ),
    mutant(
        "a snapshot may take any time",
        "The VM's writes may wait for it.",
        (SNAPSHOT_IO, "making is not None and now >= making.until", "making is not None and False"),
        tests=(SNAPSHOT + "test_the_loop_goes_on_and_the_time_is_bounded",),
    ),
    mutant(
        "the VM's writes wait as long for a snapshot as a source that is alone",
        "A short wait must not become a fence.",
        (TARGET_SESSION, "SNAPSHOT_S if self._source_is_alone else SNAPSHOT_FROZEN_S", "SNAPSHOT_S"),
        tests=(SNAPSHOT + "test_the_loop_goes_on_and_the_time_is_bounded",),
    ),
    mutant(
        "a snapshot may have any size",
        "A limit on everything.",
        (SNAPSHOT_HELPER, "        if count > limit:", "        if False:"),
        tests=(SNAPSHOT + "test_bounds_of_the_helper", SNAPSHOT + "test_more_entries_than_the_limit"),
    ),
    mutant(
        "a snapshot keeps the copy from being in sync",
        "Where the disk is too small for both, the snapshot is given up.",
        (
            TARGET_SESSION,
            "        if self._copy.inconsistent and error.errno in",
            "        if False and error.errno in",
        ),
        tests=(SNAPSHOT + "test_given_up_when_there_is_no_room_for_both",),
    ),
    mutant(
        "a restored copy is not outdated",
        "It could be granted a take-over over what the lost server acknowledged.",
        (SNAPSHOT_PURE, "records.mark_outdated(", "("),
        tests=(SNAPSHOT + "test_the_restored_record", SNAPSHOT + "test_source_lost_for_ever_in_the_middle"),
    ),
    mutant(
        "a restored copy has nothing to compare",
        "The peer has taken from its log what it had copied before the restore.",
        (RESTORE, "            is_everything=True,\n", ""),
        tests=(SNAPSHOT + "test_source_lost_for_ever_in_the_middle",),
    ),
    mutant(
        "the snapshot goes before the record",
        "Until the record is stored the snapshot is whole.",
        (
            RESTORE,
            "            record = self._remember(",
            "            snapshot_io.put_away(private_fd)\n            record = self._remember(",
        ),
        tests=(SNAPSHOT + "test_restore_interrupted_at_every_step",),
    ),
    mutant(
        "the surplus of the half-copied tree stays",
        "The copy is exactly what it was.",
        (RESTORE, '            self._move(root_fd, old_fd, "take away", PRIVATE_NAME)\n', ""),
        tests=(SNAPSHOT + "test_source_lost_for_ever_in_the_middle",),
    ),
    mutant(
        "a restored file has no identity",
        "The same name with another id is another file.",
        (CLONE, "            own_attributes_io.write(clone, self._to_be, identity)\n", "            pass\n"),
        tests=(SNAPSHOT + "test_source_lost_for_ever_in_the_middle",),
    ),
    mutant(
        "hard links become files of their own",
        "Which names are one file is part of the copy.",
        (CLONE, "        if several and status.st_ino in self._linked:", "        if False:"),
        tests=(SNAPSHOT + "test_source_lost_for_ever_in_the_middle",),
    ),
)

VERDICTS_AND_WORDS = (
    mutant(
        "a verdict is carried out whatever the record is by now",
        "What arbitration granted counts for the record that it was asked with.",
        (GO_ALONE, "    if present != verdict.based_on:\n", "    if False:\n"),
        tests=(TOLD + "test_which_record_takes_the_place_of_which",),
    ),
    mutant(
        "go alone with a connection",
        "A source that has a connection has not lost its peer.",
        (VERDICTS, "        if self._session.linked:\n", "        if False:\n"),
        tests=(TOLD + "test_not_alone_while_there_is_a_connection",),
    ),
    mutant(
        "the granted record is not the one that is stored",
        "Going alone stores the record that the arbiter's grant stands in.",
        (VERDICTS, "verdict.record if verdict is not None else None", "None"),
        tests=(TOLD + "test_go_alone_with_the_record_that_was_granted",),
    ),
    mutant(
        "a failed tap is tried again",
        "After the tap was failed no connection is made any more.",
        (
            SESSION,
            "not self._standing.stopping and not self._standing.failed and not self._give_up",
            "not self._standing.stopping and not self._give_up",
        ),
        (
            SOURCE_PROCESS,
            "self._session.connection is not None or self._standing.stopping or self._standing.failed:",
            "self._session.connection is not None or self._standing.stopping:",
        ),
        tests=(TOLD + "test_a_failed_tap_acknowledges_nothing_and_the_process_waits_to_be_ended",),
    ),
    mutant(
        "alone although the record is not solo",
        "Only a copy that goes on alone by its record takes writes without having met its peer.",
        (OWN_COPY, "self._options.alone and not record.solo:", "False:"),
        tests=(TOLD + "test_a_copy_that_is_not_solo_does_not_go_alone_by_itself",),
    ),
    mutant(
        "the epoch is answered and not stored",
        "Both records have the epoch, durably, when an agreement has ended.",
        (TARGET_SESSION, "        self._copy.store(records.agree_on_epoch(record, epoch))\n", ""),
        tests=(AGREE_AND_LEAVE + "test_a_target_has_the_epoch_on_disk_before_it_says_so",),
    ),
    mutant(
        "the epoch is stored in the wrong order",
        "The server that the arbiter names records its epoch first.",
        (AGREEMENT, "        if mine_first:\n", "        if not mine_first:\n"),
        tests=(AGREE_AND_LEAVE + "test_the_one_that_the_arbiter_names_records_it_first",),
    ),
    mutant(
        "let go before both copies are flushed",
        "Both copies are flushed before a target records that it is outdated.",
        (
            LEAVE,
            "flush_everything(self._copy.root_fd, lambda error: self._flushed(connection, error))",
            "flush_everything\n        self._flushed(connection, 0)",
        ),
        tests=(AGREE_AND_LEAVE + "test_both_copies_are_flushed_before_the_target_may_go",),
    ),
    mutant(
        "gone without having been let go",
        "Only a target that was let go in this connection gives consent in the stream.",
        (LEAVE, "        if not self._granted:\n", "        if False:\n"),
        tests=(AGREE_AND_LEAVE + "test_nobody_has_gone_who_was_not_let_go",),
    ),
    mutant(
        "gone and not outdated",
        "A target says that it has gone when it is outdated on its disk.",
        (TARGET_SESSION, "            self._copy.leave()\n", "            pass\n"),
        tests=(AGREE_AND_LEAVE + "test_the_last_word_arrives_although_the_source_still_sends",),
    ),
    mutant(
        "a copy is overwritten that is not saved",
        "What the loser of a split brain has of its own is saved before it is overwritten.",
        (TARGET_COPY, "        self._check_salvaged()\n", ""),
        tests=(SALVAGE + "test_from_the_split_to_one_copy_again",),
    ),
    mutant(
        "a copy that was given up does not tell what it has changed",
        "The union of both logs is copied after a split brain.",
        (TARGET_COPY, "(self.record.inconsistent and not is_given_up(self.record))", "self.record.inconsistent"),
        tests=(SALVAGE + "test_from_the_split_to_one_copy_again",),
    ),
    mutant(
        "a torn salvage file counts",
        "Only a whole salvage file is one.",
        (SALVAGED, "    if hashlib.sha256(body).digest() != digest:\n", "    if False:\n"),
        tests=(SALVAGE + "test_a_torn_one_is_replaced_and_starts_no_target",),
    ),
)

MUTANTS = (
    *ACKNOWLEDGEMENTS, *MARKING, *FLUSHES, *STREAMING, *DECISIONS, *REINTEGRATING, *CONTINUING, *OBJECTS_AND_ERRORS,
    *DIRTY_LOG, *FAIL_CLOSED, *COPIES, *SNAPSHOTS, *VERDICTS_AND_WORDS,
)  # fmt: skip
