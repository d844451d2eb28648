"""The target's dirty log as a message: which extents of which file may differ because of what it wrote itself.

Form: a list of ``[identity, [first, last, first, last, ...], metadata, names]``, extents inclusive. Pure code.
"""

from __future__ import annotations

from typing import Any, Final

from hotpair.replication.dirty_log import ID_BYTES, TO_END_OF_FILE, Extents, Marks, Metadata, Names, add

RUNS_LIMIT: Final = 50_000  # in one message; with more, neighbouring runs of a file are joined


def encode_marks(marks: Marks) -> list[Any]:
    """``marks`` as a message of at most about half a megabyte; over-marks where it would be longer."""
    identities = marks.files.keys() | marks.metadata.keys() | marks.names.keys()
    total = sum(1 for _ in marks)
    message: list[Any] = []
    for identity in identities:
        file = marks.files.get(identity)
        runs = file.runs() if file is not None else []
        if total > RUNS_LIMIT and runs:
            runs = [(runs[0][0], runs[-1][1])]
        flat = [number for run in runs for number in run]
        message.append([identity, flat, identity in marks.metadata, identity in marks.names])
    return message


def decode_marks(message: list[Any]) -> Marks:
    """The marks of a message. Raises ValueError or TypeError when it is none."""
    marks = Marks()
    for identity, flat, metadata, names in message:
        if type(identity) is not bytes or len(identity) != ID_BYTES:
            raise ValueError(f"{identity!r} is not an identity")
        if not all(type(number) is int and 0 <= number <= TO_END_OF_FILE for number in flat):
            raise ValueError("an extent number is out of range")
        for first, last in zip(flat[::2], flat[1::2], strict=True):
            marks.apply(add(Extents(identity, first, last)))
        if metadata:
            marks.apply(add(Metadata(identity)))
        if names:
            marks.apply(add(Names(identity)))
    return marks
