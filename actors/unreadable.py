"""A module whose durable record cannot be read: what people are told, and what they can do about it. Pure.

Nothing may be decided without the record, and nothing is: the file stays as it is, for whoever looks at it later.
"""

from __future__ import annotations

from hotpair.cluster.record import VERSION, RecordDamaged, RecordVersion

GUIDE = 'docs/commands.md, "A record that cannot be read"'


def reason(error: RecordDamaged | RecordVersion, record: str, overwrite_mark: str, peer: str) -> str:
    """Why the module waits, and the remedy. `record`, `overwrite_mark`: paths of this module's files."""
    nothing = "Nothing is decided, started or overwritten here."
    if isinstance(error, RecordVersion):
        return (
            f"The module's record {record} has format version {error.version}, and this hotpair reads {VERSION}. "
            f"{nothing} Install the hotpair that wrote it, or a newer one."
        )
    return (
        f"The module's record {record} is damaged: {error.reason}. {nothing} Check this server's disk. If the copy of "
        f"{peer} is the current one: touch {overwrite_mark} && mv {record} {record}.damaged; everything is then copied "
        f"from {peer}. If the copy here is: see {GUIDE}."
    )
