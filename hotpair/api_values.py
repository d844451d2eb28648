"""What the API says and takes, as values: shared by the server, the client and whoever embeds it. No IO.

Fields may be added; none is renamed or removed within /api/v1. A client ignores what it does not know.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

API = "/api/v1"
PORT = 9010
LONGEST_BODY = 64 << 10  # of a request: none needs a hundredth of it

CommandWord = Literal["start", "stop", "restart", "stopstart", "swap", "prim", "second", "maintenance"]


class Here(BaseModel):
    """Which server answers."""

    version: str
    cluster: str
    server: str = Field(description="The name of the server that answers")
    peer: str = Field(description="The name of the other one")


class Module(BaseModel):
    """A module as the server that answers knows it. What it says of the peer, the peer said in its last pulse."""

    module: str
    server: str = Field(description="Who says this")
    state: str | None = Field(
        description="STOP, WAIT (also when the record cannot be read), ALONE, PRIM or SECOND; null: it cannot be said"
    )
    ready: bool = Field(description="Green: ALONE and PRIM run the VM, PRIM has an equal copy, SECOND can take over")
    colour: Literal["red", "magenta", "green", "dim"]
    reason: str = Field(description="One sentence: why it is where it is; empty when there is nothing to say")
    vm: str = Field(description="off, starting, on, stopping; empty when not known")
    data: str = Field(description="Status of this server's copy")
    in_sync: bool
    maintenance: bool
    wanted: bool = Field(description="The operator wants it to run")
    plan: str = Field(description="What is under way: swap, stop, ...; empty for nothing")
    peer: str = Field(description="The other server's name")
    peer_state: str = Field(description="Empty when the peer is not heard")
    peer_ready: bool
    peer_colour: Literal["red", "magenta", "green", "dim"]
    problem: str = Field(description="Why nothing can be decided for it now; empty when all is well")
    mirror_reason: str = Field("", description="Why this server's mirror is not in sync; else empty")


class Checker(BaseModel):
    """What a checker has found last."""

    name: str
    kind: str
    action: str = Field(description="What is done when it is confirmed down")
    finding: Literal["up", "down", "unknown"] = Field(description="unknown: not looked at, or the check cannot be made")
    since: float = Field(description="Since when it was found like that; seconds since 1970, UTC")
    detail: str = Field(description="One clause: what was found")


class Details(BaseModel):
    """What mirror, VM and pulses say of themselves."""

    module: Module
    directory: str
    mirror_port: int
    driver: str
    preferred: str | None
    failback: str
    split_brain: str
    record: dict[str, Any] | None = Field(description="The durable record; ids as hexadecimal digits")
    bytes_changed: int | None = Field(description="Named by the dirty log, while it goes on alone; null: not known")
    mirror: dict[str, Any]
    vm: dict[str, Any]
    heartbeat: dict[str, Any]
    checkers: list[Checker] = []
    age_s: float | None = Field(description="How old mirror, vm and heartbeat are; null: nothing was answered yet")


class Verification(BaseModel):
    """The comparison of both copies, under way or last done; `known` false when there was none in this process."""

    known: bool
    running: bool = False
    bytes_done: int = 0
    bytes_total: int = 0
    difference_count: int = 0
    differences: list[dict[str, Any]] = []
    repaired: int = 0
    result: str | None = None


class Order(BaseModel):
    """A command for a module on the server that is asked."""

    model_config = ConfigDict(extra="forbid")

    command: CommandWord
    force: bool = Field(False, description="With prim: the peer is off, or its copy is given up")
    full: bool = Field(False, description="With second: everything is compared")
    on: bool | None = Field(None, description="With maintenance: on or off")


class Verify(BaseModel):
    model_config = ConfigDict(extra="forbid")

    repair: bool = Field(False, description="Where the copies differ, the target's is replaced")


class Done(BaseModel):
    """It was accepted. What it does can be watched: states, events."""

    accepted: Literal[True] = True
    note: str = ""


class Problem(BaseModel):
    """Every answer that is no success."""

    error: str = Field(description="One sentence for people")


class Log(BaseModel):
    lines: list[str]


class _Configuration(BaseModel):
    model_config = ConfigDict(extra="forbid")

    toml: str | None = Field(None, description="The module's file, as text")
    configuration: dict[str, Any] | None = Field(None, description="The same as a table, instead")


class NewModule(_Configuration):
    """A module for both servers; exactly one of toml and configuration. Without mirror_port one is chosen."""

    module: str = Field(description="Its name")
    overwrite: bool = Field(False, description="The directory on the server without the data need not be empty")
    start: bool = Field(False, description="And start it on both servers")


class ChangedModule(_Configuration):
    """Another configuration, for a module that is stopped on both servers: whole, or single keys of it."""

    set: dict[str, Any] | None = Field(None, description='Single keys, as "vm.options.start"')


class ChangedPair(BaseModel):
    """It was done on both servers."""

    notes: list[str] = Field(description="What is worth knowing: where data still lies, what was not started")
