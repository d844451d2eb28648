"""What the module state machine knows: its state as one finite value, and the values it is made of. Pure code.

No clock and no randomness is in here: a time limit is an effect and comes back as an event, a fresh id comes in with
the step. So a state can be compared and hashed, and the explorer can visit each one once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from hotpair.cluster import arbitration
from hotpair.cluster.arbitration import Claim
from hotpair.cluster.record import Record, Side
from hotpair.cluster.split_brain import MANUAL

ID_BYTES = 16


class State(Enum):
    """The value is the word in the record and in the pulses. How to get in and out: `module_table.STATES`."""

    STOP = "STOP"
    WAIT = "WAIT"
    ALONE = "ALONE"
    PRIM = "PRIM"
    SECOND = "SECOND"

    __hash__ = object.__hash__  # members are unique; the default hashes the name each time


class Role(Enum):
    """Of a mirror process."""

    SOURCE = "source"
    TARGET = "target"

    __hash__ = object.__hash__


class MirrorMode(Enum):
    """How far a mirror process is.

    STARTING  the order was given, the process has not reported yet
    FROZEN    source: writes are held; it looks for its target, or waits for a verdict
    FILLING   source: the target is being copied to, writes go on alone; target: being copied to
    ALONE     source: writes go on, no target
    PAIRED    source: sync was offered, a write needs the target; target: in sync in this session
    FAILED    source: the tap was failed, nothing is acknowledged any more
    IDLE      target: waits for a source
    STOPPING  the order to stop was given, the process has not ended yet
    """

    STARTING = "starting"
    FROZEN = "frozen"
    FILLING = "filling"
    ALONE = "alone"
    PAIRED = "paired"
    FAILED = "failed"
    IDLE = "idle"
    STOPPING = "stopping"

    __hash__ = object.__hash__


@dataclass(frozen=True)
class Mirror:
    """What a mirror process last reported.

    linked    it has a connection to the peer's mirror on which the hello is done
    session   this copy has been in sync in this very process, and the session could be resumed
    in_sync   source: the target has confirmed that it is in sync, in this connection
    asked     source: the peer has been asked to take over, and has not answered
    agreeing  source: an epoch is on its way into both records
    """

    role: Role
    mode: MirrorMode
    linked: bool = False
    session: bool = False
    in_sync: bool = False
    asked: bool = False
    agreeing: bool = False


class Vm(Enum):
    """The order given is remembered as STARTING or STOPPING until the driver reports."""

    OFF = "off"
    STARTING = "starting"
    ON = "on"
    STOPPING = "stopping"

    __hash__ = object.__hash__


class HowToStop(Enum):
    """`normal_stop` of the module, or at once because nothing it writes may count any more."""

    NORMAL = "normal"
    KILL = "kill"


@dataclass(frozen=True)
class PeerView:
    """What the peer's last pulse says of this module. `boot` is the peer's host boot id.

    policy         its configuration's `split_brain`
    bytes_changed  named by its dirty log since it went on alone; None when not alone, or not known
    yields         id of its question: it lost a split brain and does not run any more, shall it give its copy up
    keeps          id of our such question, answered: by the policy its own copy stays
    """

    state: State
    ready: bool
    record: Record | None
    boot: str
    request: bytes | None = None
    consent: bytes | None = None
    policy: str = MANUAL
    bytes_changed: int | None = None
    yields: bytes | None = None
    keeps: bytes | None = None


class Plan(Enum):
    """A planned action under way; how far it is can be read from VM and mirror, so it is resumed after a restart.

    SWAP       stop the VM, hand over, become SECOND
    STOP       stop the VM, hand over if the peer is in sync, STOP
    LEAVE      SECOND says in the stream that it goes, then STOP
    RESTART    stop the VM, start it
    STOPSTART  STOP, then WAIT
    """

    SWAP = "swap"
    STOP = "stop"
    LEAVE = "leave"
    RESTART = "restart"
    STOPSTART = "stopstart"
    HANDING_OVER = "handing over"  # SWAP, after the peer was asked
    HANDING_OVER_TO_STOP = "handing over, then stop"  # STOP or STOPSTART, after the peer was asked

    __hash__ = object.__hash__


class Reason(Enum):
    """Why the module is where it is: one sentence for the operator."""

    NOTHING = ""
    STOPPED = "Stopped."
    PEER_UNKNOWN = "Waiting for the peer: it may have newer data."
    MEETING = "Meeting the peer: the mirror's hello decides the roles."
    NO_RECORD = "Neither server has a record of this module: say on the server with the current copy that it is (prim)."
    BOTH_INCONSISTENT = "Both copies are inconsistent: say which one is to be used, or restore a backup."
    SPLIT_BRAIN = "Split brain: both servers went on alone from the same data; choose whose changes are kept."
    SPLIT_WON = "Split brain: by the policy this server's changes stay; waiting for the peer to give its own up."
    SPLIT_LOST = "Split brain: by the policy the peer's changes stay; this copy is given up, its own are saved before."
    SPLIT_POLICIES_DIFFER = "Split brain: the two servers' split_brain policies differ; make them equal, or choose."
    SPLIT_TIE = "Split brain: the policy finds both sides equal; choose whose changes are kept."
    SPLIT_UNKNOWN = "Split brain: what the policy asks for is not known of both sides; choose whose changes are kept."
    SPLIT_OUTDATED = "Split brain: the copy that the policy names is outdated; choose whose changes are kept."
    SPLIT_STOPPED = "Split brain: the server whose changes stay by the policy is stopped; start it there, or choose."
    SPLIT_MAINTENANCE = "Split brain: lost by the policy; nothing is given up under maintenance: lift it, or choose."
    UNRELATED = "The copies are unrelated: nothing is copied until the operator chooses."
    REFUSED_COPY = "The newer copy is inconsistent: bring back the server it was copied from, or choose."
    OUTDATED = "This copy is outdated: the peer has, or may have, newer data. Waiting for the peer."
    INCONSISTENT = "This copy is half copied. Waiting for the peer."
    ASKING = "Asking arbitration."
    ARBITER_REFUSED = "Arbitration refused: the peer was granted to go on. Waiting for the peer, or prim."
    ARBITER_UNREACHABLE = "The arbiter cannot be reached; asking again. Waiting for the peer, or prim."
    ARBITER_AWAY = "The arbiter cannot be reached: neither server could go on alone. Asking again."
    ARBITER_BEHIND = "ALARM: the arbiter's epoch is lower than the pair's: it was restored from a backup."
    NOT_ASKED = "The peer may have gone on, and this kind of arbitration cannot know: waiting for the peer, or prim."
    PEER_NEWER = "The peer is stopped and has newer data: start it there, or prim."
    PEER_STOPPED = "The peer is stopped: waiting for its consent."
    LINK_LOST = "The mirror link is lost: writes are held."
    HANDED_OVER = "Handed over to the peer."
    HANDOVER_UNKNOWN = "The link broke during the handover: waiting for its outcome."
    CHECKER = "A checker holds the module."
    MAINTENANCE = "Maintenance: no automatic failover."
    DISK_FAILED = "The disk of this server failed."
    DOUBTED = "This server was suspended: asking before anything is released."


@dataclass(frozen=True)
class Settings:
    """What does not change while a module is open. `server` and `peer` are the names in cluster.toml."""

    pair: str
    module: str
    server: str
    peer: str
    kind: arbitration.Kind
    first: Side
    preferred: Side = Side.NOBODY
    data_on: Side = Side.NOBODY
    automatic_failback: bool = False
    retry_s: float = 5.0
    ask_timeout_s: float = 5.0
    agreement_s: float = 60.0
    leave_s: float = 10.0
    split_brain: str = MANUAL


@dataclass(frozen=True)
class Module:
    """The whole state of one module on one server. The first line is the durable part.

    record         as it is on this server's disk; the mirror process writes it while one runs, the supervisor
                   otherwise
    wanted         the operator wants it to run; durable
    maintenance    no automatic failover, no checker's action; durable
    boot           this host's boot id
    live           this copy has been in sync in this very run, and nothing was started since that could have changed it
    bytes_changed  named by the dirty log of this copy; None when not known
    peer           its last view; None when neither pulses nor link were heard for `timeout_s`
    listening      this supervisor has just started: that nothing was heard yet says nothing about the peer
    asking         the claim being waited for
    request        id of our question for consent, being asked
    consent        id of the peer's question that we have answered with yes
    yields         id of our question whether to give this copy up, after a split brain
    keeps          id of the peer's such question that we have answered with yes
    settled        the epoch to which the arbiter was moved in our name in this connection: no older claim counts [R6]
    agreed         both records have that epoch, and since then the arbiter was not found at another one [R6]
    looking        id of the look at the arbiter's epoch that is being waited for
    held           a checker holds the module in WAIT
    refused        arbitration did not grant: asked again when the timer fires, or when the peer was heard in between
    """

    settings: Settings = field(compare=False)
    record: Record | None = None
    wanted: bool = False
    maintenance: bool = False
    boot: str = ""
    state: State = State.STOP
    live: bool = False
    mirror: Mirror | None = None
    vm: Vm = Vm.OFF
    peer: PeerView | None = None
    listening: bool = False
    asking: Claim | None = None
    request: bytes | None = None
    consent: bytes | None = None
    settled: int | None = None
    agreed: bool = False
    looking: bytes | None = None
    plan: Plan | None = None
    held: bool = False
    refused: bool = False
    bytes_changed: int | None = None
    yields: bytes | None = None
    keeps: bytes | None = None
    reason: Reason = field(default=Reason.NOTHING, compare=False)


def ready(module: Module) -> bool:
    """Whether it is shown green. For SECOND: it can take over. Never green for what would not survive."""
    mirror, record = module.mirror, module.record
    if module.state is State.ALONE:
        return module.vm is Vm.ON
    if module.state is State.PRIM:
        return mirror is not None and mirror.in_sync and module.agreed and module.vm is Vm.ON
    if module.state is State.SECOND:
        in_sync = mirror is not None and mirror.mode is MirrorMode.PAIRED and mirror.linked
        may_start = not module.held and record is not None and not record.outdated
        return in_sync and may_start and _peer_agrees(module)
    return False


def _peer_agrees(module: Module) -> bool:
    """PRIM has said that it is ready: generation, epoch and the arbiter's epoch are the same."""
    peer, record = module.peer, module.record
    if peer is None or peer.record is None or record is None:
        return False
    same = (peer.record.generation, peer.record.epoch) == (record.generation, record.epoch)
    return same and peer.state is State.PRIM and peer.ready


def view(module: Module) -> PeerView:
    """What this server's pulses say. How much was changed is said of a copy that goes on alone only."""
    record = module.record
    return PeerView(
        module.state,
        ready(module),
        record,
        module.boot,
        module.request,
        module.consent,
        module.settings.split_brain,
        module.bytes_changed if record is not None and record.solo else None,
        module.yields,
        module.keeps,
    )
