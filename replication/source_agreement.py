"""The source's half of an epoch agreement: the arbiter's epoch gets into both records, in the order that it is told.

The server that the arbiter names records it first. When the link breaks in between, the two records differ, which the
next agreement puts right. It must not know the arbiter, nor why there is to be an agreement.
"""

from __future__ import annotations

from hotpair.cluster import record as records
from hotpair.cluster.record import Record
from hotpair.replication.errors import MirrorError, ProtocolError
from hotpair.replication.frames import Kind
from hotpair.replication.modes import PRIM
from hotpair.replication.source import Source
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_standing import Standing


class Agreement:
    """One at a time, in one connection."""

    def __init__(self, own_copy: OwnCopy, source: Source, standing: Standing) -> None:
        self._copy = own_copy
        self._source = source
        self._standing = standing
        self.epoch: int | None = None  # on its way into both records

    def begin(self, based_on: Record, epoch: int, mine_first: bool) -> None:
        """Have both records take this epoch. Raises MirrorError when that makes no sense now."""
        if self._source.mode is not PRIM or not self._standing.in_sync or self._standing.stopping:
            raise MirrorError(f"the mirror is {self._source.mode.value}: only a pair in sync agrees on an epoch")
        if self.epoch is not None:
            raise MirrorError(f"an agreement on epoch {self.epoch} is under way")
        if self._copy.record != based_on:
            raise MirrorError("the record is another one by now than the verdict is based on")
        if type(epoch) is not int or epoch < based_on.epoch:
            raise MirrorError(f"epoch {epoch!r}: an epoch never goes back, and this copy has {based_on.epoch}")
        self.epoch = epoch
        if mine_first:
            self._copy.store(records.agree_on_epoch(self._copy.record, epoch))
        self._source.message(Kind.AGREE, epoch)
        self._source.send()
        self._standing.changed()

    def agreed(self, epoch: object) -> None:
        """The target has it in its record, durably. Raises ProtocolError when it was not asked."""
        if self.epoch is None or epoch != self.epoch:
            raise ProtocolError(f"the peer agreed on epoch {epoch!r}, and was asked for {self.epoch!r}")
        self._copy.store(records.agree_on_epoch(self._copy.record, self.epoch))
        self.end()

    def end(self) -> None:
        """It is done, or the link is lost: whether the target has it is not known then."""
        if self.epoch is not None:
            self.epoch = None
            self._standing.changed()
