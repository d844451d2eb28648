"""POSIX ACLs as the bytes of ``system.posix_acl_access`` and ``system.posix_acl_default``.

Source of the format: linux/posix_acl_xattr.h (version 2, little-endian, entries in this order).
"""

import struct
from collections.abc import Mapping

VERSION = 2
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
NO_ID = 0xFFFFFFFF


def access_list(
    owner: int,
    group: int,
    other: int,
    users: Mapping[int, int] | None = None,
    groups: Mapping[int, int] | None = None,
    mask: int | None = None,
) -> bytes:
    """An ACL from permission bits (0 to 7); named users and groups need a mask."""
    entries = [(USER_OBJ, owner, NO_ID)]
    entries += [(USER, bits, uid) for uid, bits in sorted((users or {}).items())]
    entries += [(GROUP_OBJ, group, NO_ID)]
    entries += [(GROUP, bits, gid) for gid, bits in sorted((groups or {}).items())]
    entries += [] if mask is None else [(MASK, mask, NO_ID)]
    entries += [(OTHER, other, NO_ID)]
    return struct.pack("<I", VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
