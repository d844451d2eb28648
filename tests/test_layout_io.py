"""Protecting a directory and taking it back, on a real file system: interrupted at every call, refused, in use."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import pytest

from hotpair.replication import linux_io
from hotpair.replication.__main__ import main
from hotpair.replication.errors import BadConfiguration, WrongDirectory
from hotpair.replication.layout_io import MARK_XATTR, Calls, Layout, hide, open_data, show
from hotpair.replication.objects_io import ensure_identity
from hotpair.replication.protect_io import protect, unprotect
from tests import system_calls
from tests.mirror_pair import BASE_PARENT, mounts_below

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Command = Callable[..., list[str]]
COMMANDS = {"protect": protect, "unprotect": unprotect}


@pytest.fixture
def base() -> Iterator[str]:
    """A directory on a real file system; whatever is mounted or immutable in it goes with it."""
    path = tempfile.mkdtemp(prefix="hotpair-layout-", dir=BASE_PARENT)
    os.chmod(path, 0o755)
    yield path
    for point, _, _ in mounts_below(path):
        system_calls.umount_lazily(os.fsencode(point))
    for entry in os.scandir(path):
        if entry.is_dir(follow_symlinks=False):
            system_calls.clear_immutable(entry.path)
    shutil.rmtree(path)


@pytest.fixture
def vm(base: str) -> str:
    """A module's directory with all kinds of things in it."""
    path = f"{base}/vm"
    os.mkdir(path, 0o750)
    os.chown(path, 1234, 2345)
    os.mkdir(f"{path}/disks")
    with open(f"{path}/disks/a", "wb") as file:
        file.write(b"first")
        file.seek(1 << 20)
        file.write(b"last")
    os.link(f"{path}/disks/a", f"{path}/second name")
    os.symlink("disks/a", os.fsencode(path) + b"/link \xff")
    os.setxattr(f"{path}/disks/a", "user.kept", b"\0value")
    os.setxattr(path, "user.of.the.root", b"1")
    os.mkfifo(f"{path}/pipe")
    os.utime(f"{path}/disks/a", ns=(1, 2))
    return path


HIDDEN = "could not be seen"  # where the tests' root has fewer rights than some other process


def told_by(command: Command, vm: str, calls: Calls | None = None) -> list[str]:
    """What the command says, but for processes of this machine that we may not look at."""
    return [line for line in command(vm, calls) if HIDDEN not in line]


def sibling(vm: str) -> str:
    parent, name = os.path.split(vm)
    return f"{parent}/.{name}.hotpair"


def content(directory: str) -> dict[bytes, object]:
    """All that a user would miss: names, kinds, inodes, owners, modes, times, attributes, bytes."""
    found: dict[bytes, object] = {}
    top = os.fsencode(directory)
    for path in [top, *(os.path.join(at, name) for at, below, names in os.walk(top) for name in [*below, *names])]:
        status = os.lstat(path)
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(_attributes(path))}
        held: bytes = b""
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb") as file:
                held = file.read()
        elif stat.S_ISLNK(status.st_mode):
            held = os.readlink(path)
        fields = (status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_nlink, status.st_mtime_ns)
        found[path[len(top) :]] = (*fields, status.st_blocks, attributes, held)
    return found


def _attributes(path: bytes) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


def cannot_be_written(directory: str) -> None:
    """Not even by root."""
    attempts: list[Callable[[], object]] = [
        lambda: os.open(f"{directory}/new", os.O_CREAT | os.O_WRONLY, 0o600),
        lambda: os.mkdir(f"{directory}/new"),
        lambda: os.symlink("x", f"{directory}/new"),
        lambda: os.rename(directory, f"{directory}-moved"),
        lambda: os.rmdir(directory),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionError):
            attempt()
    assert os.listdir(directory) == []


def test_there_and_back(vm: str) -> None:
    before = content(vm)
    assert told_by(protect, vm) == [f"protected: the data is in {sibling(vm)}"]
    assert content(sibling(vm)) == before
    cannot_be_written(vm)
    assert told_by(protect, vm) == [f"protected: the data is in {sibling(vm)}"]
    assert content(sibling(vm)) == before
    assert told_by(unprotect, vm) == [f"not protected: the data is in {vm}"]
    assert content(vm) == before
    assert os.listdir(os.path.dirname(vm)) == ["vm"]
    assert told_by(unprotect, vm) == [f"not protected: the data is in {vm}"]
    assert content(vm) == before


def test_an_empty_directory_too(base: str) -> None:
    vm = f"{base}/vm"
    os.mkdir(vm)
    os.setxattr(vm, "user.the.data", b"1")
    protect(vm)
    cannot_be_written(vm)
    assert os.getxattr(sibling(vm), "user.the.data") == b"1"
    unprotect(vm)
    assert os.getxattr(vm, "user.the.data") == b"1"


# --- interrupted --------------------------------------------------------------------------------------------------


class Crash(BaseException):
    """The process ends here."""


class CrashingCalls(Calls):
    """Ends before, or after, the call with this number."""

    def __init__(self, at: int, after: bool = False) -> None:
        self.labels: list[str] = []
        self._at = at
        self._after = after

    @contextlib.contextmanager
    def _counted(self, label: str) -> Iterator[None]:
        self.labels.append(label)
        if len(self.labels) - 1 == self._at and not self._after:
            raise Crash(label)
        yield
        if len(self.labels) - 1 == self._at:
            raise Crash(label)

    def make(self, label: str, parent_fd: int, name: bytes) -> None:
        with self._counted(label):
            super().make(label, parent_fd, name)

    def mark(self, label: str, fd: int) -> None:
        with self._counted(label):
            super().mark(label, fd)

    def exchange(self, label: str, parent_fd: int, one: bytes, other: bytes) -> None:
        with self._counted(label):
            super().exchange(label, parent_fd, one, other)

    def set_immutable(self, label: str, fd: int, immutable: bool) -> None:
        with self._counted(label):
            super().set_immutable(label, fd, immutable)

    def remove(self, label: str, parent_fd: int, name: bytes) -> None:
        with self._counted(label):
            super().remove(label, parent_fd, name)

    def flush(self, label: str, fd: int) -> None:
        with self._counted(label):
            super().flush(label, fd)


PROTECTING = [
    *("what an earlier run did", "make", "make.parent.flush", "mark", "mark.flush", "mark.parent.flush"),
    *("exchange", "exchange.parent.flush", "close", "close.flush", "close.parent.flush"),
]
UNPROTECTING = [
    *("what an earlier run did", "open", "open.flush", "open.parent.flush"),
    *("exchange", "exchange.parent.flush", "remove", "remove.parent.flush"),
]


def test_each_change_is_on_disk_before_the_next(vm: str) -> None:
    calls = CrashingCalls(-1)
    protect(vm, calls)
    assert calls.labels == PROTECTING
    calls = CrashingCalls(-1)
    unprotect(vm, calls)
    assert calls.labels == UNPROTECTING


@pytest.mark.parametrize("then", COMMANDS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("first", "at"),
    [("protect", at) for at in range(len(PROTECTING))] + [("unprotect", at) for at in range(len(UNPROTECTING))],
)
def test_interrupted_at_every_call_and_run_again(vm: str, first: str, at: int, after: bool, then: str) -> None:
    before = content(vm)
    if first == "unprotect":
        protect(vm)
    with pytest.raises(Crash):
        COMMANDS[first](vm, CrashingCalls(at, after))
    whole = [path for path in (vm, sibling(vm)) if os.path.isdir(path) and content(path) == before]
    assert len(whole) == 1, "the data is whole, in one place"
    other = vm if whole == [sibling(vm)] else sibling(vm)
    assert not os.path.exists(other) or os.listdir(other) == [], "and nothing of it anywhere else"
    start_as_a_mirror_would(vm, whole[0])
    COMMANDS[then](vm)
    assert content(sibling(vm) if then == "protect" else vm) == before
    if then == "protect":
        cannot_be_written(vm)
    else:
        assert os.listdir(os.path.dirname(vm)) == ["vm"]


def start_as_a_mirror_would(vm: str, data: str) -> None:
    """It opens the data, or says that something was interrupted; it gives nothing else an identity."""
    known = ensure_identity_of(data)
    try:
        fd = open_data(os.fsencode(vm), known)
    except BadConfiguration as error:
        assert "run `protect` or `unprotect` once more" in str(error)
    else:
        assert os.fstat(fd).st_ino == os.stat(data).st_ino
        os.close(fd)
    os.removexattr(data, "trusted.hotpair.id")


def ensure_identity_of(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return ensure_identity(fd)
    finally:
        os.close(fd)


class Failing(Calls):
    """One kind of call fails."""

    def __init__(self, label: str, code: int) -> None:
        self._label, self._code = label, code

    def set_immutable(self, label: str, fd: int, immutable: bool) -> None:
        if label == self._label:
            raise OSError(self._code, os.strerror(self._code))
        super().set_immutable(label, fd, immutable)

    def exchange(self, label: str, parent_fd: int, one: bytes, other: bytes) -> None:
        if label == self._label:
            raise OSError(self._code, os.strerror(self._code))
        super().exchange(label, parent_fd, one, other)


@pytest.mark.parametrize("code", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM])
def test_without_the_immutable_flag_it_is_said(vm: str, code: int) -> None:
    before = content(vm)
    told = told_by(protect, vm, Failing("close", code))
    assert len(told) == 2 and os.strerror(code) in told[1] and "root can write into it" in told[1]
    assert content(sibling(vm)) == before and os.listdir(vm) == []
    os.setxattr(vm, "user.changeable", b"1")  # it is not immutable
    unprotect(vm)
    assert content(vm) == before


def test_a_file_system_that_cannot_exchange_names_loses_nothing(vm: str) -> None:
    before = content(vm)
    with pytest.raises(BadConfiguration, match="let the two names change places: Invalid argument"):
        protect(vm, Failing("exchange", errno.EINVAL))
    assert content(vm) == before
    unprotect(vm)
    assert os.listdir(os.path.dirname(vm)) == ["vm"]


def test_a_start_closes_what_was_left_open(vm: str) -> None:
    protect(vm)
    system_calls.clear_immutable(vm)
    os.close(open_data(os.fsencode(vm), None))
    cannot_be_written(vm)


# --- refused ------------------------------------------------------------------------------------------------------


def refused(command: Command, path: str, *words: str) -> None:
    with pytest.raises(BadConfiguration) as caught:
        command(path)
    for word in words:
        assert word in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", COMMANDS.values())
def test_names_that_cannot_be(base: str, vm: str, command: Command) -> None:
    refused(command, "/", "root directory")
    refused(command, f"{base}/missing", "not a directory")
    refused(command, f"{vm}/disks/a", "is not a directory")
    refused(command, f"{base}/missing/vm", "No such file")
    refused(command, f"{base}/{'n' * 247}", "at most 246")
    os.symlink(vm, f"{base}/link")
    refused(command, f"{base}/link", "symbolic link", f"name {vm}")
    os.symlink(base, f"{base}/around")
    refused(command, f"{base}/around/vm", "symbolic link", f"name {vm}")
    protect(vm)
    refused(command, sibling(vm), "is the data of a protected directory")
    refused(lambda path: [str(open_data(os.fsencode(path), None))], sibling(vm), "is the data of a protected")


@pytest.mark.parametrize("command", COMMANDS.values())
def test_a_sibling_with_content_is_not_touched(vm: str, command: Command) -> None:
    os.mkdir(sibling(vm))
    with open(f"{sibling(vm)}/something", "w"):
        pass
    before = content(vm), content(sibling(vm))
    refused(command, vm, "both", sibling(vm))
    refused(lambda path: [str(open_data(os.fsencode(path), None))], vm, "both", sibling(vm))
    assert (content(vm), content(sibling(vm))) == before


@pytest.mark.parametrize("command", COMMANDS.values())
def test_a_sibling_that_is_a_file_or_a_symlink(vm: str, command: Command) -> None:
    with open(sibling(vm), "w"):
        pass
    refused(command, vm, "is not a directory")
    os.unlink(sibling(vm))
    os.symlink(vm, sibling(vm))
    refused(command, vm, "is not a directory")


@pytest.mark.parametrize("command", COMMANDS.values())
def test_what_was_written_into_the_mount_point_is_kept(vm: str, command: Command) -> None:
    protect(vm)
    system_calls.clear_immutable(vm)
    with open(f"{vm}/written", "w") as file:
        file.write("past the mirror")
    refused(command, vm, "something was written into it")
    refused(lambda path: [str(open_data(os.fsencode(path), None))], vm, "something was written into it")
    with open(f"{vm}/written") as file:
        assert file.read() == "past the mirror"


@pytest.mark.parametrize("command", COMMANDS.values())
def test_a_mount_point_whose_data_is_missing(vm: str, command: Command) -> None:
    protect(vm)
    os.rename(sibling(vm), f"{vm}-elsewhere")
    refused(command, vm, "its data is not in")
    refused(lambda path: [str(open_data(os.fsencode(path), None))], vm, "its data is not in")


def test_data_whose_mount_point_is_missing(vm: str) -> None:
    before = content(vm)
    protect(vm)
    system_calls.clear_immutable(vm)
    os.rmdir(vm)
    refused(protect, vm, f"rename {sibling(vm)} to {vm}")
    os.rename(sibling(vm), vm)
    protect(vm)
    assert content(sibling(vm)) == before


def test_a_mount_point_of_another_file_system(vm: str) -> None:
    os.mkdir(f"{vm}/other")
    system_calls.mount(b"tmpfs", os.fsencode(f"{vm}/other"), b"tmpfs")
    refused(protect, f"{vm}/other", "is a mount point")
    refused(protect, vm, "is mounted below it")
    fd = open_data(os.fsencode(f"{vm}/other"), None)  # as a plain directory it is right
    assert os.fstat(fd).st_dev == os.stat(f"{vm}/other").st_dev
    os.close(fd)


def test_something_else_over_a_protected_directory(vm: str) -> None:
    protect(vm)
    system_calls.mount(b"tmpfs", os.fsencode(vm), b"tmpfs")
    for command in (protect, unprotect, lambda path: [str(open_data(os.fsencode(path), None))]):
        refused(command, vm, "something else is mounted over it (tmpfs)")


def test_modules_are_not_nested(base: str, vm: str) -> None:
    protect(f"{vm}/disks")
    refused(protect, vm, "modules cannot be nested")
    unprotect(f"{vm}/disks")
    ensure_identity_of(vm)
    refused(protect, f"{vm}/disks", f"inside {vm}", "modules cannot be nested")
    protect(vm)
    refused(protect, f"{sibling(vm)}/disks", "modules cannot be nested")


# --- in use -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def process(code: str, *prefix: str) -> Iterator[int]:
    """A process that has run this code and waits."""
    script = f"import mmap, os, sys\n{code}\nprint(os.getpid(), flush=True)\nsys.stdin.read()"
    child = subprocess.Popen(
        [*prefix, sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    )
    assert child.stdin is not None and child.stdout is not None
    try:
        yield int(child.stdout.readline())
    finally:
        child.stdin.close()
        child.wait(10)
        child.stdout.close()


USES = {
    "open file": "f = open({path!r} + '/disks/a', 'r+b')",
    "working directory": "os.chdir({path!r} + '/disks')",
    "open directory": "f = os.open({path!r}, os.O_RDONLY)",
    "mapped file": "f = os.open({path!r} + '/disks/a', os.O_RDWR); m = mmap.mmap(f, 4096); os.close(f)",
    "deleted file": "f = open({path!r} + '/deleted', 'wb'); os.unlink({path!r} + '/deleted')",
}


@pytest.mark.parametrize("use", USES)
def test_a_directory_in_use(vm: str, use: str) -> None:
    with process(USES[use].format(path=vm)) as number:
        refused(protect, vm, f"in use by process {number} (", vm)
        assert os.path.exists(f"{vm}/disks/a")
    before = content(vm)
    protect(vm)
    with process(USES[use].format(path=sibling(vm))) as number:
        refused(unprotect, vm, f"in use by process {number} (")
        assert content(sibling(vm)).keys() == before.keys()
    unprotect(vm)
    assert content(vm).keys() == before.keys()


def test_a_name_that_begins_in_the_same_way_is_another(vm: str) -> None:
    os.mkdir(f"{vm}2")
    with process(f"os.chdir({vm + '2'!r})"):
        protect(vm)


def test_in_use_in_another_mount_namespace(vm: str, base: str) -> None:
    os.mkdir(f"{base}/elsewhere")
    code = f"os.system('mount --bind {vm}/disks {base}/elsewhere'); f = open('{base}/elsewhere/a', 'r+b')"
    with process(code, "unshare", "--mount", "--propagation", "private") as number:
        refused(protect, vm, f"in use by process {number} (")


DEEP = """
os.chdir({path!r})
for _ in range(25):
    os.mkdir('d' * 200)
    os.chdir('d' * 200)
"""


def test_in_use_at_a_path_that_is_too_long(vm: str) -> None:
    """It cannot be seen where a process works then, so it is named; what else it has open is seen."""
    with process(DEEP.format(path=vm)) as number:
        told = protect(vm)
        assert any(str(number) in line and HIDDEN in line for line in told)
    unprotect(vm)
    with process("os.chdir('/')\n" + DEEP.format(path=f"{vm}/disks") + f"f = open({vm + '/disks/a'!r})") as number:
        refused(protect, vm, f"in use by process {number} (")


def test_opened_in_the_moment_of_the_exchange_is_told(vm: str) -> None:
    with contextlib.ExitStack() as stack:

        class Late(Calls):
            def exchange(self, label: str, parent_fd: int, one: bytes, other: bytes) -> None:
                self.opened_by = stack.enter_context(process(f"f = open('{vm}/disks/a', 'r+b')"))
                super().exchange(label, parent_fd, one, other)

        calls = Late()
        told = told_by(protect, vm, calls)
        assert len(told) == 2 and f"end process {calls.opened_by} (" in told[1]


def test_a_running_mirror_is_not_disturbed(vm: str) -> None:
    for command in (protect, unprotect):
        fd = open_data(os.fsencode(vm), None)
        refused(command, vm, "a mirror process uses it")
        os.close(fd)
        command(vm)
        fd = open_data(os.fsencode(vm), None)
        refused(command, vm, "a mirror process uses it")
        os.close(fd)


# --- what a mirror process does -----------------------------------------------------------------------------------


def test_the_identity_is_that_of_the_sibling(vm: str) -> None:
    known = ensure_identity_of(vm)
    protect(vm)
    os.close(open_data(os.fsencode(vm), known))
    with pytest.raises(WrongDirectory):
        open_data(os.fsencode(vm), bytes(16))
    os.rename(sibling(vm), f"{vm}-right")
    os.mkdir(sibling(vm))
    with pytest.raises(WrongDirectory):
        open_data(os.fsencode(vm), known)


@pytest.mark.parametrize("protected", [False, True])
def test_a_directory_that_changes_while_it_is_opened(vm: str, protected: bool) -> None:
    """What was opened and locked must still be the data afterwards."""
    if protected:
        protect(vm)

    class Other(Calls):
        def flush(self, label: str, fd: int) -> None:
            if label == "what an earlier run did":  # opened, and not yet looked at again
                system_calls.clear_immutable(vm)
                os.rename(sibling(vm) if protected else vm, f"{vm}-was-opened")
                os.mkdir(sibling(vm) if protected else vm)

    refused(lambda path: [str(open_data(os.fsencode(path), None, Other()))], vm, "somebody else changes it")
    assert os.path.exists(f"{vm}-was-opened/disks/a")


def test_the_copy_is_shown_read_only(vm: str) -> None:
    os.mknod(f"{vm}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    shutil.copy("/bin/id", f"{vm}/id")
    os.chmod(f"{vm}/id", 0o4755)
    protect(vm)
    fd = open_data(os.fsencode(vm), None)
    show(os.fsencode(vm), fd)
    try:
        with open(f"{vm}/disks/a", "rb") as file:
            assert file.read(5) == b"first"
        flags = os.statvfs(vm).f_flag
        assert flags & os.ST_RDONLY and flags & os.ST_NOSUID and flags & os.ST_NODEV
        for attempt in (
            lambda: os.open(f"{vm}/disks/a", os.O_WRONLY),
            lambda: os.mkdir(f"{vm}/new"),
            lambda: os.unlink(f"{vm}/disks/a"),
            lambda: os.setxattr(f"{vm}/disks/a", "user.x", b""),
            lambda: os.chmod(f"{vm}/disks/a", 0),
        ):
            with pytest.raises(OSError) as caught:
                attempt()
            assert caught.value.errno == errno.EROFS
        with pytest.raises(PermissionError):
            os.open(f"{vm}/null", os.O_RDONLY)
        command = [f"{vm}/id", "-u"]
        os.chmod(sibling(vm), 0o755)
        user = subprocess.run(command, capture_output=True, text=True, user=1234, check=True, cwd="/")
        assert user.stdout.strip() == "1234", "set-id bits have no effect"
        os.mkdir("new", dir_fd=fd)  # the mirror itself writes, and it is seen at once
        assert os.path.isdir(f"{vm}/new")
        with open(f"{vm}/disks/a", "rb"):
            hide(os.fsencode(vm))
    finally:
        os.close(fd)
    assert mounts_below(vm) == []
    cannot_be_written(vm)


def test_it_was_never_writable(vm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second mount over the first one, or a remount, would show here as more than one change of the table."""
    protect(vm)
    fd = open_data(os.fsencode(vm), None)
    code = f"""
import select
table = os.open('/proc/self/mountinfo', os.O_RDONLY)
def seen():
    os.lseek(table, 0, 0)
    text = b''
    while part := os.read(table, 65536):
        text += part
    return [line.split()[5] for line in text.splitlines() if line.split()[4] == {vm.encode()!r}]
seen()
poll = select.poll()
poll.register(table, select.POLLPRI)
print(os.getpid(), flush=True)
while not (now := seen()):
    poll.poll()
print(now, flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", "import os" + code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    child.stdout.readline()
    show(os.fsencode(vm), fd)
    assert child.stdout.readline().startswith("[b'ro,nosuid,nodev")
    child.wait(10)
    child.stdout.close()
    os.close(fd)


def test_a_stale_bind_mount_is_replaced(vm: str) -> None:
    protect(vm)
    for _ in range(2):
        fd = open_data(os.fsencode(vm), None)
        show(os.fsencode(vm), fd)
        os.close(fd)  # and it dies
        assert len(mounts_below(vm)) == 1
    unprotect(vm)
    assert mounts_below(vm) == [] and os.path.exists(f"{vm}/disks/a")


def test_a_plain_directory_shows_nothing_but_itself(vm: str) -> None:
    fd = open_data(os.fsencode(vm), None)
    show(os.fsencode(vm), fd)
    assert mounts_below(vm) == []
    hide(os.fsencode(vm))
    os.close(fd)


def test_mark_is_not_left_on_the_data(vm: str) -> None:
    protect(vm)
    assert MARK_XATTR.decode() in os.listxattr(vm) and MARK_XATTR.decode() not in os.listxattr(sibling(vm))
    unprotect(vm)
    assert MARK_XATTR.decode() not in os.listxattr(vm)
    with Layout(os.fsencode(vm)) as place:
        assert linux_io.get_immutable(place._parent_fd) is False


# --- command line -------------------------------------------------------------------------------------------------


def test_only_root(base: str) -> None:
    os.mkdir(f"{base}/users")
    os.chown(f"{base}/users", 1234, 1234)
    code = f"""
import os
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.protect_io import protect
os.setuid(1234)
try:
    protect({base + "/users"!r})
except BadConfiguration as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert "run it as root" in done.stdout
    assert os.listdir(base) == ["users"]


def test_commands(vm: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protect", "--dir", vm]) == 0
    assert capsys.readouterr().out.startswith(f"protected: the data is in {sibling(vm)}\n")
    assert main(["unprotect", "--dir", vm]) == 0
    assert capsys.readouterr().out == f"not protected: the data is in {vm}\n"
    assert main(["protect", "--dir", f"{vm}/missing"]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"hotpair: --dir {vm}/missing: not a directory: create it, or name another\n"
    assert main(["protect"]) == 2
    assert "--dir" in capsys.readouterr().err
