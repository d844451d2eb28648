"""Scenarios: permissions, owners, set-id bits, umask, extended attributes, ACLs."""

import itertools
import os
import stat

from tests import system_calls
from tests.posix_access_lists import access_list
from tests.posix_difference import BothSides
from tests.posix_scenarios import READ_WRITE, make_file, scenario
from tests.posix_worker import USERS

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
ALICE, BOB = USERS["alice"], USERS["bob"]
ALICES_GROUP = ALICE.groups[0]


@scenario
def permission_decisions(both: BothSides) -> None:
    """Every permission bit of a file and of a directory, for its owner, its group and others."""
    for bits in range(8):
        for shift in (6, 3, 0):
            top = b"%o-%d" % (bits, shift)
            mode = bits << shift
            both.ok("mkdir", path=top)
            make_file(both, top + b"/file")
            both.ok("chown", path=top + b"/file", uid=ALICE.uid, gid=ALICES_GROUP)
            both.ok("chown", path=top, uid=ALICE.uid, gid=ALICES_GROUP)
            both.ok("chmod", path=top + b"/file", mode=mode)
            for user in ("root", "alice", "bob"):
                for access in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                    if both.do("open", slot=1, path=top + b"/file", flags=access, user=user).error is None:
                        both.ok("close", slot=1)
                for wanted in range(8):
                    both.ok("access", path=top + b"/file", mode=wanted, user=user)
                both.do("truncate", path=top + b"/file", length=10, user=user)
            both.ok("chmod", path=top, mode=mode)
            for user in ("alice", "bob"):
                both.do("listdir", path=top, user=user)
                both.do("stat", path=top + b"/file", user=user)
                both.do("mkdir", path=top + b"/" + user.encode(), user=user)
                both.do("rename", old=top + b"/file", new=top + b"/file2", user=user)
                both.do("unlink", path=top + b"/file2", user=user)
                both.do("rmdir", path=top, user=user)


@scenario
def sticky_directories(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    both.ok("chmod", path=b"d", mode=0o1777)
    for name in (b"d/a", b"d/b", b"d/c"):
        make_file(both, name, user="alice")
    both.fails("EPERM", "unlink", path=b"d/a", user="bob")
    both.fails("EPERM", "rename", old=b"d/a", new=b"d/x", user="bob")
    make_file(both, b"d/bobs", user="bob")
    both.fails("EPERM", "rename", old=b"d/bobs", new=b"d/a", user="bob")
    both.ok("unlink", path=b"d/a", user="alice")
    both.do("link", old=b"d/b", new=b"d/link", user="bob")
    both.do("open", slot=1, path=b"d/b", flags=os.O_WRONLY | os.O_CREAT, user="root")


@scenario
def modes_with_set_id_bits(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("mkdir", path=b"d")
    both.ok("chown", path=b"a", uid=ALICE.uid, gid=ALICES_GROUP)
    both.ok("chown", path=b"d", uid=ALICE.uid, gid=BOB.gid)
    for path in (b"a", b"d"):
        for mode in (0o4755, 0o2755, 0o6777, 0o1777, 0o7777, 0o2644, 0, 0o17777):
            for user in ("root", "alice", "bob"):
                both.do("chmod", path=path, mode=mode, user=user)
                both.ok("stat", path=path)
    # Not a member of the file's group: the set-group-id bit is dropped.
    both.ok("chown", path=b"a", uid=ALICE.uid, gid=BOB.gid)
    both.ok("chmod", path=b"a", mode=0o2755, user="alice")
    assert both.ok("stat", path=b"a").mode.endswith("0o755")


@scenario
def chown_clears_set_id_bits(both: BothSides) -> None:
    for mode in (0o6777, 0o6755, 0o2644, 0o6711):
        for path in (b"file%o" % mode, b"directory%o" % mode):
            if path.startswith(b"file"):
                make_file(both, path)
            else:
                both.ok("mkdir", path=path)
            for uid, gid, user in (
                (ALICE.uid, ALICE.gid, "root"),
                (-1, ALICES_GROUP, "alice"),
                (ALICE.uid, -1, "alice"),
                (-1, BOB.gid, "alice"),
                (BOB.uid, -1, "alice"),
            ):
                both.ok("chmod", path=path, mode=mode)
                both.do("chown", path=path, uid=uid, gid=gid, user=user)
                both.ok("stat", path=path)


@scenario
def writes_clear_set_id_bits(both: BothSides) -> None:
    changes = [
        ("write", {"length": 10, "fill": 1}),
        ("pwrite", {"length": 10, "fill": 1, "offset": 50}),
        ("write", {"length": 0, "fill": 1}),
        ("ftruncate", {"length": 20}),
        ("fallocate", {"mode": 0, "offset": 0, "length": 1000}),
        ("fallocate", {"mode": 3, "offset": 0, "length": 10}),
        ("map_write", {"offset": 0, "length": 10, "shared": True, "fill": 1}),
    ]
    make_file(both, b"a", 1000)
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
    for mode, user, (operation, arguments) in itertools.product((0o6777, 0o2767), ("root", "bob"), changes):
        both.ok("chmod", path=b"a", mode=mode)
        both.ok(operation, slot=1, user=user, **arguments)
        both.ok("stat", path=b"a")
    for user in ("root", "bob"):
        both.ok("chmod", path=b"a", mode=0o6777)
        both.ok("truncate", path=b"a", length=30, user=user)
        both.ok("stat", path=b"a")
        both.ok("chmod", path=b"a", mode=0o6777)
        both.ok("open", slot=2, path=b"a", flags=os.O_RDWR | os.O_TRUNC, user=user)
        both.ok("stat", path=b"a")


@scenario
def writes_remove_capabilities(both: BothSides) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    make_file(both, b"a")
    for user, operation, arguments in (
        ("root", "write", {"length": 10, "fill": 1}),
        ("bob", "write", {"length": 10, "fill": 1}),
        ("root", "ftruncate", {"length": 5}),
        ("root", "fchown", {"uid": ALICE.uid, "gid": -1}),
    ):
        both.ok("setxattr", path=b"a", name=b"security.capability", value=capability)
        both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
        both.ok(operation, slot=1, user=user, **arguments)
        both.do("getxattr", path=b"a", name=b"security.capability")
        both.ok("close", slot=1)
    both.fails("EINVAL", "setxattr", path=b"a", name=b"security.capability", value=b"wrong")
    both.fails("EPERM", "setxattr", path=b"a", name=b"security.capability", value=capability, user="alice")


@scenario
def owners_of_new_objects(both: BothSides) -> None:
    for top, mode in ((b"plain", 0o777), (b"setgid", 0o2777)):
        both.ok("mkdir", path=top)
        both.ok("chown", path=top, uid=BOB.uid, gid=BOB.gid)
        both.ok("chmod", path=top, mode=mode)
        for user in ("root", "alice", "bob"):
            name = top + b"/" + user.encode()
            both.ok("open", slot=1, path=name + b"-file", flags=READ_WRITE, mode=0o6777, user=user, umask=0)
            both.ok("mkdir", path=name + b"-directory", mode=0o7777, user=user, umask=0)
            both.ok("mknod", path=name + b"-fifo", mode=stat.S_IFIFO | 0o6666, user=user)
            both.ok("mknod", path=name + b"-node", mode=stat.S_IFREG | 0o2777, user=user, umask=0)
            both.ok("symlink", target=b"x", path=name + b"-link", user=user)


@scenario
def umasks(both: BothSides) -> None:
    for umask in (0, 0o002, 0o022, 0o027, 0o077, 0o777):
        name = b"%o" % umask
        both.ok("open", slot=1, path=name + b"-file", flags=READ_WRITE, mode=0o6777, umask=umask)
        both.ok("mkdir", path=name + b"-directory", mode=0o1777, umask=umask)
        both.ok("mknod", path=name + b"-fifo", mode=stat.S_IFIFO | 0o666, umask=umask)
        both.ok("symlink", target=b"x", path=name + b"-link", umask=umask)


@scenario
def a_file_without_rights_is_made_and_written(both: BothSides) -> None:
    for user in ("root", "alice"):
        path = user.encode()
        both.ok("open", slot=1, path=path, flags=READ_WRITE | os.O_EXCL, mode=0, user=user)
        both.ok("write", slot=1, length=1000, fill=1, user=user)
        both.do("open", slot=2, path=path, flags=os.O_RDWR, user=user)
        both.ok("ftruncate", slot=1, length=10, user=user)


@scenario
def extended_attributes(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("mkdir", path=b"d")
    both.ok("symlink", target=b"a", path=b"link")
    both.ok("mknod", path=b"fifo", mode=stat.S_IFIFO | 0o666)
    both.ok("chmod", path=b"a", mode=0o666)
    names = [b"user.x", b"trusted.x", b"security.x", b"system.x", b"x", b"user.", b"", b"user." + b"n" * 250]
    for path, name, user in itertools.product((b"a", b"d", b"link", b"fifo"), names, ("root", "alice")):
        for follow in (True, False):
            both.do("setxattr", path=path, name=name, value=b"1", follow=follow, user=user)
            both.do("getxattr", path=path, name=name, follow=follow, user=user)
            both.do("removexattr", path=path, name=name, follow=follow, user=user)
            both.do("removexattr", path=path, name=name, follow=follow, user=user)
    both.fails("ERANGE", "setxattr", path=b"a", name=b"user." + b"n" * 251, value=b"")


@scenario
def extended_attribute_flags_and_sizes(both: BothSides) -> None:
    make_file(both, b"a")
    both.fails("ENODATA", "setxattr", path=b"a", name=b"user.x", value=b"1", flags=os.XATTR_REPLACE)
    both.ok("setxattr", path=b"a", name=b"user.x", value=b"1", flags=os.XATTR_CREATE)
    both.fails("EEXIST", "setxattr", path=b"a", name=b"user.x", value=b"2", flags=os.XATTR_CREATE)
    both.ok("setxattr", path=b"a", name=b"user.x", value=b"2", flags=os.XATTR_REPLACE)
    for length in (0, 1, 255, 1000, 3000):
        both.ok("setxattr", path=b"a", name=b"user.y", value=bytes(length))
        assert both.ok("getxattr", path=b"a", name=b"user.y") == bytes(length)
    for length in (60 * 1024, 65_536, 65_537):
        both.do("setxattr", path=b"a", name=b"user.z", value=b"z" * length)
    both.fails("E2BIG", "setxattr", path=b"a", name=b"user.z", value=b"z" * 65_537)
    both.ok("removexattr", path=b"a", name=b"user.y")
    for number in range(10):
        both.ok("setxattr", path=b"a", name=b"user.%d" % number, value=b"v" * 10)
    assert len(both.ok("listxattr", path=b"a")) >= 11


@scenario
def unprivileged_listing_of_attributes(both: BothSides) -> None:
    make_file(both, b"a", mode=0o644)
    for name in (b"user.x", b"trusted.x", b"security.x"):
        both.ok("setxattr", path=b"a", name=name, value=b"1")
    for user in ("root", "alice"):
        both.ok("listxattr", path=b"a", user=user)
        for name in (b"user.x", b"trusted.x", b"security.x"):
            both.do("getxattr", path=b"a", name=name, user=user)


@scenario
def the_mirrors_own_attribute_is_hidden(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("mkdir", path=b"d")
    for path in (b"a", b"d", b"."):
        assert both.ok("listxattr", path=path) == []
        both.fails("ENODATA", "getxattr", path=path, name=b"trusted.hotpair.id")


@scenario
def access_lists(both: BothSides) -> None:
    make_file(both, b"a", mode=0o600)
    values = [
        access_list(7, 5, 1, users={ALICE.uid: 6}, mask=7),
        access_list(6, 0, 0, users={ALICE.uid: 7, BOB.uid: 4}, groups={ALICES_GROUP: 2}, mask=4),
        access_list(6, 4, 4),  # the same as a mode: nothing is kept
        access_list(0, 0, 0, groups={BOB.gid: 6}, mask=6),
        access_list(7, 7, 7, users={ALICE.uid: 7}),  # no mask: invalid
        b"",
        b"\2\0\0\0",
        b"wrong",
    ]
    for value in values:
        both.do("setxattr", path=b"a", name=ACCESS, value=value)
        both.ok("stat", path=b"a")
        both.do("getxattr", path=b"a", name=ACCESS)
        both.ok("listxattr", path=b"a")
        for user, access in itertools.product(("alice", "bob"), (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)):
            if both.do("open", slot=1, path=b"a", flags=access, user=user).error is None:
                both.ok("close", slot=1)
        both.ok("chmod", path=b"a", mode=0o640)
        both.do("getxattr", path=b"a", name=ACCESS)
    both.fails("EPERM", "setxattr", path=b"a", name=ACCESS, value=values[0], user="alice")
    both.fails("EACCES", "setxattr", path=b"a", name=DEFAULT, value=values[0])
    both.ok("setxattr", path=b"a", name=ACCESS, value=values[0])
    both.ok("removexattr", path=b"a", name=ACCESS)
    both.ok("stat", path=b"a")
    both.ok("symlink", target=b"a", path=b"link")
    both.fails("EOPNOTSUPP", "setxattr", path=b"link", name=ACCESS, value=values[0], follow=False)


@scenario
def access_list_of_another_group_clears_set_group_id(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("chown", path=b"a", uid=ALICE.uid, gid=BOB.gid)
    for user in ("root", "alice"):
        both.ok("chmod", path=b"a", mode=0o2755)
        value = access_list(7, 5, 5, users={BOB.uid: 7}, mask=7)
        both.ok("setxattr", path=b"a", name=ACCESS, value=value, user=user)
        both.ok("stat", path=b"a")


@scenario
def inherited_access_lists(both: BothSides) -> None:
    lists = [
        access_list(7, 5, 5),
        access_list(7, 0, 0, users={ALICE.uid: 7}, mask=7),
        access_list(6, 7, 4, groups={ALICES_GROUP: 7}, mask=5),
        access_list(0, 0, 0, users={BOB.uid: 0}, mask=0),
    ]
    for number, value in enumerate(lists):
        top = b"d%d" % number
        both.ok("mkdir", path=top, mode=0o777, umask=0)
        both.ok("setxattr", path=top, name=DEFAULT, value=value)
        both.ok("chmod", path=top, mode=0o777)
        for umask, user in itertools.product((0, 0o022, 0o077, 0o777), ("root", "alice")):
            name = top + b"/%o-%s" % (umask, user.encode())
            both.ok("open", slot=1, path=name + b"-f", flags=READ_WRITE, mode=0o666, umask=umask, user=user)
            both.ok("open", slot=1, path=name + b"-x", flags=READ_WRITE, mode=0o2751, umask=umask, user=user)
            both.ok("mkdir", path=name + b"-d", mode=0o775, umask=umask, user=user)
            both.do("mkdir", path=name + b"-d/e", mode=0o700, umask=umask)
            both.ok("mknod", path=name + b"-p", mode=stat.S_IFIFO | 0o666, umask=umask, user=user)
            both.ok("symlink", target=b"x", path=name + b"-l", umask=umask, user=user)
        both.compare_trees()
        both.ok("removexattr", path=top, name=DEFAULT)
        both.do("removexattr", path=top, name=DEFAULT)
        both.ok("mkdir", path=top + b"/after", umask=0o022)


@scenario
def unprivileged_changes_of_others_objects(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("chmod", path=b"a", mode=0o666)
    both.ok("mkdir", path=b"d")
    both.ok("chmod", path=b"d", mode=0o755)
    moment = (1_000_000_000, 0)
    for user in ("alice", "bob"):
        both.fails("EPERM", "chmod", path=b"a", mode=0o777, user=user)
        both.fails("EPERM", "chown", path=b"a", uid=ALICE.uid, gid=-1, user=user)
        both.fails("EPERM", "utimens", path=b"a", access=moment, modification=moment, user=user)
        both.fails("EACCES", "mkdir", path=b"d/x", user=user)
        both.fails("EACCES", "rename", old=b"a", new=b"d/a", user=user)
        both.fails("EPERM", "open", slot=1, path=b"a", flags=os.O_RDONLY | os.O_NOATIME, user=user)
        both.fails("EPERM", "setxattr", path=b"a", name=b"trusted.x", value=b"", user=user)
        both.ok("setxattr", path=b"a", name=b"user.x", value=b"", user=user)
        both.do("link", old=b"a", new=user.encode(), user=user)
    both.do("utimens", path=b"a", access=moment, modification=(0, system_calls.UTIME_OMIT), user="alice")
