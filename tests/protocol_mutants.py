"""Hand-made bugs in the protocol's real cores, and how many simulated lives it takes to notice each.

    make protocol-mutants MUTANT_ARGUMENTS="[--only NAME] [--seeds N] [--jobs N] [--list]"

Prints seeds to detection for each; the exit code is 1 when one is not noticed within the limit (2,000).
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from hotpair.cluster import arbitration, module_waiting, record
from hotpair.cluster import module_rules as rules
from hotpair.cluster.arbitration import Kind, Purpose, Standing
from hotpair.cluster.module_events import GoAlone
from hotpair.cluster.module_values import Mirror, MirrorMode, Role, State
from hotpair.cluster.record import Copying, Record, Rule
from hotpair.cluster.simulation import actions, mirrors
from hotpair.cluster.simulation.batch import life
from hotpair.cluster.simulation.world import World, acknowledge, change
from tests import left_out

LIMIT = 2000
Patch = tuple[Any, str, Callable[..., Any]]


@dataclass(frozen=True)
class Mutant:
    """One bug: the functions that take the place of others, and the policy under which it must be noticed."""

    name: str
    patches: tuple[Patch, ...]
    kind: Kind = Kind.WITNESS


@dataclass(frozen=True)
class Outcome:
    """`seeds` to detection; 0 when it was not noticed."""

    name: str
    seeds: int
    wrong: str
    seconds: float


_meet, _go_alone, _begin = record.meet, record.go_alone, record.begin_reintegration_as_target
_take_over, _take_sync, _offer = record.take_over, record.take_sync_as_target, record.offer_sync_as_source
_write, _fill, _connect, _verdict_alone = mirrors.write, mirrors.fill, mirrors.connect, mirrors.go_alone
_hand_over, _leave, _lose_link = mirrors.hand_over, mirrors.leave, mirrors.lose_link
_move, _purpose_of, _with_peer = actions.move, rules.purpose_of, module_waiting._with_peer


def any_stopped_peer_consents(module: Any, view: Any) -> bool:
    return rules.current(module) and not rules.linked(module) and view.state in (State.STOP, State.WAIT)


def new_generation_at_each_solo_start(old: Record, new: bytes, **names: Any) -> Record:
    return _go_alone(replace(old, solo=False), new, **names)


def target_keeps_its_generation(own: Record, generation: bytes) -> Record:
    return replace(_begin(own, generation), generation=own.generation)


def target_is_not_marked(own: Record, generation: bytes) -> Record:
    return replace(_begin(own, generation), inconsistent=False, in_sync=True)


def outdated_before_it_is_acknowledged(world: World, s: int) -> World:
    own = world.servers[s].record
    assert own is not None
    return _leave(change(world, s, record=record.mark_outdated(own)), s)


def acknowledged_before_the_target_has_it(world: World, s: int) -> World:
    after = _write(world, s)
    held = after.servers[s].held
    return acknowledge(after, s, held) if held >= 0 else after


def any_epoch_is_moved(now: Standing, claim: Any) -> Any:
    return _move(now, replace(claim, epoch=max(now.epoch, claim.epoch)))


def released_before_the_generation_is_durable(world: World, s: int, verdict: GoAlone) -> World:
    after = _verdict_alone(world, s, verdict)
    return change(after, s, record=world.servers[s].record)


def outdated_is_current(module: Any) -> bool:
    return module.record is not None and not module.record.inconsistent


def inconsistent_is_current(module: Any) -> bool:
    return module.record is not None and not module.record.outdated


def any_copy_may_go_on(module: Any) -> Purpose | None:
    own = module.record
    if own is not None and (own.outdated or own.inconsistent) and rules.current(module):
        return Purpose.GO_ALONE
    return _purpose_of(module)


def solo_cleared_when_copying_begins(world: World, s: int) -> World:
    after = _connect(world, s)
    own, mirror = after.servers[s].record, after.servers[s].mirror
    if own is not None and own.solo and mirror is not None and mirror.mode is MirrorMode.ALONE:
        return change(after, s, record=_offer(own))
    return after


def copied_the_wrong_way(mine: Any, peer: Any, *rest: Any, **names: Any) -> Any:
    met = _meet(mine, peer, *rest, **names)
    return replace(met, source=met.source.swapped()) if met.rule in (Rule.BASE, Rule.ANCESTOR) else met


def only_the_logs_are_copied(mine: Any, peer: Any, *rest: Any, **names: Any) -> Any:
    return replace(_meet(mine, peer, *rest, **names), copying=Copying.LOGS_ONLY)


def older_primary_goes_on(mine: Any, peer: Any, *rest: Any, **names: Any) -> Any:
    met = _meet(mine, peer, *rest, **names)
    return replace(met, source=met.source.swapped()) if met.rule is Rule.SAME else met


def the_peer_does_not_count(draft: Any, peer: Any) -> None:
    own = draft.module.record
    if own is not None and own.in_sync and draft.module.live and not rules.linked(draft.module):
        module_waiting._without_peer(draft)
    else:
        _with_peer(draft, peer)


def sync_offered_too_early(world: World, s: int) -> World:
    server = world.servers[s]
    return _fill(change(world, s, dirty=server.dirty & (server.dirty - 1)), s)


def writes_alone_are_not_logged(world: World, s: int) -> World:
    mirror = world.servers[s].mirror
    after = _write(world, s)
    if mirror is not None and mirror.mode is MirrorMode.ALONE:
        return change(after, s, dirty=world.servers[s].dirty)
    return after


def term_stays(own: Record, primary: Record, **names: Any) -> Record:
    return replace(_take_over(own, primary, **names), term=own.term)


def epoch_is_not_taken_with_sync(own: Record, source: Record, **names: Any) -> Record:
    return replace(_take_sync(own, source, **names), epoch=0)


def any_grant_counts(module: Any, claim: Any, answer: Any) -> Any:
    """Neither id nor epoch is looked at.

    Without the ids alone nothing differs where the arbiter keeps epochs: a grant that names the epoch after the
    record's own is one that the arbiter, standing there in this server's name, would give again.
    """
    if answer.granted:
        return arbitration.Verdict.GRANTED
    return arbitration.judge(module.settings.kind, replace(claim, request_id=answer.request_id), answer)


def answered_twice_when_the_link_is_lost(world: World, s: int) -> World:
    """A source that loses its link goes on alone by itself."""
    after = _lose_link(world, s)
    mirror = after.servers[s].mirror
    if mirror is not None and mirror.role is Role.SOURCE and mirror.mode is MirrorMode.FROZEN:
        return mirrors._go_solo(after, s, Mirror(Role.SOURCE, MirrorMode.ALONE))
    return after


def _left_out(name: str) -> tuple[Patch, ...]:
    return next(rule.patches for rule in left_out.LEFT_OUT if rule.name == name)


MUTANTS = (
    Mutant("R1 offered before it is durable", _left_out("R1")),
    Mutant("R2 the epoch of a refusal is kept", _left_out("R2")),
    Mutant("R4 the base is not looked at", _left_out("R4")),
    Mutant("R5 a refusal counts as a grant", _left_out("R5")),
    Mutant("R6 epochs are not compared", _left_out("R6 epoch agreement")),
    Mutant("R6 any grant counts", ((rules, "verdict", any_grant_counts), (rules, "may_use_grant", left_out.always))),
    Mutant("R7 any stopped peer consents", ((rules, "is_consent", any_stopped_peer_consents),)),
    Mutant("R8 a stopped server does not give way", _left_out("R8")),
    Mutant("R9 goes on when the handover breaks", _left_out("R9")),
    Mutant("R9 the new primary's term stays", ((record, "take_over", term_stays),)),
    Mutant("R10 released before the target is inconsistent", _left_out("R10")),
    Mutant("R11 reboots do not count", _left_out("R11")),
    Mutant("R12 live after a restart", _left_out("R12"), Kind.FENCE),
    Mutant("R13 prim without the arbiter", _left_out("R13")),
    Mutant("R14 a solo restart is a new generation", ((record, "go_alone", new_generation_at_each_solo_start),)),
    Mutant(
        "R14 the target keeps its generation",
        ((record, "begin_reintegration_as_target", target_keeps_its_generation),),
    ),
    Mutant(
        "R15 outdated before the leaving is acknowledged", ((mirrors, "leave", outdated_before_it_is_acknowledged),)
    ),
    Mutant("acknowledged before it is durable", ((mirrors, "write", acknowledged_before_the_target_has_it),)),
    Mutant("a stale epoch is accepted", ((actions, "move", any_epoch_is_moved),)),
    Mutant(
        "R3 released before the generation is durable",
        ((mirrors, "go_alone", released_before_the_generation_is_durable),),
    ),
    Mutant(
        "an outdated copy is promoted",
        ((rules, "current", outdated_is_current), (rules, "purpose_of", any_copy_may_go_on)),
        Kind.FENCE,
    ),
    Mutant(
        "a half-copied copy is promoted",
        ((rules, "current", inconsistent_is_current), (rules, "purpose_of", any_copy_may_go_on)),
        Kind.FENCE,
    ),
    Mutant("solo is cleared too early", ((mirrors, "connect", solo_cleared_when_copying_begins),)),
    Mutant("copied in the wrong direction", ((record, "meet", copied_the_wrong_way),)),
    Mutant(
        "link loss alone promotes",
        (
            (module_waiting, "_with_peer", the_peer_does_not_count),
            (module_waiting, "_is_left", left_out.always),
        ),
        Kind.NONE,
    ),
    Mutant("a source goes on by itself", ((mirrors, "lose_link", answered_twice_when_the_link_is_lost),)),
    Mutant("the target is not marked", ((record, "begin_reintegration_as_target", target_is_not_marked),)),
    Mutant("sync is offered too early", ((mirrors, "fill", sync_offered_too_early),)),
    Mutant("writes alone are not logged", ((mirrors, "write", writes_alone_are_not_logged),)),
    Mutant("a full comparison is left out", ((record, "meet", only_the_logs_are_copied),)),
    Mutant("the older primary goes on", ((record, "meet", older_primary_goes_on),)),
    Mutant("the epoch goes back", ((record, "take_sync_as_target", epoch_is_not_taken_with_sync),)),
)


@contextmanager
def broken(mutant: Mutant) -> Iterator[None]:
    """The bug is there inside the block."""
    before = [(module, name, getattr(module, name)) for module, name, _ in mutant.patches]
    try:
        for module, name, instead in mutant.patches:
            setattr(module, name, instead)
        yield
    finally:
        for module, name, was in before:
            setattr(module, name, was)


def hunt(mutant: Mutant, limit: int = LIMIT) -> Outcome:
    """Simulate until it is noticed."""
    began = time.monotonic()
    with broken(mutant):
        for seed in range(limit):
            result = life(mutant.kind, seed)
            if result.wrong:
                return Outcome(mutant.name, seed + 1, result.wrong, time.monotonic() - began)
    return Outcome(mutant.name, 0, "", time.monotonic() - began)


def _hunt(job: tuple[int, int]) -> Outcome:
    return hunt(MUTANTS[job[0]], job[1])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", help="those whose name has this in it")
    parser.add_argument("--seeds", type=int, default=LIMIT)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args(arguments)
    chosen = [i for i, mutant in enumerate(MUTANTS) if given.only is None or given.only in mutant.name]
    if given.list:
        print("\n".join(MUTANTS[i].name for i in chosen))
        return 0
    survived = 0
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for outcome in pool.imap(_hunt, [(i, given.seeds) for i in chosen]):
            seeds = f"{outcome.seeds:5}" if outcome.seeds else "  NOT"
            survived += not outcome.seeds
            print(f"{seeds}  {outcome.name:52} {outcome.seconds:5.0f} s  {outcome.wrong[:90]}", flush=True)
    print(f"{len(chosen)} mutants, {survived} not noticed")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
