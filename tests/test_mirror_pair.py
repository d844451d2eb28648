"""The fixture itself: it starts, stops, and leaves nothing behind, even of a frozen mount or a killed test."""

import importlib.util
import os
import secrets
import subprocess
import sys
import time

import pytest

from tests.mirror_pair import MARK, MirrorPair, ReservedPort, mounts_below, processes_marked
from tests.programs import wait_for_end

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

needs_mirror = pytest.mark.skipif(
    importlib.util.find_spec("hotpair.replication.__main__") is None, reason="hotpair.replication has no __main__ yet"
)

HOLDER = """
import subprocess, sys, time
from tests.mirror_pair import MirrorPair
pair = MirrorPair()
pair.start()
print(pair.mark, pair.base, flush=True)
sys.stdin.read()
"""


def start_writer(pair: MirrorPair) -> "subprocess.Popen[bytes]":
    """A process that writes one file on the mount, and ends."""
    script = "import sys; open(sys.argv[1], 'wb').write(b'x' * 100_000)"
    command = [sys.executable, "-c", script, f"{pair.mount}/file"]
    return subprocess.Popen(command, env=pair.environment(), stderr=subprocess.DEVNULL)


@needs_mirror
def test_start_write_stop_compare() -> None:
    with MirrorPair() as pair:
        pair.start()
        assert mounts_below(pair.mount)
        writer = start_writer(pair)
        assert wait_for_end(writer, 30) and writer.wait() == 0
        pair.stop()
        assert pair.compare() == []
        with open(f"{pair.target_dir}/file", "r+b") as file:
            file.write(b"y")
        assert any("content" in line for line in pair.compare(times_of="none"))
        base = pair.base
    assert not os.path.exists(base)


@needs_mirror
@pytest.mark.timeout(120)
def test_frozen_mount_does_not_hang_the_clean_up() -> None:
    """Without a verdict a lost target freezes the writer; the fixture must get rid of all of it."""
    with MirrorPair() as pair:
        pair.start()
        pair.kill_target()
        writer = start_writer(pair)
        assert not wait_for_end(writer, 2), "a write was answered although the target is lost"
        base, mark = pair.base, pair.mark
    assert wait_for_end(writer, 10)
    writer.wait()
    assert not os.path.exists(base) and not mounts_below(base) and not processes_marked(mark)


@needs_mirror
@pytest.mark.timeout(120)
def test_killed_test_leaves_nothing_behind() -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None and holder.stdout is not None
    mark, base = holder.stdout.readline().decode().split()
    assert processes_marked(mark) and mounts_below(base)
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    deadline = time.monotonic() + 30
    while os.path.exists(base):  # removed last; no event tells of another process's janitor
        assert time.monotonic() < deadline, (processes_marked(mark), mounts_below(base))
        time.sleep(0.05)
    assert not processes_marked(mark) and not mounts_below(base)


def test_ports_are_not_given_twice() -> None:
    ports = [ReservedPort() for _ in range(50)]
    assert len({port.number for port in ports}) == 50
    for port in ports:
        port.close()


def test_marked_processes_are_found_by_their_mark() -> None:
    mark = secrets.token_hex(8)
    pipe = subprocess.PIPE
    with subprocess.Popen(["cat"], env={**os.environ, MARK: mark}, stdin=pipe, stdout=pipe, bufsize=0) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(b"x")
        assert child.stdout.read(1) == b"x"  # it has its environment, which it gets after it has begun
        assert processes_marked(mark) == [child.pid]
        child.stdin.close()
    assert processes_marked(mark) == []
