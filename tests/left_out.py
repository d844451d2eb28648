"""Each rule of the protocol left out of the real cores, one at a time: what the explorer must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hotpair.cluster import arbitration, record
from hotpair.cluster import module_rules as rules
from hotpair.cluster.arbitration import Kind, Purpose
from hotpair.cluster.module_events import Command
from hotpair.cluster.module_values import Mirror, MirrorMode, Role
from hotpair.cluster.record import Record
from hotpair.cluster.simulation import mirrors
from hotpair.cluster.simulation.actions import Scope
from hotpair.cluster.simulation.world import World, change

Patch = tuple[Any, str, Callable[..., Any]]


@dataclass(frozen=True)
class LeftOut:
    """One rule left out: the functions that take the place of others, and a scope in which that is noticed."""

    name: str
    patches: tuple[Patch, ...]
    scope: Scope
    faults: int
    commands: int = 0
    start: str = "in-sync"


_fill, _connect, _lose_link = mirrors.fill, mirrors.connect, mirrors.lose_link
_meet, _purpose_of, _verdict = record.meet, rules.purpose_of, rules.verdict


def offer_before_it_is_durable(world: World, s: int) -> World:
    after = _fill(world, s)
    if after.queues[s] != world.queues[s]:
        return change(after, s, record=world.servers[s].record)
    return after


def epoch_of_a_refusal(own: Record | None, answer: arbitration.Answer) -> Record | None:
    return own if own is None or answer.epoch is None else record.agree_on_epoch(own, answer.epoch)


def base_is_not_looked_at(mine: Any, peer: Any, *rest: Any, **names: Any) -> Any:
    met = _meet(mine, peer, *rest, **names)
    return replace(met, source=record.Side.NOBODY, rule=record.Rule.UNRELATED) if met.rule is record.Rule.BASE else met


def refusal_counts_as_grant(module: Any, claim: Any, answer: Any) -> Any:
    verdict = _verdict(module, claim, answer)
    return arbitration.Verdict.GRANTED if verdict is arbitration.Verdict.REFUSED else verdict


def goes_on_when_the_handover_breaks(world: World, s: int) -> World:
    mirror = world.servers[s].mirror
    after = _lose_link(world, s)
    if mirror is not None and mirror.asked:
        return mirrors._go_solo(after, s, Mirror(Role.SOURCE, MirrorMode.ALONE))
    return after


def released_before_the_target_is_inconsistent(world: World, s: int) -> World:
    after = _connect(world, s)
    mirror = after.servers[s].mirror
    if mirror is not None and mirror.mode is MirrorMode.FROZEN:
        return mirrors._go_solo(after, s, replace(mirror, mode=MirrorMode.ALONE))
    return after


def reboots_do_not_count(of: Record | None, boot: str) -> bool:
    return True


def live_after_a_restart(module: Any) -> Purpose | None:
    purpose = _purpose_of(module)
    return Purpose.GO_ALONE if purpose is Purpose.START_ALONE else purpose


def always(*_arguments: Any) -> bool:
    return True


def never(*_arguments: Any) -> bool:
    return False


def kept_as_far_as_one_knows(module: Any, view: Any) -> bool:
    return True


def scope(*faults: str, kind: Kind = Kind.WITNESS, commands: tuple[Command, ...] = (), **names: Any) -> Scope:
    return Scope(kind, faults=frozenset(faults), commands=commands, **names)


LEFT_OUT = (
    LeftOut(
        "R1",
        ((mirrors, "fill", offer_before_it_is_durable),),
        scope("network", kind=Kind.FENCE, writes=2),
        1,
        start="apart",
    ),
    LeftOut("R2", ((rules, "after_refusal", epoch_of_a_refusal),), scope("network"), 1),
    LeftOut("R4", ((record, "meet", base_is_not_looked_at),), scope("crash"), 1),
    LeftOut("R5", ((rules, "verdict", refusal_counts_as_grant),), scope("network"), 1),
    LeftOut("R6 epoch agreement", ((rules, "is_settled", always),), scope("network"), 1),
    LeftOut("R8", ((rules, "may_yield", never),), scope("arbiter", commands=(Command.STOP,)), 1, 1),
    LeftOut(
        "R9",
        ((mirrors, "lose_link", goes_on_when_the_handover_breaks),),
        scope("network", commands=(Command.SWAP,)),
        1,
        1,
    ),
    LeftOut("R10", ((mirrors, "connect", released_before_the_target_is_inconsistent),), scope("crash"), 2),
    LeftOut("R11", ((rules, "boot_unchanged", reboots_do_not_count),), scope("power", power=True), 1),
    LeftOut("R12", ((rules, "purpose_of", live_after_a_restart),), scope("crash", "network", kind=Kind.FENCE), 2),
    LeftOut("R13", ((rules, "may_take_command", always),), scope("network", commands=(Command.PRIM,)), 1, 1),
    LeftOut(
        "split brain: the peer is asked first",
        ((rules, "is_kept", kept_as_far_as_one_knows),),
        scope("link", kind=Kind.NONE, writes=3, policy="most-changes", stale_pulses=True),
        1,
        start="split",
    ),
    LeftOut(
        "split brain: saved before it is overwritten",
        ((rules, "is_given_up", never),),
        scope(kind=Kind.NONE, policy="former-primary"),
        0,
        start="split",
    ),
)
