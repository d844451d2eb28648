"""Verify and one live change, at each moment of the run: never a false report, and the stream goes on."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, cast

import pytest

from hotpair.replication.frames import Kind
from hotpair.replication.helper_io import Helper
from hotpair.replication.limits import CHUNK
from hotpair.replication.verify import Verification
from tests.stream_pair import StreamPair
from tests.stream_vm import Request, Vm

STEPS = 240  # more than a run over the tree below has
TREE = ("A/", "A/D/", "A/D/h", "A/f", "A/g", "B/", "B/k", "top")


class VerifyPair(StreamPair):
    """A pair in sync, and a comparison as its source process runs it."""

    verification: Verification | None = None

    def verify(self, repair: bool = False) -> Verification:
        self.verification = self.source.verification = Verification(
            self.source, self.tap.nodes, self.source_root, self.tap.root, cast(Helper, self.helper), repair, self._ended
        )
        return self.verification

    def _ended(self, _: str) -> None:
        self.source.verification = None

    def turn(self) -> None:
        super().turn()
        if self.source.verification is not None:
            self.guarded(self.source.verification.step)
            self.guarded(self.source.turn_end)

    def answer(self) -> None:
        if self.helper.answers and self.source.verification is not None:
            answer = self.helper.answers.popleft()
            if not self.source.verification.answered(answer):
                self.helper.abandon(answer[0])
        else:
            super().answer()

    def _for_source(self, fields: list[Any]) -> None:
        if fields[0] in (Kind.CHECKED, Kind.COMPARED, Kind.NAMES) and self.verification is not None:
            self.verification.answered_by_target(fields)
        else:
            super()._for_source(fields)

    @property
    def _busy(self) -> bool:
        return super()._busy or self.source.verification is not None


def in_sync(pair: VerifyPair) -> Vm:
    """The tree on both sides; the kernel knows nothing of it."""
    for path in TREE:
        if path.endswith("/"):
            os.mkdir(f"{pair.source_dir}/{path}")
        else:
            with open(f"{pair.source_dir}/{path}", "wb") as file:
                file.write(path.encode() * (CHUNK // 5))
    os.link(f"{pair.source_dir}/top", f"{pair.source_dir}/A/second")
    pair.synchronise(full=True)
    return Vm(pair)


def small_step(pair: VerifyPair, number: int) -> None:
    """One of the things that can happen next, in turn."""
    steps: tuple[Callable[[], object], ...] = (
        pair.turn,
        pair.helper.perform,
        pair.answer,
        pair.turn,
        lambda: pair.deliver_frames(1),
        pair.flushed,
        pair.deliver_back,
    )
    steps[number % len(steps)]()


Change = Callable[[Vm], list[Request]]


def forgotten(vm: Vm) -> list[Request]:
    """The kernel comes to know objects, and forgets them again."""
    for path in (b"A/D/h", b"A/D", b"A/f", b"A"):
        vm.find(path)
    for path in (b"A/D/h", b"A/D", b"A/f", b"A"):
        vm.forget(path)
    return []


# The requests of each step are answered before the next begins
CHANGES: dict[str, list[Change]] = {
    "write": [lambda vm: [vm.write(vm.open(b"A/f"), 100, b"new" * 1000)]],
    "write behind the end": [lambda vm: [vm.write(vm.open(b"A/f"), 2 * CHUNK, b"new" * 1000)]],
    "write through the second name": [lambda vm: [vm.write(vm.open(b"A/second"), 5, b"!")]],
    "truncate": [lambda vm: [vm.truncate(vm.open(b"A/f"), 1000)]],
    "punch": [lambda vm: [vm.punch(vm.open(b"A/f"), 4096, CHUNK)]],
    "create and write": [
        lambda vm: [vm.create(b"A/new")],
        lambda vm: [vm.write(vm.find(b"A/new"), 0, b"new")],
    ],
    "make a directory": [lambda vm: [vm.mkdir(b"A/D/new")], lambda vm: [vm.create(b"A/D/new/file")]],
    "remove": [lambda vm: [vm.unlink(b"A/f")]],
    "remove while it is open": [
        lambda vm: [vm.open(b"A/f") and vm.unlink(b"A/f")],
    ],
    "remove a directory": [lambda vm: [vm.unlink(b"A/D/h")], lambda vm: [vm.unlink(b"A/D")]],
    "rename": [lambda vm: [vm.rename(b"A/f", b"B/f")]],
    "rename over": [lambda vm: [vm.rename(b"A/f", b"A/g")]],
    "rename a directory": [lambda vm: [vm.rename(b"A/D", b"B/D")]],
    "link": [lambda vm: [vm.link(b"A/f", b"A/third")]],
    "remove the second name": [lambda vm: [vm.unlink(b"top")]],
    "mode": [lambda vm: [vm.chmod(vm.find(b"A/f"), 0o600), vm.chmod(vm.find(b"A"), 0o700), vm.chmod(vm.root, 0o711)]],
    "forget": [forgotten],
    "use, forget, use": [
        forgotten,
        lambda vm: [vm.write(vm.open(b"A/f"), 0, b"again"), vm.chmod(vm.find(b"A/D/h"), 0o640)],
    ],
}


def answered(pair: VerifyPair, vm: Vm, requests: list[Request]) -> None:
    """The link goes on, the helper does not, until these are answered."""
    for _ in range(20):
        pair.turn()
        pair.flushed()
        pair.deliver()
        pair.deliver_back()
        vm.hear()
        if all(request.answered for request in requests):
            break
    assert [request.code for request in requests] == [0] * len(requests)


def run_with(change: str, position: int, repair: bool) -> list[Any]:
    """One run with the change after so many small steps; what went wrong."""
    with VerifyPair() as pair:
        vm = in_sync(pair)
        verification = pair.verify(repair)
        for number in range(position):
            small_step(pair, number)
        for act in CHANGES[change]:
            answered(pair, vm, act(vm))
            small_step(pair, position)
        pair.run()
        vm.hear()
        wrong: list[Any] = [pair.lost, verification.progress()["differences"], pair.differences()]
        wrong.append([] if verification.result == "no difference" else [verification.result])
        pair.check_nothing_is_held()
        wrong.append(list(verification._uses))
        known = {item.identity for item in pair.target.objects.values() if item is not pair.target.root}
        declared = {node.identity for node in pair.tap.nodes.by_number.values() if node.declared == pair.source.session}
        if known - declared:
            wrong.append("the target still holds what it was asked to hold for the comparison")
        return [item for item in wrong if item]


# Every 13th moment is one after each of the seven kinds of small steps, with and without repair
AT_EACH = [pytest.param(range(0, STEPS, 13), id="13th"), pytest.param(range(STEPS), id="all", marks=pytest.mark.long)]


@pytest.mark.parametrize("positions", AT_EACH)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_at_each_moment(change: str, positions: range) -> None:
    wrong = {}
    for position in positions:
        found = run_with(change, position, repair=bool(position % 2))
        if found:
            wrong[position] = found
    assert wrong == {}


def test_the_run_has_no_more_steps_than_that() -> None:
    with VerifyPair() as pair:
        in_sync(pair)
        verification = pair.verify()
        for number in range(STEPS):
            small_step(pair, number)
        assert not verification.running


@pytest.mark.parametrize(
    "position",
    [position if position % 13 == 0 else pytest.param(position, marks=pytest.mark.long) for position in range(STEPS)],
)
def test_the_link_is_lost_while_it_is_repaired(position: int) -> None:
    """The session goes on after it, with what was sent for the repair; a second run finds what is left."""
    with VerifyPair() as pair:
        in_sync(pair)
        for path in ("A/f", "top"):
            with open(f"{pair.target_dir}/{path}", "r+b") as file:
                file.write(b"broken")
        verification = pair.verify(repair=True)
        for number in range(position):
            small_step(pair, number)
        verification.end("link lost")
        pair.cut()
        pair.resume()
        pair.run()
        pair.check_nothing_is_held()
        pair.verify(repair=True)
        pair.run()
        assert pair.verify().report.count == 0
        pair.run()
        assert pair.verification is not None and pair.verification.result == "no difference"
        assert pair.differences("files") == [] and pair.lost == []
        pair.check_nothing_is_held()
