"""Interleavings of live operations, reintegration and the link, forced one by one; both trees must come out equal."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator

import pytest

from hotpair.replication import linux_io, reintegration
from hotpair.replication.activity import Selection
from hotpair.replication.frames import Kind
from hotpair.replication.limits import CHUNK
from hotpair.replication.source import ALONE, FROZEN, PRIM
from tests.stream_pair import StreamPair
from tests.stream_vm import Request, Vm

SMALL_STEPS = 60  # more than any of the walks below has
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


def fill(pair: Pair, *paths: str, content: bytes = b"") -> None:
    """Make directories (ending with a slash) and files in the source's copy, before the mirror knows them."""
    for path in paths:
        if path.endswith("/"):
            os.mkdir(f"{pair[0].source_dir}/{path}")
        else:
            with open(f"{pair[0].source_dir}/{path}", "wb") as file:
                file.write(content or path.encode())


def finish(pair: Pair) -> None:
    """To the end of the reintegration: equal, in sync, nothing held, and no trouble on the way."""
    stream, vm = pair
    stream.synchronise()
    vm.hear()
    assert vm.pending == {}
    assert stream.differences("files") == []
    assert stream.lost == []
    stream.check_nothing_is_held()


def small_step(stream: StreamPair, number: int) -> None:
    """One of the things that can happen next, in turn."""
    steps: tuple[Callable[[], object], ...] = (
        stream.turn,
        stream.helper.perform,
        stream.answer,
        stream.flushed,
        stream.turn,
        lambda: stream.deliver_frames(1),
        stream.deliver,
        stream.deliver_back,
    )
    steps[number % len(steps)]()


def until_chunk_is_asked(stream: StreamPair) -> None:
    """The walk is over and the helper has been asked for the first chunk, but has not read it."""
    for _ in range(1000):
        if stream.helper.asked and stream.helper.asked[0][0][0] == "chunk":
            return
        stream.flushed()
        stream.helper.perform()
        stream.answer()
        stream.turn()
        stream.deliver()
        stream.deliver_back()
    raise AssertionError("no chunk was asked for")


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
    settle_nothing = CONTENT_CHANGES[change](vm)
    stream.turn()
    assert settle_nothing
    stream.synchronise()
    vm.hear()
    assert [request.code for request in settle_nothing] == [0] * len(settle_nothing)


@pytest.mark.parametrize("change", CONTENT_CHANGES)
def test_chunk_read_before_a_change_and_sent_after_it_is_read_again(pair: Pair, change: str) -> None:
    read_before_sent_after(pair, change)
    finish(pair)


@pytest.mark.parametrize("change", CONTENT_CHANGES)
def test_without_the_flag_the_copies_differ(pair: Pair, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above is worth: the same interleaving with the flag out of order."""
    monkeypatch.setattr(reintegration.FileJob, "touch", lambda *_: None)
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
    settle(pair, vm.truncate(file, 2 * CHUNK), vm.truncate(file, 8 * CHUNK + 5)) if False else None
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


# --- the walk ---------------------------------------------------------------------------------------------------------

TREE = ("A/", "A/D/", "A/D/E/", "A/D/E/g", "A/D/h", "A/f", "B/", "B/k", "C/", "top")
Change = Callable[[Vm], list[Request]]

# While the target is away, then while it is reintegrated. Each step's requests are answered before the next begins.
WALKS: dict[str, tuple[list[Change], list[Change]]] = {
    "rename a file": ([], [lambda vm: [vm.rename(b"A/f", b"B/f")]]),
    "rename a file and write": (
        [],
        [lambda vm: [vm.rename(b"A/f", b"B/f")], lambda vm: [vm.write(vm.open(b"B/f"), 3, b"!!")]],
    ),
    "rename a directory": ([], [lambda vm: [vm.rename(b"A/D", b"B/D")]]),
    "rename a directory to and fro": (
        [],
        [lambda vm: [vm.rename(b"A/D", b"B/D")], lambda vm: [vm.rename(b"B/D", b"A/D")]],
    ),
    "rename a directory, then within it": (
        [],
        [lambda vm: [vm.rename(b"A/D", b"B/D")], lambda vm: [vm.rename(b"B/D/h", b"B/D/i")]],
    ),
    "rename a directory, then it again": (
        [],
        [lambda vm: [vm.rename(b"A/D", b"B/D")], lambda vm: [vm.rename(b"B/D", b"B/D2")]],
    ),
    "rename below": ([], [lambda vm: [vm.rename(b"A/D/E", b"C/E")], lambda vm: [vm.rename(b"A/D", b"C/E/D")]]),
    "exchange directories": ([], [lambda vm: [vm.rename(b"A/D", b"B", linux_io.RENAME_EXCHANGE)]]),
    "rename over an emptied directory": (
        [lambda vm: [vm.unlink(b"B/k")]],
        [lambda vm: [vm.rename(b"A/D", b"B")]],
    ),
    "remove an emptied directory": ([lambda vm: [vm.unlink(b"B/k")]], [lambda vm: [vm.unlink(b"B")]]),
    "remove a directory": ([], [lambda vm: [vm.unlink(b"B/k")], lambda vm: [vm.unlink(b"B")]]),
    "make directories": (
        [],
        [lambda vm: [vm.mkdir(b"A/N")], lambda vm: [vm.create(b"A/N/x")], lambda vm: [vm.rename(b"A/N", b"C/N")]],
    ),
    "make, fill and move a file": (
        [],
        [
            lambda vm: [vm.create(b"A/D/n")],
            lambda vm: [vm.write(vm.open(b"A/D/n"), 0, b"data")],
            lambda vm: [vm.rename(b"A/D/n", b"C/n")],
        ],
    ),
    "names that came and went meanwhile": (
        [lambda vm: [vm.unlink(b"top")], lambda vm: [vm.create(b"C/c")]],
        [lambda vm: [vm.create(b"top")], lambda vm: [vm.unlink(b"C/c")]],
    ),
    "make a second name": ([], [lambda vm: [vm.link(b"A/f", b"C/f2")], lambda vm: [vm.unlink(b"A/f")]]),
    "a second name that is new, and written": (
        [lambda vm: [vm.link(b"A/f", b"C/f2")], lambda vm: [vm.link(b"B/k", b"A/D/k2")]],
        [lambda vm: [vm.write(vm.open(b"A/f"), 0, b"one")], lambda vm: [vm.write(vm.open(b"A/D/k2"), 0, b"two")]],
    ),
    "a second name that is new, the first goes": (
        [lambda vm: [vm.link(b"A/f", b"C/f2")], lambda vm: [vm.link(b"B/k", b"A/D/k2")]],
        [
            lambda vm: [vm.open(b"A/f") and vm.write(vm.open(b"A/f"), 0, b"a")],
            lambda vm: [vm.unlink(b"A/f"), vm.unlink(b"B/k")],
            lambda vm: [vm.write(vm.open(b"C/f2"), 1, b"b"), vm.write(vm.open(b"A/D/k2"), 1, b"c")],
        ],
    ),
    "names exchanged meanwhile": (
        [lambda vm: [vm.rename(b"A/f", b"B/k", linux_io.RENAME_EXCHANGE)]],
        [lambda vm: [vm.write(vm.open(b"A/f"), 0, b"K")]],
    ),
    "moved meanwhile": (
        [lambda vm: [vm.rename(b"A/D", b"C/D")], lambda vm: [vm.rename(b"B/k", b"A/k")]],
        [lambda vm: [vm.create(b"C/D/E/new")], lambda vm: [vm.chmod(vm.find(b"A/k"), 0o600)]],
    ),
    "attributes": (
        [lambda vm: [vm.link(b"A/f", b"C/f2")]],
        [lambda vm: [vm.chmod(vm.find(b"A/f"), 0o640), vm.chmod(vm.find(b"A/D"), 0o700), vm.chmod(vm.root, 0o711)]],
    ),
    "forgotten by the kernel": (
        [],
        [
            lambda vm: [vm.create(b"A/D/E/x"), vm.rename(b"A/f", b"B/f")],
            lambda vm: vm.close(vm.open(b"A/D/E/x")) or [],
            lambda vm: [] if vm.forget(b"A/D/E/x") and vm.forget(b"A/D/E") and vm.forget(b"A/D") else [],
            lambda vm: [vm.rename(b"A/D/E/g", b"B/g")],
        ],
    ),
    "a directory is moved out of one that is removed": (
        [],
        [
            lambda vm: [vm.rename(b"A/D/E", b"B/E"), vm.unlink(b"A/D/h")] if False else [vm.rename(b"A/D/E", b"B/E")],
            lambda vm: [vm.unlink(b"A/D/h")],
            lambda vm: [vm.unlink(b"A/D")],
            lambda vm: [vm.write(vm.open(b"B/E/g"), 0, b"G")],
        ],
    ),
}


def answered_soon(pair: Pair, requests: list[Request]) -> None:
    """The link goes on, the helper does not, until these are answered."""
    stream, vm = pair
    for _ in range(20):
        if all(request.answered for request in requests):
            break
        stream.turn()
        stream.flushed()
        stream.deliver()
        stream.deliver_back()
        vm.hear()
    assert [request.code for request in requests] == [0] * len(requests)


def walk_interrupted(name: str, position: int, between: int) -> list[str]:
    """Both lists of a walk; the second one begins after ``position`` small steps. What went wrong."""
    before, during = WALKS[name]
    with StreamPair() as stream:
        pair = stream, Vm(stream)
        fill(pair, *TREE)
        stream.synchronise(full=True)
        stream.go_alone()
        for change in before:
            settle(pair, *change(pair[1]))
        stream.begin()
        for number in range(position):
            small_step(stream, number)
        for change in during:
            answered_soon(pair, change(pair[1]))
            for number in range(between):
                small_step(stream, number)
        stream.run()
        pair[1].hear()
        return stream.lost + stream.differences() + ([] if stream.in_sync else ["not in sync"])


@pytest.mark.parametrize("between", [0, 3])
@pytest.mark.parametrize("name", WALKS)
def test_names_change_at_each_moment_of_the_walk(name: str, between: int) -> None:
    wrong = {}
    for position in range(0, SMALL_STEPS, 1 if between == 0 else 4):
        found = walk_interrupted(name, position, between)
        if found:
            wrong[position] = found
    assert wrong == {}
