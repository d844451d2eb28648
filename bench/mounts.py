"""What is mounted below a directory, and how to get rid of it even when its daemon does not answer."""

import ctypes
import os
from pathlib import Path

MNT_FORCE = 1  # for FUSE: abort the connection, so that whoever waits for an answer gets an error
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def is_mounted(path: Path) -> bool:
    return str(path) in _mount_points()


def unmount(path: Path) -> None:
    """Lift every mount on exactly this path."""
    while is_mounted(path):
        if _libc.umount2(os.fsencode(path), MNT_FORCE | MNT_DETACH):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))


def unmount_below(directory: Path) -> None:
    """Lift every mount on or below a directory, the innermost first."""
    prefix = f"{directory}/"
    for point in sorted(_mount_points(), key=len, reverse=True):
        if point == str(directory) or point.startswith(prefix):
            unmount(Path(point))


def _mount_points() -> list[str]:
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return [line.split()[4].replace("\\040", " ") for line in table]
