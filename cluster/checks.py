"""Checks: what one says, which are to be made, and when the module counts as running for them. Pure code.

Knows: the module's state, its configured checkers. Must not know: how anything is checked, rules, actions, clocks.

| the module | is looked at |
|---|---|
| is stopped | nothing |
| does not run here, holds its writes, or a plan is under way | what can be seen before a start, what it waits for |
| runs here, its VM is not on | the same, and the VM's state: it may be that it does not start |
| runs here, its VM is on | everything |
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from hotpair.cluster.configuration import Checker
from hotpair.cluster.module_values import MirrorMode, Module, State, Vm

VM_STATE = "vm-state"
HERE_ONLY = frozenset({"module"})  # kinds for which nothing but what this server knows of its modules is looked at
_RUNNING = (State.ALONE, State.PRIM)
_GOING = (MirrorMode.ALONE, MirrorMode.FILLING, MirrorMode.PAIRED)


class Finding(Enum):
    """UNKNOWN: the check could not be carried out, so nothing follows from it."""

    UP = "up"
    DOWN = "down"
    UNKNOWN = "unknown"

    @property
    def is_up(self) -> bool | None:
        """For the rules."""
        return None if self is Finding.UNKNOWN else self is Finding.UP


@dataclass(frozen=True)
class Found:
    """What a check says; `detail` is one clause for the operator."""

    finding: Finding
    detail: str


def up(detail: str) -> Found:
    return Found(Finding.UP, detail)


def down(detail: str) -> Found:
    return Found(Finding.DOWN, detail)


def unknown(detail: str) -> Found:
    return Found(Finding.UNKNOWN, detail)


@dataclass(frozen=True)
class Watch:
    """What is to be looked at from now on. Another `run`: the module was started anew, so everything at once."""

    names: frozenset[str]
    run: int


@dataclass(frozen=True)
class Checked:
    """A check was made, in this run of the module."""

    checker: str
    run: int
    found: Found


def runs(module: Module) -> bool:
    """Whether a down means something: this server runs it, its writes flow, and nobody is just changing that.

    While writes are held, a guest that does not answer says nothing but that.
    """
    mirror = module.mirror
    going = mirror is not None and mirror.mode in _GOING
    return module.state in _RUNNING and going and module.plan is None


def to_watch(module: Module, checkers: Iterable[Checker], held: Collection[str]) -> frozenset[str]:
    """The names of those that are to be looked at; `held`: those for which the module waits."""
    if module.state is State.STOP:
        return frozenset()
    running = runs(module)
    return frozenset(
        one.name
        for one in checkers
        if one.before_start or one.name in held or (running and (module.vm is Vm.ON or one.kind == VM_STATE))
    )


def may_be_held(module: Module) -> bool:
    """Where what a start has to wait for can be told to it in time; what runs is stopped by a confirmed rule only."""
    return module.state not in _RUNNING


def standing_of(name: str, module: Module | None) -> Found:
    """For the kind "module": whether that one runs, on either server; `module` None where it is not known here."""
    if module is None:
        return unknown(f"nothing is known of {name} on this server")
    if module.state in _RUNNING:
        return up("it runs here") if module.vm is Vm.ON else down(f"it is {module.state.value} here, its VM is not on")
    peer = module.peer
    if peer is not None and peer.state in _RUNNING and peer.ready:
        return up("it runs on the peer")
    there = "the peer is not heard" if peer is None else f"{peer.state.value} on the peer"
    return down(f"it is {module.state.value} here, {there}")
