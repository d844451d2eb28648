"""Verify on real processes: no false alarm under load, every kind of damage found, content repaired when asked."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import MirrorError
from hotpair.replication.limits import CHUNK
from tests.faults import said, wait_until
from tests.mirror_pair import MirrorPair

ROUNDS = 12  # over a small tree, under load
TIMEOUT_S = 60.0

# Everything that a VM's disks do and more, as fast as it can, until its input ends: writes of all sizes, truncate,
# holes, renames, new and removed objects, modes, attributes.
WRITER = """
import ctypes, os, random, select, sys
os.chdir(sys.argv[1])
random.seed(int(sys.argv[2]))
libc = ctypes.CDLL(None, use_errno=True)
def write(f):
    with open(f, "r+b", 0) as file:
        for _ in range(20):
            os.pwrite(file.fileno(), os.urandom(random.choice((1, 512, 4096, 70000))), random.randrange(1_500_000))
def punch(f):
    with open(f, "r+b", 0) as file:
        libc.fallocate(file.fileno(), 3, ctypes.c_long(random.randrange(1_000_000)), ctypes.c_long(300_000))
def names(f):
    for number in range(5):
        path = f"d{random.randrange(3)}/new{random.randrange(9)}"
        open(path, "w").write(path * random.randrange(2000))
        os.rename(path, f"d{random.randrange(3)}/moved{random.randrange(9)}")
        with open(f"d0/short{number}", "w") as file:
            file.write("x")
        os.unlink(f"d0/short{number}")
def tree(f):
    try:
        os.makedirs("d1/t/u")
        os.rename("d1/t", "d2/t")
        os.rmdir("d2/t/u")
        os.rmdir("d2/t")
    except OSError:
        pass
changes = [
    write, write, write, punch, names, tree,
    lambda f: os.truncate(f, random.randrange(1_500_000)),
    lambda f: os.chmod(f, random.choice((0o600, 0o640, 0o777))),
    lambda f: os.setxattr(f, "user.number", str(random.random()).encode()),
    lambda f: os.utime(f),
]
for number in range(3):
    os.makedirs(f"d{number}", exist_ok=True)
    open(f"file{number}", "ab")
print("begun", flush=True)
while not select.select([0], [], [], 0)[0]:
    random.choice(changes)(f"file{random.randrange(3)}")
"""


class Verified:
    """A pair with something in it, and its control socket."""

    def __init__(self, pair: MirrorPair) -> None:
        self.pair = pair
        self.control = ControlClient(pair.source_state)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.control.ask("status")["verify"]
        return found

    def wait(self) -> dict[str, Any]:
        """The result of the run that is under way."""
        return self.until(lambda status: not status["running"])

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition(status := self.status()):
            assert time.monotonic() < deadline, status
            time.sleep(0.005)
        return status

    def run(self, repair: bool = False) -> dict[str, Any]:
        self.control.ask("verify_start", repair=repair)
        return self.wait()

    def found(self, repair: bool = False) -> list[tuple[str, str, int | None, int | None]]:
        """The differences of one run: path, what, offset, length."""
        status = self.run(repair)
        return [(one["path"], one["what"], one["offset"], one["length"]) for one in status["differences"]]


BIG = 3 * CHUNK + 1000


@pytest.fixture
def verified() -> Iterator[Verified]:
    with MirrorPair() as pair:
        pair.start()
        os.makedirs(f"{pair.mount}/disks/below")
        for name in ("disks/a", "disks/below/b", "top"):
            with open(f"{pair.mount}/{name}", "wb") as file:
                file.write(os.urandom(BIG))
        with open(f"{pair.mount}/sparse", "wb") as file:
            file.truncate(40 * CHUNK)
            file.seek(20 * CHUNK)
            file.write(b"data")
        open(f"{pair.mount}/empty", "wb").close()
        os.symlink("nowhere", f"{pair.mount}/link")
        os.mkfifo(f"{pair.mount}/fifo")
        os.link(f"{pair.mount}/top", f"{pair.mount}/disks/second name")
        os.setxattr(f"{pair.mount}/disks/a", b"user.colour", b"blue")
        yield Verified(pair)


def change_behind(path: str, offset: int) -> None:
    """Flip one byte, as a broken disk would: the file keeps its size and times."""
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def finish(verified: Verified) -> None:
    """The pair is as it was: in sync, nobody complains, and the copies are equal by an independent comparison."""
    assert verified.control.ask("status")["in_sync"]
    assert verified.pair.troubles() == []
    verified.pair.stop()
    assert verified.pair.compare() == []


def test_equal_copies(verified: Verified) -> None:
    status = verified.run()
    assert (status["result"], status["differences"], status["difference_count"]) == ("no difference", [], 0)
    assert status["bytes_done"] == status["bytes_total"] == 3 * BIG + 40 * CHUNK
    assert status["files_done"] == 4
    said(verified.pair.source, "verify: no difference")
    finish(verified)


def test_never_a_false_report_under_load(verified: Verified) -> None:
    command = [sys.executable, "-c", WRITER, verified.pair.mount]
    writers = [
        subprocess.Popen(
            [*command, str(seed)],
            env=verified.pair.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        for seed in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == b"begun\n"
    for number in range(ROUNDS):
        status = verified.run(repair=bool(number % 2))
        assert (status["result"], status["differences"]) == ("no difference", []), number
    for writer in writers:
        writer.communicate(timeout=30)
    finish(verified)


@pytest.mark.parametrize("offset", [0, CHUNK - 1, CHUNK, BIG - 1])
def test_a_flipped_byte_is_found_and_repaired(verified: Verified, offset: int) -> None:
    change_behind(f"{verified.pair.target_dir}/disks/below/b", offset)
    start = offset - offset % CHUNK
    expected = [("disks/below/b", "content", start, min(CHUNK, BIG - start))]
    assert verified.found() == expected
    assert verified.status()["result"] == "differences found"
    assert verified.found() == expected, "it was not to be repaired"
    status = verified.run(repair=True)
    assert [one["repaired"] for one in status["differences"]] == [True]
    assert status["repaired"] == 1
    assert verified.run()["result"] == "no difference"
    finish(verified)


def test_a_repair_is_right_while_the_file_is_written(verified: Verified) -> None:
    target = f"{verified.pair.target_dir}/disks/a"
    with open(f"{verified.pair.mount}/disks/a", "r+b", 0) as file:
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                for start in range(0, BIG, CHUNK):
                    os.pwrite(file.fileno(), os.urandom(100), start + 5000)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for offset in range(0, BIG, CHUNK):
                change_behind(target, offset + 50_000 if offset + 50_000 < BIG else offset)
            status = verified.run(repair=True)
        finally:
            stop.set()
            thread.join()
    assert status["difference_count"] == status["repaired"] == 4
    assert verified.run()["result"] == "no difference"
    finish(verified)


def test_data_in_a_hole_is_found_and_repaired(verified: Verified) -> None:
    with open(f"{verified.pair.target_dir}/sparse", "r+b") as file:
        file.seek(7 * CHUNK + 5)
        file.write(b"!")
    assert verified.found(repair=True) == [("sparse", "content", 7 * CHUNK, CHUNK)]
    assert verified.run()["result"] == "no difference"


OBJECT_DAMAGES: dict[str, tuple[Callable[[str], object], tuple[str, str], bool]] = {
    "surplus file": (
        lambda target: open(f"{target}/disks/surplus", "w").close(),
        ("disks/surplus", "surplus on the target"),
        False,
    ),
    "surplus directory": (
        lambda target: os.mkdir(f"{target}/surplus"),
        ("surplus", "surplus on the target"),
        False,
    ),
    "missing file": (
        lambda target: os.unlink(f"{target}/disks/below/b"),
        ("disks/below/b", "missing on the target"),
        False,
    ),
    "missing link": (lambda target: os.unlink(f"{target}/link"), ("link", "missing on the target"), False),
    "another file": (
        lambda target: (os.unlink(f"{target}/empty"), open(f"{target}/empty", "w").close()),
        ("empty", "another object on the target"),
        False,
    ),
    "mode": (lambda target: os.chmod(f"{target}/disks/a", 0o777), ("disks/a", "mode"), True),
    "mode of the root": (lambda target: os.chmod(target, 0o777), (".", "mode"), True),
    "owner": (lambda target: os.chown(f"{target}/disks/below", 7, 8), ("disks/below", "owner"), True),
    "owner of a link": (lambda target: os.lchown(f"{target}/link", 7, 8), ("link", "owner"), False),
    "attribute": (
        lambda target: os.setxattr(f"{target}/disks/a", b"user.colour", b"red"),
        ("disks/a", "extended attributes"),
        True,
    ),
    "surplus attribute": (
        lambda target: os.setxattr(f"{target}/empty", b"user.colour", b"red"),
        ("empty", "extended attributes"),
        True,
    ),
    "size of an empty file": (lambda target: os.truncate(f"{target}/empty", 10), ("empty", "size"), True),
}


@pytest.mark.parametrize("damage", OBJECT_DAMAGES)
def test_objects_that_differ(verified: Verified, damage: str) -> None:
    act, (path, what), repairable = OBJECT_DAMAGES[damage]
    act(verified.pair.target_dir)
    expected = [(path, what, None, None)]
    assert verified.found() == expected
    status = verified.run(repair=True)
    assert [one["repaired"] for one in status["differences"]] == [repairable]
    assert verified.found() == ([] if repairable else expected)
    assert verified.control.ask("status")["in_sync"]
    assert verified.pair.troubles() == []


def test_a_file_that_was_cut_off_is_repaired(verified: Verified) -> None:
    os.truncate(f"{verified.pair.target_dir}/top", CHUNK + 10)
    status = verified.run(repair=True)
    found = {(one["path"], one["what"], one["offset"]) for one in status["differences"]}
    assert {path for path, _, _ in found} <= {"top", "disks/second name"}
    assert {what for _, what, _ in found} == {"size", "content"}
    assert status["repaired"] == status["difference_count"]
    assert verified.run()["result"] == "no difference"
    finish(verified)


def test_names_are_repaired_by_a_target_that_begins_anew(verified: Verified) -> None:
    """As the documentation says."""
    os.unlink(f"{verified.pair.target_dir}/disks/below/b")
    os.mkdir(f"{verified.pair.target_dir}/surplus")
    assert len(verified.found()) == 2
    verified.pair.stop_target()
    for name in os.listdir(verified.pair.target_state):
        os.unlink(f"{verified.pair.target_state}/{name}")
    verified.pair.target_arguments = ["--overwrite"]
    verified.pair.start_target()
    wait_until(lambda: verified.control.ask("status")["in_sync"], "in sync", TIMEOUT_S)
    assert verified.found() == []
    verified.pair.stop()
    assert verified.pair.compare() == []


def test_many_differences_are_counted(verified: Verified) -> None:
    for number in range(150):
        open(f"{verified.pair.target_dir}/surplus{number}", "w").close()
    status = verified.run()
    assert (status["difference_count"], len(status["differences"])) == (150, 100)


def slowly(verified: Verified) -> dict[str, Any]:
    """A run that takes several seconds."""
    verified.control.ask("set_ceiling", bytes_per_second=2 << 20)
    verified.control.ask("verify_start")
    return verified.until(lambda status: status["bytes_done"] > 0)


def test_stopped_and_started_again(verified: Verified) -> None:
    began = time.monotonic()
    assert slowly(verified)["running"]
    with pytest.raises(MirrorError, match="under way"):
        verified.control.ask("verify_start")
    verified.control.ask("verify_stop")
    status = verified.status()
    assert (status["running"], status["result"]) == (False, "stopped")
    assert status["bytes_done"] <= 2 * (2 << 20) * (time.monotonic() - began) + (1 << 20)
    verified.control.ask("verify_stop")  # nothing to stop is no error
    verified.control.ask("set_ceiling", bytes_per_second=0)
    for _ in range(3):
        assert verified.run()["result"] == "no difference"
    finish(verified)


def test_the_link_is_lost_in_the_middle(verified: Verified) -> None:
    slowly(verified)
    verified.pair.kill_target()
    status = verified.wait()
    assert status["result"].startswith("link lost")
    with pytest.raises(MirrorError, match="in sync"):
        verified.control.ask("verify_start")
    verified.control.ask("set_ceiling", bytes_per_second=0)
    verified.pair.start_target()
    wait_until(lambda: verified.control.ask("status")["in_sync"], "in sync", TIMEOUT_S)
    assert verified.run()["result"] == "no difference"
    verified.pair.stop()
    assert verified.pair.compare() == []


def test_the_mirror_is_stopped_in_the_middle(verified: Verified) -> None:
    slowly(verified)
    verified.pair.stop()
    assert verified.pair.compare() == []
