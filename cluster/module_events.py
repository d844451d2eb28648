"""What can happen to a module, and what the state machine has done about it. Pure values.

Events are levels where they can be: a report says how things are, not what changed, so a lost or repeated one costs
nothing. Effects are done in order; the durable ones (Store, Remember) come first and are on disk before the next one
is begun. A supervisor that dies between two of them starts again from the disk and from what it finds running.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from hotpair.cluster.arbitration import Answer, Claim, Standing
from hotpair.cluster.checker_rules import Action
from hotpair.cluster.module_values import HowToStop, Mirror, PeerView, Reason, Role, Vm
from hotpair.cluster.record import Record


@dataclass(frozen=True)
class Now:
    """What a step is given from outside: the monotonic time, for those who log it, and one id never used before."""

    at_s: float
    fresh: bytes


# ---- events


@dataclass(frozen=True)
class Started:
    """The supervisor has started and looked: at the disk, at the mirror process, at the VM.

    `bytes_changed` is as in MirrorReported.
    """

    record: Record | None
    wanted: bool
    maintenance: bool
    boot: str
    mirror: Mirror | None
    vm: Vm
    bytes_changed: int | None = None


@dataclass(frozen=True)
class PeerHeard:
    """A pulse that is newer than the last one, over any network; the failure detector believes it.

    When it shows another record than the last one did, the mirror is asked for its report first, as long as it answers
    within a moment. What the peer's record says may have been made with this very mirror: beside an older report a
    reintegration that has just begun looks as if the peer had gone on without this copy, and its target is stopped.
    Nothing is lost in the other order either.
    """

    view: PeerView


@dataclass(frozen=True)
class PeerLost:
    """Neither pulses nor mirror link for `timeout_s`."""


@dataclass(frozen=True)
class MirrorReported:
    """How the mirror process is, None when none runs, and the record as it stands on disk with it.

    `bytes_changed` is what this copy's dirty log names, whole extents; from the log on disk when no process runs. None
    when that is not known, and when the log says "everything". While a copy goes on alone it only grows.
    """

    mirror: Mirror | None
    record: Record | None
    bytes_changed: int | None = None


@dataclass(frozen=True)
class VmReported:
    vm: Vm


@dataclass(frozen=True)
class Answered:
    """The arbiter's answer to a claim."""

    answer: Answer


@dataclass(frozen=True)
class Looked:
    """The arbiter's epoch; None when it cannot be reached."""

    request_id: bytes
    standing: Standing | None


class Timer(Enum):
    RETRY = "retry"  # try the state's rule again
    ANSWER = "answer"  # give up waiting for the arbiter
    AGREEMENT = "agreement"  # compare the epochs again
    LEAVE = "leave"  # PRIM has not acknowledged our leaving

    __hash__ = object.__hash__


@dataclass(frozen=True)
class TimerFired:
    timer: Timer


class Command(Enum):
    START = "start"
    STOP = "stop"
    RESTART = "restart"
    STOPSTART = "stopstart"
    SWAP = "swap"
    PRIM = "prim"
    PRIM_FORCE = "prim --force"
    SECOND = "second"
    SECOND_FULL = "second --full"
    MAINTENANCE_ON = "maintenance on"
    MAINTENANCE_OFF = "maintenance off"


@dataclass(frozen=True)
class Commanded:
    command: Command


@dataclass(frozen=True)
class CheckerActed:
    """A checker's rule has fired: answered with a Reply, as a command is. WAIT: a checker holds the module, or would
    hold one that is stopped. None: no checker holds it any more."""

    action: Action | None


@dataclass(frozen=True)
class Doubted:
    """This server's clock jumped: it was suspended, and what it knows of the peer may be old."""


Event = (
    Started
    | PeerHeard
    | PeerLost
    | MirrorReported
    | VmReported
    | Answered
    | Looked
    | TimerFired
    | Commanded
    | CheckerActed
    | Doubted
)
EVENTS: tuple[type, ...] = (
    Started,
    PeerHeard,
    PeerLost,
    MirrorReported,
    VmReported,
    Answered,
    Looked,
    TimerFired,
    Commanded,
    CheckerActed,
    Doubted,
)


# ---- effects


@dataclass(frozen=True)
class Store:
    """Replace the record, durably. Only while no mirror process runs; `flush` the copy before, durably too [R11]."""

    record: Record
    flush: bool = False


@dataclass(frozen=True)
class Remember:
    """What the operator wants, durably."""

    wanted: bool
    maintenance: bool


@dataclass(frozen=True)
class StartMirror:
    """`alone`: the record is solo and this server may go on without a peer."""

    role: Role
    alone: bool = False


@dataclass(frozen=True)
class Salvage:
    """This copy lost a split brain: what its own dirty log names is to be saved before a target overwrites any of it.

    Into a salvage file with an index (file, offset, length of each extent as it is in this copy), durably, and its path
    is told to the operator. Comes right before each StartMirror of a target whose copy was given up and is not
    overwritten yet: after a restart as well, so the file is named after `generation`, the one that is given up, and one
    that is whole is not written again. The target that is started next must not answer that it is inconsistent before
    the file is whole.

    The command `salvage` does it (replication/salvage_io.py), and a target refuses to start before. A supervisor that
    cannot have it done must not start the target.
    """

    generation: bytes


@dataclass(frozen=True)
class StopMirror:
    """End the process; the session with it, and all in it that has not been read. The report says when it is gone."""


@dataclass(frozen=True)
class GoAlone:
    """Verdict to a source whose writes are held: make `record` durable, then release them.

    Refused, and the present record reported, unless its record is `based_on` and it has no connection.
    """

    based_on: Record
    record: Record


@dataclass(frozen=True)
class FailTap:
    """Verdict `stop` to a source: all held requests fail, nothing is acknowledged any more."""


@dataclass(frozen=True)
class HandOver:
    """To a source in sync whose VM is off: flush both copies, then ask the peer to take over."""


@dataclass(frozen=True)
class Leave:
    """To a target in sync: say in the stream that it goes; when PRIM has acknowledged, be outdated durably, and end."""


@dataclass(frozen=True)
class Agree:
    """To a source in sync: both records take this epoch, that of the server which the arbiter names first [R6]."""

    based_on: Record
    epoch: int
    mine_first: bool


@dataclass(frozen=True)
class StartVm:
    pass


@dataclass(frozen=True)
class StopVm:
    how: HowToStop


@dataclass(frozen=True)
class Ask:
    claim: Claim


@dataclass(frozen=True)
class Look:
    request_id: bytes


@dataclass(frozen=True)
class SendPulse:
    """At once, with the view after this step."""


@dataclass(frozen=True)
class SetTimer:
    timer: Timer
    after_s: float


@dataclass(frozen=True)
class CancelTimer:
    timer: Timer


@dataclass(frozen=True)
class Tell:
    """To the event log."""

    reason: Reason


@dataclass(frozen=True)
class Reply:
    """To who gave the command. Not accepted: nothing was done, and why."""

    accepted: bool
    why: str = ""


Effect = (
    Store
    | Remember
    | StartMirror
    | Salvage
    | StopMirror
    | GoAlone
    | FailTap
    | HandOver
    | Leave
    | Agree
    | StartVm
    | StopVm
    | Ask
    | Look
    | SendPulse
    | SetTimer
    | CancelTimer
    | Tell
    | Reply
)
DURABLE: tuple[type, ...] = (Store, Remember)
