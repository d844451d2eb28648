"""What a target makes of a source's hello: why that source cannot be served, and what its record says."""

from __future__ import annotations

import os
from typing import Any

from hotpair.cluster import record as records
from hotpair.cluster.record import Record
from hotpair.replication.errors import ProtocolError
from hotpair.replication.objects_io import IDENTITY_SIZE, PRIVATE_NAME
from hotpair.replication.target_copy import TargetCopy
from hotpair.replication.target_start import TargetOptions


def objection(hello: dict[str, Any], options: TargetOptions, own_copy: TargetCopy) -> str | None:
    """Why this source cannot be served, if it cannot."""
    for key in ("root", "new_session"):
        value = hello.get(key)
        if type(value) is not bytes or len(value) != IDENTITY_SIZE:
            return f"its hello has no valid {key!r}"
    if hello.get("durability") != options.durability:
        return (
            f"it has durability {hello.get('durability')!r}, this server {options.durability!r}: "
            "give both the same --durability"
        )
    largest = hello.get("largest_file")
    if type(largest) is not int or largest > own_copy.largest_file:
        return (
            f"its file system holds files of {largest} bytes, the one of this server only {own_copy.largest_file}: "
            "use the same file system, with the same block size, on both servers"
        )
    if own_copy.record is None:
        entries = [name for name in os.listdir(own_copy.root_fd) if os.fsencode(name) != PRIVATE_NAME]
        if entries and not options.overwrite:
            return (
                f"{os.fsdecode(options.directory)} is not empty and was never a copy of this module "
                f"({entries[0]!r} is in it): empty it, or start the target with --overwrite"
            )
    elif hello["root"] != own_copy.record.root:
        return "it is the source of another module (its root directory has another identity)"
    return None


def record_of_peer(encoded: object) -> Record:
    """The record in a message. Raises ProtocolError."""
    if type(encoded) is not bytes:
        raise ProtocolError("the peer's record is no bytes")
    try:
        return records.decode(encoded)
    except (records.RecordDamaged, records.RecordVersion) as error:
        raise ProtocolError(f"the peer's record: {error}") from error


def is_alone(encoded: object) -> bool:
    """Whether the record in a hello says that the source goes on alone; one that cannot be read says nothing."""
    try:
        return record_of_peer(encoded).solo
    except ProtocolError:
        return False
