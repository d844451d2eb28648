"""What a target process is started with."""

from __future__ import annotations

from dataclasses import dataclass

from hotpair.replication.limits import STALL_TIMEOUT_S
from hotpair.replication.transport_io import TlsFiles


@dataclass(frozen=True)
class TargetOptions:
    """What the target is started with. Times in seconds."""

    directory: bytes
    state: str
    listen: tuple[str, int]
    durability: str
    stall_timeout_s: float = STALL_TIMEOUT_S
    overwrite: bool = False
    salvage_folder: str | None = None  # where salvage files are; None: in the state directory
    tls: TlsFiles | None = None
