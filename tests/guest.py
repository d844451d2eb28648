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
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotpair.demo_guest_io import (
    BUSYBOX,
    BUTTON,
    BUTTON_MODULES,
    DISK_MODULES,
    QEMU,
    SECTOR_BYTES,
    START,
    Entry,
    find_kernel,
    make_initrd,
)

KERNEL_PACKAGE = "linux-image-cloud-amd64"
AGENT = "/usr/sbin/qemu-ga"
MODULES = (*DISK_MODULES, "char/virtio_console", *BUTTON_MODULES)
APPEND = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off tsc=reliable cryptomgr.notests audit=0"  # boots sooner

SIGNS = """
boot=$(cat /proc/sys/kernel/random/uuid)
count() {
  n=0
  while true; do
    n=$((n + 1))
    printf '%-512s' "$boot $n" | dd of=/dev/vda bs=512 count=1 conv=notrunc,fsync 2>/dev/null
    usleep 200000
  done
}
[ -e /dev/vda ] && count &
for port in /sys/class/virtio-ports/*; do
  [ "$(cat $port/name 2>/dev/null)" = org.qemu.guest_agent.0 ] && agent=/dev/${port##*/}
done
grep -q agent=none /proc/cmdline && agent=
[ -n "$agent" ] && mkdir -p /run /var/run && /sbin/qemu-ga -m virtio-serial -p $agent -t /run -f /run/ga.pid &
echo guest ready
if grep -q button=ignored /proc/cmdline; then while true; do sleep 1000; done; fi
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
    for needed in (BUSYBOX, AGENT, QEMU):
        if not os.path.exists(needed):
            pytest.skip(f"{needed} is missing: make packages")
    cache.mkdir(parents=True, exist_ok=True)
    guest = Guest(cache / "kernel", cache / "unpacked-initrd")
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (guest.kernel.exists() and guest.initrd.exists()):
            kernel = find_kernel(_unpacked_kernel(cache), MODULES)
            # Without acceleration to unpack it takes longer than to read it
            guest.initrd.write_bytes(gzip.decompress(make_initrd(START + SIGNS + BUTTON, kernel, _agent())))
            guest.kernel.write_bytes(kernel.image.read_bytes())
    return guest


def kernel_tree(cache: Path) -> Path:
    """Where boot/ and lib/modules/ of an unpacked kernel are. Skips the test when there can be none."""
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _unpacked_kernel(cache)


def _unpacked_kernel(cache: Path) -> Path:
    tree = cache / "tree"
    if tree.exists():
        return tree
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
    subprocess.run(["dpkg", "-x", archive, cache / "part"], check=True)
    archive.unlink()
    (cache / "part").rename(tree)
    return tree


def _kernel_package() -> str | None:
    depends = subprocess.run(["apt-cache", "depends", KERNEL_PACKAGE], capture_output=True, text=True, check=False)
    found = re.search(r"Depends: (linux-image-\S+)", depends.stdout)
    return None if found is None else found[1]


def _agent() -> Iterator[Entry]:
    """The guest agent and the libraries that it needs."""
    yield Entry("sbin/qemu-ga", 0o100755, Path(AGENT).read_bytes())
    libraries = subprocess.run(["ldd", AGENT], capture_output=True, text=True, check=True).stdout
    made: set[str] = set()
    for library in re.findall(r"(/\S+) \(0x", libraries):
        parts = library.strip("/").split("/")
        for length in range(1, len(parts)):
            directory = "/".join(parts[:length])
            if directory not in made:
                made.add(directory)
                yield Entry(directory, 0o40755)
        yield Entry(library.strip("/"), 0o100755, Path(library).read_bytes())
