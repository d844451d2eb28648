"""Faults that belong together: what a purely random list of them comes to too rarely. Pure code.

Each scenario aims at one promise of the protocol at its narrowest moment: a message of a handover, an offer, a leaving,
a grant that comes again. It begins when the pair has been left alone for long, so that it is most probably green, and
speaks of PRIM and SECOND as they are then.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from random import Random

from hotpair.cluster.module_events import Command
from hotpair.cluster.simulation.fault_list import PRIMARY, SECONDARY, Detail, Fault

EARLIEST_S, LATEST_S = 10.0, 330.0  # the longest scenario is over LATEST_S + 80, and faults begin before 420


def scenario(random: Random, faults: list[Fault]) -> list[Fault]:
    """One of them, in the longest time in which nothing else begins."""
    times = [EARLIEST_S, *(fault.at_s for fault in faults if fault.at_s < LATEST_S), LATEST_S]
    length, begins = max((after - before, before) for before, after in pairwise(times))
    return random.choice(_SCENARIOS)(random, begins + length * random.uniform(0.5, 0.8))


def _fault(at_s: float, name: str, server: int, length_s: float = 0.0, detail: Detail = 0) -> Fault:
    return Fault(round(at_s, 3), name, server, round(length_s, 3), detail)


def _command(at_s: float, server: int, command: Command) -> Fault:
    return _fault(at_s, "command", server, detail=command.value)


def _broken_handover(random: Random, at_s: float) -> list[Fault]:
    """The connection breaks with the question or with its answer; perhaps nobody can be asked then [R9]."""
    command = random.choice((Command.SWAP, Command.SWAP, Command.STOP))
    breaks = random.choice(("partition in the middle", "partition in the middle", "link fails in the middle"))
    length = random.choice((random.uniform(0.1, 3.0), random.uniform(8.0, 40.0), random.uniform(8.0, 40.0)))
    faults = [_fault(at_s, breaks, 0, length, random.randint(1, 2)), _command(at_s + 0.01, PRIMARY, command)]
    if random.random() < 0.4:
        faults.append(_fault(at_s, "arbiter down", 0, random.uniform(5.0, 60.0)))
    return faults


def _grant_comes_again(random: Random, at_s: float) -> list[Fault]:
    """Granted, in sync again, and apart again: the first grant's copies come while another claim is waited for [R6]."""
    again = at_s + random.uniform(6.0, 14.0)
    length = random.uniform(20.0, 50.0)
    return [
        _fault(at_s, "answers repeated", 0, 4.0),
        _fault(at_s + 0.1, "link fails", 0, random.uniform(0.6, 2.0)),
        _fault(again, "arbiter does not hear", PRIMARY, length),
        _fault(again + 0.01, "partition", 0, length),
    ]


def _session_lost(random: Random, at_s: float) -> list[Fault]:
    """A source that is not solo begins a reintegration, and the connection breaks at its first messages [R10].

    It is not solo because it could not ask.
    """
    breaks = random.choice(("partition in the middle", "partition in the middle", "link fails in the middle"))
    who = random.choice((PRIMARY, SECONDARY, SECONDARY))
    if random.random() < 0.5:
        away = _fault(at_s - 0.05, "arbiter not reached", PRIMARY, random.uniform(2.0, 50.0))
    else:
        away = _fault(at_s - 0.05, "arbiter down", 0, random.uniform(2.0, 10.0))
    return [
        away,
        _fault(at_s, breaks, 0, random.uniform(8.0, 40.0), random.choice((1, 1, 2))),
        _fault(at_s + 0.01, "mirror dies", who),
    ]


def _offer_lost(random: Random, at_s: float) -> list[Fault]:
    """The connection breaks at one of the messages of a reintegration: begin, inconsistent, offer, taken [R1, R14]."""
    apart = random.uniform(1.6, 4.0)
    message = random.choice((1, 2, 3, 3, 4))
    return [
        _fault(at_s, "link fails", 0, apart),
        _fault(at_s + apart - 0.05, "link fails in the middle", 0, random.uniform(2.0, 10.0), message),
    ]


def _leaving_not_heard(random: Random, at_s: float) -> list[Fault]:
    """SECOND stops, PRIM does not answer and loses its power: the copy that left may be the better one [R15]."""
    start = at_s + random.uniform(30.0, 75.0)
    return [
        _fault(at_s, "mirror freezes", PRIMARY, random.uniform(4.0, 20.0)),
        _command(at_s + 0.02, SECONDARY, Command.STOP),
        _fault(at_s + random.uniform(0.1, 8.0), "power cut", PRIMARY, random.uniform(5.0, 25.0)),
        _command(start, 0, Command.START),
        _command(start, 1, Command.START),
    ]


def _power_after_swap(random: Random, at_s: float) -> list[Fault]:
    """Both lose their power after a change of primary: the term decides; or the new one alone, and nobody to ask."""
    cut = at_s + random.uniform(8.0, 20.0)
    if random.random() < 0.5:
        lost = _fault(cut, "power cut of both", 0, random.uniform(5.0, 30.0))
    else:
        lost = _fault(cut, "power cut", PRIMARY, random.uniform(4.0, 20.0))
    return [
        _command(at_s, PRIMARY, Command.SWAP),
        _fault(cut - 0.5, "arbiter down", 0, random.uniform(10.0, 50.0)),
        lost,
    ]


_SCENARIOS: tuple[Callable[[Random, float], list[Fault]], ...] = (
    _broken_handover,
    _grant_comes_again,
    _session_lost,
    _offer_lost,
    _leaving_not_heard,
    _power_after_swap,
)
