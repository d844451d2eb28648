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
from typing import Any, TypeVar, get_args
from urllib.parse import urlencode, urlsplit

from hotpair.actors.home import Home
from hotpair.api_reading import NotReadable, read
from hotpair.api_values import (
    API,
    ChangedPair,
    CommandWord,
    Details,
    Done,
    Here,
    Log,
    Module,
    Verification,
)
from hotpair.cluster.admission import NAME_RULE, is_name
from hotpair.http_client_io import FAILURES, Answer, Connection, over_network, over_socket

T = TypeVar("T")

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

    def __init__(self, connection: Connection, where: str) -> None:
        self._connection = connection
        self._where = where

    @classmethod
    def here(cls, home: Home | None = None) -> Client:
        """This server's service, over its Unix socket: needs root, and no token."""
        return cls(Connection(over_socket((home or Home.standard()).socket)), "here")

    @classmethod
    def at(cls, url: str, token: str, *, authority: str | None = None) -> Client:
        """Another server's: `url` as https://HOST:9010. `authority`: certificate file of who signed its own.

        OSError for a file that cannot be read, ssl.SSLError for one that is no certificate.
        """
        if not (token.isascii() and token.isprintable()):
            raise NotAllowed("this is no token: it has characters that none has")
        try:
            connect = over_network(url, ssl.create_default_context(cafile=authority))
        except ValueError as error:
            raise ApiError(str(error)) from error
        above = urlsplit(url).path.rstrip("/")
        return cls(Connection(connect, {"Authorization": f"Bearer {token}"}, above), f"at {url}")

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
        return self._value(Here, self._ask("GET", API))

    def modules(self) -> list[Module]:
        found = self._ask("GET", f"{API}/modules")
        if not isinstance(found, list):
            raise self._stranger("no list")
        return [self._value(Module, one) for one in found]

    def module(self, name: str) -> Module:
        return self.details(name).module

    def details(self, name: str) -> Details:
        return self._value(Details, self._ask("GET", _path(name)))

    def command(
        self, name: str, command: str, *, force: bool = False, full: bool = False, on: bool | None = None
    ) -> Done:
        """`command` is a word of api_values.CommandWord. Refused with the reason."""
        if command not in get_args(CommandWord):
            raise ApiError(f"{command!r} is no command")
        order = {"command": command, "force": force, "full": full, "on": on}
        return self._value(Done, self._ask("POST", f"{_path(name)}/commands", order))

    def shutdown(self) -> Done:
        """Begin to stop all modules of that server, as before its host goes down."""
        return self._value(Done, self._ask("POST", f"{API}/shutdown"))

    def verify(self, name: str, *, repair: bool = False) -> Done:
        return self._value(Done, self._ask("POST", f"{_path(name)}/verify", {"repair": repair}))

    def end_verify(self, name: str) -> Done:
        return self._value(Done, self._ask("DELETE", f"{_path(name)}/verify"))

    def verification(self, name: str) -> Verification:
        return self._value(Verification, self._ask("GET", f"{_path(name)}/verify"))

    def retry(self, name: str) -> Done:
        """Have the mirror try the other server's copy again now; on the server that runs the module."""
        return self._value(Done, self._ask("POST", f"{_path(name)}/retry"))

    def events(self, name: str | None = None, limit: int = 100) -> list[dict[str, Any]]:
        """Oldest first."""
        return list(self._ask("GET", f"{API}/events", query=_without_none(module=name, limit=limit)))

    def log(self, name: str, lines: int = 200) -> list[str]:
        return self._value(Log, self._ask("GET", f"{_path(name)}/log", query={"lines": lines})).lines

    def metrics(self) -> str:
        """As Prometheus reads them."""
        return self._send("GET", "/metrics").body.decode(errors="replace")

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
        given = {"module": name, "toml": toml, "configuration": configuration, "overwrite": overwrite, "start": start}
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
        given = {"toml": toml, "configuration": configuration, "set": settings}
        return self._changed("PUT", _path(name), given)

    def remove_module(self, name: str) -> list[str]:
        """Notes: where its data still lies. It is stopped on both servers."""
        return self._changed("DELETE", _path(name))

    def _changed(self, method: str, path: str, given: Mapping[str, Any] | None = None) -> list[str]:
        return self._value(ChangedPair, self._ask(method, path, given, limit_s=CHANGE_S)).notes

    # ---- how

    def _ask(self, method: str, path: str, body: Any = None, query: Any = None, limit_s: float = ANSWER_S) -> Any:
        answer = self._send(method, path, body, query, limit_s)
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise self._stranger("no JSON") from error

    def _value(self, kind: type[T], given: object) -> T:
        try:
            return read(kind, given)
        except NotReadable as error:
            raise self._stranger(f"what no version of it says: {error}") from error

    def _stranger(self, sent: str) -> ApiError:
        return ApiError(f"what answers {self._where} is not hotpair: it sent {sent}")

    def _send(self, method: str, path: str, body: Any = None, query: Any = None, limit_s: float = ANSWER_S) -> Answer:
        try:
            answer = self._connection.ask(method, _with(path, query), body, limit_s)
        except FAILURES as error:
            raise self._failed(error) from error
        if not answer.is_success:
            raise _error_of(answer)
        return answer

    def _follow(self, path: str, query: Any) -> Iterator[str]:
        """The data of each server-sent event that has no name."""
        try:
            with self._connection.stream(_with(path, query), SILENCE_S) as (answer, lines):
                if not answer.is_success:
                    raise _error_of(answer)
                event = ""
                for line in lines:
                    field, _, value = line.partition(": ")
                    if field == "event":
                        event = value
                    elif field == "data" and event == "problem":
                        raise NotNow(value)
                    elif field == "data" and not event:
                        yield value
                    elif not line:
                        event = ""
        except FAILURES as error:
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> ApiError:
        if self._where != "here":
            return NotRunning(f"hotpair does not answer {self._where}: {str(error) or type(error).__name__}")
        if isinstance(error, PermissionError):
            return NotAllowed("this needs root, or a token: sudo hotpair")
        if isinstance(error, TimeoutError):
            return NotRunning("hotpair run does not answer here: journalctl -u hotpair")
        return NotRunning("hotpair run is not running here: systemctl start hotpair")


def _error_of(answer: Answer) -> ApiError:
    try:
        text = str(json.loads(answer.body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = f"the answer was {answer.status} {answer.reason}, without a reason"
    return _ERRORS.get(answer.status, ApiError)(text)


def _with(path: str, query: Mapping[str, Any] | None) -> str:
    return f"{path}?{urlencode(query)}" if query else path


def _path(module: str) -> str:
    """A name is part of the address: what can be none is not asked for."""
    if not is_name(module):
        raise NotFound(f"there is no module {module[:80]!r}: a name has {NAME_RULE}")
    return f"{API}/modules/{module}"


def _without_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
