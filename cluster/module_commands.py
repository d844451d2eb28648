"""What the operator and the checkers may have done, and when it is refused, with the reason. Pure code."""

from __future__ import annotations

from collections.abc import Callable

from hotpair.cluster import module_rules as rules
from hotpair.cluster import record
from hotpair.cluster.arbitration import Purpose
from hotpair.cluster.checker_rules import Action
from hotpair.cluster.module_draft import Draft
from hotpair.cluster.module_events import Command, Reply
from hotpair.cluster.module_running import give_way, may_swap
from hotpair.cluster.module_values import Plan, Reason, Role, State, Vm
from hotpair.cluster.record import Rule

_RUNNING = (State.ALONE, State.PRIM)


def obey(draft: Draft, command: Command) -> None:
    """Do it or refuse it, and answer."""
    why = _COMMANDS[command](draft)
    draft.do(Reply(not why, why))


def _start(draft: Draft) -> str:
    if draft.module.state is not State.STOP:
        return "" if draft.module.wanted else "It is being stopped: wait until it is."
    draft.remember(wanted=True)
    draft.enter(State.WAIT)
    return ""


def _stop(draft: Draft) -> str:
    if draft.module.state is State.STOP:
        return ""
    draft.remember(wanted=False)
    _plan_to_stop(draft)
    return ""


def _plan_to_stop(draft: Draft) -> None:
    plan = draft.module.plan
    if plan is Plan.HANDING_OVER:
        draft.set_plan(Plan.HANDING_OVER_TO_STOP)
    elif plan not in (Plan.LEAVE, Plan.HANDING_OVER_TO_STOP):
        draft.set_plan(Plan.STOP)


def _stopstart(draft: Draft) -> str:
    if draft.module.state is State.STOP:
        return _start(draft)
    if draft.module.plan is not None:
        return f"{draft.module.plan.value} is under way."
    draft.set_plan(Plan.STOPSTART)
    return ""


def _restart(draft: Draft) -> str:
    if draft.module.state not in _RUNNING or draft.module.vm is not Vm.ON:
        return "The VM does not run here."
    if draft.module.plan is not None:
        return f"{draft.module.plan.value} is under way."
    draft.set_plan(Plan.RESTART)
    return ""


def _swap(draft: Draft) -> str:
    module = draft.module
    if module.plan is not None:
        return f"{module.plan.value} is under way."
    if module.state is not State.PRIM or not may_swap(draft, module.peer):
        return "A swap needs PRIM here and SECOND at the peer, both green."
    draft.set_plan(Plan.SWAP)
    return ""


def _prim(draft: Draft) -> str:
    return _declare_current(draft, Purpose.OPERATOR)


def _prim_force(draft: Draft) -> str:
    return _declare_current(draft, Purpose.OPERATOR_FORCED)


def _declare_current(draft: Draft, purpose: Purpose) -> str:
    """The operator declares this copy current; the arbiter's epoch is moved to this server first [R13]."""
    module = draft.module
    if module.state in _RUNNING:
        return "It runs here already."
    if module.state is State.SECOND or (module.plan is not None):
        return "It is in use as the peer's copy: stop it first."
    if module.peer is not None and module.peer.state in _RUNNING:
        return "It runs on the peer."
    own = module.record
    if own is None:
        if module.mirror is not None or (module.peer is not None and module.peer.record is not None):
            return "There is no copy on this server, but one on the peer."
        draft.remember(wanted=True)
        draft.enter(State.WAIT)
        draft.start_mirror(Role.SOURCE, alone=True)
        return ""
    if not rules.current(module):
        what = "inconsistent" if own.inconsistent else "outdated"
        if purpose is not Purpose.OPERATOR_FORCED:
            return f"This copy is {what}. If there is no better one any more: prim --force."
        if module.peer is not None and record.is_usable(module.peer.record):
            return f"This copy is {what}, and the peer has a usable one: start it there."
    if module.mirror is not None and (not rules.frozen(module) or rules.linked(module)):
        draft.stop_mirror()
        return "The mirror is being stopped: try again."
    draft.remember(wanted=True)
    draft.enter(State.WAIT)
    if rules.may_take_command(module):
        draft.go_alone(None, is_forced=purpose is Purpose.OPERATOR_FORCED)
    else:
        draft.ask(purpose)
    return ""


def _second(draft: Draft) -> str:
    return _become_second(draft, is_full=False)


def _second_full(draft: Draft) -> str:
    return _become_second(draft, is_full=True)


def _become_second(draft: Draft, *, is_full: bool) -> str:
    """The operator chooses the peer's copy: this one is given up, durably, and copied to."""
    module = draft.module
    peer, own = module.peer, module.record
    if module.state in (State.PRIM, State.SECOND) or module.plan is not None:
        return "It has its role in the pair: swap, or stop it first."
    if peer is None or not record.is_usable(peer.record):
        return "The peer's copy is not known to be usable: this one is not given up."
    if own is None:
        return _start(draft)
    is_split = rules.meeting(module, peer).rule is Rule.SPLIT_BRAIN
    if module.state is State.ALONE:
        if not is_split:
            return "It runs here: stop it first."
        give_way(draft, Reason.SPLIT_BRAIN)
        return "Split brain: the VM is being stopped here. Give the command again when it is off."
    if module.mirror is not None:
        draft.stop_mirror()
        return "The mirror is being stopped: try again."
    if is_full:
        draft.store(record.give_up_all(own, draft.fresh()))
    elif is_split:
        draft.store(record.give_up(own))
    return _start(draft)


def _maintenance_on(draft: Draft) -> str:
    draft.remember(maintenance=True)
    return ""


def _maintenance_off(draft: Draft) -> str:
    draft.remember(maintenance=False)
    return ""


_COMMANDS: dict[Command, Callable[[Draft], str]] = {
    Command.START: _start,
    Command.STOP: _stop,
    Command.RESTART: _restart,
    Command.STOPSTART: _stopstart,
    Command.SWAP: _swap,
    Command.PRIM: _prim,
    Command.PRIM_FORCE: _prim_force,
    Command.SECOND: _second,
    Command.SECOND_FULL: _second_full,
    Command.MAINTENANCE_ON: _maintenance_on,
    Command.MAINTENANCE_OFF: _maintenance_off,
}


def act_for_checker(draft: Draft, action: Action | None) -> None:
    """A checker's rule, answered as a command is; None lets a held module go on: also under maintenance, in which
    checkers have no say, for it is not said again."""
    if action is None:
        draft.change(held=False)
        why = ""
    elif draft.module.maintenance:
        why = Reason.MAINTENANCE.value
    elif draft.module.state is State.STOP and action is not Action.WAIT:
        why = Reason.STOPPED.value
    else:
        why = _ACTIONS[action](draft)
    draft.do(Reply(not why, why))


def _hold(draft: Draft) -> str:
    """Told in time, to a module that does not run yet, nothing is begun that would have to be stopped again."""
    draft.change(held=True)
    if draft.module.state in _RUNNING and draft.module.plan is None:
        draft.set_plan(Plan.STOPSTART)
    return ""


_ACTIONS: dict[Action, Callable[[Draft], str]] = {
    Action.STOP: _stop,
    Action.WAIT: _hold,
    Action.SWAP: _swap,
    Action.STOPSTART: _stopstart,
    Action.RESTART: _restart,
    Action.NONE: lambda draft: "",
}
