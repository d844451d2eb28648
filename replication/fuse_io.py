"""The /dev/fuse descriptor: mounting, requests in, answers out, and the connection's abort file."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Final, NamedTuple

from hotpair.replication import fuse_abi as abi
from hotpair.replication import linux_io, mounts_io
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.limits import MAX_WRITE, PAGE, READY_BYTES, REQUEST_SLOTS, WHOLE_SLOTS
from hotpair.replication.nodes import Node

CONNECTIONS: Final = b"/sys/fs/fuse/connections"
REQUEST_TIMEOUTS: Final = ("default_request_timeout", "max_request_timeout")
SLOT_SIZE: Final = MAX_WRITE + PAGE
FUSE_KIND: Final = b"fuse.hotpair"  # the type of our mounts in the mount table
SOURCE_PREFIX: Final = b"hotpair:"  # of what the mount table shows as the source; the state directory follows


class Slot:
    """A buffer for one request, from when it is taken from the kernel until it is answered."""

    __slots__ = ("address", "error", "memory", "node", "resent", "size", "synchronous", "unique", "vector")

    def __init__(self, memory: memoryview, address: int) -> None:
        self.memory = memory
        self.address = address  # of the memory, which begins with a page
        self.vector = [memory]  # kept, because making a list costs as much as the call around it
        self.unique = 0
        self.size = 0
        self.node: Node | None = None  # of a write
        self.synchronous = False  # a write with O_SYNC or O_DSYNC: it is a write with a flush
        self.error = 0
        self.resent = False  # the kernel sends this request a second time


def make_slots(count: int = REQUEST_SLOTS) -> list[Slot]:
    """``count`` slots over anonymous memory; the last ones are to be used first.

    The pages that most requests fill are there from the beginning: one that is killed while the kernel has to find
    a page for a request makes the kernel fail that request with EIO, and not keep it for the next process. Found
    by torture. The rest costs nothing before it is touched once.
    """
    area = mmap.mmap(-1, count * SLOT_SIZE)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    memory, address = memoryview(area), ctypes.addressof(ctypes.c_char.from_buffer(area))
    starts = range(0, count * SLOT_SIZE, SLOT_SIZE)
    for i, start in enumerate(starts):
        ready = SLOT_SIZE if i >= count - WHOLE_SLOTS else PAGE + READY_BYTES
        memory[start : start + ready : PAGE] = bytes(len(range(0, ready, PAGE)))
    return [Slot(memory[start : start + SLOT_SIZE], address + start) for start in starts]


def check_kernel() -> None:
    """Raise BadConfiguration when the kernel would give up on a request that waits for a verdict."""
    for name in REQUEST_TIMEOUTS:
        path = f"/proc/sys/fs/fuse/{name}"
        try:
            with open(path, encoding="ascii") as file:
                value = file.read().strip()
        except FileNotFoundError:
            continue  # a kernel older than 6.14 has no such limit
        if value != "0":
            raise BadConfiguration(
                f"fs.fuse.{name} is {value}: a frozen write would be failed by the kernel; "
                f"run: sysctl -w fs.fuse.{name}=0"
            )


def mount(target: bytes, state: str) -> int:
    """Mount a FUSE file system at ``target``; the descriptor of its /dev/fuse. Raises BadConfiguration.

    The mount table shows the state directory as its source, so that it is known whose it is.
    """
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise BadConfiguration(
            f"/dev/fuse: {error.strerror}: load the kernel module (modprobe fuse), run as root"
        ) from error
    options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other" % fd
    flags = linux_io.MS_NOSUID | linux_io.MS_NODEV
    try:
        linux_io.mount(SOURCE_PREFIX + os.fsencode(state), target, FUSE_KIND, flags, options)
    except OSError as error:
        os.close(fd)
        raise BadConfiguration(f"cannot mount over {os.fsdecode(target)}: {error.strerror}") from error
    return fd


def unmount(target: bytes) -> None:
    """Take the mount away, also when files are open on it. It is no error if it is gone."""
    try:
        linux_io.umount2(target, linux_io.MNT_DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise


class Mount(NamedTuple):
    """One of our mounts, as the mount table tells."""

    state: bytes  # the state directory of the mirror that made it
    connection: int  # the number of its FUSE connection: the minor number of its device


def mount_at(target: bytes) -> Mount | None:
    """Our mount at ``target``, the last one if there are several, or None.

    Read from the mount table (proc(5), mountinfo), because a look at the mount itself could wait for ourselves.
    """
    mounted = mounts_io.mounted_at(mounts_io.read_table(), target)
    if not mounted or mounted[-1].kind != FUSE_KIND:
        return None
    return Mount(mounted[-1].source.removeprefix(SOURCE_PREFIX), int(mounted[-1].device.partition(b":")[2]))


def abort_connection(number: int) -> None:
    """End a FUSE connection: everything that waits on it gets an error. Raises OSError.

    The control file system is mounted where it is not yet (Documentation/filesystems/fuse.rst, section "abort").
    """
    path = CONNECTIONS + b"/%d/abort" % number
    if not os.path.exists(path):
        if not os.listdir(CONNECTIONS):
            linux_io.mount(b"fusectl", CONNECTIONS, b"fusectl", 0, b"")
        if not os.path.exists(path):
            return  # the connection is gone already
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)


def answer_init(request: memoryview, max_background: int) -> tuple[bytes, int]:
    """The body of the answer to INIT, and the flags that kernel and mirror agree on. Raises BadConfiguration."""
    major, minor, readahead, low, high = abi.INIT_IN.unpack_from(request)
    if major != abi.KERNEL_VERSION or minor < abi.KERNEL_MINOR_OLDEST:
        raise BadConfiguration(
            f"the kernel speaks FUSE {major}.{minor}; {abi.KERNEL_VERSION}.{abi.KERNEL_MINOR_OLDEST} is needed"
        )
    wanted = (
        abi.INIT_ASYNC_READ
        | abi.INIT_BIG_WRITES
        | abi.INIT_MAX_PAGES
        | abi.INIT_ASYNC_DIO
        | abi.INIT_PARALLEL_DIROPS
        | abi.INIT_POSIX_ACL
        | abi.INIT_DONT_MASK
        | abi.INIT_HANDLE_KILLPRIV_V2
        | abi.INIT_SETXATTR_EXT
        | abi.INIT_DO_READDIRPLUS
        | abi.INIT_READDIRPLUS_AUTO
        | abi.INIT_EXPLICIT_INVAL_DATA
        | abi.INIT_EXT
        | abi.INIT_DIRECT_IO_ALLOW_MMAP
        | abi.INIT_HAS_RESEND
    )
    agreed = wanted & (low | (high << 32 if low & abi.INIT_EXT else 0))
    answer = abi.INIT_OUT.pack(
        abi.KERNEL_VERSION, min(minor, abi.KERNEL_MINOR), readahead, agreed & 0xFFFFFFFF,
        max_background, max_background * 3 // 4, MAX_WRITE, 1, MAX_WRITE // PAGE, 0,
        agreed >> 32, 0, 0, 0, 0, 0, 0, 0,
    )  # fmt: skip
    return answer, agreed
