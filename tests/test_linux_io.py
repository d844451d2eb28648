"""linux_io, and the flusher, against the real kernel and a real file system (below /var/tmp: /tmp may be a tmpfs)."""

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import select
import shutil
import signal
import stat
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest

from hotpair.replication import linux_io
from hotpair.replication.flusher_io import Flusher
from hotpair.replication.limits import FLUSH_THREADS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

PAGE = 4096


@pytest.fixture
def directory() -> Iterator[bytes]:
    path = os.fsencode(tempfile.mkdtemp(prefix="hotpair-test-", dir="/var/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def dirfd(directory: bytes) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@contextmanager
def opened(path: bytes, flags: int = os.O_RDWR | os.O_CREAT, content: bytes = b"") -> Iterator[int]:
    fd = os.open(path, flags, 0o600)
    try:
        if content:
            assert os.pwrite(fd, content, 0) == len(content)
        yield fd
    finally:
        os.close(fd)


def write(path: bytes, content: bytes = b"") -> None:
    with opened(path, content=content):
        pass


def read(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


@contextmanager
def fails(code: int) -> Iterator[None]:
    with pytest.raises(OSError) as caught:
        yield
    assert (caught.value.errno, caught.value.strerror) == (code, os.strerror(code))


@contextmanager
def mounted(target: bytes, fstype: bytes = b"tmpfs", flags: int = 0, data: bytes | None = None) -> Iterator[None]:
    os.makedirs(target, exist_ok=True)
    linux_io.mount(b"hotpair-test", target, fstype, flags, data)
    try:
        yield
    finally:
        if os.path.ismount(target):
            linux_io.umount2(target, linux_io.MNT_DETACH)


def in_child(work: Callable[[], str]) -> str:
    """What `work` returns in a child process, so that it cannot change this one."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(into, work().encode())
        finally:  # an exception shows as an empty answer
            os._exit(0)
    os.close(into)
    with open(out, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(pid, 0)
    return answer


def error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "no error"


# --- openat2 ----------------------------------------------------------------------------------------------------


def test_openat2_creates_reads_and_closes_on_exec(directory: bytes, dirfd: int) -> None:
    fd = linux_io.openat2(dirfd, b"f\xff", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
    with closing(os.fdopen(fd, "r+b", buffering=0)) as file:
        assert not os.get_inheritable(fd)
        file.write(b"content")
        assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640
    assert read(directory + b"/f\xff") == b"content"
    with fails(errno.EEXIST):
        linux_io.openat2(dirfd, b"f\xff", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)


def test_openat2_refuses_to_leave_the_directory(directory: bytes, dirfd: int) -> None:
    os.mkdir(directory + b"/sub")
    write(directory + b"/f")
    with opened(directory + b"/sub", os.O_PATH) as sub:
        for path in (b"..", b"../f", b"/etc/passwd", directory + b"/sub", b"/"):
            with fails(errno.EXDEV):
                linux_io.openat2(sub, path, os.O_RDONLY)
        # The refusal is the work of `resolve`: without it the same path is found.
        os.close(linux_io.openat2(sub, b"../f", os.O_RDONLY, resolve=0))
    os.close(linux_io.openat2(dirfd, b"sub/../f", os.O_RDONLY))  # stays inside


def test_openat2_refuses_symlinks_but_can_hold_one(directory: bytes, dirfd: int) -> None:
    write(directory + b"/f")
    os.mkdir(directory + b"/sub")
    write(directory + b"/sub/f")
    os.symlink(b"f", directory + b"/link")
    os.symlink(b"sub", directory + b"/sublink")
    for path in (b"link", b"sublink/f"):
        with fails(errno.ELOOP):
            linux_io.openat2(dirfd, path, os.O_RDONLY)
        os.close(linux_io.openat2(dirfd, path, os.O_RDONLY, resolve=linux_io.RESOLVE_BENEATH))
    fd = linux_io.openat2(dirfd, b"link", os.O_PATH | os.O_NOFOLLOW)
    assert stat.S_ISLNK(os.fstat(fd).st_mode)
    os.close(fd)


def test_openat2_refuses_magic_links_where_other_links_are_allowed(directory: bytes) -> None:
    with opened(b"/proc/self/fd", os.O_RDONLY) as fds, opened(directory + b"/f") as fd:
        with fails(errno.ELOOP):
            linux_io.openat2(fds, b"%d" % fd, os.O_RDONLY, resolve=linux_io.RESOLVE_NO_MAGICLINKS)
        os.close(linux_io.openat2(fds, b"%d" % fd, os.O_RDONLY, resolve=0))


def test_openat2_refuses_to_cross_a_mount(directory: bytes, dirfd: int) -> None:
    with mounted(directory + b"/mnt"):
        write(directory + b"/mnt/f")
        for path in (b"mnt", b"mnt/f"):
            with fails(errno.EXDEV):
                linux_io.openat2(dirfd, path, os.O_RDONLY)
        os.close(linux_io.openat2(dirfd, b"mnt/f", os.O_RDONLY, resolve=linux_io.RESOLVE_BENEATH))


def test_openat2_reports_errors_and_does_not_cut_at_nul(directory: bytes, dirfd: int) -> None:
    write(directory + b"/f")
    with fails(errno.EINVAL):
        linux_io.openat2(dirfd, b"f\0g", os.O_RDONLY)
    with fails(errno.ENOENT):
        linux_io.openat2(dirfd, b"none", os.O_RDONLY)
    with fails(errno.EINVAL):  # a mode without O_CREAT: mode does reach the kernel
        linux_io.openat2(dirfd, b"f", os.O_RDONLY, 0o600)
    with fails(errno.EINVAL):
        linux_io.openat2(dirfd, b"g", os.O_WRONLY | os.O_CREAT, stat.S_IFREG | 0o600)
    with fails(errno.EBADF):
        linux_io.openat2(-1, b"f", os.O_RDONLY)


def test_openat2_is_repeated_after_a_signal(directory: bytes, dirfd: int) -> None:
    os.mkfifo(directory + b"/fifo")
    writers: list[int] = []

    def open_the_other_end(*_: object) -> None:
        writers.append(os.open(directory + b"/fifo", os.O_RDWR))

    previous = signal.signal(signal.SIGALRM, open_the_other_end)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        os.close(linux_io.openat2(dirfd, b"fifo", os.O_RDONLY))  # waits for a writer
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert len(writers) == 1
    os.close(writers[0])


# --- names ------------------------------------------------------------------------------------------------------


def test_renameat2_exchanges(directory: bytes, dirfd: int) -> None:
    write(directory + b"/a", b"A")
    write(directory + b"/b", b"B")
    linux_io.renameat2(dirfd, b"a", dirfd, b"b", linux_io.RENAME_EXCHANGE)
    assert (read(directory + b"/a"), read(directory + b"/b")) == (b"B", b"A")
    with fails(errno.ENOENT):
        linux_io.renameat2(dirfd, b"a", dirfd, b"none", linux_io.RENAME_EXCHANGE)


def test_renameat2_noreplace(directory: bytes, dirfd: int) -> None:
    write(directory + b"/a", b"A")
    write(directory + b"/b", b"B")
    with fails(errno.EEXIST):
        linux_io.renameat2(dirfd, b"a", dirfd, b"b", linux_io.RENAME_NOREPLACE)
    assert read(directory + b"/b") == b"B"
    linux_io.renameat2(dirfd, b"a", dirfd, b"c", linux_io.RENAME_NOREPLACE)
    linux_io.renameat2(dirfd, b"c", dirfd, b"b")
    assert os.listdir(directory) == [b"b"]
    assert read(directory + b"/b") == b"A"


def test_renameat2_between_directories_and_whiteout(directory: bytes, dirfd: int) -> None:
    os.mkdir(directory + b"/sub")
    write(directory + b"/a", b"A")
    with opened(directory + b"/sub", os.O_PATH) as sub:
        linux_io.renameat2(dirfd, b"a", sub, b"b", linux_io.RENAME_WHITEOUT)
    assert read(directory + b"/sub/b") == b"A"
    whiteout = os.stat(directory + b"/a")
    assert stat.S_ISCHR(whiteout.st_mode)
    assert whiteout.st_rdev == 0


def test_renameat2_reports_errors_and_does_not_cut_at_nul(directory: bytes, dirfd: int) -> None:
    write(directory + b"/a")
    for old, new in ((b"a\0x", b"b"), (b"a", b"b\0x")):
        with fails(errno.EINVAL):
            linux_io.renameat2(dirfd, old, dirfd, new)
    with fails(errno.EINVAL):
        linux_io.renameat2(dirfd, b"a", dirfd, b"b", linux_io.RENAME_EXCHANGE | linux_io.RENAME_NOREPLACE)
    assert os.listdir(directory) == [b"a"]


def test_linkat_empty_names_what_an_o_path_descriptor_holds(directory: bytes, dirfd: int) -> None:
    write(directory + b"/a", b"A")
    os.symlink(b"a", directory + b"/link")
    with opened(directory + b"/a", os.O_PATH) as fd:
        linux_io.linkat_empty(fd, dirfd, b"b")
        assert os.path.samefile(directory + b"/a", directory + b"/b")
        with fails(errno.EEXIST):
            linux_io.linkat_empty(fd, dirfd, b"b")
        with fails(errno.EINVAL):
            linux_io.linkat_empty(fd, dirfd, b"c\0d")
        os.unlink(directory + b"/a")
        os.unlink(directory + b"/b")
        with fails(errno.ENOENT):  # an orphan cannot come back
            linux_io.linkat_empty(fd, dirfd, b"c")
    with opened(directory + b"/link", os.O_PATH | os.O_NOFOLLOW) as fd:
        linux_io.linkat_empty(fd, dirfd, b"link2")
    assert os.readlink(directory + b"/link2") == b"a"


# --- handles ----------------------------------------------------------------------------------------------------


def test_a_handle_survives_rename_and_ends_with_the_file(directory: bytes, dirfd: int) -> None:
    write(directory + b"/a", b"A")
    with opened(directory + b"/a", os.O_PATH) as fd:
        handle = linux_io.name_to_handle(fd)
    assert handle == linux_io.name_to_handle(dirfd, b"a", 0)
    assert handle != linux_io.name_to_handle(dirfd)
    os.mkdir(directory + b"/sub")
    os.rename(directory + b"/a", directory + b"/sub/b")
    fd = linux_io.open_by_handle(dirfd, handle, os.O_RDWR)
    assert not os.get_inheritable(fd)
    assert os.pread(fd, 10, 0) == b"A"
    os.unlink(directory + b"/sub/b")
    os.close(linux_io.open_by_handle(dirfd, handle, os.O_RDONLY))  # an orphan is still there
    os.close(fd)
    with fails(errno.ESTALE):
        linux_io.open_by_handle(dirfd, handle, os.O_RDONLY)
    write(directory + b"/new")  # may get the same inode number, never the same handle
    with fails(errno.ESTALE):
        linux_io.open_by_handle(dirfd, handle, os.O_RDONLY)


def test_a_handle_of_a_symlink_is_the_symlink(directory: bytes, dirfd: int) -> None:
    os.symlink(b"nowhere", directory + b"/link")
    handle = linux_io.name_to_handle(dirfd, b"link", 0)
    fd = linux_io.open_by_handle(dirfd, handle, os.O_PATH | os.O_NOFOLLOW)
    assert os.readlink(b"", dir_fd=fd) == b"nowhere"
    os.close(fd)


def test_handle_errors(directory: bytes, dirfd: int) -> None:
    write(directory + b"/a")
    with fails(errno.ENOENT):
        linux_io.name_to_handle(dirfd, b"none", 0)
    with fails(errno.EINVAL):
        linux_io.name_to_handle(dirfd, b"a\0b", 0)
    with opened(b"/proc/self/net", os.O_RDONLY | os.O_DIRECTORY) as proc, fails(errno.EOPNOTSUPP):
        linux_io.name_to_handle(proc)
    handle = linux_io.name_to_handle(dirfd)
    for malformed in (b"", handle[:4], handle + bytes(linux_io.MAX_HANDLE_BYTES)):
        with fails(errno.EINVAL):
            linux_io.open_by_handle(dirfd, malformed, os.O_RDONLY)
    with fails(errno.ESTALE):
        linux_io.open_by_handle(dirfd, handle[:5], os.O_RDONLY)
    with opened(directory, os.O_PATH) as path_only, fails(errno.EBADF):
        linux_io.open_by_handle(path_only, handle, os.O_RDONLY)


# --- space and write-back ---------------------------------------------------------------------------------------

FS_IOC_FIEMAP = 0xC020660B
FIEMAP_EXTENT_DELALLOC = 0x4


def waits_for_write_back(fd: int) -> bool:
    """Whether the file has data for which no place on disk was chosen yet (linux/fiemap.h)."""
    count = 64
    request = struct.pack("=QQIIII", 0, (1 << 63) - 1, 0, 0, count, 0) + bytes(56 * count)
    buffer = bytearray(request)
    fcntl.ioctl(fd, FS_IOC_FIEMAP, buffer)
    (mapped,) = struct.unpack_from("=I", buffer, 20)
    assert 0 < mapped < count
    flags = [struct.unpack_from("=I", buffer, 32 + 56 * index + 40)[0] for index in range(mapped)]
    return any(flag & FIEMAP_EXTENT_DELALLOC for flag in flags)


@pytest.fixture
def four_pages(directory: bytes) -> Iterator[int]:
    with opened(directory + b"/pages", content=b"".join(bytes([c]) * PAGE for c in b"abcd")) as fd:
        os.fsync(fd)
        yield fd


def pages(fd: int) -> bytes:
    """The first byte of each page, each page being of one byte."""
    found = b""
    for position in range(0, os.fstat(fd).st_size, PAGE):
        page = os.pread(fd, PAGE, position)
        assert page == page[:1] * PAGE
        found += page[:1]
    return found


def test_fallocate_reserves(four_pages: int) -> None:
    before = os.fstat(four_pages).st_blocks
    linux_io.fallocate(four_pages, linux_io.FALLOC_FL_KEEP_SIZE, 4 * PAGE, 4 * PAGE)
    assert os.fstat(four_pages).st_size == 4 * PAGE
    assert os.fstat(four_pages).st_blocks >= before + 4 * PAGE // 512
    linux_io.fallocate(four_pages, 0, 0, 6 * PAGE)
    assert pages(four_pages) == b"abcd\0\0"


def test_fallocate_punches(four_pages: int) -> None:
    before = os.fstat(four_pages).st_blocks
    linux_io.fallocate(four_pages, linux_io.FALLOC_FL_PUNCH_HOLE | linux_io.FALLOC_FL_KEEP_SIZE, PAGE, 2 * PAGE)
    assert pages(four_pages) == b"a\0\0d"
    assert os.fstat(four_pages).st_blocks < before
    assert os.lseek(four_pages, 0, os.SEEK_HOLE) == PAGE
    with fails(errno.EOPNOTSUPP):  # the kernel wants both
        linux_io.fallocate(four_pages, linux_io.FALLOC_FL_PUNCH_HOLE, 0, PAGE)


@pytest.mark.parametrize(
    ("mode", "offset", "pages_after"),
    [
        (linux_io.FALLOC_FL_ZERO_RANGE, PAGE, b"a\0cd"),
        (linux_io.FALLOC_FL_ZERO_RANGE, 4 * PAGE, b"abcd\0"),
        (linux_io.FALLOC_FL_COLLAPSE_RANGE, PAGE, b"acd"),
        (linux_io.FALLOC_FL_INSERT_RANGE, PAGE, b"a\0bcd"),
    ],
)
def test_fallocate_zeroes_and_moves(four_pages: int, mode: int, offset: int, pages_after: bytes) -> None:
    linux_io.fallocate(four_pages, mode, offset, PAGE)
    assert pages(four_pages) == pages_after


def test_fallocate_unshare_is_for_reflinks(four_pages: int) -> None:
    try:
        linux_io.fallocate(four_pages, linux_io.FALLOC_FL_UNSHARE_RANGE, 0, PAGE)
    except OSError as error:
        assert error.errno == errno.EOPNOTSUPP  # ext4
    assert pages(four_pages) == b"abcd"


def test_fallocate_refuses_what_does_not_fit(four_pages: int) -> None:
    for offset, length in ((-1, PAGE), (0, 0), (0, -1), (1 << 64, PAGE), (0, (1 << 64) + PAGE)):
        with fails(errno.EINVAL):
            linux_io.fallocate(four_pages, linux_io.FALLOC_FL_ZERO_RANGE, offset, length)
    assert pages(four_pages) == b"abcd"
    with fails(errno.EFBIG):
        linux_io.fallocate(four_pages, 0, (1 << 63) - PAGE, PAGE - 1)
    with fails(errno.EBADF):
        linux_io.fallocate(-1, 0, 0, PAGE)


def test_sync_file_range_writes_back(directory: bytes) -> None:
    with opened(directory + b"/f", content=b"x" * (64 * PAGE)) as fd:
        assert waits_for_write_back(fd)
        linux_io.sync_file_range(fd, 0, 0, linux_io.SYNC_FILE_RANGE_WRITE | linux_io.SYNC_FILE_RANGE_WAIT_AFTER)
        assert not waits_for_write_back(fd)
        for offset, length in ((-1, 0), (0, -1), (1 << 64, 0), (0, 1 << 64)):
            with fails(errno.EINVAL):
                linux_io.sync_file_range(fd, offset, length, linux_io.SYNC_FILE_RANGE_WRITE)
        with fails(errno.EINVAL):
            linux_io.sync_file_range(fd, 0, 0, 0x100)
    out, into = os.pipe()
    with fails(errno.ESPIPE):
        linux_io.sync_file_range(out, 0, 0, linux_io.SYNC_FILE_RANGE_WRITE)
    os.close(out)
    os.close(into)


def test_syncfs_writes_back(directory: bytes, dirfd: int) -> None:
    with opened(directory + b"/f", content=b"x" * PAGE) as fd:
        assert waits_for_write_back(fd)
        linux_io.syncfs(dirfd)
        assert not waits_for_write_back(fd)
    with fails(errno.EBADF):
        linux_io.syncfs(-1)


# --- attributes -------------------------------------------------------------------------------------------------


def mount_id_of(fd: int) -> int:
    fields = dict(line.split(b":\t") for line in read(b"/proc/self/fdinfo/%d" % fd).splitlines() if b":\t" in line)
    return int(fields[b"mnt_id"])


def test_statx_birth_time_and_mount_id(directory: bytes, dirfd: int) -> None:
    slack_ns = 1_000_000_000  # the file system's clock is a coarse one
    before = time.time_ns() - slack_ns
    with opened(directory + b"/f") as fd:
        os.utime(fd, ns=(1, 1))
        found = linux_io.statx(fd)
        assert found.btime_ns is not None
        assert before <= found.btime_ns <= time.time_ns() + slack_ns
        assert found.mount_id == mount_id_of(fd)
        assert linux_io.statx(dirfd, b"f", linux_io.AT_SYMLINK_NOFOLLOW) == found
        assert linux_io.statx(fd, mask=linux_io.STATX_BTIME) == linux_io.Statx(found.btime_ns, None)
        assert linux_io.statx(fd, mask=linux_io.STATX_MNT_ID) == linux_io.Statx(None, found.mount_id)
    with mounted(directory + b"/mnt"):
        inside = linux_io.statx(dirfd, b"mnt", 0)
        assert inside.mount_id not in (None, found.mount_id)
        with opened(directory + b"/mnt", os.O_PATH) as fd:
            assert inside.mount_id == mount_id_of(fd)


def test_statx_missing_birth_time_and_errors(dirfd: int) -> None:
    assert linux_io.statx(linux_io.AT_FDCWD, b"/proc/self/status", 0).btime_ns is None
    with fails(errno.ENOENT):
        linux_io.statx(dirfd, b"none", 0)
    with fails(errno.EINVAL):
        linux_io.statx(linux_io.AT_FDCWD, b"/proc\0x", 0)
    with fails(errno.EBADF):
        linux_io.statx(-1)


def test_fchownat_empty_changes_the_symlink_itself(directory: bytes) -> None:
    write(directory + b"/f")
    os.symlink(b"f", directory + b"/link")
    with opened(directory + b"/link", os.O_PATH | os.O_NOFOLLOW) as fd:
        linux_io.fchownat_empty(fd, 1001, 1002)
        linux_io.fchownat_empty(fd, -1, 1003)
        linux_io.fchownat_empty(fd, 0xFFFFFFFE, -1)
        for uid, gid in ((1 << 32, 0), (0, 1 << 32), (0xFFFFFFFF, 0), (-2, 0)):
            with fails(errno.EINVAL):
                linux_io.fchownat_empty(fd, uid, gid)
    link, file = os.lstat(directory + b"/link"), os.lstat(directory + b"/f")
    assert (link.st_uid, link.st_gid) == (0xFFFFFFFE, 1003)
    assert (file.st_uid, file.st_gid) == (0, 0)
    with fails(errno.EBADF):
        linux_io.fchownat_empty(-1, 0, 0)


def test_utimens_empty_sets_the_symlinks_own_times(directory: bytes) -> None:
    write(directory + b"/f")
    os.utime(directory + b"/f", ns=(5, 5))
    os.symlink(b"f", directory + b"/link")

    def times() -> tuple[int, int]:
        found = os.lstat(directory + b"/link")
        return found.st_atime_ns, found.st_mtime_ns

    with opened(directory + b"/link", os.O_PATH | os.O_NOFOLLOW) as fd:
        linux_io.utimens_empty(fd, 1_600_000_000_123_456_789, -1_500_000_001)
        assert times() == (1_600_000_000_123_456_789, -1_500_000_001)
        linux_io.utimens_empty(fd, None, 7)
        assert times() == (1_600_000_000_123_456_789, 7)
        linux_io.utimens_empty(fd, 8, linux_io.UTIME_OMIT)
        assert times() == (8, 7)
        # What the kernel's own sentinels would be, read as a time.
        linux_io.utimens_empty(fd, (1 << 30) - 1, (1 << 30) - 2)
        assert times() == ((1 << 30) - 1, (1 << 30) - 2)
        linux_io.utimens_empty(fd, linux_io.UTIME_NOW, None)
        assert abs(times()[0] - time.time_ns()) < 2_000_000_000
        assert times()[1] == (1 << 30) - 2
        with fails(errno.EINVAL):
            linux_io.utimens_empty(fd, 1 << 95, 0)
    assert os.stat(directory + b"/f").st_mtime_ns == 5
    with fails(errno.EBADF):
        linux_io.utimens_empty(-1, 0, 0)


def test_immutable_flag(directory: bytes) -> None:
    nodump = 0x40
    with opened(directory + b"/f") as fd:
        flags = struct.unpack("=I4x", fcntl.ioctl(fd, 0x80086601, bytes(8)))[0]
        fcntl.ioctl(fd, 0x40086602, struct.pack("=I4x", flags | nodump))
        assert not linux_io.get_immutable(fd)
        linux_io.set_immutable(fd, True)
        try:
            linux_io.set_immutable(fd, True)
            assert linux_io.get_immutable(fd)
            with fails(errno.EPERM):
                linux_io.renameat2(-100, directory + b"/f", -100, directory + b"/g")
        finally:
            linux_io.set_immutable(fd, False)
        assert not linux_io.get_immutable(fd)
        os.rename(directory + b"/f", directory + b"/g")
        assert struct.unpack("=I4x", fcntl.ioctl(fd, 0x80086601, bytes(8)))[0] == flags | nodump
    out, into = os.pipe()
    with fails(errno.ENOTTY):
        linux_io.get_immutable(out)
    with fails(errno.ENOTTY):
        linux_io.set_immutable(out, True)
    os.close(out)
    os.close(into)


# --- listing ----------------------------------------------------------------------------------------------------


def listing(fd: int, size: int) -> list[linux_io.DirectoryEntry]:
    entries: list[linux_io.DirectoryEntry] = []
    while more := linux_io.getdents64(fd, size):
        entries += more
    return entries


@pytest.fixture(scope="module")
def large() -> Iterator[bytes]:
    """5,000 entries with names of 4 to 253 bytes, most not UTF-8. Only to be read."""
    path = os.fsencode(tempfile.mkdtemp(prefix="hotpair-test-", dir="/var/tmp"))
    for number in range(5000):
        os.mknod(path + b"/%04d" % number + b"\xff" * (number % 250))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def largefd(large: bytes) -> Iterator[int]:
    with opened(large, os.O_RDONLY) as fd:
        yield fd


def test_getdents64_agrees_with_listdir(large: bytes, largefd: int) -> None:
    entries = listing(largefd, 65536)
    assert len(entries) == 5002
    assert {entry[3] for entry in entries} == set(os.listdir(large)) | {b".", b".."}
    inodes = {name: inode for inode, _, _, name in entries}
    assert all(inodes[entry.name] == entry.inode() for entry in os.scandir(large))
    os.lseek(largefd, 0, os.SEEK_SET)
    assert listing(largefd, 2000) == entries  # a smaller buffer, with leftovers of the larger call in it


def test_getdents64_goes_on_from_any_cookie(largefd: int) -> None:
    entries = listing(largefd, 65536)
    for index in (0, 1, 2, 499, 2500, 4999, 5000):
        os.lseek(largefd, entries[index][1], os.SEEK_SET)
        assert linux_io.getdents64(largefd, 4096)[0] == entries[index + 1]
    os.lseek(largefd, entries[-1][1], os.SEEK_SET)
    assert linux_io.getdents64(largefd, 4096) == []


def test_getdents64_is_one_call(largefd: int) -> None:
    first = linux_io.getdents64(largefd, 4096)
    assert 2 < sum(19 + len(entry[3]) + 1 for entry in first) <= 4096
    assert len(linux_io.getdents64(largefd, linux_io.MAX_LISTING_BYTES)) > len(first)


def test_getdents64_gives_types(directory: bytes, dirfd: int) -> None:
    write(directory + b"/file")
    os.mkdir(directory + b"/directory")
    os.symlink(b"x", directory + b"/link")
    os.mkfifo(directory + b"/fifo")
    os.mknod(directory + b"/character", stat.S_IFCHR, 0)
    os.mknod(directory + b"/block", stat.S_IFBLK, 0)
    os.mknod(directory + b"/socket", stat.S_IFSOCK)
    assert {name: kind for _, _, kind, name in linux_io.getdents64(dirfd)} == {
        b".": linux_io.DT_DIR,
        b"..": linux_io.DT_DIR,
        b"file": linux_io.DT_REG,
        b"directory": linux_io.DT_DIR,
        b"link": linux_io.DT_LNK,
        b"fifo": linux_io.DT_FIFO,
        b"character": linux_io.DT_CHR,
        b"block": linux_io.DT_BLK,
        b"socket": linux_io.DT_SOCK,
    }


def test_getdents64_in_two_threads(large: bytes, directory: bytes) -> None:
    for number in range(2000):
        os.mknod(directory + b"/other%d" % number)

    def list_often(path: bytes) -> bool:
        expected = set(os.listdir(path)) | {b".", b".."}
        with opened(path, os.O_RDONLY) as fd:
            for _ in range(20):
                os.lseek(fd, 0, os.SEEK_SET)
                if {entry[3] for entry in listing(fd, 65536)} != expected:
                    return False
        return True

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(list_often, [large, directory])) == [True, True]


def test_getdents64_errors(directory: bytes, dirfd: int) -> None:
    write(directory + b"/f")
    for size in (-1, 8, linux_io.MAX_LISTING_BYTES + 1):
        with fails(errno.EINVAL):
            linux_io.getdents64(dirfd, size)
    with opened(directory + b"/f") as fd, fails(errno.ENOTDIR):
        linux_io.getdents64(fd)
    os.mkdir(directory + b"/gone")
    with opened(directory + b"/gone", os.O_RDONLY) as fd:
        os.rmdir(directory + b"/gone")
        with fails(errno.ENOENT):
            linux_io.getdents64(fd)


# --- mounts -----------------------------------------------------------------------------------------------------


def mount_line(target: bytes) -> bytes:
    lines = [line for line in read(b"/proc/self/mountinfo").splitlines() if line.split()[4] == target]
    assert len(lines) == 1
    return lines[0]


def test_mount_with_data_and_remount_read_only(directory: bytes) -> None:
    target = directory + b"/mnt"
    with mounted(target, data=b"size=64k,mode=0711"):
        assert stat.S_IMODE(os.stat(target).st_mode) == 0o711
        assert os.statvfs(target).f_blocks * os.statvfs(target).f_frsize == 65536
        write(target + b"/f")
        linux_io.mount(None, target, None, linux_io.MS_REMOUNT | linux_io.MS_RDONLY)
        with fails(errno.EROFS):
            linux_io.openat2(linux_io.AT_FDCWD, target + b"/g", os.O_CREAT | os.O_WRONLY, 0o600, 0)
        linux_io.umount2(target)
        assert os.listdir(target) == []


def test_bind_mount_read_only_nosuid_nodev_noexec(directory: bytes) -> None:
    source, target = directory + b"/source", directory + b"/target"
    os.mkdir(source)
    os.mkdir(target)
    write(source + b"/f", b"F")
    linux_io.mount(source, target, None, linux_io.MS_BIND)
    try:
        assert read(target + b"/f") == b"F"
        assert not os.statvfs(target).f_flag & os.ST_RDONLY
        wanted = linux_io.MS_RDONLY | linux_io.MS_NOSUID | linux_io.MS_NODEV | linux_io.MS_NOEXEC
        linux_io.mount(None, target, None, linux_io.MS_REMOUNT | linux_io.MS_BIND | wanted)
        shown = os.ST_RDONLY | os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC
        assert os.statvfs(target).f_flag & shown == shown
        write(source + b"/g")  # the source itself stays writable
    finally:
        linux_io.umount2(target, linux_io.MNT_DETACH)
    assert os.listdir(target) == []


def test_recursive_bind_and_private(directory: bytes) -> None:
    shared = 1 << 20
    source, target = directory + b"/source", directory + b"/target"
    os.mkdir(target)
    with mounted(source), mounted(source + b"/inner"):
        linux_io.mount(None, source, None, shared | linux_io.MS_REC)
        linux_io.mount(source, target, None, linux_io.MS_BIND | linux_io.MS_REC)
        try:
            assert os.path.ismount(target + b"/inner")
            assert b" shared:" in mount_line(target + b"/inner")
            linux_io.mount(None, target, None, linux_io.MS_PRIVATE | linux_io.MS_REC)
            assert b" shared:" not in mount_line(target)
            assert b" shared:" not in mount_line(target + b"/inner")
        finally:
            linux_io.umount2(target, linux_io.MNT_DETACH)


def test_umount2_busy_detach_and_no_follow(directory: bytes) -> None:
    target, link = directory + b"/mnt", directory + b"/link"
    with mounted(target):
        os.symlink(target, link)
        with fails(errno.EINVAL):
            linux_io.umount2(link, linux_io.UMOUNT_NOFOLLOW)
        with opened(target + b"/f") as fd:
            with fails(errno.EBUSY):
                linux_io.umount2(target, linux_io.MNT_FORCE)
            linux_io.umount2(target, linux_io.MNT_DETACH)
            assert not os.path.ismount(target)
            os.pwrite(fd, b"still there", 0)
    with fails(errno.EINVAL):
        linux_io.umount2(target)


def test_mount_errors(directory: bytes) -> None:
    with fails(errno.ENODEV):
        linux_io.mount(b"x", directory, b"no-such-fs")
    with fails(errno.ENOENT):
        linux_io.mount(b"x", directory + b"/none", b"tmpfs")
    for arguments in (
        (b"x\0", directory, b"tmpfs", b""),
        (b"x", directory + b"\0/none", b"tmpfs", b""),
        (b"x", directory, b"tmpfs\0x", b""),
        (b"x", directory, b"tmpfs", b"size=64k\0x"),
    ):
        source, target, fstype, data = arguments
        with fails(errno.EINVAL):
            linux_io.mount(source, target, fstype, 0, data)
    with fails(errno.EINVAL):
        linux_io.umount2(directory + b"\0x")
    assert not os.path.ismount(directory)


# --- this process -----------------------------------------------------------------------------------------------


CAP_SYS_RESOURCE = 24


def status(field: bytes) -> bytes:
    for line in read(b"/proc/self/status").splitlines():
        if line.startswith(field + b":"):
            return line.split()[1]
    raise AssertionError(field)


def effective_capabilities() -> int:
    return int(status(b"CapEff"), 16)


def test_io_flusher() -> None:
    pf_memalloc_noio, pf_local_throttle = 0x80000, 0x100000  # linux/sched.h
    both = pf_memalloc_noio | pf_local_throttle

    def flags() -> int:
        return int(read(b"/proc/self/stat").rpartition(b")")[2].split()[6])

    def become_flusher() -> str:
        before = flags() & both
        linux_io.prctl_set_io_flusher()
        return f"{before} {flags() & both}"

    def without_privilege() -> str:
        os.setuid(65534)
        return error_of(linux_io.prctl_set_io_flusher)

    assert in_child(without_privilege) == "EPERM"
    if not effective_capabilities() & 1 << CAP_SYS_RESOURCE:
        pytest.skip("root without CAP_SYS_RESOURCE")
    assert in_child(become_flusher) == f"0 {both}"


def test_thread_name() -> None:
    names: list[bytes] = []

    def rename(name: bytes) -> None:
        linux_io.prctl_set_name(name)
        names.append(read(b"/proc/thread-self/comm"))

    for name in (b"mirror\xff", b"123456789012345678"):
        thread = threading.Thread(target=rename, args=(name,))
        thread.start()
        thread.join()
    assert names == [b"mirror\xff\n", b"123456789012345\n"]
    with fails(errno.EINVAL):
        linux_io.prctl_set_name(b"a\0b")


def locked_bytes() -> int:
    return int(status(b"VmLck")) * 1024


@pytest.mark.parametrize("future", [False, True])
def test_mlockall(future: bool) -> None:
    size = 16 << 20

    def lock() -> str:
        before = locked_bytes()
        if future:
            linux_io.mlockall_current(linux_io.MCL_CURRENT | linux_io.MCL_ONFAULT | linux_io.MCL_FUTURE)
        else:
            linux_io.mlockall_current()
        current = locked_bytes()
        with closing(mmap.mmap(-1, size)):
            later = locked_bytes()
        return f"{before == 0} {current > size // 8} {later - current >= size}"

    assert in_child(lock) == f"True True {future}"


def test_mlockall_errors() -> None:
    def without_privilege() -> str:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        os.setuid(65534)
        return error_of(linux_io.mlockall_current)

    assert in_child(without_privilege) == "EPERM"
    assert in_child(lambda: error_of(lambda: linux_io.mlockall_current(linux_io.MCL_ONFAULT))) == "EINVAL"


# --- AioQueue -------------------------------------------------------------------------------------------------


def wait_for(queue: linux_io.AioQueue, count: int) -> list[tuple[int, int]]:
    """Results as an event loop gets them: only when epoll says that there are some."""
    results: list[tuple[int, int]] = []
    with closing(select.epoll()) as epoll:
        epoll.register(queue.fileno(), select.EPOLLIN)
        while len(results) < count:
            assert epoll.poll(30), "not woken"
            results += queue.completed()
    return results


@contextmanager
def page() -> Iterator[tuple[mmap.mmap, int]]:
    """Memory for one read with O_DIRECT, and where it is."""
    memory = mmap.mmap(-1, PAGE)
    held = ctypes.c_char.from_buffer(memory)
    try:
        yield memory, ctypes.addressof(held)
    finally:
        del held
        memory.close()


def test_a_read_and_its_errors(directory: bytes, dirfd: int) -> None:
    with closing(linux_io.AioQueue(2)) as queue, page() as (memory, address):
        with opened(directory + b"/f", content=b"x" * PAGE) as fd:
            os.fsync(fd)
        with opened(directory + b"/f", os.O_RDONLY | os.O_DIRECT) as fd:
            queue.submit_read(fd, 2**64 - 1, address, PAGE, 0)
            assert queue.pending == 1
        assert wait_for(queue, 1) == [(2**64 - 1, PAGE)]  # although it was closed meanwhile
        assert memory[:] == b"x" * PAGE
        assert (queue.pending, queue.completed()) == (0, [])
        closed = os.dup(dirfd)
        os.close(closed)
        with opened(directory, os.O_PATH) as path_only:
            for bad in (-1, closed, path_only):
                with fails(errno.EBADF):
                    queue.submit_read(bad, 1, address, PAGE, 0)
                assert queue.pending == 0


def test_a_queue_refuses_more_than_its_depth(directory: bytes) -> None:
    with closing(linux_io.AioQueue(4)) as queue, page() as (_, address), opened(directory + b"/f", content=b"x") as fd:
        for token in range(4):
            queue.submit_read(fd, token, address, 1, 0)
        with pytest.raises(BlockingIOError):
            queue.submit_read(fd, 4, address, 1, 0)
        assert queue.pending == 4
        assert sorted(wait_for(queue, 4)) == [(token, 1) for token in range(4)]
        queue.submit_read(fd, 5, address, 1, 0)
        assert wait_for(queue, 1) == [(5, 1)]


def test_a_queues_depth_and_close(directory: bytes) -> None:
    for depth in (0, linux_io.MAX_AIO_DEPTH + 1):
        with pytest.raises(AssertionError):
            linux_io.AioQueue(depth)
    in_use = int(read(b"/proc/sys/fs/aio-nr"))
    descriptors = os.listdir("/proc/self/fd")
    queue = linux_io.AioQueue(linux_io.MAX_AIO_DEPTH)
    assert int(read(b"/proc/sys/fs/aio-nr")) >= in_use + linux_io.MAX_AIO_DEPTH
    assert not os.get_inheritable(queue.fileno())
    assert not os.get_blocking(queue.fileno())
    queue.close()
    queue.close()
    assert os.listdir("/proc/self/fd") == descriptors
    deadline = time.monotonic() + 10  # the kernel gives the room back a little later
    while int(read(b"/proc/sys/fs/aio-nr")) > in_use:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with page() as (_, address), opened(directory, os.O_RDONLY) as fd, pytest.raises(AssertionError):
        queue.submit_read(fd, 1, address, PAGE, 0)


def test_an_exhausted_system_is_reported_and_nothing_leaks() -> None:
    queues: list[linux_io.AioQueue] = []
    try:
        with fails(errno.EAGAIN):
            for _ in range(int(read(b"/proc/sys/fs/aio-max-nr")) // linux_io.MAX_AIO_DEPTH + 1):
                descriptors = os.listdir("/proc/self/fd")
                queues.append(linux_io.AioQueue(linux_io.MAX_AIO_DEPTH))
        assert os.listdir("/proc/self/fd") == descriptors
    finally:
        for queue in queues:
            queue.close()


# --- Flusher --------------------------------------------------------------------------------------------------


def ended(flusher: Flusher, count: int, results: list[Any]) -> None:
    """As an event loop does it: it looks only when epoll says that there is something."""
    with closing(select.epoll()) as epoll:
        epoll.register(flusher.fileno(), select.EPOLLIN)
        while len(results) < count:
            assert epoll.poll(30), "not woken"
            flusher.completed()


@pytest.mark.parametrize("data_only", [True, False])
def test_a_flush(directory: bytes, data_only: bool) -> None:
    flusher, results = Flusher(), list[Any]()
    with opened(directory + b"/f", content=b"x" * PAGE) as fd:
        assert waits_for_write_back(fd)
        flusher.flush(fd, data_only, results.append)
        assert (flusher.pending, results) == (1, [])
        ended(flusher, 1, results)
        assert not waits_for_write_back(fd)
    assert (flusher.pending, results) == (0, [0])
    flusher.completed()
    assert results == [0]


def test_many_flushes_of_files_closed_meanwhile(directory: bytes, dirfd: int) -> None:
    files, flusher, results = 600, Flusher(), list[Any]()
    for number in range(files):
        with opened(directory + b"/%d" % number, content=b"x" * PAGE) as fd:
            flusher.flush(fd, True, lambda error, number=number: results.append((number, error)))
    flusher.flush(dirfd, False, lambda error: results.append((files, error)))  # directories too
    ended(flusher, files + 1, results)
    assert sorted(results) == [(number, 0) for number in range(files + 1)]
    for number in range(files):
        with opened(directory + b"/%d" % number) as fd:
            assert not waits_for_write_back(fd)
    assert len([one for one in threading.enumerate() if one.name == "flush"]) <= 3 * FLUSH_THREADS  # of all tests here


def test_what_cannot_be_flushed(directory: bytes, dirfd: int) -> None:
    flusher, results = Flusher(), list[Any]()
    closed = os.dup(dirfd)
    os.close(closed)
    for bad in (-1, closed):
        with fails(errno.EBADF):
            flusher.flush(bad, True, results.append)
    assert flusher.pending == 0
    out, into = os.pipe()
    with opened(directory, os.O_PATH) as path_only:
        for bad in (path_only, out):
            flusher.flush(bad, True, results.append)
        ended(flusher, 2, results)
    assert sorted(results) == [errno.EBADF, errno.EINVAL]
    os.close(out)
    os.close(into)


# A FUSE file system of one directory, whose flush is answered when the test says so (linux/fuse.h).
FUSE_INIT, FUSE_OPENDIR, FUSE_FSYNCDIR = 26, 27, 30


def readable(fd: int, timeout_s: float) -> bool:
    """Whether something can be read within that time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def fuse_request(device: int, opcode: int) -> int:
    """Read the next request, which must be an `opcode`; returns its unique number."""
    assert readable(device, 10), "no request came"
    found, unique = struct.unpack_from("=4xIQ", os.read(device, 1 << 16))
    assert found == opcode
    assert isinstance(unique, int)
    return unique


def fuse_answer(device: int, unique: int, code: int = 0, body: bytes = b"") -> None:
    os.write(device, struct.pack("=IiQ", 16 + len(body), -code, unique) + body)


@pytest.fixture
def held(directory: bytes) -> Iterator[tuple[int, int]]:
    """(/dev/fuse, a descriptor of the directory whose flushes are held)"""
    device = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    fd = -1
    pool = ThreadPoolExecutor(1)
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0" % device
    target = directory + b"/fuse"
    os.mkdir(target)
    linux_io.mount(b"hotpair-test", target, b"fuse", linux_io.MS_NOSUID | linux_io.MS_NODEV, options)
    try:
        init = struct.pack("=IIIIHHIIHHI28x", 7, 31, 0, 0, 16, 12, 4096, 1, 1, 0, 0)
        fuse_answer(device, fuse_request(device, FUSE_INIT), 0, init)
        opening = pool.submit(os.open, target, os.O_RDONLY)
        fuse_answer(device, fuse_request(device, FUSE_OPENDIR), 0, struct.pack("=QIi", 1, 0, 0))
        fd = opening.result(10)
        yield device, fd
    finally:
        os.close(device)  # ends the connection: whatever still waits gets an error
        if fd >= 0:
            os.close(fd)
        linux_io.umount2(target, linux_io.MNT_DETACH)
        pool.shutdown()


def test_a_flush_is_not_waited_for_and_reports_the_error(held: tuple[int, int]) -> None:
    device, fd = held
    flusher, results = Flusher(), list[Any]()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(flusher.flush, fd, False, results.append).result(10)  # returns although nobody has answered
        unique = fuse_request(device, FUSE_FSYNCDIR)
        pool.submit(flusher.completed).result(10)
        assert not readable(flusher.fileno(), 0.05)
        assert (flusher.pending, results) == (1, [])
        fuse_answer(device, unique, errno.EIO)
        ended(flusher, 1, results)
    assert (flusher.pending, results) == (0, [errno.EIO])
