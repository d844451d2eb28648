"""The operations of the differential test, done on one side, relative to the working directory.

Paths and names are bytes. Open files are named by slots that the driver chooses. What is returned is plain data that
must be equal on both sides; what differs by nature is left out here (see ``posix_difference.EXCLUDED``).
"""

import errno
import fcntl
import itertools
import mmap
import os
import random
import shutil
import stat
import struct
import time
from typing import Any, NamedTuple

from tests import system_calls
from tests.tree_comparison import Found, attributes_of, content_digest, object_content, path_below, walk

RECENT_NS = 3600 * 10**9  # times set by a test are further from now than this
DIRECTORY_TYPES = {1: "fifo", 2: "char", 4: "dir", 6: "block", 8: "file", 10: "link", 12: "socket"}
F_OFD_SETLK = 37


class Metadata(NamedTuple):
    """The part of stat(2) that is equal on both sides."""

    mode: str
    owner: tuple[int, int]
    links: int
    size: int | None  # None for a directory
    device: int | None
    modified: str | int  # nanoseconds where a test has set them, else "now"


class Offset(NamedTuple):
    """An answer of SEEK_HOLE or SEEK_DATA, and whether the file has ever had preallocated space."""

    position: int
    preallocated: bool


def metadata(status: os.stat_result) -> Metadata:
    """Leave out what differs by nature."""
    kind = status.st_mode
    recent = abs(time.time_ns() - status.st_mtime_ns) < RECENT_NS
    return Metadata(
        f"{stat.filemode(kind)} {oct(stat.S_IMODE(kind))}",
        (status.st_uid, status.st_gid),
        status.st_nlink,
        None if stat.S_ISDIR(kind) else status.st_size,
        status.st_rdev if stat.S_ISCHR(kind) or stat.S_ISBLK(kind) else None,
        "now" if recent else status.st_mtime_ns,
    )


def pattern(length: int, fill: int) -> bytes:
    """Bytes that differ from place to place, the same for the same ``fill``; zeros for 0."""
    return random.Random(fill).randbytes(length) if fill else bytes(length)


class Operations:
    """One side's open files and what can be done with them; each public method is one operation."""

    def __init__(self, home: bytes) -> None:
        self._home = home
        self._open: dict[int, int] = {}
        self._preallocated: set[int] = set()

    # --- open files -------------------------------------------------------------------------------------------

    def open(self, slot: int, path: bytes, flags: int, mode: int = 0o666, directory: int | None = None) -> Any:
        """Open into a slot, closing what was there; a fifo is not waited for, a device is closed again."""
        base = None if directory is None else self._open[directory]
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode, dir_fd=base)
        status = os.fstat(descriptor)
        if stat.S_ISCHR(status.st_mode) and not flags & os.O_PATH:
            os.close(descriptor)
            return "device"
        if slot in self._open:
            self.close(slot)
        self._open[slot] = descriptor
        return metadata(status)

    def close(self, slot: int) -> None:
        os.close(self._open.pop(slot))

    def duplicate(self, slot: int, new_slot: int) -> None:
        self._open[new_slot] = os.dup(self._open[slot])

    def close_all(self) -> None:
        """At the end of an example."""
        for slot in list(self._open):
            self.close(slot)
        self._preallocated.clear()

    def read(self, slot: int, length: int) -> bytes:
        return os.read(self._open[slot], length)

    def pread(self, slot: int, length: int, offset: int) -> bytes:
        return os.pread(self._open[slot], length, offset)

    def readv(self, slot: int, lengths: list[int]) -> tuple[int, list[bytes]]:
        buffers = [bytearray(length) for length in lengths]
        count = os.readv(self._open[slot], buffers)
        return count, [bytes(buffer) for buffer in buffers]

    def write(self, slot: int, length: int, fill: int) -> int:
        return os.write(self._open[slot], pattern(length, fill))

    def pwrite(self, slot: int, length: int, offset: int, fill: int) -> int:
        return os.pwrite(self._open[slot], pattern(length, fill), offset)

    def writev(self, slot: int, lengths: list[int], fill: int) -> int:
        return os.writev(self._open[slot], [pattern(length, fill) for length in lengths])

    def pwritev(self, slot: int, length: int, offset: int, fill: int, flags: int) -> int:
        """pwritev2 with RWF_DSYNC, RWF_SYNC or RWF_APPEND."""
        return os.pwritev(self._open[slot], [pattern(length, fill)], offset, flags)

    def direct_write(self, slot: int, blocks: int, offset: int, fill: int) -> int:
        """pwrite of whole 4 KiB blocks from an aligned buffer, as O_DIRECT wants it."""
        with mmap.mmap(-1, blocks * 4096) as buffer:
            buffer.write(pattern(blocks * 4096, fill))
            return os.pwrite(self._open[slot], buffer, offset)

    def direct_read(self, slot: int, blocks: int, offset: int) -> tuple[int, bytes]:
        with mmap.mmap(-1, blocks * 4096) as buffer:
            count = os.preadv(self._open[slot], [buffer], offset)
            return count, bytes(buffer)

    def copy_range(self, slot: int, other: int, length: int, offset: int, other_offset: int) -> int:
        """copy_file_range until it is done; how much one call copies is the kernel's choice."""
        done = 0
        while done < length:
            source, target = self._open[slot], self._open[other]
            count = os.copy_file_range(source, target, length - done, offset + done, other_offset + done)
            if not count:
                break
            done += count
        return done

    def seek(self, slot: int, offset: int, whence: int) -> int | Offset:
        descriptor = self._open[slot]
        before = os.lseek(descriptor, 0, os.SEEK_CUR)
        position = os.lseek(descriptor, offset, whence)
        if whence not in (os.SEEK_HOLE, os.SEEK_DATA):
            return position
        is_preallocated = os.fstat(descriptor).st_ino in self._preallocated
        if is_preallocated:  # where it went is not compared: what comes next must not begin there
            os.lseek(descriptor, before, os.SEEK_SET)
        return Offset(position, is_preallocated)

    def ftruncate(self, slot: int, length: int) -> None:
        os.ftruncate(self._open[slot], length)

    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        descriptor = self._open[slot]
        system_calls.fallocate(descriptor, mode, offset, length)
        if not mode & system_calls.FALLOC_FL_PUNCH_HOLE:
            self._preallocated.add(os.fstat(descriptor).st_ino)

    def fsync(self, slot: int) -> None:
        os.fsync(self._open[slot])

    def fdatasync(self, slot: int) -> None:
        os.fdatasync(self._open[slot])

    def fstat(self, slot: int) -> Metadata:
        return metadata(os.fstat(self._open[slot]))

    def fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self._open[slot], mode)

    def fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self._open[slot], uid, gid)

    def list_descriptor(self, slot: int) -> list[bytes]:
        return sorted(os.fsencode(name) for name in os.listdir(self._open[slot]))

    def link_descriptor(self, slot: int, path: bytes) -> None:
        """Give an open file another name; one without any name left has ENOENT."""
        system_calls.linkat(b"/proc/self/fd/%d" % self._open[slot], path, system_calls.AT_SYMLINK_FOLLOW)

    def same_file(self, slot: int, path: bytes) -> bool:
        """Whether an open file and a name are one inode."""
        return os.path.samestat(os.fstat(self._open[slot]), os.lstat(path))

    def blocks(self, slot: int) -> int:
        """Bytes of storage in use, after a flush, rounded up to 1 MiB: the file system's own blocks vary."""
        os.fsync(self._open[slot])
        return -(-os.fstat(self._open[slot]).st_blocks * 512 // (1 << 20))

    # --- locks and mappings -----------------------------------------------------------------------------------

    def flock(self, slot: int, kind: int) -> None:
        fcntl.flock(self._open[slot], kind | fcntl.LOCK_NB)

    def record_lock(self, slot: int, kind: int, start: int, length: int) -> None:
        """A lock of the open file description, which excludes other descriptions of the same process."""
        request = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
        fcntl.fcntl(self._open[slot], F_OFD_SETLK, request)

    def process_lock(self, slot: int, kind: int, start: int, length: int) -> list[str]:
        """A lock of this process, and what another process gets for the same range: nothing, or an errno."""
        descriptor = self._open[slot]
        wait = 0 if kind == fcntl.LOCK_UN else fcntl.LOCK_NB
        fcntl.lockf(descriptor, kind | wait, length, start)
        child = os.fork()
        if child == 0:
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
            except OSError as error:
                os._exit(error.errno or 255)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return [errno.errorcode[code]] if code else []

    def map_read(self, slot: int, offset: int, length: int, shared: bool) -> bytes | str:
        """Read through a mapping; ``offset`` is a multiple of the page size."""
        descriptor = self._open[slot]
        if os.fstat(descriptor).st_size < offset + length:
            return "beyond the end"  # SIGBUS
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        with mmap.mmap(descriptor, length, flags, mmap.PROT_READ, offset=offset) as mapping:
            return mapping[:]

    def map_write(self, slot: int, offset: int, length: int, shared: bool, fill: int) -> bytes | str:
        """Write through a mapping, msync, and what the mapping then shows; private changes stay in it."""
        descriptor = self._open[slot]
        if os.fstat(descriptor).st_size < offset + length:
            return "beyond the end"
        flags = mmap.MAP_SHARED if shared else mmap.MAP_PRIVATE
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        with mmap.mmap(descriptor, length, flags, protection, offset=offset) as mapping:
            mapping[:] = pattern(length, fill)
            mapping.flush()
            return mapping[:]

    # --- names ------------------------------------------------------------------------------------------------

    def mkdir(self, path: bytes, mode: int = 0o777) -> None:
        os.mkdir(path, mode)

    def mkdir_at(self, slot: int, path: bytes, mode: int = 0o777) -> None:
        os.mkdir(path, mode, dir_fd=self._open[slot])

    def rmdir(self, path: bytes) -> None:
        os.rmdir(path)

    def mknod(self, path: bytes, mode: int, device: int = 0) -> None:
        os.mknod(path, mode, device)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, path)

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(path)

    def link(self, old: bytes, new: bytes, flags: int = 0) -> None:
        system_calls.linkat(old, new, flags)

    def unlink(self, path: bytes) -> None:
        os.unlink(path)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        system_calls.renameat2(old, new, flags)

    def stat(self, path: bytes) -> Metadata:
        return metadata(os.stat(path))

    def lstat(self, path: bytes) -> Metadata:
        return metadata(os.lstat(path))

    def access(self, path: bytes, mode: int, effective: bool = False) -> bool:
        return os.access(path, mode, effective_ids=effective)

    def truncate(self, path: bytes, length: int) -> None:
        os.truncate(path, length)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(path, mode)

    def chown(self, path: bytes, uid: int, gid: int, follow: bool = True) -> None:
        os.chown(path, uid, gid, follow_symlinks=follow)

    def utimens(self, path: bytes, access: tuple[int, int], modification: tuple[int, int], flags: int = 0) -> None:
        system_calls.utimensat(path, access, modification, flags)

    def statvfs(self, path: bytes) -> tuple[int, ...]:
        """Block sizes, total blocks and inodes, longest name; not what is free, nor flags."""
        status = os.statvfs(path)
        return status.f_bsize, status.f_frsize, status.f_blocks, status.f_files, status.f_namemax

    def listdir(self, path: bytes) -> list[tuple[bytes, str, bool]]:
        """Sorted (name, type, whether its inode number is that of lstat); for ".." the number is not asked."""
        entries = []
        with system_calls.DirectoryStream(path) as stream:
            while (entry := stream.read()) is not None:
                name, kind, inode = entry
                same = name == b".." or inode == os.lstat(path + b"/" + name).st_ino
                entries.append((name, DIRECTORY_TYPES[kind], same))
        return sorted(entries)

    def chdir(self, path: bytes) -> None:
        os.chdir(path)

    def go_home(self) -> None:
        """To the side's own directory, where the examples are."""
        os.chdir(self._home)

    # --- extended attributes (ACLs are two of them) -------------------------------------------------------------

    def setxattr(self, path: bytes, name: bytes, value: bytes, flags: int = 0, follow: bool = True) -> None:
        os.setxattr(path, name, value, flags, follow_symlinks=follow)

    def getxattr(self, path: bytes, name: bytes, follow: bool = True) -> bytes:
        return os.getxattr(path, name, follow_symlinks=follow)

    def listxattr(self, path: bytes, follow: bool = True) -> list[str]:
        return sorted(os.listxattr(path, follow_symlinks=follow))

    def removexattr(self, path: bytes, name: bytes, follow: bool = True) -> None:
        os.removexattr(path, name, follow_symlinks=follow)

    # --- whole trees --------------------------------------------------------------------------------------------

    def tree(self, path: bytes) -> dict[str, Any]:
        """Everything below a directory, and every open file: metadata, content, attributes, who shares an inode."""
        result: dict[str, Any] = {}
        first: dict[int, str] = {}
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for found in itertools.chain([Found(b".", top, b".", os.fstat(top))], walk(top)):
                name = repr(found.path)
                alias = first.setdefault(found.status.st_ino, name)
                result[name] = (metadata(found.status), None if alias == name else alias)
                attributes = attributes_of(path_below(found.directory, found.name))
                result[name] += (object_content(found), attributes)
        finally:
            os.close(top)
        for slot, descriptor in self._open.items():
            result[f"open file {slot}"] = self._describe_open(descriptor, first)
        return result

    def _describe_open(self, descriptor: int, names: dict[int, str]) -> tuple[Any, ...]:
        status = os.fstat(descriptor)
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND | os.O_PATH | os.O_DIRECT)
        content: str = ""
        position = None
        if stat.S_ISREG(status.st_mode) and not flags & os.O_PATH:
            position = os.lseek(descriptor, 0, os.SEEK_CUR)
            if flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_DIRECT:
                content = content_digest(descriptor)
                os.lseek(descriptor, position, os.SEEK_SET)  # SEEK_DATA has moved it
        name = names.setdefault(status.st_ino, f"no name {len(names)}")
        return metadata(status), name, position, flags, content

    def remove_tree(self, path: bytes) -> None:
        """Remove an old example."""
        shutil.rmtree(path)

    # --- directory streams ----------------------------------------------------------------------------------------

    def list_while_changing(self, path: bytes) -> tuple[list[bytes], list[bytes]]:
        """Names ``goes-*`` are removed and others made while the directory is read.

        Returns which of the names ``stays-*`` were missed and which names were seen twice: POSIX wants none.
        """
        staying = {name for name in os.listdir(path) if name.startswith(b"stays-")}
        seen: list[bytes] = []
        with system_calls.DirectoryStream(path) as stream:
            while (entry := stream.read()) is not None:
                seen.append(entry[0])
                number = len(seen)
                for name in (b"goes-%03d" % (number - 1), b"goes-%03d" % (150 - number)):
                    if os.path.lexists(path + b"/" + name):
                        os.unlink(path + b"/" + name)
                if number < 150:
                    os.close(os.open(path + b"/made-%03d" % number, os.O_CREAT | os.O_WRONLY))
        twice = sorted({name for name in seen if seen.count(name) > 1})
        return sorted(staying - set(seen)), twice

    def list_by_positions(self, path: bytes) -> list[bytes]:
        """Read a directory noting every position, go back to each; the names that were not found there again."""
        noted: list[tuple[int, bytes]] = []
        wrong: list[bytes] = []
        with system_calls.DirectoryStream(path) as stream:
            while True:
                position = stream.tell()
                entry = stream.read()
                if entry is None:
                    break
                noted.append((position, entry[0]))
            for position, name in random.Random(1).sample(noted, len(noted)):
                stream.seek(position)
                entry = stream.read()
                if entry is None or entry[0] != name:
                    wrong.append(name)
        return sorted(wrong)
