"""Checkers of the invariants of design/protocol.md, on worlds only. They share no decision with the state machine.

Each returns what is wrong, or None. What an operator's override or a split brain under `ping` or `none` may cost is
left out where the protocol says so.
"""

from __future__ import annotations

from collections.abc import Callable

from hotpair.cluster.arbitration import Asked, Claim, Kind, asked, keeps_epochs, move
from hotpair.cluster.module_events import Look
from hotpair.cluster.module_values import Mirror, MirrorMode, Plan, Role, State, ready, view
from hotpair.cluster.record import Record
from hotpair.cluster.simulation.world import BOOT, EVERYTHING, NAMES, OLD_BOOT, Server, World, changed

_TAKES_WRITES_ALONE = (MirrorMode.ALONE, MirrorMode.FILLING)
_ARBITRATED = (Kind.WITNESS, Kind.ETCD, Kind.FENCE, Kind.MANUAL)


def _source(server: Server) -> Mirror | None:
    mirror = server.mirror
    return mirror if mirror is not None and mirror.role is Role.SOURCE else None


def _acknowledges_alone(server: Server) -> bool:
    mirror = _source(server)
    return server.vm and mirror is not None and mirror.mode in _TAKES_WRITES_ALONE


def _acknowledges_with_peer(world: World, s: int) -> bool:
    """Its writes reach a target that applies them: that copy counts with this one."""
    mirror = _source(world.servers[s])
    return world.servers[s].vm and mirror is not None and mirror.mode is MirrorMode.PAIRED


def one_writer(world: World, kind: Kind) -> str | None:
    """1: two servers never acknowledge writes of one module."""
    if kind not in _ARBITRATED or world.forced:
        return None
    a, b = world.servers
    if _acknowledges_alone(a) and _acknowledges_alone(b):
        return "both servers acknowledge writes alone"
    for s in (0, 1):
        t = 1 - s
        other = world.servers[t].mirror
        is_linked = other is not None and other.linked and world.wire == s
        if is_linked and _acknowledges_alone(world.servers[t]) and _acknowledges_with_peer(world, s):
            return "a source is a target at the same time"
    return None


def one_lineage(world: World, kind: Kind) -> str | None:
    """1: where an arbiter keeps epochs, two copies never both go on alone from the same data, written to or not."""
    if keeps_epochs(kind) and not world.overridden and is_split(world):
        return "both servers went on alone from the same data"
    return None


def nothing_lost(world: World, kind: Kind) -> str | None:
    """2: whoever runs has every acknowledged write."""
    if world.overridden or kind not in _ARBITRATED:
        return None
    for s in (0, 1):
        server = world.servers[s]
        if _acknowledges_alone(server) and world.acked & ~server.copy:
            return f"{NAMES[s]} runs without acknowledged writes"
        linked = world.wire == s and _acknowledges_with_peer(world, s)
        if linked and world.acked & ~server.copy:
            return f"{NAMES[s]} runs as PRIM without acknowledged writes"
    return None


def never_on_a_bad_copy(world: World, kind: Kind) -> str | None:
    """3: a VM never runs on an inconsistent or outdated copy."""
    for s in (0, 1):
        server = world.servers[s]
        if server.mirror is None or server.mirror.mode is MirrorMode.FAILED:
            continue  # nothing is answered any more; the copy of a failed disk is inconsistent before the VM is off
        if server.vm and server.record is not None and (server.record.inconsistent or server.record.outdated):
            return f"{NAMES[s]} runs on a copy that is {'inconsistent' if server.record.inconsistent else 'outdated'}"
        if server.vm and _source(server) is None:
            return f"{NAMES[s]} runs its VM on a target's copy"
    return None


def nothing_backwards(before: World, after: World) -> str | None:
    """4: epochs never go back on a disk, and a solo generation is not given back for its base."""
    for s in (0, 1):
        old, new = before.servers[s].record, after.servers[s].record
        if old is None:
            continue
        if new is None:
            return f"the record of {NAMES[s]} is gone"
        if new.epoch < old.epoch:
            return f"the epoch of {NAMES[s]} went back from {old.epoch} to {new.epoch}"
    if after.standing.epoch < before.standing.epoch:
        return "the arbiter's epoch went back"
    return None


def outdated_for_a_reason(before: World, after: World) -> str | None:
    """A copy is given up as outdated only for newer data, by consent, or when PRIM has acknowledged its leaving.

    Given up for less, the better copy may be the one that is not used.
    """
    for s in (0, 1):
        old, new = before.servers[s], after.servers[s]
        if old.record is None or new.record is None or old.record.outdated or not new.record.outdated:
            continue
        if not (_leaving_is_acknowledged(before, s) or _knows_a_reason(before, after, s, old.record)):
            return f"{NAMES[s]} is outdated, and nobody has newer data or its consent to have"
    return None


def _leaving_is_acknowledged(before: World, s: int) -> bool:
    return before.queues[1 - s][:1] == (("left",),)


def _knows_a_reason(before: World, after: World, s: int, own: Record) -> bool:
    """By what it has heard, in this step at the latest; a control plane that has died in the step cannot be asked."""
    old, new = before.servers[s].module, after.servers[s].module
    if old is None or new is None:
        return True
    if old.plan is Plan.HANDING_OVER_TO_STOP:
        return True  # the peer has taken over, and may go on alone from here
    for heard in (old.peer, new.peer):
        if heard is None:
            continue
        newer = heard.record is not None and own.generation in (heard.record.base, *heard.record.ancestors)
        if newer or heard.request is not None:
            return True
    return False


def is_unheard(old: Server, new: Server) -> bool:
    """Whether the control plane that made this change did not hear the peer; it may have died in the same step."""
    module = new.module or old.module
    return module is not None and module.peer is None


def begins_from_solo(before: World, after: World, t: int) -> bool | None:
    """Whether the reintegration that begins on t in this change has a source that is solo; None: none begins."""
    old, new = before.servers[t].mirror, after.servers[t].mirror
    if new is None or new.role is not Role.TARGET or new.mode is not MirrorMode.FILLING or new == old:
        return None
    if before.queues[1 - t][:1] == () or before.queues[1 - t][0][0] != "begin":
        return None
    source = before.servers[1 - t].record
    return source is not None and source.solo


def copied_by_the_logs(before: World, after: World, from_solo: bool) -> str | None:
    """What a crash costs is what has changed: nothing is compared in full where both copies have a history.

    `from_solo`: the target's last reintegration had a source that was solo, so it names that source's generation. One
    that began in sync takes its generation afterwards; if its offer is lost as well, the target is two behind.
    """
    if before.wire >= 0 or after.wire < 0 or after.overridden:
        return None
    logged = before.servers[0].dirty | before.servers[1].dirty
    source, target = before.servers[after.wire].record, before.servers[1 - after.wire].record
    if logged & EVERYTHING or not after.servers[after.wire].dirty & EVERYTHING or source is None or target is None:
        return None
    if target.inconsistent and not from_solo:
        return None
    return "everything is compared, and the logs say what has changed"


def differences_are_logged(world: World, kind: Kind) -> str | None:
    """5: where the lineage says that the logs suffice, the copies differ only in what is in a log."""
    a, b = world.servers
    logged = a.dirty | b.dirty
    differs = (a.copy ^ b.copy) & ~logged
    if not differs or logged & EVERYTHING or a.record is None or b.record is None or world.overridden:
        return None
    one, other = a.record, b.record
    same = one.generation == other.generation
    bases = one.base == other.generation or other.base == one.generation
    split = one.solo and other.solo and one.base == other.base and one.base is not None
    return "the copies differ outside the logs" if same or bases or split else None


def shown_truly(world: World, kind: Kind) -> str | None:
    """8: a green SECOND can take over: it has every acknowledged write, and the arbiter would let it.

    Looked at when nothing is on its way: what has just changed cannot be shown yet.
    """
    if world.queues != ((), ()) or world.answers or not world.net or world.wire < 0:
        return None
    if any(_is_waited_for(world, s, request) for s, request in world.requests):
        return None
    for s in (0, 1):
        server, other = world.servers[s], world.servers[1 - s]
        module, peer = server.module, other.module
        if module is None or peer is None or module.state is not State.SECOND or not ready(module):
            continue
        if module.record != server.record or peer.record != other.record:
            continue
        if module.mirror != server.mirror or peer.mirror != other.mirror or not _current(world):
            continue
        if world.acked & ~server.copy and not world.overridden and kind in _ARBITRATED:
            return f"{NAMES[s]} is shown green without acknowledged writes"
        record = server.record
        if record is None or not record.in_sync or record.outdated or record.inconsistent:
            return f"{NAMES[s]} is shown green with a copy that cannot be run"
        theirs = other.record
        if theirs is None or (theirs.epoch, theirs.generation) != (record.epoch, record.generation):
            return f"{NAMES[s]} is shown green, but the records differ in epoch or generation"
        if keeps_epochs(kind) and any(_moves(world, claim) for _, claim in world.requests):
            return f"{NAMES[s]} is shown green, but a claim made before could still be granted"
    return None


def _is_waited_for(world: World, s: int, request: Claim | Look) -> bool:
    module = world.servers[s].module
    if module is None:
        return False
    asking = None if module.asking is None else module.asking.request_id
    return request.request_id in (asking, module.looking)


def _moves(world: World, request: Claim | Look) -> bool:
    """Whether the arbiter would still let a server on for it. What an operator asks for is left out."""
    if isinstance(request, Look) or asked(Kind.WITNESS, request.purpose) is not Asked.NEXT:
        return False
    return move(world.standing, request).after != world.standing


def _current(world: World) -> bool:
    """Both have heard each other's present view."""
    for s in (0, 1):
        mine, theirs = world.servers[s].module, world.servers[1 - s].module
        if mine is None or theirs is None or mine.peer != view(theirs):
            return False
    return True


def saved_before_overwritten(world: World, kind: Kind) -> str | None:
    """What the losing side of a split brain alone has is saved before a target's copying overwrites it."""
    return "a copy that lost a split brain was overwritten before it was saved" if world.unsaved else None


STATE_CHECKS: tuple[Callable[[World, Kind], str | None], ...] = (
    one_writer,
    one_lineage,
    nothing_lost,
    never_on_a_bad_copy,
    differences_are_logged,
    shown_truly,
    saved_before_overwritten,
)


def wrong(world: World, kind: Kind) -> str | None:
    """The first invariant that does not hold, by number and in words."""
    for check in STATE_CHECKS:
        why = check(world, kind)
        if why is not None:
            return f"{check.__name__}: {why}"
    return None


def one_copy_stays(world: World) -> str | None:
    """Both copies inconsistent: nothing that these explorations do may lead to that but the operator."""
    one, other = (server.record for server in world.servers)
    if one is None or other is None or world.overridden:
        return None
    return "both copies were given up" if one.inconsistent and other.inconsistent else None


# ---- 6, looked at by whoever knows which worlds can follow


def runs(world: World, kind: Kind = Kind.NONE) -> bool:
    """A VM runs and its writes are answered."""
    return any(
        _acknowledges_alone(world.servers[s]) or (_acknowledges_with_peer(world, s) and world.wire == s) for s in (0, 1)
    )


def in_sync(world: World, kind: Kind) -> bool:
    """Both green, and truly so: the arbiter stands where both records say."""
    for s in (0, 1):
        mine, theirs = world.servers[s].module, world.servers[1 - s].module
        if mine is None or theirs is None or not ready(mine) or not ready(theirs) or not runs(world):
            continue
        if mine.state is State.PRIM and theirs.state is State.SECOND and _arbiter_agrees(world, kind):
            return True
    return False


def _arbiter_agrees(world: World, kind: Kind) -> bool:
    epochs = {server.record.epoch for server in world.servers if server.record is not None}
    return kind not in (Kind.WITNESS, Kind.ETCD) or epochs == {world.standing.epoch}


def is_operators(world: World) -> bool:
    """Left to the operator by the protocol: a split brain, or copies of which neither descends from the other."""
    one, other = (server.record for server in world.servers)
    if one is None or other is None:
        return True
    if one.inconsistent and other.inconsistent:
        return True
    related = one.generation == other.generation
    related |= one.generation in (other.base, *other.ancestors) or other.generation in (one.base, *one.ancestors)
    return not related and not one.inconsistent and not other.inconsistent


def is_split(world: World) -> bool:
    """A split brain of which no side was chosen yet."""
    one, other = (server.record for server in world.servers)
    if one is None or other is None or one.inconsistent or other.inconsistent:
        return False
    return one.solo and other.solo and one.generation != other.generation and one.base == other.base is not None


def must_end_split(world: World) -> bool:
    """Where a policy chooses, and both servers are to go on."""
    return is_split(world) and all(server.wanted and not server.maintenance for server in world.servers)


def must_have_ended_split(world: World, policies: tuple[str, str]) -> bool:
    """Whether the two have had time enough: both servers' policy is the same, and names one side of this one."""
    one, other = world.servers
    if policies[0] != policies[1] or not must_end_split(world) or one.record is None or other.record is None:
        return False
    match policies[0]:
        case "manual":
            return False
        case "former-primary":
            return abs(one.record.term - other.record.term) == 1
        case "most-changes":
            numbers = (changed(one), changed(other))
            return None not in numbers and numbers[0] != numbers[1]
        case _:
            return True


def must_run(world: World) -> bool:
    """Whether the module has to run again by itself."""
    wanted = [s for s in (0, 1) if world.servers[s].wanted]
    if len(wanted) == 2:
        return not is_operators(world)
    if len(wanted) == 1:
        own, other = world.servers[wanted[0]], world.servers[1 - wanted[0]]
        record, theirs = own.record, other.record
        if record is None or record.inconsistent or record.outdated or world.acked & ~own.copy or world.overridden:
            return False
        if theirs is not None and record.generation in (theirs.base, *theirs.ancestors):
            return False
        if theirs is not None and theirs.in_sync and record.boot == OLD_BOOT and theirs.boot == BOOT:
            return False  # stopped with the better copy: it may hold what this one lost with the power
        return not (theirs is not None and theirs.solo and not record.solo)
    return False


def must_be_in_sync(world: World) -> bool:
    return all(server.wanted for server in world.servers) and not is_operators(world)


def nothing_to_stop(world: World, kind: Kind) -> bool:
    """Every server on which the module is not wanted has come to rest."""
    return all(
        server.wanted or (server.module is not None and server.module.state is State.STOP and not server.vm)
        for server in world.servers
    )


def must_stop(world: World) -> bool:
    return not all(server.wanted for server in world.servers)
