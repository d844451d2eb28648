"""Which of the two copies of a module a directory is.

Both copies have the same root identity, so it cannot tell them apart. Each therefore has an id of its own, on its root
and in the durable record of the server that it belongs to: exchanged disks are found before anything is believed.
"""

from __future__ import annotations

import os

from hotpair.cluster.record import Record
from hotpair.replication import own_attributes_io
from hotpair.replication.errors import BadConfiguration
from hotpair.replication.objects_io import IDENTITY_SIZE, new_identity


def claim_copy(root_fd: int, directory: bytes, record: Record | None) -> bytes:
    """The id of the copy in ``root_fd``, which gets one, durably, when it is first used.

    Raises BadConfiguration when the record of this server belongs to another copy, having changed nothing.
    """
    present = own_attributes_io.read(root_fd, own_attributes_io.COPY)
    if record is not None and record.copy is not None:
        if present != record.copy:
            found = "a directory that is no copy" if present is None else f"copy {present.hex()}"
            raise BadConfiguration(
                f"--dir {os.fsdecode(directory)} is {found}, the directory that belongs to this --state is copy "
                f"{record.copy.hex()}: were the disks or directories of the two servers exchanged? Mount the right one "
                "there, or name it. Nothing was changed"
            )
        return record.copy
    if present is not None and len(present) == IDENTITY_SIZE:
        return present
    copy = new_identity()
    own_attributes_io.write(root_fd, own_attributes_io.COPY, copy)
    os.fsync(root_fd)  # before a record names it, or after a power cut this directory would be taken for another
    return copy
