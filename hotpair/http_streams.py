"""The API's routes about what happens: events and application logs, also as streams (server-sent events)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from hotpair.access import Role
from hotpair.api_values import Log
from hotpair.event_hub import Entry, Hub, Listening
from hotpair.http_modules import Needs
from hotpair.log_tail_io import MOST_LINES, Position, added, tail
from hotpair.served import Served, TooSlow

MOST_EVENTS = 1000
KEEP_ALIVE_S = 10.0  # a comment after so long of silence: both ends notice that the other one is gone
LOOK_S = 0.25  # between two looks at a log that is followed: the standard library has no event for a file that grows
RETRY_MS = 1000  # after which a browser comes back


class _Stream(StreamingResponse):
    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], status_code: int = 200) -> None:
        super().__init__(content, status_code, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


def streams_router(served: Served, needs: Needs) -> APIRouter:
    router = APIRouter(tags=["events"], dependencies=[needs(Role.MONITOR)])

    @router.get("/events")
    async def events(
        module: str | None = None, limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 100
    ) -> list[dict[str, Any]]:
        """The last events, oldest first: of one module, or of all. `at` is in seconds since 1970, UTC."""
        return [dict(entry) for entry in _last(served, module, limit)]

    @router.get("/events/stream", response_class=_Stream)
    async def event_stream(
        module: str | None = None,
        past: Annotated[int, Query(ge=0, le=MOST_EVENTS)] = 0,
        last_event_id: Annotated[str | None, Header(max_length=80)] = None,
    ) -> _Stream:
        """Each new event, as it happens; before, so many of the past. With Last-Event-ID, those after it instead;
        `event: missed` says that some may be lost: get the list then."""
        if module is not None:
            served.supervisor.standing(module)  # UnknownModule
        listening = served.hub.listen(last_event_id)
        before = _last(served, module, past) if past and last_event_id is None else []  # no event is in between
        return _Stream(_events(served.hub, listening, module, before))

    @router.get("/modules/{module}/log", response_model=Log)
    async def log(module: str, lines: Annotated[int, Query(ge=0, le=MOST_LINES)] = 200) -> Log:
        """The end of the application log: what the driver does, and what the VM or the application says."""
        found, _ = await _tail(served, module, lines)
        return Log(lines=found)

    @router.get("/modules/{module}/log/stream", response_class=_Stream)
    async def log_stream(module: str, lines: Annotated[int, Query(ge=0, le=MOST_LINES)] = 10) -> _Stream:
        """The end of the application log, and each new line."""
        found, position = await _tail(served, module, lines)
        listening = served.hub.listen()  # ends this stream with the service, and counts it
        return _Stream(_lines(served, module, listening, found, position))

    return router


def _last(served: Served, module: str | None, limit: int) -> list[Entry]:
    supervisor = served.supervisor
    names = [said.module for said in supervisor.standings()] if module is None else [module]
    every = (entry for name in names for entry in supervisor.events(name))
    return sorted(every, key=lambda entry: float(entry["at"]))[-limit:]  # stable: each log's own order stays


async def _tail(served: Served, module: str, lines: int) -> tuple[list[str], Position]:
    served.supervisor.standing(module)  # UnknownModule
    path = served.home.application_log(module)
    try:
        return await served.in_thread(lambda: tail(path, lines))
    except OSError as error:
        raise HTTPException(503, f"{path} cannot be read: {error.strerror}.") from error


async def _events(hub: Hub, listening: Listening, module: str | None, before: list[Entry]) -> AsyncIterator[str]:
    try:
        yield f"retry: {RETRY_MS}\n\n" + "".join(f"data: {json.dumps(entry)}\n\n" for entry in before)
        if listening.missed:
            yield "event: missed\ndata: {}\n\n"
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    numbered = await listening.queue.get()
            except TimeoutError:
                yield ": here\n\n"
                continue
            if numbered is None:
                return
            if module is None or numbered.entry["module"] == module:
                yield f"id: {numbered.identity}\ndata: {json.dumps(numbered.entry)}\n\n"
    finally:
        hub.leave(listening)


async def _lines(
    served: Served, module: str, listening: Listening, first: list[str], position: Position
) -> AsyncIterator[str]:
    path = served.home.application_log(module)
    silent_s = 0.0
    try:
        yield "".join(f"data: {line}\n\n" for line in first)
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    while await listening.queue.get() is not None:
                        pass  # the modules' events are not for this stream
                return
            except TimeoutError:
                silent_s += LOOK_S
            try:
                found, position = await served.in_thread(lambda at=position: added(path, at))  # type: ignore[misc]
            except TooSlow:
                found = []
            except OSError as error:
                yield f"event: problem\ndata: {path} cannot be read: {error.strerror}\n\n"
                return
            if found or silent_s >= KEEP_ALIVE_S:
                silent_s = 0.0
                yield "".join(f"data: {line}\n\n" for line in found) or ": here\n\n"
    finally:
        served.hub.leave(listening)
