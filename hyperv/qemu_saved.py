"""When a saved state may be used. Pure code.

A saved state is the guest's memory at one moment. It fits the disks as they were at that moment, and no others: a
guest that goes on from it writes back what it still has in memory, over anything that was written since. So it is used
at most once, and never when a disk may have changed.

What makes it stale, and what is done about it:

- The VM was started, with it or without. Before any guest runs, the document that makes the state valid is removed,
  durably and on both copies. A crash after that costs the state, as a power cut costs a guest's memory.
- A disk was written by something else (an image was mounted, converted, restored from a backup). Size and time of
  the last change of each disk are in the document; the mirror carries both to the other server.
- The save did not come to its end. The document is written last, after the state is on disk.
- The description was changed, so that the guest would find other devices.
- It cannot be read here: saved with acceleration and found without, or the other way round. What the versions and
  processors of two servers do not have in common is found by QEMU itself when it reads the state.

Each of these means a start as after a power cut, and is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 1


@dataclass(frozen=True)
class DiskState:
    """`changed_ns`: time of the last change, in nanoseconds since 1970."""

    file: str
    size: int
    changed_ns: int


@dataclass(frozen=True)
class Saved:
    """`size`: bytes of the state. `description`: the digest of vm.toml."""

    module: str
    description: str
    accelerator: str
    size: int
    disks: tuple[DiskState, ...]


def to_document(saved: Saved) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(saved)}


def from_document(document: Mapping[str, Any]) -> Saved | None:
    """None for a document of another format."""
    try:
        if document["format"] != FORMAT:
            return None
        disks = tuple(DiskState(str(d["file"]), int(d["size"]), int(d["changed_ns"])) for d in document["disks"])
        module, description, accelerator = (str(document[key]) for key in ("module", "description", "accelerator"))
        return Saved(module, description, accelerator, int(document["size"]), disks)
    except (KeyError, TypeError, ValueError):
        return None


def refusal(saved: Saved, found: Saved) -> str | None:
    """Why a saved state may not be used where everything is as in `found`; None when it may."""
    if saved.module != found.module:
        return f"it is of the module {saved.module}"
    if saved.description != found.description:
        return "the description was changed since it was saved"
    if saved.size != found.size:
        return f"it has {found.size} bytes and not {saved.size}"
    if saved.accelerator != found.accelerator:
        return f"it was saved with {saved.accelerator}, and here is {found.accelerator}"
    now = {disk.file: disk for disk in found.disks}
    changed = [disk.file for disk in saved.disks if now.get(disk.file) != disk]
    if changed or len(now) != len(saved.disks):
        return f"a disk was changed since it was saved ({', '.join(changed) or 'another number of disks'})"
    return None
