"""A small Linux guest for tests: Debian's kernel, unpacked and not installed, and busybox as its only program.

It writes `BOOT COUNT` into the first sector of its disk five times a second, BOOT being another word at each boot and
COUNT a number in its memory: what the disk says tells whether a guest was booted or went on. The power button powers
it off, unless `button=ignored` is on the kernel's command line. With the guest agent's channel there is an agent in it
(`agent=none` leaves it out).
"""

from __future__ import annotations

import fcntl
import gzip
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX = "/bin/busybox"
AGENT = "/usr/sbin/qemu-ga"
# In the order in which they need each other.
MODULES = [
    "virtio/virtio_ring",
    "virtio/virtio",
    "virtio/virtio_pci_modern_dev",
    "virtio/virtio_pci_legacy_dev",
    "virtio/virtio_pci",
    "block/virtio_blk",
    "char/virtio_console",
    "acpi/button",
    "input/evdev",
]
SECTOR_BYTES = 512
APPEND = "console=ttyS0 quiet panic=-1"

INIT = """#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in {modules}; do insmod /modules/$module.ko; done
boot=$(cat /proc/sys/kernel/random/uuid)
count() {{
  n=0
  while true; do
    n=$((n + 1))
    printf '%-512s' "$boot $n" | dd of=/dev/vda bs=512 count=1 conv=notrunc,fsync 2>/dev/null
    usleep 200000
  done
}}
[ -e /dev/vda ] && count &
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ] && agent=/dev/${{port##*/}}
done
grep -q agent=none /proc/cmdline && agent=
[ -n "$agent" ] && mkdir -p /run /var/run && /sbin/qemu-ga -m virtio-serial -p $agent -t /run -f /run/ga.pid &
echo guest ready
if grep -q button=ignored /proc/cmdline; then while true; do sleep 1000; done; fi
for event in /sys/class/input/event*; do
  [ "$(cat $event/device/name)" = "Power Button" ] && button=/dev/input/${{event##*/}}
done
dd if=$button of=/dev/null bs=24 count=1 2>/dev/null
echo button pressed
poweroff -f
"""


@dataclass(frozen=True)
class Guest:
    """Paths on this machine."""

    kernel: Path
    initrd: Path


@dataclass(frozen=True)
class Sign:
    """What the guest last wrote to its disk."""

    boot: str
    count: int


def read_sign(disk: Path) -> Sign | None:
    """None before the guest has written anything."""
    with disk.open("rb") as file:
        words = file.read(SECTOR_BYTES).rstrip(b"\0").decode().split()
    return Sign(words[0], int(words[1])) if len(words) == 2 else None


def wait_for_sign(disk: Path, other_than: Sign | None = None, more: int = 1, timeout_s: float = 60) -> Sign:
    """The sign once it has counted `more` beyond `other_than`, or is of another boot. AssertionError at the limit."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        sign = read_sign(disk)
        if sign is not None and (other_than is None or _is_beyond(sign, other_than, more)):
            return sign
        time.sleep(0.05)  # a disk has no event
    raise AssertionError(f"{disk} says {read_sign(disk)} after {timeout_s} s")


def _is_beyond(sign: Sign, other: Sign, more: int) -> bool:
    return sign.boot != other.boot or sign.count >= other.count + more


def build(cache: Path) -> Guest:
    """Make the guest below `cache`, once for all processes that ask. Skips the test when it cannot be made."""
    for needed in (BUSYBOX, AGENT, "/usr/bin/qemu-system-x86_64"):
        if not os.path.exists(needed):
            pytest.skip(f"{needed} is missing: make packages")
    cache.mkdir(parents=True, exist_ok=True)
    guest = Guest(cache / "kernel", cache / "initrd")
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (guest.kernel.exists() and guest.initrd.exists()):
            tree = _unpacked_kernel(cache)
            guest.initrd.write_bytes(gzip.compress(b"".join(_archive(_content(tree))), 1))
            (kernel,) = (tree / "boot").glob("vmlinuz-*")
            kernel.rename(guest.kernel)
            shutil.rmtree(tree)
    return guest


def _unpacked_kernel(cache: Path) -> Path:
    package = _kernel_package()
    if package is None and os.geteuid() == 0:  # a new image of Debian has no lists of packages
        subprocess.run(["apt-get", "update", "-qq"], check=False)
        package = _kernel_package()
    if package is None:
        pytest.skip(f"apt knows no {KERNEL_PACKAGE}")
    done = subprocess.run(["apt-get", "download", package], cwd=cache, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{package} cannot be downloaded: {done.stderr.strip()[-300:]}")
    (archive,) = cache.glob(f"{package}_*.deb")
    subprocess.run(["dpkg", "-x", archive, cache / "tree"], check=True)
    archive.unlink()
    return cache / "tree"


def _kernel_package() -> str | None:
    depends = subprocess.run(["apt-cache", "depends", KERNEL_PACKAGE], capture_output=True, text=True, check=False)
    found = re.search(r"Depends: (linux-image-\S+)", depends.stdout)
    return None if found is None else found[1]


def _content(tree: Path) -> Iterator[tuple[str, int, bytes]]:
    """Name, mode and content of what the guest starts with."""
    for directory in ("bin", "sbin", "dev", "proc", "sys", "modules", "run", "var"):
        yield directory, 0o40755, b""
    yield "init", 0o100755, INIT.format(modules=" ".join(name.rpartition("/")[2] for name in MODULES)).encode()
    yield "bin/busybox", 0o100755, Path(BUSYBOX).read_bytes()
    (drivers,) = (tree / "lib" / "modules").glob("*/kernel/drivers")
    for name in MODULES:
        yield f"modules/{name.rpartition('/')[2]}.ko", 0o100644, (drivers / f"{name}.ko").read_bytes()
    yield "sbin/qemu-ga", 0o100755, Path(AGENT).read_bytes()
    libraries = subprocess.run(["ldd", AGENT], capture_output=True, text=True, check=True).stdout
    made: set[str] = set()
    for library in re.findall(r"(/\S+) \(0x", libraries):
        parts = library.strip("/").split("/")
        for length in range(1, len(parts)):
            directory = "/".join(parts[:length])
            if directory not in made:
                made.add(directory)
                yield directory, 0o40755, b""
        yield library.strip("/"), 0o100755, Path(library).read_bytes()


def _archive(content: Iterator[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """The "newc" format: Documentation/driver-api/early-userspace/buffer-format.rst in Linux."""
    for number, (name, mode, data) in enumerate([*content, ("TRAILER!!!", 0, b"")], 1):
        header = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        entry = b"070701" + b"".join(b"%08X" % field for field in header) + name.encode() + b"\0"
        yield entry + b"\0" * (-len(entry) % 4) + data + b"\0" * (-len(data) % 4)
