"""How fast chunks follow each other, with a clock of our own."""

from __future__ import annotations

from hotpair.replication.limits import CHUNK, CHUNK_REST, REINTEGRATION_FLOOR
from hotpair.replication.pace import BURST_S, Pace

TOOK_S = 0.001
STEP_S = 0.0001


class Copying:
    """Chunks one after another, each taking TOOK_S, with a VM that writes all the time, or never."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pace = Pace(lambda: self.now)

    def chunk(self, met: bool, took_s: float = TOOK_S) -> float:
        """Begin one as soon as it may begin, and end it; how long it had to wait, in seconds."""
        since = self.now
        while not self.pace.may_begin(0):
            self.now += STEP_S
        waited, began = self.now - since, self.now
        self.pace.spend(CHUNK)
        self.now += took_s
        self.pace.ended(began, CHUNK, met)
        return waited

    def rate(self, met: bool, seconds: float, took_s: float = TOOK_S) -> float:
        """Bytes per second."""
        since, count = self.now, 0
        while self.now < since + seconds:
            self.chunk(met, took_s)
            count += 1
        return count * CHUNK / (self.now - since)


def test_full_speed_while_nobody_writes() -> None:
    copying = Copying()
    assert all(copying.chunk(met=False) == 0 for _ in range(100))
    assert all(copying.pace.may_begin(in_work) for in_work in range(8))


def test_a_chunk_that_met_writes_is_followed_by_a_rest() -> None:
    copying = Copying()
    copying.chunk(met=True)
    assert CHUNK_REST * TOOK_S - STEP_S <= copying.chunk(met=True) <= CHUNK_REST * TOOK_S + STEP_S


def test_one_at_a_time_while_the_vm_writes() -> None:
    copying = Copying()
    copying.chunk(met=True)
    copying.now += 1.0
    assert copying.pace.may_begin(0)
    assert not copying.pace.may_begin(1)


def test_full_speed_again_when_a_chunk_met_none() -> None:
    copying = Copying()
    copying.chunk(met=True)
    copying.chunk(met=False)
    assert copying.chunk(met=False) == 0
    assert copying.pace.may_begin(7)


def test_the_vm_keeps_most_of_the_time() -> None:
    copying = Copying()
    polite, full = copying.rate(met=True, seconds=5), Copying().rate(met=False, seconds=5)
    assert 0.9 / (1 + CHUNK_REST) < polite / full < 1.1 / (1 + CHUNK_REST)


def test_slow_servers_copy_the_floor_in_any_case() -> None:
    """A chunk takes 7 ms: with its full rest, 5 MB/s would be copied."""
    assert Copying().rate(met=True, seconds=5, took_s=0.007) > 0.95 * REINTEGRATION_FLOOR
    copying = Copying()
    copying.pace.floor = 0
    assert copying.rate(met=True, seconds=5, took_s=0.007) < 8e6


def test_a_high_floor_is_full_speed() -> None:
    copying = Copying()
    copying.pace.floor = 1 << 40
    assert copying.rate(met=True, seconds=1) > 0.9 * CHUNK / TOOK_S


def test_ceiling_holds_whether_the_vm_writes_or_not() -> None:
    for met in (True, False):
        copying = Copying()
        copying.pace.ceiling = 10 << 20
        rate = copying.rate(met, seconds=10)
        assert 0.9 * (10 << 20) < rate < 1.1 * (10 << 20)


def test_what_was_not_used_is_saved_for_a_short_time_only() -> None:
    copying = Copying()
    copying.pace.ceiling = 10 << 20
    copying.rate(met=False, seconds=1)
    copying.now += 60.0
    since, count = copying.now, 0
    while copying.pace.may_begin(0):
        copying.pace.spend(CHUNK)
        count += 1
    assert copying.now == since
    assert count * CHUNK <= BURST_S * (10 << 20) + CHUNK
