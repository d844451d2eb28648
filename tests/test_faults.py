"""Disks that are full, links that break, peers that stall: clear messages, nothing lost, nothing hangs."""

import contextlib
import errno
import os
import random
import signal
import tempfile
import time

import pytest

from hotpair.cluster import record_io
from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import MirrorError
from tests.faults import (
    WAIT_S,
    Load,
    bounded,
    end_on_mount,
    equal_after_stop,
    healthy,
    log_of,
    logged,
    on_mount,
    pair_with_link,
    said,
    small_disk,
    start_on_mount,
    status,
    stop_process,
    wait_until,
    write_file,
)
from tests.mirror_pair import MirrorPair, mounts_below

pytestmark = pytest.mark.timeout(120)

SEED = int(os.environ.get("HOTPAIR_TORTURE_SEED", "1"))

FILL = """
    import errno
    descriptor = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
    total, outcome = 0, "all"
    try:
        while total < int(sys.argv[2]) << 20:
            total += os.pwrite(descriptor, os.urandom(1 << 20), total)
    except OSError as error:
        outcome = errno.errorcode[error.errno]
    print(total, outcome)
"""
FAIL = """
    import errno
    try:
        {}
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def fill(pair: MirrorPair, name: str, megabytes: int) -> tuple[int, str]:
    """Write random bytes from a child; how many were taken, and the error or "all"."""
    total, outcome = on_mount(pair, FILL, name, megabytes).split()
    return int(total), outcome


# ---- disks


def test_target_disk_full() -> None:
    """The source goes on alone, because the target says that it is outdated; twice the same is enough of trying."""
    with MirrorPair() as pair, small_disk(pair.base, 40) as data:
        pair.target_dir = data
        pair.start()
        assert fill(pair, "file", 64) == (64 << 20, "all")
        said(pair.source, "No space left on device")
        said(pair.target, "failed: operation")
        assert int(on_mount(pair, "print(os.stat('file').st_size)")) == 64 << 20
        healthy(pair)
        record = record_io.load(f"{pair.target_state}/record")
        assert record is not None and (record.outdated or record.inconsistent), record
        assert "No space left" in status(pair.source_state)["reason"]
        assert pair.source is not None and pair.target is not None
        said(pair.target, "failed: operation", 2)
        time.sleep(8)  # longer than it waits between two tries: there is no third
        assert sum("failed: operation" in line for line in pair.target.said) == 2
        healthy(pair)
        pair.stop()


def test_source_disk_full() -> None:
    """The writer gets ENOSPC; both copies stay equal, to the byte that was still taken."""
    with MirrorPair() as pair, small_disk(pair.base, 40) as data:
        pair.source_dir = pair.mount = data
        pair.start()
        for name in ("one", "two"):
            total, outcome = fill(pair, name, 64)
            assert outcome == "ENOSPC" and total < 64 << 20
        code = FAIL.format("os.posix_fallocate(os.open('three', os.O_RDWR | os.O_CREAT), 0, 8 << 20)")
        assert on_mount(pair, code).split() == ["ENOSPC"]
        on_mount(pair, "os.unlink('one')")
        assert fill(pair, "four", 4) == (4 << 20, "all")
        assert not pair.troubles()
        healthy(pair)
        equal_after_stop(pair)


def test_source_full_of_names() -> None:
    """No inode left: the error is answered, and nothing of the failed operation is on either copy."""
    with MirrorPair() as pair, small_disk(pair.base, 8) as data:
        pair.source_dir = pair.mount = data
        pair.start()
        assert on_mount(pair, FAIL.format("for n in range(100_000): os.mkdir(str(n))")).split() == ["ENOSPC"]
        assert not pair.troubles()
        healthy(pair)
        equal_after_stop(pair)


def test_state_disk_full() -> None:
    """The dirty log cannot grow: everything counts as dirty, and the writer goes on."""
    with (
        # More hot extents than are written to: an eviction waits for the disks below both copies
        MirrorPair(source_arguments=["--extent-size", "64k", "--hot-extents", "32768"]) as pair,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="hotpair-test-") as memory,  # for hundreds of flushes
        small_disk(memory, 12) as data,
    ):
        pair.source_state = data
        pair.start()
        with open(f"{data}/ballast", "wb") as ballast, contextlib.suppress(OSError):
            while True:
                ballast.write(bytes(65536))
                ballast.flush()
        # 24,000 marks of 48 bytes are more than was set aside
        on_mount(
            pair,
            """
            from concurrent.futures import ThreadPoolExecutor
            f = os.open('sparse', os.O_RDWR | os.O_CREAT)
            with ThreadPoolExecutor(64) as pool:
                list(pool.map(lambda n: os.pwrite(f, b'x', n << 17), range(24_000)))
            """,
            timeout_s=100,
        )
        logged(pair.source, "dirty-log", "No space left on device")
        healthy(pair)
        os.unlink(f"{data}/ballast")
        equal_after_stop(pair)


# ---- a target that stalls


def test_stalled_target_is_left_and_comes_back() -> None:
    with MirrorPair(source_arguments=["--stall-timeout", "2", "--alone-after", "1"]) as pair:
        pair.start()
        load = Load(pair)
        load.goes_on()
        assert pair.source is not None and pair.target is not None
        stop_process(pair.target)
        stopped_at = time.monotonic()
        said(pair.source, "link lost: no progress on outstanding operations for 2 s")
        said(pair.source, "state FROZEN")
        said(pair.source, "state ALONE")
        assert 2 <= time.monotonic() - stopped_at < 10
        load.goes_on(200)
        bounded(pair.source)
        pair.target.signal(signal.SIGCONT)
        said(pair.source, "in sync", 2)
        load.goes_on()
        load.stop()
        healthy(pair)
        load.check()


def test_stall_without_load_is_noticed() -> None:
    with MirrorPair(source_arguments=["--stall-timeout", "1"]) as pair:
        pair.start()
        assert pair.source is not None and pair.target is not None
        stop_process(pair.target)
        said(pair.source, "link lost: nothing heard from the peer for 1 s")
        pair.target.signal(signal.SIGCONT)
        wait_until(lambda: status(pair.source_state)["in_sync"], "in sync again")
        equal_after_stop(pair)


def test_short_stall_is_none() -> None:
    """Shorter than the limit: nobody says anything, and nothing is lost."""
    with MirrorPair() as pair:
        pair.start()
        load = Load(pair)
        load.goes_on()
        assert pair.target is not None
        stop_process(pair.target)
        time.sleep(1)
        pair.target.signal(signal.SIGCONT)
        load.goes_on()
        load.stop()
        assert not pair.troubles()
        load.check()


# ---- a link that breaks


@pytest.mark.parametrize("way", ["to_target", "to_source"])
def test_link_cut_in_a_frame_resumes(way: str) -> None:
    """Cut at any byte, let through again: the session goes on, and nothing is copied."""
    draw = random.Random(f"{SEED} {way}")
    with pair_with_link() as (pair, link):
        load = Load(pair)
        for number in range(1, 13):
            load.goes_on(draw.randrange(1, 60))
            link.cut_after(way, int(10 ** draw.uniform(0, 5 if way == "to_target" else 2.5)))
            assert link.cut_happened.wait(WAIT_S)
            load.goes_on(20)
            assert pair.source is not None
            assert log_of(pair.source).count("resuming the session") == number
        load.stop()
        assert pair.source is not None
        assert pair.source.said.count("state REINTEGRATING") == 1, "copied although nothing was lost"
        healthy(pair)
        load.check()


def test_link_lost_before_the_resumption_is_heard() -> None:
    """The link breaks again while the session is being resumed, before and in the middle of the welcome."""
    with pair_with_link() as (pair, link):
        load = Load(pair)
        for bytes_let_through in (1, 4, 30, 100, 150):
            load.goes_on(20)
            link.cut()
            link.cut_after("to_source", bytes_let_through)
            assert link.cut_happened.wait(WAIT_S)
        load.goes_on(20)
        load.stop()
        assert pair.source is not None
        assert pair.source.said.count("state REINTEGRATING") == 1
        healthy(pair)
        load.check()


def test_verdict_go_alone() -> None:
    with pair_with_link() as (pair, link):
        load = Load(pair)
        load.goes_on()
        with ControlClient(pair.source_state) as control:
            with pytest.raises(MirrorError, match="nothing waits for a verdict"):
                control.ask("go_alone")
            link.cut(refuse=True)
            said(pair.source, "state FROZEN")
            assert not load.writer.wait_acknowledged(1000, 1), "acknowledged while frozen"
            answer = control.ask("status")
            assert answer["state"] == "FROZEN" and answer["held"] + answer["in_flight"] > 0
            control.ask("go_alone")
        said(pair.source, "state ALONE")
        load.goes_on()
        link.allow()
        said(pair.source, "in sync", 2)
        load.goes_on()
        load.stop()
        healthy(pair)
        load.check()


def test_verdict_stop() -> None:
    """Whoever waits gets an error at once, the source ends, and nothing stays mounted."""
    with pair_with_link() as (pair, link):
        load = Load(pair)
        load.goes_on()
        link.cut(refuse=True)
        said(pair.source, "state FROZEN")
        with ControlClient(pair.source_state) as control:
            control.ask("stop")
        assert load.writer.wait_end(5) == 1, "the writer hangs"
        load.writer.close()
        load.ledger.read()
        # Of an aborted connection the kernel answers ECONNABORTED itself, and ENOTCONN from then on
        allowed = {f"errno {number}" for number in (errno.EIO, errno.ECONNABORTED, errno.ENOTCONN)}
        assert load.ledger.errors and all(line.rpartition(": ")[2] in allowed for line in load.ledger.errors)
        load.ledger.errors.clear()
        source, pair.source = pair.source, None
        assert source is not None
        assert source.wait_end(WAIT_S) is not None
        assert "Traceback" not in log_of(source)
        source.close()
        assert not mounts_below(pair.mount)
        assert load.ledger.check(pair.target_dir) == []
        pair.stop_target()


def test_stop_is_answered_while_a_target_stalls() -> None:
    """A clean stop does not wait for ever for a target that does not answer."""
    with MirrorPair(source_arguments=["--stall-timeout", "2"]) as pair:
        pair.start()
        write_file(pair, "file", "b'x' * 100_000")
        assert pair.source is not None and pair.target is not None
        stop_process(pair.target)
        pair.stop_source()
        pair.target.signal(signal.SIGCONT)
        pair.start_source()
        equal_after_stop(pair)


def test_stop_takes_the_mount_from_who_holds_a_file() -> None:
    """A clean stop with an open file: what was written is on both copies, the holder gets an error, nothing hangs."""
    hold = """
        descriptor = os.open('file', os.O_RDWR | os.O_CREAT, 0o600)
        os.write(descriptor, b"written")
        print("written", flush=True)
        sys.stdin.read()
        try:
            os.fsync(descriptor)
        except OSError as error:
            print(error.errno, flush=True)
            os._exit(0)
    """
    with MirrorPair() as pair:
        pair.start()
        holder = start_on_mount(pair, hold)
        assert holder.stdout is not None and holder.stdout.readline() == b"written\n"
        pair.stop_source()
        assert int(end_on_mount(pair, holder)) in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)
        wait_until(lambda: not os.path.exists(f"{pair.source_state}/keeper.sock"), "the keeper ends")
        pair.start_source()
        equal_after_stop(pair)
        with open(f"{pair.target_dir}/file", "rb") as file:
            assert file.read() == b"written"


def test_no_verdict_comes_and_the_mount_fails() -> None:
    """As when the supervisor has died: who waits gets an error, nothing more is acknowledged, nothing stays mounted."""
    with pair_with_link(source=["--fence-after", "1.5"]) as (pair, link):
        load = Load(pair)
        load.goes_on()
        link.cut()
        said(pair.source, "in sync", 2)  # a short break is none
        load.goes_on()
        link.cut(refuse=True)
        said(pair.source, "state FROZEN", 2)
        assert load.writer.wait_end(10) == 1, "the writer hangs"
        load.writer.close()
        load.ledger.read()
        assert load.ledger.errors
        load.ledger.errors.clear()
        source, pair.source = pair.source, None
        assert source is not None
        said(source, "fenced")
        said(source, "state STOPPED")
        assert source.wait_end(0.5) is None, "it says so until it is told to end"
        source.signal(signal.SIGTERM)
        assert source.wait_end(WAIT_S) == 0
        assert "Traceback" not in log_of(source)
        source.close()
        assert not mounts_below(pair.mount)
        assert load.ledger.check(pair.target_dir) == []
        pair.stop_target()
