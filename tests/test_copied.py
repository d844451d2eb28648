"""An interrupted reintegration continues where it stopped: what has been copied leaves the log when both have it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from hotpair.replication import dirty_log
from hotpair.replication.frames import Kind
from hotpair.replication.limits import CHUNK
from hotpair.replication.modes import FROZEN, PRIM
from tests.stream_pair import EXTENT, StreamPair
from tests.stream_vm import Pair, Request, Vm, fill, finish, settle, small_step, until_chunk_is_asked

EXTENTS = 16  # of the file: four chunks
SIZE = EXTENTS * EXTENT


@pytest.fixture
def pair() -> Iterator[Pair]:
    with StreamPair() as stream:
        yield stream, Vm(stream)


def identity_of(stream: StreamPair, name: str) -> bytes:
    return os.getxattr(f"{stream.source_dir}/{name}", "trusted.hotpair.id")


def logged(stream: StreamPair, name: str = "f") -> dirty_log.Ranges:
    """The extents of a file for which the log on disk has a mark."""
    with open(f"{stream.base}/log", "rb") as file:
        marks = dirty_log.recover(file.read()).marks
    found = marks.files.get(identity_of(stream, name))
    return found.runs() if found is not None else []


def with_a_file_to_copy(pair: Pair) -> None:
    """In sync, then alone: all of ``f`` and the first extent of ``other`` are written, and reintegration begins."""
    stream, vm = pair
    for name in (b"f", b"other"):
        settle(pair, vm.create(name))
    stream.synchronise()
    stream.go_alone()
    file = vm.open(b"f")
    settle(pair, *(vm.write(file, start, os.urandom(EXTENT)) for start in range(0, SIZE, EXTENT)))
    settle(pair, vm.write(vm.open(b"other"), 0, b"other"))
    assert logged(stream) == [(0, EXTENTS - 1)]
    stream.begin()


def until(stream: StreamPair, condition: Callable[[], bool], *, deliver_back: bool = True) -> None:
    """Everything happens that can, until the condition is true."""
    for _ in range(1000):
        if condition():
            return
        stream.flushed()
        stream.helper.perform()
        stream.answer()
        stream.turn()
        stream.deliver_frames(1)
        if deliver_back:
            stream.deliver_back(1)
    raise AssertionError("it did not happen")


def waits_for(kind: Kind, stream: StreamPair) -> bool:
    """Whether the target has said this, and the source has not heard it."""
    return kind in [number for number, _ in stream.to_source.frames()]


def settle_log(stream: StreamPair) -> None:
    """Whatever was staged is in the log."""
    for _ in range(3):
        stream.turn()
        stream.flushed()


def flush_of_half(pair: Pair) -> None:
    """Half of ``f`` is copied; both copies are asked to flush, which nobody has answered yet."""
    stream, _ = pair
    with_a_file_to_copy(pair)
    copied = stream.source.reintegration.copied
    copied.interval_s = float("inf")
    until(stream, lambda: bool(stream.source.reintegration.bytes_done >= SIZE // 2))
    assert stream.source.reintegration.bytes_left > 0
    copied.flush()


def test_what_both_have_flushed_leaves_the_log_while_the_rest_is_copied(pair: Pair) -> None:
    stream, _ = pair
    flush_of_half(pair)
    stream.turn()
    until(stream, lambda: waits_for(Kind.FLUSHED, stream), deliver_back=False)
    settle_log(stream)
    assert logged(stream) == [(0, EXTENTS - 1)], "the target's answer has not come"
    stream.deliver_back()
    settle_log(stream)
    left = logged(stream)
    assert left and left[0][0] >= EXTENTS // 2 and left[-1][1] == EXTENTS - 1
    stream.cut()
    stream.begin()
    again = stream.source.reintegration
    finish(pair)
    assert 0 < again.bytes_sent <= SIZE // 2 + EXTENT
    settle_log(stream)
    assert logged(stream) == [] and logged(stream, "other") == []


def test_marks_stay_until_our_own_copy_is_flushed(pair: Pair) -> None:
    stream, _ = pair
    ends: list[Callable[[int], None]] = []
    stream.source.flushes.sync_file_system = lambda _, done: ends.append(done)
    flush_of_half(pair)
    finish(pair)
    settle_log(stream)
    assert logged(stream) == [(0, EXTENTS - 1)]
    for end in ends:
        end(0)
    settle_log(stream)
    assert logged(stream) == []


def test_marks_stay_when_the_link_is_lost_before_the_answer(pair: Pair) -> None:
    """Our own flush has ended, and the target's is not waited for any more: that is no flush of the target."""
    stream, _ = pair
    flush_of_half(pair)
    stream.turn()
    until(stream, lambda: waits_for(Kind.FLUSHED, stream), deliver_back=False)
    stream.cut()
    settle_log(stream)
    assert logged(stream) == [(0, EXTENTS - 1)]
    stream.begin()
    finish(pair)


def test_half_copied_extent_keeps_its_mark() -> None:
    """An extent of several chunks, at each moment: what has left the log is on the target, all of it."""
    for position in range(0, 200, 3):
        with StreamPair() as stream:
            pair = stream, Vm(stream)
            stream.source.shift = (4 * CHUNK).bit_length() - 1
            settle(pair, pair[1].create(b"f"))
            stream.synchronise()
            stream.go_alone()
            file = pair[1].open(b"f")
            settle(pair, *(pair[1].write(file, start, os.urandom(EXTENT)) for start in range(0, 8 * CHUNK, EXTENT)))
            stream.begin()
            for number in range(position):
                small_step(stream, number)
            if stream.source.mode is not PRIM:
                stream.source.reintegration.copied.flush()
            for _ in range(3):
                stream.turn()
                stream.deliver()
                stream.deliver_back()
                stream.flushed()
            stream.cut()
            stream.kill_target()
            if stream.source.mode is FROZEN:
                stream.source.go_alone()
            stream.begin()
            finish(pair)


def test_mark_stays_when_its_extent_is_written_between_its_copy_and_the_flush(pair: Pair) -> None:
    """Although this write reaches the target before the flush: nobody looks at that."""
    stream, vm = pair
    with_a_file_to_copy(pair)
    until_chunk_is_asked(stream)
    while stream.helper.perform():
        pass
    while stream.helper.answers:
        stream.answer()
    request = vm.write(vm.open(b"f"), 0, b"between")
    settle(pair, request)
    finish(pair)
    settle_log(stream)
    assert logged(stream) == [(0, 0)]


CHANGES: dict[str, Callable[[Vm], Request]] = {
    "write": lambda vm: vm.write(vm.open(b"f"), EXTENT + 100, b"between"),
    "punch hole": lambda vm: vm.punch(vm.open(b"f"), EXTENT, 4096),
    "truncate": lambda vm: vm.truncate(vm.open(b"f"), EXTENT + 5),
    "write behind the end": lambda vm: vm.write(vm.open(b"f"), SIZE + 10, b"longer"),
}


def hears_all_but(pair: Pair, request: Request) -> None:
    """The target gets what comes before the request's frames, and all its answers are heard; then the link is cut."""
    stream, vm = pair
    stream.deliver_back()
    settle_log(stream)
    stream.cut()
    stream.kill_target()
    if stream.source.mode is FROZEN:  # it was in sync already
        stream.source.go_alone()
    settle(pair, request)
    vm.hear()


@pytest.mark.parametrize("change", CHANGES)
def test_change_at_each_step_of_a_reintegration_keeps_its_mark(change: str) -> None:
    """It is sent and lost with the link; the source knows then only from its mark that the target lacks it."""
    position, in_sync = 0, False
    while not in_sync:
        with StreamPair() as stream:
            pair = stream, Vm(stream)
            with_a_file_to_copy(pair)
            for number in range(position):
                small_step(stream, number)
            before = len(stream.to_target.waiting)
            request = CHANGES[change](pair[1])
            settle_log(stream)
            in_sync = stream.source.mode is PRIM and stream.in_sync
            if not in_sync:
                stream.deliver(before)
            hears_all_but(pair, request)
            stream.begin()
            finish(pair)
        position += 2
    assert position > 40, "hardly a step was tried"


def test_name_and_attributes_leave_the_log_as_well(pair: Pair) -> None:
    stream, vm = pair
    fill(pair, "A/", "A/f")
    stream.synchronise(full=True)
    stream.go_alone()
    settle(pair, vm.create(b"A/new"))
    settle(pair, vm.chmod(vm.find(b"A"), 0o710))
    settle(pair, vm.chmod(vm.open(b"A/f"), 0o640))
    before = stream.activity.snapshot()
    assert before.names and before.metadata
    stream.begin()
    finish(pair)
    settle_log(stream)
    left = stream.activity.snapshot()
    assert not left.names and not left.metadata and not left.files


def test_change_of_names_while_a_listing_is_read_keeps_its_mark(pair: Pair) -> None:
    stream, vm = pair
    fill(pair, "A/", "A/f")
    stream.synchronise(full=True)
    stream.go_alone()
    settle(pair, vm.create(b"A/new"))
    stream.begin()
    directory = identity_of(stream, "A")
    until(stream, lambda: any(one.identity == directory for one in stream.source.reintegration._listing.values()))
    request = vm.create(b"A/newer")
    settle_log(stream)
    until(stream, lambda: waits_for(Kind.FLUSHED, stream), deliver_back=False)
    assert directory in stream.activity.snapshot().names
    settle(pair, request)
    finish(pair)


# --- files that the target has nothing of -----------------------------------------------------------------------------


@pytest.mark.parametrize("flushed", [False, True])
def test_new_file_counts_as_complete_when_it_is_flushed(pair: Pair, flushed: bool) -> None:
    """Then an interrupted first reintegration compares it; before, it copies all of it again."""
    stream, _ = pair
    fill(pair, "one", "two", content=os.urandom(20 * CHUNK))
    stream.begin(full=True)
    copied = stream.source.reintegration.copied
    copied.interval_s = float("inf")
    until(stream, lambda: bool(stream.target.listing._complete))
    assert stream.source.reintegration.bytes_left > 10 * CHUNK
    if flushed:
        copied.flush()
        stream.turn()
        stream.deliver()
        assert waits_for(Kind.FLUSHED, stream)
    stream.cut()
    stream.kill_target()
    stream.begin(full=True)
    again = stream.source.reintegration
    finish(pair)
    assert again.bytes_sent == (20 if flushed else 40) * CHUNK


def test_what_lies_in_the_trash_since_before_a_flush_does_not_come_back(pair: Pair) -> None:
    """It may lack what was copied into the object that took its place, and the log does not know of that any more."""
    stream, vm = pair
    fill(pair, "A/", "B/", "f", content=os.urandom(CHUNK))
    stream.synchronise(full=True)
    stream.go_alone()
    identity = identity_of(stream, "f")
    settle(pair, vm.write(vm.open(b"f"), 0, b"changed"))
    os.rename(f"{stream.target_dir}/f", f"{stream.target_dir}/.hotpair/trash/{identity.hex()}")
    stream.target.listing.before_flush(1)
    stream.target.listing.flushed(1)
    settle(pair, vm.rename(b"f", b"B/f"))
    stream.activity.finish_eviction(stream.activity.select([dirty_log.Extents(identity, 0, 100)]))
    stream.begin()
    finish(pair)
    assert os.listdir(f"{stream.target_dir}/.hotpair/old-trash") == []


# --- objects that stand elsewhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["f", "D/f"])
def test_moved_file_is_not_copied_whichever_directory_is_listed_first(pair: Pair, name: str) -> None:
    stream, _ = pair
    parts = ["A/", "A/D/", f"A/{name}", "B/", "B/E/", "B/E/g"]
    fill(pair, *parts, content=os.urandom(5000))
    stream.synchronise(full=True)
    stream.go_alone()
    os.rename(f"{stream.source_dir}/A/{name}", f"{stream.source_dir}/B/f")
    os.rename(f"{stream.source_dir}/B/E/g", f"{stream.source_dir}/A/D/g")
    stream.begin()
    reintegrated = stream.source.reintegration
    finish(pair)
    assert reintegrated.bytes_sent == 0


def test_two_objects_of_one_identity(pair: Pair) -> None:
    """The one that the stream knows is right: here it was made while the other's directory had not been listed yet."""
    stream, vm = pair
    fill(pair, "A/", "A/f", "B/", content=b"old" * 1000)
    stream.synchronise(full=True)
    stream.go_alone()
    settle(pair, vm.write(vm.open(b"A/f"), 0, b"new" * 1000))
    stream.begin()
    finish(pair)
    identity = os.getxattr(f"{stream.source_dir}/A/f", "trusted.hotpair.id")
    with open(f"{stream.target_dir}/A/other", "wb") as file:  # as if it had been made by another listing
        file.write(b"old" * 1000)
    os.setxattr(f"{stream.target_dir}/A/other", "trusted.hotpair.id", identity)
    os.rename(f"{stream.target_dir}/A/f", f"{stream.target_dir}/B/f")
    os.rename(f"{stream.target_dir}/A/other", f"{stream.target_dir}/A/f")
    stream.go_alone()
    stream.begin()
    fd = os.open(f"{stream.target_dir}/B/f", os.O_PATH)
    stream.target.register(fd, identity)
    finish(pair)
