"""How a source process starts: what it is started with, whether there is a mount to take over, and the mount."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass

from hotpair.replication import fuse_abi, fuse_io, journal_io, keeper, keeper_io
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.limits import SILENCE_TIMEOUT_S, STALL_TIMEOUT_S
from hotpair.replication.transport_io import TlsFiles

log = logging.getLogger("hotpair.replication")


@dataclass(frozen=True)
class SourceOptions:
    """What the source is started with. Sizes in bytes, times in seconds."""

    directory: bytes
    state: str
    peer: tuple[str, int]
    alone_after_s: float | None
    fence_after_s: float | None
    durability: str
    cache: str
    extent_size: int
    hot_extents: int
    known_objects: int
    silence_timeout_s: float = SILENCE_TIMEOUT_S
    stall_timeout_s: float = STALL_TIMEOUT_S
    tls: TlsFiles | None = None
    alone: bool = False  # the record is solo: writes go on at once, without the peer


class Mount:
    """The mount over the module's directory: ours from the beginning, or taken over."""

    def __init__(self, options: SourceOptions, kept: keeper_io.Kept | None, root_fd: int) -> None:
        self.directory = options.directory
        self.state = options.state
        self.mounted = True
        self.adopted = kept is not None
        if kept is not None:
            self.fuse_fd = kept.fuse_fd
        else:
            self.fuse_fd = fuse_io.mount(options.directory, options.state)
            self._keeper = keeper_io.start(options.state, self.fuse_fd, root_fd)
        mounted = fuse_io.mount_at(options.directory)
        if mounted is None:
            raise BadConfiguration(f"{os.fsdecode(options.directory)} is not in the mount table after it was mounted")
        self.connection = mounted.connection

    def abort(self) -> None:
        """Fail whoever waits for it, now. For any thread: it waits neither for the loop nor for the disk."""
        if not keeper.is_gone(self.fuse_fd):  # otherwise its number may be that of another mount by now
            fuse_io.abort_connection(self.connection)


def adoptable(options: SourceOptions) -> keeper_io.Kept | None:
    """The mount of a mirror process that has died, if it can be taken over; otherwise it is taken away."""
    kept = keeper_io.adopt(options.state)
    if kept is not None:
        agreed = journal_io.read(os.path.join(options.state, "journal")).agreed
        if agreed is not None and agreed & fuse_abi.INIT_HAS_RESEND:
            return kept
        log.warning("this kernel cannot send requests again: the mount is taken away from those who use it")
        keeper_io.close(kept)
    keeper_io.take_away(options.state, options.directory)
    return None
