"""Scenarios: names, directories, links, renames, files without a name."""

import os
import stat

from tests import system_calls
from tests.posix_difference import BothSides
from tests.posix_scenarios import READ_WRITE, content, make_file, scenario

NOREPLACE, EXCHANGE = system_calls.RENAME_NOREPLACE, system_calls.RENAME_EXCHANGE


@scenario
def directories(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    both.fails("EEXIST", "mkdir", path=b"d")
    both.ok("mkdir", path=b"d/e")
    assert both.ok("stat", path=b"d").links == 3
    both.fails("ENOTEMPTY", "rmdir", path=b"d")
    both.fails("EINVAL", "rmdir", path=b"d/.")
    both.fails("ENOTEMPTY", "rmdir", path=b"d/e/..")
    both.fails("EISDIR", "unlink", path=b"d")
    both.ok("rmdir", path=b"d/e")
    assert both.ok("stat", path=b"d").links == 2
    both.ok("rmdir", path=b"d/")
    make_file(both, b"a")
    both.fails("ENOTDIR", "rmdir", path=b"a")
    both.fails("ENOTDIR", "unlink", path=b"a/")
    both.fails("ENOTDIR", "mkdir", path=b"a/b")
    both.fails("ENOENT", "mkdir", path=b"x/y")


@scenario
def special_files(both: BothSides) -> None:
    kinds = [stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR, 0]
    for number, kind in enumerate(kinds):
        device = os.makedev(259, 70_000) if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        for user in ("root", "alice"):
            path = b"%d-%s" % (number, user.encode())
            both.do("mknod", path=path, mode=kind | 0o640, device=device, user=user)
            both.do("lstat", path=path)
    both.fails("EEXIST", "mknod", path=b"0-root", mode=stat.S_IFIFO)
    both.ok("open", slot=1, path=b"0-root", flags=os.O_RDWR)
    both.ok("write", slot=1, length=100, fill=1)
    both.ok("read", slot=1, length=200)
    both.fails("ENXIO", "open", slot=2, path=b"1-root", flags=os.O_RDWR)
    both.ok("listdir", path=b".")
    both.ok("rename", old=b"1-root", new=b"socket")
    both.ok("link", old=b"3-root", new=b"device")


@scenario
def symbolic_links(both: BothSides) -> None:
    make_file(both, b"a")
    for number, target in enumerate([b"a", b"./a", b"/", b"missing", b"loop", b"\xff", b"t" * 4095, b"x/" * 2000]):
        path = b"link%d" % number
        both.do("symlink", target=target, path=path)
        both.do("readlink", path=path)
        both.do("lstat", path=path)
    both.fails("ENOENT", "symlink", target=b"", path=b"empty")
    both.fails("ENAMETOOLONG", "symlink", target=b"t" * 4096, path=b"long")
    both.fails("EEXIST", "symlink", target=b"a", path=b"link0")
    both.ok("symlink", target=b"loop", path=b"loop")
    both.fails("ELOOP", "stat", path=b"loop")
    both.fails("ELOOP", "open", slot=1, path=b"link0", flags=os.O_RDONLY | os.O_NOFOLLOW)
    both.fails("EINVAL", "readlink", path=b"a")
    both.ok("stat", path=b"link0")
    both.ok("chown", path=b"link0", uid=60001, gid=60002, follow=False)
    both.ok("unlink", path=b"link0")
    both.ok("mkdir", path=b"d")
    both.ok("symlink", target=b"../a", path=b"d/up")
    both.ok("stat", path=b"d/up")
    both.ok("rename", old=b"d/up", new=b"up")
    both.ok("symlink", target=b"d", path=b"to_directory")
    make_file(both, b"to_directory/b")
    both.ok("stat", path=b"d/b")
    both.ok("listdir", path=b"to_directory")
    both.do("rmdir", path=b"to_directory")
    both.do("rename", old=b"to_directory/", new=b"d2")


@scenario
def hard_links(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("mkdir", path=b"d")
    both.ok("link", old=b"a", new=b"d/b")
    both.ok("link", old=b"d/b", new=b"c")
    assert both.ok("stat", path=b"a").links == 3
    both.ok("open", slot=1, path=b"c", flags=os.O_RDWR)
    both.ok("pwrite", slot=1, length=50, offset=75, fill=3)
    assert len(content(both, b"a")) == 125
    assert both.ok("same_file", slot=1, path=b"d/b")
    both.ok("chmod", path=b"a", mode=0o600)
    both.ok("setxattr", path=b"d/b", name=b"user.a", value=b"1")
    both.compare_trees()
    both.ok("unlink", path=b"a")
    assert both.ok("fstat", slot=1).links == 2
    both.fails("EEXIST", "link", old=b"c", new=b"d/b")
    both.fails("EPERM", "link", old=b"d", new=b"e")
    both.fails("ENOENT", "link", old=b"missing", new=b"e")
    both.ok("symlink", target=b"c", path=b"s")
    both.ok("link", old=b"s", new=b"link_to_link")
    both.ok("link", old=b"s", new=b"link_to_file", flags=system_calls.AT_SYMLINK_FOLLOW)
    both.ok("lstat", path=b"link_to_link")
    both.ok("lstat", path=b"link_to_file")


@scenario
def rename_over_everything(both: BothSides) -> None:
    """Each kind of object onto each kind, with each flag."""
    kinds = ("file", "directory", "full", "link", "fifo", "missing")
    for flags in (0, NOREPLACE, EXCHANGE, NOREPLACE | EXCHANGE, 8):
        for old in kinds:
            for new in kinds:
                top = f"{flags}-{old}-{new}".encode()
                both.ok("mkdir", path=top)
                for name, kind in ((b"/old", old), (b"/new", new)):
                    make_object(both, top + name, kind)
                both.do("rename", old=top + b"/old", new=top + b"/new", flags=flags)
                both.ok("listdir", path=top)


def make_object(both: BothSides, path: bytes, kind: str) -> None:
    """One object of each kind."""
    if kind == "file":
        make_file(both, path)
    elif kind in ("directory", "full"):
        both.ok("mkdir", path=path)
    elif kind == "link":
        both.ok("symlink", target=b"somewhere", path=path)
    elif kind == "fifo":
        both.ok("mknod", path=path, mode=stat.S_IFIFO | 0o600)
    if kind == "full":
        make_file(both, path + b"/inner")


@scenario
def rename_noreplace(both: BothSides) -> None:
    make_file(both, b"a", 10)
    make_file(both, b"b", 20)
    both.fails("EEXIST", "rename", old=b"a", new=b"b", flags=NOREPLACE)
    both.ok("rename", old=b"a", new=b"c", flags=NOREPLACE)
    assert len(content(both, b"c")) == 10


@scenario
def rename_exchange(both: BothSides) -> None:
    make_file(both, b"a", 10)
    both.ok("mkdir", path=b"d")
    make_file(both, b"d/b", 20)
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
    both.ok("rename", old=b"a", new=b"d/b", flags=EXCHANGE)
    assert len(content(both, b"a")) == 20
    assert both.ok("same_file", slot=1, path=b"d/b")
    both.ok("rename", old=b"d", new=b"a", flags=EXCHANGE)
    both.ok("write", slot=1, length=5, fill=1)
    both.fails("ENOENT", "rename", old=b"a", new=b"missing", flags=EXCHANGE)
    both.fails("EINVAL", "rename", old=b"a", new=b"a/b", flags=EXCHANGE)


@scenario
def rename_onto_hard_link_of_itself(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("link", old=b"a", new=b"b")
    both.ok("rename", old=b"a", new=b"b")  # POSIX: does nothing
    both.ok("rename", old=b"a", new=b"a")
    assert both.ok("stat", path=b"a").links == 2


@scenario
def rename_into_itself(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    both.ok("mkdir", path=b"d/e")
    both.fails("EINVAL", "rename", old=b"d", new=b"d/e/f")
    both.fails("EINVAL", "rename", old=b"d", new=b"d/f")
    both.fails("ENOTEMPTY", "rename", old=b"d/e", new=b"d")
    for odd in (b".", b"..", b"d/.", b"d/..", b"", b"d/e/../.."):
        both.do("rename", old=odd, new=b"x")
        both.do("rename", old=b"d", new=odd)
    both.ok("rename", old=b"d/e", new=b"e")
    assert both.ok("stat", path=b"d").links == 2


@scenario
def renamed_while_open(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    both.ok("open", slot=1, path=b"d/a", flags=READ_WRITE)
    both.ok("open", slot=2, path=b"d", flags=os.O_RDONLY)
    both.ok("rename", old=b"d", new=b"e")
    both.ok("write", slot=1, length=1000, fill=1)
    both.ok("rename", old=b"e/a", new=b"b")
    both.ok("write", slot=1, length=1000, fill=2)
    both.ok("fsync", slot=1)
    assert len(content(both, b"b")) == 2000
    both.ok("open", slot=3, path=b"c", flags=READ_WRITE, directory=2)
    both.ok("stat", path=b"e/c")
    make_file(both, b"d")
    make_file(both, b"other", 10)
    both.ok("rename", old=b"other", new=b"b")  # the open file loses its name
    both.ok("write", slot=1, length=1000, fill=3)
    assert both.ok("fstat", slot=1).links == 0
    assert len(content(both, b"b")) == 10


@scenario
def unlinked_while_open(both: BothSides) -> None:
    make_file(both, b"a")
    both.ok("open", slot=1, path=b"a", flags=os.O_RDWR)
    both.ok("open", slot=2, path=b"a", flags=os.O_PATH)
    both.ok("unlink", path=b"a")
    for slot in (1, 2):
        assert both.ok("fstat", slot=slot).links == 0
    both.ok("write", slot=1, length=5000, fill=2)
    both.ok("pread", slot=1, length=9000, offset=0)
    both.ok("ftruncate", slot=1, length=3000)
    both.ok("fchmod", slot=1, mode=0o640)
    both.ok("fchown", slot=1, uid=60001, gid=60001)
    both.ok("fallocate", slot=1, mode=0, offset=0, length=10_000)
    both.ok("fsync", slot=1)
    both.fails("ENOENT", "link_descriptor", slot=1, path=b"again")
    make_file(both, b"a", 7)  # the same name is another file
    assert not both.ok("same_file", slot=1, path=b"a")
    both.compare_trees()
    both.ok("close", slot=2)
    both.ok("close", slot=1)


@scenario
def link_of_an_open_file(both: BothSides) -> None:
    both.ok("open", slot=1, path=b"a", flags=READ_WRITE)
    both.ok("link_descriptor", slot=1, path=b"b")
    both.ok("unlink", path=b"a")
    both.ok("write", slot=1, length=100, fill=1)
    both.ok("link_descriptor", slot=1, path=b"c")
    both.ok("unlink", path=b"b")
    assert both.ok("fstat", slot=1).links == 1
    assert len(content(both, b"c")) == 100


@scenario
def removed_while_open(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    both.ok("open", slot=1, path=b"d", flags=os.O_RDONLY)
    both.ok("rmdir", path=b"d")
    assert both.ok("list_descriptor", slot=1) == []
    both.fails("ENOENT", "open", slot=2, path=b"a", flags=READ_WRITE, directory=1)
    both.fails("ENOENT", "mkdir_at", slot=1, path=b"a")
    assert both.ok("fstat", slot=1).links == 0
    both.ok("fsync", slot=1)
    both.ok("fchmod", slot=1, mode=0o700)
    both.ok("mkdir", path=b"d")
    assert not both.ok("same_file", slot=1, path=b"d")


@scenario
def names_of_every_kind(both: BothSides) -> None:
    names = [
        b"n" * 255,
        b"n" * 256,
        b"n" * 1024,
        b"n" * 1025,
        b"n" * 4095,
        b"n" * 4096,
        bytes(range(1, 47)) + bytes(range(48, 128)),
        bytes(range(128, 256)),
        b"\xff",
        b" ",
        b"-",
        b"...",
        b"new\nline",
        "\u00e4".encode(),
        "a\u0308".encode(),
        b"A",
        b"a",
        b"",
        b".",
        b"..",
        b"./x/.",
        b"x/",
        b".hotpair",
        b".NAME.hotpair",
    ]
    for name in names:
        both.do("open", slot=1, path=name, flags=READ_WRITE)
        both.do("lstat", path=name)
        both.do("mkdir", path=name)
        both.do("link", old=name, new=b"x" + name[:254])
        both.do("symlink", target=name, path=b"y" + name[:254])
        both.do("rename", old=b"y" + name[:254], new=b"z" + name[:254])
        both.do("setxattr", path=name, name=b"user.name", value=name[:200])
    both.ok("listdir", path=b".")


@scenario
def deep_directories(both: BothSides) -> None:
    name = b"d" * 200
    for _ in range(40):  # 8 000 bytes of path: longer than PATH_MAX
        both.ok("mkdir", path=name)
        both.ok("chdir", path=name)
    make_file(both, b"deep")
    both.ok("rename", old=b"deep", new=b"deeper")
    both.ok("open", slot=1, path=b"deeper", flags=os.O_RDWR)
    both.ok("write", slot=1, length=100, fill=2)
    for _ in range(40):
        both.ok("chdir", path=b"..")


@scenario
def long_paths(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    make_file(both, b"d/a")
    for length in (4000, 4094, 4095, 4096, 4097):
        path = b"d/" + b"./" * ((length - 3) // 2) + b"a"
        both.do("stat", path=path)
        both.do("stat", path=b"./" + b"/" * (length - 4) + b"d")


@scenario
def many_entries(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    for number in range(300):
        make_file(both, b"d/%03d-%s" % (number, b"x" * (number % 200)), length=0)
    assert len(both.ok("listdir", path=b"d")) == 302
    for number in range(0, 300, 3):
        both.ok("unlink", path=b"d/%03d-%s" % (number, b"x" * (number % 200)))
    both.ok("listdir", path=b"d")


@scenario
def listing_while_changing(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    for number in range(150):
        make_file(both, b"d/stays-%03d" % number, length=0)
        make_file(both, b"d/goes-%03d" % number, length=0)
    assert both.ok("list_while_changing", path=b"d") == ([], [])
    both.ok("listdir", path=b"d")


@scenario
def positions_in_a_directory(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    for number in range(150):
        make_file(both, b"d/%03d" % number, length=0)
    assert both.ok("list_by_positions", path=b"d") == []


@scenario
def listing_sees_what_was_made_after_opening(both: BothSides) -> None:
    both.ok("mkdir", path=b"d")
    both.ok("open", slot=1, path=b"d", flags=os.O_RDONLY)
    both.ok("list_descriptor", slot=1)
    make_file(both, b"d/a")
    assert both.ok("list_descriptor", slot=1) == [b"a"]
    both.ok("unlink", path=b"d/a")
    assert both.ok("list_descriptor", slot=1) == []


@scenario
def many_creations_and_removals(both: BothSides) -> None:
    for number in range(30):
        make_file(both, b"a", number)
        both.ok("link", old=b"a", new=b"b")
        both.ok("rename", old=b"b", new=b"c")
        both.do("rename", old=b"c", new=b"d")
        both.ok("unlink", path=b"a")
        assert both.ok("stat", path=b"d").size == number
