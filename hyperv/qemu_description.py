"""What vm.toml says: a QEMU virtual machine as values, checked. Pure code.

Must not know: files, whether a disk exists, how QEMU is called (qemu_arguments.py).
"""

from __future__ import annotations

import hashlib
import tomllib
import uuid
from dataclasses import dataclass
from typing import Any

from hotpair.cluster.configuration_keys import (
    REQUIRED,
    ConfigurationError,
    Key,
    Problem,
    Report,
    choice,
    flag,
    list_of,
    read_table,
    size,
    text,
    whole,
)
from hotpair.hyperv.options import file_or_none, inside, text_or_none

LARGEST_MEMORY = 1 << 44
DISKS = 16
NICS = 8
_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_MAC = "[0-9a-f][02468ace](:[0-9a-f]{2}){5}"
_NAMESPACE = uuid.UUID("8d0de0c4-30f0-4d5b-9c5e-6f0a3c7b51d2")  # of machine ids; never change it

VM = (
    Key("memory", size(16 << 20, LARGEST_MEMORY), REQUIRED, "The guest's memory"),
    Key("cpus", whole(1, 512), 1, "Processors"),
    Key(
        "machine",
        text("a machine type of QEMU"),
        "q35",
        'Name one with its version ("pc-q35-7.2") when states are saved and the servers\' QEMUs may differ',
    ),
    Key(
        "cpu",
        text_or_none("a processor model of QEMU"),
        "",
        "By default what the server has; name a model that both servers have when states are saved",
    ),
    Key(
        "uuid",
        text_or_none("a UUID in lower case", _UUID),
        "",
        "The machine's id; by default made of the module's name",
    ),
    Key("firmware", file_or_none(), "", "Code of a UEFI firmware; by default the BIOS"),
    Key("firmware_variables", text_or_none("a file below the module's directory"), "", "The UEFI firmware's variables"),
    Key("kernel", file_or_none(), "", "A Linux kernel to start without a boot disk"),
    Key("initrd", file_or_none(), "", "Its initial RAM disk"),
    Key("append", text_or_none("a kernel command line"), "", "Its command line"),
    Key("display", choice("none", "vnc"), "none", "vnc: on the Unix socket vnc.sock in the state directory"),
    Key("guest_agent", flag(), True, "A channel for qemu-ga, by which the guest's heartbeat is seen"),
    Key("arguments", list_of(text(""), 0), [], "More arguments for QEMU, as they are"),
)

DISK = (
    Key("file", inside(), REQUIRED, "The image"),
    Key("format", choice("raw", "qcow2"), "raw", "Its format"),
    Key("interface", choice("virtio", "scsi", "sata"), "virtio", "What the guest sees"),
    Key("media", choice("disk", "cdrom"), "disk", "cdrom: read only, interface sata or scsi"),
    Key("read_only", flag(), False, "Whether the guest may only read it"),
    Key("discard", flag(), True, "Whether what the guest discards is given back to the file system"),
    Key("aio", choice("threads", "native"), "threads", "How QEMU waits for the disk"),
)

NIC = (
    Key("kind", choice("bridge", "tap", "user"), REQUIRED, "What it is connected to on the server"),
    Key("name", text_or_none("an interface name", "[A-Za-z0-9_.-]{1,15}"), "", "The bridge's or the tap interface's"),
    Key("model", text("a network device of QEMU", "[A-Za-z0-9_-]+"), "virtio-net-pci", "What the guest sees"),
    Key(
        "mac",
        text_or_none("a MAC address in lower case", _MAC),
        "",
        "By default made of the module's name and the card's place, so that both servers have the same one",
    ),
    Key("forward", list_of(text("", "(tcp|udp):[^,]*"), 0), [], 'kind user only: for example "tcp:127.0.0.1:2222-:22"'),
)


@dataclass(frozen=True)
class Disk:
    file: str
    format: str
    interface: str
    media: str
    read_only: bool
    discard: bool
    aio: str


@dataclass(frozen=True)
class Nic:
    kind: str
    name: str
    model: str
    mac: str
    forward: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """`memory` in bytes. Paths as in the file. `digest` names the content of the file, in hexadecimal digits."""

    memory: int
    cpus: int
    machine: str
    cpu: str
    uuid: str
    firmware: str
    firmware_variables: str
    kernel: str
    initrd: str
    append: str
    display: str
    guest_agent: bool
    arguments: tuple[str, ...]
    disks: tuple[Disk, ...]
    nics: tuple[Nic, ...]
    digest: str


def parse_description(content: str, module: str, file: str) -> Description:
    """Raises ConfigurationError with all that is wrong."""
    try:
        top = tomllib.loads(content)
    except (ValueError, RecursionError) as error:  # says line and column
        raise ConfigurationError([Problem(file, None, "", f"this is not TOML: {error}")]) from error
    report = Report(file, content)
    values = read_table(VM, top, (), report, ("disks", "nics"))
    disks = tuple(Disk(**table) for table in _tables("disks", DISK, DISKS, top, report))
    nics = tuple(_nic(table, i, module) for i, table in enumerate(_tables("nics", NIC, NICS, top, report)))
    report.end()
    values["uuid"] = values["uuid"] or str(uuid.uuid5(_NAMESPACE, module))
    digest = hashlib.sha256(content.encode()).hexdigest()
    description = Description(disks=disks, nics=nics, digest=digest, **values)
    _check(description, report)
    report.end()
    return description


def _tables(name: str, keys: tuple[Key, ...], most: int, top: dict[str, Any], report: Report) -> list[dict[str, Any]]:
    tables = top.get(name, [])
    if not isinstance(tables, list) or len(tables) > most:
        report.say((name,), f"give at most {most} tables [[{name}]]")
        return []
    read = [read_table(keys, table, (name, i), report) for i, table in enumerate(tables)]
    return [values for values in read if len(values) == len(keys)]


def _nic(values: dict[str, Any], place: int, module: str) -> Nic:
    made = hashlib.sha256(f"hotpair mac {module} {place}".encode()).digest()
    mac = values.pop("mac") or "52:54:00:" + ":".join(f"{byte:02x}" for byte in made[:3])
    return Nic(mac=mac, **values)


def _check(description: Description, report: Report) -> None:
    """What must fit together."""
    files = [disk.file for disk in description.disks]
    for i, disk in enumerate(description.disks):
        if disk.media == "cdrom" and disk.interface == "virtio":
            report.say(("disks", i, "interface"), 'a cdrom cannot be "virtio": give "sata" or "scsi"')
        if disk.file in files[:i]:
            report.say(("disks", i, "file"), "another disk has the same file: each needs its own")
    for i, nic in enumerate(description.nics):
        if (nic.kind == "user") is bool(nic.name):
            report.say(("nics", i, "name"), "give the interface's name" if nic.kind != "user" else "user has no name")
        if nic.forward and nic.kind != "user":
            report.say(("nics", i, "forward"), 'ports are forwarded with kind = "user" only: remove it')
        if nic.mac in [other.mac for other in description.nics[:i]]:
            report.say(("nics", i, "mac"), "another card has the same address: each needs its own")
    if description.firmware_variables and not description.firmware:
        report.say(("firmware_variables",), "they need a firmware: give it, or remove this key")
    for key in ("initrd", "append"):
        if getattr(description, key) and not description.kernel:
            report.say((key,), "it needs a kernel: give one, or remove this key")
    if not (description.disks or description.kernel):
        report.say(("disks",), "there is nothing to start from: give a disk or a kernel")
