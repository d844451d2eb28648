"""What the API takes, as the server checks it. The client only writes it: see client.py."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from hotpair.api_values import CommandWord


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
