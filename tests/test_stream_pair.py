"""Interleavings of live operations, reintegration and the link, forced one by one; both trees must come out equal."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from hotpair.replication import chunks, linux_io
from hotpair.replication.frames import Kind
from hotpair.replication.limits import CHUNK
from hotpair.replication.modes import ALONE, FROZEN, PRIM
from tests.stream_pair import EXTENT, StreamPair
from tests.stream_vm import Pair, Request, Vm, fill, finish, settle, small_step, until_chunk_is_asked


@pytest.fixture
def pair() -> Iterator[Pair]:
    with StreamPair() as stream:
        yield stream, Vm(stream)


# --- chunks -----------------------------------------------------------------------------------------------------------

OLD, NEW = b"o" * 3 * CHUNK, b"n" * 5000

CONTENT_CHANGES: dict[str, Callable[[Vm], list[Request]]] = {
    "write": lambda vm: [vm.write(vm.open(b"f"), CHUNK - 2500, NEW)],
    "truncate": lambda vm: [vm.truncate(vm.open(b"f"), 1000)],
    "punch hole": lambda vm: [vm.punch(vm.open(b"f"), 4096, CHUNK)],
}


def with_a_file_to_copy(pair: Pair) -> Pair:
    """In sync, then alone: all of ``f`` is written again, and the reintegration begins."""
    stream, vm = pair
    settle(pair, vm.create(b"f"))
    stream.synchronise()
    stream.go_alone()
    file = vm.open(b"f")
    settle(pair, *(vm.write(file, start, OLD[start : start + CHUNK // 2]) for start in range(0, len(OLD), CHUNK // 2)))
    stream.begin()
    return pair


def read_before_sent_after(pair: Pair, change: str) -> None:
    stream, vm = with_a_file_to_copy(pair)
    until_chunk_is_asked(stream)
    while stream.helper.perform():
        pass
    requests = CONTENT_CHANGES[change](vm)
    stream.turn()
    settle(pair, *requests)


@pytest.mark.parametrize("change", CONTENT_CHANGES)
def test_chunk_read_before_a_change_and_sent_after_it_is_read_again(pair: Pair, change: str) -> None:
    read_before_sent_after(pair, change)
    finish(pair)


@pytest.mark.parametrize("change", CONTENT_CHANGES)
def test_without_the_flag_the_copies_differ(pair: Pair, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above is worth: the same interleaving with the flag out of order."""
    monkeypatch.setattr(chunks.FileJob, "touch", lambda *_: None)
    read_before_sent_after(pair, change)
    assert any("f" in line and ("content" in line or "size" in line) for line in pair[0].differences())


def test_chunk_is_read_again_only_after_the_write_is_applied_here(pair: Pair) -> None:
    """The write is sent, not yet applied here, when the answer with the old bytes comes: the second read must wait."""
    stream, vm = with_a_file_to_copy(pair)
    until_chunk_is_asked(stream)
    while stream.helper.perform():
        pass
    request = vm.write(vm.open(b"f"), 0, NEW)
    for _ in range(8):
        stream.answer()
    stream.helper.perform()  # before the turn ends
    settle(pair, request)
    finish(pair)


def test_chunk_that_is_written_all_the_time_arrives(pair: Pair) -> None:
    stream, vm = with_a_file_to_copy(pair)
    until_chunk_is_asked(stream)
    file = vm.open(b"f")
    for number in range(8):
        stream.helper.perform()
        vm.write(file, 100 * number, b"%03d" % number)
        stream.answer()
        stream.turn()
        stream.deliver()
        stream.deliver_back()
        vm.hear()
    finish(pair)


@pytest.mark.parametrize("full", [False, True], ids=["whole files", "compared by hash"])
def test_zeros_and_holes_replace_what_the_target_has(pair: Pair, full: bool) -> None:
    stream, vm = pair
    fill(pair, "f", content=b"x" * 4 * CHUNK)
    stream.synchronise(full=True)
    stream.go_alone()
    file = vm.open(b"f")
    settle(pair, vm.punch(file, 0, CHUNK))
    settle(pair, *(vm.write(file, CHUNK + start, bytes(CHUNK // 4)) for start in range(0, CHUNK, CHUNK // 4)))
    settle(pair, vm.truncate(file, 3 * CHUNK))
    settle(pair, vm.truncate(file, 8 * CHUNK + 5))
    stream.begin(full)
    finish(pair)
    assert os.stat(f"{stream.target_dir}/f").st_blocks * 512 <= 3 * CHUNK


@pytest.mark.parametrize("how", ["unlink", "rename over"])
@pytest.mark.parametrize("state", ["opened", "read", "sent"])
def test_file_vanishes_while_it_is_copied(pair: Pair, how: str, state: str) -> None:
    stream, vm = pair
    settle(pair, vm.create(b"other"))
    with_a_file_to_copy(pair)
    until_chunk_is_asked(stream)
    if state != "opened":
        while stream.helper.perform():
            pass
    if state == "sent":
        stream.answer()
    request = vm.unlink(b"f") if how == "unlink" else vm.rename(b"other", b"f")
    stream.turn()
    settle(pair, request)
    finish(pair)


def test_wanted_comes_when_the_file_is_gone(pair: Pair) -> None:
    stream, vm = pair
    fill(pair, "f", content=b"x" * CHUNK)
    stream.begin()
    while not stream.to_source.frames() or Kind.WANTED not in [kind for kind, _ in stream.to_source.frames()]:
        stream.helper.perform()
        stream.answer()
        stream.turn()
        stream.deliver()
    request = vm.unlink(b"f")
    stream.turn()
    stream.deliver()
    settle(pair, request)
    finish(pair)


# --- the link ---------------------------------------------------------------------------------------------------------


def in_sync_with_files(pair: Pair) -> None:
    stream, _ = pair
    fill(pair, "A/", "A/f", "A/D/", "A/D/g", "B/", content=os.urandom(5000))
    stream.synchronise(full=True)


@pytest.mark.parametrize("end", ["the link is lost", "the target is killed"])
@pytest.mark.parametrize("full", [False, True], ids=["marks", "full"])
def test_link_lost_at_each_step_of_a_reintegration_and_started_again(end: str, full: bool) -> None:
    """The same helper serves the next one, with answers to the old one's questions still to come."""
    for position in range(0, 100, 3):
        with StreamPair() as stream:
            pair = stream, Vm(stream)
            in_sync_with_files(pair)
            stream.go_alone()
            settle(pair, pair[1].create(b"B/new"), pair[1].mkdir(b"A/D/H"))
            settle(pair, pair[1].write(pair[1].open(b"A/f"), 0, os.urandom(3 * EXTENT)))
            stream.begin(full)
            for number in range(position):
                small_step(stream, number)
            if end == "the link is lost":
                stream.cut()
            else:
                stream.kill_target()
            if stream.source.mode is FROZEN:  # it was in sync already
                stream.source.go_alone()
            settle(pair, pair[1].write(pair[1].open(b"A/f"), 100, b"alone"), pair[1].unlink(b"A/D/g"))
            stream.begin(full)
            finish(pair)


def some_work(vm: Vm) -> list[Request]:
    """Of every kind that can be under way at once."""
    file = vm.open(b"A/f")
    return [
        vm.write(file, 10, b"first"),
        vm.create(b"B/new"),
        vm.write(file, 12, b"second"),
        vm.fsync(file),
        vm.unlink(b"A/D/g"),
        vm.chmod(vm.find(b"A"), 0o710),
    ]


def test_link_lost_at_each_byte_in_sync_and_resumed() -> None:
    """However far the stream and the answers have come, nothing is lost, applied twice or answered twice."""
    size = 1
    position = 0
    while position <= size:
        with StreamPair() as stream:
            pair = stream, Vm(stream)
            in_sync_with_files(pair)
            settle(pair, pair[1].write(pair[1].open(b"A/f"), 0, b"marks the extent"))
            requests = some_work(pair[1])
            for _ in range(4):
                stream.turn()
                stream.flushed()
            size = len(stream.to_target.waiting)
            stream.deliver(position)
            stream.deliver_back(position % 3)
            stream.cut()
            pair[1].hear()
            assert stream.source.mode is FROZEN
            frozen = pair[1].write(pair[1].open(b"A/f"), 14, b"third")
            stream.resume()
            settle(pair, *requests, frozen)
            assert stream.differences() == [] and stream.lost == []
            stream.check_nothing_is_held()
        position += 13


def test_link_breaks_while_a_change_is_made(pair: Pair) -> None:
    """The change flushes the turn's writes out first, and that is where the break shows: it must not be torn off."""
    stream, vm = pair
    in_sync_with_files(pair)
    file = vm.open(b"A/f")
    settle(pair, vm.write(file, 0, b"marked"), vm.mkdir(b"A/first"))
    stream.to_target.cut = True
    requests = [vm.write(file, 0, b"unsent"), vm.mkdir(b"A/second")]
    stream.turn()
    vm.hear()
    assert stream.source.mode is FROZEN
    assert [request.answered for request in requests] == [False, False]
    stream.source.go_alone()
    settle(pair, *requests)
    stream.begin()
    stream.lost.clear()
    finish(pair)


def test_everything_is_flushed_after_a_resumption_too(pair: Pair) -> None:
    stream, _ = pair
    in_sync_with_files(pair)
    ended: list[int] = []
    stream.source.flushes.flush_everything(stream.source_root, ended.append)
    stream.turn()
    stream.deliver()
    stream.cut()  # with the answer under way
    stream.resume()
    settle(pair)
    assert ended == [0]


def test_write_waits_for_the_verdict_and_orphans_do_not(pair: Pair) -> None:
    stream, vm = pair
    in_sync_with_files(pair)
    file, orphan = vm.open(b"A/f"), vm.open(b"A/D/g")
    settle(pair, vm.write(file, 0, b"x"), vm.write(orphan, 0, b"x"))
    settle(pair, vm.unlink(b"A/D/g"))
    stream.cut()
    frozen, free = vm.write(file, 0, b"y"), vm.write(orphan, 0, b"y")
    for _ in range(10):
        stream.one_of_each()
    vm.hear()
    assert (frozen.code, free.code) == (None, 0)
    stream.source.go_alone()
    settle(pair, frozen)
    assert stream.source.mode is ALONE


# --- what the target must know ----------------------------------------------------------------------------------------


def test_write_in_sync_by_a_descriptor_whose_name_went_while_alone(pair: Pair) -> None:
    stream, vm = pair
    fill(pair, "A/", "A/f", "B/")
    os.link(f"{stream.source_dir}/A/f", f"{stream.source_dir}/B/f")
    stream.synchronise(full=True)
    file = vm.open(b"A/f")
    stream.go_alone()
    settle(pair, vm.unlink(b"A/f"))
    stream.synchronise()
    settle(pair, vm.write(file, 0, b"acknowledged"), vm.fsync(file))
    settle(pair, vm.chmod(file, 0o640))
    assert stream.differences() == []
    finish(pair)


def test_replaced_files_do_not_stay_on_the_target(pair: Pair) -> None:
    """Each rename over a name ends an object there: descriptors and disk space would run out."""
    stream, vm = pair
    settle(pair, vm.create(b"name"))
    stream.synchronise()
    before = len(stream.target.objects)
    for _ in range(20):
        settle(pair, vm.create(b"new"))
        file = vm.open(b"new")
        settle(pair, vm.write(file, 0, b"content"))
        settle(pair, vm.rename(b"new", b"name"))
        vm.close(file)
    settle(pair)
    assert len(stream.target.objects) <= before + 1
    assert stream.differences() == []


def test_rename_over_a_file_is_whole_between_any_two_system_calls(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash may come there: the names are as before, or as after. Found by torture."""
    stream, vm = pair
    for name in (b"new", b"name"):
        settle(pair, vm.create(name))
    old, new = (os.stat(f"{stream.source_dir}/{name}").st_ino for name in ("name", "new"))
    before, after = {"name": old, "new": new}, {"name": new}
    vm.open(b"name")  # what is replaced lives on among the orphans
    seen: list[dict[str, int]] = []

    def watched(call: str) -> None:
        real = getattr(linux_io, call)

        def then_look(*arguments: object) -> None:
            real(*arguments)
            seen.append({entry.name: entry.inode() for entry in os.scandir(stream.source_dir) if entry.is_file()})

        monkeypatch.setattr(linux_io, call, then_look)

    watched("renameat2")
    watched("linkat_empty")
    settle(pair, vm.rename(b"new", b"name"))
    assert seen[-1] == after
    assert all(names in (before, after) for names in seen)


def test_removed_files_do_not_stay_on_the_target(pair: Pair) -> None:
    stream, vm = pair
    stream.synchronise()
    before = len(stream.target.objects)
    for _ in range(10):
        settle(pair, vm.create(b"file"))
        settle(pair, vm.mkdir(b"directory"))
        file = vm.open(b"file")
        settle(pair, vm.write(file, 0, b"content"), vm.unlink(b"directory"))
        settle(pair, vm.unlink(b"file"))
        vm.close(file)
    settle(pair)
    assert len(stream.target.objects) == before
    assert os.listdir(f"{stream.source_dir}/.hotpair/orphans") == []


def test_what_is_left_out_at_the_very_end_is_caught_up(pair: Pair) -> None:
    """Between the last flush and its answer: the walk must begin again, whatever the answer says."""
    stream, _ = pair
    in_sync_with_files(pair)
    stream.go_alone()
    stream.begin()
    for _ in range(1000):
        stream.flushed()
        stream.helper.perform()
        stream.answer()
        stream.turn()
        if stream._flush_all:
            break
        stream.deliver()
        stream.deliver_back()
    assert stream._flush_all
    fill(pair, "B/unsent")  # stands for a change that could not be sent
    stream.source.reintegration.walk_again()
    stream.deliver()
    stream.deliver_back()
    finish(pair)


def test_more_files_are_closed_at_once_than_the_flush_queue_holds(pair: Pair) -> None:
    stream, vm = pair
    fill(pair, *(f"{number:03}" for number in range(200)))
    stream.synchronise(full=True)
    files = [vm.open(b"%03d" % number) for number in range(200)]
    for start in range(0, 200, 25):
        settle(pair, *(vm.write(file, 0, b"x") for file in files[start : start + 25]))
    stream.flushes.held = stream.target_flushes.held = True
    for number, file in enumerate(files):
        vm.close(file)
        vm.forget(b"%03d" % number)
    vm.hear()
    stream.turn()
    stream.deliver()
    stream.flushes.held = stream.target_flushes.held = False
    settle(pair)
    finish(pair)


def test_a_directory_with_more_attributes_than_one_frame_holds(pair: Pair) -> None:
    stream, _ = pair
    fill(pair, *(f"{number:04}" for number in range(1200)))
    for number in range(1200):
        os.setxattr(f"{stream.source_dir}/{number:04}", "user.large", bytes(1500))
    stream.synchronise(full=True)
    finish(pair)


def test_a_file_counts_as_complete_after_it_was_copied(pair: Pair) -> None:
    """Or every later reintegration would copy it again."""
    stream, vm = pair
    fill(pair, "A/", "A/f", content=os.urandom(2 * CHUNK))
    stream.begin(full=True)
    until_chunk_is_asked(stream)
    stream.cut()  # begun in one session, completed in the next
    stream.synchronise(full=True)
    stream.go_alone()
    settle(pair, vm.create(b"A/small"))
    stream.begin()
    reintegrated = stream.source.reintegration
    finish(pair)
    assert reintegrated.bytes_sent == 0


# --- a full disk on the source ----------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Iterator[Pair]:
    with StreamPair(source_space=1 << 20) as stream:
        yield stream, Vm(stream)


def fill_disk(pair: Pair) -> None:
    """Until not a block is left on the source."""
    stream, _ = pair
    fd = os.open(f"{stream.source_dir}/filler", os.O_CREAT | os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        while True:
            os.write(fd, bytes(4096))
    os.close(fd)


def test_failed_write_is_taken_back_on_the_target_and_later_ones_are_not(small: Pair) -> None:
    """All three are sent before the first is applied here. It fails in its second half; the others succeed."""
    stream, vm = small
    settle(small, vm.create(b"f"))
    file = vm.open(b"f")
    settle(small, vm.write(file, 0, b"o" * 4096))
    fill_disk(small)
    stream.synchronise(full=True)
    settle(small, vm.write(file, 0, b"p" * 100))
    first = vm.write(file, 2048, b"1" * 8192)
    second = vm.write(file, 2100, b"2" * 100)
    third = vm.write(file, 4000, b"3" * 90)
    stream.run()
    vm.hear()
    assert [first.code, second.code, third.code] == [errno.ENOSPC, 0, 0]
    assert stream.source.mode is PRIM
    assert stream.differences() == []


@pytest.mark.parametrize("noticed", ["sending", "receiving"])
@pytest.mark.parametrize("verdict", ["resume", "go alone"])
def test_failed_write_whose_link_is_lost_is_answered_once(small: Pair, verdict: str, noticed: str) -> None:
    """Its frame stays in flight with the request's memory: that must not serve another request meanwhile."""
    stream, vm = small
    settle(small, vm.create(b"f"))
    file = vm.open(b"f")
    settle(small, vm.write(file, EXTENT - 100, b"marks the extent"))
    fill_disk(small)
    stream.synchronise(full=True)
    failing = vm.write(file, 0, b"1" * 8192)
    if noticed == "sending":
        stream.to_target.cut = True
    else:
        stream.cut()
    for _ in range(3):
        stream.turn()
        stream.flushed()
    vm.hear()
    others = [vm.write(file, 0, b"0" * 4000) for _ in range(5)]
    if verdict == "resume":
        stream.resume()
    else:
        stream.source.go_alone()
        stream.begin()
    stream.run()
    vm.hear()
    assert failing.code == errno.ENOSPC
    assert all(request.code == errno.ENOSPC for request in others)
    stream.check_nothing_is_held()
    assert stream.differences() == []
