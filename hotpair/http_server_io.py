"""Who listens: the Unix socket for local root, and TCP for everybody else, with TLS or on loopback only.

Both serve the same application, in the event loop of the supervisor. Without TLS the server's own address is listened
to as well, for the other server alone, which needs no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hotpair.actors.home import Home
from hotpair.actors.supervisor import Supervisor
from hotpair.api_values import PORT
from hotpair.cluster.configuration import Cluster
from hotpair.http_api import Asgi, app_of, local, peers_only
from hotpair.pair_facts_io import REAL, Looks
from hotpair.pair_served import PairServed, pair_served
from hotpair.served import Mirrors, MirrorSockets, Served

log = logging.getLogger("hotpair.api")

LOOPBACK = "127.0.0.1"
CONNECTIONS = 256  # at the same time, on each socket; more are answered with 503
IDLE_S = 30  # a connection that asks nothing is closed
HEADERS_BYTES = 16 << 10
CLOSE_S = 2  # for answers that are on their way when the service ends
AGAIN_S = 15.0  # until TCP is tried again: a port is taken, a certificate is missing
LONGEST_PATH = 107  # of a Unix socket
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid; unix(7), SO_PEERCRED
_REFUSED = (
    b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 53\r\nConnection: close\r\n\r\n"
    b'{"error":"This socket is for root only: use a token"}'
)


class NotServed(Exception):
    """The API cannot listen; the text says where and why."""


class _OwnerOnly(H11Protocol):
    """Whoever connects to the Unix socket must be root or the user of the service, whatever the file's mode says."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        sock = transport.get_extra_info("socket")
        _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        self.is_refused = user not in (0, os.geteuid())
        super().connection_made(transport)
        if self.is_refused:
            log.warning("the user %d is refused at the API's socket", user)
            transport.write(_REFUSED)
            transport.close()

    def data_received(self, data: bytes) -> None:
        if not self.is_refused:
            super().data_received(data)


class _Server(uvicorn.Server):
    """In somebody else's event loop, whose signals are not its own."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.settled = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.settled.set()


@dataclass
class Place:
    """Where TCP is to be served, and to whom. `problem`: why it is not yet."""

    app: Asgi
    address: str
    port: int
    tls: tuple[str, str] | None
    problem: str = ""
    at: tuple[str, int] = ("", 0)


class Api:
    """The API while it is served. `address`: of the TCP socket; `problem`: why there is none."""

    def __init__(self, served: Served, pair: PairServed) -> None:
        self.served = served
        self._pair = pair
        self._places: list[Place] = []
        self._trying: asyncio.Task[None] | None = None
        self._servers: list[tuple[_Server, asyncio.Task[None]]] = []
        self._path = ""

    async def begin(
        self,
        app: Asgi,
        sock: socket.socket,
        *,
        protocol: type[H11Protocol] = H11Protocol,
        tls: tuple[str, str] | None = None,
    ) -> None:
        """`tls`: files of the certificate and of its key."""
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=CLOSE_S,
            http=protocol,
            h11_max_incomplete_event_size=HEADERS_BYTES,
            ssl_certfile=None if tls is None else tls[0],
            ssl_keyfile=None if tls is None else tls[1],
        )
        try:
            config.load()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            sock.close()
            raise NotServed(
                f"the certificate or its key ([security] in cluster.toml) cannot be used: {error}"
            ) from error
        server = _Server(config)
        task = asyncio.get_running_loop().create_task(server.serve([sock]))
        self._servers.append((server, task))
        settled = asyncio.ensure_future(server.settled.wait())
        await asyncio.wait({settled, task}, return_when=asyncio.FIRST_COMPLETED)
        if not settled.done():
            settled.cancel()
            await task
            raise NotServed("the API's server ended at once")

    async def close(self) -> None:
        """Answers that are on their way are given a moment; streams end. Once."""
        self.served.close()
        self._pair.close()
        if self._trying is not None:
            self._trying.cancel()
        for server, _ in self._servers:
            server.should_exit = True
        for _, task in self._servers:
            await task
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    @property
    def address(self) -> tuple[str, int]:
        return self._places[0].at if self._places else ("", 0)

    @property
    def problem(self) -> str:
        return "; ".join(place.problem for place in self._places if place.problem)

    async def serve_tcp(self, places: list[Place], again_s: float) -> None:
        """At once where it is possible, and in the background until it is."""
        self._places = places
        for place in places:
            await self._try(place)

        async def keep_trying() -> None:
            while self.problem:
                await asyncio.sleep(again_s)
                for place in places:
                    if place.problem:
                        await self._try(place)

        self._trying = asyncio.get_running_loop().create_task(keep_trying())

    async def _try(self, place: Place) -> None:
        """What keeps others from asking must not keep the modules from being looked after: it is tried again later."""
        try:
            sock = tcp_socket(place.address, place.port)
            at = sock.getsockname()[:2]
            await self.begin(place.app, sock, tls=place.tls)
            place.at, place.problem = at, ""
        except NotServed as error:
            if str(error) != place.problem:
                log.error("%s. Until that is put right it is not served there", error)
            place.problem = str(error)

    def listen_locally(self, path: str) -> socket.socket:
        """The Unix socket, for its owner only."""
        sock = local_socket(path)
        self._path = path
        return sock


async def serve(
    supervisor: Supervisor,
    home: Home,
    *,
    server: str,
    port: int = PORT,
    mirrors: Mirrors | None = None,
    again_s: float = AGAIN_S,
    looks: Looks = REAL,
) -> Api:
    """Serve until the Api is closed; TCP as soon as it can be, at the same port as on the other server.

    Raises NotServed where the Unix socket cannot be, KeyError for no server of the pair.
    """
    cluster = supervisor.cluster
    peer = cluster.peer_of(server).name
    asked = mirrors or MirrorSockets(home)
    served = Served(supervisor, home, cluster=cluster.name, server=server, peer=peer, mirrors=asked)
    pair = pair_served(supervisor, home, server, port, forget=served.forget, looks=looks)
    app = app_of(served, pair)
    api = Api(served, pair)
    try:
        await api.begin(local(app), api.listen_locally(home.socket), protocol=_OwnerOnly)
    except NotServed:
        await api.close()
        raise
    await api.serve_tcp(places(app, cluster, server, port, _tls(cluster, home)), again_s)
    return api


def places(app: Asgi, cluster: Cluster, server: str, port: int, tls: tuple[str, str] | None) -> list[Place]:
    """Everybody's, and where that is not this server's own address, the peer's."""
    address, own = address_of(cluster, server), own_address(cluster, server)
    found = [Place(app, address, port, tls)]
    if address != own:
        found.append(Place(peers_only(app), own, port, None))
    return found


def address_of(cluster: Cluster, server: str) -> str:
    """Where to listen: the server's own address, but without TLS only if that never leaves this machine."""
    own = own_address(cluster, server)
    return own if cluster.security.tls is not None or is_loopback(own) else LOOPBACK


def own_address(cluster: Cluster, server: str) -> str:
    return cluster.peer_of(cluster.peer_of(server).name).address


def is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _tls(cluster: Cluster, home: Home) -> tuple[str, str] | None:
    tls = cluster.security.tls
    return None if tls is None else (home.below(tls.certificate), home.below(tls.key))


def tcp_socket(address: str, port: int) -> socket.socket:
    """Raises NotServed."""
    try:
        family, kind, protocol, _, found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise NotServed(f"the API's address {address} cannot be used: {error.strerror}") from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(found)
    except OSError as error:
        sock.close()
        raise NotServed(f"the API cannot listen on {address} port {port}: {error.strerror}") from error
    return sock


def local_socket(path: str) -> socket.socket:
    """Nobody can connect before its mode is set: it does not listen yet. Raises NotServed."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise NotServed(f"{path} is too long for a socket ({LONGEST_PATH} bytes): choose a shorter home directory")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        _remove_stale(path)
        sock.bind(path)
        os.chmod(path, 0o600)
    except OSError as error:
        sock.close()
        raise NotServed(f"the API cannot listen on {path}: {error.strerror}") from error
    except NotServed:
        sock.close()
        raise
    return sock


def _remove_stale(path: str) -> None:
    """What a service left behind that was killed; not the socket of one that runs."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise NotServed(f"another hotpair run serves {path} already")
