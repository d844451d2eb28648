"""Real processes: a reintegration that is interrupted sends only the rest the next time, and a take-over the logs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hotpair.cluster import record_io
from hotpair.replication.control_client import ControlClient
from hotpair.replication.own_attributes_io import WHOLE
from tests.faults import Link, equal_after_stop, healthy, on_mount, pair_with_link, said, status, wait_until
from tests.mirror_pair import MirrorPair

EXTENT = 64 << 10
EXTENTS = 1000
SIZE = EXTENTS * EXTENT
RATE = 12 << 20  # bytes per second: several flushes before the half of it is copied
SLOW = 1 << 20  # while a flush is waited for, which takes long on a busy disk
LISTINGS = 1 << 20  # bytes: more than all that is sent beside the content


@pytest.fixture
def linked() -> Iterator[tuple[MirrorPair, Link]]:
    with pair_with_link(source=["--alone-after", "0.5", "--extent-size", str(EXTENT)]) as (pair, link):
        yield pair, link


def set_ceiling(pair: MirrorPair, bytes_per_second: int) -> None:
    with ControlClient(pair.source_state) as control:
        control.ask("set_ceiling", bytes_per_second=bytes_per_second)


def sent(pair: MirrorPair) -> int:
    count = status(pair.source_state)["sent_bytes"]
    assert isinstance(count, int)
    return count


def complete_files(pair: MirrorPair) -> int:
    """How many of the target's files are on record as being complete."""
    with os.scandir(pair.target_dir) as entries:
        files = [entry.path for entry in entries if entry.is_file()]
    return sum(f"trusted.hotpair.{WHOLE.decode()}" not in os.listxattr(path) for path in files)


def write_all_extents(pair: MirrorPair) -> None:
    """A whole file of random bytes, over what there was."""
    on_mount(
        pair,
        """
        fd = os.open("disk", os.O_WRONLY | os.O_CREAT, 0o600)
        for start in range(0, int(sys.argv[1]), 1 << 20):
            os.pwrite(fd, os.urandom(min(1 << 20, int(sys.argv[1]) - start)), start)
        """,
        SIZE,
    )


def alone_with_all_extents_marked(pair: MirrorPair, link: Link) -> None:
    write_all_extents(pair)
    link.cut(refuse=True)
    said(pair.source, "state ALONE")
    write_all_extents(pair)
    assert status(pair.source_state)["dirty_extents"] >= EXTENTS
    set_ceiling(pair, RATE)


def half_reintegrated(pair: MirrorPair, link: Link) -> None:
    alone_with_all_extents_marked(pair, link)
    before = sent(pair)
    link.allow()
    wait_until(lambda: sent(pair) - before > SIZE // 2, "half is sent", 60)
    set_ceiling(pair, SLOW)
    wait_until(lambda: status(pair.source_state)["dirty_extents"] < EXTENTS * 7 // 8, "what was sent is flushed", 60)


def reintegrated(pair: MirrorPair, before: int, least: int, most: int) -> None:
    """To the end, with so many bytes."""
    set_ceiling(pair, 0)
    wait_until(lambda: status(pair.source_state)["in_sync"], "in sync")
    count = sent(pair) - before
    assert least <= count <= most, f"{count:,} bytes were sent of {SIZE:,}"
    wait_until(lambda: status(pair.source_state)["dirty_extents"] == 0, "no mark is left")
    healthy(pair)
    equal_after_stop(pair)


@pytest.mark.timeout(120)
def test_link_cut_at_half(linked: tuple[MirrorPair, Link]) -> None:
    pair, link = linked
    alone_with_all_extents_marked(pair, link)
    link.cut_after("to_target", SIZE // 2)
    link.allow()
    assert link.cut_happened.wait(60)
    before = sent(pair)
    reintegrated(pair, before, SIZE // 3, SIZE * 11 // 12)


@pytest.mark.timeout(120)
def test_target_killed_at_half(linked: tuple[MirrorPair, Link]) -> None:
    pair, link = linked
    half_reintegrated(pair, link)
    pair.kill_target()
    wait_until(lambda: not status(pair.source_state)["linked"], "the link is lost")
    before = sent(pair)
    pair.start_target()
    reintegrated(pair, before, SIZE // 3, SIZE * 11 // 12)


@pytest.mark.timeout(120)
def test_source_killed_at_half(linked: tuple[MirrorPair, Link]) -> None:
    """What the log on disk says is what counts."""
    pair, link = linked
    half_reintegrated(pair, link)
    pair.kill_source()
    pair.abort()
    pair.start_source()
    reintegrated(pair, 0, SIZE // 3, SIZE * 11 // 12)


@pytest.mark.timeout(120)
def test_first_filling_cut_at_half() -> None:
    """All of a new target is compared again; files that it has are not sent again."""
    with MirrorPair(source_arguments=["--alone-after", "0.5"]) as pair:
        pair.start_source()
        count = 40
        on_mount(pair, "for n in range(40): open(f'file{n}', 'wb').write(os.urandom(int(sys.argv[1])))", SIZE // count)
        set_ceiling(pair, RATE)
        pair.start_target()
        wait_until(lambda: sent(pair) > SIZE // 2, "half is sent", 60)
        set_ceiling(pair, SLOW)
        wait_until(lambda: complete_files(pair) > count // 8, "what was sent is flushed", 60)
        pair.kill_target()
        wait_until(lambda: not status(pair.source_state)["linked"], "the link is lost")
        before = sent(pair)
        pair.start_target()
        reintegrated(pair, before, SIZE // 3, SIZE * 11 // 12)


# --- an unplanned take-over -------------------------------------------------------------------------------------------


def write_extents(pair: MirrorPair, first: int) -> None:
    """Change one byte in each of eight extents."""
    code = "fd = os.open('disk', os.O_WRONLY); [os.pwrite(fd, os.urandom(1), (int(sys.argv[1]) + n) << 20)"
    on_mount(pair, f"{code} for n in range(8)]", first)


def take_over(pair: MirrorPair, *, killed: bool) -> None:
    """The source is killed; the target becomes source at once and goes on alone."""
    pair.kill_source()
    pair.abort()
    if killed:
        pair.kill_target()
    else:
        pair.stop_target()
    pair.source_dir, pair.target_dir = pair.target_dir, pair.source_dir
    pair.source_state, pair.target_state = pair.target_state, pair.source_state
    pair.mount = pair.source_dir
    pair.source_arguments += ["--alone-after", "0"]
    pair.start_source()
    said(pair.source, "state ALONE")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("killed", [False, True], ids=["target stopped", "target killed"])
def test_take_over_and_back_copies_the_union_of_both_logs(killed: bool) -> None:
    """Each time the former source comes back as target, with changes of its own that nobody else has logged."""
    with MirrorPair(source_arguments=["--extent-size", str(EXTENT)]) as pair:
        pair.start()
        write_all_extents(pair)
        pair.stop()  # nothing is marked from here on
        pair.start()
        for _ in range(3):
            write_extents(pair, 0)
            take_over(pair, killed=killed)
            write_extents(pair, 20)
            former = record_io.load(f"{pair.target_state}/record")
            assert former is not None and former.last_role == "PRIM"
            assert os.path.exists(f"{pair.target_state}/dirty-log")
            set_ceiling(pair, 4 * EXTENT)
            before = sent(pair)
            pair.start_target()
            wait_until(lambda: status(pair.source_state)["reintegration"], "reintegration begins")
            assert status(pair.source_state)["reintegration"]["full"] is False
            set_ceiling(pair, 0)
            wait_until(lambda: status(pair.source_state)["in_sync"], "in sync")
            assert 16 * EXTENT <= sent(pair) - before <= 16 * EXTENT + LISTINGS
            healthy(pair)
        equal_after_stop(pair)
