"""What a domain's XML and virsh's output say, as values. Pure code.

Source of the states and reasons: virsh(1), domstate; libvirt's include/libvirt/libvirt-domain.h.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.parsers.expat import ErrorString

from hotpair.hyperv.driver import VmState

NO_DOMAIN = ("failed to get domain", "Domain not found")
NO_LIBVIRT = ("failed to connect to the hypervisor", "Failed to connect socket")
NO_AGENT = ("agent is not configured", "agent is not connected", "agent is not responding", "agent not available")
_DISKS_ELSEWHERE = ("block", "network", "volume", "nvme", "vhostuser", "dir", "vhostvdpa")


@dataclass(frozen=True)
class Domain:
    """`files`: absolute paths of what the guest writes. `kind`: the domain's type, "kvm" or "qemu" for example."""

    name: str
    uuid: str
    kind: str
    files: tuple[str, ...]
    digest: str


def parse_domain(content: str, module: str, directory: str, file: str) -> tuple[Domain | None, tuple[str, ...]]:
    """The domain, or what is wrong with its XML."""
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError as error:
        line, column = error.position
        return None, (f"{file}, line {line}, column {column + 1}: this is not XML: {ErrorString(error.code)}",)
    if root.tag != "domain":
        return None, (f"{file}: the outermost element is <{root.tag}>: give a <domain>, as from virsh dumpxml",)
    name, uuid = (root.findtext("name") or "").strip(), (root.findtext("uuid") or "").strip().lower()
    problems = []
    if name != module:
        problems.append(f"{file}: <name> is {name!r}: give the module's name, {module}")
    if not re.fullmatch("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", uuid):
        problems.append(f"{file}: give a <uuid>, so that the guest sees the same machine on both servers (uuidgen)")
    files = []
    for disk in root.iterfind("devices/disk"):
        path = _written(disk)
        if path is None:
            continue
        if not path:
            problems.append(
                f'{file}: a <disk type="{disk.get("type")}"> would not be mirrored: '
                'give a <disk type="file"> within the module\'s directory, or add <readonly/>'
            )
        else:
            files.append(path)
    if variables := (root.findtext("os/nvram") or "").strip():
        files.append(variables)
    for path in files:
        if not posixpath.normpath(path).startswith(directory.rstrip("/") + "/"):
            problems.append(f"{file}: {path} is not in the module's directory {directory}, and would not be mirrored")
    digest = hashlib.sha256(content.encode()).hexdigest()
    return Domain(name, uuid, root.get("type", ""), tuple(files), digest), tuple(problems)


def _written(disk: ElementTree.Element) -> str | None:
    """The path of a disk that the guest writes to: "" when it is no file, None for one that is only read."""
    if disk.find("readonly") is not None or disk.get("device") in ("cdrom", "floppy"):
        return None
    source = disk.find("source")
    if disk.get("type", "file") in _DISKS_ELSEWHERE or source is None:
        return ""
    return source.get("file", "")


_STATES: dict[str, tuple[VmState, str]] = {
    "running": (VmState.ON, ""),
    "idle": (VmState.ON, ""),
    "blocked": (VmState.ON, ""),
    "paused": (VmState.ON, "the guest is held"),
    "pmsuspended": (VmState.ON, "the guest has suspended itself"),
    "crashed": (VmState.ON, "the guest has crashed, and is kept"),
    "in shutdown": (VmState.STOPPING, ""),
    "shut off": (VmState.OFF, ""),
}
_REASONS: dict[str, tuple[VmState, str]] = {
    "saving": (VmState.STOPPING, "the state is being saved"),
    "shutting down": (VmState.STOPPING, ""),
    "starting up": (VmState.STARTING, ""),
}
_OUTPUT = re.compile(r"(?P<state>[a-z ]+?)(?: \((?P<reason>.*)\))?")


@dataclass(frozen=True)
class DomainState:
    """`on`: a process of the hypervisor runs it, however well."""

    state: VmState
    detail: str


def parse_state(output: str) -> DomainState | None:
    """Of `virsh domstate --reason`; None for what is not understood."""
    match = _OUTPUT.fullmatch(output.strip())
    if match is None or match["state"] not in _STATES:
        return None
    state, detail = _STATES[match["state"]]
    reason = match["reason"] or ""
    if match["state"] == "paused":
        state, detail = _REASONS.get(reason, (state, f"the guest is held: {reason or 'nobody knows why'}"))
    return DomainState(state, detail)


def says(output: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase.lower() in output.lower() for phrase in phrases)
