"""The actors: thin, each around a plain class. The only place where Ray is called.

Named and detached, one supervisor and three for each module, in one runtime of one server. An actor that dies is made
again by Ray with the same facts, finds what runs, and says so to the supervisor; a supervisor that dies finds the
modules' actors by their names. What was on its way when one died is lost: everything said here is a level, and the
state machine says it again when the report does not fit.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

import ray

from hotpair.actors.group_facts import GroupFacts
from hotpair.actors.groups import Found, NotOpened, Report
from hotpair.actors.heartbeat import Heartbeat
from hotpair.actors.incarnation_io import Incarnation
from hotpair.actors.mirror_keeper import MirrorKeeper
from hotpair.actors.module_probes import prober_of
from hotpair.actors.ray_profile import ACTOR_OPTIONS
from hotpair.actors.said import MirrorSays, Newest, Origin
from hotpair.actors.supervisor import MOMENT_S
from hotpair.actors.vm_keeper import VmKeeper
from hotpair.cluster.checks import Watch
from hotpair.cluster.module_events import MirrorReported, VmReported
from hotpair.cluster.module_values import HowToStop, PeerView, Role, Vm
from hotpair.cluster.record import Record
from hotpair.hyperv import drivers_io

log = logging.getLogger("hotpair.actors")

NAMESPACE = "hotpair"
SUPERVISOR = "supervisor"
HEARTBEAT, REPLICATION, VM = "heartbeat", "replication", "vm"
ROLES = (HEARTBEAT, REPLICATION, VM)
FIND_S = 60.0  # until a module's actors have said what runs
ASK_S = 10.0  # for what people ask of an actor
CLOSE_S = 10.0
GONE_LOOK_S = 0.05
SAY_AGAIN_S = 0.5  # to a supervisor that was not there


class _Post:
    """Takes an actor's reports to the supervisor, whichever process that is now."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._supervisor: Any = None
        self._latest: Report | None = None
        self._last: Any = None

    def __call__(self, event: Report | None) -> None:
        """None: only that there is a new process in this role."""
        self._latest = event
        try:
            if self._supervisor is None:
                self._supervisor = ray.get_actor(SUPERVISOR, namespace=NAMESPACE)
            said = self._last = self._supervisor.hear.remote(self._origin, event, time.monotonic_ns())
            said.future().add_done_callback(lambda future: self._sent(event, future))
        except (ValueError, ray.exceptions.RayError) as error:
            self._supervisor = None  # it asks when it is there again
            log.warning("%s: the supervisor cannot be reached: %s", self._origin, error)

    def is_heard(self) -> None:
        """Wait a moment until what was said last has been heard."""
        if self._last is not None:
            ray.wait([self._last], timeout=MOMENT_S)

    def _sent(self, event: Report | None, future: Future[None]) -> None:
        """What a supervisor that is being made again has not heard is said again, unless there is something newer."""
        if event is self._latest and isinstance(future.exception(), ray.exceptions.RayActorError):
            again = threading.Timer(SAY_AGAIN_S, lambda: self(event) if event is self._latest else None)
            again.daemon = True
            again.start()


class HeartbeatActor:
    """Nothing else is in its process: jitter is what it must not have."""

    async def __init__(self, facts: GroupFacts) -> None:  # type: ignore[misc]  # Ray waits for it, in the event loop
        self._held = Incarnation(facts.state, HEARTBEAT)
        post = _Post(Origin(facts.module, HEARTBEAT, self._held.number))
        self._heartbeat = Heartbeat(facts.heartbeat, post)
        self._task = asyncio.get_running_loop().create_task(self._heartbeat.run())
        self._module = facts.module
        self._newest = Newest()
        post(None)

    async def say(self, told: PeerView | None, said_at_ns: int) -> None:
        if self._newest.is_newer(self._module, "told", said_at_ns):
            self._heartbeat.say(told)

    async def link(self, lives: bool, said_at_ns: int) -> None:
        if self._newest.is_newer(self._module, "link", said_at_ns):
            self._heartbeat.link(lives)

    async def again(self) -> None:
        self._heartbeat.again()

    async def status(self) -> Mapping[str, Any]:
        return self._heartbeat.status()

    async def close(self) -> None:
        self._task.cancel()
        self._held.release()


class ReplicationActor:
    """Owns the module's mirror process."""

    def __init__(self, facts: GroupFacts) -> None:
        self._held = Incarnation(facts.state, REPLICATION)
        self._post = _Post(Origin(facts.module, REPLICATION, self._held.number))
        self._keeper = MirrorKeeper(facts.mirror, self._post, lambda reason: self._post(MirrorSays(reason)))
        found = self._keeper.find()
        self._post(None)
        self._post(found)

    def find(self) -> MirrorReported:
        """As it is when asked. Said as well, so that nothing older is said after it."""
        found = self._keeper.now()
        self._post(MirrorSays(self._keeper.reason))  # first: of what was said, the last is said again if need be
        self._post(found)
        return found

    def start(self, role: Role, alone: bool, salvage: bytes | None) -> None:
        self._keeper.start(role, alone=alone, salvage=salvage)

    def stop(self) -> None:
        self._keeper.stop()

    def report(self) -> None:
        """Returns when the supervisor has heard it: what it is told after that comes after it."""
        self._keeper.report()
        self._post.is_heard()

    def go_alone(self, based_on: Record, record: Record) -> None:
        self._keeper.go_alone(based_on, record)

    def fail_tap(self) -> None:
        self._keeper.fail_tap()

    def hand_over(self) -> None:
        self._keeper.hand_over()

    def leave(self) -> None:
        self._keeper.leave()

    def agree(self, based_on: Record, epoch: int, mine_first: bool) -> None:
        self._keeper.agree(based_on, epoch, mine_first=mine_first)

    def status(self) -> Mapping[str, Any]:
        return self._keeper.status()

    def close(self) -> None:
        self._keeper.close()
        self._held.release()


class VmActor:
    """Drives the module's VM, and makes the module's checks (prober.py says why here)."""

    def __init__(self, facts: GroupFacts) -> None:
        self._held = Incarnation(facts.state, VM)
        self._post = _Post(Origin(facts.module, VM, self._held.number))
        self._keeper = VmKeeper(facts.vm, drivers_io.Maker(facts.driver, facts.place), self._post)
        self._prober = prober_of(facts.checkers, facts.module, self._keeper, self._post)
        found = self._keeper.find()
        self._post(None)
        self._post(VmReported(found))

    def find(self) -> Vm:
        """As it is when asked. Said as well, so that nothing older is said after it."""
        found = self._keeper.now()
        self._post(VmReported(found))
        return found

    def start(self) -> None:
        self._keeper.start()

    def stop(self, how: HowToStop) -> None:
        self._keeper.stop(how)

    def check(self, watch: Watch) -> None:
        self._prober.watch(watch)

    def status(self) -> Mapping[str, Any]:
        return self._keeper.status()

    def close(self) -> None:
        self._prober.close()
        self._keeper.close()
        self._held.release()


_CLASSES: Mapping[str, type] = {HEARTBEAT: HeartbeatActor, REPLICATION: ReplicationActor, VM: VmActor}


# ---- the supervisor's side


class _Vm:
    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def start(self) -> None:
        self._actor.start.remote()

    def stop(self, how: HowToStop) -> None:
        self._actor.stop.remote(how)


class _Peer:
    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self.told: PeerView | None = None
        self.is_unknown = True  # this supervisor does not know what was heard of the peer before

    def say(self, told: PeerView | None) -> None:
        self.told = told
        self._actor.say.remote(told, time.monotonic_ns())
        if self.is_unknown and told is not None:
            self.is_unknown = False
            self._actor.again.remote()


class RayGroup:
    """A module's three actors, for the supervisor."""

    def __init__(self, facts: GroupFacts) -> None:
        self.facts = facts
        self._actors = {role: _actor(facts, role) for role in ROLES}
        self._mirror = self._actors[REPLICATION]
        self.vm = _Vm(self._actors[VM])
        self.peer = _Peer(self._actors[HEARTBEAT])
        self._link = False
        self._watch: Watch | None = None

    async def find(self) -> Found:
        self.peer.is_unknown = True  # whoever asks begins anew
        try:
            async with asyncio.timeout(FIND_S):
                found, vm = await asyncio.gather(self._mirror.find.remote(), self._actors[VM].find.remote())
        except (TimeoutError, ray.exceptions.RayError) as error:
            why = str(error) or f"nothing is heard of them within {FIND_S:g} s"
            raise NotOpened(f"the actors of {self.facts.module} cannot be used: {why}") from error
        return Found(found.mirror, vm, found.bytes_changed)

    def start(self, role: Role, *, alone: bool, salvage: bytes | None) -> None:
        self._mirror.start.remote(role, alone, salvage)

    def stop(self) -> None:
        self._mirror.stop.remote()

    def go_alone(self, based_on: Record, record: Record) -> None:
        self._mirror.go_alone.remote(based_on, record)

    def fail_tap(self) -> None:
        self._mirror.fail_tap.remote()

    def hand_over(self) -> None:
        self._mirror.hand_over.remote()

    def leave(self) -> None:
        self._mirror.leave.remote()

    def agree(self, based_on: Record, epoch: int, *, mine_first: bool) -> None:
        self._mirror.agree.remote(based_on, epoch, mine_first)

    async def ask_mirror(self) -> None:
        try:
            await self._mirror.report.remote()
        except ray.exceptions.RayError as error:
            log.warning("%s: its mirror cannot be asked: %s", self.facts.module, error)

    def link(self, lives: bool) -> None:
        self._link = lives
        self._actors[HEARTBEAT].link.remote(lives, time.monotonic_ns())

    def check(self, watch: Watch) -> None:
        self._watch = watch
        self._actors[VM].check.remote(watch)

    def is_new(self, role: str) -> None:
        """There is another process in this role: what only the supervisor knows is said to it again."""
        if role == HEARTBEAT:
            self._actors[HEARTBEAT].link.remote(self._link, time.monotonic_ns())
            if self.peer.told is not None:
                self.peer.say(self.peer.told)
        if role == VM and self._watch is not None:
            self.check(self._watch)

    async def status(self) -> Mapping[str, Any]:
        asked = {role: asyncio.ensure_future(_answer(actor.status.remote())) for role, actor in self._actors.items()}
        return {role: await answer for role, answer in asked.items()}

    async def close(self) -> None:
        """The actors end; mirror and VM go on. On return others can have their names."""
        for role, actor in self._actors.items():
            try:
                async with asyncio.timeout(CLOSE_S):
                    await actor.close.remote()
            except (TimeoutError, ray.exceptions.RayError) as error:
                log.warning("%s: %s does not close: %s", self.facts.module, role, error)
            ray.kill(actor)
        for role in ROLES:
            await _until_gone(f"{self.facts.module}/{role}")


async def _until_gone(name: str) -> None:
    """Ray forgets a name a moment after the actor was killed, and has no event for it."""
    try:
        async with asyncio.timeout(CLOSE_S):
            while True:
                ray.get_actor(name, namespace=NAMESPACE)
                await asyncio.sleep(GONE_LOOK_S)
    except ValueError:
        return
    except TimeoutError:
        log.warning("%s was killed, and is still known", name)


async def _answer(asked: Awaitable[Any]) -> Any:
    try:
        async with asyncio.timeout(ASK_S):
            return await asked
    except (TimeoutError, ray.exceptions.RayError) as error:
        return {"problem": f"it does not answer: {error}"}


def _actor(facts: GroupFacts, role: str) -> Any:
    """The actor of this role, made if there is none."""
    name = f"{facts.module}/{role}"
    options = {**ACTOR_OPTIONS, "name": name, "get_if_exists": True}
    return ray.remote(_CLASSES[role]).options(**options).remote(facts)


# ---- the supervisor

Build = Callable[[Any], Awaitable[Any]]


class SupervisorActor:
    """`build` makes the plain supervisor and all that serves it, given a way to open groups; it comes from above."""

    async def __init__(self, build: Build) -> None:  # type: ignore[misc]  # Ray waits for it, in the event loop
        self._newest = Newest()
        self._groups: dict[str, tuple[RayGroup, Callable[[Report], None]]] = {}
        self._built = await build(self)

    async def open(self, facts: GroupFacts, hear: Callable[[Report], None]) -> RayGroup:
        """For `build`'s supervisor, in this process. A module that was removed begins to count again."""
        self._newest.forget(facts.module)
        group = RayGroup(facts)
        self._groups[facts.module] = (group, hear)
        return group

    async def hear(self, origin: Origin, event: Report | None, said_at_ns: int) -> None:
        """From an actor; one that was replaced is not listened to, nor what is older than what was heard."""
        if self._newest.is_replaced(origin):
            log.warning("%s was replaced, and still says %s", origin, event)
            return
        known = self._groups.get(origin.module)
        if known is None:
            return
        group, hear = known
        if event is None:
            group.is_new(origin.role)
        elif self._newest.is_news(origin, event, said_at_ns):
            hear(event)

    async def ping(self) -> str:
        return "here"
