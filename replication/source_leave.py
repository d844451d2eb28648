"""The source's half of the target's planned leaving: both copies flushed, then the target may go.

A target that has gone has it on its disk that it is outdated, and says so as its last word: that is its consent to go
on alone, given in the stream. It must not know who wants the target to stop.
"""

from __future__ import annotations

from collections.abc import Callable

from hotpair.replication.errors import ProtocolError
from hotpair.replication.frames import Kind
from hotpair.replication.modes import FROZEN, PRIM
from hotpair.replication.source import Source
from hotpair.replication.source_copy import OwnCopy
from hotpair.replication.source_session import Session
from hotpair.replication.source_standing import Standing
from hotpair.replication.transport_io import Connection


class Leave:
    """``hands_over`` says whether the target is being asked to take over: then it is not let go, whatever it says."""

    def __init__(
        self,
        own_copy: OwnCopy,
        source: Source,
        session: Session,
        standing: Standing,
        hands_over: Callable[[], bool],
        alone_now: Callable[[], None],
    ) -> None:
        self._copy = own_copy
        self._source = source
        self._session = session
        self._standing = standing
        self._hands_over = hands_over
        self._alone_now = alone_now
        self._flushes = False
        self._granted = False

    def asked(self) -> None:
        """The target wants to go. One that gets no answer stops in sync: nothing is lost by not answering."""
        refused = self._source.mode is not PRIM or not self._standing.in_sync or self._standing.stopping
        if refused or self._hands_over() or self._flushes or self._granted:
            return
        self._flushes = True
        connection = self._session.connection
        self._source.times.carry_all()
        self._source.flushes.flush_everything(self._copy.root_fd, lambda error: self._flushed(connection, error))
        self._source.turn_end()

    def _flushed(self, connection: Connection | None, error: int) -> None:
        """What the target has and this copy has not is in memory only: from here on this server must not lose it."""
        if self._session.connection is not connection or not self._flushes:
            return  # another connection has begun, in which the target has not asked
        self._flushes = False
        if error or self._source.mode is not PRIM or self._hands_over():
            return
        self._granted = True
        self._source.message(Kind.MAY_LEAVE)
        self._source.send()

    def gone(self) -> None:
        """The target is durably outdated, and does not come back in this session. Raises ProtocolError."""
        if not self._granted:
            raise ProtocolError("the peer says that it has gone, and was not let go")
        self._session.give_up_session()
        self._session.link_lost("the peer has stopped, as was agreed with it")
        if self._source.mode is FROZEN and not self._hands_over():
            self._source.marks.when_idle(self._alone_now)

    def end(self) -> None:
        """The link is lost."""
        self._flushes = self._granted = False
