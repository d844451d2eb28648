"""The state machine as the explorations call it: the real functions, or the same with what they have answered before.

`step` and `view` are pure, and in an exploration the same module meets the same event in thousands of worlds. Modules
are told apart by their address: equal ones may differ in settings and reason, which are not compared. They are kept,
so no address is used twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hotpair.cluster import module_machine
from hotpair.cluster.module_events import Effect, Event, Now
from hotpair.cluster.module_values import Module, PeerView
from hotpair.cluster.module_values import view as view_of

Stepped = tuple[Module, tuple[Effect, ...]]


class Machine(NamedTuple):
    step: Callable[[Module, Event, Now], Stepped]
    view: Callable[[Module], PeerView]


PLAIN = Machine(module_machine.step, view_of)


class Kept:
    """Equal modules of one server become one object, for as long as the exploration lasts."""

    def __init__(self) -> None:
        self._modules: dict[str, dict[Module, Module]] = {}

    def __call__(self, module: Module) -> Module:
        return self._modules.setdefault(module.settings.server, {}).setdefault(module, module)


def remembering(keep: Kept) -> Machine:
    """For one exploration: the rules must not change in it. Now is always the same there."""
    steps: dict[tuple[int, Event], tuple[Module, Now, Stepped]] = {}
    views: dict[int, tuple[Module, PeerView]] = {}

    def step(module: Module, event: Event, now: Now) -> Stepped:
        key = (id(module), event)
        found = steps.get(key)
        if found is None:
            after, effects = module_machine.step(module, event, now)
            found = steps[key] = (module, now, (keep(after), effects))
        assert found[1] == now
        return found[2]

    def view(module: Module) -> PeerView:
        found = views.get(id(module))
        if found is None:
            found = views[id(module)] = (module, view_of(module))
        return found[1]

    return Machine(step, view)
