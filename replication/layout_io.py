"""Carries out what layout.py decides: moves a module's data beside its mount point and back, and opens it.

Everything is looked at and changed by descriptor of the parent directory. Each change is on disk before the next one is
made, and each call to the operating system that changes something has a label, so that a test can stop at exactly that
one.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from hotpair.replication import fuse_io, layout, linux_io, mounts_io
from hotpair.replication.errors import BadConfiguration, MirrorError
from hotpair.replication.layout import Goal, Kind, Refusal, Step
from hotpair.replication.mounts_io import Mount
from hotpair.replication.objects_io import open_root

log = logging.getLogger("hotpair.replication")

MARK_XATTR: Final = b"trusted.hotpair.mount_point"
LONGEST_PLAN: Final = 8  # more steps than any plan has: beyond it somebody else is at work here
_NO_FLAGS: Final = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL})
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Calls:
    """The calls that change something, each with a label that says what it is for. Each raises OSError."""

    def make(self, label: str, parent_fd: int, name: bytes) -> None:
        os.mkdir(name, 0, dir_fd=parent_fd)  # nobody but root even looks into it

    def mark(self, label: str, fd: int) -> None:
        os.fchmod(fd, 0)
        os.setxattr(fd, MARK_XATTR, b"1")

    def exchange(self, label: str, parent_fd: int, one: bytes, other: bytes) -> None:
        linux_io.renameat2(parent_fd, one, parent_fd, other, linux_io.RENAME_EXCHANGE)

    def set_immutable(self, label: str, fd: int, immutable: bool) -> None:
        linux_io.set_immutable(fd, immutable)

    def remove(self, label: str, parent_fd: int, name: bytes) -> None:
        os.rmdir(name, dir_fd=parent_fd)

    def flush(self, label: str, fd: int) -> None:
        os.fsync(fd)


class Layout:
    """One module's two names. ``directory`` is absolute and without symbolic links."""

    def __init__(self, directory: bytes, calls: Calls | None = None) -> None:
        self.directory = directory
        self.sibling = layout.sibling_of(directory)
        self._name = os.path.basename(directory)
        self._sibling_name = os.path.basename(self.sibling)
        self._shown = f"--dir {os.fsdecode(directory)}"
        self._calls = calls or Calls()
        self._not_closable = ""  # why the immutable flag cannot be set, once that is known
        with said(self._shown):
            self._parent_fd = os.open(os.path.dirname(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Release the parent directory."""
        os.close(self._parent_fd)

    def __enter__(self) -> Layout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- looking --------------------------------------------------------------------------------------------------

    def named_kind(self) -> Kind:
        """What the named directory is. Nothing may be mounted there."""
        return self._kind(self._name)

    def sibling_kind(self) -> Kind:
        """What is beside it."""
        return self._kind(self._sibling_name)

    def _kind(self, name: bytes) -> Kind:
        try:
            status = os.stat(name, dir_fd=self._parent_fd, follow_symlinks=False)
        except FileNotFoundError:
            return Kind.ABSENT
        if not stat.S_ISDIR(status.st_mode):
            return Kind.OTHER
        with self._opened(name) as fd:
            with os.scandir(fd) as entries:
                empty = next(entries, None) is None
            if not is_point(fd):
                return Kind.EMPTY if empty else Kind.FULL
            if not empty:
                return Kind.SPOILED_POINT
            return Kind.POINT if is_immutable(fd) else Kind.OPEN_POINT

    @contextmanager
    def _opened(self, name: bytes) -> Iterator[int]:
        fd = os.open(name, _OPEN, dir_fd=self._parent_fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def covering(self) -> list[Mount]:
        """What is mounted at the named directory and hides it, the lowest first."""
        return mounts_io.mounted_at(mounts_io.read_table(), self.directory)

    def data(self) -> bytes:
        """The path of the data, by what can be seen now."""
        return self.directory if not self.covering() and self.named_kind() in layout.DATA else self.sibling

    def check(self, goal: Goal) -> None:
        """Refuse what `reach` would refuse, as far as it can be seen now; nothing is changed. BadConfiguration."""
        with said(self._shown):
            if self.covering():
                if self.sibling_kind() not in layout.DATA:
                    raise BadConfiguration(
                        f"{self._shown} is a mount point: stop the mirror there, or unmount it; the root of another "
                        "file system cannot be protected: name a directory in it"
                    )
                return
            step = layout.decide(goal, self.named_kind(), self.sibling_kind(), closable=True)
            if isinstance(step, Refusal):
                self._refuse(step)

    # --- changing -------------------------------------------------------------------------------------------------

    def reach(self, goal: Goal, before_exchange: Callable[[], None] = lambda: None) -> None:
        """Do what is left to do, step by step. Raises BadConfiguration."""
        with said(self._shown):
            self._calls.flush("what an earlier run did", self._parent_fd)
            for _ in range(LONGEST_PLAN):
                step = layout.decide(goal, self.named_kind(), self.sibling_kind(), not self._not_closable)
                if isinstance(step, Refusal):
                    self._refuse(step)
                if step is Step.DONE:
                    return
                if step is Step.EXCHANGE:
                    before_exchange()
                with said(f"{self._shown}: to {step.value}"):
                    self._do(step)
        raise BadConfiguration(f"{self._shown}: somebody else changes it at the same time: run it again")

    def _refuse(self, refusal: Refusal) -> NoReturn:
        named, sibling = os.fsdecode(self.directory), os.fsdecode(self.sibling)
        raise BadConfiguration(f"--dir {refusal.value.format(named=named, sibling=sibling)}")

    def _do(self, step: Step) -> None:
        calls, parent_fd = self._calls, self._parent_fd
        match step:
            case Step.MAKE:
                calls.make("make", parent_fd, self._sibling_name)
            case Step.MARK:
                with self._opened(self._sibling_name) as fd:
                    calls.mark("mark", fd)
                    calls.flush("mark.flush", fd)
            case Step.EXCHANGE:
                calls.exchange("exchange", parent_fd, self._name, self._sibling_name)
            case Step.CLOSE:
                self._close_point()
            case Step.OPEN:
                with self._opened(self._name) as fd:
                    calls.set_immutable("open", fd, False)
                    calls.flush("open.flush", fd)
            case Step.REMOVE:
                calls.remove("remove", parent_fd, self._sibling_name)
            case Step.DONE:
                raise AssertionError("the end is not a step")
        calls.flush(f"{step.name.lower()}.parent.flush", parent_fd)

    def _close_point(self) -> None:
        with self._opened(self._name) as fd:
            try:
                self._calls.set_immutable("close", fd, True)
            except OSError as error:
                if error.errno not in _NO_FLAGS and error.errno != errno.EPERM:
                    raise
                self._not_closable = error.strerror or str(error)
                return
            self._calls.flush("close.flush", fd)

    @property
    def weakness(self) -> str | None:
        """Why the mount point stays changeable, to be told to the user; None when it does not."""
        if not self._not_closable:
            return None
        return (
            f"{os.fsdecode(self.directory)} cannot be made immutable ({self._not_closable}): while the mirror is down, "
            "root can write into it; ext4, XFS and btrfs have the flag, and CAP_LINUX_IMMUTABLE is needed"
        )

    # --- mounts ---------------------------------------------------------------------------------------------------

    def uncover(self) -> None:
        """Take away what a dead mirror has left mounted at the named directory; its data is locked by us.

        Raises BadConfiguration when something else is mounted there.
        """
        with said(self._shown):
            for mount in reversed(self.covering()):
                if mount.kind == fuse_io.FUSE_KIND:
                    fuse_io.abort_connection(int(mount.device.partition(b":")[2]))
                elif not self._shows(mount):
                    raise BadConfiguration(
                        f"{self._shown}: something else is mounted over it ({os.fsdecode(mount.kind)}): unmount that"
                    )
                fuse_io.unmount(self.directory)

    def show(self, root_fd: int) -> None:
        """Show the data read only at the named directory, if that is its mount point."""
        if not self.covering() and self.named_kind() in layout.POINTS:
            with said(self._shown):
                mounts_io.show_read_only(root_fd, self.directory)

    def hide(self) -> None:
        """Take away what `show` has mounted, also when files are open there. What others mounted stays."""
        for mount in reversed(self.covering()):
            if not self._shows(mount):
                break
            fuse_io.unmount(self.directory)

    def _shows(self, mount: Mount) -> bool:
        """Whether it is a bind mount of the sibling."""
        holder = mounts_io.holder_of(mounts_io.read_table(), self.sibling)
        return mount.device == holder.device and mount.root == holder.place_of(self.sibling)


def is_point(fd: int) -> bool:
    """Whether the directory has the mark of a mount point."""
    try:
        os.getxattr(fd, MARK_XATTR)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return False
    return True


def is_immutable(fd: int) -> bool:
    """Whether the immutable flag is set; where the file system has none it is not."""
    try:
        return linux_io.get_immutable(fd)
    except OSError as error:
        if error.errno not in _NO_FLAGS:
            raise
        return False


@contextmanager
def said(what: str) -> Iterator[None]:
    """An error of the operating system becomes one line for the user. Nothing that was done is lost by it."""
    try:
        yield
    except OSError as error:
        raise BadConfiguration(f"{what}: {error.strerror}. Nothing is lost: put that right and run it again") from error


def open_data(directory: bytes, expected: bytes | None, calls: Calls | None = None) -> int:
    """The data of a module, as `open_root`: beside the named directory where that is protected, in it otherwise.

    What a dead mirror has left mounted there is taken away. Raises BadConfiguration and WrongDirectory.
    """
    if layout.is_sibling_name(directory):
        raise BadConfiguration(f"--dir {os.fsdecode(directory)}: {layout.SIBLING_NAMED}")
    if layout.objection_to_name(directory) is not None:
        return open_root(directory, expected)  # it cannot have a sibling
    with Layout(directory, calls) as place:
        if place.covering() and place.sibling_kind() is Kind.ABSENT:
            return open_root(directory, expected)  # a plain directory that is a file system of its own
        place.check(Goal.USE)
        root_fd = open_root(place.data(), expected)
        try:
            place.uncover()
            place.reach(Goal.USE)
            if not os.path.samestat(os.fstat(root_fd), os.stat(place.data())):  # until it was locked it could change
                raise BadConfiguration(f"--dir {os.fsdecode(directory)}: somebody else changes it: start again")
        except MirrorError:
            os.close(root_fd)
            raise
        if place.weakness:
            log.warning("%s", place.weakness)
        return root_fd


def show(directory: bytes, root_fd: int) -> None:
    """Show a target's copy, whose root is open, read only at a protected directory. Nothing at a plain one."""
    if layout.objection_to_name(directory) is None:
        with Layout(directory) as place:
            place.show(root_fd)


def hide(directory: bytes) -> None:
    """Take away what `show` has mounted."""
    if layout.objection_to_name(directory) is None:
        with Layout(directory) as place:
            place.hide()
