"""What the peer last said, put together from believed pulses of all networks, in whatever order they came. Pure code.

Knows: rounds and parts. Must not know: whether to believe a pulse (pulse_guard.py), what follows from what it says.

A view of a later round replaces one of an earlier round; the same round comes once over each network and says the same.
A module is forgotten when a whole round has come over one network and did not name it; what an earlier round says does
not count any more then. The peer's new process begins
from nothing: what its predecessor said is no longer known to be so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hotpair.cluster.pulse import ModuleView, Pulse


@dataclass(frozen=True)
class Said:
    """A module's view and its round."""

    round: int
    view: ModuleView


@dataclass(frozen=True)
class Coming:
    """The latest round on one network, as far as it has come."""

    round: int
    parts: frozenset[int]
    names: frozenset[str]


@dataclass(frozen=True)
class Views:
    """The peer's process, its host's boot id, the digest of its cluster configuration, and its modules.

    round       the latest heard of
    whole       the latest that came whole
    """

    incarnation: bytes
    round: int
    boot: str
    configuration: bytes
    whole: int = -1
    modules: Mapping[str, Said] = field(default_factory=dict)
    coming: Mapping[str, Coming] = field(default_factory=dict)


def merge(views: Views | None, pulse: Pulse) -> Views:
    """`views` with a believed pulse; None before the first."""
    if views is None or views.incarnation != pulse.incarnation:
        views = Views(pulse.incarnation, pulse.round, pulse.boot, pulse.configuration)
    elif pulse.round > views.round:
        views = replace(views, round=pulse.round, boot=pulse.boot, configuration=pulse.configuration)
    if pulse.round < views.whole:
        return views
    modules = dict(views.modules)
    for view in pulse.modules:
        known = modules.get(view.name)
        if known is None or pulse.round > known.round:
            modules[view.name] = Said(pulse.round, view)
    coming = _arrived(views.coming.get(pulse.network), pulse)
    if coming.round == pulse.round and len(coming.parts) == pulse.parts:
        modules = {name: said for name, said in modules.items() if name in coming.names or said.round > coming.round}
        views = replace(views, whole=coming.round)
    return replace(views, modules=modules, coming={**views.coming, pulse.network: coming})


def _arrived(before: Coming | None, pulse: Pulse) -> Coming:
    names = frozenset(view.name for view in pulse.modules)
    if before is None or pulse.round > before.round:
        return Coming(pulse.round, frozenset({pulse.part}), names)
    if pulse.round < before.round:  # overtaken: that round will not be whole, the next one will
        return before
    return Coming(pulse.round, before.parts | {pulse.part}, before.names | names)
