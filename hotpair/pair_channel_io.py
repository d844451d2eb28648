"""Asks the other server's service, over its HTTP API: authenticated by the pair's key, in TLS unless there is none.

Under TLS its certificate must be signed by the pair's authority and carry its name, or its address in cluster.toml;
what a name server says decides nothing. Each question has a time limit, each answer a limit of bytes.
"""

from __future__ import annotations

import contextlib
import hmac
import http.client
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from hotpair.actors.home import Home
from hotpair.api_values import API
from hotpair.cluster.configuration import Cluster
from hotpair.cluster.configuration_io import BadKey, load_key
from hotpair.pair_gate import ANSWER_HEADER, SCHEME, answer_mac, channel_key, request_mac

ASK_S = 20.0  # for what the peer says without doing much
LARGEST_ANSWER = 1 << 20
PAIR = f"{API}/pair"


class PeerUnreachable(Exception):
    """The peer has not answered: it may have heard or not. The text says why and what to do."""


class PeerNotAsked(PeerUnreachable):
    """It has certainly not heard the question."""


class PeerRefused(Exception):
    """The peer's own answer: no. `status` as in HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class PeerChannel:
    """To the peer of `server`. Holds no connection: what is asked here is rare."""

    def __init__(self, cluster: Cluster, home: Home, server: str, port: int) -> None:
        self._cluster = cluster
        self._home = home
        self._server = server
        self._peer = cluster.peer_of(server)
        self._port = port

    def ask(self, word: str, given: Mapping[str, Any], limit_s: float = ASK_S) -> dict[str, Any]:
        """Blocks. Raises PeerUnreachable, PeerNotAsked, PeerRefused."""
        peer, path = self._peer.name, f"{PAIR}/{word}"
        key = self._key()
        body = json.dumps(given).encode()
        with self._connected(limit_s) as connection:
            status, _, said = exchange(connection, "GET", f"{PAIR}/challenge", b"", {})
            challenge = text_of(said, "challenge")
            if status != 200 or challenge is None:
                raise PeerNotAsked(f"what answers at {self._where} is not hotpair: another service has the port")
            mac = request_mac(key, challenge, self._server, peer, "POST", path, body)
            headers = {"Authorization": f"{SCHEME} {challenge}:{mac}", "Content-Type": "application/json"}
            try:
                status, sealed, said = exchange(connection, "POST", path, body, headers)
            except (OSError, http.client.HTTPException) as error:
                raise PeerUnreachable(f"{peer} has not answered within {limit_s:g} s: {said_by(error)}") from error
        expected = answer_mac(key, challenge, peer, self._server, status, said)
        if not hmac.compare_digest(expected.encode(), sealed.encode(errors="replace")):
            why = text_of(said, "error") or "it is not signed with the pair's key"
            if status == 403:
                raise PeerNotAsked(f"{peer} does not accept this server as its peer: {why}")
            raise PeerUnreachable(f"what has come back from {self._where} ({status}) is not {peer}'s answer: {why}")
        if status != 200:
            raise PeerRefused(status, text_of(said, "error") or f"{peer} has refused ({status}), without a reason")
        answer = json.loads(said)
        assert isinstance(answer, dict), "signed by the peer"
        return answer

    @property
    def _where(self) -> str:
        return f"{self._peer.address} port {self._port}"

    def _key(self) -> bytes:
        try:
            return channel_key(load_key(self._home.below(self._cluster.security.key_file)))
        except BadKey as error:
            raise PeerNotAsked(str(error)) from error

    @contextlib.contextmanager
    def _connected(self, limit_s: float) -> Iterator[http.client.HTTPConnection]:
        """Ended after `limit_s`, whatever the other end does. Errors before the question is asked are PeerNotAsked."""
        tls, address = self._tls(), self._peer.address
        connection = (
            http.client.HTTPConnection(address, self._port, timeout=limit_s)
            if tls is None
            else http.client.HTTPSConnection(address, self._port, timeout=limit_s, context=tls)
        )
        try:
            with ended_after(connection, limit_s):
                connection.connect()
                self._check_name(connection.sock)
                yield connection
        except ssl.SSLError as error:
            raise PeerNotAsked(
                f"the certificate at {self._where} is not the peer's: {error.reason or error}. Both servers' "
                "certificates are signed by the pair's authority ([security] in cluster.toml)"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise PeerNotAsked(
                f"{self._peer.name} does not answer at {self._where} ({said_by(error)}): start hotpair run there, and "
                "open the port (hotpair firewall)"
            ) from error

    def _tls(self) -> ssl.SSLContext | None:
        tls = self._cluster.security.tls
        if tls is None:
            return None
        try:
            return authority_context(self._home.below(tls.authority))
        except OSError as error:
            raise PeerNotAsked(f"{self._home.below(tls.authority)} cannot be used: {said_by(error)}") from error

    def _check_name(self, sock: Any) -> None:
        if not isinstance(sock, ssl.SSLSocket):
            return
        names = names_in(sock.getpeercert() or {})
        if not names & {self._peer.name, self._peer.address}:
            raise PeerNotAsked(
                f"the certificate at {self._where} is that of {', '.join(sorted(names)) or 'nobody'}, not of "
                f"{self._peer.name}: is the address in cluster.toml right?"
            )


def authority_context(authority: str) -> ssl.SSLContext:
    """Raises OSError (ssl.SSLError is one)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names_in is looked at instead
    context.load_verify_locations(authority)
    return context


def names_in(certificate: Mapping[str, Any]) -> set[str]:
    """Whose it says it is: common name, DNS names, addresses. As ssl.SSLSocket.getpeercert gives it."""
    common = {value for part in certificate.get("subject", ()) for name, value in part if name == "commonName"}
    return common | {value for kind, value in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")}


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes, headers: Mapping[str, str]
) -> tuple[int, str, bytes]:
    """Status, MAC and body of the answer. Raises OSError, HTTPException."""
    connection.request(method, path, body, dict(headers))
    answer = connection.getresponse()
    said = answer.read(LARGEST_ANSWER + 1)
    if len(said) > LARGEST_ANSWER:
        raise http.client.HTTPException(f"the answer has more than {LARGEST_ANSWER} bytes")
    return answer.status, answer.getheader(ANSWER_HEADER, ""), said


def text_of(said: bytes, key: str) -> str | None:
    """From somebody of whom nothing is known yet."""
    try:
        value = json.loads(said)[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return value[:1000] if isinstance(value, str) else None


@contextlib.contextmanager
def ended_after(connection: http.client.HTTPConnection, limit_s: float) -> Iterator[None]:
    """Whatever the other end does; it is closed in any case."""
    timer = threading.Timer(limit_s, _end, [connection])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        connection.close()


def _end(connection: http.client.HTTPConnection) -> None:
    sock = connection.sock
    if sock is not None:
        with contextlib.suppress(OSError):  # it has ended by itself
            sock.shutdown(socket.SHUT_RDWR)


def said_by(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
