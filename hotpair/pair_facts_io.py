"""What a server finds out about itself before a module is changed. Everything here may block; nothing is changed."""

from __future__ import annotations

import os
import posixpath
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

from hotpair.actors.driver_place import place_of
from hotpair.actors.home import Home
from hotpair.cluster.configuration import Cluster, Module
from hotpair.cluster.configuration_files import MODULES_DIRECTORY, SUFFIX
from hotpair.hyperv import drivers_io
from hotpair.hyperv.errors import UnknownDriver
from hotpair.pair_change import Found
from hotpair.replication import fuse_io, layout, mounts_io
from hotpair.replication.objects_io import PRIVATE_NAME

FUSE_DEVICE = "/dev/fuse"


@dataclass(frozen=True)
class Looked:
    """See pair_change.Facts."""

    directory: str
    found: Found
    port: str
    driver: str
    fuse: str
    disk: str


@dataclass(frozen=True)
class Looks:
    """How this server looks at itself; a test gives others. `fuse` returns a sentence, "" when it is there."""

    fuse: Callable[[], str]
    driver: Callable[[Module, Cluster, Home, str], str]
    port: Callable[[Cluster, str, int], str]


def look(looks: Looks, module: Module, cluster: Cluster, home: Home, server: str, *, is_new: bool) -> Looked:
    """`is_new`: what is needed for a module that is not there yet; the rest of it is looked at when it changes."""
    directory = real(home.below(module.directory))
    found, disk = Found.EMPTY, ""
    if is_new:
        try:
            found = found_at(directory)
        except OSError as error:
            disk = f"{directory} cannot be looked at: {error.strerror}"
        disk = disk or layout.objection_to_name(os.fsencode(directory)) or ""
    return Looked(
        directory=directory,
        found=found,
        port=looks.port(cluster, server, module.mirror_port),
        driver=looks.driver(module, cluster, home, server),
        fuse=looks.fuse(),
        disk=disk,
    )


def real(path: str) -> str:
    """Absolute, without symbolic links; its last part is not looked at: it may be the mount of a dead mirror."""
    path = os.path.abspath(path)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def found_at(path: str) -> Found:
    """Raises OSError. A protected directory counts with the data beside it."""
    name = os.fsencode(path)
    if any(mount.point == name and mount.kind == fuse_io.FUSE_KIND for mount in mounts_io.read_table()):
        return Found.MOUNT
    beside = os.path.join(os.path.dirname(name), layout.SIBLING_PREFIX + os.path.basename(name) + layout.SIBLING_SUFFIX)
    if os.path.lexists(beside):
        return Found.FULL if os.path.isdir(name) else Found.OTHER
    if os.path.islink(name) or (os.path.lexists(name) and not os.path.isdir(name)):
        return Found.OTHER
    if not os.path.lexists(name):
        return Found.MISSING if os.path.isdir(os.path.dirname(name)) else Found.NO_WAY
    with os.scandir(name) as entries:  # what mirrors have left there for themselves is nobody's
        return Found.FULL if any(entry.name != PRIVATE_NAME for entry in entries) else Found.EMPTY


def files_of(home: Home) -> list[str]:
    """Names of the modules that have a file here, wrong or not. Raises OSError."""
    try:
        entries = os.listdir(home.below(MODULES_DIRECTORY))
    except FileNotFoundError:
        return []
    names = (os.path.splitext(entry) for entry in entries if not entry.startswith("."))
    return sorted(name for name, suffix in names if suffix == SUFFIX)


# ---- the real looks


def fuse_problem() -> str:
    """Opening it changes nothing: a connection begins with a mount."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{FUSE_DEVICE} cannot be opened ({error.strerror}): modprobe fuse, or give it to the container"
    return ""


def port_problem(cluster: Cluster, server: str, port: int) -> str:
    """The mirror listens in TCP at the server's address, pulses in UDP at its address on each network."""
    here = cluster.peer_of(cluster.peer_of(server).name)
    wanted = [(here.address, socket.SOCK_STREAM), *((one, socket.SOCK_DGRAM) for one in here.networks.values())]
    for address, kind in wanted:
        try:
            family, _, protocol, _, found = socket.getaddrinfo(address, port, type=kind)[0]
            with socket.socket(family, kind, protocol) as sock:
                if kind is socket.SOCK_STREAM:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(found)
        except OSError as error:
            word = "TCP" if kind is socket.SOCK_STREAM else "UDP"
            return f"mirror_port {port} cannot be used at {address} in {word} ({error.strerror}): give another (--port)"
    return ""


def driver_problem(module: Module, cluster: Cluster, home: Home, server: str) -> str:
    """Whether the driver is installed, and what its own check says.

    Where the data is not yet, what the driver misses in the directory is no problem: it is shown an empty place, and
    what it says about that place is left out.
    """
    has_data = module.data_on in (None, server)
    place = place_of(module, home, server)
    nowhere = posixpath.join(place.state_directory, "not-there-yet")
    if not has_data:
        place = replace(place, directory=nowhere)
    try:
        problems: tuple[str, ...] = drivers_io.make(module.vm.driver, place).check()
    except UnknownDriver as error:
        return str(error)
    mattering = [one for one in problems if has_data or nowhere not in one]
    more = f" (and {len(mattering) - 1} more)" if len(mattering) > 1 else ""
    return mattering[0] + more if mattering else ""


REAL = Looks(fuse_problem, driver_problem, port_problem)
