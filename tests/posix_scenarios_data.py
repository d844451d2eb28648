"""Scenarios: reading and writing, sizes, holes, mappings, locks."""

import fcntl
import os

from tests import system_calls
from tests.posix_difference import BothSides
from tests.posix_operations import Offset
from tests.posix_scenarios import READ_WRITE, content, make_file, scenario

KIBIBYTE, MEBIBYTE, TEBIBYTE = 1 << 10, 1 << 20, 1 << 40
KEEP, PUNCH, ZERO = (
    system_calls.FALLOC_FL_KEEP_SIZE,
    system_calls.FALLOC_FL_PUNCH_HOLE | system_calls.FALLOC_FL_KEEP_SIZE,
    system_calls.FALLOC_FL_ZERO_RANGE,
)


def holes(both: BothSides, slot: int, end: int) -> list[tuple[int, int]]:
    """The data segments as both sides tell them."""
    segments, position = [], 0
    while position < end:
        outcome = both.do("seek", slot=slot, offset=position, whence=os.SEEK_DATA)
        if outcome.error == "ENXIO":
            break
        assert isinstance(outcome.value, Offset)
        start = outcome.value.position
        position = both.ok("seek", slot=slot, offset=start, whence=os.SEEK_HOLE).position
        segments.append((start, position))
    return segments


@scenario
def every_combination_of_open_flags(both: BothSides) -> None:
    accesses = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_ACCMODE]
    creations = [0, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_CREAT | os.O_TRUNC]
    others = [0, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_PATH, os.O_PATH | os.O_NOFOLLOW, os.O_DSYNC]
    make_file(both, b"file")
    both.ok("mkdir", path=b"directory")
    both.ok("symlink", target=b"file", path=b"link")
    both.ok("symlink", target=b"nowhere", path=b"dangling")
    both.ok("mknod", path=b"fifo", mode=0o010644)
    both.ok("mknod", path=b"socket", mode=0o140644)
    for path in (b"file", b"directory", b"link", b"fifo", b"socket", b"new", b"dangling", b"file/below"):
        for access in accesses:
            for creation in creations:
                for other in others:
                    outcome = both.do("open", slot=1, path=path, flags=access | creation | other, mode=0o640)
                    if outcome.error is None:
                        both.do("write", slot=1, length=10, fill=1)
                        both.do("pread", slot=1, length=20, offset=0)
                        both.ok("close", slot=1)
                    if path == b"new":
                        both.do("unlink", path=path)
                    both.do("unlink", path=b"nowhere")


@scenario
def exclusive_creation(both: BothSides) -> None:
    both.ok("open", slot=1, path=b"a", flags=READ_WRITE | os.O_EXCL)
    both.fails("EEXIST", "open", slot=2, path=b"a", flags=READ_WRITE | os.O_EXCL)
    both.ok("symlink", target=b"nowhere", path=b"link")
    both.fails("EEXIST", "open", slot=2, path=b"link", flags=READ_WRITE | os.O_EXCL)


@scenario
def reads_and_writes_of_many_lengths(both: BothSides) -> None:
    both.ok("open", slot=1, path=b"a", flags=READ_WRITE)
    for number, length in enumerate([0, 1, 511, 512, 4095, 4096, 4097, 65536, MEBIBYTE, MEBIBYTE + 1, 5 * MEBIBYTE]):
        offset = number * 700_001
        assert both.ok("pwrite", slot=1, length=length, offset=offset, fill=number) == length
        both.ok("pread", slot=1, length=length + 100, offset=max(0, offset - 50))
    assert both.ok("pread", slot=1, length=10, offset=100 * MEBIBYTE) == b""
    assert both.ok("writev", slot=1, lengths=[1, 0, 4096, 70_000], fill=3) == 74_097
    both.ok("seek", slot=1, offset=5, whence=os.SEEK_SET)
    both.ok("readv", slot=1, lengths=[3, 0, 10_000, 1])
    for flags in (os.RWF_DSYNC, os.RWF_SYNC, os.RWF_APPEND):
        both.ok("pwritev", slot=1, length=5000, offset=3, fill=4, flags=flags)


@scenario
def write_beyond_the_end_leaves_zeros(both: BothSides) -> None:
    both.ok("open", slot=1, path=b"a", flags=READ_WRITE)
    both.ok("pwrite", slot=1, length=10, offset=100_000, fill=1)
    assert both.ok("pread", slot=1, length=100_000, offset=0) == bytes(100_000)
    both.ok("ftruncate", slot=1, length=5)
    both.ok("ftruncate", slot=1, length=50)
    assert both.ok("pread", slot=1, length=100, offset=0) == bytes(50)


@scenario
def appending(both: BothSides) -> None:
    make_file(both, b"a", 10)
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR | os.O_APPEND)
    both.ok("open", slot=2, path=b"a", flags=os.O_RDWR | os.O_APPEND)
    both.ok("write", slot=1, length=5, fill=1)
    both.ok("write", slot=2, length=5, fill=2)
    # Linux: pwrite to a file opened with O_APPEND appends, whatever the offset.
    both.ok("pwrite", slot=1, length=5, offset=0, fill=3)
    both.ok("seek", slot=1, offset=0, whence=os.SEEK_SET)
    both.ok("write", slot=1, length=5, fill=4)
    both.ok("ftruncate", slot=2, length=3)
    both.ok("write", slot=1, length=5, fill=5)
    assert len(content(both, b"a")) == 8
    assert both.ok("seek", slot=1, offset=0, whence=os.SEEK_CUR) == 8


@scenario
def wrong_kind_of_descriptor(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("open", slot=1, path=b"a", flags=os.O_RDONLY)
    both.ok("open", slot=2, path=b"a", flags=os.O_WRONLY)
    both.ok("open", slot=3, path=b"a", flags=os.O_PATH)
    both.ok("open", slot=4, path=b".", flags=os.O_RDONLY)
    both.fails("EBADF", "write", slot=1, length=1, fill=1)
    both.fails("EINVAL", "ftruncate", slot=1, length=1)
    both.fails("EBADF", "fallocate", slot=1, mode=0, offset=0, length=1)
    both.fails("EBADF", "read", slot=2, length=1)
    both.fails("EBADF", "read", slot=3, length=1)
    both.fails("EBADF", "fchmod", slot=3, mode=0)
    both.fails("EISDIR", "read", slot=4, length=1)
    both.ok("fstat", slot=3)
    for slot in (1, 2, 4):
        both.ok("fsync", slot=slot)
        both.ok("fdatasync", slot=slot)
    both.fails("EBADF", "fsync", slot=3)


@scenario
def truncation(both: BothSides) -> None:
    make_file(both, b"a", 200_000)
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
    for length in (100_000, 99_999, 4097, 4096, 1, 0, 70_000, 70_000, 5 * MEBIBYTE):
        both.ok("ftruncate", slot=1, length=length)
        assert both.ok("stat", path=b"a").size == length
        both.ok("pread", slot=1, length=6 * MEBIBYTE, offset=0)
        both.ok("pwrite", slot=1, length=100, offset=length // 2, fill=2)
    both.ok("truncate", path=b"a", length=10)
    both.fails("EINVAL", "truncate", path=b"a", length=-1)
    both.fails("EISDIR", "truncate", path=b".", length=0)
    both.fails("ENOENT", "truncate", path=b"b", length=0)
    both.ok("open", slot=2, path=b"a", flags=os.O_RDONLY | os.O_TRUNC)
    assert both.ok("fstat", slot=1).size == 0


@scenario
def preallocation_and_punched_holes(both: BothSides) -> None:
    both.ok("open", slot=1, path=b"a", flags=READ_WRITE)
    both.ok("fallocate", slot=1, mode=0, offset=0, length=100_000)
    assert both.ok("fstat", slot=1).size == 100_000
    both.ok("fallocate", slot=1, mode=KEEP, offset=100_000, length=100_000)
    assert both.ok("fstat", slot=1).size == 100_000
    both.ok("pwrite", slot=1, length=150_000, offset=0, fill=1)
    both.ok("fallocate", slot=1, mode=PUNCH, offset=5_000, length=50_000)
    assert both.ok("pread", slot=1, length=50_000, offset=5_000) == bytes(50_000)
    both.ok("fallocate", slot=1, mode=ZERO, offset=140_000, length=30_000)
    assert both.ok("fstat", slot=1).size == 170_000
    both.ok("fallocate", slot=1, mode=ZERO | KEEP, offset=1_000, length=1)
    both.ok("fallocate", slot=1, mode=ZERO | KEEP, offset=160_000, length=100_000)
    both.ok("fallocate", slot=1, mode=PUNCH, offset=160_000, length=MEBIBYTE)
    assert both.ok("fstat", slot=1).size == 170_000
    both.fails("EINVAL", "fallocate", slot=1, mode=0, offset=0, length=0)
    both.fails("EINVAL", "fallocate", slot=1, mode=0, offset=-1, length=1)
    both.fails("EOPNOTSUPP", "fallocate", slot=1, mode=PUNCH & ~KEEP, offset=0, length=1)
    both.fails("EFBIG", "fallocate", slot=1, mode=0, offset=1 << 62, length=4096)
    both.ok("pread", slot=1, length=200_000, offset=0)


@scenario
def holes_of_a_sparse_file(both: BothSides) -> None:
    both.ok("open", slot=1, path=b"a", flags=READ_WRITE)
    both.ok("ftruncate", slot=1, length=8 * MEBIBYTE)
    assert holes(both, 1, 8 * MEBIBYTE) == []
    both.ok("pwrite", slot=1, length=4096, offset=MEBIBYTE, fill=1)
    both.ok("pwrite", slot=1, length=10, offset=4 * MEBIBYTE - 5, fill=1)  # both sides of an extent's border
    expected = [(MEBIBYTE, MEBIBYTE + 4096), (4 * MEBIBYTE - 4096, 4 * MEBIBYTE + 4096)]
    assert holes(both, 1, 8 * MEBIBYTE) == expected
    both.ok("fsync", slot=1)
    assert holes(both, 1, 8 * MEBIBYTE) == expected
    both.ok("fallocate", slot=1, mode=PUNCH, offset=MEBIBYTE, length=4096)
    assert holes(both, 1, 8 * MEBIBYTE) == expected[1:]
    assert both.ok("blocks", slot=1) == 1
    both.fails("ENXIO", "seek", slot=1, offset=8 * MEBIBYTE, whence=os.SEEK_HOLE)
    both.fails("ENXIO", "seek", slot=1, offset=9 * MEBIBYTE, whence=os.SEEK_DATA)


@scenario
def sparse_file_of_many_tebibytes(both: BothSides) -> None:
    both.ok("open", slot=1, path=b"a", flags=READ_WRITE)
    both.ok("pwrite", slot=1, length=5000, offset=5 * TEBIBYTE, fill=1)
    both.ok("pread", slot=1, length=10_000, offset=5 * TEBIBYTE - 5000)
    assert both.ok("stat", path=b"a").size == 5 * TEBIBYTE + 5000
    both.ok("seek", slot=1, offset=0, whence=os.SEEK_DATA)
    both.ok("ftruncate", slot=1, length=6 * TEBIBYTE)
    both.ok("fallocate", slot=1, mode=PUNCH, offset=0, length=6 * TEBIBYTE)
    assert both.ok("blocks", slot=1) <= 1
    for offset in (16 * TEBIBYTE - 8192, 16 * TEBIBYTE, (1 << 63) - 4096, (1 << 63) - 1):
        both.do("pwrite", slot=1, length=4096, offset=offset, fill=1)
        both.do("ftruncate", slot=1, length=offset)
    both.fails("EFBIG", "pwrite", slot=1, length=10, offset=20 * TEBIBYTE, fill=1)
    both.ok("ftruncate", slot=1, length=100)


@scenario
def copying_a_range(both: BothSides) -> None:
    make_file(both, b"a", 300_000)
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
    both.ok("open", slot=2, path=b"b", flags=READ_WRITE)
    both.ok("copy_range", slot=1, other=2, length=250_000, offset=10, other_offset=5_000)
    both.ok("copy_range", slot=1, other=1, length=1_000, offset=0, other_offset=299_500)
    both.fails("EINVAL", "copy_range", slot=1, other=1, length=1_000, offset=0, other_offset=500)


@scenario
def direct_io(both: BothSides) -> None:
    both.ok("open", slot=1, path=b"a", flags=READ_WRITE | os.O_DIRECT)
    both.ok("open", slot=2, path=b"a", flags=os.O_RDWR)
    both.ok("direct_write", slot=1, blocks=3, offset=0, fill=1)
    both.ok("pwrite", slot=2, length=100, offset=50, fill=2)
    both.ok("direct_read", slot=1, blocks=4, offset=0)
    both.ok("direct_write", slot=1, blocks=300, offset=4 * MEBIBYTE - 4096, fill=3)
    both.ok("direct_read", slot=1, blocks=300, offset=4 * MEBIBYTE - 8192)
    both.ok("pread", slot=2, length=2 * MEBIBYTE, offset=4 * MEBIBYTE - 5000)


@scenario
def mappings(both: BothSides) -> None:
    make_file(both, b"a", 50_000)
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
    both.ok("open", slot=2, path=b"a", flags=os.O_RDONLY)
    both.ok("map_write", slot=1, offset=4096, length=10_000, shared=True, fill=1)
    both.ok("pread", slot=2, length=50_000, offset=0)
    both.ok("pwrite", slot=1, length=5_000, offset=6_000, fill=2)
    both.ok("map_read", slot=2, offset=0, length=50_000, shared=True)
    both.ok("map_write", slot=2, offset=0, length=5_000, shared=False, fill=3)
    both.ok("map_read", slot=2, offset=0, length=50_000, shared=False)
    both.fails("EACCES", "map_write", slot=2, offset=0, length=10, shared=True, fill=1)
    both.ok("open", slot=3, path=b"a", flags=os.O_WRONLY)
    both.fails("EACCES", "map_read", slot=3, offset=0, length=10, shared=True)
    both.ok("ftruncate", slot=1, length=9_000)
    both.ok("ftruncate", slot=1, length=20_000)
    both.ok("map_read", slot=1, offset=8192, length=10_000, shared=True)
    both.ok("map_write", slot=1, offset=8192, length=11_000, shared=True, fill=4)
    both.ok("fsync", slot=1)
    assert both.ok("fstat", slot=1).size == 20_000
    both.ok("open", slot=4, path=b"hole", flags=READ_WRITE)
    both.ok("ftruncate", slot=4, length=MEBIBYTE)
    both.ok("map_write", slot=4, offset=8192, length=100, shared=True, fill=5)
    assert holes(both, 4, MEBIBYTE) == [(8192, 12288)]


@scenario
def locks_between_descriptors(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
    both.ok("open", slot=2, path=b"a", flags=os.O_RDWR)
    both.ok("duplicate", slot=1, new_slot=3)
    both.ok("flock", slot=1, kind=fcntl.LOCK_EX)
    both.ok("flock", slot=3, kind=fcntl.LOCK_EX)
    both.fails("EAGAIN", "flock", slot=2, kind=fcntl.LOCK_SH)
    both.ok("close", slot=1)
    both.fails("EAGAIN", "flock", slot=2, kind=fcntl.LOCK_SH)
    both.ok("close", slot=3)
    both.ok("flock", slot=2, kind=fcntl.LOCK_SH)
    both.ok("open", slot=4, path=b"a", flags=os.O_RDWR)
    both.ok("flock", slot=4, kind=fcntl.LOCK_SH)
    both.fails("EAGAIN", "flock", slot=4, kind=fcntl.LOCK_EX)
    both.ok("record_lock", slot=2, kind=fcntl.F_WRLCK, start=0, length=10)
    both.fails("EAGAIN", "record_lock", slot=4, kind=fcntl.F_RDLCK, start=5, length=10)
    both.ok("record_lock", slot=4, kind=fcntl.F_WRLCK, start=10, length=10)
    both.ok("record_lock", slot=2, kind=fcntl.F_UNLCK, start=0, length=10)
    both.ok("record_lock", slot=4, kind=fcntl.F_WRLCK, start=0, length=0)


@scenario
def locks_between_processes(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
    assert both.ok("process_lock", slot=1, kind=fcntl.LOCK_EX, start=0, length=10) == ["EAGAIN"]
    assert both.ok("process_lock", slot=1, kind=fcntl.LOCK_SH, start=20, length=10) == ["EAGAIN"]
    assert both.ok("process_lock", slot=1, kind=fcntl.LOCK_UN, start=0, length=0) == []


@scenario
def flushes(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    both.ok("open", slot=1, path=b"d", flags=os.O_RDONLY | os.O_DIRECTORY)
    both.ok("open", slot=2, path=b"d/a", flags=READ_WRITE | os.O_DSYNC)
    for slot in (1, 2):
        both.ok("fsync", slot=slot)
        both.ok("fdatasync", slot=slot)
    both.ok("write", slot=2, length=10_000, fill=1)
    both.ok("unlink", path=b"d/a")
    both.ok("write", slot=2, length=10_000, fill=1)
    both.ok("fsync", slot=2)
    both.ok("rmdir", path=b"d")
    both.ok("fsync", slot=1)


@scenario
def file_system_status(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("statvfs", path=b".")
    both.ok("statvfs", path=b"a")
    both.fails("ENOENT", "statvfs", path=b"b")


KINDS_OF_TIMES = [
    (1_000_000_000, 123_456_789),
    (0, 0),
    (-1, 1),
    (-(1 << 31), 0),
    (-(1 << 40), 0),
    (1 << 32, 999_999_999),
    (15_032_385_535, 5),
    (1 << 40, 0),
    (0, system_calls.UTIME_NOW),
    (0, system_calls.UTIME_OMIT),
    (0, 1_000_000_000),
]


@scenario
def setting_times(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("symlink", target=b"a", path=b"link")
    both.ok("mkdir", path=b"d")
    both.ok("mknod", path=b"fifo", mode=0o010666)
    moment = KINDS_OF_TIMES[0]
    for path in (b"a", b"link", b"d", b"fifo"):
        for time in KINDS_OF_TIMES:
            for flags in (0, system_calls.AT_SYMLINK_NOFOLLOW):
                both.do("utimens", path=path, access=moment, modification=time, flags=flags)
                both.ok("lstat", path=path)
                both.ok("stat", path=path)
    omit = (0, system_calls.UTIME_OMIT)
    now = (0, system_calls.UTIME_NOW)
    both.ok("utimens", path=b"a", access=moment, modification=moment)
    both.fails("EPERM", "utimens", path=b"a", access=moment, modification=moment, user="alice")
    both.fails("EACCES", "utimens", path=b"a", access=now, modification=now, user="alice")
    both.do("utimens", path=b"a", access=omit, modification=omit, user="alice")
    both.ok("chmod", path=b"a", mode=0o666)
    both.ok("utimens", path=b"a", access=now, modification=now, user="alice")


@scenario
def times_move_with_changes(both: BothSides) -> None:
    past = (1_000_000_000, 0)

    def set_past(path: bytes) -> None:
        both.ok("utimens", path=path, access=past, modification=past)

    make_file(both, b"a")
    both.ok("mkdir", path=b"d")
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
    for operation, arguments, moves in (
        ("write", {"length": 1, "fill": 1}, True),
        ("write", {"length": 0, "fill": 1}, False),
        ("ftruncate", {"length": 50}, True),
        ("ftruncate", {"length": 50}, True),
        ("fallocate", {"mode": PUNCH, "offset": 0, "length": 10}, True),
        ("pread", {"length": 10, "offset": 0}, False),
        ("fchmod", {"mode": 0o600}, False),
        ("fchown", {"uid": 60001, "gid": 60001}, False),
        ("fsync", {}, False),
        ("map_write", {"offset": 0, "length": 10, "shared": True, "fill": 3}, True),
    ):
        set_past(b"a")
        both.ok(operation, slot=1, **arguments)
        assert (both.ok("fstat", slot=1).modified == "now") == moves, operation
    set_past(b"d")
    both.ok("mkdir", path=b"d/x")
    assert both.ok("stat", path=b"d").modified == "now"
    set_past(b"d")
    set_past(b"d/x")
    both.ok("rename", old=b"d/x", new=b"y")
    assert both.ok("stat", path=b"d").modified == "now"
    both.ok("stat", path=b"y")
    set_past(b"a")
    both.ok("close", slot=1)
    assert both.ok("stat", path=b"a").modified == past[0] * 10**9
