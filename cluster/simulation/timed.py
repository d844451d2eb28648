"""One seeded life of a pair in simulated time: the real step functions, the world's model, faults at their moments.

What the world says is possible (mirrors.py) happens after a delay; pulses go through the real failure detector, and
time in which nothing but equal pulses would happen is skipped. The invariants are looked at after each event, liveness
when the faults have stopped.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from hotpair.cluster.simulation import (
    control,
    ending,
    hearing,
    hosts,
    possible,
    serving,
    speaking,
    telling,
    trouble,
)
from hotpair.cluster.simulation.fault_list import Fault
from hotpair.cluster.simulation.faults import END_S, Plan
from hotpair.cluster.simulation.life import CONTROL, MIRROR, Key, Life
from hotpair.cluster.simulation.watch import Result, Violation
from hotpair.cluster.simulation.world import World

MOST_EVENTS = 60_000  # a life needs some thousand: more is a loop

_ACTS: dict[str, str] = {
    "mirror report": CONTROL, "vm report": CONTROL, "timer": CONTROL, "answer": CONTROL, "datagram": CONTROL,
    "command": CONTROL, "checker": CONTROL,
    "receive": MIRROR, "link loss": MIRROR, "connect": MIRROR, "fill": MIRROR, "fence itself": MIRROR,
    "write": MIRROR, "flush": MIRROR,
}  # fmt: skip

_HANDLERS: dict[str, Callable[..., None]] = {
    "mirror report": control.hear_mirror,
    "vm report": control.hear_vm,
    "vm off": control.vm_is_off,
    "timer": control.timer_fires,
    "boot": control.boot,
    "control starts": control.start,
    "arbiter": control.arbiter_decides,
    "answer": control.answer_comes,
    "command": control.obey,
    "checker": control.checker_acts,
    "datagram": hearing.datagram_comes,
    "receive": serving.receive,
    "link loss": serving.lose_link,
    "connect": serving.connect,
    "fill": serving.fill,
    "fence itself": serving.fence_itself,
    "write": serving.write,
    "flush": serving.flush_both,
    "stall": hosts.stall,
    "fault": trouble.planned_fault,
    "fault ends": trouble.end_fault,
    "break": trouble.begin_fault,
    "survived": trouble.must_have_survived,
    "quiet": ending.quiet,
    "operator": ending.operator_decides,
    "must run": ending.must_run,
    "must be in sync": ending.must_be_in_sync,
}


def begin(plan: Plan, tell: Callable[[str], None] | None = None, world: World | None = None) -> Life:
    """A life before anything has happened in it."""
    life = Life(plan, tell, world)
    for s in (0, 1):
        if life.world.servers[s].module is not None:
            speaking.begin_ear(life, s)
    for number, fault in enumerate(plan.faults):
        life.later(fault.at_s, ("fault", number))
    ending.plan_the_end(life)
    life.give_id()
    possible.refresh(life)
    return life


def run(life: Life, until_s: float = END_S) -> Result:
    """Go on until then, or until an invariant does not hold."""
    try:
        while not life.result.wrong and _next(life, until_s):
            if life.result.events > MOST_EVENTS:
                raise Violation("it never comes to rest: too many events")
    except Violation as violation:
        _end_wrong(life, str(violation))
    except AssertionError as error:
        _end_wrong(life, f"assertion: {error}")
    return life.result


def _end_wrong(life: Life, why: str) -> None:
    life.result.wrong = why
    life.result.at_s = round(life.now, 3)
    if life.tell is not None:
        life.tell(f"{life.now:9.3f} VIOLATION {why}")


def _next(life: Life, until_s: float) -> bool:
    queue = life.queue
    while queue and queue[0][3] and life.pending.get(queue[0][2]) != queue[0][1]:
        heapq.heappop(queue)
    at = queue[0][0] if queue else until_s
    s = 0 if life.beats[0] <= life.beats[1] else 1
    beat = life.beats[s]
    if beat < at:
        if hearing.skip(life, s, min(at, until_s)):
            return True
        if beat > until_s:
            life.now = until_s
            return False
        life.now = max(life.now, beat)
        before = life.world
        hearing.beat(life, s)
        if life.world is not before:
            life.result.events += 1
            _settle(life, before, ("beat", s))
        return True
    if at > until_s or not queue:
        life.now = until_s
        return False
    _, _, key, tracked = heapq.heappop(queue)
    if tracked:
        del life.pending[key]
        life.possible.pop(key, None)
    life.now = max(life.now, at)
    part = _ACTS.get(key[0])
    if part is not None and life.now < life.frozen_until[part, key[1]]:
        life.schedule(key, life.frozen_until[part, key[1]] + life.random.uniform(0.0, 0.05), tracked)
        if tracked and key[0] not in ("timer", "vm off"):
            life.possible[key] = None
        return True
    life.result.events += 1
    before = life.world
    _HANDLERS[key[0]](life, *key[1:])
    _settle(life, before, key)
    return True


def _settle(life: Life, before: World, key: Key) -> None:
    world = life.world
    if world is before:
        possible.refresh(life)
        return
    if life.tell is not None:
        _tell_changes(life, before, key)
    if life.middle is not None and world.queues is not before.queues:
        trouble.break_in_the_middle(life, before)
    for s in (0, 1):
        old, new = before.servers[s], world.servers[s]
        if new is old:
            continue
        if old.up and not new.up:
            hosts.went_down(life, s)
            world = life.world
        if old.module is not None and new.module is None:
            control.ended(life, s)
            world = life.world
        if new.record is not old.record and new.record is not None:
            if new.record.generation == world.fresh:
                life.give_id()
                world = life.world
            life.watch.generation(world, s, old.record.generation if old.record else b"", new.record.generation)
        if old.vm and not new.vm:
            life.vm_stopped_at[s] = life.now
        if not new.vm:
            life.cancel("vm off", s)
    life.world = life.watch.check(before, world, life.now)
    possible.refresh(life)


def inject(life: Life, fault: Fault) -> None:
    """The fault happens now; a story's way in."""
    before = life.world
    try:
        trouble.begin_fault(life, fault)
        _settle(life, before, ("fault",))
    except Violation as violation:
        _end_wrong(life, str(violation))


def keep_down(life: Life, s: int, until_s: float) -> None:
    """A server of a story's start boots then."""
    life.down_until[s] = until_s
    life.pending.pop(("boot", s), None)
    life.possible.pop(("boot", s), None)
    possible.refresh(life)


def _tell_changes(life: Life, before: World, key: Key) -> None:
    for s in (0, 1):
        old, new = before.servers[s], life.world.servers[s]
        if old is not new:
            line, was = telling.describe(life.world, s), telling.describe(before, s)
            if line != was:
                life.say(f"    {' '.join(str(part) for part in key[:1])} | {line}")
    if before.standing != life.world.standing:
        life.say(f"    arbiter: {life.world.standing}")


def simulate(plan: Plan, tell: Callable[[str], None] | None = None) -> Result:
    return run(begin(plan, tell))
