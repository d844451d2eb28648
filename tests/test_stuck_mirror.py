"""A mirror that does not get on because of its peer: either server says why, and it is tried again when told to."""

from __future__ import annotations

import contextlib
import os
import queue
import time
from collections.abc import Iterator

import pytest

from hotpair.actors import mirror_keeper
from hotpair.actors.mirror_keeper import MirrorFacts, MirrorKeeper
from hotpair.cluster.module_events import MirrorReported
from hotpair.cluster.module_values import MirrorMode, Role
from tests.faults import ask, equal_after_stop, on_mount, said, small_disk, status, wait_until
from tests.mirror_pair import MirrorPair
from tests.witness_process import free_port

pytestmark = pytest.mark.timeout(120)
LIMIT_S = 30.0
MEBIBYTE = 1 << 20
WRITE = """
    descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
    for n in range(int(sys.argv[2])):
        os.pwrite(descriptor, os.urandom(1 << 20), n << 20)
"""


class Watched:
    """What a keeper beside a running mirror process says of it, for people."""

    def __init__(self, pair: MirrorPair, state: str) -> None:
        facts = MirrorFacts("vm", "/nowhere", state, f"{pair.base}/log", ("127.0.0.1", 1), ("127.0.0.1", 2))
        self.reasons: list[str] = []
        self.keeper = MirrorKeeper(facts, lambda report: None, self.reasons.append)
        self.keeper.find()

    def until(self, *words: str) -> None:
        def is_said() -> bool:
            return all(word in self.keeper.reason for word in words)

        wait_until(is_said, f"it says {words}; it said {self.reasons}", LIMIT_S)


@contextlib.contextmanager
def watched(pair: MirrorPair, *states: str) -> Iterator[list[Watched]]:
    made = [Watched(pair, state) for state in states]
    yield made
    for one in made:
        one.keeper.close()


def test_the_targets_disk_is_full_and_then_not_any_more() -> None:
    with MirrorPair() as pair, small_disk(pair.base, 64) as data:
        pair.target_dir = f"{data}/copy"
        os.mkdir(pair.target_dir)
        ballast = f"{data}/ballast"
        with open(ballast, "wb") as opened:
            opened.write(bytes(40 * MEBIBYTE))
        pair.start()
        with watched(pair, pair.source_state, pair.target_state) as (source, target):
            on_mount(pair, WRITE, "file", 32)
            source.until("the peer cannot hold the copy", "No space left on device", "hotpair retry")
            target.until("No space left on device")
            assert status(pair.source_state)["reason"] == source.keeper.reason
            failures = len([line for line in pair.target.said if "failed: operation" in line]) if pair.target else 0
            ask(pair.source_state, "retry")  # too early: it fails again, and says so again
            said(pair.target, "failed: operation", failures + 1)
            source.until("No space left on device")
            said(pair.target, "failed: operation", failures + 2)
            source.until("No space left on device", "hotpair retry")
            os.unlink(ballast)
            time.sleep(6)  # longer than it waits between two tries
            source.until("hotpair retry")
            ask(pair.source_state, "retry")
            wait_until(lambda: status(pair.source_state)["in_sync"], "in sync", LIMIT_S)
            wait_until(lambda: (source.keeper.reason, target.keeper.reason) == ("", ""), "nothing to say any more")
        equal_after_stop(pair)


def test_a_target_that_refuses() -> None:
    """Both say why, and what is put right is found by itself."""
    with MirrorPair() as pair:
        with open(f"{pair.target_dir}/mine", "wb") as opened:
            opened.write(b"not to be overwritten")
        pair.source_arguments = ["--alone-after", "1"]
        pair.start()
        with watched(pair, pair.source_state, pair.target_state) as (source, target):
            source.until("the peer refused", "is not empty and was never a copy")
            target.until("refused the source", "is not empty and was never a copy")
            os.unlink(f"{pair.target_dir}/mine")
            ask(pair.source_state, "retry")
            wait_until(lambda: status(pair.source_state)["in_sync"], "in sync", LIMIT_S)
            wait_until(lambda: (source.keeper.reason, target.keeper.reason) == ("", ""), "nothing to say any more")
        equal_after_stop(pair)


def test_a_mirror_that_does_not_come_up() -> None:
    with MirrorPair() as pair:
        heard: queue.SimpleQueue[MirrorReported] = queue.SimpleQueue()
        reasons: list[str] = []
        with open(f"{pair.target_state}/record", "wb") as opened:
            opened.write(b"?")
        here, peer = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
        options = ("--durability", "memory", "--no-tls")
        facts = MirrorFacts("vm", pair.target_dir, pair.target_state, f"{pair.base}/log", here, peer, options)
        keeper = MirrorKeeper(facts, heard.put, reasons.append)  # type: ignore[arg-type]
        keeper.find()
        keeper.start(Role.TARGET, alone=False, salvage=None)
        assert heard.get(timeout=LIMIT_S).mirror is None
        assert len(reasons) == 1 and "did not come up as target" in reasons[0] and "is damaged" in reasons[0]
        keeper.close()


def test_one_that_was_told_to_end_is_started_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one that dies by itself is waited with: several swaps in a row are as fast as the first."""
    monkeypatch.setattr(mirror_keeper, "GRACE_S", (0.0, 10 * LIMIT_S))
    with MirrorPair() as pair:
        heard: queue.SimpleQueue[MirrorReported] = queue.SimpleQueue()
        options = ("--durability", "memory", "--no-tls")
        here, peer = ("127.0.0.1", free_port()), ("127.0.0.1", free_port())
        facts = MirrorFacts("vm", pair.target_dir, pair.target_state, f"{pair.base}/log", here, peer, options)
        keeper = MirrorKeeper(facts, heard.put)  # type: ignore[arg-type]
        keeper.find()
        for _ in range(3):
            keeper.start(Role.TARGET, alone=False, salvage=None)
            while (report := heard.get(timeout=LIMIT_S)).mirror is None or report.mirror.mode is not MirrorMode.IDLE:
                pass
            keeper.stop()
            while heard.get(timeout=LIMIT_S).mirror is not None:
                pass
        keeper.close()
