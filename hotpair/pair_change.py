"""What is checked before a module is added, edited or removed, in which order, and with which words. Pure.

Knows: the change, and the facts that one server has found out about itself. Must not know: files, the network, which
of the two servers was asked. Both are asked before anything is written on either.

Every change can be repeated: what one server has done already is no objection, so that a change which was interrupted
between the two is completed by the same command.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from hotpair.cluster.admission import ModuleRefused, admit
from hotpair.cluster.configuration import Module

FIRST_MIRROR_PORT = 5600
LONGEST_MODULE_TEXT = 24 << 10  # characters of a module's file: must fit into a request, however it is written there


class Kind(Enum):
    ADD = "add"
    EDIT = "edit"
    REMOVE = "remove"


@dataclass(frozen=True)
class Change:
    """`identity` tells it from any other. `text`: the new file, for add and edit."""

    identity: str
    kind: Kind
    module: str
    text: str = ""
    overwrite: bool = False


class Found(Enum):
    """What is where a module's directory is to be."""

    MISSING = "nothing"
    NO_WAY = "nothing, and nothing above it"
    EMPTY = "an empty directory"
    FULL = "a directory that is not empty"
    OTHER = "something that is no directory"
    MOUNT = "a mirror's mount"


@dataclass(frozen=True)
class Present:
    """A module that a server has. `state`: as shown; None when that is not known, "" when it was not opened.

    `directory` is absolute, without symbolic links. `digest`: of its configuration; "" for a file that is wrong.
    """

    directory: str
    mirror_port: int
    state: str | None
    digest: str
    problem: str = ""


@dataclass(frozen=True)
class Facts:
    """About one server, for one change.

    others     names of the modules that the other server has
    own        absolute paths of its configuration and state
    directory  the module's, absolute, without symbolic links; `found`: what is there
    digest     of the configuration that the change would give; "" for a removal
    before     the configuration that the module has now, for an edit
    port, driver, fuse, disk   sentences: what is wrong with it here; "" when nothing is
    """

    server: str
    modules: Mapping[str, Present]
    others: tuple[str, ...]
    own: tuple[str, ...] = ()
    directory: str = ""
    found: Found = Found.EMPTY
    digest: str = ""
    before: Module | None = None
    port: str = ""
    driver: str = ""
    fuse: str = ""
    disk: str = ""


@dataclass(frozen=True)
class Objection:
    """`is_state`: what was asked for makes sense, but not now."""

    text: str
    is_state: bool = False


@dataclass(frozen=True)
class _Case:
    change: Change
    facts: Facts
    configured: Module | None

    @property
    def new(self) -> Module:
        assert self.configured is not None
        return self.configured

    @property
    def others_here(self) -> dict[str, Present]:
        return {name: one for name, one in self.facts.modules.items() if name != self.change.module}


def objection(change: Change, configured: Module | None, facts: Facts) -> Objection | None:
    """The first that this server has; None: it can be done. `configured`: the new one, None for a removal."""
    case = _Case(change, facts, configured)
    for check in _CHECKS[change.kind]:
        found = check(case)
        if found is not None:
            return found
    return None


def is_done(change: Change, facts: Facts) -> bool:
    """Whether this server has what the change would give, and nothing is to be done here."""
    present = facts.modules.get(change.module)
    if change.kind is Kind.REMOVE:
        return present is None
    return present is not None and present.digest == facts.digest != ""


# ---- each check


def _name(case: _Case) -> Objection | None:
    facts, name = case.facts, case.change.module
    is_completed = is_done(case.change, facts) and name not in facts.others
    here = [one for one in facts.modules if not (is_completed and one == name)]
    others = [one for one in facts.others if name in facts.modules or one != name]
    try:
        admit(name, here, others)
    except ModuleRefused as error:
        return Objection(str(error))
    return None


def _file(case: _Case) -> Objection | None:
    present = case.facts.modules.get(case.change.module)
    if present is not None and present.state == "" and case.change.kind is Kind.EDIT:
        return Objection(
            f"{case.change.module} is not open on {case.facts.server}: {present.problem or 'restart hotpair run'}"
        )
    return None


def _known(case: _Case) -> Objection | None:
    facts, name = case.facts, case.change.module
    if name in facts.modules:
        return None
    return Objection(f"{name} is not on {facts.server}: remove it on the other server, and add it again")


def _data_on(case: _Case) -> Objection | None:
    if case.new.data_on is None:
        return Objection("say which server has the data now: data_on (--data-on SERVER)")
    return None


def _directory(case: _Case) -> Objection | None:
    facts, path = case.facts, case.facts.directory
    if not posixpath.isabs(case.new.directory):
        return Objection(f"the directory {case.new.directory} is not absolute: give the whole path, the same on both")
    for own in facts.own:
        if _overlap(path, own):
            return Objection(f"{path} and hotpair's own {own} lie in each other: choose another directory")
    for name, other in case.others_here.items():
        if _overlap(path, other.directory):
            return Objection(
                f"{path} and {other.directory}, the directory of {name}, lie in each other: choose another directory"
            )
    return None


def _there(case: _Case) -> Objection | None:
    """What is at the directory: the data on one server, nothing that could be lost on the other."""
    path, found, has_data = case.facts.directory, case.facts.found, case.new.data_on == case.facts.server
    match found:
        case Found.NO_WAY:
            return Objection(f"{path} cannot be made, for {posixpath.dirname(path)} does not exist: make that first")
        case Found.OTHER:
            return Objection(f"{path} is no directory: move it away, or choose another")
        case Found.MOUNT:
            return Objection(f"{path} is mounted by a mirror: end that one first (hotpair state, or fusermount -u)")
        case Found.MISSING if has_data:
            return Objection(f"{path} does not exist, and the data is to be there: correct it, or make it (mkdir)")
        case Found.FULL if not has_data and not case.change.overwrite:
            return Objection(
                f"{path} is not empty, and would be overwritten with the data of {case.new.data_on}: empty it, or say "
                "--overwrite"
            )
    return None


def _port(case: _Case) -> Objection | None:
    if case.facts.before is not None and case.facts.before.mirror_port == case.new.mirror_port:
        return None
    for name, other in case.others_here.items():
        if other.mirror_port == case.new.mirror_port:
            return Objection(f"mirror_port {case.new.mirror_port} is the port of {name}: give another (--port)")
    return Objection(case.facts.port) if case.facts.port else None


def _stopped(case: _Case) -> Objection | None:
    present = case.facts.modules.get(case.change.module)
    if present is None or present.state in ("STOP", ""):
        return None
    if present.state is None:
        return Objection(f"it is not known whether {case.change.module} runs: {present.problem}", is_state=True)
    return Objection(f"{case.change.module} is {present.state}: stop it on both servers first", is_state=True)


def _kept(case: _Case) -> Objection | None:
    """What belongs to the copies, and cannot change under them."""
    before = case.facts.before
    assert before is not None
    pairs = {
        "directory": (before.directory, case.new.directory),
        "mirror.extent_size": (before.mirror.extent_size, case.new.mirror.extent_size),
    }
    for key, (now, wanted) in pairs.items():
        if now != wanted:
            return Objection(f"{key} cannot be changed ({now}): remove the module, and add it again with {wanted}")
    return None


def _said(name: str) -> Callable[[_Case], Objection | None]:
    """What was found out as a sentence."""

    def check(case: _Case) -> Objection | None:
        text = getattr(case.facts, name)
        return Objection(text) if text else None

    return check


_Check = Callable[[_Case], Objection | None]


def _unless_done(check: _Check) -> _Check:
    return lambda case: None if is_done(case.change, case.facts) else check(case)


_CHECKS: Mapping[Kind, tuple[_Check, ...]] = {
    Kind.ADD: (
        _name,
        *map(
            _unless_done,
            (_data_on, _said("disk"), _directory, _there, _port, _said("driver"), _said("fuse")),
        ),
    ),
    Kind.EDIT: (_known, _file, *map(_unless_done, (_stopped, _kept, _port, _said("driver")))),
    Kind.REMOVE: (_stopped,),
}


def _overlap(one: str, other: str) -> bool:
    return _is_within(one, other) or _is_within(other, one)


def _is_within(inner: str, outer: str) -> bool:
    return inner == outer or inner.startswith(outer.rstrip("/") + "/")


# ---- both servers


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """servers[2].address: value, level by level."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple) and value and all(isinstance(one, Mapping) for one in value):
            for number, one in enumerate(value, 1):
                found |= flat(one, f"{prefix}{name}[{number}].")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found


def difference(here: Mapping[str, Any], there: Mapping[str, Any], server: str, peer: str) -> str:
    """The first key in which two flat configurations differ, as a sentence; empty when they are equal."""
    for key in [*here, *(key for key in there if key not in here)]:
        if here.get(key) != there.get(key):
            return (
                f"cluster.toml of the two servers differs: {key} is {here.get(key, 'not there')} on {server} and "
                f"{there.get(key, 'not there')} on {peer}: make the files equal, and restart hotpair run"
            )
    return ""


def free_port(taken: Collection[int], is_free: Callable[[int], bool], least: int = FIRST_MIRROR_PORT) -> int | None:
    """The lowest from `least` on that no module has and nobody else listens on."""
    return next((port for port in range(least, 65536) if port not in taken and is_free(port)), None)


def with_settings(table: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The table with each dotted key set: "vm.options.start". KeyError with the part that is no table."""
    changed = {name: _copied(value) for name, value in table.items()}
    for key, value in settings.items():
        *path, last = key.split(".")
        inner: dict[str, Any] = changed
        for part in path:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise KeyError(part)
        inner[last] = value
    return changed


def _copied(value: Any) -> Any:
    return {name: _copied(one) for name, one in value.items()} if isinstance(value, dict) else value
