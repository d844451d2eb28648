"""`hotpair join`: the second server's home, from the first one's service."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import http.client
import json
import os
import shutil
import ssl
from collections.abc import Mapping
from typing import Any

from hotpair.actors.home import Home
from hotpair.api_values import PORT
from hotpair.certificates_io import make_request
from hotpair.cluster.configuration_files import CLUSTER_FILE
from hotpair.cluster.configuration_io import Modules
from hotpair.cluster.connection_io import parse_address
from hotpair.home_files_io import SERVICE_FILE, NotMade, make_home, refuse_existing
from hotpair.invitations import Token
from hotpair.pair_change import Found
from hotpair.pair_channel_io import PAIR, ended_after, exchange, said_by, text_of
from hotpair.pair_facts_io import found_at, real
from hotpair.pair_files_io import Undo, mark_overwrite
from hotpair.pair_home_io import AUTHORITY, AUTHORITY_KEY, CERTIFICATE, CERTIFICATE_KEY, PAIR_KEY, service_text

JOIN_S = 30.0


def join(home: Home, where: str, token: Token, server: str, *, overwrite: bool) -> list[str]:
    """What else is to be done, line by line. Raises NotMade: nothing was made here."""
    usual = (CLUSTER_FILE, PAIR_KEY, AUTHORITY, AUTHORITY_KEY, CERTIFICATE, CERTIFICATE_KEY)
    refuse_existing(home, dict.fromkeys(usual, ""))  # before the token is used up
    request = make_request(server)
    said = _ask(where, token, {"secret": token.secret.hex(), "server": server, "request": request.text})
    files, key, by_hand = _answer(said)
    files = {**files, key: request.key, SERVICE_FILE: service_text(server)}
    undo = Undo()
    try:
        _, modules = make_home(home, files, lambda checked: _directories(home, checked, undo, overwrite=overwrite))
    except NotMade:
        undo.run()
        raise
    told = [f"put {path} there, as on the other server: it is not below its home" for path in by_hand]
    return [*told, *(f"{name} is a module of the pair: hotpair start {name}" for name in modules.accepted)]


def _directories(home: Home, modules: Modules, undo: Undo, *, overwrite: bool) -> None:
    """Of the pair's modules, which have their data on the other server. Raises NotMade, OSError."""
    for module in modules.accepted.values():
        path = real(home.below(module.directory))
        found = found_at(path)
        if found in (Found.NO_WAY, Found.OTHER, Found.MOUNT):
            raise NotMade(f"{path}, the directory of {module.name}, cannot be used: there is {found.value}")
        if found is Found.FULL and not overwrite:
            raise NotMade(
                f"{path}, the directory of {module.name}, is not empty, and would be overwritten: empty it, or say "
                "--overwrite; and get another token with hotpair invite"
            )
        if found is Found.MISSING:
            os.mkdir(path, 0o700)
            undo.steps.append(functools.partial(os.rmdir, path))
        if found is Found.FULL:
            undo.steps.append(functools.partial(_remove_state, home.module_state(module.name)))
            mark_overwrite(home, module.name)


def _remove_state(path: str) -> None:
    """And what was made above it, as far as it is empty."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.removedirs(os.path.dirname(path))


def _ask(where: str, token: Token, question: Mapping[str, str]) -> bytes:
    """Raises NotMade. Nothing is said before the certificate is known to be the one that the token names."""
    try:
        address = parse_address(where if _has_port(where) else f"{where}:{PORT}")
    except ValueError as error:
        raise NotMade(str(error)) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # its fingerprint is compared
    connection = http.client.HTTPSConnection(address.host, address.port, timeout=JOIN_S, context=context)
    try:
        with ended_after(connection, JOIN_S):
            connection.connect()
            shown = _fingerprint(connection.sock)
            if not hmac.compare_digest(shown, token.fingerprint):
                raise NotMade(
                    f"the server at {address.host} port {address.port} is not the one that the token is from: is the "
                    "address right? If it is, somebody is in between"
                )
            headers = {"Content-Type": "application/json"}
            status, _, said = exchange(connection, "POST", f"{PAIR}/join", json.dumps(question).encode(), headers)
    except (OSError, http.client.HTTPException) as error:
        raise NotMade(
            f"nothing that speaks TLS answers at {address.host} port {address.port} ({said_by(error)}): start hotpair "
            "run on the other server, and open the port there (hotpair firewall)"
        ) from error
    if status != 200:
        raise NotMade(text_of(said, "error") or f"the other server refuses ({status}), without a reason")
    return said


def _has_port(where: str) -> bool:
    return "]:" in where or where.count(":") == 1


def _fingerprint(sock: Any) -> bytes:
    der = sock.getpeercert(binary_form=True)
    return hashlib.sha256(der or b"").digest()


def _answer(said: bytes) -> tuple[dict[str, str], str, list[str]]:
    """Files by their paths below the home, the path of this server's key, what is missing. Raises NotMade."""
    given = json.loads(said)
    files, key = given["files"], given["key"]
    for name in (*files, key):
        if os.path.isabs(name) or ".." in name.split("/") or name.startswith("."):
            raise NotMade(f"the other server sends a file {name!r}, which is not below the home: nothing was made")
    return dict(files), str(key), [str(path) for path in given["by_hand"]]
