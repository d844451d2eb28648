"""The files of a new home: staged beside their places, checked there, then moved in, cluster.toml last.

A home without cluster.toml is none: what is interrupted leaves at most files that the next attempt names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import ssl
import tempfile
from collections.abc import Callable, Mapping

from hotpair.actors.home import Home
from hotpair.cluster.configuration import Cluster
from hotpair.cluster.configuration_files import CLUSTER_FILE
from hotpair.cluster.configuration_io import (
    BadKey,
    Modules,
    load_cluster,
    load_key,
    load_modules,
)
from hotpair.cluster.configuration_keys import ConfigurationError
from hotpair.replication.state_files_io import flush_directory, open_private

SERVICE_FILE = "service.env"  # for the systemd unit; the one file that may be there before, and is written over


class NotMade(Exception):
    """There is no home where there was none before; the text says why and what to do."""


def refuse_existing(home: Home, files: Mapping[str, str]) -> None:
    """Raises NotMade when there is a configuration already, or what is left of one."""
    if os.path.lexists(home.cluster_file):
        raise NotMade(f"there is a configuration already: {home.cluster_file}. Choose another --home, or move it away")
    for name in files:
        if name != SERVICE_FILE and os.path.lexists(home.below(name)):
            raise NotMade(
                f"{home.below(name)} is there, without a cluster.toml: it is of your own, or left by an interrupted "
                "command. Move it away first"
            )
    left = os.path.join(home.state, "modules")
    with contextlib.suppress(FileNotFoundError):
        if os.listdir(left):
            raise NotMade(f"{left} has the state of other modules: move it away first")


def make_home(
    home: Home, files: Mapping[str, str], before: Callable[[Modules], None] = lambda modules: None
) -> tuple[Cluster, Modules]:
    """`files`: texts by their paths below the home, cluster.toml among them. All of them, or none. Raises NotMade.

    `before` is called when they are right, and before any is in its place; it may raise NotMade or OSError.
    """
    refuse_existing(home, files)
    made: list[str] = []
    try:
        _directories(home.configuration, made)
        staged = tempfile.mkdtemp(prefix=".new-", dir=home.configuration)
        try:
            for name, text in files.items():
                _write(os.path.join(staged, name), text)
            checked = _checked(staged)
            before(checked[1])
            for name in sorted(files, key=lambda one: (one == CLUSTER_FILE, one == SERVICE_FILE, one)):
                _directories(os.path.dirname(home.below(name)), made)
                _move(os.path.join(staged, name), home.below(name), made)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
    except (OSError, NotMade) as error:
        _unmake(made)
        if isinstance(error, OSError):
            raise NotMade(f"{error.filename or home.configuration}: {error.strerror or error}") from error
        raise
    return checked


def _checked(staged: str) -> tuple[Cluster, Modules]:
    """Loads as the service will. Raises NotMade."""
    try:
        cluster = load_cluster(staged)
        load_key(os.path.join(staged, cluster.security.key_file))
        if cluster.arbitration.kind == "witness":
            load_key(os.path.join(staged, cluster.arbitration.options["key_file"]))
        modules = load_modules(staged, cluster)
    except (ConfigurationError, BadKey) as error:
        raise NotMade(" ".join(str(error).split("\n")[0].split())) from error
    for refused in modules.refused.values():
        raise NotMade(str(refused.problems[0]))
    tls = cluster.security.tls
    if tls is not None:
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_verify_locations(os.path.join(staged, tls.authority))
            context.load_cert_chain(os.path.join(staged, tls.certificate), os.path.join(staged, tls.key))
        except OSError as error:
            raise NotMade(f"the certificates do not go together: {error}") from error
    return cluster, modules


def _directories(path: str, made: list[str]) -> None:
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for one in reversed(missing):
        os.mkdir(one, 0o700)
        made.append(one)


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with open(path, "x", encoding="utf-8", opener=open_private) as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())


def _move(source: str, destination: str, made: list[str]) -> None:
    """Never over a file that is there, but for the one that says the server's name. Raises OSError."""
    if os.path.basename(destination) == SERVICE_FILE:
        if not os.path.lexists(destination):
            made.append(destination)
        os.replace(source, destination)
    else:
        os.link(source, destination)
        made.append(destination)
    flush_directory(os.path.dirname(destination))


def _unmake(made: list[str]) -> None:
    for path in reversed(made):
        with contextlib.suppress(OSError):  # a directory that others use by now
            (os.rmdir if os.path.isdir(path) else os.unlink)(path)
