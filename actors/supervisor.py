"""One server's supervisor: the modules, their runners, the operator's commands. Plain class, no Ray in it.

It runs in one event loop and waits for nothing but durable writes of its own. Each module has a group: whoever owns its
mirror process, its VM and its pulses. What they report comes to `hear`; what the runner says goes to them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from hotpair.actors import unreadable
from hotpair.actors.event_log_io import EventLog, Note
from hotpair.actors.groups import Group, Groups, NotOpened, Report
from hotpair.actors.heartbeat import boot_time
from hotpair.actors.home import Home
from hotpair.actors.module_checks import ModuleChecks, Shown
from hotpair.actors.module_runner import ModuleRunner, NotStored, RunnerEnded
from hotpair.actors.open_module import OpenModule, Standing, Unreadable, standing_of
from hotpair.actors.said import MirrorSays
from hotpair.actors.shelf_io import ModuleShelf
from hotpair.cluster.admission import ModuleRefused, admit
from hotpair.cluster.arbiter_io import Arbiter
from hotpair.cluster.arbitration import Claim, keeps_epochs, unreachable
from hotpair.cluster.checker_rules import Tick
from hotpair.cluster.checks import Checked
from hotpair.cluster.configuration import Cluster
from hotpair.cluster.configuration import Module as Configured
from hotpair.cluster.loop_counter_io import LoopCounterUnusable
from hotpair.cluster.module_events import (
    Answered,
    Command,
    Commanded,
    Doubted,
    Event,
    Looked,
    MirrorReported,
    PeerHeard,
    PeerLost,
    Reply,
    Started,
    Timer,
    TimerFired,
)
from hotpair.cluster.module_values import Module, Settings, State, Vm
from hotpair.cluster.record import RecordDamaged, RecordVersion
from hotpair.cluster.record_io import RecordNotStored
from hotpair.cluster.wishes_io import Wishes, WishesUnusable

log = logging.getLogger("hotpair.supervisor")

AGAIN_S = 5.0  # after something of the module's own state could not be read or stored
MOMENT_S = 0.3  # for a mirror's report, before a pulse is believed without it
RUNS = (State.ALONE, State.PRIM)
OPENED_AT_A_TIME = 4  # modules; each has three processes that start, and more would only wait for each other
MOST_EARLY = 200  # reports; helpers say each level again only when it has changed
QUESTIONS = 8  # put to the arbiter at the same time; each blocks a thread for its time limit at most


class UnknownModule(Exception):
    """There is no module of this name here."""


class Supervisor:
    """`open` it in an event loop; all methods are called in its thread, `hear` of the groups excepted."""

    def __init__(
        self,
        home: Home,
        cluster: Cluster,
        settings: Callable[[Configured], Settings],
        groups: Groups,
        arbiter: Arbiter,
        *,
        boot: str,
    ) -> None:
        self._home = home
        self.cluster = cluster
        self._settings = settings
        self._groups = groups
        self._arbiter = arbiter
        self._boot = boot
        self._listeners: list[Callable[[Mapping[str, Any]], None]] = []
        self._open: dict[str, OpenModule] = {}
        self._asking = ThreadPoolExecutor(QUESTIONS, "arbiter")
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._may_open = asyncio.Semaphore(OPENED_AT_A_TIME)

    # ---- modules

    async def add(self, configured: Configured, *, at_the_peer: tuple[str, ...] = ()) -> None:
        """Open a module: what runs of it is taken on. ModuleRefused for the 26th, NotOpened, OSError."""
        admit(configured.name, list(self._open), at_the_peer)
        home, name = self._home, configured.name
        shelf = ModuleShelf(
            home.module_state(name), home.mirror_state(name), home.below(configured.directory), self._boot
        )
        module = OpenModule(configured, shelf, EventLog(home.event_log(name), name, self._said))
        self._open[name] = module
        module.group = await self._groups.open(configured, lambda event: self._post(module, event))
        await self._begin(module)

    def add_all(self, modules: Iterable[Configured]) -> None:
        """Open these, a few at a time. Not waited for: a server whose disks and processors are busy may need minutes
        for 25, and whoever took that for a failure and began again would never come to an end."""
        for configured in modules:
            self._do(self._add_in_turn(configured))

    async def _add_in_turn(self, configured: Configured) -> None:
        async with self._may_open:
            try:
                await self.add(configured)
            except (ModuleRefused, NotOpened, OSError) as error:
                log.error("module %s is not opened: %s", configured.name, error)

    async def remove(self, name: str) -> None:
        """Forget a module that is stopped. ModuleRefused while it is not."""
        module = self._module(name)
        if module.runner is not None and module.runner.module.state is not State.STOP:
            raise ModuleRefused(f"{name} is {module.runner.module.state.value} here: stop it first")
        del self._open[name]
        await self._end(module)

    def begin_to_stop_all(self) -> None:
        """As stop_all, without waiting."""
        self._do(self.stop_all())

    async def stop_all(self) -> None:
        """Stop every module before the host goes down, the peer's copies first; returns when they are stopped.

        A primary is handed over to the peer. What the operator wants of a module stays, for the next boot.
        """
        copies = [one for one in self._open.values() if one.state is not None and one.state not in RUNS]
        for modules in (copies, list(self._open.values())):
            for module in modules:
                module.shelf.going_down = True
                await self.command(module.configured.name, Command.STOP)
            await self._until_all(modules, State.STOP)

    async def _until_all(self, modules: list[OpenModule], wanted: State) -> None:
        """Those without a runner are not waited for."""
        changed = asyncio.Event()
        forget = self.listen(lambda entry: changed.set())
        try:
            while any(module.state not in (None, wanted) for module in modules):
                changed.clear()
                await changed.wait()
        finally:
            forget()

    async def close(self) -> None:
        """Leave everything as it runs: mirrors and VMs go on, the next supervisor takes them on."""
        for module in self._open.values():
            await self._end(module)
        self._open.clear()
        for task in self._tasks:
            task.cancel()
        self._asking.shutdown(wait=False, cancel_futures=True)

    async def _begin(self, module: OpenModule) -> None:
        group = module.group
        assert group is not None
        try:
            record, wishes = module.shelf.load()
            loop = module.shelf.load_loop()
            wishes = self._after_boot(module, wishes)
        except (RecordDamaged, RecordVersion) as error:
            await self._cannot_be_read(module, group, error)
            return
        except (RecordNotStored, WishesUnusable, LoopCounterUnusable, NotStored) as error:
            self._is_broken(module, str(error))
            return
        module.early.clear()
        try:
            found = await group.find()
        except NotOpened as error:
            self._is_broken(module, str(error))
            return
        runner = ModuleRunner(
            self._settings(module.configured),
            mirror=group,
            vm=group.vm,
            arbiter=_Asker(self, module),
            peer=group.peer,
            timers=_Timers(self, module),
            shelf=module.shelf,
            diary=module.events,
            clock=boot_time,
        )
        module.runner, module.problem, module.unreadable = runner, "", None
        module.checks = ModuleChecks(
            module.configured,
            runner,
            loop,
            watch=group.check,
            tick_after=lambda after_s: self._tick_after(module, after_s),
            other=lambda name: self.known(name) if name in self._open else None,
            shelf=module.shelf,
            diary=module.events,
            clock=boot_time,
        )
        if found.mirror is None and found.vm is Vm.OFF and not wishes.maintenance:
            module.checks.hold_before_start()
        started = Started(
            record, wishes.wanted, wishes.maintenance, self._boot, found.mirror, found.vm, found.bytes_changed
        )
        self._take(module, started)
        group.peer.say(runner.told)
        early, module.early = module.early, []
        for report in early:
            self._take(module, report)

    def _after_boot(self, module: OpenModule, wishes: Wishes) -> Wishes:
        """Where the host was booted since, the module's `boot` says whether it is to run."""
        if wishes.boot == self._boot:
            return wishes
        wanted = {"on": True, "off": False, "as-before": wishes.wanted}[module.configured.boot]
        module.shelf.remember(wanted=wanted, maintenance=wishes.maintenance)
        return Wishes(wanted, wishes.maintenance, self._boot)

    async def _end(self, module: OpenModule) -> None:
        self._no_runner(module)
        if module.group is not None:
            await module.group.close()

    def _is_broken(self, module: OpenModule, why: str) -> None:
        """Nothing is decided for it until its own state can be read and stored; what runs goes on."""
        self._undecided(module, why, None)
        self._loop.call_later(AGAIN_S, self._try_again, module)

    def _undecided(self, module: OpenModule, why: str, unreadable: Unreadable | None) -> None:
        if why != module.problem:
            module.events.add("problem", text=why)
        self._no_runner(module)
        module.problem, module.unreadable = why, unreadable

    async def _cannot_be_read(self, module: OpenModule, group: Group, error: RecordDamaged | RecordVersion) -> None:
        """It waits for the operator. What was said of it before must not be believed by the peer any more."""
        name, before = module.configured.name, module.unreadable
        mark, peer = self._home.overwrite_mark(name), self._settings(module.configured).peer
        vm, wishes = None if before is None else before.vm, None
        try:
            wishes = module.shelf.load_wishes()
        except WishesUnusable as unusable:
            log.error("%s: %s", name, unusable)
        why = unreadable.reason(error, module.shelf.record_path, mark, peer)
        self._undecided(module, why, Unreadable(vm, wishes))
        group.peer.say(None)
        try:
            vm = (await group.find()).vm
        except NotOpened as silent:
            vm = None
            log.error("%s: %s", name, silent)
        module.unreadable = Unreadable(vm, wishes)
        self._loop.call_later(AGAIN_S, self._try_again, module)

    def _no_runner(self, module: OpenModule) -> None:
        for handle in module.timers.values():
            handle.cancel()
        module.timers.clear()
        if module.checks_timer is not None:
            module.checks_timer.cancel()
        module.runner = module.checks = module.checks_timer = None

    def _try_again(self, module: OpenModule) -> None:
        if module.runner is None and self._open.get(module.configured.name) is module:
            self._do(self._begin(module))

    def _do(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- events

    def _post(self, module: OpenModule, event: Report) -> None:
        """From any thread."""
        self._loop.call_soon_threadsafe(self._take, module, event)

    def _take(self, module: OpenModule, event: Report, replies: Callable[[Reply], None] | None = None) -> None:
        if isinstance(event, Note):
            module.events.add("note", text=event.text)
            return
        if isinstance(event, MirrorSays):
            module.mirror_says = event.text
            return
        runner, checks = module.runner, module.checks
        if runner is None or checks is None:
            module.early.append(event)
            del module.early[:-MOST_EARLY]
            return
        if isinstance(event, PeerHeard | PeerLost | Doubted):
            if module.of_peer is not None:
                module.of_peer.append(event)
                return
            if isinstance(event, PeerHeard) and _shows_another_record(runner.module, event):
                module.of_peer = deque([event])
                self._do(self._ask_mirror_first(module))
                return
        self._give(module, runner, checks, event, replies)

    async def _ask_mirror_first(self, module: OpenModule) -> None:
        """The rule of PeerHeard; what the pulses say meanwhile comes after it, in its order."""
        group = module.group
        assert group is not None and module.of_peer is not None
        try:
            async with asyncio.timeout(MOMENT_S):
                await group.ask_mirror()
                await asyncio.sleep(0)  # what it has posted is taken first
        except TimeoutError:
            log.warning("%s: the mirror does not say how it is, and the pulse is believed", module.configured.name)
        finally:  # whatever went wrong: what the pulses say is never held back for good
            waiting, module.of_peer = module.of_peer, None
            if module.runner is not None and module.checks is not None:
                self._give(module, module.runner, module.checks, waiting.popleft())
            for event in waiting:
                self._take(module, event)

    def _give(
        self,
        module: OpenModule,
        runner: ModuleRunner,
        checks: ModuleChecks,
        event: Event | Checked | Tick,
        replies: Callable[[Reply], None] | None = None,
    ) -> None:
        if isinstance(event, MirrorReported) and module.group is not None:
            module.group.link(event.mirror is not None and event.mirror.linked)
        if isinstance(event, MirrorReported) and event.record is None and runner.module.record is not None:
            try:  # a record does not vanish: what cannot be read is never an empty one
                event = replace(event, record=module.shelf.load()[0])
            except (RecordDamaged, RecordVersion, RecordNotStored, WishesUnusable):
                self._no_runner(module)
                self._do(self._begin(module))
                return
        try:
            if isinstance(event, Checked | Tick):
                checks.hear(event)
            else:
                runner.handle(event, replies)
                checks.follow(event)
        except (RunnerEnded, NotStored) as error:
            self._is_broken(module, str(error))

    def _tick_after(self, module: OpenModule, after_s: float) -> None:
        if module.checks_timer is not None:
            module.checks_timer.cancel()
        module.checks_timer = self._loop.call_later(after_s, self._take, module, Tick())

    # ---- what people and programs ask

    async def command(self, name: str, command: Command) -> Reply:
        """Refusals are an answer; UnknownModule is not."""
        module = self._module(name)
        if module.runner is None:
            return Reply(False, module.problem or "It is being opened: try again in a moment.")
        answered: asyncio.Future[Reply] = self._loop.create_future()
        self._take(module, Commanded(command), answered.set_result)
        return answered.result() if answered.done() else Reply(False, module.problem)

    def standing(self, name: str) -> Standing:
        return standing_of(self._module(name))

    def standings(self) -> list[Standing]:
        """In the order of the modules' names."""
        return [self.standing(name) for name in sorted(self._open)]

    def events(self, name: str) -> list[Mapping[str, Any]]:
        return list(self._module(name).events.entries)

    def listen(self, hear: Callable[[Mapping[str, Any]], None]) -> Callable[[], None]:
        """`hear` gets each new entry of all event logs, in this thread, until what is returned is called."""
        self._listeners.append(hear)
        return lambda: self._listeners.remove(hear)

    def _said(self, entry: Mapping[str, Any]) -> None:
        for hear in tuple(self._listeners):
            hear(entry)

    def configured(self, name: str) -> Configured:
        return self._module(name).configured

    def known(self, name: str) -> Module | None:
        """The state machine's whole state, for who shows it; None while the module has no runner."""
        runner = self._module(name).runner
        return None if runner is None else runner.module

    def checks(self, name: str) -> list[Shown]:
        """What the module's checkers have found; empty while it has no runner."""
        checks = self._module(name).checks
        return [] if checks is None else checks.shown()

    async def details(self, name: str) -> Mapping[str, Any]:
        """What mirror, VM and pulses say of themselves."""
        group = self._module(name).group
        return {} if group is None else await group.status()

    def _module(self, name: str) -> OpenModule:
        module = self._open.get(name)
        if module is None:
            known = ", ".join(sorted(self._open)) or "none yet: hotpair module add"
            raise UnknownModule(f"there is no module {name!r} on this server; there are: {known}")
        return module


def _shows_another_record(module: Module, event: PeerHeard) -> bool:
    """Whether the pulse must wait for this server's mirror to say how it is."""
    return module.mirror is not None and (module.peer is None or module.peer.record != event.view.record)


class _Timers:
    """For a runner, on the event loop's clock."""

    def __init__(self, supervisor: Supervisor, module: OpenModule) -> None:
        self._supervisor = supervisor
        self._module = module

    def set(self, timer: Timer, after_s: float) -> None:
        self.cancel(timer)
        loop, take = self._supervisor._loop, self._supervisor._take
        self._module.timers[timer] = loop.call_later(after_s, take, self._module, TimerFired(timer))

    def cancel(self, timer: Timer) -> None:
        handle = self._module.timers.pop(timer, None)
        if handle is not None:
            handle.cancel()


class _Asker:
    """Puts a runner's questions to the arbiter, each in a thread, which is blocked for the time limit at most."""

    def __init__(self, supervisor: Supervisor, module: OpenModule) -> None:
        self._supervisor = supervisor
        self._module = module

    def claim(self, claim: Claim) -> None:
        self._ask(lambda arbiter: Answered(arbiter.claim(claim)), lambda why: Answered(unreachable(claim, why)))

    def look(self, request_id: bytes) -> None:
        settings = self._supervisor._settings(self._module.configured)
        assert keeps_epochs(settings.kind)
        self._ask(
            lambda arbiter: Looked(request_id, arbiter.look(settings.pair, settings.module)),
            lambda why: Looked(request_id, None),
        )

    def _ask(self, question: Callable[[Arbiter], Event], failed: Callable[[str], Event]) -> None:
        supervisor, module = self._supervisor, self._module
        arbiter = supervisor._arbiter

        def ask() -> None:
            try:
                answer = question(arbiter)
            except Exception as error:
                log.exception("the arbiter failed")
                answer = failed(f"the arbiter failed: {error}")
            supervisor._post(module, answer)

        supervisor._asking.submit(ask)
