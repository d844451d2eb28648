"""How QEMU is called for a description. Pure code: the same description gives the same words.

Disks: `cache=none`, so that what the guest flushes is what the mirror flushes and nothing is kept in the host's page
cache twice. `aio` is `threads` by default: threads of a process that has ended write no more, and they work on every
file system. io_uring is not offered, because its requests may outlive the process in the kernel: a VM whose process
has gone could still write.
"""

from __future__ import annotations

import json
import posixpath
from dataclasses import dataclass

from hotpair.hyperv.qemu_description import Description, Disk, Nic

AGENT_PORT = "org.qemu.guest_agent.0"
NO_ACCELERATION = "tcg"


@dataclass(frozen=True)
class Paths:
    """What is in the state directory."""

    state: str

    @property
    def monitor(self) -> str:
        return posixpath.join(self.state, "qmp.sock")

    @property
    def watch(self) -> str:
        """A second control socket, since each serves one at a time: what is seen must not wait for a save."""
        return posixpath.join(self.state, "watch.sock")

    @property
    def agent(self) -> str:
        return posixpath.join(self.state, "agent.sock")

    @property
    def screen(self) -> str:
        return posixpath.join(self.state, "vnc.sock")

    @property
    def pid_file(self) -> str:
        return posixpath.join(self.state, "qemu.pid")

    @property
    def run(self) -> str:
        return posixpath.join(self.state, "run.json")


def qemu_arguments(
    program: str,
    description: Description,
    module: str,
    directory: str,
    paths: Paths,
    accelerator: str,
    *,
    restoring: bool,
) -> list[str]:
    """The words of the command line. With `restoring` QEMU waits for a saved state and does not let the guest run."""
    words = [program, "-name", f"guest={_doubled(module)}", "-uuid", description.uuid, "-nodefaults", "-no-user-config"]
    words += ["-machine", description.machine, "-accel", accelerator, "-cpu", processor(description, accelerator)]
    words += ["-m", f"size={description.memory >> 20}M", "-smp", str(description.cpus)]
    words += ["-daemonize", "-pidfile", paths.pid_file]
    for name, socket in (("monitor", paths.monitor), ("watch", paths.watch)):
        words += ["-chardev", f"socket,id={name},path={_doubled(socket)},server=on,wait=off"]
        words += ["-mon", f"chardev={name},mode=control"]
    words += _firmware(description, directory)
    words += _display(description, paths)
    if any(disk.interface == "scsi" for disk in description.disks):
        words += ["-device", "virtio-scsi-pci,id=scsi"]
    if any(disk.interface == "sata" for disk in description.disks):
        words += ["-device", "ahci,id=sata"]
    for i, disk in enumerate(description.disks):
        words += _disk(disk, i, directory)
    for i, nic in enumerate(description.nics):
        words += _nic(nic, i)
    if description.guest_agent:
        words += ["-device", "virtio-serial-pci,id=channels"]
        words += ["-chardev", f"socket,id=agent,path={_doubled(paths.agent)},server=on,wait=off"]
        words += ["-device", f"virtserialport,bus=channels.0,chardev=agent,name={AGENT_PORT}"]
    for option in ("kernel", "initrd"):
        if path := getattr(description, option):
            words += [f"-{option}", posixpath.join(directory, path)]
    if description.append:
        words += ["-append", description.append]
    if restoring:
        words += ["-S", "-incoming", "defer"]
    return [*words, *description.arguments]


def processor(description: Description, accelerator: str) -> str:
    """What the server has, where the description does not say."""
    return description.cpu or ("max" if accelerator == NO_ACCELERATION else "host")


def _doubled(value: str) -> str:
    """QEMU's option values end at a comma, unless it is doubled."""
    return value.replace(",", ",,")


def _firmware(description: Description, directory: str) -> list[str]:
    if not description.firmware:
        return []
    words = []
    for unit, path in enumerate((description.firmware, description.firmware_variables)):
        if path:
            read_only = "on" if unit == 0 else "off"
            file = _doubled(posixpath.join(directory, path))
            words += ["-drive", f"if=pflash,unit={unit},format=raw,readonly={read_only},file={file}"]
    return words


def _display(description: Description, paths: Paths) -> list[str]:
    if description.display == "vnc":
        return ["-vga", "std", "-display", "none", "-vnc", f"unix:{_doubled(paths.screen)}"]
    return ["-display", "none"]


def _disk(disk: Disk, number: int, directory: str) -> list[str]:
    read_only = disk.read_only or disk.media == "cdrom"
    node = {
        "node-name": f"disk{number}",
        "driver": disk.format,
        "read-only": read_only,
        "discard": "unmap" if disk.discard else "ignore",
        "cache": {"direct": True, "no-flush": False},
        "file": {
            "driver": "file",
            "filename": posixpath.join(directory, disk.file),
            "aio": disk.aio,
            "cache": {"direct": True, "no-flush": False},
            "discard": "unmap" if disk.discard else "ignore",
        },
    }
    media = "cd" if disk.media == "cdrom" else "hd"
    device = {
        "virtio": "virtio-blk-pci",
        "scsi": f"scsi-{media},bus=scsi.0",
        "sata": f"ide-{media},bus=sata.{number % 6}",
    }[disk.interface]
    cache = "" if disk.media == "cdrom" else ",write-cache=on"
    return ["-blockdev", json.dumps(node), "-device", f"{device},drive=disk{number},bootindex={number + 1}{cache}"]


def _nic(nic: Nic, number: int) -> list[str]:
    backend = {
        "bridge": f"bridge,br={nic.name}",
        "tap": f"tap,ifname={nic.name},script=no,downscript=no",
        "user": "user" + "".join(f",hostfwd={rule}" for rule in nic.forward),
    }[nic.kind]
    return [
        "-netdev",
        f"{backend},id=net{number}",
        "-device",
        f"{nic.model},netdev=net{number},mac={nic.mac}",
    ]
