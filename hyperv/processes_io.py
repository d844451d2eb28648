"""Processes by what cannot be mistaken: pid with start time and boot, and a mark in the environment. Linux only.

A pid alone says nothing: it is given to another process when its owner has gone. A zombie runs no more and counts as
gone, unless other threads of it still run. The mark is a variable that a program is started with and its children
inherit: it finds them again even when nobody could write down their pids. Source: proc(5), pidfd_open(2).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

MARK = "HOTPAIR_VM"  # its value is the driver's state directory: one VM on this server
_DEAD = frozenset("ZX")
_SCANS_APART_S = 0.02  # something may be started while it is being killed


@dataclass(frozen=True)
class ProcessIdentity:
    """`start_ticks`: clock ticks after boot. `boot`: the host's boot id."""

    pid: int
    start_ticks: int
    boot: str

    def __str__(self) -> str:
        return f"pid {self.pid}, started {self.start_ticks} ticks after boot {self.boot}"


@dataclass(frozen=True)
class _Status:
    session: int
    start_ticks: int


def boot_id() -> str:
    """The host's boot id (random(4))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def ticks_now() -> int:
    """Clock ticks after boot, as in `ProcessIdentity`: no process that is started from now on has fewer."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def identify(pid: int) -> ProcessIdentity | None:
    """The process that has this pid now; None when it has none, or a dead one."""
    status = _status(pid)
    return None if status is None else ProcessIdentity(pid, status.start_ticks, boot_id())


def is_alive(process: ProcessIdentity) -> bool:
    """Whether that very process can still do something."""
    return identify(process.pid) == process


def send(process: ProcessIdentity, number: signal.Signals) -> None:
    """A signal to that very process; nothing when it has gone. Raises PermissionError."""
    descriptor = open_process(process)
    if descriptor is None:
        return
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass  # it ended just now
    finally:
        os.close(descriptor)


def wait_for_end(process: ProcessIdentity, timeout_s: float) -> bool:
    """Whether it ends, with all its threads, within that time."""
    descriptor = open_process(process)
    if descriptor is None:
        return True
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(max(0.0, timeout_s) * 1000))
    finally:
        os.close(descriptor)


def open_process(process: ProcessIdentity) -> int | None:
    """A pidfd, readable when that very process has ended with all its threads; None when it has. Close it."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if is_alive(process):  # opened first and compared then, so that it cannot be another's
        return descriptor
    os.close(descriptor)
    return None


def marked(value: str, name: str = MARK) -> list[ProcessIdentity]:
    """All living processes that were started with that mark, or inherited it."""
    wanted = f"{name}={value}".encode()
    return [process for pid in _pids() if wanted in _environment(pid) and (process := identify(pid)) is not None]


def in_session(leader: ProcessIdentity) -> list[ProcessIdentity]:
    """All living processes of the session that `leader` made, whether it lives or not.

    The kernel gives a session's number to no other process as long as the session has a member; so members that are
    older than the leader cannot be, and a process that has the number itself must be the leader.
    """
    boot = boot_id()
    if boot != leader.boot:
        return []
    statuses = {pid: status for pid in _pids() if (status := _status(pid)) is not None}
    owner = statuses.get(leader.pid)
    if owner is not None and owner.start_ticks != leader.start_ticks:
        return []
    return [
        ProcessIdentity(pid, status.start_ticks, boot)
        for pid, status in statuses.items()
        if status.session == leader.pid and status.start_ticks >= leader.start_ticks
    ]


def kill_all(find: Callable[[], Collection[ProcessIdentity]], timeout_s: float) -> bool:
    """Kill what `find` finds until it finds nothing; whether that came about within the time."""
    end = time.monotonic() + timeout_s
    while found := find():
        for process in found:
            send(process, signal.SIGKILL)
        for process in found:
            if not wait_for_end(process, end - time.monotonic()):
                return False
        if time.monotonic() > end:
            return False
    return True


def wait_for_none(find: Callable[[], Collection[ProcessIdentity]], timeout_s: float) -> bool:
    """Whether all that `find` finds has ended by itself within the time."""
    end = time.monotonic() + timeout_s
    while found := find():
        for process in found:
            if not wait_for_end(process, end - time.monotonic()):
                return False
        time.sleep(_SCANS_APART_S)
    return True


def command_line(process: ProcessIdentity) -> tuple[str, ...]:
    """The words it was started with; () when it has gone."""
    words = _read(f"/proc/{process.pid}/cmdline").split(b"\0")[:-1]
    return tuple(map(os.fsdecode, words)) if is_alive(process) else ()


def with_words(*words: str) -> list[ProcessIdentity]:
    """All living processes with these words, one after the other, on their command line."""
    wanted = b"\0".join([b"", *map(os.fsencode, words), b""])
    found = (pid for pid in _pids() if wanted in _read(f"/proc/{pid}/cmdline"))
    return [process for pid in found if (process := identify(pid)) is not None]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _environment(pid: int) -> list[bytes]:
    return _read(f"/proc/{pid}/environ").split(b"\0")


def _read(path: str) -> bytes:
    """Empty when the process has gone, or is another user's."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""


def _status(pid: int) -> _Status | None:
    """None for a pid that nobody has, and for a zombie of which no thread runs."""
    fields = _fields(f"/proc/{pid}/stat")
    if fields is None:
        return None
    if fields[0] in _DEAD and not _has_living_thread(pid):
        return None
    return _Status(session=int(fields[3]), start_ticks=int(fields[19]))


def _has_living_thread(pid: int) -> bool:
    """A leader that has left is shown as a zombie while the other threads of the process go on."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    found = (_fields(f"/proc/{pid}/task/{thread}/stat") for thread in threads)
    return any(fields is not None and fields[0] not in _DEAD for fields in found)


def _fields(path: str) -> list[str] | None:
    """What follows the name in a stat file, which may itself contain anything: the state comes first."""
    text = os.fsdecode(_read(path))
    return text.rpartition(")")[2].split() or None
