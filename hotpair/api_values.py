"""What the API says, as values: shared by the server, the client and whoever embeds it. No IO.

Fields may be added; none is renamed or removed within /api/v1. A client ignores what it does not know. Plain
dataclasses: a command that asks one thing has no time to load a library for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

API = "/api/v1"
PORT = 9010
LONGEST_BODY = 64 << 10  # of a request: none needs a hundredth of it

CommandWord = Literal["start", "stop", "restart", "stopstart", "swap", "prim", "second", "maintenance"]
Colour = Literal["red", "magenta", "green", "dim"]


def _means(description: str) -> dict[str, str]:
    """For the API's own description (/openapi.json)."""
    return {"description": description}


@dataclass(frozen=True, kw_only=True)
class Here:
    """Which server answers."""

    version: str
    cluster: str
    server: str = field(metadata=_means("The name of the server that answers"))
    peer: str = field(metadata=_means("The name of the other one"))


@dataclass(frozen=True, kw_only=True)
class Module:
    """A module as the server that answers knows it. What it says of the peer, the peer said in its last pulse."""

    module: str
    server: str = field(metadata=_means("Who says this"))
    state: str | None = field(
        metadata=_means("STOP, WAIT (also: its record cannot be read), ALONE, PRIM or SECOND; null: it cannot be said")
    )
    ready: bool = field(
        metadata=_means("Green: ALONE and PRIM run the VM, PRIM has an equal copy, SECOND can take over")
    )
    colour: Colour
    reason: str = field(metadata=_means("One sentence: why it is where it is; empty when there is nothing to say"))
    vm: str = field(metadata=_means("off, starting, on, stopping; empty when not known"))
    data: str = field(metadata=_means("Status of this server's copy"))
    in_sync: bool
    maintenance: bool
    wanted: bool = field(metadata=_means("The operator wants it to run"))
    plan: str = field(metadata=_means("What is under way: swap, stop, ...; empty for nothing"))
    peer: str = field(metadata=_means("The other server's name"))
    peer_state: str = field(metadata=_means("Empty when the peer is not heard"))
    peer_ready: bool
    peer_colour: Colour
    problem: str = field(metadata=_means("Why nothing can be decided for it now; empty when all is well"))
    mirror_reason: str = field(default="", metadata=_means("Why this server's mirror is not in sync; else empty"))


@dataclass(frozen=True, kw_only=True)
class Checker:
    """What a checker has found last."""

    name: str
    kind: str
    action: str = field(metadata=_means("What is done when it is confirmed down"))
    finding: Literal["up", "down", "unknown"] = field(
        metadata=_means("unknown: not looked at, or the check cannot be made")
    )
    since: float = field(metadata=_means("Since when it was found like that; seconds since 1970, UTC"))
    detail: str = field(metadata=_means("One clause: what was found"))


@dataclass(frozen=True, kw_only=True)
class Details:
    """What mirror, VM and pulses say of themselves."""

    module: Module
    directory: str
    mirror_port: int
    driver: str
    preferred: str | None
    failback: str
    split_brain: str
    record: dict[str, Any] | None = field(metadata=_means("The durable record; ids as hexadecimal digits"))
    bytes_changed: int | None = field(
        metadata=_means("Named by the dirty log, while it goes on alone; null: not known")
    )
    mirror: dict[str, Any]
    vm: dict[str, Any]
    heartbeat: dict[str, Any]
    checkers: list[Checker] = field(default_factory=list)
    age_s: float | None = field(metadata=_means("How old mirror, vm and heartbeat are; null: nothing was answered yet"))


@dataclass(frozen=True, kw_only=True)
class Verification:
    """The comparison of both copies, under way or last done; `known` false when there was none in this process."""

    known: bool
    running: bool = False
    bytes_done: int = 0
    bytes_total: int = 0
    difference_count: int = 0
    differences: list[dict[str, Any]] = field(default_factory=list)
    repaired: int = 0
    result: str | None = None


@dataclass(frozen=True, kw_only=True)
class Done:
    """It was accepted. What it does can be watched: states, events."""

    accepted: Literal[True] = True
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Every answer that is no success."""

    error: str = field(metadata=_means("One sentence for people"))


@dataclass(frozen=True, kw_only=True)
class Log:
    lines: list[str]


@dataclass(frozen=True, kw_only=True)
class ChangedPair:
    """It was done on both servers."""

    notes: list[str] = field(metadata=_means("What is worth knowing: where data still lies, what was not started"))
