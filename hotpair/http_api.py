"""The HTTP API of one server, as an application: routes, roles, errors. Who listens is http_server_io.py's matter.

No request waits for a disk, a driver or a mirror longer than a tenth of a second: what is not known by then is left
out, or said to be under way. What is waited for is a command's own durable write, and changes of the pair
(http_pair.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from hotpair import __version__
from hotpair.access import Role, role_of
from hotpair.actors.supervisor import UnknownModule
from hotpair.api_page import page
from hotpair.api_values import API, LONGEST_BODY, Here, Problem
from hotpair.event_hub import TooManyListeners
from hotpair.http_metrics import metrics
from hotpair.http_modules import modules_router
from hotpair.http_pair import modules_changes_router, peers_router, say_changes
from hotpair.http_streams import streams_router
from hotpair.pair_channel_io import PAIR
from hotpair.pair_served import PairServed
from hotpair.served import Served, TooSlow
from hotpair.service_history import runs_here

LOCAL = "hotpair.local"  # in a request's scope: it came over the Unix socket, from root or the service's own user

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "What was sent makes no sense"},
    401: {"model": Problem, "description": "No token, or none that is known"},
    403: {"model": Problem, "description": "The token's role may not do this"},
    404: {"model": Problem, "description": "There is no such module"},
    409: {"model": Problem, "description": "The command is refused; the text is the reason"},
    503: {"model": Problem, "description": "Not now: the text says why"},
}


def app_of(served: Served, pair: PairServed) -> FastAPI:
    """Everything that is served, for one supervisor."""
    app = FastAPI(
        title="hotpair",
        version=__version__,
        description="One server of a pair. A command is given to the server it is meant for.",
        docs_url=None,  # its page would load scripts from elsewhere, beside somebody's token
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_middleware(Limited)
    _say_problems(app)

    def needs(role: Role) -> Any:
        """For a route: who may use it."""
        return Depends(_Needs(served, role))

    app.include_router(modules_router(served, needs), prefix=API, responses=PROBLEMS)
    app.include_router(streams_router(served, needs), prefix=API, responses=PROBLEMS)
    app.include_router(modules_changes_router(pair.administration, needs), prefix=API, responses=PROBLEMS)
    app.include_router(peers_router(pair.administration, pair.gate, pair.welcome), prefix=API)
    say_changes(app)

    @app.get(API, response_model=Here, dependencies=[needs(Role.MONITOR)], responses=PROBLEMS, tags=["server"])
    async def here() -> Here:
        """Who answers."""
        return Here(version=__version__, cluster=served.cluster, server=served.server, peer=served.peer)

    @app.get("/health/{module}", tags=["health"], responses={503: {"model": Problem}})
    async def health(module: str) -> dict[str, str]:
        """200 on the server that runs the module, 503 on any other; for load balancers, without a token.

        What is called by a name that does not exist is answered in the same way: the names are nobody's business here.
        """
        try:
            known = served.supervisor.known(module)
        except UnknownModule:
            known = None
        if known is None or not runs_here(known):
            raise HTTPException(503, f"{module[:80]} does not run here")
        return {"runs": "here"}

    @app.get("/metrics", dependencies=[needs(Role.MONITOR)], tags=["metrics"], response_class=Response)
    async def scrape() -> Response:
        """For Prometheus."""
        text, kind = await metrics(served)
        return Response(text, media_type=kind)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))

    return app


class _Needs:
    """A dependency: ends the request unless who makes it has this role."""

    def __init__(self, served: Served, role: Role) -> None:
        self._served = served
        self._role = role

    async def __call__(self, request: Request) -> Role:
        role = await self._role_of(request)
        if role < self._role:
            who = " or ".join(word.word for word in Role if word >= self._role)
            raise HTTPException(403, f"The role {role.word} may not do this: it needs {who}.")
        return role

    async def _role_of(self, request: Request) -> Role:
        if request.scope.get(LOCAL) is True:
            return Role.ADMIN
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise _unknown("This needs a token: Authorization: Bearer TOKEN (hotpair token add).")
        role = role_of(await self._served.tokens(), token.strip())
        if role is None:
            raise _unknown("The token is not known here.")
        return role


def _unknown(text: str) -> HTTPException:
    return HTTPException(401, text, headers={"WWW-Authenticate": "Bearer"})


# ---- errors


def _say_problems(app: FastAPI) -> None:
    """Each error is JSON with one sentence."""

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        texts = {404: f"There is nothing at {request.url.path[:200]}.", 405: "This cannot be done there."}
        default = error.detail in ("Not Found", "Method Not Allowed")
        text = texts.get(error.status_code, error.detail) if default else error.detail
        return problem(error.status_code, str(text), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def validation(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body")
        return problem(400, f"{place}: {first['msg']}" if place else str(first["msg"]))

    @app.exception_handler(UnknownModule)
    async def unknown(request: Request, error: UnknownModule) -> JSONResponse:
        return problem(404, str(error))

    @app.exception_handler(TooSlow)
    async def slow(request: Request, error: TooSlow) -> JSONResponse:
        return problem(503, "The disk does not answer: try again.")

    @app.exception_handler(TooManyListeners)
    async def listeners(request: Request, error: TooManyListeners) -> JSONResponse:
        return problem(503, str(error))

    @app.exception_handler(500)
    async def bug(request: Request, error: BaseException) -> JSONResponse:
        return problem(500, "This is a mistake in hotpair; the service's log says more.")  # which the server writes


def problem(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse(asdict(Problem(error=text)), status_code=status, headers=headers)


class Limited:
    """Refuses a request that is too long, before it is in memory."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        got = 0

        async def limited() -> MutableMapping[str, Any]:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > LONGEST_BODY:
                raise HTTPException(413, f"A request has at most {LONGEST_BODY} bytes.")
            return message

        await self._app(scope, limited, send)


def local(app: Asgi) -> Asgi:
    """The same application for those who came over the Unix socket."""

    async def marked(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, LOCAL: True}, receive, send)

    return marked


def peers_only(app: Asgi) -> Asgi:
    """The same application for who can only be the peer: where there is no TLS, no token may travel."""

    async def narrow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not scope["path"].startswith(f"{PAIR}/"):
            await problem(404, "Without TLS only the other server is answered here.")(scope, receive, send)
            return
        await app(scope, receive, send)

    return narrow
