"""Random sequences of file operations, by Hypothesis' rule based state machine, on ``BothSides``.

The names are few, so that operations meet. Descriptors are Hypothesis' bundle: only what was opened is used, and the
shrunk sequence that is printed can be read like a program.
"""

import fcntl
import os
import stat
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, initialize, multiple, rule

from tests import system_calls
from tests.posix_access_lists import access_list
from tests.posix_difference import BothSides
from tests.posix_worker import USERS

T = TypeVar("T")
MEBIBYTE = 1 << 20

COMMON_NAMES = [b"a", b"b", b"c", b"d", b"a/a", b"a/b", b"a/c", b"a/d", b"a/b/a", b"a/b/c", b"b/a", b"c/a"]
ODD_NAMES = [
    b".",
    b"..",
    b"",
    b"a/",
    b"a/.",
    b"a/..",
    b"./b",
    b"a/../b",
    b"missing/a",
    b"\xff\xfe\x80",
    b"a/" + b"n" * 255,
    b"n" * 256,
]
# No "..": a chain of such links would lead out of the example.
LINK_TARGETS = [b"a", b"b", b"c", b"a/b", b"missing", b"./a", b"t" * 1000, b"t" * 4095, b""]
ATTRIBUTES = [b"user.a", b"user.b", b"trusted.a", b"security.a", b"user.", b"nothing", b"user." + b"x" * 250]
CREATION_FLAGS = [os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC, os.O_TRUNC, 0]
OTHER_FLAGS = [0, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_DSYNC, os.O_SYNC, os.O_PATH, os.O_NOATIME]
FALLOCATE_MODES = [
    0,
    system_calls.FALLOC_FL_KEEP_SIZE,
    system_calls.FALLOC_FL_PUNCH_HOLE | system_calls.FALLOC_FL_KEEP_SIZE,
    system_calls.FALLOC_FL_ZERO_RANGE,
    system_calls.FALLOC_FL_ZERO_RANGE | system_calls.FALLOC_FL_KEEP_SIZE,
    system_calls.FALLOC_FL_PUNCH_HOLE,
]
RENAME_FLAGS = [0, 0, system_calls.RENAME_NOREPLACE, system_calls.RENAME_EXCHANGE, 3]
MOMENTS = [
    (0, 0),
    (1, 999_999_999),
    (1_000_000_000, 123_456_789),
    (4_000_000_000, 1),
    (-1, 5),
    (0, system_calls.UTIME_NOW),
    (0, system_calls.UTIME_OMIT),
    (0, 1_000_000_000),
]

# Drawn from what is there now: most operations on a name that does not exist say ENOENT and nothing else.
existing = st.runner().flatmap(lambda machine: st.sampled_from(machine.existing_names()))
paths = st.one_of(existing, existing, existing, st.sampled_from(COMMON_NAMES), st.sampled_from(ODD_NAMES))
new_paths = st.one_of(
    st.sampled_from(COMMON_NAMES), st.sampled_from(COMMON_NAMES), existing, st.sampled_from(ODD_NAMES)
)
users = st.sampled_from(["root", "root", "alice", "bob"])
umasks = st.sampled_from([0o022, 0o022, 0, 0o077, 0o027])
fills = st.integers(0, 3)
lengths = st.one_of(st.sampled_from([0, 1, 10, 4095, 4096, 4097, 65536, 131073, MEBIBYTE + 1]), st.integers(0, 20_000))
offsets = st.one_of(
    st.sampled_from([0, 1, 100, 4095, 4096, 8192, 65536, 4 * MEBIBYTE - 1, 4 * MEBIBYTE, 5 << 40]),
    st.integers(0, 40_000),
)
sizes = st.one_of(
    st.sampled_from([0, 1, 4096, 4097, 65536, 4 * MEBIBYTE + 5, 5 << 40, 1 << 44, -1]), st.integers(0, 40_000)
)
modes = st.one_of(
    st.sampled_from([0, 0o400, 0o600, 0o644, 0o666, 0o700, 0o755, 0o777, 0o1777, 0o2755, 0o2775, 0o4755, 0o6777]),
    st.integers(0, 0o7777),
)
owners = st.sampled_from([-1, 0, *(user.uid for user in USERS.values()), 60010, 12345])


class PosixMachine(RuleBasedStateMachine):
    """One example: a new directory on both sides, steps, and a comparison of all of it at the end."""

    descriptors: Bundle[int] = Bundle("descriptors")
    both: BothSides  # set in a subclass by ``machine_for``

    def __init__(self) -> None:
        super().__init__()
        self.both.begin()
        self.slots = 0

    @initialize(target=descriptors)
    def first_objects(self) -> MultipleResults[int]:
        """Two directories anybody may use, a file in each place, and the files open."""
        for path in (b"a", b"a/b"):
            self.both.ok("mkdir", path=path, umask=0)
        flags = os.O_RDWR | os.O_CREAT
        for slot, path in enumerate((b"b", b"a/a"), start=1):
            self.both.ok("open", slot=slot, path=path, flags=flags, mode=0o666, umask=0)
            self.both.ok("write", slot=slot, length=20_000, fill=slot)
        self.slots = 2
        return multiple(1, 2)

    def existing_names(self) -> list[bytes]:
        """What can be named now, asked of the plain side; at least one."""
        top = self.both.plain_example()
        found = [b"."]
        for directory, directories, files in os.walk(top):
            below = os.path.relpath(directory, top)
            found += [os.path.normpath(below + b"/" + name) for name in sorted(directories + files)]
        return found[1:] or found

    def teardown(self) -> None:
        self.both.end()

    def opened(self, operation: str, **arguments: Any) -> MultipleResults[int]:
        """Do what opens a file; its slot, or nothing when it fails or has opened a device."""
        self.slots += 1
        outcome = self.both.do(operation, **arguments)
        if outcome.error is not None or outcome.value == "device":
            return multiple()
        return multiple(self.slots)

    # --- open files ---------------------------------------------------------------------------------------------

    @rule(
        target=descriptors,
        path=paths,
        access=st.sampled_from([os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY]),
        creation=st.sampled_from(CREATION_FLAGS),
        other=st.sampled_from(OTHER_FLAGS),
        more=st.sampled_from([0, 0, *OTHER_FLAGS]),
        mode=modes,
        user=users,
        umask=umasks,
    )
    def open(
        self, path: bytes, access: int, creation: int, other: int, more: int, mode: int, user: str, umask: int
    ) -> MultipleResults[int]:
        flags = access | creation | other | more
        slot = self.slots + 1
        return self.opened("open", slot=slot, path=path, flags=flags, mode=mode, user=user, umask=umask)

    @rule(target=descriptors, path=new_paths, mode=st.sampled_from([0o666, 0o644]), umask=umasks, user=users)
    def create(self, path: bytes, mode: int, umask: int, user: str) -> MultipleResults[int]:
        flags = os.O_RDWR | os.O_CREAT
        slot = self.slots + 1
        return self.opened("open", slot=slot, path=path, flags=flags, mode=mode, umask=umask, user=user)

    @rule(target=descriptors, directory=descriptors, path=new_paths)
    def create_at(self, directory: int, path: bytes) -> MultipleResults[int]:
        flags = os.O_RDWR | os.O_CREAT
        return self.opened("open", slot=self.slots + 1, path=path, flags=flags, directory=directory)

    @rule(target=descriptors, slot=descriptors)
    def duplicate(self, slot: int) -> MultipleResults[int]:
        return self.opened("duplicate", slot=slot, new_slot=self.slots + 1)

    @rule(slot=consumes(descriptors))
    def close(self, slot: int) -> None:
        self.both.do("close", slot=slot)

    @rule(slot=descriptors, length=lengths)
    def read(self, slot: int, length: int) -> None:
        self.both.do("read", slot=slot, length=length)

    @rule(slot=descriptors, length=lengths, offset=offsets)
    def pread(self, slot: int, length: int, offset: int) -> None:
        self.both.do("pread", slot=slot, length=length, offset=offset)

    @rule(slot=descriptors, parts=st.lists(lengths, max_size=4))
    def readv(self, slot: int, parts: list[int]) -> None:
        self.both.do("readv", slot=slot, lengths=parts)

    @rule(slot=descriptors, length=lengths, fill=fills, user=users)
    def write(self, slot: int, length: int, fill: int, user: str) -> None:
        self.both.do("write", slot=slot, length=length, fill=fill, user=user)

    @rule(slot=descriptors, length=lengths, offset=offsets, fill=fills, user=users)
    def pwrite(self, slot: int, length: int, offset: int, fill: int, user: str) -> None:
        self.both.do("pwrite", slot=slot, length=length, offset=offset, fill=fill, user=user)

    @rule(slot=descriptors, parts=st.lists(lengths, max_size=4), fill=fills)
    def writev(self, slot: int, parts: list[int], fill: int) -> None:
        self.both.do("writev", slot=slot, lengths=parts, fill=fill)

    @rule(
        slot=descriptors,
        length=lengths,
        offset=offsets,
        fill=fills,
        flags=st.sampled_from([0, os.RWF_DSYNC, os.RWF_SYNC, os.RWF_APPEND]),
    )
    def pwritev(self, slot: int, length: int, offset: int, fill: int, flags: int) -> None:
        self.both.do("pwritev", slot=slot, length=length, offset=offset, fill=fill, flags=flags)

    @rule(slot=descriptors, other=descriptors, length=lengths, offset=offsets, other_offset=offsets)
    def copy_range(self, slot: int, other: int, length: int, offset: int, other_offset: int) -> None:
        self.both.do("copy_range", slot=slot, other=other, length=length, offset=offset, other_offset=other_offset)

    @rule(
        slot=descriptors,
        offset=st.one_of(st.sampled_from([0, 1, 4095, 4096, 8192, 4 * MEBIBYTE]), st.integers(-5000, 40_000)),
        whence=st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END, os.SEEK_HOLE, os.SEEK_DATA]),
    )
    def seek(self, slot: int, offset: int, whence: int) -> None:
        self.both.do("seek", slot=slot, offset=offset, whence=whence)

    @rule(slot=descriptors, length=sizes, user=users)
    def ftruncate(self, slot: int, length: int, user: str) -> None:
        self.both.do("ftruncate", slot=slot, length=length, user=user)

    @rule(
        slot=descriptors,
        mode=st.sampled_from(FALLOCATE_MODES),
        offset=offsets,
        length=st.sampled_from([0, 1, 4096, 10_000, MEBIBYTE]),
    )
    def fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        self.both.do("fallocate", slot=slot, mode=mode, offset=offset, length=length)

    @rule(slot=descriptors, operation=st.sampled_from(["fsync", "fdatasync", "fstat"]))
    def on_descriptor(self, slot: int, operation: str) -> None:
        self.both.do(operation, slot=slot)

    @rule(slot=descriptors, mode=modes, user=users)
    def fchmod(self, slot: int, mode: int, user: str) -> None:
        self.both.do("fchmod", slot=slot, mode=mode, user=user)

    @rule(slot=descriptors, uid=owners, gid=owners, user=users)
    def fchown(self, slot: int, uid: int, gid: int, user: str) -> None:
        self.both.do("fchown", slot=slot, uid=uid, gid=gid, user=user)

    @rule(slot=descriptors, path=new_paths)
    def link_descriptor(self, slot: int, path: bytes) -> None:
        self.both.do("link_descriptor", slot=slot, path=path)

    @rule(slot=descriptors, path=paths)
    def same_file(self, slot: int, path: bytes) -> None:
        self.both.do("same_file", slot=slot, path=path)

    @rule(slot=descriptors, kind=st.sampled_from([fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN]))
    def flock(self, slot: int, kind: int) -> None:
        self.both.do("flock", slot=slot, kind=kind)

    @rule(
        slot=descriptors,
        kind=st.sampled_from([fcntl.F_WRLCK, fcntl.F_RDLCK, fcntl.F_UNLCK]),
        start=st.sampled_from([0, 10]),
        length=st.sampled_from([0, 20]),
    )
    def record_lock(self, slot: int, kind: int, start: int, length: int) -> None:
        self.both.do("record_lock", slot=slot, kind=kind, start=start, length=length)

    @rule(slot=descriptors, page=st.integers(0, 3), length=st.sampled_from([1, 100, 4096, 9000]), shared=st.booleans())
    def map_read(self, slot: int, page: int, length: int, shared: bool) -> None:
        self.both.do("map_read", slot=slot, offset=page * 4096, length=length, shared=shared)

    @rule(
        slot=descriptors,
        page=st.integers(0, 3),
        length=st.sampled_from([1, 100, 4096, 9000]),
        shared=st.booleans(),
        fill=fills,
    )
    def map_write(self, slot: int, page: int, length: int, shared: bool, fill: int) -> None:
        self.both.do("map_write", slot=slot, offset=page * 4096, length=length, shared=shared, fill=fill)

    # --- names --------------------------------------------------------------------------------------------------

    @rule(path=new_paths, mode=modes, user=users, umask=umasks)
    def mkdir(self, path: bytes, mode: int, user: str, umask: int) -> None:
        self.both.do("mkdir", path=path, mode=mode, user=user, umask=umask)

    @rule(path=new_paths)
    def mkdir_plainly(self, path: bytes) -> None:
        self.both.do("mkdir", path=path, mode=0o777, umask=0)

    @rule(path=paths, user=users)
    def rmdir(self, path: bytes, user: str) -> None:
        self.both.do("rmdir", path=path, user=user)

    @rule(
        path=new_paths,
        kind=st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFREG]),
        mode=modes,
        user=users,
        umask=umasks,
    )
    def mknod(self, path: bytes, kind: int, mode: int, user: str, umask: int) -> None:
        device = os.makedev(1, 3) if kind == stat.S_IFCHR else 0
        self.both.do("mknod", path=path, mode=kind | mode, device=device, user=user, umask=umask)

    @rule(to=st.sampled_from(LINK_TARGETS), path=new_paths, user=users)
    def symlink(self, to: bytes, path: bytes, user: str) -> None:
        self.both.do("symlink", target=to, path=path, user=user)

    @rule(old=paths, new=new_paths, flags=st.sampled_from([0, system_calls.AT_SYMLINK_FOLLOW]), user=users)
    def link(self, old: bytes, new: bytes, flags: int, user: str) -> None:
        self.both.do("link", old=old, new=new, flags=flags, user=user)

    @rule(path=paths, user=users)
    def unlink(self, path: bytes, user: str) -> None:
        self.both.do("unlink", path=path, user=user)

    @rule(old=paths, new=new_paths, flags=st.sampled_from(RENAME_FLAGS), user=users)
    def rename(self, old: bytes, new: bytes, flags: int, user: str) -> None:
        self.both.do("rename", old=old, new=new, flags=flags, user=user)

    @rule(path=paths, operation=st.sampled_from(["stat", "lstat", "readlink", "listdir", "listxattr"]), user=users)
    def look(self, path: bytes, operation: str, user: str) -> None:
        self.both.do(operation, path=path, user=user)

    @rule(path=paths, mode=st.integers(0, 7), effective=st.booleans(), user=users)
    def access(self, path: bytes, mode: int, effective: bool, user: str) -> None:
        self.both.do("access", path=path, mode=mode, effective=effective, user=user)

    @rule(path=paths, length=sizes, user=users)
    def truncate(self, path: bytes, length: int, user: str) -> None:
        self.both.do("truncate", path=path, length=length, user=user)

    @rule(path=paths, mode=modes, user=users)
    def chmod(self, path: bytes, mode: int, user: str) -> None:
        self.both.do("chmod", path=path, mode=mode, user=user)

    @rule(path=paths, uid=owners, gid=owners, follow=st.booleans(), user=users)
    def chown(self, path: bytes, uid: int, gid: int, follow: bool, user: str) -> None:
        self.both.do("chown", path=path, uid=uid, gid=gid, follow=follow, user=user)

    @rule(
        path=paths,
        access=st.sampled_from(MOMENTS),
        modification=st.sampled_from(MOMENTS),
        flags=st.sampled_from([0, system_calls.AT_SYMLINK_NOFOLLOW]),
        user=users,
    )
    def utimens(
        self, path: bytes, access: tuple[int, int], modification: tuple[int, int], flags: int, user: str
    ) -> None:
        self.both.do("utimens", path=path, access=access, modification=modification, flags=flags, user=user)

    # --- extended attributes --------------------------------------------------------------------------------------

    @rule(
        path=paths,
        name=st.sampled_from(ATTRIBUTES),
        length=st.sampled_from([0, 1, 30, 1500, 60_000, 65_537]),
        flags=st.sampled_from([0, 0, os.XATTR_CREATE, os.XATTR_REPLACE]),
        follow=st.booleans(),
        user=users,
    )
    def setxattr(self, path: bytes, name: bytes, length: int, flags: int, follow: bool, user: str) -> None:
        value = b"v" * length
        self.both.do("setxattr", path=path, name=name, value=value, flags=flags, follow=follow, user=user)

    @rule(
        path=paths,
        name=st.sampled_from([b"system.posix_acl_access", b"system.posix_acl_default"]),
        named=st.integers(0, 7),
        mask=st.integers(0, 7),
        user=users,
    )
    def set_access_list(self, path: bytes, name: bytes, named: int, mask: int, user: str) -> None:
        alice = USERS["alice"].uid
        value = access_list(owner=7, group=5, other=1, users={alice: named}, mask=mask)
        self.both.do("setxattr", path=path, name=name, value=value, user=user)

    @rule(
        path=paths,
        name=st.sampled_from([*ATTRIBUTES, b"system.posix_acl_access", b"system.posix_acl_default"]),
        operation=st.sampled_from(["getxattr", "removexattr"]),
        follow=st.booleans(),
        user=users,
    )
    def on_attribute(self, path: bytes, name: bytes, operation: str, follow: bool, user: str) -> None:
        self.both.do(operation, path=path, name=name, follow=follow, user=user)

    @rule()
    def compare_trees(self) -> None:
        self.both.compare_trees()


def machine_for(sides: BothSides) -> type[PosixMachine]:
    """The machine's class for these two directories."""

    class Machine(PosixMachine):
        both = sides

    return Machine
