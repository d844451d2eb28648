"""System calls that Python 3.11 lacks: thin, typed, no policy.

Knows: libc, system call numbers, the layout of kernel structures. Must not know: modules, ids, the stream.

Every function raises OSError(errno, strerror) when the kernel refuses, and OSError(EINVAL) for what ctypes
would cut silently (a NUL byte in a path, a size or owner that does not fit): they may come from the peer.
A call that can be repeated without harm is repeated after EINTR, when Python's signal handlers have run; for one
that cannot (rename, link, collapse or insert range, mount) EINTR is handed up. All paths are bytes. The GIL is
released during each call; no buffer is shared between threads.
"""

import ctypes
import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NoReturn

_libc = ctypes.CDLL(None, use_errno=True)

# asm/unistd_64.h and asm-generic/unistd.h: (openat2, io_setup, io_destroy, io_submit, io_getevents)
_SYSCALL_NUMBERS: Final = {"x86_64": (437, 206, 207, 209, 208), "aarch64": (437, 0, 1, 2, 4)}
if os.uname().machine not in _SYSCALL_NUMBERS:
    raise ImportError(f"no system call numbers for {os.uname().machine}")
_SYS_OPENAT2, _SYS_IO_SETUP, _SYS_IO_DESTROY, _SYS_IO_SUBMIT, _SYS_IO_GETEVENTS = _SYSCALL_NUMBERS[os.uname().machine]

AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_SYMLINK_FOLLOW: Final = 0x400
AT_EMPTY_PATH: Final = 0x1000

_INT64_MAX: Final = (1 << 63) - 1
_UINT64_MAX: Final = (1 << 64) - 1


def _function(name: str, *argument_types: Any, result: Any = ctypes.c_int) -> Callable[..., int]:
    function = _libc[name]  # a new object each time: syscall() is prepared once per use
    function.argtypes = argument_types
    function.restype = result
    return function


def _raise(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))


def _fail() -> NoReturn:
    _raise(ctypes.get_errno())


def _unless_interrupted() -> None:
    if ctypes.get_errno() != errno.EINTR:
        _fail()


def _check_path(path: bytes | None) -> None:
    if path is not None and b"\0" in path:
        _raise(errno.EINVAL)


# --- opening and naming -------------------------------------------------------------------------------------

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10
RESOLVE_CACHED: Final = 0x20
RESOLVE_CONFINED: Final = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV

RENAME_NOREPLACE: Final = 0x1
RENAME_EXCHANGE: Final = 0x2
RENAME_WHITEOUT: Final = 0x4

_open_how = struct.Struct("=QQQ")  # flags, mode, resolve
_long, _size = ctypes.c_long, ctypes.c_size_t
_openat2 = _function("syscall", _long, _long, ctypes.c_char_p, ctypes.c_char_p, _size, result=ctypes.c_long)
_renameat2 = _function("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_linkat = _function("linkat", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def openat2(dirfd: int, path: bytes, flags: int, mode: int = 0, resolve: int = RESOLVE_CONFINED) -> int:
    """Open `path` below `dirfd`; returns a close-on-exec descriptor. openat2(2), linux/openat2.h.

    With the default `resolve`: EXDEV for an absolute path, a `..` that leaves `dirfd` or another mount, ELOOP
    for a symlink (with O_PATH | O_NOFOLLOW the last component may be one). A `..` that stays inside is allowed;
    beside a concurrent rename it can fail with EAGAIN. EINVAL for unknown flags, a mode without O_CREAT or
    O_TMPFILE, and a mode beyond 0o7777 (such as a type bit: open() ignores it).
    """
    if b"\0" in path:
        _raise(errno.EINVAL)
    how = _open_how.pack(flags | os.O_CLOEXEC, mode, resolve)
    while (fd := _openat2(_SYS_OPENAT2, dirfd, path, how, 24)) < 0:
        _unless_interrupted()
    return fd


def renameat2(olddirfd: int, old: bytes, newdirfd: int, new: bytes, flags: int = 0) -> None:
    """Rename with RENAME_* flags. renameat2(2), linux/fs.h."""
    if b"\0" in old or b"\0" in new:
        _raise(errno.EINVAL)
    if _renameat2(olddirfd, old, newdirfd, new, flags) < 0:
        _fail()


def linkat_empty(fd: int, newdirfd: int, newname: bytes) -> None:
    """Give the object behind `fd` (O_PATH will do) one more name. linkat(2); CAP_DAC_READ_SEARCH.

    ENOENT for an object whose last name is gone (unless it was opened with O_TMPFILE).
    """
    if b"\0" in newname:
        _raise(errno.EINVAL)
    if _linkat(fd, b"", newdirfd, newname, AT_EMPTY_PATH) < 0:
        _fail()


# --- file handles -------------------------------------------------------------------------------------------

MAX_HANDLE_BYTES: Final = 128  # MAX_HANDLE_SZ, linux/exportfs.h: no file system makes a longer f_handle

_handle_head = struct.Struct("=Ii")  # handle_bytes, handle_type; f_handle follows
_handle_size = struct.Struct("=I")
_HandleBuffer = ctypes.c_char * (_handle_head.size + MAX_HANDLE_BYTES)
_name_to_handle_at = _function(
    "name_to_handle_at", ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int
)
_open_by_handle_at = _function("open_by_handle_at", ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def name_to_handle(dirfd: int, path: bytes = b"", flags: int = AT_EMPTY_PATH) -> bytes:
    """The kernel's handle of an object: handle_type (int32, host order), then f_handle. name_to_handle_at(2).

    Valid on this file system until the object is deleted, across renames and remounts. EOPNOTSUPP where the
    file system has none.
    """
    _check_path(path)
    buffer = _HandleBuffer()
    _handle_size.pack_into(buffer, 0, MAX_HANDLE_BYTES)
    mount_id = ctypes.c_uint64()  # an int, or 64 bits with AT_HANDLE_MNT_ID_UNIQUE
    while _name_to_handle_at(dirfd, path, buffer, ctypes.byref(mount_id), flags) < 0:
        _unless_interrupted()
    (size,) = _handle_size.unpack_from(buffer)
    return buffer.raw[4 : 8 + size]


# The kernel was seen to say ENOMEM, with much memory free, of a directory that was just being removed
TRIES_WITHOUT_MEMORY: Final = 4


def open_by_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open what `name_to_handle` named, close-on-exec. open_by_handle_at(2); CAP_DAC_READ_SEARCH.

    `mount_fd`: any open object on the file system, but not O_PATH (EBADF). ESTALE when the object is gone,
    EINVAL for a malformed handle. A handle opens anything on the file system, whatever its directories forbid:
    never take one from the peer.
    """
    size = len(handle) - 4
    if not 0 < size <= MAX_HANDLE_BYTES:
        _raise(errno.EINVAL)
    packed = _handle_size.pack(size) + handle
    tries = TRIES_WITHOUT_MEMORY
    while (fd := _open_by_handle_at(mount_fd, packed, flags | os.O_CLOEXEC)) < 0:
        if ctypes.get_errno() == errno.ENOMEM and tries > 1:
            tries -= 1
        else:
            _unless_interrupted()
    return fd


# --- space and write-back -----------------------------------------------------------------------------------

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_COLLAPSE_RANGE: Final = 0x08
FALLOC_FL_ZERO_RANGE: Final = 0x10
FALLOC_FL_INSERT_RANGE: Final = 0x20
FALLOC_FL_UNSHARE_RANGE: Final = 0x40
_FALLOC_MOVES_DATA: Final = FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE

SYNC_FILE_RANGE_WAIT_BEFORE: Final = 1
SYNC_FILE_RANGE_WRITE: Final = 2
SYNC_FILE_RANGE_WAIT_AFTER: Final = 4

_int64 = ctypes.c_int64
_fallocate = _function("fallocate64", ctypes.c_int, ctypes.c_int, _int64, _int64)
_sync_file_range = _function("sync_file_range", ctypes.c_int, _int64, _int64, ctypes.c_uint)
_syncfs = _function("syncfs", ctypes.c_int)


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """Reserve, punch, zero or move `length` bytes at `offset`. fallocate(2), linux/falloc.h.

    EINTR is handed up for collapse and insert range: they cannot be repeated.
    """
    if not (0 <= offset <= _INT64_MAX and 0 < length <= _INT64_MAX):
        _raise(errno.EINVAL)
    while _fallocate(fd, mode, offset, length) < 0:
        if mode & _FALLOC_MOVES_DATA:
            _fail()
        _unless_interrupted()


def sync_file_range(fd: int, offset: int, length: int, flags: int) -> None:
    """Start (or await) write-back of a range, 0 bytes meaning to the end. sync_file_range(2), linux/fs.h.

    Makes nothing durable: neither metadata nor the disk's cache is flushed.
    """
    if not (0 <= offset <= _INT64_MAX and 0 <= length <= _INT64_MAX):
        _raise(errno.EINVAL)
    while _sync_file_range(fd, offset, length, flags) < 0:
        _unless_interrupted()


_FICLONE: Final = 0x40049409  # _IOW(0x94, 9, int), linux/fs.h


def clone_file(fd: int, source_fd: int) -> None:
    """Make the content of `source_fd` that of `fd` too, shared until either is written. FICLONE, ioctl_ficlone(2).

    EOPNOTSUPP, EINVAL, ENOTTY: the file system shares nothing; EXDEV: not within one; ETXTBSY: a swap file.
    """
    fcntl.ioctl(fd, _FICLONE, source_fd)


def syncfs(fd: int) -> None:
    """Flush the file system that holds `fd`. syncfs(2). Never repeated: an error is reported only once."""
    if _syncfs(fd) < 0:
        _fail()


# --- attributes ---------------------------------------------------------------------------------------------

STATX_BTIME: Final = 0x0800
STATX_MNT_ID: Final = 0x1000
STATX_MNT_ID_UNIQUE: Final = 0x4000

# No time that fits the kernel's 64-bit seconds is as large: every real time remains expressible.
UTIME_NOW: Final = 1 << 100
UTIME_OMIT: Final = (1 << 100) + 1
_KERNEL_UTIME_NOW: Final = (1 << 30) - 1
_KERNEL_UTIME_OMIT: Final = (1 << 30) - 2

_StatxBuffer = ctypes.c_char * 256  # sizeof(struct statx), linux/stat.h
_statx_mask = struct.Struct("=I")
_statx_btime = struct.Struct("=qI")
_statx_mount_id = struct.Struct("=Q")
_STATX_BTIME_OFFSET: Final = 80
_STATX_MOUNT_ID_OFFSET: Final = 144
_timespecs = struct.Struct("=qqqq")

_statx = _function("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)
_fchownat = _function("fchownat", ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int)
_utimensat = _function("utimensat", ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)


@dataclass(frozen=True, slots=True)
class Statx:
    """What os.stat lacks. None: not asked for, or the file system or kernel does not have it."""

    btime_ns: int | None
    mount_id: int | None


def statx(dirfd: int, path: bytes = b"", flags: int = AT_EMPTY_PATH, mask: int = STATX_BTIME | STATX_MNT_ID) -> Statx:
    """Birth time (ns since 1970) and mount id of an object. statx(2), linux/stat.h."""
    _check_path(path)
    buffer = _StatxBuffer()
    while _statx(dirfd, path, flags, mask, buffer) < 0:
        _unless_interrupted()
    # The kernel fills in the mount id unasked; "None: not asked for" holds for both fields all the same.
    filled = _statx_mask.unpack_from(buffer)[0] & mask
    btime_ns = mount_id = None
    if filled & STATX_BTIME:
        seconds, nanoseconds = _statx_btime.unpack_from(buffer, _STATX_BTIME_OFFSET)
        btime_ns = seconds * 1_000_000_000 + nanoseconds
    if filled & (STATX_MNT_ID | STATX_MNT_ID_UNIQUE):
        (mount_id,) = _statx_mount_id.unpack_from(buffer, _STATX_MOUNT_ID_OFFSET)
    return Statx(btime_ns, mount_id)


def fchownat_empty(fd: int, uid: int, gid: int) -> None:
    """Change the owner of the object behind `fd`, O_PATH and symlinks included; -1 keeps one. fchownat(2)."""
    if not (-1 <= uid < 0xFFFFFFFF and -1 <= gid < 0xFFFFFFFF):
        _raise(errno.EINVAL)
    while _fchownat(fd, b"", uid, gid, AT_EMPTY_PATH) < 0:
        _unless_interrupted()


def utimens_empty(fd: int, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set times (ns since 1970) of the object behind `fd`, O_PATH and symlinks included. utimensat(2).

    None and UTIME_OMIT keep a time, UTIME_NOW takes the kernel's clock. A file system clamps what it cannot
    store. Linux 5.8.
    """
    packed = _timespecs.pack(*_timespec(atime_ns), *_timespec(mtime_ns))
    while _utimensat(fd, b"", packed, AT_EMPTY_PATH) < 0:
        _unless_interrupted()


def _timespec(time_ns: int | None) -> tuple[int, int]:
    if time_ns is None or time_ns == UTIME_OMIT:
        return 0, _KERNEL_UTIME_OMIT
    if time_ns == UTIME_NOW:
        return 0, _KERNEL_UTIME_NOW
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    if not -_INT64_MAX <= seconds <= _INT64_MAX:
        _raise(errno.EINVAL)
    return seconds, nanoseconds


FS_IMMUTABLE_FL: Final = 0x10
_FS_IOC_GETFLAGS: Final = 0x80086601  # _IOR('f', 1, long), although the kernel moves an int
_FS_IOC_SETFLAGS: Final = 0x40086602
_inode_flags = struct.Struct("=I4x")


def _get_inode_flags(fd: int) -> int:
    (flags,) = _inode_flags.unpack(fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(_inode_flags.size)))
    assert isinstance(flags, int)
    return flags


def get_immutable(fd: int) -> bool:
    """Whether the immutable flag is set. ioctl_iflags(2). ENOTTY if there are no flags, EBADF on O_PATH."""
    return bool(_get_inode_flags(fd) & FS_IMMUTABLE_FL)


def set_immutable(fd: int, immutable: bool) -> None:
    """Set or clear the immutable flag (read, change, write: one caller at a time). ioctl_iflags(2)."""
    flags = _get_inode_flags(fd)
    wanted = flags | FS_IMMUTABLE_FL if immutable else flags & ~FS_IMMUTABLE_FL
    if wanted != flags:
        fcntl.ioctl(fd, _FS_IOC_SETFLAGS, _inode_flags.pack(wanted))


# --- listing ------------------------------------------------------------------------------------------------

DT_UNKNOWN: Final = 0
DT_FIFO: Final = 1
DT_CHR: Final = 2
DT_DIR: Final = 4
DT_BLK: Final = 6
DT_REG: Final = 8
DT_LNK: Final = 10
DT_SOCK: Final = 12

MAX_LISTING_BYTES: Final = 1 << 20  # each thread that lists keeps one buffer of the largest size it used

DirectoryEntry = tuple[int, int, int, bytes]  # inode, next_offset, DT_*, name

_dirent = struct.Struct("=QqHB")  # d_ino, d_off, d_reclen, d_type; the name follows, ended by NUL
_getdents64 = _function("getdents64", ctypes.c_int, ctypes.c_void_p, _size, result=ctypes.c_ssize_t)


class _ListingBuffer(threading.local):
    size = 0
    buffer: Any = None
    address = 0


_listing = _ListingBuffer()


def getdents64(fd: int, size: int = 65536) -> list[DirectoryEntry]:
    """One system call's worth of entries, `.` and `..` included; empty at the end. getdents(2).

    `size` is the buffer in bytes, at most MAX_LISTING_BYTES; EINVAL when the next name does not fit. After
    os.lseek(fd, next_offset, os.SEEK_SET) the listing goes on behind that entry. ENOENT for a removed directory.
    """
    if not 0 <= size <= MAX_LISTING_BYTES:
        _raise(errno.EINVAL)
    if _listing.size < size:
        _listing.buffer = ctypes.create_string_buffer(size)
        _listing.address = ctypes.addressof(_listing.buffer)
        _listing.size = size
    while (end := _getdents64(fd, _listing.address, size)) < 0:
        _unless_interrupted()
    data = ctypes.string_at(_listing.address, end)  # behind a name's NUL are leftovers of the last call
    entries: list[DirectoryEntry] = []
    append, unpack, find = entries.append, _dirent.unpack_from, data.index
    position = 0
    while position < end:
        inode, next_offset, length, kind = unpack(data, position)
        name = position + 19
        append((inode, next_offset, kind, data[name : find(0, name)]))
        position += length
    return entries


# --- mounts -------------------------------------------------------------------------------------------------

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000

MNT_FORCE: Final = 0x1
MNT_DETACH: Final = 0x2
UMOUNT_NOFOLLOW: Final = 0x8

_mount = _function("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _function("umount2", ctypes.c_char_p, ctypes.c_int)


def mount(source: bytes | None, target: bytes, fstype: bytes | None, flags: int = 0, data: bytes | None = None) -> None:
    """Mount, remount, bind or change propagation. mount(2), linux/mount.h.

    A bind mount ignores MS_RDONLY, MS_NOSUID and the like: remount it (MS_REMOUNT | MS_BIND) with them.
    """
    for argument in (source, target, fstype, data):
        _check_path(argument)
    if _mount(source, target, fstype, flags, data) < 0:
        _fail()


def umount2(target: bytes, flags: int = 0) -> None:
    """Unmount what is on top of `target`. umount(2)."""
    _check_path(target)
    if _umount2(target, flags) < 0:
        _fail()


# --- this process -------------------------------------------------------------------------------------------

MCL_CURRENT: Final = 1
MCL_FUTURE: Final = 2
MCL_ONFAULT: Final = 4

_PR_SET_NAME: Final = 15
_PR_SET_IO_FLUSHER: Final = 57
_ulong = ctypes.c_ulong
_prctl = _function("prctl", ctypes.c_int, _ulong, _ulong, _ulong, _ulong)
_prctl_name = _function("prctl", ctypes.c_int, ctypes.c_char_p, _ulong, _ulong, _ulong)
_mlockall = _function("mlockall", ctypes.c_int)


def prctl_set_io_flusher() -> None:
    """Memory this thread allocates never waits for IO that it must serve itself. prctl(2), PR_SET_IO_FLUSHER.

    Threads and processes made afterwards inherit it. CAP_SYS_RESOURCE.
    """
    if _prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) < 0:
        _fail()


def prctl_set_name(name: bytes) -> None:
    """Name the calling thread for ps and top; the kernel keeps the first 15 bytes. prctl(2), PR_SET_NAME."""
    _check_path(name)
    if _prctl_name(_PR_SET_NAME, name, 0, 0, 0) < 0:
        _fail()


def mlockall_current(flags: int = MCL_CURRENT | MCL_ONFAULT) -> None:
    """Keep this process's pages in memory; add MCL_FUTURE for what is mapped later. mlockall(2).

    Not inherited by fork. ENOMEM or EPERM above RLIMIT_MEMLOCK without CAP_IPC_LOCK.
    """
    if _mlockall(flags) < 0:
        _fail()


# --- flushing and reading without a thread ------------------------------------------------------------------

MAX_AIO_DEPTH: Final = 4096  # the whole system has fs.aio-max-nr of them, 65536 by default

_IOCB_CMD_PREAD: Final = 0
_IOCB_FLAG_RESFD: Final = 1
# linux/aio_abi.h, little endian: data, key, rw_flags, opcode, priority, fd, buf, nbytes, offset, reserved,
# flags, resfd
_iocb = struct.Struct("<QIiHhIQqqQII")
_iocb_token = struct.Struct("<Q")
_io_event = struct.Struct("<QQqq")  # data, obj (the iocb's address), res, res2
_NO_WAIT: Final = bytes(16)  # struct timespec

_io_setup = _function("syscall", _long, _long, ctypes.c_void_p, result=_long)
_io_destroy = _function("syscall", _long, _ulong, result=_long)
_io_submit = _function("syscall", _long, _ulong, _long, ctypes.c_void_p, result=_long)
_io_getevents = _function("syscall", _long, _ulong, _long, _long, ctypes.c_void_p, ctypes.c_char_p, result=_long)


class AioQueue:
    """Reads through kernel AIO, announced on an eventfd. For one thread; not across fork.

    A read is asynchronous only with O_DIRECT. The kernel holds the file meanwhile: its descriptor may be closed.
    Source: io_submit(2), linux/aio_abi.h, fs/aio.c.
    """

    def __init__(self, depth: int = 128) -> None:
        """EAGAIN when fs.aio-max-nr is exhausted, ENOSYS on a kernel without CONFIG_AIO."""
        assert 1 <= depth <= MAX_AIO_DEPTH, depth
        self._iocbs = ctypes.create_string_buffer(depth * _iocb.size)
        first = ctypes.addressof(self._iocbs)
        addresses = [first + slot * _iocb.size for slot in range(depth)]
        self._pointers = (ctypes.c_void_p * depth)(*addresses)
        self._pointers_address = ctypes.addressof(self._pointers)
        self._first_address = first
        self._events = ctypes.create_string_buffer(depth * _io_event.size)
        self._depth = depth
        self._free = list(range(depth))
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        context = ctypes.c_ulong(0)
        if _io_setup(_SYS_IO_SETUP, depth, ctypes.byref(context)) < 0:
            code = ctypes.get_errno()
            os.close(self._eventfd)
            _raise(code)
        self._context = context.value

    def fileno(self) -> int:
        """The eventfd: readable when `completed` has something to say. Owned by the queue."""
        return self._eventfd

    @property
    def pending(self) -> int:
        """What was submitted and not yet returned by `completed`."""
        return self._depth - len(self._free)

    def submit_read(self, fd: int, token: int, address: int, size: int, offset: int) -> None:
        """Begin to read `size` bytes at `offset` into the memory at `address`, which must stay until it has ended.

        With O_DIRECT, all three must be multiples of the disk's block. `token` (0 to 2**64 - 1) comes back with the
        result. BlockingIOError when `depth` are pending, EBADF for a bad or O_PATH descriptor: nothing was begun then.
        """
        self._submit(_IOCB_CMD_PREAD, fd, token, address, size, offset)

    def _submit(self, command: int, fd: int, token: int, address: int, size: int, offset: int) -> None:
        assert self._eventfd >= 0, "closed"
        assert 0 <= token <= _UINT64_MAX, token
        if fd < 0:
            _raise(errno.EBADF)
        if not self._free:
            _raise(errno.EAGAIN)
        slot = self._free[-1]
        _iocb.pack_into(
            self._iocbs, slot * 64,
            token, 0, 0, command, 0, fd, address, size, offset, 0, _IOCB_FLAG_RESFD, self._eventfd,
        )  # fmt: skip
        if _io_submit(_SYS_IO_SUBMIT, self._context, 1, self._pointers_address + slot * 8) < 0:
            _fail()
        self._free.pop()

    def completed(self) -> list[tuple[int, int]]:
        """All (token, result) that have finished, in order of completion. Never waits.

        The result: its bytes, or -errno.
        """
        assert self._eventfd >= 0, "closed"
        # The counter first, the results second: a read that ends in between wakes the loop once too often,
        # never once too seldom.
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:
            return []  # the kernel stores a result before it counts it
        while (count := _io_getevents(_SYS_IO_GETEVENTS, self._context, 0, self._depth, self._events, _NO_WAIT)) < 0:
            _unless_interrupted()
        results = []
        for index in range(count):
            token, address, result, _ = _io_event.unpack_from(self._events, index * _io_event.size)
            slot = (address - self._first_address) // _iocb.size
            assert _iocb_token.unpack_from(self._iocbs, slot * _iocb.size) == (token,), "slot used twice"
            self._free.append(slot)
            results.append((token, result))
        assert len(self._free) <= self._depth
        return results

    def close(self) -> None:
        """Give up the queue; waits, as the kernel does, for what is pending, whose results are lost."""
        if self._eventfd < 0:
            return
        _io_destroy(_SYS_IO_DESTROY, self._context)
        os.close(self._eventfd)
        self._eventfd = -1
