"""A client of the API: for the command line, and for programs that embed hotpair.

with Client.here() as client:                      # this server, over the Unix socket
    print(client.module("web").state)
    client.command("web", "swap")
with Client.at("https://beta:9010", token, authority="tls/authority.pem") as client: ...
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import httpx
from pydantic import BaseModel, ValidationError

from hotpair.actors.home import Home
from hotpair.api_values import (
    API,
    ChangedModule,
    ChangedPair,
    Details,
    Done,
    Here,
    Log,
    Module,
    NewModule,
    Order,
    Verification,
    Verify,
)
from hotpair.cluster.admission import NAME_RULE, is_name

ANSWER_S = 10.0  # far more than the server takes; a command may wait for its own durable write
CHANGE_S = 400.0  # of the pair: both servers' disks, drivers and actors, one after the other
SILENCE_S = 30.0  # of a stream, which says something every ten seconds


class ApiError(Exception):
    """An answer that is no success; the text is for people."""


class NotRunning(ApiError):
    """Nobody answers."""


class NotAllowed(ApiError):
    """The token, or the user, may not do this."""


class NotFound(ApiError):
    """There is no such module."""


class Refused(ApiError):
    """A command is refused; the text is the reason. Nothing was done."""


class NotNow(ApiError):
    """It cannot be said or done at the moment."""


_ERRORS: Mapping[int, type[ApiError]] = {401: NotAllowed, 403: NotAllowed, 404: NotFound, 409: Refused, 503: NotNow}


class Client:
    """Not for several threads. All methods raise ApiError."""

    def __init__(self, connection: httpx.Client, where: str) -> None:
        self._connection = connection
        self._where = where

    @classmethod
    def here(cls, home: Home | None = None) -> Client:
        """This server's service, over its Unix socket: needs root, and no token."""
        path = (home or Home.standard()).socket
        transport = httpx.HTTPTransport(uds=path)
        made = httpx.Client(transport=transport, base_url="http://hotpair", timeout=ANSWER_S, trust_env=False)
        return cls(made, "here")

    @classmethod
    def at(cls, url: str, token: str, *, authority: str | None = None) -> Client:
        """Another server's: `url` as https://HOST:9010. `authority`: certificate file of who signed its own.

        OSError for a file that cannot be read, ssl.SSLError for one that is no certificate.
        """
        verify = ssl.create_default_context(cafile=authority)
        headers = {"Authorization": f"Bearer {token}"}
        made = httpx.Client(base_url=url, headers=headers, verify=verify, timeout=ANSWER_S, trust_env=False)
        return cls(made, f"at {url}")

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- what it can be asked

    def server(self) -> Here:
        return Here.model_validate(self._ask("GET", API))

    def modules(self) -> list[Module]:
        return [Module.model_validate(one) for one in self._ask("GET", f"{API}/modules")]

    def module(self, name: str) -> Module:
        return self.details(name).module

    def details(self, name: str) -> Details:
        return Details.model_validate(self._ask("GET", _path(name)))

    def command(
        self, name: str, command: str, *, force: bool = False, full: bool = False, on: bool | None = None
    ) -> Done:
        """`command` is a word of api_values.CommandWord. Refused with the reason."""
        try:
            order = Order.model_validate({"command": command, "force": force, "full": full, "on": on})
        except ValidationError as error:
            raise ApiError(f"{command!r} is no command") from error
        return Done.model_validate(self._ask("POST", f"{_path(name)}/commands", order))

    def shutdown(self) -> Done:
        """Begin to stop all modules of that server, as before its host goes down."""
        return Done.model_validate(self._ask("POST", f"{API}/shutdown"))

    def verify(self, name: str, *, repair: bool = False) -> Done:
        return Done.model_validate(self._ask("POST", f"{_path(name)}/verify", Verify(repair=repair)))

    def end_verify(self, name: str) -> Done:
        return Done.model_validate(self._ask("DELETE", f"{_path(name)}/verify"))

    def verification(self, name: str) -> Verification:
        return Verification.model_validate(self._ask("GET", f"{_path(name)}/verify"))

    def retry(self, name: str) -> Done:
        """Have the mirror try the other server's copy again now; on the server that runs the module."""
        return Done.model_validate(self._ask("POST", f"{_path(name)}/retry"))

    def events(self, name: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Oldest first."""
        return list(self._ask("GET", f"{API}/events", query=_without_none(module=name, limit=limit)))

    def log(self, name: str, lines: int = 200) -> list[str]:
        return Log.model_validate(self._ask("GET", f"{_path(name)}/log", query={"lines": lines})).lines

    def metrics(self) -> str:
        """As Prometheus reads them."""
        return self._send("GET", "/metrics").text

    def follow_events(self, name: str | None = None, past: int = 0) -> Iterator[dict[str, Any]]:
        """So many of the past, then each event as it happens, none left out in between; ends when the service does."""
        for data in self._follow(f"{API}/events/stream", _without_none(module=name, past=past)):
            yield json.loads(data)

    def follow_log(self, name: str, lines: int = 10) -> Iterator[str]:
        """The last lines, and each new one."""
        yield from self._follow(f"{_path(name)}/log/stream", {"lines": lines})

    # ---- the pair, on both servers at once

    def add_module(
        self,
        name: str,
        *,
        toml: str | None = None,
        configuration: dict[str, Any] | None = None,
        overwrite: bool = False,
        start: bool = False,
    ) -> list[str]:
        """Notes. Either the file's text or a table. Both servers are asked before anything is written on either."""
        given = NewModule(module=name, toml=toml, configuration=configuration, overwrite=overwrite, start=start)
        return self._changed("POST", f"{API}/modules", given)

    def edit_module(
        self,
        name: str,
        *,
        toml: str | None = None,
        configuration: dict[str, Any] | None = None,
        settings: dict[str, Any] | None = None,
    ) -> list[str]:
        """Notes. The whole configuration, or single keys; the module is stopped on both servers."""
        return self._changed("PUT", _path(name), ChangedModule(toml=toml, configuration=configuration, set=settings))

    def remove_module(self, name: str) -> list[str]:
        """Notes: where its data still lies. It is stopped on both servers."""
        return self._changed("DELETE", _path(name))

    def _changed(self, method: str, path: str, given: BaseModel | None = None) -> list[str]:
        return ChangedPair.model_validate(self._ask(method, path, given, limit_s=CHANGE_S)).notes

    # ---- how

    def _ask(
        self, method: str, path: str, body: BaseModel | None = None, query: Any = None, limit_s: float = ANSWER_S
    ) -> Any:
        answer = self._send(method, path, body, query, limit_s)
        try:
            return answer.json()
        except ValueError as error:
            raise ApiError(f"what answers {self._where} is not hotpair: it sent no JSON") from error

    def _send(
        self, method: str, path: str, body: BaseModel | None = None, query: Any = None, limit_s: float = ANSWER_S
    ) -> httpx.Response:
        sent = None if body is None else body.model_dump()
        try:
            answer = self._connection.request(method, path, json=sent, params=query, timeout=limit_s)
        except httpx.HTTPError as error:
            raise self._failed(error) from error
        if not answer.is_success:
            raise _error_of(answer)
        return answer

    def _follow(self, path: str, query: Any) -> Iterator[str]:
        """The data of each server-sent event that has no name."""
        try:
            with self._connection.stream("GET", path, params=query, timeout=SILENCE_S) as answer:
                if not answer.is_success:
                    answer.read()
                    raise _error_of(answer)
                event = ""
                for line in answer.iter_lines():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        event = value
                    elif field == "data" and event == "problem":
                        raise NotNow(value)
                    elif field == "data" and not event:
                        yield value
                    elif not line:
                        event = ""
        except httpx.HTTPError as error:
            raise self._failed(error) from error

    def _failed(self, error: httpx.HTTPError) -> ApiError:
        if self._where != "here":
            return NotRunning(f"hotpair does not answer {self._where}: {error}")
        causes = []
        cause: BaseException | None = error
        while cause is not None:
            causes.append(cause)
            cause = cause.__cause__ or cause.__context__
        if any(isinstance(one, PermissionError) for one in causes):
            return NotAllowed("this needs root, or a token: sudo hotpair")
        if isinstance(error, httpx.TimeoutException):
            return NotRunning("hotpair run does not answer here: journalctl -u hotpair")
        return NotRunning("hotpair run is not running here: systemctl start hotpair")


def _error_of(answer: httpx.Response) -> ApiError:
    try:
        text = str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        text = f"the answer was {answer.status_code} {answer.reason_phrase}, without a reason"
    return _ERRORS.get(answer.status_code, ApiError)(text)


def _path(module: str) -> str:
    """A name is part of the address: what can be none is not asked for."""
    if not is_name(module):
        raise NotFound(f"there is no module {module[:80]!r}: a name has {NAME_RULE}")
    return f"{API}/modules/{module}"


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
