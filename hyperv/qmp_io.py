"""QEMU's control socket, with every call limited in time: a thin blocking layer over the library qemu.qmp."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Collection
from types import TracebackType
from typing import Any, TypeVar

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
)

from hotpair.hyperv.errors import VmFailed

CALL_LIMIT_S = 5.0  # QEMU answers within milliseconds, unless it waits for a disk
MIGRATION_EVENTS = "MIGRATION"

_T = TypeVar("_T")


class NoMonitor(VmFailed):
    """QEMU's control socket cannot be reached, is used by somebody else, or does not answer."""


class Qmp:
    """One connection. QEMU serves one at a time: the next one waits until this one is closed.

    Use it as a context manager, from a thread without a running asyncio loop. Raises NoMonitor.
    """

    def __init__(self, path: str, limit_s: float = CALL_LIMIT_S) -> None:
        self._path = path
        self._limit_s = limit_s
        self._client = QMPClient("hotpair")
        self._client.logger.setLevel(logging.CRITICAL)  # every error is raised here; the library would log it as well

    def __enter__(self) -> Qmp:
        self._loop = asyncio.new_event_loop()
        self._events = EventListener()
        self._client.register_listener(self._events)
        try:
            self._wait(self._client.connect(self._path), self._limit_s)
        except (TimeoutError, ConnectError, OSError) as error:
            self._loop.close()
            raise NoMonitor(
                f"QEMU's control socket {self._path} does not answer: {str(error) or 'it is busy'}"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._wait(self._client.disconnect(), self._limit_s)
        except (TimeoutError, QMPError, EOFError, OSError):
            pass  # QEMU went first: the connection is closed all the same
        finally:
            self._loop.close()

    def call(self, command: str, **arguments: object) -> Any:
        """What QEMU returns. Raises VmFailed with what it says, NoMonitor when it says nothing."""
        try:
            return self._wait(self._client.execute(command, arguments), self._limit_s)
        except ExecuteError as error:
            raise VmFailed(f"QEMU refused {command}: {error.error.error.desc}") from error
        except (TimeoutError, ExecInterruptedError, QMPError, OSError) as error:
            raise NoMonitor(f"QEMU did not answer to {command}") from error

    def wait_for_migration(self, ends: Collection[str], timeout_s: float) -> str | None:
        """The first of the statuses in `ends` that a migration comes to; None at the limit.

        Its events must have been switched on by the capability "events" before it was started.
        """
        end = time.monotonic() + timeout_s
        while (left := end - time.monotonic()) > 0:
            try:
                event = self._wait(self._event(), left)
            except TimeoutError:
                return None
            if event is None:
                raise NoMonitor("QEMU ended during a migration")
            status = str(event["data"]["status"]) if event["event"] == MIGRATION_EVENTS else ""  # type: ignore[index]
            if status in ends:
                return status
        return None

    async def _event(self) -> Message | None:
        """The next one; None when QEMU has closed the connection, which by itself is no event."""
        event, closed = asyncio.ensure_future(self._events.get()), asyncio.ensure_future(self._is_closed())
        try:
            await asyncio.wait((event, closed), return_when=asyncio.FIRST_COMPLETED)
            return event.result() if event.done() else None
        finally:
            for future in (event, closed):
                future.cancel()

    async def _is_closed(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    def _wait(self, what: Awaitable[_T], limit_s: float) -> _T:
        return self._loop.run_until_complete(asyncio.wait_for(what, limit_s))
