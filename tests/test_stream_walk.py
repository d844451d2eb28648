"""Every kind of change of names, at each small step of the walk; both trees must come out equal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hotpair.replication import linux_io
from tests.stream_pair import StreamPair
from tests.stream_vm import Pair, Request, Vm, fill, settle, small_step

SMALL_STEPS = 60  # more than any of the walks below has

TREE = ("A/", "A/D/", "A/D/E/", "A/D/E/g", "A/D/h", "A/f", "B/", "B/k", "C/", "top")
Change = Callable[[Vm], list[Request]]


def forget(vm: Vm, *paths: bytes) -> list[Request]:
    for path in paths:
        vm.forget(path)
    return []


def close(vm: Vm, path: bytes) -> list[Request]:
    vm.close(vm.open(path))
    return []


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
            lambda vm: [vm.write(vm.open(b"A/f"), 0, b"a")],
            lambda vm: [vm.unlink(b"A/f"), vm.unlink(b"B/k")],
            lambda vm: [vm.write(vm.open(b"C/f2"), 1, b"b"), vm.write(vm.open(b"A/D/k2"), 1, b"c")],
        ],
    ),
    "a second name that is new, and nobody looks": (
        [
            lambda vm: [vm.link(b"A/f", b"B/f2")],  # whichever of the two is listed first
            lambda vm: [vm.link(b"B/k", b"A/k2")],
            lambda vm: forget(vm, b"A/f", b"B/f2", b"B/k", b"A/k2"),
        ],
        [],
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
            lambda vm: close(vm, b"A/D/E/x"),
            lambda vm: forget(vm, b"A/D/E/x", b"A/D/E", b"A/D"),
            lambda vm: [vm.rename(b"A/D/E/g", b"B/g")],
        ],
    ),
    "a directory is moved out of one that is removed": (
        [],
        [
            lambda vm: [vm.rename(b"A/D/E", b"B/E")],
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


# Every third position is reached by each of the eight kinds of small steps; all of them take half a minute
AT_EACH = [
    pytest.param(0, 3, id="0"),
    pytest.param(3, 7, id="3"),
    pytest.param(0, 1, id="0 complete", marks=pytest.mark.long),
    pytest.param(3, 1, id="3 complete", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("between", "stride"), AT_EACH)
@pytest.mark.parametrize("name", WALKS)
def test_names_change_at_each_moment_of_the_walk(name: str, between: int, stride: int) -> None:
    wrong = {}
    for position in range(0, SMALL_STEPS, stride):
        found = walk_interrupted(name, position, between)
        if found:
            wrong[position] = found
    assert wrong == {}
