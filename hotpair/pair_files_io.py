"""The files of a module on one server: made, replaced, moved aside, and all of that taken back.

State of a module that is removed (its record, dirty log, event log) goes with its configuration to removed/NAME-TIME
below the state directory: a later module of the same name does not take it for its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from hotpair.actors.home import Home
from hotpair.cluster.configuration_files import MODULES_DIRECTORY
from hotpair.cluster.record_io import OsFiles, replace_file
from hotpair.replication.state_files_io import flush_directory

REMOVED = "removed"


@dataclass
class Undo:
    """What takes back what was done, the last first. Each step may raise OSError."""

    steps: list[Callable[[], None]] = field(default_factory=list)

    def run(self) -> None:
        """Raises OSError; a second call goes on behind the step that failed."""
        while self.steps:
            self.steps.pop()()


def make(home: Home, name: str, text: str, directory: str | None, undo: Undo, *, overwrite: bool = False) -> None:
    """The files of a new module. `directory`: is made too; None when it is there. `overwrite`: what is in it is given
    up. Raises OSError."""
    if directory is not None:
        os.mkdir(directory, 0o700)
        undo.steps.append(lambda: _remove_made(directory))
    put_aside(home, name, undo)
    os.makedirs(home.below(MODULES_DIRECTORY), mode=0o700, exist_ok=True)
    path = home.module_file(name)
    undo.steps.append(lambda: _remove_module(home, name))
    if overwrite:
        mark_overwrite(home, name)
    write(path, text)


def mark_overwrite(home: Home, name: str) -> None:
    """For the mirror. It counts until there is a record, and not after that. Raises OSError."""
    os.makedirs(home.module_state(name), mode=0o700)
    write(home.overwrite_mark(name), "")


def replace(home: Home, name: str, text: str, undo: Undo) -> None:
    """Another configuration for a module. Raises OSError."""
    path = home.module_file(name)
    before = read(path)
    undo.steps.append(lambda: None if read(path) == before else write(path, before))
    write(path, text)


def remove(home: Home, name: str, undo: Undo) -> str:
    """Where what was known of it lies now. Its directory is not touched. Raises OSError.

    Its configuration goes first: without it, state that was left in between is put aside by the next `make`.
    """
    path, aside = home.module_file(name), _aside(home, name)
    os.makedirs(aside, mode=0o700)
    undo.steps.append(lambda: shutil.rmtree(aside))
    before = read(path)
    write(os.path.join(aside, os.path.basename(path)), before)
    undo.steps.append(lambda: write(path, before))
    os.unlink(path)
    flush_directory(os.path.dirname(path))
    _move_state(home, name, aside, undo)
    return aside


def put_aside(home: Home, name: str, undo: Undo) -> None:
    """State that an earlier module of this name has left. Raises OSError."""
    if os.path.lexists(home.module_state(name)):
        aside = _aside(home, name)
        os.makedirs(aside, mode=0o700)
        undo.steps.append(lambda: shutil.rmtree(aside))
        _move_state(home, name, aside, undo)


def read(path: str) -> str:
    """Raises OSError, UnicodeDecodeError."""
    with open(path, encoding="utf-8") as opened:
        return opened.read()


def write(path: str, text: str) -> None:
    """Durable, mode 0600: options of a driver may be secrets. Raises OSError."""
    replace_file(path, text.encode(), OsFiles(), "module")


def _move_state(home: Home, name: str, aside: str, undo: Undo) -> None:
    state, moved = home.module_state(name), os.path.join(aside, "state")
    if not os.path.lexists(state):
        return
    os.rename(state, moved)
    undo.steps.append(lambda: _put_back(moved, state))
    for folder in (os.path.dirname(state), aside):
        flush_directory(folder)


def _put_back(moved: str, state: str) -> None:
    """Whatever was made in its place since belongs to nobody."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(state)
    os.rename(moved, state)
    flush_directory(os.path.dirname(state))


def _remove_module(home: Home, name: str) -> None:
    path = home.module_file(name)
    for leftover in (path, path + ".new"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(leftover)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(home.module_state(name))
    flush_directory(os.path.dirname(path))


def _remove_made(directory: str) -> None:
    """Raises OSError when something is in it by now."""
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(directory)


def _aside(home: Home, name: str) -> str:
    return os.path.join(home.state, REMOVED, f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}")
