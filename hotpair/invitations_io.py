"""The first server's side of `hotpair invite` and `hotpair join`.

The running service answers who joins, and `invite` only leaves the digest of a new token where the service looks: one
server of HTTP and one certificate is enough, and the first server can already run when the second one is prepared.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hotpair.actors.home import Home
from hotpair.certificates_io import BadCertificate, Pem, fingerprint, sign
from hotpair.cluster.configuration import Cluster
from hotpair.cluster.configuration_files import CLUSTER_FILE, MODULES_DIRECTORY, SUFFIX
from hotpair.cluster.configuration_io import (
    LARGEST_FILE_BYTES,
    load_cluster,
    load_modules,
)
from hotpair.cluster.configuration_keys import ConfigurationError
from hotpair.cluster.record_io import OsFiles, replace_file
from hotpair.invitations import (
    LARGEST_FILE_BYTES as LARGEST_INVITATION_BYTES,
)
from hotpair.invitations import (
    SECRET_BYTES,
    Invitation,
    NotInvited,
    Token,
    check,
    decode,
    digest_of,
    encode,
    token_text,
)
from hotpair.pair_home_io import AUTHORITY_KEY

INVITATION_FILE = "invitation"  # in the state directory: the last one counts


class CannotInvite(Exception):
    """There is nothing that a second server could be given; the text says why."""


def invite(home: Home, minutes: float, now: Callable[[], float] = time.time) -> str:
    """A new token, which is nowhere but in what is returned. Raises CannotInvite, ConfigurationError."""
    cluster = load_cluster(home.configuration)
    tls = cluster.security.tls
    if tls is None:
        raise CannotInvite("this pair has no TLS (tls = false): copy cluster.toml, pair.key and modules/ by hand")
    secret = secrets.token_bytes(SECRET_BYTES)
    try:
        token = Token(secret, fingerprint(_read(home.below(tls.certificate))))
        _read(home.below(AUTHORITY_KEY))
        os.makedirs(home.state, mode=0o700, exist_ok=True)
        invitation = Invitation(digest_of(secret), now() + 60 * minutes)
        replace_file(_path(home), encode(invitation), OsFiles(), "invitation")
    except OSError as error:
        raise CannotInvite(
            f"{error.filename}: {error.strerror}. A second server can be invited where hotpair init or join has been"
        ) from error
    except BadCertificate as error:
        raise CannotInvite(f"{home.below(tls.certificate)}: {error}") from error
    return token_text(token)


class Welcome:
    """Lets the second server in, once for each invitation."""

    def __init__(self, home: Home, cluster: Cluster, server: str, now: Callable[[], float] = time.time) -> None:
        self._home = home
        self._cluster = cluster
        self._server = server
        self._now = now
        self._thread = ThreadPoolExecutor(1, "join")  # one after the other: an invitation is used once

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def let_in(self, body: bytes) -> dict[str, Any]:
        """The second server's files. Raises NotInvited."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._let_in, body)

    def _let_in(self, body: bytes) -> dict[str, Any]:
        secret, server, request = _question(body)
        check(self._invitation(), secret, self._now(), self._server)
        peer = self._cluster.peer_of(self._server)
        if server != peer.name:
            raise NotInvited(f"the other server of {self._cluster.name} is {peer.name}, not {server[:40]}: --server")
        try:
            answer = self._files(request)
        except OSError as error:
            raise NotInvited(f"{error.filename} cannot be read on {self._server}: {error.strerror}") from error
        except (BadCertificate, ConfigurationError) as error:
            raise NotInvited(f"on {self._server}: {str(error).splitlines()[0]}") from error
        try:
            os.unlink(_path(self._home))  # before anything is said: nobody else is let in by it
        except OSError as error:
            raise NotInvited(f"{_path(self._home)} cannot be removed on {self._server}: {error.strerror}") from error
        return answer

    def _invitation(self) -> Invitation | None:
        try:
            with open(_path(self._home), "rb") as opened:
                return decode(opened.read(LARGEST_INVITATION_BYTES))
        except OSError:
            return None

    def _files(self, request: str) -> dict[str, Any]:
        """Raises OSError, BadCertificate, ConfigurationError."""
        cluster, home = self._cluster, self._home
        tls, peer = cluster.security.tls, cluster.peer_of(self._server)
        if tls is None:
            raise BadCertificate("this pair has no TLS (tls = false)")
        names = [CLUSTER_FILE, cluster.security.key_file, tls.authority, AUTHORITY_KEY]
        names += [f"{MODULES_DIRECTORY}/{name}{SUFFIX}" for name in load_modules(home.configuration, cluster).accepted]
        arbiter = cluster.arbitration
        if "key_file" in arbiter.options:
            names.append(arbiter.options["key_file"])
        own = {tls.certificate, tls.key}
        if arbiter.tls is not None:
            names += [
                one for one in (arbiter.tls.authority, arbiter.tls.certificate, arbiter.tls.key) if one not in own
            ]
        by_hand = sorted({name for name in names if os.path.isabs(name)})
        files = {name: _read(home.below(name)) for name in names if name not in by_hand}
        authority = Pem(_read(home.below(tls.authority)), _read(home.below(AUTHORITY_KEY)))
        files[tls.certificate] = sign(authority, request, peer.name, peer.address)
        return {"files": files, "key": tls.key, "by_hand": by_hand}


def _question(body: bytes) -> tuple[bytes, str, str]:
    """Raises NotInvited."""
    try:
        given = json.loads(body)
        return bytes.fromhex(given["secret"]), str(given["server"]), str(given["request"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotInvited("this is no request to join") from error


def _read(path: str) -> str:
    """Raises OSError."""
    with open(path, encoding="utf-8") as opened:
        return opened.read(LARGEST_FILE_BYTES)


def _path(home: Home) -> str:
    return os.path.join(home.state, INVITATION_FILE)
