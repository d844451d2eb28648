"""The end of a life: the faults have stopped, the operator does the operator's part, and then it must run again."""

from __future__ import annotations

from hotpair.cluster.module_events import CheckerActed, Command, Commanded
from hotpair.cluster.module_values import State
from hotpair.cluster.simulation import control, invariants
from hotpair.cluster.simulation.faults import IN_SYNC_BY_S, QUIET_FROM_S, RUNS_BY_S
from hotpair.cluster.simulation.life import Life
from hotpair.cluster.simulation.watch import Violation

STOPPED_S = 8.0  # a guest has shut down by then


def plan_the_end(life: Life) -> None:
    life.later(QUIET_FROM_S, ("quiet",))
    for at in (470.0, 482.0, 494.0):
        life.later(at, ("operator",))
    life.later(RUNS_BY_S, ("must run",))
    for at in (520.0, 530.0):
        life.later(at, ("operator",))
    life.later(IN_SYNC_BY_S, ("must be in sync",))


def quiet(life: Life) -> None:
    for s in (0, 1):
        module = life.world.servers[s].module
        if module is None:
            continue
        if module.held:
            control.take(life, s, CheckerActed(None))
        if module.maintenance:
            control.take(life, s, Commanded(Command.MAINTENANCE_OFF))
        if life.plan.ends_started and not module.wanted:
            control.take(life, s, Commanded(Command.START))


def operator_decides(life: Life) -> None:
    """A split brain, or copies that are not related, are the operator's to end: the second server's is given up."""
    if not invariants.is_operators(life.world):
        return
    is_split = invariants.is_split(life.world)
    if invariants.must_have_ended_split(life.world, life.plan.policies) and not life.world.overridden:
        raise Violation("liveness: the policy does not end the split brain")
    life.result.for_operator = True
    for s in (1, 0):
        server, other = life.world.servers[s], life.world.servers[1 - s]
        record, theirs = server.record, other.record
        if server.module is None or record is None or record.inconsistent or not server.wanted or not other.wanted:
            continue
        if theirs is None or theirs.inconsistent or theirs.outdated:
            continue
        if server.module.state is State.ALONE and not is_split:
            control.take(life, s, Commanded(Command.STOP))
            life.later(life.now + STOPPED_S, ("command", s, Command.SECOND_FULL))
            return
        if server.module.state in (State.WAIT, State.ALONE):
            control.take(life, s, Commanded(Command.SECOND if is_split else Command.SECOND_FULL))
            return


def must_run(life: Life) -> None:
    life.watch.must_run(life.world, life.now)


def must_be_in_sync(life: Life) -> None:
    life.watch.must_be_in_sync(life.world, life.now)
