"""What the supervisor has of each module: a group, whoever owns its mirror process, its VM and its pulses. No IO."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from hotpair.actors.event_log_io import Note
from hotpair.actors.module_runner import MirrorPort, PeerPort, VmPort
from hotpair.actors.said import MirrorSays
from hotpair.cluster.checker_rules import Tick
from hotpair.cluster.checks import Checked, Watch
from hotpair.cluster.configuration import Module as Configured
from hotpair.cluster.module_events import Event
from hotpair.cluster.module_values import Mirror, Vm

Report = Event | Checked | Tick | Note | MirrorSays  # taken one at a time: of the module, its checkers, for people


class NotOpened(Exception):
    """A module's helpers cannot be made, or do not say in time what runs; the text says which."""


@dataclass(frozen=True)
class Found:
    """What runs of a module when its supervisor starts."""

    mirror: Mirror | None
    vm: Vm
    bytes_changed: int | None


class Group(MirrorPort, Protocol):
    """A module's three helpers. The mirror's methods are its own; `vm` and `peer` are the others'."""

    @property
    def vm(self) -> VmPort: ...
    @property
    def peer(self) -> PeerPort: ...
    def link(self, lives: bool) -> None: ...
    async def ask_mirror(self) -> None:
        """Have the mirror say how it is now, to `hear`; returns when that was heard, or it does not answer."""

    def check(self, watch: Watch) -> None:
        """Which checks are to be made from now on."""

    async def find(self) -> Found:
        """Raises NotOpened."""

    async def status(self) -> Mapping[str, Any]: ...
    async def close(self) -> None: ...


class Groups(Protocol):
    async def open(self, module: Configured, hear: Callable[[Report], None]) -> Group:
        """`hear` may be called from any thread."""
