"""The last consistent copy is kept while a reintegration fills the target, and can be put back. On XFS, and ext4."""

import contextlib
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest

from hotpair.cluster import record as records
from hotpair.cluster import record_io
from hotpair.cluster.record import Record
from hotpair.replication import clone_io, snapshot, snapshot_helper
from hotpair.replication.control_client import ControlClient
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.frames import Kind
from hotpair.replication.layout import sibling_of
from hotpair.replication.limits import SNAPSHOT_ENTRIES, SNAPSHOT_FROZEN_S, SNAPSHOT_S
from hotpair.replication.protect_io import protect, unprotect
from hotpair.replication.restore_io import NOTHING_TO_DO, Restore
from hotpair.replication.snapshot_io import Snapshots
from tests.faults import FakeSource, Link, log_of, on_mount, port_of, said, small_disk, status, wait_until
from tests.mirror_pair import MirrorPair
from tests.tree_comparison import Copy, read_copy

pytestmark = pytest.mark.timeout(150)

MKFS_XFS = ("mkfs.xfs", "-q", "-f")
XFS_MEGABYTES = 400  # the least that mkfs.xfs accepts is 300
CEILING = 2 << 20  # bytes per second: a reintegration that lasts long enough to be interrupted
BIG_BYTES = 24 << 20

FILL = f"""
    os.mkdir('dir', 0o750); os.mkdir('dir/below'); os.mkdir('gone')
    open('gone/file', 'wb').write(b'to be removed')
    for name, size in (('big', {BIG_BYTES}), ('dir/below/small', 70000)):
        open(name, 'wb').write(os.urandom(size))
    sparse = os.open('dir/sparse', os.O_RDWR | os.O_CREAT, 0o4711)
    os.pwrite(sparse, b'end', 50 << 20)
    os.fchmod(sparse, 0o4711)
    os.link('dir/sparse', 'second-name')
    os.symlink('dir/below', 'link'); os.mkfifo('fifo', 0o640); os.mknod('device', 0o020600, os.makedev(1, 3))
    os.setxattr('dir', 'user.note', b'on a directory'); os.setxattr('big', 'user.note', b'on a file')
    os.chown('big', 1234, 5678); os.lchown('link', 4321, 8765); os.chmod('.', 0o711)
    os.utime('dir/below/small', ns=(10**18, 10**18 + 7)); os.utime('dir/below', ns=(10**18, 10**18 + 9))
    for name in ('big', 'dir/sparse'):
        os.fsync(os.open(name, os.O_RDONLY))
"""
CHANGE = f"""
    import shutil
    shutil.rmtree('gone'); os.unlink('second-name'); os.rename('dir/below', 'elsewhere'); os.chmod('.', 0o755)
    os.mkdir('new'); open('new/file', 'wb').write(b'new')
    os.setxattr('dir', 'user.note', b'changed'); os.unlink('fifo'); os.chown('big', 1, 1)
    big = os.open('big', os.O_RDWR)
    for offset in range(0, {BIG_BYTES}, 1 << 20):
        os.pwrite(big, os.urandom(1 << 20), offset)
    os.fsync(big)
"""

Tree = tuple[dict[bytes, Copy], set[frozenset[bytes]]]


def tree(directory: str) -> Tree:
    """All that is compared about a copy, identities included, and which names are one file."""
    objects, links = read_copy(os.fsencode(directory))
    return objects, {frozenset(names) for names in links.values()}


@contextlib.contextmanager
def xfs_pair(*more: str) -> Iterator[tuple[MirrorPair, Link]]:
    """A pair whose copy is on XFS; started, filled and in sync."""
    with contextlib.ExitStack() as stack:
        pair = stack.enter_context(MirrorPair(source_arguments=["--alone-after", "0.2"]))
        pair.target_dir = stack.enter_context(small_disk(pair.base, XFS_MEGABYTES, MKFS_XFS))
        yield pair, stack.enter_context(filled(pair))


@contextlib.contextmanager
def filled(pair: MirrorPair) -> Iterator[Link]:
    """Start a pair over a link that can be cut, with files of all kinds in it."""
    pair.start_target()
    link = Link(port_of(pair))
    try:
        pair.source_arguments += ["--peer", link.address]
        pair.start_source()
        on_mount(pair, FILL)
        yield link
    finally:
        link.close()


def begin_and_interrupt(pair: MirrorPair, link: Link) -> tuple[Tree, Record]:
    """The source goes on alone, much is changed, and a reintegration begins that will take long.

    What the target's copy was before, with the record of that time. The target's process is another one then.
    """
    link.cut(refuse=True)
    said(pair.source, "state ALONE")
    pair.stop_target()
    before, record = tree(pair.target_dir), stored(pair)
    on_mount(pair, CHANGE)
    with ControlClient(pair.source_state) as control:
        control.ask("set_ceiling", bytes_per_second=CEILING)
    pair.start_target()
    link.allow()
    half_copied(pair)
    return before, record


def half_copied(pair: MirrorPair) -> None:
    """Wait until the target is inconsistent and its content is being changed."""
    wait_until(lambda: status(pair.target_state)["inconsistent"], "inconsistent")
    received = status(pair.target_state)["received_bytes"]
    wait_until(lambda: status(pair.target_state)["received_bytes"] > received + (2 << 20), "some content")
    assert not status(pair.target_state)["in_sync"], "too fast to be interrupted"


def stored(pair: MirrorPair) -> Record:
    """The target's record."""
    record = record_io.load(f"{pair.target_state}/record")
    assert record is not None
    return record


def own_folder(directory: str) -> list[str]:
    """What snapshots there are, and what is left of some."""
    return sorted(name for name in os.listdir(f"{directory}/.hotpair") if "-" in name and name != "old-trash")


def restore(pair: MirrorPair) -> "subprocess.CompletedProcess[str]":
    """The command."""
    command = [sys.executable, "-P", "-m", "hotpair.replication", "restore"]
    arguments = ["--dir", pair.target_dir, "--state", pair.target_state]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd="/", timeout=60, check=False)


def is_as_before(pair: MirrorPair, before: Tree, record: Record) -> None:
    """The copy is what it was, byte by byte, and its record says what that is worth."""
    assert tree(pair.target_dir) == before
    expected = replace(record, outdated=True, in_sync=False, log_counter=record.log_counter + 1)
    assert stored(pair) == expected
    assert own_folder(pair.target_dir) == []


def test_source_lost_for_ever_in_the_middle() -> None:
    """The copy is put back; as a source it is refused; when the lost server comes back after all, all is compared."""
    with xfs_pair() as (pair, link):
        before, record = begin_and_interrupt(pair, link)
        assert own_folder(pair.target_dir) == [f"snapshot-{record.generation.hex()}"]
        refused = restore(pair)
        assert refused.returncode == 2 and "another mirror process uses it" in refused.stderr
        pair.kill_source()
        pair.kill_target()
        assert tree(pair.target_dir) != before

        done = restore(pair)
        assert done.returncode == 0, done.stderr
        assert record.generation.hex() in done.stdout and "outdated" in done.stdout
        is_as_before(pair, before, record)
        again = restore(pair)
        assert again.returncode == 2 and NOTHING_TO_DO in again.stderr

        starting = [sys.executable, "-P", "-m", "hotpair.replication", "source", "--peer", "127.0.0.1:1"]
        arguments = ["--dir", pair.target_dir, "--state", pair.target_state]
        source = subprocess.run(
            [*starting, *arguments], capture_output=True, text=True, cwd="/", timeout=60, check=False
        )
        assert source.returncode == 2 and "outdated" in source.stderr
        assert tree(pair.target_dir) == before

        pair.start_target()
        peer = FakeSource(port_of(pair), root=record.root)
        peer.hello()
        assert peer.expect(Kind.WELCOME)[2]["marks"] is None, "the source would copy only what it has not copied"
        peer.close()
        pair.start_source()
        wait_until(lambda: status(pair.source_state)["in_sync"], "in sync again")
        wait_until(lambda: own_folder(pair.target_dir) == [], "the second snapshot is removed")
        pair.stop()
        assert pair.compare() == []


def test_declared_current_by_hand() -> None:
    """With an emptied state directory the restored copy can be a source; nobody's lineage is claimed."""
    with xfs_pair() as (pair, link):
        before, record = begin_and_interrupt(pair, link)
        pair.kill_source()
        pair.kill_target()
        pair.abort()
        assert restore(pair).returncode == 0
        shutil.rmtree(pair.target_state)
        pair.source_dir = pair.mount = pair.target_dir
        pair.source_state = pair.target_state
        pair.start_source()
        assert int(on_mount(pair, "print(len(os.listdir()))")) == len([p for p in before[0] if b"/" not in p]) - 1
        pair.stop_source()
        assert tree(pair.target_dir) == before
        now = stored(pair)
        assert now.solo and record.generation not in (now.generation, now.base, *now.ancestors)


def test_removed_when_in_sync() -> None:
    with xfs_pair() as (pair, link):
        begin_and_interrupt(pair, link)
        with ControlClient(pair.source_state) as control:
            control.ask("set_ceiling", bytes_per_second=0)
        wait_until(lambda: status(pair.source_state)["in_sync"], "in sync")
        wait_until(lambda: own_folder(pair.target_dir) == [], "the snapshot is removed")
        pair.stop()
        assert pair.compare() == []
        done = restore(pair)
        assert done.returncode == 2 and NOTHING_TO_DO in done.stderr


def test_left_by_a_crash_after_sync() -> None:
    """A target killed between its record and the removal: its next start removes it, or puts it away as a source."""
    with xfs_pair() as (pair, _):
        pair.stop()
        private = f"{pair.target_dir}/.hotpair"
        os.makedirs(f"{private}/snapshot-{'a' * 32}/tree/directory")
        os.mkdir(f"{private}/making-0123")
        pair.start_target()
        wait_until(lambda: own_folder(pair.target_dir) == [], "what was left is removed")
        os.makedirs(f"{pair.source_dir}/.hotpair/snapshot-{'a' * 32}/tree")
        pair.start_source()
        pair.stop()
        assert [name[:9] for name in own_folder(pair.source_dir)] == ["removing-"]


def test_the_first_one_is_kept() -> None:
    """A reintegration that begins again, with another target process too, leaves the last consistent copy alone."""
    with xfs_pair() as (pair, link):
        before, record = begin_and_interrupt(pair, link)
        name = f"{pair.target_dir}/.hotpair/snapshot-{record.generation.hex()}"
        first = os.stat(name)
        link.cut()
        said(pair.target, "state REINTEGRATING", 2)
        half_copied(pair)
        pair.kill_target()
        pair.start_target()
        half_copied(pair)
        pair.kill_source()
        pair.kill_target()
        assert os.path.samestat(first, os.stat(name)) and os.stat(name).st_ctime_ns == first.st_ctime_ns
        assert own_folder(pair.target_dir) == [os.path.basename(name)]
        assert restore(pair).returncode == 0
        is_as_before(pair, before, record)


def test_a_protected_copy() -> None:
    """The same where the data is beside the named directory, and a killed target has left its read-only view."""
    with xfs_pair() as (pair, link):
        link.cut(refuse=True)
        said(pair.source, "state ALONE")
        pair.stop_target()
        protect(pair.target_dir)
        data = os.fsdecode(sibling_of(os.fsencode(pair.target_dir)))
        before, record = tree(data), stored(pair)
        on_mount(pair, CHANGE)
        with ControlClient(pair.source_state) as control:
            control.ask("set_ceiling", bytes_per_second=CEILING)
        pair.start_target()
        link.allow()
        half_copied(pair)
        pair.kill_source()
        pair.kill_target()
        assert os.listdir(pair.target_dir) and tree(data) != before
        done = restore(pair)
        assert done.returncode == 0, done.stderr
        assert tree(data) == before and stored(pair).outdated and stored(pair).generation == record.generation
        assert os.listdir(pair.target_dir) == [] and own_folder(data) == []
        unprotect(pair.target_dir)


class Interrupted(Exception):
    """The restore ends here."""


def interrupted_at(number: int) -> tuple[Callable[[str], None], list[str]]:
    """A ``step`` that ends at this one, and the labels that it was called with."""
    seen: list[str] = []

    def step(label: str) -> None:
        seen.append(label)
        if len(seen) == number:
            raise Interrupted(label)

    return step, seen


def test_restore_interrupted_at_every_step() -> None:
    """Until the record is stored the copy is inconsistent and the snapshot whole; then it is what it was."""
    with xfs_pair() as (pair, link):
        before, record = begin_and_interrupt(pair, link)
        pair.kill_source()
        pair.kill_target()
        pair.abort()
        labels: set[str] = set()
        number, ended = 0, False
        while not ended:
            number += 1
            step, seen = interrupted_at(number)
            try:
                Restore(os.fsencode(pair.target_dir), pair.target_state, step).run()
                ended = True
            except Interrupted:
                if not stored(pair).inconsistent:
                    assert seen[-1] == "put the snapshot away"
                    assert tree(pair.target_dir) == before
                    ended = True
            labels |= set(seen)
        expected = {"clone", "clone one", "take away", "put back", "make the log", "store the record"}
        assert expected <= labels and number > 30
        with pytest.raises(BadConfiguration, match="nothing to restore"):
            Restore(os.fsencode(pair.target_dir), pair.target_state).run()
        pair.start_target()
        wait_until(lambda: own_folder(pair.target_dir) == [], "what was left is removed")
        pair.stop_target()
        is_as_before(pair, before, record)


def test_without_reflink() -> None:
    """On ext4 all is as ever, and `restore` says why it cannot help."""
    with MirrorPair(source_arguments=["--alone-after", "0.2"]) as pair, small_disk(pair.base, 120) as data:
        pair.target_dir = data
        with filled(pair) as link:
            begin_and_interrupt(pair, link)
            assert own_folder(data) == []
            pair.kill_source()
            pair.kill_target()
            half, record = tree(data), stored(pair)
            refused = restore(pair)
            assert refused.returncode == 2 and "there is no snapshot" in refused.stderr
            assert (tree(data), stored(pair)) == (half, record)
            pair.start_target()
            pair.start_source()
            wait_until(lambda: status(pair.source_state)["in_sync"], "in sync again")
            pair.stop()
            assert pair.compare() == []


@pytest.mark.parametrize(("alone", "limit_s"), [(True, SNAPSHOT_S), (False, SNAPSHOT_FROZEN_S)])
def test_the_loop_goes_on_and_the_time_is_bounded(alone: bool, limit_s: float) -> None:
    """While a snapshot is made the target answers and says that it is busy; one that takes too long is given up.

    A source that is not alone has frozen the VM's writes: the time is shorter.
    """
    with xfs_pair() as (pair, _):
        pair.stop_source()
        record = stored(pair)
        for number in range(SNAPSHOT_ENTRIES // 2):  # long enough to be met in the middle
            os.close(os.open(f"{pair.target_dir}/{number}", os.O_CREAT | os.O_WRONLY))
        assert pair.target is not None
        with FakeSource(port_of(pair), root=record.root, generation=b"n" * 16) as source:
            theirs = replace(record, generation=source.generation, last_role="PRIM", in_sync=not alone, solo=alone)
            source.hello(record=records.encode(theirs))
            source.expect(Kind.WELCOME)
            began = time.monotonic()
            source.send(Kind.BEGIN_REINTEGRATION, source.generation, True)
            wait_until(lambda: own_folder(pair.target_dir) != [], "a snapshot is being made")
            for helper in psutil.Process(pair.target.process.pid).children():
                helper.suspend()
            source.send(Kind.PROBE, 0)
            kinds = []
            while Kind.INCONSISTENT not in kinds:
                fields = source.receive()
                assert fields is not None
                given_up = time.monotonic() - began > limit_s - 1
                assert given_up or stored(pair) == record, "inconsistent before the snapshot"
                kinds.append(fields[0])
                if fields[0] == Kind.BUSY:
                    source.send(Kind.PROBE, 0)
            assert limit_s - 1 < time.monotonic() - began < limit_s + 5
            assert kinds.count(Kind.BUSY) >= limit_s / 2 and Kind.APPLIED in kinds
        assert stored(pair).inconsistent
        assert "no snapshot of this copy: it takes longer than" in log_of(pair.target)
        assert not any(name.startswith("snapshot-") for name in own_folder(pair.target_dir))


def test_a_link_lost_meanwhile() -> None:
    """The copy has not been given up: it stays in sync on record, and the next reintegration keeps its own snapshot."""
    with xfs_pair() as (pair, _):
        pair.stop_source()
        record = stored(pair)
        for number in range(2000):
            os.close(os.open(f"{pair.target_dir}/{number}", os.O_CREAT | os.O_WRONLY))
        source = FakeSource(port_of(pair), root=record.root, generation=b"n" * 16)
        source.hello()
        source.expect(Kind.WELCOME)
        source.send(Kind.BEGIN_REINTEGRATION, source.generation, True)
        wait_until(lambda: own_folder(pair.target_dir) != [], "a snapshot is being made")
        source.close()
        said(pair.target, "link lost")
        assert stored(pair) == record
        with FakeSource(port_of(pair), root=record.root, generation=b"n" * 16) as other:
            other.begin()
            assert f"snapshot-{record.generation.hex()}" in own_folder(pair.target_dir)


def test_target_killed_meanwhile() -> None:
    """The helper ends with it, holds no lock that the next target needs, and what it leaves never gets a name."""
    with xfs_pair() as (pair, _):
        pair.stop_source()
        record = stored(pair)
        for number in range(2000):
            os.close(os.open(f"{pair.target_dir}/{number}", os.O_CREAT | os.O_WRONLY))
        with FakeSource(port_of(pair), root=record.root, generation=b"n" * 16) as source:
            source.hello()
            source.expect(Kind.WELCOME)
            source.send(Kind.BEGIN_REINTEGRATION, source.generation, True)
            wait_until(lambda: own_folder(pair.target_dir) != [], "a snapshot is being made")
            pair.kill_target()
        assert stored(pair) == record
        pair.start_target()
        assert not any(name.startswith("snapshot-") for name in own_folder(pair.target_dir))
        with FakeSource(port_of(pair), root=record.root, generation=b"n" * 16) as other:
            other.begin()
            assert f"snapshot-{record.generation.hex()}" in own_folder(pair.target_dir)


def test_given_up_when_there_is_no_room_for_both() -> None:
    """A snapshot keeps what is overwritten: where the disk is too small for that, being in sync is worth more."""
    huge = """
        descriptor = os.open('huge', os.O_RDWR | os.O_CREAT)
        for _ in range(200):
            os.write(descriptor, os.urandom(1 << 20))
        os.fsync(descriptor)
    """
    with xfs_pair() as (pair, link):
        on_mount(pair, huge)
        link.cut(refuse=True)
        said(pair.source, "state ALONE")
        pair.stop_target()
        on_mount(pair, huge)
        pair.start_target()
        link.allow()
        wait_until(lambda: status(pair.source_state)["in_sync"], "in sync", 60)
        assert pair.target is not None
        assert "is given up for it" in log_of(pair.target)
        wait_until(lambda: own_folder(pair.target_dir) == [], "the snapshot is removed")
        pair.stop()
        assert pair.compare() == []


def test_more_entries_than_the_limit() -> None:
    """At the limit there is a snapshot, above it there is none, and what waits goes on."""
    base = f"/var/tmp/hotpair-test-snapshot-{os.getpid()}"
    os.mkdir(base)
    try:
        with small_disk(base, XFS_MEGABYTES, MKFS_XFS) as data:
            for number in range(SNAPSHOT_ENTRIES):
                os.close(os.open(f"{data}/{number}", os.O_CREAT | os.O_WRONLY))
            record = Record(
                generation=b"g" * 16, last_role="SECOND", in_sync=True, boot="b", configuration=b"", root=b"r" * 16
            )
            root_fd = os.open(data, os.O_RDONLY)
            assert clone_io.can_clone(root_fd)
            assert prepared(root_fd, record) == [f"snapshot-{record.generation.hex()}"]
            open(f"{data}/one-more", "wb").close()
            assert [name for name in prepared(root_fd, record) if name.startswith("snapshot-")] == []
            os.close(root_fd)
    finally:
        shutil.rmtree(base)


def prepared(root_fd: int, record: Record) -> list[str]:
    """What there is when a snapshot was asked for and the reintegration may go on."""
    handlers: dict[int, Callable[[], None]] = {}
    snapshots = Snapshots(root_fd, handlers.__setitem__, lambda fd: handlers.pop(fd) and None)
    ready: list[bool] = []
    snapshots.prepare(record, SNAPSHOT_S, lambda: ready.append(True))
    while not ready:
        assert handlers, "nothing is waited for"
        for fd in select.select(list(handlers), [], [], 60)[0]:
            handlers[fd]()
    return [name for name in own_folder(os.readlink(f"/proc/self/fd/{root_fd}")) if "removing" not in name]


def test_bounds_of_the_helper() -> None:
    check = snapshot_helper.bounded(2)
    check()
    check()
    with pytest.raises(snapshot_helper.GivenUp, match="more than 2"):
        check()


@pytest.mark.parametrize(
    "name", [b"trash", b"orphans", b"snapshot-", b"snapshot-" + b"g" * 32, b"making-", b"making-x"]
)
def test_other_folders_are_left_alone(name: bytes) -> None:
    assert not snapshot.is_snapshot(name) and not snapshot.is_leftover(name)


def test_names() -> None:
    assert snapshot.is_snapshot(snapshot.name_of(os.urandom(16)))
    assert snapshot.is_leftover(snapshot.making("0af1")) and snapshot.is_leftover(snapshot.removing("0af1"))


def test_the_restored_record() -> None:
    """Its lineage is the old one; it claims nothing that the lost server could contradict; no counter goes back."""
    old = Record(
        generation=b"o" * 16,
        ancestors=(b"a" * 16,),
        base=b"a" * 16,
        epoch=4,
        term=7,
        last_role="ALONE",
        solo=True,
        boot="boot",
        configuration=b"c",
        root=b"r" * 16,
        log_counter=3,
        copy=b"x" * 16,
    )
    now = replace(records.begin_reintegration_as_target(old, b"n" * 16), epoch=5)
    back = snapshot.restored(old, now)
    assert back == replace(old, outdated=True, in_sync=False, epoch=5, log_counter=4)
    with pytest.raises(AssertionError):
        snapshot.restored(old, replace(now, copy=b"y" * 16))
    with pytest.raises(AssertionError):
        snapshot.restored(old, old)
