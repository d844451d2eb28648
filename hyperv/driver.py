"""The driver interface: all that hotpair knows of a hypervisor. Pure values and one protocol.

A driver is a class, or any other callable, that takes a `Place` and returns an object with the methods of `Driver`. It
is found by its name in the entry point group `hotpair.drivers`; see docs/drivers.md for how to write one.

What a driver can rely on:

- One object belongs to one module on one server. Nothing is done by the constructor: it neither raises nor touches
  the hypervisor.
- Objects are cheap and hold nothing that matters. Any number of them may be made for one VM, at the same time, in
  several processes, and after a crash; each finds the VM that another has started.
- The methods block, and are called from a thread in which no asyncio loop runs.
- The VM is never started before the module's directory is the mirrored one, nor while the peer may run it. This is
  the caller's business; a driver does not ask.

What a driver must keep to:

- The VM is not a child of the calling process, and goes on when that process ends.
- All that the VM writes and must survive lies in `Place.directory`. Nothing there is written by `observe`, `is_off`
  and `check`, for on the other server the directory is read-only.
- Each method can be repeated: called again after it has succeeded, it succeeds; called again after a crash in the
  middle, it goes on from what it finds.
- Every method has a limit in time, its own where no argument gives one.
- What cannot be found out is an error and never a guess: neither `off` nor `on`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

TURN_OFF_LIMIT_S = 10.0  # a killed process ends within milliseconds, unless it hangs in the kernel


@dataclass(frozen=True)
class Place:
    """What a driver is given. All paths are absolute.

    module           the module's name: letters, digits, `-` and `_`
    directory        the mounted, mirrored directory with the VM's disks and its description
    state_directory  of the driver alone, on this server only, not mirrored; the driver makes it, mode 0700
    options          the table `[vm.options]` of the module: text, whole numbers, truth values, lists of these
    application_log  what the VM or the application says is appended to this file
    lock             the file whose lock excludes two starts at once
    server           this server's name
    role             the module's state at the time, "ALONE" or "PRIM", for whoever wants to tell it to an application
    """

    module: str
    directory: str
    state_directory: str
    options: Mapping[str, object]
    application_log: str
    lock: str
    server: str = ""
    role: str = ""


class VmState(Enum):
    """STARTING and STOPPING: an order was given and is being carried out. ON: the hypervisor runs it, however well."""

    OFF = "off"
    STARTING = "starting"
    ON = "on"
    STOPPING = "stopping"


class Heartbeat(Enum):
    """OK: the guest has just answered. LOST: it has answered before in this run. UNKNOWN: it never has; or no guest."""

    OK = "ok"
    LOST = "lost"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Observation:
    """What `observe` found.

    heartbeat_age_s  seconds since the guest's last answer; None when it is not known
    detail           one sentence for the operator; "" when there is nothing to say
    identity         changes with every start, and with nothing else; "" when it is off
    """

    state: VmState
    heartbeat: Heartbeat = Heartbeat.UNKNOWN
    heartbeat_age_s: float | None = None
    detail: str = ""
    identity: str = ""


@dataclass(frozen=True)
class Proof:
    """`off` only if it is certain that the VM does not run and cannot write any more. `detail`: why, in a sentence."""

    off: bool
    detail: str


class Driver(Protocol):
    """One VM on this server. See the module's text for what holds for every method; each may raise DriverUnusable,
    and ForeignVm when something else is in this VM's place.
    """

    def check(self) -> tuple[str, ...]:
        """What keeps the VM from being started on this server: sentences, each with its remedy; () when nothing does.

        A file that cannot be read as it should is named with line and column. Raises nothing.
        """

    def define(self) -> None:
        """Make the VM known to this server's hypervisor, from its description in the directory.

        Raises VmFailed, Busy.
        """

    def start(self, time_limit_s: float) -> None:
        """Start the VM, from its saved state where there is a valid one. Returns when the VM is on.

        Raises VmFailed, StartTimedOut, Busy.
        """

    def stop(self, time_limit_s: float) -> None:
        """Ask the guest to shut down. Returns when the VM is off. Raises VmFailed, StopTimedOut."""

    def save(self, time_limit_s: float) -> None:
        """Save the guest's memory into the directory. Returns when that is on disk and the VM is off.

        A driver that cannot raises VmFailed, and the VM goes on as if not asked. Raises StopTimedOut.
        """

    def turn_off(self, time_limit_s: float = TURN_OFF_LIMIT_S) -> None:
        """Take the power away, now. Returns only when the VM is certainly off (see `is_off`). Raises StillRunning."""

    def observe(self) -> Observation:
        """How the VM is. Takes a few seconds at most. Raises VmFailed when that cannot be found out."""

    def is_off(self) -> Proof:
        """Whether it is certain that the VM does not run here and cannot write any more.

        What cannot be found out is `Proof(False, why)`. Raises nothing but ForeignVm.
        """

    def remove(self) -> None:
        """Make the hypervisor forget the VM and empty the state directory. The directory itself is left as it is.

        Raises VmFailed when the VM is not off, Busy.
        """


@runtime_checkable
class TellsEnd(Protocol):
    """What a driver can offer besides: the end of a VM is then known at once, and it is looked at less often.

    Only for a driver whose VMs nobody starts but hotpair: one that is off is looked at less often, too.
    """

    def end_descriptor(self) -> int | None:
        """A descriptor that becomes readable when the VM's process has ended, for the caller to close.

        None when there is no such process, or it is not known. Raises VmFailed.
        """


Factory = Callable[[Place], Driver]
