"""The contract, sentence by sentence, each with a test that fails when the sentence is not kept (see mutants.py).

First in one process, step by step (stream_pair.py); then a target process with a source played by the test; then a
source process with a target played by the test; last two real processes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.record import Record
from hotpair.replication import dirty_log, frames, linux_io
from hotpair.replication import fuse_abi as abi
from hotpair.replication.dirty_log import TO_END_OF_FILE, Extents, Marks
from hotpair.replication.frames import LENGTH, Kind
from hotpair.replication.limits import MAX_MESSAGE, MAX_PAYLOAD, PROTOCOL_VERSION
from hotpair.replication.link_io import Delivery
from hotpair.replication.marks_message import decode_marks
from hotpair.replication.modes import ALONE, FROZEN, PRIM, STOPPED, Mode
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_process import SourceProcess
from hotpair.replication.source_session import Session
from tests.mirror_pair import MirrorPair
from tests.programs import wait_for_end
from tests.stream_pair import EXTENT, QuietFiles, StreamPair
from tests.stream_vm import Inode, Request, Vm
from tests.test_linux_io import waits_for_write_back

ANSWER_S = 30.0  # a process that has not answered by then, on a machine that others use too, will not
FULL_FLUSH_S = 120.0  # flushing a file system on which others write, too
QUIET_S = 0.4  # what has not come by then is not on its way: a loop's turn takes a thousandth of it

Pair = tuple[StreamPair, Vm]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with StreamPair() as stream:
        yield stream, Vm(stream)


def settle(pair: Pair, *requests: Request) -> None:
    """Until nothing happens any more; the requests have succeeded."""
    pair[0].run()
    pair[1].hear()
    assert [request.code for request in requests] == [0] * len(requests)


def some_turns(pair: Pair) -> None:
    """Everything that can happen happens, several times."""
    for _ in range(6):
        pair[0].one_of_each()
    pair[1].hear()


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def in_sync_with_a_hot_file(pair: Pair) -> Inode:
    """``f`` holds something, and its first extent is marked already."""
    stream, vm = pair
    settle(pair, vm.create(b"f"))
    stream.synchronise()
    settle(pair, vm.write(vm.open(b"f"), 0, b"before"))
    assert stream.source.mode is PRIM
    return vm.open(b"f")


def equal(pair: Pair) -> None:
    """Nothing went wrong, and the copies are the same."""
    stream, vm = pair
    stream.run()
    vm.hear()
    assert stream.lost == [] and vm.pending == {}
    assert stream.differences() == []
    stream.check_nothing_is_held()


# --- a write is acknowledged when both copies have it -----------------------------------------------------------------


def test_write_is_answered_when_both_copies_have_it(pair: Pair) -> None:
    stream, vm = pair
    request = vm.write(in_sync_with_a_hot_file(pair), 0, b"after!")
    stream.turn()
    vm.hear()
    assert not request.answered, "the target has not even been sent it"
    stream.deliver_until(Kind.WRITE)
    stream.deliver(stream.to_target.frames()[0][1] - 1)
    stream.deliver_back()
    vm.hear()
    assert not request.answered, "one byte of it is missing on the target"
    stream.deliver()
    vm.hear()
    assert not request.answered, "the target has not said so"
    stream.deliver_back()
    vm.hear()
    assert request.code == 0
    assert read(f"{stream.source_dir}/f") == read(f"{stream.target_dir}/f") == b"after!"


@pytest.mark.parametrize("change", ["create", "truncate", "rename", "set attribute"])
def test_other_changes_are_answered_when_both_copies_have_them(pair: Pair, change: str) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    settle(pair, vm.truncate(file, 100))
    settle(pair, vm.chmod(file, 0o600))
    request = {
        "create": lambda: vm.create(b"new"),
        "truncate": lambda: vm.truncate(file, 3),
        "rename": lambda: vm.rename(b"f", b"g"),
        "set attribute": lambda: vm.chmod(file, 0o640),
    }[change]()
    for step in (stream.turn, stream.flushed, stream.turn, stream.deliver):
        assert not request.answered
        step()
        vm.hear()
    assert not request.answered and stream.differences() == []
    stream.deliver_back()
    vm.hear()
    assert request.code == 0


def test_read_sees_the_write_that_was_sent_and_not_yet_applied(pair: Pair) -> None:
    _, vm = pair
    file = in_sync_with_a_hot_file(pair)
    vm.write(file, 0, b"after!")
    found: list[bytes] = []
    vm._ask(abi.READ, file.nodeid, abi.READ_IN.pack(file.handle, 0, 100, 0, 0, 0, 0), found.append)
    assert found == [b"after!"]


@pytest.mark.parametrize("verdict", ["go alone", "resume", "stop"])
def test_lost_link_freezes_until_the_verdict(pair: Pair, verdict: str) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    stream.to_target.cut = True
    sent = vm.write(file, 0, b"after!")
    some_turns(pair)
    later, name = vm.write(file, 100, b"later"), vm.create(b"name")
    some_turns(pair)
    assert stream.source.mode is FROZEN
    assert not sent.answered and not later.answered and not name.answered
    assert not os.path.exists(f"{stream.source_dir}/name")
    assert len(read(f"{stream.source_dir}/f")) == 6
    if verdict == "stop":
        stream.source.stop()
        some_turns(pair)
        assert (later.code, name.code) == (errno.EIO, errno.EIO)
        assert stream.source.mode is STOPPED and not sent.answered
        return
    if verdict == "resume":
        stream.resume()
    else:
        stream.source.go_alone()
        assert stream.source.mode is ALONE
        stream.lost.clear()
    settle(pair, sent, later, name)
    assert read(f"{stream.source_dir}/f") == b"after!".ljust(100, b"\0") + b"later"


def test_going_alone_applies_what_it_answers(pair: Pair) -> None:
    """The write was taken, and neither sent nor applied, when the link was lost and the verdict came."""
    stream, vm = pair
    request = vm.write(in_sync_with_a_hot_file(pair), 0, b"after!")
    stream.to_target.cut = True
    stream.source.link_lost()
    stream.source.go_alone()
    vm.hear()
    assert request.code == 0 and read(f"{stream.source_dir}/f") == b"after!"


# --- marks before changes ---------------------------------------------------------------------------------------------

TREE = ("d/", "d/f", "d/g", "e/")
CHANGES: dict[str, tuple[Callable[[Vm], Request], Callable[[Callable[[str], bytes]], list[dirty_log.Mark]]]] = {
    "write": (lambda vm: vm.write(vm.open(b"d/f"), EXTENT, b"x"), lambda id_of: [Extents(id_of("d/f"), 1, 1)]),
    "long write": (
        lambda vm: vm.write(vm.open(b"d/f"), EXTENT - 1, b"x" * (EXTENT + 2)),
        lambda id_of: [Extents(id_of("d/f"), 0, 2)],
    ),
    "truncate": (
        lambda vm: vm.truncate(vm.open(b"d/f"), EXTENT),
        lambda id_of: [Extents(id_of("d/f"), 1, TO_END_OF_FILE), dirty_log.Metadata(id_of("d/f"))],
    ),
    "punch hole": (
        lambda vm: vm.punch(vm.open(b"d/f"), EXTENT - 1, EXTENT),
        lambda id_of: [Extents(id_of("d/f"), 0, 1)],
    ),
    "chmod": (lambda vm: vm.chmod(vm.find(b"d/f"), 0o600), lambda id_of: [dirty_log.Metadata(id_of("d/f"))]),
    "create": (lambda vm: vm.create(b"d/new"), lambda id_of: [dirty_log.Names(id_of("d"))]),
    "mkdir": (lambda vm: vm.mkdir(b"d/new"), lambda id_of: [dirty_log.Names(id_of("d"))]),
    "unlink": (lambda vm: vm.unlink(b"d/f"), lambda id_of: [dirty_log.Names(id_of("d"))]),
    "link": (lambda vm: vm.link(b"d/f", b"e/f"), lambda id_of: [dirty_log.Names(id_of("e"))]),
    "rename": (
        lambda vm: vm.rename(b"d/f", b"e/f"),
        lambda id_of: [dirty_log.Names(id_of("d")), dirty_log.Names(id_of("e"))],
    ),
}


def picture(directory: str) -> dict[str, tuple[int, bytes]]:
    """Mode and content of all that is in a copy."""
    found = {}
    for at, _, names in os.walk(directory):
        if not at.startswith(f"{directory}/.hotpair"):
            for path in (at, *(f"{at}/{name}" for name in names)):
                status = os.stat(path)
                found[path] = status.st_mode, read(path) if stat.S_ISREG(status.st_mode) else b""
    return found


def is_marked(marks: Marks, mark: dirty_log.Mark) -> bool:
    if isinstance(mark, Extents):
        return marks.covers(mark.identity, mark.first, mark.last)
    return mark.identity in (marks.metadata if isinstance(mark, dirty_log.Metadata) else marks.names)


@pytest.mark.parametrize("alone", [False, True], ids=["in sync", "alone"])
@pytest.mark.parametrize("name", CHANGES)
def test_marks_are_durable_before_anything_changes_anywhere(pair: Pair, name: str, alone: bool) -> None:
    """The flush of the log does not end: neither copy may change, and the target is not sent a change."""
    stream, vm = pair
    change, expected = CHANGES[name]
    for path in TREE:
        if path.endswith("/"):
            os.mkdir(f"{stream.source_dir}/{path}")
        else:
            with open(f"{stream.source_dir}/{path}", "wb") as file:
                file.write(b"c" * 5 * EXTENT)
    stream.synchronise(full=True)
    if alone:
        stream.go_alone()
    vm.open(b"d/f")
    vm.find(b"e")
    stream.run()
    before = picture(stream.source_dir)
    identities = {path: os.getxattr(f"{stream.source_dir}/{path}", "trusted.hotpair.id") for path in ("d", "e", "d/f")}
    stream.flushes.held = True
    request = change(vm)
    for _ in range(3):
        stream.turn()
        stream.flushed()
        vm.hear()
        assert not request.answered
        assert {kind for kind, _ in stream.to_target.frames()} <= {Kind.DECLARE}
        assert picture(stream.source_dir) == before
        stream.deliver()
        stream.deliver_back()
    stream.flushes.held = False
    settle(pair, request)
    assert picture(stream.source_dir) != before
    marks = dirty_log.recover(read(f"{stream.base}/log")).marks
    assert all(is_marked(marks, mark) for mark in expected(identities.__getitem__))
    if alone:
        stream.begin()
        stream.synchronise()
    equal(pair)


def test_bytes_that_came_back_from_beyond_a_truncation_are_zeros_on_both_copies(pair: Pair) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    settle(pair, *(vm.write(file, number * EXTENT, b"x" * EXTENT) for number in range(5)))
    selection = stream.activity.select([Extents(os.getxattr(f"{stream.source_dir}/f", "trusted.hotpair.id"), 0, 10)])
    stream.activity.finish_eviction(selection)  # both copies have flushed: no extent is marked any more
    stream.go_alone()
    settle(pair, vm.truncate(file, 100))
    settle(pair, vm.truncate(file, 5 * EXTENT))
    stream.begin()
    stream.synchronise()
    equal(pair)


def test_mark_stays_when_its_extent_is_written_while_both_copies_flush(pair: Pair) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    identity = os.getxattr(f"{stream.source_dir}/f", "trusted.hotpair.id")
    settle(pair, vm.write(file, EXTENT, b"not written again"))
    selection = stream.activity.select([Extents(identity, 0, 1)])
    settle(pair, vm.write(file, 0, b"again"))
    assert stream.activity.finish_eviction(selection) == [dirty_log.remove(Extents(identity, 1, 1))]
    assert stream.activity.runs_of(identity) == [(0, 0)]


def test_removal_in_a_batch_that_was_not_completed_does_not_count() -> None:
    identity, other = b"i" * 16, b"o" * 16
    header = dirty_log.Header(b"r" * 16, b"n" * 16, 1, GENERATION, bytes(16), "", 16)
    first = dirty_log.encode_batch([dirty_log.add(Extents(identity, 1, 1))], 0, header.seed)
    removal = [dirty_log.remove(Extents(identity, 1, 1)), dirty_log.add(Extents(other, 2, 2))]
    second = dirty_log.encode_batch(removal, 1, header.seed)
    block = dirty_log.encode_header(header).ljust(dirty_log.RECORDS_OFFSET, b"\0")
    whole = dirty_log.recover(block + first + second + bytes(4096))
    assert not whole.marks.covers(identity, 1, 1) and whole.marks.covers(other, 2, 2)
    torn = dirty_log.recover(block + first + second[: len(second) // 2] + bytes(4096))
    assert torn.marks.covers(identity, 1, 1)


def test_marks_of_the_target_are_durable_before_it_is_told_to_begin(pair: Pair) -> None:
    """It drops its own log then. (Only this step of the process, over the parts of the pair.)"""
    stream, _ = pair
    events: list[Any] = []

    class Witness(QuietFiles):
        def fdatasync(self, label: str, fd: int) -> None:
            events.append(label)

    stream.log._files = Witness()
    stream.source.message = lambda *fields: events.append(fields[0])  # type: ignore[method-assign]
    copy = OwnCopy.__new__(OwnCopy)
    copy.activity, copy.log = stream.activity, stream.log
    copy.record = Record(generation=GENERATION, last_role="PRIM", boot="", configuration=b"", root=stream.identity)
    session = Session.__new__(Session)
    session._source, session._copy, session.connection = stream.source, copy, None
    session._compared = frozenset()
    session._begin(None, decode_marks([[b"m" * 16, [3, 5], True, False]]), False)
    assert events == ["log.commit.flush", Kind.BEGIN_REINTEGRATION]
    assert dirty_log.recover(read(f"{stream.base}/log")).marks.covers(b"m" * 16, 3, 5)


def test_sources_flush_of_everything_reaches_the_disk() -> None:
    """(Only this step of the process: where both copies are on one file system, the target's flush is the source's.)"""
    process = SourceProcess.__new__(SourceProcess)
    process._delivery = Delivery()
    codes: list[int] = []
    with tempfile.TemporaryFile(dir="/var/tmp") as file:
        file.write(b"x" * 100_000)
        file.flush()
        assert waits_for_write_back(file.fileno())
        process._sync_file_system(file.fileno(), codes.append)
        assert select.select([process._delivery], [], [], ANSWER_S)[0]
        for act in process._delivery.take():
            act()
        assert codes == [0] and not waits_for_write_back(file.fileno())
    process._delivery.close()


# --- a flush is acknowledged when both copies are on stable storage ---------------------------------------------------


def write_with_flags(vm: Vm, file: Inode, flags: int, data: bytes) -> Request:
    body = abi.WRITE_IN.pack(file.handle, 0, len(data), 0, 0, flags, 0) + data
    return vm._ask(abi.WRITE, file.nodeid, body)


def flush_directory(vm: Vm) -> Request:
    handles: list[int] = []
    vm._ask(
        abi.OPENDIR, vm.root.nodeid, abi.OPEN_IN.pack(0, 0), lambda body: handles.append(abi.OPEN_OUT.unpack(body)[0])
    )
    return vm._ask(abi.FSYNCDIR, vm.root.nodeid, abi.FSYNC_IN.pack(handles[0], 0, 0))


def durable_write(vm: Vm, file: Inode) -> Request:
    vm.pair.source.durable = True
    return vm.write(file, 0, b"after!")


def flush_all(vm: Vm) -> Request:
    """What an eviction waits for."""
    request = Request(None, ())

    def done(code: int) -> None:
        request.code = code

    vm.pair.source.flushes.flush_everything(vm.pair.source_root, done)
    return request


FLUSHES: dict[str, Callable[[Vm, Inode], Request]] = {
    "fsync": lambda vm, file: vm.fsync(file),
    "fdatasync": lambda vm, file: vm._ask(abi.FSYNC, file.nodeid, abi.FSYNC_IN.pack(file.handle, 1, 0)),
    "of a directory": lambda vm, _: flush_directory(vm),
    "O_DSYNC": lambda vm, file: write_with_flags(vm, file, os.O_RDWR | os.O_DSYNC, b"after!"),
    "O_SYNC": lambda vm, file: write_with_flags(vm, file, os.O_RDWR | os.O_SYNC, b"after!"),
    "durability disk": durable_write,
    "of everything": lambda vm, _: flush_all(vm),
}


@pytest.mark.parametrize("slow", ["source", "target"])
@pytest.mark.parametrize("name", FLUSHES)
def test_flush_is_answered_when_both_copies_have_flushed(pair: Pair, name: str, slow: str) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    held: list[Callable[[], None]] = []
    (stream.flushes if slow == "source" else stream.target_flushes).held = True
    if slow == "source":
        stream.source.flushes.sync_file_system = lambda _, done: held.append(lambda: done(0))
    else:
        target = stream.target
        target.on_flush_all = lambda sequence: held.append(lambda: target.say(Kind.FLUSHED, sequence))
    request = FLUSHES[name](vm, file)
    some_turns(pair)
    assert not request.answered, f"the {slow} has not flushed"
    stream.flushes.held = stream.target_flushes.held = False
    for release in held:
        release()
    stream.target.send()
    settle(pair, request)


@pytest.mark.parametrize("mode", [PRIM, ALONE])
def test_failed_flush_of_the_source_is_sticky(pair: Pair, mode: Mode) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    if mode is ALONE:
        stream.go_alone()
    settle(pair, vm.write(file, 0, b"before"))
    stream.flushes.error = errno.EIO
    request = vm.fsync(file)
    stream.turn()
    some_turns(pair)
    assert request.code == errno.EIO
    assert stream.disk_failures and stream.source.mode is STOPPED
    written = vm.write(file, 0, b"later!")
    again = vm.fsync(file)
    some_turns(pair)
    assert (written.code, again.code) == (errno.EIO, errno.EIO)


def test_failed_flush_of_the_target_ends_the_stream(pair: Pair) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    failed: list[int] = []
    stream.target.on_failure = lambda sequence, _: failed.append(sequence)
    stream.target_flushes.error = errno.EIO
    request = vm.fsync(file)
    some_turns(pair)
    assert not request.answered and len(failed) == 1
    assert stream.source.mode is FROZEN and "TargetFailed" in stream.lost[0]


def test_file_is_not_closed_while_it_is_unflushed(pair: Pair) -> None:
    """An error of its write-back would be reported to nobody."""
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    node = stream.tap.nodes.by_number[file.nodeid]
    replica = stream.target.objects[node.identity]
    stream.flushes.held = stream.target_flushes.held = True
    vm.close(file)
    vm.forget(b"f")
    for _ in range(3):
        stream.turn()
        stream.flushed()
        stream.deliver()
        stream.deliver_back()
        assert node.data_fd >= 0 and replica.data_fd >= 0
    assert stream.flushes.pending == stream.target_flushes.pending == 1
    stream.flushes.held = stream.target_flushes.held = False
    stream.run()
    assert node.data_fd < 0 and replica.data_fd < 0


# --- the target applies the stream, in its order, and nothing else ----------------------------------------------------


def send_frames(stream: StreamPair, *pieces: bytes) -> None:
    """As if the source had sent it."""
    for piece in pieces:
        stream.to_target.arrived += piece
    while stream.to_target.arrived and stream.target.connection is not None:
        stream.guarded(stream.target.receive)


def make_file(stream: StreamPair, number: int, name: bytes) -> bytes:
    """The frame of a MAKE in the root, ``number`` after what was applied."""
    sequence = stream.target.applied + number
    return frames.encode(Kind.MAKE, sequence, stream.identity, name, os.urandom(16), 0o100644, 0, 0, 0, b"", [])


def write_frame(stream: StreamPair, number: int, data: bytes, size: int | None = None) -> bytes:
    identity = os.getxattr(f"{stream.target_dir}/f", "trusted.hotpair.id")
    head = (Kind.WRITE, stream.target.applied + number, identity, 0, len(data) if size is None else size)
    return frames.encode(*head) + data


def test_target_applies_nothing_after_a_failed_operation(pair: Pair) -> None:
    stream, _ = pair
    in_sync_with_a_hot_file(pair)
    applied = stream.target.applied
    failed: list[int] = []
    stream.target.on_failure = lambda sequence, _: failed.append(sequence)
    gone = frames.encode(Kind.UNLINK, applied + 1, stream.identity, b"missing", bytes(16), True)
    send_frames(stream, gone, make_file(stream, 2, b"late"), write_frame(stream, 3, b"late"))
    assert failed == [applied + 1] and stream.target.applied == applied
    assert "TargetFailed" in stream.lost[0] and stream.target.connection is None
    assert not os.path.exists(f"{stream.target_dir}/late") and read(f"{stream.target_dir}/f") == b"before"


@pytest.mark.parametrize("number", [0, 2], ids=["repeated", "skipped"])
@pytest.mark.parametrize("kind", ["write", "make"])
def test_target_refuses_an_operation_out_of_its_order(pair: Pair, kind: str, number: int) -> None:
    stream, _ = pair
    in_sync_with_a_hot_file(pair)
    frame = write_frame(stream, number, b"wrong!") if kind == "write" else make_file(stream, number, b"wrong")
    send_frames(stream, frame)
    assert "ProtocolError" in stream.lost[0] and stream.target.connection is None
    assert not os.path.exists(f"{stream.target_dir}/wrong") and read(f"{stream.target_dir}/f") == b"before"


@pytest.mark.parametrize(
    "name", [b"../outside", b"/var/tmp/hotpair-outside", b"..", b".", b"", b"x/y", b"x\0y", "text"]
)
@pytest.mark.parametrize("kind", ["MAKE", "LINK", "RENAME", "UNLINK", "DECLARE", "LISTING"])
def test_target_refuses_names_that_lead_elsewhere(pair: Pair, kind: str, name: Any) -> None:
    stream, _ = pair
    in_sync_with_a_hot_file(pair)
    sequence, root = stream.target.applied + 1, stream.identity
    file = os.getxattr(f"{stream.target_dir}/f", "trusted.hotpair.id")
    with open(f"{stream.base}/outside.there", "wb"):
        os.setxattr(f"{stream.base}/outside.there", "trusted.hotpair.id", b"o" * 16)
    before = os.listdir(stream.base)
    reach = b"../outside.there" if name == b"../outside" else name
    entry = [name, os.urandom(16), [0o100644, 0, 0, 0, b"", []], 0, 0, 1, False]
    fields: tuple[Any, ...] = {
        "MAKE": (root, name, os.urandom(16), 0o100644, 0, 0, 0, b"", []),
        "LINK": (file, root, name),
        "RENAME": (root, b"f", root, name, 0, b""),
        "UNLINK": (root, reach, b"o" * 16, True),
        "DECLARE": (b"o" * 16, root, reach),
        "LISTING": (root, [0o40755, 0, 0, 0, b"", [], 0], [entry], True),
    }[kind]
    send_frames(stream, frames.encode(Kind[kind], sequence, *fields))
    assert stream.lost and stream.target.connection is None
    assert os.listdir(stream.base) == before
    assert not os.path.exists("/var/tmp/hotpair-outside")
    assert b"o" * 16 not in stream.target.objects


@pytest.mark.parametrize(
    "what", ["frame too long", "frame of nothing", "payload too long", "payload of nothing", "kind"]
)
def test_target_ends_the_connection_at_a_frame_beyond_the_limits(pair: Pair, what: str) -> None:
    """At once: nothing is kept in memory until the rest comes."""
    stream, _ = pair
    in_sync_with_a_hot_file(pair)
    frame = {
        "frame too long": lambda: LENGTH.pack(MAX_MESSAGE + 1) + b"x" * 10,
        "frame of nothing": lambda: LENGTH.pack(0),
        "payload too long": lambda: write_frame(stream, 1, b"", MAX_PAYLOAD + 1),
        "payload of nothing": lambda: write_frame(stream, 1, b"", 0),
        "kind": lambda: LENGTH.pack(2) + frames.pack((30,)),
    }[what]()
    send_frames(stream, frame)
    assert "ProtocolError" in stream.lost[0] and stream.target.connection is None


def test_session_goes_on_where_the_target_is(pair: Pair) -> None:
    """Cut in the middle of a frame, with an acknowledgement on its way: each operation is applied once, in order."""
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    requests = [vm.write(file, 2 * number, b"%02d" % number * 5) for number in range(10)]
    stream.turn()
    stream.deliver_frames(1)
    stream.deliver_back()
    stream.deliver_frames(3)
    stream.deliver(9)
    vm.hear()
    assert [request.answered for request in requests] == [True] + [False] * 9
    stream.cut()
    held = vm.write(file, 100, b"held")
    stream.resume()
    settle(pair, *requests, held)
    assert read(f"{stream.target_dir}/f") == b"".join(b"%02d" % n for n in range(10)) + b"09" * 4 + bytes(72) + b"held"
    equal(pair)


def test_flush_is_asked_again_when_its_answer_was_lost(pair: Pair) -> None:
    stream, vm = pair
    request = vm.fsync(in_sync_with_a_hot_file(pair))
    stream.turn()
    stream.deliver()
    stream.deliver_back()
    assert stream.source.applied == stream.source.sequence
    stream.flushed()  # the answer is on the wire
    stream.cut()
    stream.resume()
    stream.turn()
    assert [kind for kind, _ in stream.to_target.frames()] == [Kind.FLUSH]
    vm.hear()
    assert not request.answered
    settle(pair, request)
    equal(pair)


def test_answer_to_an_old_sessions_flush_is_not_given_in_the_new_one(pair: Pair) -> None:
    stream, vm = pair
    stream.target_flushes.held = True
    vm.fsync(in_sync_with_a_hot_file(pair))
    stream.turn()
    stream.deliver()
    stream.go_alone()
    stream.begin()
    stream.target_flushes.held = False
    stream.to_source.waiting.clear()
    stream.flushed()
    assert Kind.FLUSHED not in [kind for kind, _ in stream.to_source.frames()]
    stream.synchronise()
    equal(pair)


# --- reintegration ----------------------------------------------------------------------------------------------------


def test_extents_that_the_log_names_are_copied(pair: Pair) -> None:
    """And no others: all of each run, up to a last extent that is not full."""
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    settle(pair, *(vm.write(file, number * EXTENT, b"x" * EXTENT) for number in range(12)))
    settle(pair, vm.write(file, 12 * EXTENT, b"not full"))
    identity = os.getxattr(f"{stream.source_dir}/f", "trusted.hotpair.id")
    stream.activity.finish_eviction(stream.activity.select([Extents(identity, 0, 20)]))
    stream.go_alone()
    settle(pair, *(vm.write(file, number * EXTENT - 5, b"0123456789") for number in (3, 7, 9, 12)))
    assert stream.activity.runs_of(identity) == [(2, 3), (6, 9), (11, 12)]
    stream.begin()
    reintegrated = stream.source.reintegration
    stream.synchronise()
    assert reintegrated.bytes_sent == 7 * EXTENT + 8
    equal(pair)


def test_interrupted_copy_of_a_file_is_not_taken_for_complete(pair: Pair) -> None:
    stream, _ = pair
    with open(f"{stream.source_dir}/f", "wb") as file:
        file.write(os.urandom(10 * EXTENT))
    stream.begin()
    for _ in range(1000):
        if os.path.exists(f"{stream.target_dir}/f") and any(read(f"{stream.target_dir}/f")):
            break
        stream.flushed()
        stream.helper.perform()
        stream.answer()
        stream.turn()
        stream.deliver_frames(1)
        stream.deliver_back()
    assert stream.source.reintegration is not None and stream.differences() != []
    stream.cut()
    assert stream.activity.count == 0, "only the target knows that it is not complete"
    stream.synchronise()
    equal(pair)


def test_same_name_with_another_identity_is_another_file(pair: Pair) -> None:
    stream, vm = pair
    vm.close(in_sync_with_a_hot_file(pair))
    settle(pair, vm.mkdir(b"d"))
    stream.go_alone()
    settle(pair, vm.unlink(b"f"))
    settle(pair, vm.unlink(b"d"))
    settle(pair, vm.create(b"f"))
    settle(pair, vm.mkdir(b"d"))
    settle(pair, vm.create(b"d/x"))
    stream.begin()
    stream.synchronise()
    for path in ("f", "d"):
        there = os.getxattr(f"{stream.target_dir}/{path}", "trusted.hotpair.id")
        assert there == os.getxattr(f"{stream.source_dir}/{path}", "trusted.hotpair.id")
    equal(pair)


def test_what_came_after_the_flush_is_flushed_again(pair: Pair) -> None:
    """The target is flushing when it turns out that one more walk is needed."""
    stream, vm = pair
    in_sync_with_a_hot_file(pair)
    stream.go_alone()
    settle(pair, vm.create(b"g"))
    stream.begin()
    sent: list[int] = []
    answers, walked_again = 0, False
    for _ in range(1000):
        stream.turn()
        kinds = [kind for kind, _ in stream.to_target.frames()]
        if not walked_again and stream.source.reintegration.flushed:
            assert Kind.FLUSH_ALL in kinds
            stream.source.reintegration.walk_again()
            walked_again = True
        sent += kinds
        if Kind.OFFER_SYNC in sent:
            break
        stream.helper.perform()
        stream.answer()
        stream.deliver()
        answers += [kind for kind, _ in stream.to_source.frames()].count(Kind.FLUSHED)
        stream.deliver_back()
    walks = [number for number, kind in enumerate(sent) if kind == Kind.LISTING]
    assert sent.count(Kind.LISTING) >= 2 and Kind.FLUSH_ALL in sent[: walks[-1]]
    after = sent.index(Kind.FLUSH_ALL, walks[-1])
    assert after < sent.index(Kind.OFFER_SYNC)
    assert answers >= sent[: after + 1].count(Kind.FLUSH_ALL), "sync is offered before the target has flushed"


# --- names and objects ------------------------------------------------------------------------------------------------


def test_open_file_without_a_name_is_written_here_only(pair: Pair) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    settle(pair, vm.unlink(b"f"))
    assert not os.path.exists(f"{stream.target_dir}/f")
    assert list(stream.target.objects) == [stream.identity], "its space on the target stays used"
    settle(pair, vm.write(file, 0, b"orphan"), vm.write(file, 3 * EXTENT, b"far"), vm.fsync(file))
    found: list[bytes] = []
    vm._ask(abi.READ, file.nodeid, abi.READ_IN.pack(file.handle, 0, 6, 0, 0, 0, 0), found.append)
    assert found == [b"orphan"]
    settle(pair, vm.create(b"f"))
    settle(pair, vm.write(vm.open(b"f"), 0, b"another"), vm.truncate(file, 1))
    assert read(f"{stream.target_dir}/f") == b"another"
    vm.close(file)
    stream.run()
    assert os.listdir(f"{stream.source_dir}/.hotpair/orphans") == []
    equal(pair)


def test_names_of_one_file_stay_names_of_one_file(pair: Pair) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    settle(pair, vm.mkdir(b"d"))
    settle(pair, vm.mkdir(b"e"))
    settle(pair, vm.link(b"f", b"d/f2"))
    stream.go_alone()
    settle(pair, vm.link(b"f", b"e/f3"))
    settle(pair, vm.write(file, 0, b"alone!"))
    stream.begin()
    stream.synchronise()
    settle(pair, vm.unlink(b"f"))
    settle(pair, vm.write(file, 0, b"after!"))
    for copy in (stream.source_dir, stream.target_dir):
        assert os.path.samefile(f"{copy}/d/f2", f"{copy}/e/f3") and os.stat(f"{copy}/d/f2").st_nlink == 2
        assert read(f"{copy}/d/f2") == b"after!"
    equal(pair)


@pytest.mark.parametrize("name", [b"..", b".hotpair"])
def test_lookup_does_not_lead_out_of_the_mount(pair: Pair, name: bytes) -> None:
    _, vm = pair
    request = vm._ask(abi.LOOKUP, vm.root.nodeid, name + b"\0", lambda _: None)
    assert request.code == errno.ENOENT


def test_own_attributes_cannot_be_seen_or_changed(pair: Pair) -> None:
    stream, vm = pair
    nodeid = in_sync_with_a_hot_file(pair).nodeid
    name = b"trusted.hotpair.id\0"
    before = os.getxattr(f"{stream.source_dir}/f", "trusted.hotpair.id")
    listed: list[bytes] = []
    vm._ask(abi.LISTXATTR, nodeid, abi.GETXATTR_IN.pack(4096, 0), listed.append)
    assert listed == [b""]
    codes = [
        vm._ask(abi.GETXATTR, nodeid, abi.GETXATTR_IN.pack(16, 0) + name).code,
        vm._ask(abi.SETXATTR, nodeid, abi.SETXATTR_IN.pack(16, 0, 0, 0) + name + bytes(16)).code,
        vm._ask(abi.REMOVEXATTR, nodeid, name).code,
    ]
    assert codes == [errno.ENODATA, errno.EPERM, errno.ENODATA]
    assert os.getxattr(f"{stream.source_dir}/f", "trusted.hotpair.id") == before


def test_write_of_a_stranger_clears_set_id_bits_on_both_copies(pair: Pair) -> None:
    stream, vm = pair
    file = in_sync_with_a_hot_file(pair)
    settle(pair, vm.chmod(file, 0o6755))
    data = b"after!"
    body = abi.WRITE_IN.pack(file.handle, 0, len(data), abi.WRITE_KILL_SUIDGID, 0, 0, 0) + data
    settle(pair, vm._ask(abi.WRITE, file.nodeid, body))
    assert [os.stat(f"{copy}/f").st_mode for copy in (stream.source_dir, stream.target_dir)] == [0o100755] * 2
    assert read(f"{stream.target_dir}/f") == data


# --- a target process; the test plays the source ----------------------------------------------------------------------


class Peer:
    """The test's end of a connection to a mirror process."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.sequence = 0

    @classmethod
    def connect(cls, port: int) -> Peer:
        return cls(socket.create_connection(("127.0.0.1", port), ANSWER_S))

    def send(self, *fields: Any, payload: bytes = b"") -> None:
        self._sock.sendall(frames.encode(*fields) + payload)

    def operation(self, kind: Kind, *fields: Any, payload: bytes = b"") -> int:
        self.sequence += 1
        self.send(kind, self.sequence, *fields, payload=payload)
        return self.sequence

    def receive(self, timeout_s: float = ANSWER_S) -> list[Any] | None:
        """The next frame; None when the connection has ended. TimeoutError."""
        self._sock.settimeout(timeout_s)
        head = self._exactly(LENGTH.size)
        fields = frames.decode(self._exactly(LENGTH.unpack(head)[0])) if head else None
        if fields is not None:
            self._exactly(frames.payload_size(fields))
        return fields

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                part = self._sock.recv(size - len(data))
            except ConnectionResetError:
                return b""
            if not part:
                return b""
            data += part
        return data

    def until(self, *kinds: Kind) -> list[Any]:
        """The next frame of one of these kinds; AssertionError when the connection ends before."""
        while True:
            fields = self.receive()
            assert fields is not None, f"the connection ended before {kinds}"
            if fields[0] in kinds:
                return fields

    def until_applied(self) -> None:
        """Everything that was sent has been applied."""
        while self.until(Kind.APPLIED)[1] < self.sequence:
            pass

    def until_end(self) -> list[int]:
        """The kinds of what still comes until the peer ends the connection."""
        kinds = []
        while (fields := self.receive()) is not None:
            kinds.append(fields[0])
        return kinds

    def quiet(self) -> list[list[Any]]:
        """What comes within a time in which all that is on its way would come."""
        found = []
        until = time.monotonic() + QUIET_S
        while (left := until - time.monotonic()) > 0:
            try:
                fields = self.receive(left)
            except TimeoutError:
                break
            if fields is None:
                break
            found.append(fields)
        return found

    def close(self) -> None:
        self._sock.close()


ROOT, SESSION = b"r" * 16, b"s" * 16
GENERATION = b"g" * 16


class FakeSource:
    """A source of one module, for one target process."""

    def __init__(self, mirror: MirrorPair) -> None:
        self.mirror = mirror
        self.peer: Peer

    def greet(self, version: int = PROTOCOL_VERSION, **changed: Any) -> list[Any]:
        """Connect and say hello; the answer, WELCOME or REFUSED."""
        hello = {
            "instance": b"i" * 16, "session": None, "new_session": SESSION, "record": b"", "root": ROOT,
            "extent_size": EXTENT, "durability": "memory", "largest_file": 1 << 30, **changed,
        }  # fmt: skip
        self.peer = Peer.connect(self.mirror._port.number)
        self.peer.send(Kind.HELLO, version, hello)
        return self.peer.until(Kind.WELCOME, Kind.REFUSED)

    def record(self) -> Record:
        """The target's, as it is on disk."""
        record = record_io.load(f"{self.mirror.target_state}/record")
        assert record is not None
        return record

    def begin(self, generation: bytes = GENERATION) -> None:
        self.peer.send(Kind.BEGIN_REINTEGRATION, generation, False)
        assert self.peer.until(Kind.INCONSISTENT)[1] == generation

    def offer(self, generation: bytes = GENERATION) -> None:
        mine = Record(
            generation=generation, last_role="PRIM", in_sync=True, boot="b", configuration=b"", root=ROOT, term=7
        )
        self.peer.send(Kind.OFFER_SYNC, records.encode(mine))

    def come_in_sync(self) -> None:
        assert self.greet()[0] == Kind.WELCOME
        self.begin()
        self.offer()
        self.peer.until(Kind.TAKEN)

    def make(self, name: bytes) -> bytes:
        identity = os.urandom(16)
        self.peer.operation(Kind.MAKE, ROOT, name, identity, 0o100644, 0, 0, 0, b"", [])
        return identity

    def write(self, identity: bytes, data: bytes) -> int:
        return self.peer.operation(Kind.WRITE, identity, 0, len(data), payload=data)


@pytest.fixture
def source() -> Iterator[FakeSource]:
    with MirrorPair() as mirror:
        mirror.start_target()
        yield FakeSource(mirror)


def never_store(state: str) -> None:
    """From now on no record can be stored there."""
    os.mkdir(f"{state}/record.new")


def test_target_says_what_it_is_when_that_is_on_disk(source: FakeSource) -> None:
    assert source.greet()[0] == Kind.WELCOME
    source.begin()
    assert source.record().inconsistent and not source.record().in_sync
    assert source.record().generation == GENERATION and source.record().root == ROOT
    source.offer()
    source.peer.until(Kind.TAKEN)
    assert source.record().in_sync and not source.record().inconsistent and source.record().term == 7
    source.peer.close()
    assert source.greet()[2]["resume"] is False, "no session was named"
    source.begin(b"h" * 16)
    assert source.record().inconsistent and not source.record().in_sync and source.record().generation == b"h" * 16


@pytest.mark.parametrize("what", ["first", "begin", "take"])
def test_target_does_not_say_what_it_could_not_store(source: FakeSource, what: str) -> None:
    if what == "begin":
        source.come_in_sync()
        source.peer.close()
    assert source.greet()[0] == Kind.WELCOME
    if what == "take":
        source.begin()
    never_store(source.mirror.target_state)
    if what == "take":
        source.offer()
    else:
        source.peer.send(Kind.BEGIN_REINTEGRATION, b"h" * 16, False)
    kinds = source.peer.until_end()
    assert Kind.INCONSISTENT not in kinds and Kind.TAKEN not in kinds
    if what == "first":
        assert not os.path.exists(f"{source.mirror.target_state}/record")
    else:
        assert (source.record().inconsistent, source.record().in_sync) == (what == "take", what == "begin")


def test_target_resumes_only_its_own_session(source: FakeSource) -> None:
    source.come_in_sync()
    source.write(source.make(b"f"), b"data")
    source.peer.close()
    welcome = source.greet(session=SESSION, new_session=b"t" * 16)[2]
    assert (welcome["resume"], welcome["applied"]) == (True, 2)
    source.peer.close()
    assert source.greet(session=b"u" * 16)[2]["resume"] is False
    source.peer.close()
    assert source.greet(session=SESSION)[2]["resume"] is False, "another session has begun since"
    source.begin()
    source.offer()
    source.peer.until(Kind.TAKEN)
    source.peer.close()
    source.mirror.kill_target()
    source.mirror.start_target()
    assert source.greet(session=SESSION)[2]["resume"] is False, "what the page cache had may be lost"
    source.peer.send(Kind.OFFER_SYNC, b"")
    assert Kind.TAKEN not in source.peer.until_end()


def test_old_sessions_connection_changes_nothing_after_the_new_hello(source: FakeSource) -> None:
    source.come_in_sync()
    file = source.make(b"f")
    source.write(file, b"old")
    source.peer.until_applied()
    old = source.peer
    assert source.greet()[0] == Kind.WELCOME
    with contextlib.suppress(OSError):  # it may be closed already
        old.operation(Kind.WRITE, file, 0, 4, payload=b"late")
        old.operation(Kind.MAKE, ROOT, b"late", os.urandom(16), 0o100644, 0, 0, 0, b"", [])
    assert source.peer.quiet() == []
    assert not os.path.exists(f"{source.mirror.target_dir}/late")
    assert read(f"{source.mirror.target_dir}/f") == b"old"


def test_sync_is_not_taken_without_a_reintegration(source: FakeSource) -> None:
    source.come_in_sync()
    source.peer.close()
    before = source.record()
    for generation in (GENERATION, b"h" * 16):
        assert source.greet()[0] == Kind.WELCOME
        source.offer(generation)
        assert Kind.TAKEN not in source.peer.until_end()
        assert source.record() == before


@pytest.mark.parametrize("stored", [True, False], ids=["recorded", "cannot be recorded"])
def test_target_that_failed_is_outdated_on_disk_before_it_says_so(source: FakeSource, stored: bool) -> None:
    source.come_in_sync()
    if not stored:
        never_store(source.mirror.target_state)
    source.peer.operation(Kind.UNLINK, ROOT, b"missing", bytes(16), True)
    source.make(b"late")
    _, sequence, _, _, outdated = source.peer.until(Kind.FAILED)
    assert (sequence, outdated) == (1, stored)
    assert source.record().outdated is stored and source.record().in_sync is not stored
    source.peer.until_end()
    assert not os.path.exists(f"{source.mirror.target_dir}/late")
    assert source.greet(session=SESSION)[2]["resume"] is False


def test_target_keeps_what_was_never_a_copy(source: FakeSource) -> None:
    with open(f"{source.mirror.target_dir}/precious", "w") as file:
        file.write("data")
    before = os.getxattr(source.mirror.target_dir, "trusted.hotpair.id")
    kind, reason = source.greet()
    assert kind == Kind.REFUSED and "not empty" in reason
    assert os.getxattr(source.mirror.target_dir, "trusted.hotpair.id") == before
    assert read(f"{source.mirror.target_dir}/precious") == b"data"


def test_target_refuses_whom_it_cannot_serve(source: FakeSource) -> None:
    reasons = [
        source.greet(version=PROTOCOL_VERSION + 1),
        source.greet(durability="disk"),
        source.greet(largest_file=(1 << 63) - 1),
        source.greet(root=b"short"),
    ]
    source.come_in_sync()
    source.peer.close()
    reasons.append(source.greet(root=b"another module!!"))
    assert [kind for kind, *_ in reasons] == [Kind.REFUSED] * 5
    for (_, reason), word in zip(reasons, ("version", "durability", "files of", "root", "another module"), strict=True):
        assert word in reason


@pytest.mark.parametrize("how", ["of a file", "of everything", "of a directory"])
def test_targets_flush_reaches_the_disk(source: FakeSource, how: str) -> None:
    source.come_in_sync()
    file = source.make(b"f")
    source.write(file, os.urandom(100_000))
    source.peer.until_applied()
    with open(f"{source.mirror.target_dir}/f", "rb") as there:
        assert waits_for_write_back(there.fileno())
        if how == "of everything":
            number = source.peer.operation(Kind.FLUSH_ALL)
        else:
            number = source.peer.operation(Kind.FLUSH, file if how == "of a file" else ROOT, how == "of a file")
        assert source.peer.until(Kind.FLUSHED)[1] == number
        assert how == "of a directory" or not waits_for_write_back(there.fileno())


def test_target_refuses_a_directory_that_is_not_the_modules(source: FakeSource) -> None:
    source.come_in_sync()
    source.mirror.stop_target()
    os.rename(source.mirror.target_dir, f"{source.mirror.base}/away")
    os.mkdir(source.mirror.target_dir)
    with pytest.raises(RuntimeError, match="another identity"):
        source.mirror.start_target()


# --- a source process; the test plays the target ----------------------------------------------------------------------


def wait_until(condition: Callable[[], bool], timeout_s: float = ANSWER_S) -> bool:
    """Wait for what another process does and no event tells of."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


class FakeTarget:
    """A target that answers what the test says, for one source process."""

    def __init__(self, mirror: MirrorPair) -> None:
        self.mirror = mirror
        self._listener = socket.create_server(("127.0.0.1", mirror._port.number))
        self._listener.settimeout(ANSWER_S)
        self.process: subprocess.Popen[bytes] | None = None
        self.peer: Peer
        self.root = b""

    def start_source(self, *arguments: str) -> None:
        """Without waiting for ready: that comes when the test has said so."""
        directories = ["--dir", self.mirror.source_dir, "--state", self.mirror.source_state]
        command = [sys.executable, "-P", "-m", "hotpair.replication", "source", *directories]
        command += ["--peer", f"127.0.0.1:{self.mirror._port.number}", "--extent-size", str(EXTENT), *arguments]
        with open(f"{self.mirror.base}/source.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd="/", env=self.mirror.environment(), stdout=log, stderr=log)

    def accept(self) -> dict[str, Any]:
        """The next connection's hello."""
        self.peer = Peer(self._listener.accept()[0])
        hello: dict[str, Any] = self.peer.until(Kind.HELLO)[2]
        self.root = hello["root"]
        return hello

    def welcome(self, record: Record | None = None, marks: list[Any] | None = None, resume: int | None = None) -> None:
        answer = {
            "instance": b"i" * 16, "resume": resume is not None, "applied": resume or 0,
            "record": records.encode(record) if record is not None else b"", "boot": "b", "marks": marks or [],
            "extent_shift": EXTENT.bit_length() - 1,
        }  # fmt: skip
        self.peer.send(Kind.WELCOME, PROTOCOL_VERSION, answer)

    def record(self) -> Record:
        """The source's, as it is on disk."""
        record = record_io.load(f"{self.mirror.source_state}/record")
        assert record is not None
        return record

    def marks(self) -> dirty_log.Recovered:
        """The source's dirty log, as it is on disk, which must belong to the record."""
        record = self.record()  # first: the log may be one step ahead of it, never behind
        recovered = dirty_log.recover(read(f"{self.mirror.source_state}/dirty-log"))
        dirty_log.check(recovered, record, EXTENT.bit_length() - 1)
        return recovered

    def said(self, text: str) -> bool:
        return text.encode() in read(f"{self.mirror.base}/source.log").splitlines()

    def reintegrate(self) -> list[int]:
        """From INCONSISTENT to OFFER_SYNC, whatever the source sends; the kinds of what it has sent."""
        self.peer.send(Kind.INCONSISTENT, self.record().generation)
        kinds = []
        while True:
            fields = self.peer.receive()
            assert fields is not None
            kinds.append(fields[0])
            if fields[0] <= frames.LAST_OPERATION:
                self.peer.send(Kind.APPLIED, fields[1])
            if fields[0] == Kind.LISTING and fields[4]:
                self.peer.send(Kind.WANTED, fields[2], [entry[1] for entry in fields[4]], True)
            elif fields[0] == Kind.LISTING:
                self.peer.send(Kind.WANTED, fields[2], [], True)
            elif fields[0] == Kind.CHECK:
                self.peer.send(Kind.CHECKED, fields[1], False)
            elif fields[0] == Kind.FLUSH_ALL:
                self.peer.send(Kind.FLUSHED, fields[1])
            elif fields[0] == Kind.OFFER_SYNC:
                return kinds

    def end_source(self) -> None:
        """kill -9."""
        assert self.process is not None
        self.process.kill()
        self.mirror.abort()
        self.process.wait(ANSWER_S)

    def close(self) -> None:
        self._listener.close()
        if self.process is not None:
            self.end_source()


@pytest.fixture
def target() -> Iterator[FakeTarget]:
    with MirrorPair() as mirror:
        fake = FakeTarget(mirror)
        try:
            yield fake
        finally:
            fake.close()


def test_source_takes_each_step_when_the_one_before_is_durable(target: FakeTarget) -> None:
    with open(f"{target.mirror.source_dir}/file", "wb") as file:
        file.write(b"content")
    target.start_source()
    target.accept()
    record, stranger = target.record(), b"m" * 16
    assert record.solo and not record.in_sync
    target.welcome(marks=[[stranger, [3, 5], True, False]])
    assert target.peer.until(Kind.BEGIN_REINTEGRATION)[1:] == [record.generation, True]
    assert target.marks().marks.covers(stranger, 3, 5), "the target may drop its log from here on"
    assert target.marks().everything
    assert {fields[0] for fields in target.peer.quiet()} <= {Kind.PROBE}, "the target is not inconsistent yet"
    assert Kind.LISTING in target.reintegrate()
    assert target.record().in_sync and not target.record().solo and target.record().last_role == "PRIM"
    target.peer.quiet()
    assert not target.said("in sync") and target.marks().everything, "the target has not said that it is"
    target.peer.send(Kind.TAKEN, records.encode(target.record()))
    assert wait_until(lambda: target.said("in sync"))
    assert wait_until(lambda: not target.marks().everything)


def test_source_offers_sync_when_the_target_has_flushed(target: FakeTarget) -> None:
    target.start_source()
    target.accept()
    target.welcome()
    target.peer.until(Kind.BEGIN_REINTEGRATION)
    target.peer.send(Kind.INCONSISTENT, target.record().generation)
    listing = target.peer.until(Kind.LISTING)
    target.peer.send(Kind.APPLIED, listing[1])
    target.peer.send(Kind.WANTED, listing[2], [], True)
    flush = target.peer.until(Kind.FLUSH_ALL, Kind.OFFER_SYNC)
    assert flush[0] == Kind.FLUSH_ALL
    target.peer.send(Kind.APPLIED, flush[1])
    assert {fields[0] for fields in target.peer.quiet()} <= {Kind.PROBE} and not target.record().in_sync
    target.peer.send(Kind.FLUSHED, flush[1])
    assert target.peer.until(Kind.EMPTY_TRASH, Kind.OFFER_SYNC)[0] == Kind.EMPTY_TRASH
    target.peer.until(Kind.OFFER_SYNC)


@pytest.mark.parametrize("theirs", ["newer", "unrelated", "older", "interrupted"])
def test_source_does_not_overwrite_what_may_be_newer(target: FakeTarget, theirs: str) -> None:
    target.start_source()
    target.accept()
    mine = target.record()
    record = {
        "newer": lambda: replace(records.go_alone(replace(mine, solo=False), b"n" * 16)),
        "unrelated": lambda: replace(mine, generation=b"n" * 16, base=b"o" * 16),
        "older": lambda: replace(mine, solo=False, in_sync=True),
        "interrupted": lambda: replace(mine, inconsistent=True),
    }[theirs]()
    target.welcome(record)
    may = theirs in ("older", "interrupted")
    if may:
        target.peer.until(Kind.BEGIN_REINTEGRATION)
    else:
        assert Kind.BEGIN_REINTEGRATION not in target.peer.until_end()
        assert target.record() == mine


@pytest.mark.parametrize("flaw", ["inconsistent", "outdated", "another directory", "none"])
def test_source_does_not_start_from_a_copy_that_is_not_current(flaw: str) -> None:
    with MirrorPair(source_arguments=["--alone-after", "0"]) as mirror:
        root = b"q" * 16
        os.setxattr(mirror.source_dir, "trusted.hotpair.id", b"p" * 16 if flaw == "another directory" else root)
        flags = {flaw: True} if flaw in ("inconsistent", "outdated") else {}
        record = Record(generation=GENERATION, last_role="SECOND", boot="b", configuration=b"", root=root, **flags)  # type: ignore[arg-type]
        record_io.store(f"{mirror.source_state}/record", record)
        if flaw == "none":
            mirror.start_source()
            return
        with pytest.raises(RuntimeError, match="ended before it was ready"):
            mirror.start_source()
        assert record_io.load(f"{mirror.source_state}/record") == record


def test_everything_is_compared_when_the_log_was_lost(target: FakeTarget) -> None:
    target.start_source()
    for lost in (False, True):
        target.accept()
        target.welcome()
        target.peer.until(Kind.BEGIN_REINTEGRATION)
        target.reintegrate()
        target.peer.send(Kind.TAKEN, records.encode(target.record()))
        assert wait_until(lambda: not target.marks().everything)
        target.end_source()
        target.peer.close()
        if lost:
            os.unlink(f"{target.mirror.source_state}/dirty-log")
        target.start_source()
        target.accept()
        target.welcome(replace(target.record(), last_role="SECOND"))
        assert target.peer.until(Kind.BEGIN_REINTEGRATION)[2] is lost
        target.peer.close()


# --- two processes ----------------------------------------------------------------------------------------------------


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGSTOP; return when it stands still."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def start_writer(mirror: MirrorPair) -> subprocess.Popen[bytes]:
    """A process that overwrites the beginning of a file, and says when that was answered."""
    script = "import os, sys; os.pwrite(os.open(sys.argv[1], os.O_RDWR), b'after!', 0); os.write(1, b'written')"
    command = [sys.executable, "-c", script, f"{mirror.mount}/file"]
    return subprocess.Popen(command, env=mirror.environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def has_written(writer: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Whether its write was answered. (That it ends is another matter: closing the file needs the mount too.)"""
    return bool(select.select([writer.stdout], [], [], timeout_s)[0]) and os.read(writer.stdout.fileno(), 100) != b""


@pytest.mark.timeout(120)
def test_generation_is_durable_before_the_first_write_alone_is_answered() -> None:
    with MirrorPair(source_arguments=["--alone-after", "0.3", "--extent-size", str(EXTENT)]) as mirror:
        mirror.start()
        with open(f"{mirror.mount}/file", "wb") as file:
            file.write(b"before")
        record = f"{mirror.source_state}/record"
        mirror.kill_target()
        writer = start_writer(mirror)
        before = record_io.load(record)
        assert has_written(writer, ANSWER_S)
        alone = record_io.load(record)
        assert before is not None and alone is not None and alone.solo and not alone.in_sync
        assert alone.base == before.generation != alone.generation
        recovered = dirty_log.recover(read(f"{mirror.source_state}/dirty-log"))
        dirty_log.check(recovered, alone, EXTENT.bit_length() - 1)
        assert recovered.generation == alone.generation


@pytest.mark.timeout(120)
def test_write_is_not_answered_when_the_new_generation_cannot_be_stored() -> None:
    with MirrorPair(source_arguments=["--alone-after", "0.3"]) as mirror:
        mirror.start()
        with open(f"{mirror.mount}/file", "wb") as file:
            file.write(b"before")
        never_store(mirror.source_state)
        mirror.kill_target()
        writer = start_writer(mirror)
        assert not has_written(writer, 1.5)


class Between:
    """A relay between source and target that can keep what the target says of one kind."""

    def __init__(self, mirror: MirrorPair) -> None:
        self._target = mirror._port.number
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.keep: Kind | None = None
        self.kept: list[list[Any]] = []
        self.has_kept = threading.Event()
        self._source: socket.socket
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._source = self._listener.accept()[0]
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._copy, args=(self._source, there), daemon=True).start()
            threading.Thread(target=self._answers, args=(there, self._source), daemon=True).start()

    def _copy(self, here: socket.socket, there: socket.socket) -> None:
        try:
            while data := here.recv(1 << 16):
                there.sendall(data)
        except OSError:
            pass
        there.close()

    def _answers(self, there: socket.socket, source: socket.socket) -> None:
        peer = Peer(there)
        try:
            while (fields := peer.receive(1e6)) is not None:
                if fields[0] == self.keep:
                    self.kept.append(fields)
                    self.has_kept.set()
                else:
                    source.sendall(frames.encode(*fields))
        except OSError:
            pass
        source.close()

    def release(self) -> None:
        """Let through what was kept, and all that follows."""
        self.keep = None
        for fields in self.kept:
            self._source.sendall(frames.encode(*fields))

    def close(self) -> None:
        self._listener.close()


@pytest.mark.timeout(300)
def test_marks_leave_the_log_when_both_copies_have_flushed() -> None:
    """64 marks are allowed: with 100, some leave, but not while the target's answer to the flush is kept."""
    with MirrorPair() as mirror:
        between = Between(mirror)
        mirror.source_arguments += ["--hot-extents", "64", "--extent-size", str(EXTENT)]
        mirror.source_arguments += ["--peer", f"127.0.0.1:{between.port}"]
        below = os.open(mirror.source_dir, os.O_RDONLY | os.O_DIRECTORY)
        mirror.start()
        between.keep = Kind.FLUSHED

        def marked() -> int:
            marks = dirty_log.recover(read(f"{mirror.source_state}/dirty-log")).marks
            return sum(last - first + 1 for _, first, last in marks)

        with open(f"{mirror.mount}/other", "wb") as file:
            file.write(b"other")
        with open(f"{mirror.mount}/file", "wb", buffering=0) as file:
            for number in range(100):
                os.pwrite(file.fileno(), b"x", number * EXTENT)
            assert between.has_kept.wait(FULL_FLUSH_S)
            linux_io.syncfs(below)  # now the source's own flush has ended too, or does while the next mark is committed
            for number in range(100, 110):  # each answered after its mark was, and with it all that came before
                os.pwrite(file.fileno(), b"x", number * EXTENT)
        assert marked() >= 110
        between.release()
        assert wait_until(lambda: marked() < 110, FULL_FLUSH_S)
        with open(f"{mirror.target_dir}/other", "rb") as there, open(f"/proc/self/fd/{below}/other", "rb") as here:
            # It was written before the first mark left, so that the flush must have been one of it as well
            assert not waits_for_write_back(there.fileno()) and not waits_for_write_back(here.fileno())
        os.close(below)
        mirror.stop()
        between.close()
        assert mirror.compare() == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("how", ["fsync", "O_DSYNC", "reintegration"])
def test_what_was_flushed_is_on_both_disks(how: str) -> None:
    data = os.urandom(100_000)
    with MirrorPair() as mirror:
        below = os.open(mirror.source_dir, os.O_PATH)
        if how == "reintegration":
            with open(f"{mirror.source_dir}/file", "wb") as file:
                file.write(data)
        mirror.start()
        if how != "reintegration":
            fd = os.open(f"{mirror.mount}/file", os.O_CREAT | os.O_RDWR | (os.O_DSYNC if how == "O_DSYNC" else 0))
            assert os.write(fd, data) == len(data)
            if how == "fsync":
                for path in (f"{mirror.target_dir}/file", f"/proc/self/fd/{below}/file"):
                    with open(path, "rb") as copy:
                        assert waits_for_write_back(copy.fileno()), "written back already: the test shows nothing"
                os.fsync(fd)
            os.close(fd)
            with open(f"/proc/self/fd/{below}/file", "rb") as here:
                assert not waits_for_write_back(here.fileno())
        with open(f"{mirror.target_dir}/file", "rb") as there:
            assert not waits_for_write_back(there.fileno())
        os.close(below)
        mirror.stop()
        assert mirror.compare() == []


@pytest.mark.timeout(120)
def test_what_the_lost_source_had_alone_is_copied_over_when_it_comes_back_as_target() -> None:
    """The target takes over. What only the old source has is in its log; it must not survive there."""
    arguments = ["--extent-size", str(EXTENT)]
    with MirrorPair(source_arguments=arguments) as mirror:
        mirror.start()
        with open(f"{mirror.mount}/file", "wb") as file:
            file.write(b"b" * 20 * EXTENT)
        mirror.stop()
        mirror.start()
        assert mirror.target is not None
        stop(mirror.target.process)
        writer = start_writer(mirror)
        assert not has_written(writer, QUIET_S)
        assert mirror.source is not None
        mirror.source.signal(signal.SIGKILL)
        mirror.abort()
        mirror.kill_source()
        mirror.kill_target()
        assert wait_for_end(writer, ANSWER_S)
        assert read(f"{mirror.source_dir}/file")[:6] == b"after!" and read(f"{mirror.target_dir}/file")[:6] == b"bbbbbb"
        mirror.source_dir, mirror.target_dir = mirror.target_dir, mirror.source_dir
        mirror.source_state, mirror.target_state = mirror.target_state, mirror.source_state
        mirror.mount = mirror.source_dir
        mirror.source_arguments += ["--alone-after", "0"]
        mirror.start_source()
        with open(f"{mirror.mount}/file", "r+b") as file:
            file.seek(7 * EXTENT)
            file.write(b"taken over")
        mirror.start_target()
        assert mirror.source is not None
        said = mirror.source.said
        assert wait_until(lambda: "in sync" in said)
        mirror.stop()
        assert read(f"{mirror.target_dir}/file")[:6] == b"bbbbbb"
        assert mirror.compare() == []
