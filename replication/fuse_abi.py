"""The FUSE kernel protocol as data: opcodes, flags and structures.

Source: include/uapi/linux/fuse.h of Linux 6.18 (protocol 7.45). All structures are little endian here,
because the protocol uses the byte order of the machine and hotpair runs on little-endian machines.
This module knows nothing of files, sockets or the mirror.
"""

from struct import Struct

KERNEL_VERSION = 7
KERNEL_MINOR_OLDEST = 31  # Linux 5.4: the oldest that has all fields we read
KERNEL_MINOR = 45

# Opcodes (enum fuse_opcode)
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = 8, 9, 10, 11, 12, 13, 14, 15, 16
STATFS, RELEASE, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR, FLUSH = 17, 18, 20, 21, 22, 23, 24, 25
INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, GETLK, SETLK, SETLKW = 26, 27, 28, 29, 30, 31, 32, 33
ACCESS, CREATE, INTERRUPT, BMAP, DESTROY, IOCTL, POLL, NOTIFY_REPLY = 34, 35, 36, 37, 38, 39, 40, 41
BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK, COPY_FILE_RANGE = 42, 43, 44, 45, 46, 47
SYNCFS, TMPFILE, STATX = 50, 51, 52

# INIT flags; those from bit 32 on travel in flags2
INIT_ASYNC_READ = 1 << 0
INIT_ATOMIC_O_TRUNC = 1 << 3
INIT_BIG_WRITES = 1 << 5
INIT_DONT_MASK = 1 << 6
INIT_AUTO_INVAL_DATA = 1 << 12
INIT_DO_READDIRPLUS = 1 << 13
INIT_READDIRPLUS_AUTO = 1 << 14
INIT_ASYNC_DIO = 1 << 15
INIT_PARALLEL_DIROPS = 1 << 18
INIT_POSIX_ACL = 1 << 20
INIT_MAX_PAGES = 1 << 22
INIT_EXPLICIT_INVAL_DATA = 1 << 25
INIT_HANDLE_KILLPRIV_V2 = 1 << 28
INIT_SETXATTR_EXT = 1 << 29
INIT_EXT = 1 << 30
INIT_DIRECT_IO_ALLOW_MMAP = 1 << 36
INIT_HAS_RESEND = 1 << 39

# SETATTR valid bits
FATTR_MODE, FATTR_UID, FATTR_GID, FATTR_SIZE, FATTR_ATIME, FATTR_MTIME = 1, 2, 4, 8, 16, 32
FATTR_FH, FATTR_ATIME_NOW, FATTR_MTIME_NOW, FATTR_KILL_SUIDGID = 64, 128, 256, 1 << 11

# OPEN answer flags
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6

OPEN_KILL_SUIDGID = 1 << 0
WRITE_CACHE = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2
SETXATTR_ACL_KILL_SGID = 1 << 0
FSYNC_FDATASYNC = 1 << 0

NOTIFY_RESEND = 7
NOTIFY_PRUNE = 9
UNIQUE_RESEND = 1 << 63  # set in `unique` of a request that the kernel sends a second time

ROOT_NODEID = 1

IN_HEADER = Struct("<IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding
OUT_HEADER = Struct("<IiQ")  # len, error, unique
INIT_IN = Struct("<IIIII")  # major, minor, max_readahead, flags, flags2
INIT_OUT = Struct("<IIIIHHIIHHI7I")
ATTR = Struct("<QQQQQQIIIIIIIIII")
ENTRY_OUT_PREFIX = Struct("<QQQQII")  # nodeid, generation, entry_valid, attr_valid, and their nanoseconds
ATTR_OUT_PREFIX = Struct("<QII")
FORGET_IN = Struct("<Q")
FORGET_ONE = Struct("<QQ")
BATCH_FORGET_IN = Struct("<II")
GETATTR_IN = Struct("<IIQ")
SETATTR_IN = Struct("<IIQQQQQQIIIIIIII")
MKNOD_IN = Struct("<IIII")
MKDIR_IN = Struct("<II")
RENAME_IN = Struct("<Q")
RENAME2_IN = Struct("<QII")
LINK_IN = Struct("<Q")
OPEN_IN = Struct("<II")
CREATE_IN = Struct("<IIII")
OPEN_OUT = Struct("<QII")
RELEASE_IN = Struct("<QIIQ")
FLUSH_IN = Struct("<QIIQ")
READ_IN = Struct("<QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
WRITE_IN = Struct("<QQIIQII")  # fh, offset, size, write_flags, lock_owner, flags, padding
WRITE_OUT = Struct("<II")
STATFS_OUT = Struct("<QQQQQIIII6I")
FSYNC_IN = Struct("<QII")
SETXATTR_IN = Struct("<IIII")
GETXATTR_IN = Struct("<II")
GETXATTR_OUT = Struct("<II")
INTERRUPT_IN = Struct("<Q")
FALLOCATE_IN = Struct("<QQQII")
LSEEK_IN = Struct("<QqII")  # the offset may be negative
LSEEK_OUT = Struct("<Q")
DIRENT = Struct("<QQII")  # ino, off, namelen, type

# A WRITE request as one structure, for the hot path: the header, then fuse_write_in
WRITE_REQUEST = Struct("<IIQQIIIHHQQIIQII")
# The whole answer to a WRITE: fuse_out_header, then fuse_write_out
WRITE_ANSWER = Struct("<IiQII")

HEADER_SIZE = IN_HEADER.size  # 40
WRITE_PAYLOAD = HEADER_SIZE + WRITE_IN.size  # 80: where the data of a WRITE begins

assert IN_HEADER.size == 40 and OUT_HEADER.size == 16 and ATTR.size == 88
assert INIT_OUT.size == 64 and WRITE_IN.size == 40 and SETATTR_IN.size == 88 and STATFS_OUT.size == 80


def pack_attr(
    ino: int, size: int, blocks: int, atime_ns: int, mtime_ns: int, ctime_ns: int,
    mode: int, nlink: int, uid: int, gid: int, rdev: int, blksize: int,
) -> bytes:  # fmt: skip
    """struct fuse_attr; times in nanoseconds, ``rdev`` in the kernel's 32-bit encoding, blocks of 512 bytes."""
    atime, atime_nsec = divmod(atime_ns, 1_000_000_000)
    mtime, mtime_nsec = divmod(mtime_ns, 1_000_000_000)
    ctime, ctime_nsec = divmod(ctime_ns, 1_000_000_000)
    mask = (1 << 64) - 1  # times before 1970 are negative seconds
    return ATTR.pack(
        ino, size, blocks, atime & mask, mtime & mask, ctime & mask,
        atime_nsec, mtime_nsec, ctime_nsec, mode, nlink, uid, gid, rdev, blksize, 0,
    )  # fmt: skip
