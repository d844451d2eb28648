"""One archive for whoever helps: what there is to know of this server, without its secrets.

Files of keys and tokens are not taken. What is taken is searched for what those files hold, and for what looks like a
secret, and that is blacked out: a log or a configuration may have been given one by mistake.
"""

from __future__ import annotations

import io
import json
import os
import platform
import re
import sys
import tarfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

from hotpair import __version__
from hotpair.actors.home import Home
from hotpair.client import ApiError, Client
from hotpair.cluster.configuration_files import CLUSTER_FILE, MODULES_DIRECTORY, SUFFIX
from hotpair.cluster.configuration_io import load_cluster
from hotpair.cluster.configuration_keys import ConfigurationError
from hotpair.cluster.record import RecordDamaged, RecordVersion
from hotpair.cluster.record_io import RecordNotStored
from hotpair.cluster.record_io import load as load_record
from hotpair.record_shown import readable
from hotpair.tokens_io import TOKENS_FILE

LARGEST_PART_BYTES = 4 << 20  # of a file, its end
SHORTEST_SECRET = 8  # bytes: shorter lines of a key file are no secret by themselves
BLACK = b"[removed]"
PACKAGES = ("ray", "msgpack", "psutil", "fastapi", "uvicorn", "pydantic", "rich", "prometheus-client")

_PEM = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_ASSIGNED = re.compile(
    rb"""(?ix) ( [\w.-]* (?: password | passwd | passphrase | secret | token | api_?key | credential ) [\w-]*
         ["']? \s* [=:] \s* ) ( "(?:\\.|[^"\\\n])*" | '[^'\n]*' | [^\s,;}\]]+ )"""
)
_BEARER = re.compile(rb"(?i)(authorization: *\w+ +|bearer +)[\w.~+/=-]+")


class NotCollected(Exception):
    """The archive cannot be made; the text says why."""


class Blackener:
    """Removes secrets from bytes: those given, and what looks like one."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        self._secrets = sorted({one for one in secrets if len(one) >= SHORTEST_SECRET}, key=len, reverse=True)

    def clean(self, data: bytes) -> bytes:
        data = _PEM.sub(BLACK, data)
        for secret in self._secrets:
            data = data.replace(secret, BLACK)
        data = _BEARER.sub(rb"\1" + BLACK, data)
        return _ASSIGNED.sub(rb'\1"' + BLACK + rb'"', data)


def collect(home: Home, out: str | None) -> str:
    """The archive's path. Never writes over a file. Raises NotCollected."""
    path = os.path.abspath(out or time.strftime("hotpair-support-%Y%m%d-%H%M%S.tar.gz"))
    blackener = Blackener(secrets_of(home))
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as opened, tarfile.open(fileobj=opened, mode="w:gz") as archive:
            for name, data in _parts(home):
                clean = blackener.clean(data)
                entry = tarfile.TarInfo(f"hotpair-support/{name}")
                entry.size, entry.mtime, entry.mode = len(clean), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(clean))
    except OSError as error:
        raise NotCollected(f"{path} cannot be written: {error.strerror}") from error
    return path


def secrets_of(home: Home) -> set[bytes]:
    """What the files of keys and tokens hold: whole, line by line, and keys also as bytes."""
    found: set[bytes] = set()
    for path in _secret_files(home):
        text = _end_of(path, LARGEST_PART_BYTES) or b""
        found |= {text.strip(), *(line.strip() for line in text.splitlines() if not line.startswith(b"-----"))}
    for text in tuple(found):
        if re.fullmatch(rb"[0-9A-Fa-f]{32,}", text):
            found |= {bytes.fromhex(text.decode()), text.lower(), text.upper()}
    for digest in re.findall(rb'"([0-9a-fA-F]{64})"', _end_of(home.below(TOKENS_FILE), LARGEST_PART_BYTES) or b""):
        found.add(digest)
    return found - {b""}


def _secret_files(home: Home) -> set[str]:
    """Those that the configuration names, and those that have such names."""
    found = {home.below(name) for name in ("pair.key", "witness.key", "tls/server.key", "tls/authority.key")}
    found.add(os.path.join(home.ray, "token"))
    try:
        cluster = load_cluster(home.configuration)
    except ConfigurationError:
        return found  # it is in the archive as it is, and says what is wrong
    found.add(home.below(cluster.security.key_file))
    for tls in (cluster.security.tls, cluster.arbitration.tls):
        if tls is not None:
            found.add(home.below(tls.key))
    if "key_file" in cluster.arbitration.options:
        found.add(home.below(cluster.arbitration.options["key_file"]))
    return found


# ---- what goes in


def _parts(home: Home) -> Iterable[tuple[str, bytes]]:
    """Name in the archive, and content. Nothing that is missing keeps the rest out."""
    yield "versions.json", _json(_versions())
    yield from _file(CLUSTER_FILE, home.cluster_file)
    for entry in _listed(os.path.join(home.configuration, MODULES_DIRECTORY)):
        if entry.endswith(SUFFIX):
            yield from _file(f"modules/{entry}", os.path.join(home.configuration, MODULES_DIRECTORY, entry))
    for module in _listed(os.path.join(home.state, "modules")):
        for path in (home.event_log(module), home.mirror_log(module), home.application_log(module)):
            for each in (path + ".1", path):
                yield from _file(f"state/{module}/{os.path.basename(each)}", each)
        yield from _file(f"state/{module}/wishes", os.path.join(home.module_state(module), "wishes"))
        yield f"state/{module}/record.json", _record(os.path.join(home.mirror_state(module), "record"))
    yield "service.json", _json(_service(home))
    for name in ("loadavg", "meminfo", "mounts", "uptime"):
        yield from _file(f"host/{name}", f"/proc/{name}")


def _versions() -> dict[str, str]:
    found = {"hotpair": __version__, "python": sys.version, "system": " ".join(platform.uname())}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _service(home: Home) -> dict[str, object]:
    """What the running service says, as far as it does."""
    try:
        with Client.here(home) as client:
            modules = client.modules()
            return {
                "server": asdict(client.server()),
                "modules": [asdict(client.details(one.module)) for one in modules],
                "events": client.events(limit=1000),
                "metrics": client.metrics(),
            }
    except ApiError as error:
        return {"problem": str(error)}


def _record(path: str) -> bytes:
    try:
        return _json(readable(load_record(path)))
    except (RecordDamaged, RecordVersion, RecordNotStored) as error:
        return _json({"problem": str(error)})


def _file(name: str, path: str) -> Iterable[tuple[str, bytes]]:
    data = _end_of(path, LARGEST_PART_BYTES)
    if data is not None:
        yield name, data


def _end_of(path: str, most: int) -> bytes | None:
    """None where there is no such file. One that cannot be read says why instead."""
    try:
        with open(path, "rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            opened.seek(max(0, size - most))
            return opened.read(most)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return f"(it cannot be read: {error.strerror})".encode()


def _listed(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2, ensure_ascii=False).encode(errors="replace")
