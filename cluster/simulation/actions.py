"""What can happen next in a world, and what comes of it: messages, reports, timers, faults, operator commands.

`actions` lists everything that is possible now; `perform` does one of them. An explorer does each, a scheduler chooses
one. A supervisor can die, or its whole server, between any two effects of a step: the action then says after how many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

from hotpair.cluster.arbitration import (
    Answer,
    Asked,
    Claim,
    Kind,
    Purpose,
    asked,
    granted,
    keeps_epochs,
    move,
    refused,
    refused_by_table,
    unreachable,
)
from hotpair.cluster.module_events import (
    Agree,
    Answered,
    Ask,
    Command,
    Commanded,
    Effect,
    Event,
    FailTap,
    GoAlone,
    HandOver,
    Leave,
    Look,
    Looked,
    MirrorReported,
    Now,
    PeerHeard,
    PeerLost,
    Remember,
    Reply,
    Salvage,
    Started,
    StartMirror,
    StartVm,
    StopMirror,
    StopVm,
    Store,
    Timer,
    TimerFired,
    VmReported,
)
from hotpair.cluster.module_values import MirrorMode, Module, Plan, Role, State, Vm
from hotpair.cluster.simulation import mirrors
from hotpair.cluster.simulation.remembered import PLAIN, Machine
from hotpair.cluster.simulation.world import (
    BOOT,
    NAMES,
    OLD_BOOT,
    Server,
    World,
    change,
    changed,
    flush,
    own_changes,
    settings,
)
from hotpair.cluster.split_brain import MANUAL, MOST_CHANGES


class Sort(NamedTuple):
    """What an action costs: nothing, one of the faults, or one of the operator's commands."""

    faults: int
    commands: int


FREE, FAULT, COMMAND = Sort(0, 0), Sort(1, 0), Sort(0, 1)


class Action(NamedTuple):
    """`cut`: the control plane ("control") or the server ("server") dies after that many effects of the step."""

    name: str
    server: int = 0
    argument: object = None
    cut: int = -1
    dies: str = ""


@dataclass(frozen=True)
class Scope:
    """What is explored. `faults`: names of those that happen; each costs one of the world's faults.

    late_reports   a control plane may lag behind its own mirror and VM; otherwise their reports come before all else
    stale_pulses   a pulse may be old; otherwise each change is heard at once while there is a network
    policy         of both servers, for a split brain
    """

    kind: Kind
    writes: int = 1
    faults: frozenset[str] = frozenset(
        {"crash", "control", "mirror", "vm", "link", "network", "arbiter", "cut", "late"}
    )
    commands: tuple[Command, ...] = (Command.START, Command.STOP, Command.SWAP)
    power: bool = False
    late_reports: bool = False
    stale_pulses: bool = False
    policy: str = MANUAL


MATERIAL = (
    Store,
    Remember,
    StartMirror,
    Salvage,
    StopMirror,
    GoAlone,
    FailTap,
    HandOver,
    Leave,
    Agree,
    StartVm,
    StopVm,
    Ask,
    Look,
)


# ---- what is possible


def actions(world: World, scope: Scope, machine: Machine = PLAIN) -> Iterator[tuple[Action, Sort]]:
    """Everything that can happen now, with its price. The cuts inside a step are added by `cuts`."""
    first = urgent(world, scope, machine)
    if first is not None:
        yield first, FREE
        if world.faults:
            for fault in _faults(world, scope, first.server):
                if fault[0].name in ("crash", "control dies"):
                    yield fault
        return
    for s in (0, 1):
        server = world.servers[s]
        if not server.up:
            yield Action("boot", s), FREE
            continue
        if server.module is None:
            yield Action("control starts", s), FREE
        else:
            yield from _control(world, scope, s, server.module, machine)
        yield from _mirror(world, scope, s)
        if world.faults:
            yield from _faults(world, scope, s)
        if world.commands and server.module is not None:
            for command in scope.commands:
                if _makes_sense(server.module, command):
                    yield Action("command", s, command), COMMAND
    for request in dict.fromkeys(world.requests):
        if (world.arbiter_up or scope.kind is Kind.NONE) and _is_taken(world, scope, *request):
            yield Action("arbiter", *request), FREE
    for answer in dict.fromkeys(world.answers):
        if world.servers[answer[0]].module is not None:
            yield Action("answer", *answer), FREE
    if world.faults:
        if world.link and "link" in scope.faults:
            yield Action("link fails"), FAULT
        if world.net and "network" in scope.faults:
            yield Action("network fails"), FAULT
        if world.arbiter_up and "arbiter" in scope.faults and scope.kind not in (Kind.NONE, Kind.MANUAL):
            yield Action("arbiter fails"), FAULT
    if not world.link:
        yield Action("network heals"), FREE
    if not world.arbiter_up:
        yield Action("arbiter heals"), FREE


def urgent(world: World, scope: Scope, machine: Machine = PLAIN) -> Action | None:
    """What comes before all else in this scope: only deaths can come in between."""
    for s in (0, 1):
        server = world.servers[s]
        module = server.module
        if module is None or scope.late_reports:
            continue
        if _is_unreported(server, module, scope):
            return Action("mirror report", s)
        if (Vm.ON if server.vm else Vm.OFF) is not module.vm:
            return Action("vm report", s)
    if scope.kind is Kind.NONE and not scope.late_reports:
        for request in world.requests:
            if _is_taken(world, scope, *request):
                return Action("arbiter", *request)
        for answer in world.answers:
            if world.servers[answer[0]].module is not None:
                return Action("answer", *answer)
    for s in (0, 1):
        module, other = world.servers[s].module, world.servers[1 - s].module
        is_heard = world.net and not scope.stale_pulses
        if is_heard and module is not None and other is not None and machine.view(other) != module.peer:
            return Action("pulse", s)
    return None


def _is_taken(world: World, scope: Scope, s: int, request: object) -> bool:
    """A witness takes what comes late, too; a fence acts only while its asker waits: it is its child."""
    module = world.servers[s].module
    if keeps_epochs(scope.kind):
        return True
    asking = None if module is None else module.asking
    return isinstance(request, Claim) and asking is not None and asking.request_id == request.request_id


def _control(world: World, scope: Scope, s: int, module: Module, machine: Machine) -> Iterator[tuple[Action, Sort]]:
    server, other = world.servers[s], world.servers[1 - s]
    if _is_unreported(server, module, scope):
        yield Action("mirror report", s), FREE
    if (Vm.ON if server.vm else Vm.OFF) is not module.vm:
        yield Action("vm report", s), FREE
    if world.net and other.module is not None:
        if machine.view(other.module) != module.peer:
            yield Action("pulse", s), FREE
    elif (module.peer is not None or module.listening) and not _link_lives(world):
        yield Action("peer lost", s), FREE
    yield from _timers(world, scope, module, s)


def _is_unreported(server: Server, module: Module, scope: Scope) -> bool:
    reported = (module.mirror, module.record, module.bytes_changed)
    return (server.mirror, server.record, _changed(server, scope)) != reported


def _changed(server: Server, scope: Scope) -> int | None:
    """What is reported of it: where nobody compares it, and before the copy goes alone, it would only make worlds."""
    is_compared = scope.policy == MOST_CHANGES and server.record is not None and server.record.solo
    return changed(server) if is_compared else None


def _link_lives(world: World) -> bool:
    return world.wire >= 0 and world.link


def _timers(world: World, scope: Scope, module: Module, s: int) -> Iterator[tuple[Action, Sort]]:
    """A timer that is set can fire at any moment. One that would change nothing is left out."""
    if module.refused:
        yield Action("timer", s, Timer.RETRY), FREE
    if module.asking is not None or module.looking is not None:
        if not world.arbiter_up:
            yield Action("timer", s, Timer.ANSWER), FREE
        elif world.faults and "late" in scope.faults and keeps_epochs(scope.kind):
            yield Action("timer", s, Timer.ANSWER), FAULT
    epoch = world.standing.epoch if module.record is None else module.record.epoch
    if module.agreed and keeps_epochs(scope.kind) and epoch != world.standing.epoch:
        yield Action("timer", s, Timer.AGREEMENT), FREE
    if module.plan is Plan.LEAVE and world.wire < 0:
        yield Action("timer", s, Timer.LEAVE), FREE


def _mirror(world: World, scope: Scope, s: int) -> Iterator[tuple[Action, Sort]]:
    server = world.servers[s]
    mirror = server.mirror
    if mirror is None:
        return
    if mirror.linked and world.queues[1 - s]:
        yield Action("receive", s), FREE
    if mirrors.notices_loss(world, s):
        yield Action("link loss", s), FREE
    if mirrors.can_connect(world, s):
        yield Action("connect", s), FREE
    if mirrors.can_fill(world, s):
        yield Action("fill", s), FREE
    if mirror.role is Role.SOURCE and server.vm:
        if mirror.mode is MirrorMode.FROZEN:
            yield Action("fence itself", s), FREE
        elif mirror.mode is not MirrorMode.FAILED and server.held < 0 and world.written < scope.writes:
            yield Action("write", s), FREE
    is_quiet = mirror.mode is MirrorMode.PAIRED and world.wire == s and world.queues == ((), ()) and server.held < 0
    if scope.power and is_quiet and (server.volatile or world.servers[1 - s].volatile or server.dirty):
        yield Action("flush", s), FREE


def _faults(world: World, scope: Scope, s: int) -> Iterator[tuple[Action, Sort]]:
    server = world.servers[s]
    if "crash" in scope.faults:
        yield Action("crash", s), FAULT
    if "power" in scope.faults and server.volatile:
        yield Action("power", s), FAULT
    if "control" in scope.faults and server.module is not None:
        yield Action("control dies", s), FAULT
    if "mirror" in scope.faults and server.mirror is not None:
        yield Action("mirror dies", s), FAULT
    if "vm" in scope.faults and server.vm:
        yield Action("vm dies", s), FAULT


def _makes_sense(module: Module, command: Command) -> bool:
    """Commands that would only be refused, or are no change, are left out of an exploration."""
    match command:
        case Command.START:
            return module.state is State.STOP
        case Command.STOP | Command.STOPSTART:
            return module.state is not State.STOP and module.wanted and module.plan is None
        case Command.SWAP:
            return module.state is State.PRIM and module.plan is None
        case Command.RESTART:
            return module.vm is Vm.ON and module.plan is None
        case Command.PRIM | Command.PRIM_FORCE | Command.SECOND | Command.SECOND_FULL:
            return module.state in (State.STOP, State.WAIT, State.ALONE)
        case Command.MAINTENANCE_ON:
            return not module.maintenance
        case Command.MAINTENANCE_OFF:
            return module.maintenance


# ---- what comes of it


def event_of(world: World, action: Action, scope: Scope, machine: Machine) -> Event | None:
    """What the control plane hears by this action; None if it is not the control plane that acts."""
    s = action.server
    server = world.servers[s]
    match action.name:
        case "mirror report":
            return MirrorReported(server.mirror, server.record, _changed(server, scope))
        case "vm report":
            return VmReported(Vm.ON if server.vm else Vm.OFF)
        case "pulse":
            other = world.servers[1 - s].module
            assert other is not None
            return PeerHeard(machine.view(other))
        case "peer lost":
            return PeerLost()
        case "timer":
            assert isinstance(action.argument, Timer)
            return TimerFired(action.argument)
        case "command":
            assert isinstance(action.argument, Command)
            return Commanded(action.argument)
        case "answer":
            assert isinstance(action.argument, Answered | Looked)
            return action.argument
        case "control starts" | "boot":
            vm = Vm.ON if server.vm else Vm.OFF
            number = _changed(server, scope)
            return Started(server.record, server.wanted, server.maintenance, BOOT, server.mirror, vm, number)
        case _:
            return None


def perform(world: World, action: Action, scope: Scope, machine: Machine = PLAIN) -> World:
    """The world after it, not yet in canonical form."""
    event = event_of(world, action, scope, machine)
    if event is None:
        return _happen(world, action, scope)
    s = action.server
    if action.name == "boot":
        world = change(world, s, up=True)
    if action.name == "answer":
        world = world._replace(answers=_without(world.answers, (s, action.argument)))
    module = world.servers[s].module or _unstarted(scope.kind, s, scope.policy)
    module, effects = machine.step(module, event, Now(0.0, world.fresh))
    world = change(overridden(world, module, event, effects), s, module=module)
    done = 0
    for effect in effects:
        if done == action.cut:
            break
        world = do(world, s, effect)
        done += isinstance(effect, MATERIAL)
    if action.dies == "control":
        return change(world, s, module=None)
    if action.dies == "server":
        return crash(world, s)
    return world


@cache
def _unstarted(kind: Kind, s: int, policy: str) -> Module:
    return Module(settings=settings(kind, s, policy))


def pay(world: World, sort: Sort) -> World:
    """Take what the action costs off what the world may still suffer."""
    if sort == FREE:
        return world
    return world._replace(faults=world.faults - sort.faults, commands=world.commands - sort.commands)


_OVERRIDES = (Command.PRIM, Command.PRIM_FORCE, Command.SECOND, Command.SECOND_FULL)


def overridden(world: World, module: Module, event: Event, effects: tuple[Effect, ...]) -> World:
    """The same world; if an operator just decided in the protocol's place, that is on record.

    Where no arbiter remembers who went on, `prim` beside a silent peer is the operator's word alone, as with `--force`.
    """
    if not isinstance(event, Commanded) or event.command not in _OVERRIDES:
        return world
    if not any(isinstance(effect, Reply) and effect.accepted for effect in effects):
        return world
    alone = event.command is Command.PRIM and module.peer is None and not keeps_epochs(module.settings.kind)
    return world._replace(overridden=True, forced=world.forced or alone or event.command is Command.PRIM_FORCE)


def cuts(world: World, action: Action, scope: Scope, machine: Machine = PLAIN) -> Iterator[Action]:
    """The same step, ended between two of its effects by the death of the control plane, or of the server."""
    event = event_of(world, action, scope, machine)
    if event is None or action.dies or "cut" not in scope.faults:
        return
    s = action.server
    module = world.servers[s].module or _unstarted(scope.kind, s, scope.policy)
    _, effects = machine.step(module, event, Now(0.0, world.fresh))
    material = sum(isinstance(effect, MATERIAL) for effect in effects)
    for cut in range(1, material):
        yield action._replace(cut=cut, dies="control")
        yield action._replace(cut=cut, dies="server")


def _happen(world: World, action: Action, scope: Scope) -> World:
    s = action.server
    match action.name:
        case "receive":
            return mirrors.receive(world, s)
        case "link loss":
            return mirrors.lose_link(world, s)
        case "connect":
            return mirrors.connect(world, s)
        case "fill":
            return mirrors.fill(world, s)
        case "write":
            return mirrors.write(world, s)
        case "flush":
            return change(flush(world, 0, 1), s, dirty=0)
        case "fence itself":
            return mirrors.fence_itself(world, s)
        case "crash":
            return crash(world, s)
        case "power":
            return crash(lose_volatile(world, s), s)
        case "control dies":
            return change(world, s, module=None)
        case "mirror dies":
            return mirrors.die(world, s)
        case "vm dies":
            return change(world, s, vm=False)
        case "link fails":
            return world._replace(link=False, wire=-1)
        case "network fails":
            return world._replace(link=False, net=False, wire=-1)
        case "network heals":
            return world._replace(link=True, net=True)
        case "arbiter fails":
            return world._replace(arbiter_up=False)
        case "arbiter heals":
            return world._replace(arbiter_up=True)
        case "arbiter":
            assert isinstance(action.argument, Claim | Look)
            return arbitrate(world, s, action.argument, scope)
    raise AssertionError(action)


def crash(world: World, s: int) -> World:
    """The host is gone, with everything that is not on its disk. What it has sent may still be read."""
    server = world.servers[s]
    if server.mirror is not None and server.mirror.linked:
        world = mirrors.close(world, s)
    record = None if server.record is None else replace(server.record, boot=OLD_BOOT)
    server = world.servers[s]._replace(up=False, module=None, mirror=None, vm=False, held=-1, record=record)
    servers = (server, world.servers[1]) if s == 0 else (world.servers[0], server)
    return world._replace(servers=servers, answers=tuple(answer for answer in world.answers if answer[0] != s))


def lose_volatile(world: World, s: int) -> World:
    """A power cut. Acknowledged writes that are on neither disk any more were not flushed: nobody promised them."""
    server = world.servers[s]
    world = change(world, s, copy=server.copy & ~server.volatile, volatile=0)
    return world._replace(acked=world.acked & (world.servers[0].copy | world.servers[1].copy))


def _without(
    items: tuple[tuple[int, Answered | Looked], ...], item: object
) -> tuple[tuple[int, Answered | Looked], ...]:
    kept = list(items)
    kept.remove(item)  # type: ignore[arg-type]
    return tuple(kept)


def arbitrate(world: World, s: int, request: Claim | Look, scope: Scope) -> World:
    """The arbiter takes a request; the answer is on its way."""
    requests = list(world.requests)
    requests.remove((s, request))
    world = world._replace(requests=tuple(requests))
    if isinstance(request, Look):
        return world._replace(answers=(*world.answers, (s, Looked(request.request_id, world.standing))))
    assert isinstance(request, Claim)
    world, answer = _decide(world, s, request, scope)
    return world._replace(answers=(*world.answers, (s, Answered(answer))))


def _decide(world: World, s: int, claim: Claim, scope: Scope) -> tuple[World, Answer]:
    what = asked(scope.kind, claim.purpose)
    if what in (Asked.NEVER, Asked.NOT_ASKED):
        return world, refused_by_table(scope.kind, claim)
    if keeps_epochs(scope.kind):
        moved = move(world.standing, claim)
        answer = (granted if moved.granted else refused)(claim, "", moved.after)
        return world._replace(standing=moved.after), answer
    if what is Asked.PEER_OFF and world.servers[1 - s].up:
        world = crash(world, 1 - s)
    return world, granted(claim, "")


# ---- effects


def do(world: World, s: int, effect: Effect) -> World:
    """Carry out one effect of the control plane on s. Those that only tell somebody do nothing to the world."""
    match effect:
        case Store():
            assert world.servers[s].mirror is None, "the mirror keeps the record while it runs"
            return change(flush(world, s) if effect.flush else world, s, record=effect.record)
        case Remember():
            return change(world, s, wanted=effect.wanted, maintenance=effect.maintenance)
        case Salvage():
            server = world.servers[s]
            return change(world, s, salvaged=server.salvaged | own_changes(server))
        case StartMirror():
            return mirrors.start(world, s, effect.role, alone=effect.alone)
        case StopMirror():
            return mirrors.stop(world, s)
        case GoAlone():
            return mirrors.go_alone(world, s, effect)
        case FailTap():
            return mirrors.fail_tap(world, s)
        case HandOver():
            return mirrors.hand_over(world, s)
        case Leave():
            return mirrors.leave(world, s)
        case Agree():
            return mirrors.agree(world, s, effect)
        case StartVm():
            mirror = world.servers[s].mirror
            return change(world, s, vm=mirror is not None and mirror.role is Role.SOURCE)
        case StopVm():
            return change(world, s, vm=False)  # a write under way stays with the mirror
        case Ask():
            return world._replace(requests=(*world.requests, (s, effect.claim)))
        case Look():
            return world._replace(requests=(*world.requests, (s, effect)))
        case _:
            return world


# ---- in words


def describe(action: Action) -> str:
    """One line of a trace."""
    name = NAMES[action.server]
    where = "" if action.name.startswith(("link fails", "network", "arbiter f", "arbiter h")) else f"{name}: "
    argument = action.argument
    detail = ""
    if isinstance(argument, Timer | Command):
        detail = f" {argument.value}"
    elif isinstance(argument, Answered):
        answer = argument.answer
        detail = f" {'granted' if answer.granted else 'refused'} (epoch {answer.epoch}, {answer.holder})"
    elif isinstance(argument, Looked):
        detail = f" {argument.standing}"
    elif isinstance(argument, Claim):
        detail = f" takes the claim {argument.purpose.value!r} from epoch {argument.epoch}"
    dies = f", and after {action.cut} effects the {action.dies} dies" if action.dies else ""
    return f"{where}{action.name}{detail}{dies}"


__all__ = [
    "COMMAND",
    "FAULT",
    "FREE",
    "Action",
    "Purpose",
    "Scope",
    "Server",
    "actions",
    "describe",
    "perform",
    "unreachable",
    "urgent",
]
