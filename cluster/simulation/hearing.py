"""Pulses and the link's answers, heard through the real failure detector; what changes nothing is skipped."""

from __future__ import annotations

from hotpair.cluster.failure_detector import Change, Doubted, PeerChanged, PeerStatus
from hotpair.cluster.module_events import Doubted as ModuleDoubted
from hotpair.cluster.module_events import PeerLost
from hotpair.cluster.simulation import control, speaking
from hotpair.cluster.simulation.life import CONTROL, MIRROR, Life
from hotpair.cluster.simulation.pulses import PULSE_S, Datagram
from hotpair.cluster.simulation.world import NAMES


def beat(life: Life, s: int) -> None:
    """Every PULSE_S of its own clock: look at the time, probe the link, pulse."""
    ear = life.ears[s]
    if ear is None:
        life.beats[s] = float("inf")
        return
    thaws = life.frozen_until[CONTROL, s]
    if life.now < thaws:
        life.beats[s] = thaws + life.random.uniform(0.0, 0.02)
        return
    life.beats[s] = life.now + PULSE_S / life.plan.rates[s]
    changes = ear.looks(life.local(s), life.challenge())
    if _link_answers(life, s):
        changes += ear.hears_link(life.local(s), life.challenge())
    _heard(life, s, changes)
    if control.is_number_old(life, s):
        control.hear_mirror(life, s)
    speaking.send_pulse(life, s)


def _link_answers(life: Life, s: int) -> bool:
    mirror = life.world.servers[s].mirror
    lives = life.world.wire >= 0 and mirror is not None and mirror.linked and life.paths.link()
    return lives and max(life.frozen_until[MIRROR, 0], life.frozen_until[MIRROR, 1]) <= life.now


def _heard(life: Life, s: int, changes: list[Change]) -> None:
    for found in changes:
        if life.world.servers[s].module is None:
            return
        if isinstance(found, Doubted):
            life.say(f"{NAMES[s]}: doubts, the clock jumped by {found.gap_s:.1f} s")
            control.take(life, s, ModuleDoubted())
        elif isinstance(found, PeerChanged) and found.status is PeerStatus.LOST:
            life.say(f"{NAMES[s]}: the peer is lost")
            control.take(life, s, PeerLost())


def datagram_comes(life: Life, s: int, datagram: Datagram) -> None:
    ear, module = life.ears[s], life.world.servers[s].module
    if ear is None or module is None:
        return
    is_new, answers, changes = ear.hears(datagram, life.local(s), life.challenge())
    _heard(life, s, changes)
    module = life.world.servers[s].module
    if is_new and module is not None and module.peer != datagram.view:
        control.hear_peer(life, s, datagram.view)
    if answers:
        speaking.send_pulse(life, s)


def skip(life: Life, s: int, until_s: float) -> bool:
    """Leave out the pulses up to then, if they would all say and find the same; the next beat is that of s."""
    if life.beats[s] > until_s or not life.paths.is_calm() or life.slow_delays:
        return False
    hears: list[tuple[tuple[bool, bool], bool]] = []
    for t in (0, 1):
        ear, other = life.ears[t], life.ears[1 - t]
        module, theirs = life.world.servers[t].module, life.world.servers[1 - t].module
        if ear is not None and life.now < life.frozen_until[CONTROL, t]:
            return False
        speaks = other is not None and theirs is not None
        comes = (speaks and life.paths.gets_through(0, 1 - t), speaks and life.paths.gets_through(1, 1 - t))
        link = _link_answers(life, t)
        hears.append((comes, link))
        if ear is None or module is None:
            continue
        if control.is_number_old(life, t):
            return False
        if not ear.is_settled(comes, link):
            return False
        if theirs is None or other is None or not any(comes):
            continue
        if ear.peer_incarnation != other.incarnation or module.peer != life.view(1 - t, theirs):
            return False
    period = PULSE_S / life.plan.rates[s]
    last = life.beats[s] + period * int((until_s - life.beats[s]) / period)
    for t in (0, 1):
        ear = life.ears[t]
        if ear is not None:
            ear.skip(life.clock_offset[t] + last * life.plan.rates[t], *hears[t])
            each = PULSE_S / life.plan.rates[t]
            life.beats[t] += each * max(0, int((last - life.beats[t]) / each) + 1)
    life.now = max(life.now, last)
    return True
