"""The API's routes that change the pair: an operator's about modules, and those that only the other server uses.

Unlike all others an operator's change waits for both servers' disks, drivers and actors: up to some minutes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from hotpair.access import Role
from hotpair.actors.supervisor import UnknownModule
from hotpair.api_requests import ChangedModule, NewModule
from hotpair.api_values import API, ChangedPair, Problem
from hotpair.cluster.configuration_io import BadKey
from hotpair.cluster.configuration_keys import ConfigurationError
from hotpair.http_modules import Needs
from hotpair.invitations import NotInvited
from hotpair.invitations_io import Welcome
from hotpair.pair_administration import PairAdministration
from hotpair.pair_channel_io import PAIR, PeerUnreachable
from hotpair.pair_coordinator import RefusedByPeer
from hotpair.pair_gate import ANSWER_HEADER, NotThePeer, PairGate
from hotpair.pair_participant import ChangeFailed, ChangeRefused
from hotpair.pair_remote import BAD, FAILED, REFUSED, BadQuestion, answer
from hotpair.toml_text import NotWritable, table_text

Gate = Callable[[], PairGate]  # raises BadKey


def modules_changes_router(administration: PairAdministration, needs: Needs) -> APIRouter:
    """The operator's."""
    router = APIRouter(tags=["modules"], dependencies=[needs(Role.ADMIN)])

    @router.post("/modules", response_model=ChangedPair)
    async def add(given: NewModule) -> ChangedPair:
        """Add a module to both servers, and open it; checked on both before anything is written on either."""
        text = _text(given.toml, given.configuration)
        if text is None:
            raise HTTPException(400, "Give toml or configuration, one of them.")
        notes = await administration.add(given.module, text, overwrite=given.overwrite, start=given.start)
        return ChangedPair(notes=notes)

    @router.put("/modules/{module}", response_model=ChangedPair)
    async def edit(module: str, given: ChangedModule) -> ChangedPair:
        """Change a module's configuration on both servers; it must be stopped on both."""
        text = _text(given.toml, given.configuration)
        if (text is None) == (given.set is None):
            raise HTTPException(400, "Give toml, configuration or set, one of them.")
        return ChangedPair(notes=await administration.edit(module, text, given.set or {}))

    @router.delete("/modules/{module}", response_model=ChangedPair)
    async def remove(module: str) -> ChangedPair:
        """Remove a module from both servers; it must be stopped on both. The data in its directory stays."""
        return ChangedPair(notes=await administration.remove(module))

    return router


def _text(toml: str | None, configuration: dict[str, Any] | None) -> str | None:
    if toml is not None and configuration is not None:
        raise HTTPException(400, "Give toml or configuration, one of them.")
    try:
        return toml if configuration is None else table_text(configuration)
    except NotWritable as error:
        raise HTTPException(400, str(error)) from error


def peers_router(administration: PairAdministration, gate: Gate, welcome: Welcome) -> APIRouter:
    """For the other server: it has the pair's key, or an invitation."""
    router = APIRouter(prefix=PAIR.removeprefix(API), include_in_schema=False)

    @router.get("/challenge")
    async def challenge() -> dict[str, str]:
        return {"challenge": gate().challenge()}

    @router.post("/join")
    async def join(request: Request) -> dict[str, Any]:
        try:
            return await welcome.let_in(await request.body())
        except NotInvited as error:
            raise HTTPException(403, str(error)) from error

    @router.post("/{word}")
    async def asked(word: str, request: Request) -> Response:
        body = await request.body()
        said = request.headers.get("authorization", "")
        try:
            genuine = gate()
            admitted = genuine.admit(said, "POST", request.url.path, body)
        except NotThePeer as error:
            raise HTTPException(403, str(error)) from error
        status, text = await _answered(administration, word, body)
        content = json.dumps(text).encode()
        seal = genuine.seal(admitted, status, content)
        return Response(content, status, {ANSWER_HEADER: seal}, "application/json")

    return router


async def _answered(administration: PairAdministration, word: str, body: bytes) -> tuple[int, dict[str, Any]]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return BAD, {"error": "this is not JSON"}
    try:
        return 200, await answer(administration.here, word, given)
    except ChangeFailed as error:
        return FAILED, {"error": str(error)}
    except (ChangeRefused, UnknownModule) as error:
        return REFUSED if getattr(error, "is_state", False) else BAD, {"error": str(error)}
    except ConfigurationError as error:
        return BAD, {"error": f"on {administration.here.server}: {error.problems[0]}"}
    except BadQuestion as error:
        return BAD, {"error": str(error)}


def say_changes(app: FastAPI) -> None:
    """Why a change was not made, as the API says every error."""

    def said(kind: type[Exception], status: Callable[[Any], int], text: Callable[[Any], str] = str) -> None:
        async def handler(_request: Request, error: Exception) -> JSONResponse:
            return JSONResponse(asdict(Problem(error=text(error))), status(error))

        app.add_exception_handler(kind, handler)

    said(ChangeRefused, lambda error: REFUSED if error.is_state else BAD)
    said(RefusedByPeer, lambda error: REFUSED)
    said(ChangeFailed, lambda error: REFUSED)
    said(PeerUnreachable, lambda error: 503)
    said(BadKey, lambda error: 503)
    said(ConfigurationError, lambda error: BAD, lambda error: error.brief)
