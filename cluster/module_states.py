"""The states of a module, how to get in and out, and every transition there is. Data; docs/states.md is made of it."""

from __future__ import annotations

from hotpair.cluster.module_values import State

STATES: dict[State, str] = {
    State.STOP: (
        "Not running here, but the peer is answered. In: a stop, once VM and mirror are "
        "gone; the start of a supervisor "
        "whose module is not wanted. Out: the operator's start, prim or second."
    ),
    State.WAIT: (
        "Started, and may not or cannot run; the reason is shown. In: every start; every "
        "loss of the right to run. Out: "
        "the mirror's hello gave it a role, arbitration or consent let it go on alone, or a stop."
    ),
    State.ALONE: (
        "Runs the VM; the peer has no current copy, or is being copied to. In: a durable "
        "solo generation. Out: sync was "
        "offered to the target, the peer has gone on instead, a split brain was lost by the policy, "
        "the disk failed, or a stop."
    ),
    State.PRIM: (
        "Runs the VM; the peer has, or may have, an identical copy, so nothing is "
        "acknowledged without it. In: sync was "
        "offered. Out: going on alone by arbitration or consent, the right to run lost, a handover, or a stop."
    ),
    State.SECOND: (
        "The peer's target: being copied to, or in sync. In: the mirror's hello. Out: "
        "the connection is lost and cannot "
        "be resumed, or a stop."
    ),
}

TRANSITIONS: dict[tuple[State, State], str] = {
    (State.STOP, State.STOP): "a supervisor starts, not wanted",
    (State.STOP, State.WAIT): "start, prim, second",
    (State.STOP, State.ALONE): "a supervisor starts and finds the mirror alone",
    (State.STOP, State.PRIM): "a supervisor starts and finds the mirror in sync",
    (State.STOP, State.SECOND): "a supervisor starts and finds a target",
    (State.WAIT, State.STOP): "stopped",
    (State.WAIT, State.WAIT): "start again",
    (State.WAIT, State.ALONE): "granted, consented, or source at the hello",
    (State.WAIT, State.PRIM): "session resumed",
    (State.WAIT, State.SECOND): "target at the hello",
    (State.ALONE, State.STOP): "stopped",
    (State.ALONE, State.WAIT): "overtaken, split brain lost, disk failed, stopstart",
    (State.ALONE, State.PRIM): "sync offered",
    (State.PRIM, State.STOP): "stopped, handed over",
    (State.PRIM, State.WAIT): "refused, overtaken, fenced, handed over",
    (State.PRIM, State.ALONE): "granted, consented, or the target is copied to again",
    (State.SECOND, State.STOP): "stopped",
    (State.SECOND, State.WAIT): "link and session lost",
}
