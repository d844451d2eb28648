"""What both mirror processes need of the machine: the state directory's lock, the boot id, descriptors."""

from __future__ import annotations

import fcntl
import logging
import os
import resource

from hotpair.replication import linux_io
from hotpair.replication.errors import BadConfiguration

log = logging.getLogger("hotpair.replication")


def lock_state(path: str) -> int:
    """Make the state directory and lock it against a second mirror process; the lock's descriptor."""
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BadConfiguration(f"--state {path}: {error.strerror}: give a directory that can be written") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise BadConfiguration(
            f"--state {path}: another mirror process uses it: stop that one first, or give another directory"
        ) from error
    return fd


def boot_id() -> str:
    """The host's boot id (random(4), proc(5))."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def started_at(process: int) -> int:
    """When a process was started, in clock ticks since the boot (proc(5), stat, field 22).

    Together with its number it names a process: the number alone is given to another one some day.
    """
    with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def keep_running() -> None:
    """Have the kernel keep this process out of the ways in which it could wait for itself: swapped out while the VM's
    swap file is on the mount, or waiting for memory that is free only when the mirror has written. Where it is not
    permitted, the mirror runs without.
    """
    pages = linux_io.MCL_CURRENT | linux_io.MCL_FUTURE | linux_io.MCL_ONFAULT
    try:
        linux_io.mlockall_current(pages)
        linux_io.prctl_set_io_flusher()
    except OSError as error:
        log.info("keeping the mirror in memory: %s: it goes on without", error.strerror)


def descriptor_limit() -> int:
    """Raise the limit on open descriptors as far as we may; what it is then."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(hard, 1 << 20)
