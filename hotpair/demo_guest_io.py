"""A small Linux guest: a kernel of Debian's and busybox as its only program. For the demonstration and for tests.

The demonstration's guest writes numbers to its disk, one sector each, every one flushed; once a number is on disk it is
said on the second serial line. So what was acknowledged can be held against what is on the disk after a failover.
"""

from __future__ import annotations

import gzip
import lzma
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BUSYBOX = "/bin/busybox"
QEMU = "/usr/bin/qemu-system-x86_64"
SECTOR_BYTES = 512
# In the order in which they need each other; one that is built into the kernel is left out.
DISK_MODULES = (
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
)
BUTTON_MODULES = ("acpi/button", "input/evdev")
FOLDERS = ("bin", "sbin", "dev", "proc", "sys", "modules", "run", "var")

START = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in {modules}; do insmod /modules/$module.ko; done
"""

# A line may be cut in two by the end of the machine: each begins with a new one.
LEDGER = """
last=$(tr -d '\\0 ' </dev/vda | tail -n 1)
count() {
  n=${last:-0}
  while true; do
    n=$((n + 1))
    printf '%-511s\\n' $n | dd of=/dev/vda bs=512 seek=$n count=1 conv=notrunc,fsync 2>/dev/null || break
    printf '\\n%s\\n' $n >/dev/ttyS1
  done
}
count &
"""

BUTTON = """
for event in /sys/class/input/event*; do
  [ "$(cat $event/device/name)" = "Power Button" ] && button=/dev/input/${event##*/}
done
dd if=$button of=/dev/null bs=24 count=1 2>/dev/null
echo button pressed
poweroff -f
"""


class NoGuest(Exception):
    """It cannot be made here; the text says what is missing."""


@dataclass(frozen=True)
class Entry:
    """One file or directory of what a guest starts with."""

    name: str
    mode: int
    data: bytes = b""


@dataclass(frozen=True)
class Kernel:
    """`image`: the kernel. `modules`: content by name, in the order in which they are loaded."""

    image: Path
    modules: dict[str, bytes]


def find_kernel(tree: Path, modules: Sequence[str] = DISK_MODULES + BUTTON_MODULES) -> Kernel:
    """The newest kernel below `tree`, which has boot/ and lib/modules/ as an installed system does. Raises NoGuest."""
    why = f"there is no kernel in {tree / 'boot'} with its modules"
    for image in sorted(tree.glob("boot/vmlinuz-*"), reverse=True):
        folder = _modules_of(tree, image.name.removeprefix("vmlinuz-"))
        missing = [name for name in modules if _module(folder, name) is None and not _is_built_in(folder, name)]
        if not missing:
            found = {name.rpartition("/")[2]: _module(folder, name) for name in modules}
            return Kernel(image, {name: data for name, data in found.items() if data is not None})
        why = f"{image} has no {', '.join(missing)} that can be read"
    raise NoGuest(why)


def _modules_of(tree: Path, version: str) -> Path:
    """An unpacked package has them where it was packed from."""
    packed = tree / "usr" / "lib" / "modules" / version
    return packed if packed.exists() else tree / "lib" / "modules" / version


def _module(folder: Path, name: str) -> bytes | None:
    path = folder / "kernel" / "drivers" / f"{name}.ko"
    if path.exists():
        return path.read_bytes()
    packed = path.with_suffix(".ko.xz")
    return lzma.decompress(packed.read_bytes()) if packed.exists() else None


def _is_built_in(folder: Path, name: str) -> bool:
    listed = folder / "modules.builtin"
    return listed.exists() and f"drivers/{name}.ko" in listed.read_text()


def make_initrd(init: str, kernel: Kernel, content: Iterable[Entry] = ()) -> bytes:
    """`init` with {modules} in it for their names. Raises NoGuest."""
    if not os.path.exists(BUSYBOX):
        raise NoGuest(f"{BUSYBOX} is missing: apt-get install busybox-static")
    entries = [Entry(name, 0o40755) for name in FOLDERS]
    entries.append(Entry("init", 0o100755, init.replace("{modules}", " ".join(kernel.modules)).encode()))
    entries.append(Entry("bin/busybox", 0o100755, Path(BUSYBOX).read_bytes()))
    entries += [Entry(f"modules/{name}.ko", 0o100644, data) for name, data in kernel.modules.items()]
    return gzip.compress(b"".join(_archive([*entries, *content])), 1)


def _archive(content: Sequence[Entry]) -> Iterator[bytes]:
    """The "newc" format: Documentation/driver-api/early-userspace/buffer-format.rst in Linux."""
    for number, entry in enumerate([*content, Entry("TRAILER!!!", 0)], 1):
        header = [number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(entry.name) + 1, 0]
        head = b"070701" + b"".join(b"%08X" % field for field in header) + entry.name.encode() + b"\0"
        yield head + b"\0" * (-len(head) % 4) + entry.data + b"\0" * (-len(entry.data) % 4)


def ledger_guest(tree: Path) -> tuple[bytes, bytes]:
    """Kernel and initrd of the guest that writes numbers. Raises NoGuest."""
    if not os.path.exists(QEMU):
        raise NoGuest(f"{QEMU} is missing: apt-get install qemu-system-x86")
    kernel = find_kernel(tree)
    return kernel.image.read_bytes(), make_initrd(START + LEDGER + BUTTON, kernel)


def numbers_on(disk: bytes) -> list[int]:
    """What that guest has written, in the order of the sectors, up to the first that was never written."""
    end = SECTOR_BYTES  # the first sector is left free
    while disk[end : end + SECTOR_BYTES].strip(b"\0"):
        end += SECTOR_BYTES
    return [int(line) for line in disk[SECTOR_BYTES:end].split()]
