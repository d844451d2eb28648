"""The operating errors of the mirror. Each text says what happened and what to do about it."""

from typing import Any


class MirrorError(Exception):
    """Base of every operating error of the mirror process."""


class Refused(MirrorError):
    """A verdict that makes no sense now; ``report`` says how the mirror is, its record included."""

    def __init__(self, reason: str, report: dict[str, Any]) -> None:
        super().__init__(reason)
        self.report = report


class BadConfiguration(MirrorError):
    """An option or a directory that cannot work; one line, exit code 2."""


class ProtocolError(MirrorError):
    """The peer sent what the protocol does not allow; the connection ends, nothing of it was applied."""


class LinkLost(MirrorError):
    """The connection to the peer ended, or made no progress for too long."""


class WrongDirectory(MirrorError):
    """The data directory is not the one that the durable record belongs to."""


class TargetFailed(MirrorError):
    """The target could not apply an operation; it applies nothing after it."""
