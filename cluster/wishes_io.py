"""What the operator wants of a module, on disk: whether it is to run, and whether it is under maintenance."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from hotpair.cluster.record_io import Files, OsFiles, replace_file

VERSION = 1
LARGEST_FILE_BYTES = 4096  # ours has less than 100


@dataclass(frozen=True)
class Wishes:
    """What commands said last; it outlives restarts of the service and of the host.

    `boot`: the host's boot id when it was stored; another one means that the host was booted since.
    """

    wanted: bool = False
    maintenance: bool = False
    boot: str = ""


class WishesUnusable(Exception):
    """They can be neither read nor stored; the text says why and what to do."""


def store(path: str, wishes: Wishes, files: Files | None = None) -> None:
    """Replace them; durable on return. Raises WishesUnusable: they may be the old ones or the new ones."""
    text = json.dumps({"version": VERSION, **asdict(wishes)})
    try:
        replace_file(path, text.encode(), files or OsFiles(), "wishes")
    except OSError as error:
        why = f"cannot store {path}: {error.strerror}. Free space on the state disk, or replace it"
        raise WishesUnusable(why) from error


def load(path: str) -> Wishes:
    """The stored ones; nothing is wanted where none are. Raises WishesUnusable."""
    remedy = "Remove the file and say again what is wanted (hotpair start, hotpair maintenance)"
    try:
        with open(path, "rb") as opened:
            data = opened.read(LARGEST_FILE_BYTES)
    except FileNotFoundError:
        return Wishes()
    except OSError as error:
        raise WishesUnusable(f"cannot read {path}: {error.strerror}. {remedy}") from error
    try:
        fields = json.loads(data)
        version, wanted, maintenance = fields["version"], fields["wanted"], fields["maintenance"]
        boot = fields["boot"]
    except (ValueError, KeyError, TypeError) as error:
        raise WishesUnusable(f"{path} is damaged: {error}. {remedy}") from error
    if version != VERSION or type(wanted) is not bool or type(maintenance) is not bool or type(boot) is not str:
        raise WishesUnusable(f"{path} is of another version of hotpair, or damaged. {remedy}")
    return Wishes(wanted, maintenance, boot)
