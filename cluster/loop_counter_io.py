"""A module's automatic actions that still count, on disk: a restart of the service or the host does not forget them.

Else a module whose VM takes the host down with it would be started again for ever. The times are the wall clock's, in
seconds since 1970: the monotonic one begins anew with each boot. A clock that is set back makes an action count longer.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from hotpair.cluster.record_io import Files, OsFiles, replace_file

VERSION = 1
LARGEST_FILE_BYTES = 64 << 10  # `max_loop` is 1000 at most, and each has some 20 bytes
LONGEST_TEXT = 1000  # of the reason


@dataclass(frozen=True)
class LoopCounter:
    """`stopped`: why the rules have stopped the module; empty since the operator's last command."""

    actions_at: tuple[float, ...] = ()
    stopped: str = ""


class LoopCounterUnusable(Exception):
    """It can be neither read nor stored; the text says why and what to do."""


def store(path: str, counter: LoopCounter, files: Files | None = None) -> None:
    """Replace it; durable on return. Raises LoopCounterUnusable: it may be the old one or the new one."""
    counter = LoopCounter(counter.actions_at, counter.stopped[:LONGEST_TEXT])
    text = json.dumps({"version": VERSION, **asdict(counter)})
    try:
        replace_file(path, text.encode(), files or OsFiles(), "loop")
    except OSError as error:
        why = f"cannot store {path}: {error.strerror}. Free space on the state disk, or replace it"
        raise LoopCounterUnusable(why) from error


def load(path: str) -> LoopCounter:
    """The stored one; nothing counts where there is none. Raises LoopCounterUnusable."""
    remedy = "Remove the file: the automatic actions so far are forgotten then"
    try:
        with open(path, "rb") as opened:
            data = opened.read(LARGEST_FILE_BYTES)
    except FileNotFoundError:
        return LoopCounter()
    except OSError as error:
        raise LoopCounterUnusable(f"cannot read {path}: {error.strerror}. {remedy}") from error
    try:
        fields = json.loads(data)
        version, times, stopped = fields["version"], fields["actions_at"], fields["stopped"]
    except (ValueError, KeyError, TypeError) as error:
        raise LoopCounterUnusable(f"{path} is damaged: {error}. {remedy}") from error
    is_list = isinstance(times, list) and all(type(at) in (int, float) for at in times)
    if version != VERSION or not is_list or type(stopped) is not str:
        raise LoopCounterUnusable(f"{path} is of another version of hotpair, or damaged. {remedy}")
    return LoopCounter(tuple(float(at) for at in times), stopped)
