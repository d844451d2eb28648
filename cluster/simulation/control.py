"""The control plane of one server: the real step function, its effects, and the arbiter that it asks."""

from __future__ import annotations

from typing import Any

from hotpair.cluster.arbitration import Asked, Claim, asked, keeps_epochs
from hotpair.cluster.checker_rules import Action as CheckerAction
from hotpair.cluster.module_events import (
    DURABLE,
    Answered,
    Ask,
    CancelTimer,
    CheckerActed,
    Command,
    Commanded,
    Event,
    Look,
    Looked,
    MirrorReported,
    Now,
    PeerHeard,
    SendPulse,
    SetTimer,
    Started,
    StartVm,
    StopVm,
    Timer,
    TimerFired,
    VmReported,
)
from hotpair.cluster.module_machine import step
from hotpair.cluster.module_values import HowToStop, Module, PeerView
from hotpair.cluster.simulation import actions, hosts, limits, speaking, telling
from hotpair.cluster.simulation.actions import MATERIAL
from hotpair.cluster.simulation.life import CONTROL, MIRROR, Life
from hotpair.cluster.simulation.world import BOOT, NAMES, Server, change, changed
from hotpair.cluster.split_brain import MANUAL

COPIES_OF_AN_ANSWER = 3  # beside the one that comes in time
LATEST_ANSWER_S = 45.0


def ended(life: Life, s: int) -> None:
    """With the process goes what it has heard, its timers, and every answer that was for it."""
    life.ears[s] = None
    life.beats[s] = float("inf")
    for timer in Timer:
        life.cancel("timer", s, timer)
    if not keeps_epochs(life.kind):  # what asks is the control plane's child
        kept = tuple(request for request in life.world.requests if request[0] != s)
        life.world = life.world._replace(requests=kept)
    life.world = life.world._replace(answers=tuple(a for a in life.world.answers if a[0] != s))
    if life.control_until[s] <= life.now:
        life.control_until[s] = life.now + life.random.uniform(0.2, 2.0)


def take(life: Life, s: int, event: Event) -> None:
    """One step of the real machine, and its effects; it may die, or its host, between two of them."""
    module = life.world.servers[s].module or Module(settings=life.settings[s])
    module, effects = step(module, event, Now(life.now, life.new_id()))
    if life.tell is not None and effects:
        names = ", ".join(telling.name(effect) for effect in effects)
        life.say(f"{NAMES[s]}: {telling.name(event)} -> {module.state.value}: {names}")
    life.world = change(actions.overridden(life.world, module, event, effects), s, module=module)
    life.result.overridden |= life.world.overridden
    death = life.death[s]
    material = sum(isinstance(effect, MATERIAL) for effect in effects)
    if death is not None and life.now > death[3]:
        death = life.death[s] = None
    done = 0
    for effect in effects:
        if death is not None and material > death[0] and done == death[0]:
            _die_between(life, s, death)
            return
        if life.disk_errors[s] and isinstance(effect, DURABLE):
            life.say(f"{NAMES[s]}: {telling.name(effect)} fails, the control plane ends")
            life.world = change(life.world, s, module=None)
            return
        done += isinstance(effect, MATERIAL)
        _do(life, s, effect)


def _die_between(life: Life, s: int, death: tuple[int, str, float, float]) -> None:
    done, who, length_s, _ = death
    life.death[s] = None
    life.say(f"{NAMES[s]}: after {done} effects the {who} dies")
    life.happened("death between two effects")
    if who == "server":
        hosts.lose_power(life, s, length_s)
    else:
        life.control_until[s] = life.now + length_s
        life.world = change(life.world, s, module=None)


def _do(life: Life, s: int, effect: Any) -> None:
    match effect:
        case SetTimer():
            after_s = effect.after_s / life.plan.rates[s]
            life.schedule(("timer", s, effect.timer), life.now + after_s, True)
        case CancelTimer():
            life.cancel("timer", s, effect.timer)
        case SendPulse():
            speaking.send_pulse(life, s)
        case StopVm() if effect.how is HowToStop.NORMAL:
            if not life.world.servers[s].vm or ("vm off", s) in life.pending:
                return
            life.schedule(("vm off", s), life.now + life.random.uniform(0.3, 6.0), True)
        case StartVm():
            life.cancel("vm off", s)
            life.world = actions.do(life.world, s, effect)
        case Ask() | Look():
            life.world = actions.do(life.world, s, effect)
            request = effect.claim if isinstance(effect, Ask) else effect
            life.later(life.now + _way_s(life), ("arbiter", s, request))
        case _:
            life.world = actions.do(life.world, s, effect)


def _number(life: Life, s: int) -> int | None:
    """How much the copy has changed, where a split brain policy may want to know."""
    return None if life.settings[s].split_brain == MANUAL else changed(life.world.servers[s])


def hear_mirror(life: Life, s: int) -> None:
    server = life.world.servers[s]
    take(life, s, MirrorReported(server.mirror, server.record, _number(life, s)))


def hear_peer(life: Life, s: int, view: PeerView) -> None:
    """The mirror is asked first: for its number, and where the pulse shows another record than the last one did."""
    server = life.world.servers[s]
    module = server.module
    answers = life.now >= life.frozen_until[MIRROR, s]
    if module is not None and (
        module.bytes_changed != _number(life, s) or (answers and _is_behind(server, module, view))
    ):
        hear_mirror(life, s)
        if life.world.servers[s].module is None:
            return  # it has died in the middle of that
    take(life, s, PeerHeard(view))


def is_number_old(life: Life, s: int) -> bool:
    """Whether the next pulse must say another number: in a split brain the policy compares what both say."""
    module = life.world.servers[s].module
    if module is None or module.peer is None or life.settings[s].split_brain == MANUAL:
        return False
    both_alone = all(record is not None and record.solo for record in (module.record, module.peer.record))
    return both_alone and module.bytes_changed != _number(life, s)


def _is_behind(server: Server, module: Module, view: PeerView) -> bool:
    """Whether the last report is older than the pulse: what its record says may have been done with this mirror."""
    shows_another = module.peer is None or module.peer.record != view.record
    return shows_another and (module.mirror, module.record) != (server.mirror, server.record)


def hear_vm(life: Life, s: int) -> None:
    take(life, s, VmReported(life.vm(s)))


def vm_is_off(life: Life, s: int) -> None:
    life.world = change(life.world, s, vm=False)


def timer_fires(life: Life, s: int, timer: Timer) -> None:
    if life.world.servers[s].module is not None:
        take(life, s, TimerFired(timer))


def boot(life: Life, s: int) -> None:
    life.world = change(life.world, s, up=True)
    start(life, s)


def start(life: Life, s: int) -> None:
    server = life.world.servers[s]
    speaking.begin_ear(life, s)
    number = _number(life, s)
    take(life, s, Started(server.record, server.wanted, server.maintenance, BOOT, server.mirror, life.vm(s), number))


def _way_s(life: Life) -> float:
    """To the arbiter, or back."""
    if life.arbiter_takes_s:
        return life.arbiter_takes_s[-1] / 2
    return limits.way_s(life.kind, life.arbiter_slow > 0, life.random)


def _reaches_arbiter(life: Life, s: int) -> bool:
    return not (life.arbiter_down or life.arbiter_apart[s])


def arbiter_decides(life: Life, s: int, request: Claim | Look) -> None:
    if (s, request) not in life.world.requests:
        return
    if life.arbiter_deaf[s] or not _reaches_arbiter(life, s):
        if life.random.random() < 0.5:
            life.soon(0.5, 10.0, "arbiter", s, request)  # sent again below, long after it was asked
        else:
            kept = tuple(other for other in life.world.requests if other != (s, request))
            life.world = life.world._replace(requests=kept)
        return
    if isinstance(request, Claim) and asked(life.kind, request.purpose) is Asked.PEER_OFF:
        _switch_off(life, 1 - s)
    life.world = actions.arbitrate(life.world, s, request, life.scope)
    answer = life.world.answers[-1][1]
    life.later(life.now + _way_s(life), ("answer", s, answer))
    if life.arbiter_slow:
        life.later(life.now + _way_s(life), ("answer", s, answer))
    if life.answers_repeated:
        for _ in range(COPIES_OF_AN_ANSWER):
            life.soon(1.0, LATEST_ANSWER_S, "answer", s, answer)


def _switch_off(life: Life, s: int) -> None:
    """A fencing command: for the host it is a power cut, and nobody's failure."""
    if life.world.servers[s].up:
        hosts.lose_power(life, s, life.random.uniform(5.0, 40.0))


def answer_comes(life: Life, s: int, answer: Answered | Looked) -> None:
    life.world = life.world._replace(answers=tuple(a for a in life.world.answers if a != (s, answer)))
    if life.world.servers[s].module is not None and _reaches_arbiter(life, s):
        take(life, s, answer)


def command(life: Life, s: int, what: Command) -> None:
    if life.now < life.frozen_until[CONTROL, s]:
        life.later(life.frozen_until[CONTROL, s], ("command", s, what))
    else:
        obey(life, s, what)


def obey(life: Life, s: int, what: Command) -> None:
    if life.world.servers[s].module is None:
        return
    life.happened(what.value)
    take(life, s, Commanded(what))


def check_fails(life: Life, s: int, action: CheckerAction, length_s: float) -> None:
    checker_acts(life, s, action)
    if action is CheckerAction.WAIT:
        life.later(life.now + length_s, ("checker", s, None))


def checker_acts(life: Life, s: int, action: CheckerAction | None) -> None:
    if life.world.servers[s].module is not None:
        life.happened("checker")
        take(life, s, CheckerActed(action))
