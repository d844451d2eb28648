"""One module's pulses: says what this server knows of the module, hears what the peer does. Plain class, no Ray in it.

It decides nothing: the failure detector says when the peer is lost. That, a view that has changed, and a doubt go to
`hear`. Only what is new is told: a level, which the state machine keeps.

A module's pulses have the number of its mirror port, in UDP: modules share neither a socket nor a process, so that none
can hold up another.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hotpair.actors.event_log_io import Note
from hotpair.cluster import failure_detector as detecting
from hotpair.cluster import pulse_views
from hotpair.cluster.failure_detector import Change, PeerChanged, PeerStatus
from hotpair.cluster.module_events import Doubted, Event, PeerHeard, PeerLost
from hotpair.cluster.module_values import PeerView, State
from hotpair.cluster.pulse import DataStatus, ModuleView, Refusal
from hotpair.cluster.pulse_io import Network, Pulses, View
from hotpair.cluster.record import Record

# These do not pass by themselves; the others are a stranger's, or a moment's.
_LASTING = (Refusal.WRONG_KEY, Refusal.OTHER_VERSION, Refusal.MISDIRECTED)


@dataclass(frozen=True)
class HeartbeatFacts:
    """What does not change while a module is open. Times in seconds.

    boot     this host's boot id
    cluster  digest of this server's cluster configuration; `digest`: of the module's
    """

    module: str
    server: str
    peer: str
    key: bytes
    networks: tuple[Network, ...]
    pulse_s: float
    timeout_s: float
    boot: str
    cluster: bytes
    digest: bytes


def boot_time() -> float:
    """Seconds; goes on while the host is suspended, or a suspension would not show."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def data_status(record: Record | None) -> DataStatus:
    """What is said of a copy with this record."""
    if record is None:
        return DataStatus.UNKNOWN
    if record.inconsistent:
        return DataStatus.INCONSISTENT
    return DataStatus.NOT_UP_TO_DATE if record.outdated else DataStatus.UP_TO_DATE


def to_pulse(told: PeerView, module: str, digest: bytes) -> ModuleView:
    return ModuleView(
        name=module,
        state=told.state.value,
        ready=told.ready,
        data_status=data_status(told.record),
        record=told.record,
        configuration=digest,
        request=told.request,
        consent=told.consent,
        split_brain=told.policy,
        bytes_changed=told.bytes_changed,
        yields=told.yields,
        keeps=told.keeps,
    )


def from_pulse(said: ModuleView, boot: str) -> PeerView:
    return PeerView(
        state=State(said.state),
        ready=said.ready,
        record=said.record,
        boot=boot,
        request=said.request,
        consent=said.consent,
        policy=said.split_brain,
        bytes_changed=said.bytes_changed,
        yields=said.yields,
        keeps=said.keeps,
    )


class Heartbeat:
    """`run` it in an event loop; everything else is called in that loop's thread."""

    def __init__(
        self, facts: HeartbeatFacts, hear: Callable[[Event | Note], None], *, clock: Callable[[], float] = boot_time
    ) -> None:
        self._facts = facts
        self._hear = hear
        self._clock = clock
        self._pulses = Pulses(facts.server, facts.peer, facts.key, list(facts.networks), facts.pulse_s)
        self._detector = detecting.start([network.name for network in facts.networks], facts.timeout_s, clock())
        self._views: pulse_views.Views | None = None
        self._told: PeerView | None = None
        self._heard: PeerView | None = None
        self._link_lives = False
        self._woken = asyncio.Event()
        self._read: dict[int, str] = {}
        self._refused: set[tuple[str, Refusal]] = set()  # networks and reasons that people were told of
        self._differs = ""

    # ---- what others tell it

    def say(self, told: PeerView | None) -> None:
        """What the pulses say from now on; the next one goes at once. None: they stop until something is said."""
        self._told = told
        self._pulses.hurry()
        self._woken.set()

    def link(self, lives: bool) -> None:
        """Whether the mirror has its connection: while it does, the peer's host lives, pulses or not."""
        self._link_lives = lives
        self._woken.set()

    def again(self) -> None:
        """Who listens is new: what is known of the peer is said once more."""
        if self._detector.status is PeerStatus.LOST:
            self._hear(PeerLost())
        elif not self._detector.doubtful:
            self._heard = None
            self._tell()

    def status(self) -> dict[str, Any]:
        """For people: the peer, the networks, what was sent, lost and refused."""
        networks = {}
        for name, traffic in self._pulses.traffic.items():
            networks[name] = {
                "status": self._detector.networks[name].status.value,
                "sent": traffic.sent,
                "received": traffic.received,
                "lost": traffic.lost,
                "refused": {reason.value: count for reason, count in traffic.refused.items()},
                "refusal": traffic.refusal,
                "problem": traffic.problem,
            }
        views, said = self._views, self._said()
        return {
            "peer": self._detector.status.value,
            "networks": networks,
            "configurations_equal": None if views is None else views.configuration == self._facts.cluster,
            "module_configurations_equal": None if said is None else said.configuration == self._facts.digest,
        }

    # ---- the loop

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        self._pulses.open()
        try:
            while True:
                self._woken.clear()
                self._watch(loop)
                now = self._clock()
                self._tick(now)
                if self._told is not None and self._pulses.due_at(now) <= now:
                    self._pulses.send(self._view(self._told), now)
                    self._watch(loop)  # a socket may be a new one
                await self._until(self._next(now) - now)
        finally:
            for descriptor in self._read:
                loop.remove_reader(descriptor)
            self._pulses.close()

    async def _until(self, seconds: float) -> None:
        try:  # not wait_for: up to Python 3.11 it swallows a cancellation that comes with the event
            async with asyncio.timeout(max(0.0, seconds)):
                await self._woken.wait()
        except TimeoutError:
            return

    def _next(self, now: float) -> float:
        moments = [now + self._facts.timeout_s / 4]
        if self._told is not None:
            moments.append(self._pulses.due_at(now))
        if self._detector.lost_at is not None:
            moments.append(self._detector.lost_at)
        return min(moments)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        wanted = self._pulses.descriptors()
        for descriptor in self._read.keys() - wanted.keys():
            loop.remove_reader(descriptor)
        for descriptor in wanted.keys() - self._read.keys():
            loop.add_reader(descriptor, self._arrived, wanted[descriptor])
        self._read = wanted

    def _tick(self, now: float) -> None:
        self._detector, changes = detecting.tick(self._detector, now)
        self._changed(changes)
        if self._link_lives:
            self._detector, changes = detecting.link_heard(self._detector, now, fresh=True)
            self._changed(changes)

    def _arrived(self, network: str) -> None:
        now = self._clock()
        self._tick(now)  # first: a gap is noticed before what has waited in the socket is believed
        for heard in self._pulses.receive(network):
            hears = heard.pulse.hears
            self._detector, changes = detecting.pulse_heard(self._detector, network, hears, now, fresh=heard.fresh)
            self._changed(changes)
            if self._detector.doubtful:
                continue
            self._views = pulse_views.merge(self._views, heard.pulse)
            self._compare()
            self._tell()
        self._tell_refusal(network)
        self._woken.set()

    def _tell_refusal(self, network: str) -> None:
        """What keeps the servers apart until somebody puts it right, once."""
        traffic = self._pulses.traffic[network]
        for reason in _LASTING:
            if traffic.refused[reason] and (network, reason) not in self._refused:
                self._refused.add((network, reason))
                self._hear(Note(f"from {self._facts.peer} over {network}: {traffic.refusal}"))

    def _compare(self) -> None:
        """Say when the two servers' files begin to differ, and when they are the same again."""
        facts, said = self._facts, self._said()
        assert self._views is not None
        found = [("cluster.toml", self._views.configuration == facts.cluster)]
        if said is not None:
            found.append((f"modules/{facts.module}.toml", said.configuration == facts.digest))
        differs = " and ".join(name for name, equal in found if not equal)
        if differs == self._differs:
            return
        self._differs = differs
        if differs:
            self._hear(
                Note(f"{differs} here and at {facts.peer} differ: make them the same, and restart both services")
            )
        else:
            self._hear(Note("the configuration is the same on both servers again"))

    def _said(self) -> ModuleView | None:
        said = None if self._views is None else self._views.modules.get(self._facts.module)
        return None if said is None else said.view

    def _tell(self) -> None:
        said = self._said()
        if said is None or self._views is None:
            return
        view = from_pulse(said, self._views.boot)
        if view != self._heard:
            self._heard = view
            self._hear(PeerHeard(view))

    def _changed(self, changes: list[Change]) -> None:
        for change in changes:
            if isinstance(change, detecting.Doubted):
                self._pulses.doubt()
                self._heard = None
                self._hear(Doubted())
            elif isinstance(change, PeerChanged) and change.status is PeerStatus.LOST:
                self._heard = None
                self._hear(PeerLost())

    def _view(self, told: PeerView) -> View:
        facts = self._facts
        return View(facts.boot, facts.cluster, self._detector.heard_on, (to_pulse(told, facts.module, facts.digest),))
