"""The operating errors of the drivers. Each text says what happened and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence


class DriverError(Exception):
    """Base of every operating error of a driver."""


class UnknownDriver(DriverError):
    """No driver of that name is installed, or the one installed cannot be loaded."""


class DriverUnusable(DriverError):
    """The driver or the VM's description cannot be used on this server: what `check` found."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class VmFailed(DriverError):
    """The hypervisor refused or failed, with what it said; or it could not be found out how the VM is."""


class StartTimedOut(DriverError):
    """The start did not come to its end in time. What was started may still run: turn it off."""


class StopTimedOut(DriverError):
    """The VM did not stop, or was not saved, in time. It still runs; the caller decides whether to turn it off."""


class StillRunning(DriverError):
    """It was turned off, and yet it is not certain that it is off."""


class Busy(DriverError):
    """Another process, or another thread, is starting, turning off or removing this very VM."""


class ForeignVm(DriverError):
    """What runs in this VM's place is another module's, or nothing that the driver started."""
