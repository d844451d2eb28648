"""Which copy a directory is, and where the mirror keeps its own attributes."""

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from hotpair.cluster import record_io
from hotpair.cluster.record import Record
from hotpair.replication import own_attributes_io, tree_io
from hotpair.replication.control_client import ControlClient
from hotpair.replication.copy_identity_io import claim_copy
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.objects_io import ensure_identity, open_root, read_identity
from tests.faults import equal_after_stop, healthy, on_mount, said, status, write_file
from tests.mirror_pair import MirrorPair
from tests.test_faults_start import refused, source_arguments, target_arguments

pytestmark = pytest.mark.timeout(90)

COPY = "trusted.hotpair.copy"
UNPRIVILEGED = ["setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"]


@pytest.fixture
def pair() -> Iterator[MirrorPair]:
    """A pair that has not been started."""
    with MirrorPair() as made:
        yield made


def record_of(state: str) -> Record:
    record = record_io.load(f"{state}/record")
    assert record is not None
    return record


def copies(pair: MirrorPair) -> list[bytes]:
    return [os.getxattr(directory, COPY) for directory in (pair.source_dir, pair.target_dir)]


# ---- the copy's own id


def test_each_copy_keeps_its_own_id(pair: MirrorPair) -> None:
    """Neither the mount nor reintegration, verify nor a full comparison carries it over."""
    pair.start()
    assert on_mount(pair, "print(os.listxattr('.'))").strip() == "[]"
    refusing = """
    for act, *value in ((os.getxattr,), (os.removexattr,), (os.setxattr, b'x')):
        try:
            act('.', NAME, *value)
        except OSError as error:
            print(error.errno)
    """
    for name in (COPY, "user.hotpair.copy", "user.hotpair.id"):
        said_errors = on_mount(pair, refusing.replace("NAME", repr(name))).split()
        assert said_errors == [str(errno.ENODATA), str(errno.ENODATA), str(errno.EPERM)]
    on_mount(pair, "os.setxattr('.', 'user.ours', b'value')")
    pair.stop()
    first = copies(pair)
    assert first[0] != first[1] and [len(copy) for copy in first] == [16, 16]
    assert [record_of(state).copy for state in (pair.source_state, pair.target_state)] == first
    assert os.getxattr(pair.target_dir, "user.ours") == b"value"
    os.unlink(f"{pair.source_state}/dirty-log")
    pair.start()
    with ControlClient(pair.source_state) as control:
        control.ask("verify_start", repair=True)
    said(pair.source, "verify: no difference")
    equal_after_stop(pair)
    assert copies(pair) == first


@pytest.mark.parametrize("side", ["source", "target"])
def test_the_other_copys_directory_is_refused(pair: MirrorPair, side: str) -> None:
    pair.start()
    write_file(pair, "file")
    pair.stop()
    before = copies(pair)
    os.rename(pair.source_dir, f"{pair.base}/away")
    os.rename(pair.target_dir, pair.source_dir)
    os.rename(f"{pair.base}/away", pair.target_dir)
    arguments = source_arguments(pair) if side == "source" else target_arguments(pair)
    directory = pair.source_dir if side == "source" else pair.target_dir
    ours, theirs = before if side == "source" else before[::-1]
    refused(pair, arguments, directory, ours.hex(), theirs.hex(), "exchanged", "Mount the right one")
    assert copies(pair) == before[::-1], "the wrong directory was changed"


def test_a_copy_without_its_id_is_refused(pair: MirrorPair) -> None:
    """Restored without its attributes, or made by hand."""
    pair.start()
    pair.stop()
    os.removexattr(pair.target_dir, COPY)
    refused(pair, target_arguments(pair), pair.target_dir, "no copy", "Nothing was changed")


def test_a_record_of_before_gets_the_id(pair: MirrorPair) -> None:
    pair.start()
    pair.stop()
    before = copies(pair)
    for state in (pair.source_state, pair.target_state):
        record_io.store(f"{state}/record", replace(record_of(state), copy=None))
    os.removexattr(pair.source_dir, COPY)
    pair.start()
    equal_after_stop(pair)
    after = copies(pair)
    assert after[1] == before[1] and after[0] not in before
    assert [record_of(state).copy for state in (pair.source_state, pair.target_state)] == after


def test_an_interrupted_first_start(pair: MirrorPair) -> None:
    """The directory has an id that no record names: it is kept."""
    root_fd = os.open(pair.source_dir, os.O_RDONLY | os.O_DIRECTORY)
    copy = claim_copy(root_fd, os.fsencode(pair.source_dir), None)
    assert copy == claim_copy(root_fd, os.fsencode(pair.source_dir), None)
    os.close(root_fd)
    pair.start()
    pair.stop()
    assert copies(pair)[0] == copy == record_of(pair.source_state).copy


# ---- where attributes are kept


@contextlib.contextmanager
def ramfs(base: str) -> Iterator[str]:
    """A directory on a file system that has no extended attributes."""
    mount = f"{base}/ramfs"
    os.mkdir(mount)
    subprocess.run(["mount", "-t", "ramfs", "none", mount], check=True)
    try:
        os.mkdir(f"{mount}/data")
        yield f"{mount}/data"
    finally:
        subprocess.run(["umount", "-l", mount], check=True)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_file_system_without_attributes(pair: MirrorPair, side: str) -> None:
    with ramfs(pair.base) as directory:
        arguments = source_arguments(pair) if side == "source" else target_arguments(pair)
        refused(
            pair, [*arguments, "--dir", directory], "--dir", directory, "ext4, XFS and btrfs", "extended attributes"
        )


def test_either_namespace(pair: MirrorPair) -> None:
    """What is in `trusted.` counts; without it, what is in `user.`; both are the mirror's own."""
    path = f"{pair.base}/file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        assert read_identity(fd) is None
        os.setxattr(path, "user.hotpair.id", b"u" * 16)
        assert read_identity(fd) == b"u" * 16 == ensure_identity(fd)
        os.setxattr(path, "trusted.hotpair.id", b"t" * 16)
        assert read_identity(fd) == b"t" * 16 == ensure_identity(fd)
        os.setxattr(path, "user.theirs", b"x")
        assert tree_io.read_xattrs(fd) == [(b"user.theirs", b"x")]
        own_attributes_io.remove(fd, b"id")
        own_attributes_io.remove(fd, b"id")
        assert os.listxattr(path) == ["user.theirs"]
    finally:
        os.close(fd)


STORY = """
os.makedirs('d/e')
for name in ('a', 'd/b', 'd/e/c'):
    with open(name, 'wb') as file:
        file.write(os.urandom(300_000)); file.flush(); os.fsync(file.fileno())
os.link('a', 'd/a'); os.rename('d/b', 'b'); os.setxattr('b', 'user.x', b'1'); os.unlink('d/e/c'); os.chmod('a', 0o640)
print(os.listxattr('a'), os.listxattr('.'))
"""


def namespaces(directory: str) -> set[str]:
    """Those in which the objects of a copy have the mirror's attributes."""
    paths = [directory]
    for top, directories, files in os.walk(directory):
        paths += [os.path.join(top, name) for name in (*directories, *files)]
    own = [path for path in paths if "/.hotpair" not in path]
    return {name.partition(".")[0] for path in own for name in os.listxattr(path) if ".hotpair." in name}


def test_a_target_without_privilege(pair: MirrorPair) -> None:
    """`user.` there, `trusted.` here; reintegration, live changes, a restart and swapped directories."""
    pair.target_prefix = UNPRIVILEGED
    pair.start()
    assert on_mount(pair, STORY).strip() == "[] []"
    healthy(pair)
    equal_after_stop(pair)
    assert namespaces(pair.target_dir) == {"user"} and namespaces(pair.source_dir) == {"trusted"}
    pair.source_arguments += ["--alone-after", "0"]
    pair.start_source()
    write_file(pair, "a", "b'alone'", 100)
    pair.start_target()
    said(pair.source, "in sync")
    assert not pair.troubles()
    equal_after_stop(pair)
    os.rename(pair.target_dir, f"{pair.base}/away")
    shutil.copytree(f"{pair.base}/away", pair.target_dir, symlinks=True)
    os.setxattr(pair.target_dir, "user.hotpair.id", os.urandom(16))
    with pytest.raises(RuntimeError, match="not the directory of this module"):
        pair.start_target()


def test_what_a_target_without_privilege_cannot_hold(pair: MirrorPair) -> None:
    """A symlink: said with the reason, and the source goes on."""
    pair.target_prefix = UNPRIVILEGED
    pair.source_arguments += ["--alone-after", "1"]
    pair.start()
    said(pair.source, "in sync")
    on_mount(pair, "os.symlink('nowhere', 'link')")
    said(pair.source, "only regular files and directories can be mirrored")
    write_file(pair, "file")
    assert status(pair.source_state)["state"] in ("ALONE", "REINTEGRATING")
    healthy(pair)


def test_both_without_privilege() -> None:
    """The source's core and its tap as well: the tests of the stream, where `trusted.` cannot be used.

    A source as a process of its own needs the privilege to mount, and then it has `trusted.` where there is one.
    """
    chosen = "link_lost_at_each_step or file_vanishes or replaced_files or more_attributes or without_the_flag"
    repository = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_stream_pair.py"]
    result = subprocess.run(
        [*UNPRIVILEGED, *command, "-k", chosen], capture_output=True, text=True, timeout=80, cwd=repository
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_source_that_holds_what_it_cannot_mirror(pair: MirrorPair) -> None:
    """Without `trusted.` a symlink gets no identity: found before anything is mounted."""
    os.setxattr(pair.source_dir, "user.hotpair.id", b"u" * 16)
    os.mkdir(f"{pair.source_dir}/d")
    os.symlink("nowhere", f"{pair.source_dir}/d/link")
    refused(pair, source_arguments(pair), f"{pair.source_dir}/d/link", "neither a regular file nor a directory")
    os.unlink(f"{pair.source_dir}/d/link")
    pair.start()
    equal_after_stop(pair)
    os.symlink("nowhere", f"{pair.source_dir}/d/link")
    os.setxattr(pair.source_dir, "trusted.hotpair.id", b"u" * 16)
    pair.start()
    equal_after_stop(pair)


def test_a_file_that_gets_no_identity_is_no_crash(pair: MirrorPair) -> None:
    """An object that cannot be given an identity: reintegration says so, and the mirror goes on with the one copy.

    Nobody gives a verdict here: it is alone, and ready, because the other copy was its own to fill and could not be.
    """
    immutable = f"{pair.source_dir}/immutable"
    with open(immutable, "w"):
        pass
    subprocess.run(["chattr", "+i", immutable], check=True)
    try:
        pair.start()
        said(pair.source, "not reintegrated: 'immutable'")
        write_file(pair, "file")
        healthy(pair)
    finally:
        subprocess.run(["chattr", "-i", immutable], check=False)
        pair.abort()
        subprocess.run(["chattr", "-i", immutable], check=False)


def test_open_root_without_attributes(pair: MirrorPair) -> None:
    with ramfs(pair.base) as directory, pytest.raises(BadConfiguration, match="ramfs"):
        open_root(os.fsencode(directory), None)
