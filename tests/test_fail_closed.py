"""Protected directories under real mirror processes: without a mirror the VM finds nothing to write to.

Whatever is killed, the named directories hold nothing, the data is beside them, and the roles can change.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hotpair.replication.control_client import ControlClient
from hotpair.replication.protect_io import protect, unprotect
from tests.faults import on_mount, said
from tests.mirror_pair import MirrorPair, compare_copies, end_process, mounts_below, processes_marked

TIMEOUT_S = 30.0

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def beside(directory: str) -> str:
    parent, name = os.path.split(directory)
    return f"{parent}/.{name}.hotpair"


@pytest.fixture
def pair() -> Iterator[MirrorPair]:
    with MirrorPair() as made:
        with open(f"{made.source_dir}/old", "wb") as file:
            file.write(b"there before")
        for directory in (made.source_dir, made.target_dir):
            protect(directory)
        yield made


def closed(directory: str) -> None:
    """Nothing is mounted, nothing is there, and root can make nothing."""
    assert mounts_below(directory) == []
    assert os.listdir(directory) == []
    for make in (os.mkdir, lambda path: os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)):
        with pytest.raises(PermissionError):
            make(f"{directory}/probe")


def read_only(directory: str) -> None:
    """What a target shows."""
    assert len(mounts_below(directory)) == 1
    flags = os.statvfs(directory).f_flag
    assert flags & os.ST_RDONLY and flags & os.ST_NOSUID and flags & os.ST_NODEV
    with pytest.raises(OSError) as caught:
        os.mkdir(f"{directory}/probe")
    assert caught.value.errno == errno.EROFS


def write(pair: MirrorPair, name: str, text: str) -> None:
    on_mount(pair, f"with open({name!r}, 'w') as f: f.write({text!r}); f.flush(); os.fsync(f.fileno())")


def content(directory: str, name: str) -> str:
    with open(f"{directory}/{name}") as file:
        return file.read()


def change_roles(pair: MirrorPair) -> None:
    assert pair.source is None and pair.target is None
    pair.source_dir, pair.target_dir = pair.target_dir, pair.source_dir
    pair.source_state, pair.target_state = pair.target_state, pair.source_state
    pair.mount = pair.source_dir


def equal(pair: MirrorPair) -> None:
    assert compare_copies(beside(pair.source_dir), beside(pair.target_dir)) == []


def test_a_pair_of_protected_directories(pair: MirrorPair) -> None:
    closed(pair.source_dir)
    closed(pair.target_dir)
    pair.start()
    assert [kind for _, kind, _ in mounts_below(pair.source_dir)] == ["fuse.hotpair"]
    assert on_mount(pair, "print(open('old').read())") == "there before\n"
    write(pair, "new", "from the VM")
    read_only(pair.target_dir)
    assert content(pair.target_dir, "new") == "from the VM"
    pair.stop()
    closed(pair.source_dir)
    closed(pair.target_dir)
    equal(pair)
    for directory in (pair.source_dir, pair.target_dir):
        unprotect(directory)
        assert content(directory, "new") == "from the VM" and content(directory, "old") == "there before"
    pair.start()  # and as plain directories it goes on
    write(pair, "newer", "plain")
    assert mounts_below(pair.target_dir) == []
    pair.stop()
    assert pair.compare() == []


def test_one_protected_and_one_plain(pair: MirrorPair) -> None:
    unprotect(pair.target_dir)
    pair.start()
    write(pair, "new", "x")
    pair.stop()
    closed(pair.source_dir)
    assert compare_copies(beside(pair.source_dir), pair.target_dir) == []


def test_neither_command_disturbs_a_running_mirror(pair: MirrorPair) -> None:
    pair.start()
    for command in ("protect", "unprotect"):
        for directory in (pair.source_dir, pair.target_dir):
            code, error = run(pair, command, directory)
            assert code == 2 and "a mirror process uses it" in error, error
    write(pair, "new", "x")
    read_only(pair.target_dir)
    pair.stop()
    equal(pair)


def run(pair: MirrorPair, *arguments: str) -> tuple[int, str]:
    """One command with a directory; its code, and the one line of its error."""
    command = [sys.executable, "-P", "-m", "hotpair.replication", arguments[0], "--dir", *arguments[1:]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd="/", env=pair.environment(), check=False
    )
    assert done.stderr.count("\n") <= 1, done.stderr
    return done.returncode, done.stderr


def test_a_killed_target_leaves_no_way_to_write(pair: MirrorPair) -> None:
    pair.source_arguments += ["--alone-after", "0.5"]
    pair.start()
    write(pair, "new", "x")
    pair.kill_target()
    read_only(pair.target_dir)  # stale, but not writable
    write(pair, "later", "y")
    pair.start_target()  # replaces the stale one
    said(pair.source, "in sync", 2)
    read_only(pair.target_dir)
    assert content(pair.target_dir, "later") == "y"
    pair.stop()
    closed(pair.target_dir)
    equal(pair)


def test_a_killed_target_becomes_the_source(pair: MirrorPair) -> None:
    """Failover at its worst: both processes are killed; the target's server takes over with all that was written."""
    pair.start()
    write(pair, "new", "acknowledged")
    pair.kill_source()
    pair.kill_target()
    assert mounts_below(pair.target_dir)
    change_roles(pair)
    pair.source_arguments += ["--alone-after", "0.2"]
    pair.start_source()
    assert [kind for _, kind, _ in mounts_below(pair.source_dir)] == ["fuse.hotpair"]
    assert on_mount(pair, "print(open('new').read(), open('old').read())") == "acknowledged there before\n"
    write(pair, "after", "the failover")
    pair.start_target()  # the killed source: its mount, which nobody answers any more, makes room
    said(pair.source, "in sync")
    read_only(pair.target_dir)
    assert content(pair.target_dir, "after") == "the failover"
    pair.stop()
    closed(pair.source_dir)
    closed(pair.target_dir)
    equal(pair)


def test_handed_over_and_back(pair: MirrorPair) -> None:
    pair.start()
    for number in range(2):
        write(pair, f"round {number}", "x")
        with ControlClient(pair.source_state) as control:
            control.ask("handover")
        for process in (pair.source, pair.target):
            assert process is not None and process.wait_end(TIMEOUT_S) == 0
            process.close()
        pair.source = pair.target = None
        closed(pair.source_dir)
        closed(pair.target_dir)
        change_roles(pair)
        pair.start()
        read_only(pair.target_dir)
    assert sorted(on_mount(pair, "print(*sorted(os.listdir()), sep='\\n')").splitlines()) == [
        "old",
        "round 0",
        "round 1",
    ]
    pair.stop()
    equal(pair)


def test_a_killed_source_is_adopted_and_its_directory_stays_closed(pair: MirrorPair) -> None:
    pair.start()
    write(pair, "new", "x")
    pair.kill_source()
    code, error = run(pair, "unprotect", pair.source_dir)
    assert code == 2 and "a mirror process uses it, or the keeper" in error
    pair.start_source()
    write(pair, "newer", "y")
    pair.stop()
    closed(pair.source_dir)
    equal(pair)


def test_a_target_takes_no_mount_but_its_own(pair: MirrorPair) -> None:
    """Started in a killed source's state directory with the mount of another module as --dir, it changes nothing."""
    with MirrorPair() as other:
        protect(other.source_dir)
        other.start()
        pair.start()
        pair.kill_source()
        wrong = ["--state", pair.source_state, "--listen", "127.0.0.1:9"]
        code, error = run(pair, "target", other.source_dir, *wrong)
        assert code == 2 and "stop that one first" in error, error
        assert mounts_below(pair.source_dir)
        write(other, "still", "here")
        pair.start_source()
        assert pair.source is not None and "adopted the mount" in pair.source.said
        other.stop()
        assert compare_copies(beside(other.source_dir), other.target_dir) == []
        pair.stop()


def test_a_second_source_takes_no_mount_away(pair: MirrorPair) -> None:
    """With another state directory it cannot adopt the mount; the data is locked, so it is in use."""
    pair.start()
    code, error = run(pair, "source", pair.source_dir, "--state", f"{pair.base}/second", "--peer", "127.0.0.1:9")
    assert code == 2 and "stop that one first" in error, error
    write(pair, "still", "here")
    pair.stop()
    equal(pair)


def test_a_mount_whose_keeper_died_too_is_replaced(pair: MirrorPair) -> None:
    """Then nobody holds the data any more, and the mount only says that it is not connected."""
    pair.start()
    write(pair, "new", "x")
    pair.kill_source()
    kill_keeper(pair)
    assert mounts_below(pair.source_dir)
    pair.start_source()
    assert on_mount(pair, "print(open('new').read())") == "x\n"
    pair.stop()
    closed(pair.source_dir)
    equal(pair)


def test_unprotected_when_mirror_and_keeper_died(pair: MirrorPair) -> None:
    pair.start()
    write(pair, "new", "x")
    pair.kill_source()
    kill_keeper(pair)
    assert mounts_below(pair.source_dir)
    unprotect(pair.source_dir)
    assert content(pair.source_dir, "new") == "x" and mounts_below(pair.source_dir) == []


def kill_keeper(pair: MirrorPair) -> None:
    keepers = [number for number in processes_marked(pair.mark) if "keeper.py" in command_line(number)]
    assert len(keepers) == 1
    end_process(keepers[0], TIMEOUT_S)


def command_line(number: int) -> str:
    with open(f"/proc/{number}/cmdline", encoding="utf-8") as file:
        return file.read()


@pytest.mark.parametrize("role", ["source", "target"])
def test_the_data_of_another_module_is_not_taken(pair: MirrorPair, role: str) -> None:
    """The identity of the root counts for the sibling: a disk that is not mounted, or a wrong directory."""
    pair.start()
    pair.stop()
    directory = pair.source_dir if role == "source" else pair.target_dir
    os.rename(beside(directory), f"{directory}-right")
    os.mkdir(beside(directory))
    with pytest.raises(RuntimeError, match="its root has another identity"):
        pair.start_source() if role == "source" else pair.start_target()
    os.rmdir(beside(directory))
    with pytest.raises(RuntimeError, match="its data is not in"):
        pair.start_source() if role == "source" else pair.start_target()
    closed(directory)
    os.rename(f"{directory}-right", beside(directory))
    pair.source = pair.target = None
    pair.start()
    pair.stop()
    equal(pair)
