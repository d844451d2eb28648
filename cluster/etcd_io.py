"""The same epochs in an etcd cluster, through the HTTP gateway of its v3 API (etcd 3.4 and later).

A standing is one key, `PREFIX/PAIR/MODULE`, with a small JSON value. It is read linearizably, the pure decision is
made, and the new value is written in a transaction that demands that the key has not been modified since. etcd answers
once a majority of the cluster has the change on disk. Source: https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from hotpair.cluster.arbitration import (
    ARBITER_TIMEOUT_S,
    NEVER_MOVED,
    Answer,
    Claim,
    Kind,
    Standing,
    granted,
    move,
    refused,
    unreachable,
)
from hotpair.cluster.connection_io import Address, ClientTls, Deadline, Unreachable, connect, cut_at, describe

LARGEST_ANSWER_BYTES = 1 << 16  # ours have a few hundred bytes
RACES = 8  # how often somebody else may be quicker: there are two servers, and each move ends the race for one
PREFIX = "/hotpair"


_Result = TypeVar("_Result")


class EtcdError(Exception):
    """The cluster gave no answer that counts. The text says why."""


@dataclass(frozen=True)
class User:
    """For a cluster with authentication; its role needs to read and write below the prefix. The gateway knows users by
    password only, never by their certificate."""

    name: str
    password: str


@dataclass(frozen=True)
class _Seen:
    """What the cluster holds for one module; `revision` is 0 when it holds nothing."""

    standing: Standing
    revision: int


class EtcdArbiter:
    """Claims in an etcd cluster; endpoints are tried in turn. `timeout_s` limits each call as a whole."""

    kind = Kind.ETCD

    def __init__(
        self,
        endpoints: Sequence[Address],
        tls: ClientTls | None,
        *,
        timeout_s: float = ARBITER_TIMEOUT_S,
        user: User | None = None,
        prefix: str = PREFIX,
    ) -> None:
        """ValueError without an endpoint, or for TLS files that cannot be used."""
        if not endpoints:
            raise ValueError("name at least one endpoint of the etcd cluster")
        self._endpoints = tuple(endpoints)
        self._tls: ssl.SSLContext | None = None if tls is None else tls.context()
        self._timeout_s = timeout_s
        self._user = user
        self._prefix = prefix

    def claim(self, claim: Claim) -> Answer:
        try:
            return self._at_one(lambda session: _claim(session, self._key(claim.pair, claim.module), claim))
        except EtcdError as error:
            return unreachable(claim, str(error))

    def look(self, pair: str, module: str) -> Standing | None:
        try:
            return self._at_one(lambda session: _see(session, self._key(pair, module))).standing
        except EtcdError:
            return None

    def _key(self, pair: str, module: str) -> str:
        return f"{self._prefix}/{quote(pair, safe='')}/{quote(module, safe='')}"

    def _at_one(self, action: Callable[[_Session], _Result]) -> _Result:
        """The result from the first endpoint that gives one. Raises EtcdError.

        A failed attempt may have moved the epoch all the same; the next one sees that, and the move is ours.
        """
        deadline = Deadline.after(self._timeout_s)
        reasons: list[str] = []
        for tried, endpoint in enumerate(self._endpoints):
            try:
                limit = deadline.share(len(self._endpoints) - tried)
                session = _Session(endpoint, self._tls, limit)
                if self._user is not None:
                    session.log_in(self._user)
                return action(session)
            except (EtcdError, Unreachable) as error:
                reasons.append(str(error))
        raise EtcdError(f"etcd cannot be used: {'; '.join(reasons)}")


class _Session:
    """The requests of one attempt at one endpoint, a connection for each."""

    def __init__(self, endpoint: Address, tls: ssl.SSLContext | None, deadline: Deadline) -> None:
        self._endpoint = endpoint
        self._tls = tls
        self._deadline = deadline
        self._headers = {"Content-Type": "application/json", "Connection": "close"}

    def log_in(self, user: User) -> None:
        """Raises EtcdError, Unreachable."""
        token = self.post("auth/authenticate", {"name": user.name, "password": user.password}).get("token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise EtcdError(f"{self._endpoint}: no token for {user.name}")
        self._headers["Authorization"] = token

    def post(self, method: str, request: dict[str, Any]) -> dict[str, Any]:
        """Raises EtcdError, Unreachable."""
        connection = http.client.HTTPConnection(self._endpoint.host, self._endpoint.port)
        connection.auto_open = 0  # it would connect again by itself, without TLS
        with connect(self._endpoint, self._tls, self._deadline) as sock, cut_at(self._deadline, sock):
            connection.sock = sock
            sock.settimeout(None)  # the connection is cut at the deadline
            try:
                connection.request("POST", f"/v3/{method}", json.dumps(request), self._headers)
                response = connection.getresponse()
                data = response.read(LARGEST_ANSWER_BYTES + 1)
            except (OSError, http.client.HTTPException) as error:
                raise EtcdError(f"{self._endpoint}: {describe(error)}") from error
            finally:
                connection.close()
        try:
            answer = json.loads(data) if len(data) <= LARGEST_ANSWER_BYTES else None
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise EtcdError(f"{self._endpoint}: HTTP {response.status}, and not the answer of an etcd 3.4 or later")
        if response.status != http.HTTPStatus.OK:
            reason = answer.get("error") or answer.get("message") or "no reason given"
            raise EtcdError(f"{self._endpoint}: HTTP {response.status}, {str(reason)[:200]}")
        return answer


def _claim(session: _Session, key: str, claim: Claim) -> Answer:
    """Read, decide, write if nobody was quicker. Raises EtcdError, Unreachable."""
    for _ in range(RACES):
        seen = _see(session, key)
        decision = move(seen.standing, claim)
        if not decision.granted:
            return refused(claim, decision.reason, seen.standing)
        if decision.after == seen.standing or _replace(session, key, seen.revision, decision.after):
            return granted(claim, decision.reason, decision.after)
    raise EtcdError(f"the key {key} was modified {RACES} times while it was being claimed")


def _see(session: _Session, key: str) -> _Seen:
    """A linearizable read, which is what etcd does unless told otherwise. Raises EtcdError, Unreachable."""
    found = session.post("kv/range", {"key": _encoded(key)}).get("kvs", [])
    if not found:
        return _Seen(NEVER_MOVED, 0)
    try:
        (entry,) = found
        value = json.loads(base64.b64decode(entry["value"], validate=True))
        return _Seen(Standing(value["epoch"], value["holder"]), int(entry["mod_revision"]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise EtcdError(f"the key {key} holds something that is not a standing: {error!r}") from error


def _replace(session: _Session, key: str, revision: int, after: Standing) -> bool:
    """Whether the key was still at that revision, and now has the new standing. Raises EtcdError, Unreachable."""
    value = json.dumps({"epoch": after.epoch, "holder": after.holder})
    unchanged = {"key": _encoded(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
    put = {"request_put": {"key": _encoded(key), "value": _encoded(value)}}
    return session.post("kv/txn", {"compare": [unchanged], "success": [put]}).get("succeeded") is True


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
