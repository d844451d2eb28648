"""One server's part in a change of the pair: looks, promises, does it, takes it back. In the supervisor's event loop.

A promise (`prepare`) is kept for a while, and excludes any other change; nothing is written before `commit`. What was
committed can be taken back until the next promise. Both can be repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

from hotpair import pair_files_io
from hotpair.actors.driver_place import place_of
from hotpair.actors.groups import NotOpened
from hotpair.actors.home import Home
from hotpair.actors.supervisor import Supervisor, UnknownModule
from hotpair.cluster.admission import ModuleRefused
from hotpair.cluster.configuration import Module, digest, parse_module
from hotpair.cluster.module_events import Command
from hotpair.hyperv import drivers_io
from hotpair.hyperv.errors import DriverError
from hotpair.in_thread import in_thread
from hotpair.pair_change import (
    LONGEST_MODULE_TEXT,
    Change,
    Facts,
    Found,
    Kind,
    Present,
    flat,
    free_port,
    is_done,
    objection,
)
from hotpair.pair_facts_io import REAL, Looked, Looks, files_of, look, real
from hotpair.pair_files_io import Undo

PROMISE_S = 120.0  # a promise whose coordinator is not heard any more: longer than both commits may take
LOOK_S = 30.0  # for disks and drivers, when a change is checked
THREADS = 4  # blocked by what does not answer, at most

T = TypeVar("T")


class ChangeRefused(Exception):
    """Nothing was done here; the text says why. `is_state`: it may be possible later."""

    def __init__(self, text: str, *, is_state: bool = False) -> None:
        super().__init__(text)
        self.is_state = is_state


class ChangeFailed(Exception):
    """It was begun; the text says what is where now, and what to do."""


@dataclass(frozen=True)
class Standing:
    """What a server says of itself before a change. `cluster`: its cluster.toml, flat."""

    server: str
    cluster: Mapping[str, Any]
    modules: Mapping[str, Present]


class Participant(Protocol):
    """Either server, for whoever coordinates. `commit` returns notes for people.

    ChangeRefused: no, and nothing was done. ChangeFailed: no, and it may have been done in part.
    """

    @property
    def server(self) -> str: ...
    async def standing(self) -> Standing: ...
    async def prepare(self, change: Change, others: tuple[str, ...]) -> None: ...
    async def commit(self, change: Change) -> list[str]: ...
    async def undo(self, change: Change) -> None: ...
    async def start(self, module: str) -> None: ...
    async def free_port(self, taken: Collection[int], least: int) -> int: ...


@dataclass
class _Promise:
    change: Change
    configured: Module | None
    facts: Facts
    until: float
    before: Module | None = None
    is_committed: bool = False
    notes: list[str] = field(default_factory=list)
    files: Undo = field(default_factory=Undo)


class Here:
    """This server. `forget` is told of a module that is not there any more."""

    def __init__(
        self,
        supervisor: Supervisor,
        home: Home,
        server: str,
        *,
        looks: Looks = REAL,
        forget: Callable[[str], None] = lambda module: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._supervisor = supervisor
        self._home = home
        self._server = server
        self._looks = looks
        self._forget = forget
        self._clock = clock
        self._promise: _Promise | None = None
        self._acting = asyncio.Lock()
        self._threads = ThreadPoolExecutor(THREADS, "pair")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    @property
    def server(self) -> str:
        return self._server

    # ---- what is asked

    async def standing(self) -> Standing:
        modules = await self._modules()
        return Standing(self._server, flat(asdict(self._supervisor.cluster)), modules)

    async def prepare(self, change: Change, others: tuple[str, ...]) -> None:
        """Raises ChangeRefused, ConfigurationError. `others`: names of the modules that the other server has."""
        async with self._acting:
            self._refuse_second(change)
            if len(change.text) > LONGEST_MODULE_TEXT:
                raise ChangeRefused(f"a module's file has at most {LONGEST_MODULE_TEXT} characters")
            configured = None if change.kind is Kind.REMOVE else self._parsed(change)
            facts = await self._facts(change, configured, others)
            found = objection(change, configured, facts)
            if found is not None:
                raise ChangeRefused(f"on {self._server}: {found.text}", is_state=found.is_state)
            before = self._configured(change.module)
            self._promise = _Promise(change, configured, facts, self._clock() + PROMISE_S, before)

    async def commit(self, change: Change) -> list[str]:
        """Raises ChangeRefused, ChangeFailed."""
        async with self._acting:
            promise = self._promise
            if promise is None or promise.change != change or promise.until < self._clock():
                raise ChangeRefused(
                    f"on {self._server}: this was not prepared, or too long ago: repeat it", is_state=True
                )
            if promise.is_committed:
                return promise.notes
            self._promise = None  # kept only if it is carried out
            if not is_done(change, promise.facts):
                await self._carry_out(promise)
            self._promise, promise.is_committed = promise, True
            return promise.notes

    async def undo(self, change: Change) -> None:
        """Raises ChangeFailed. Nothing for a change that is not promised here."""
        async with self._acting:
            promise = self._promise
            if promise is None or promise.change != change:
                return
            if promise.is_committed and not is_done(change, promise.facts):
                await self._take_back(promise)
            self._promise = None

    async def start(self, module: str) -> None:
        """Raises ChangeRefused, UnknownModule."""
        reply = await self._supervisor.command(module, Command.START)
        if not reply.accepted:
            raise ChangeRefused(f"on {self._server}: {reply.why}", is_state=True)

    async def free_port(self, taken: Collection[int], least: int) -> int:
        """One for a new module. Raises ChangeRefused."""
        cluster = self._supervisor.cluster
        found = await self._in_thread(
            lambda: free_port(taken, lambda port: not self._looks.port(cluster, self._server, port), least)
        )
        if found is None:
            raise ChangeRefused(f"on {self._server}: no port is free")
        return found

    async def text_of(self, module: str) -> str:
        """The module's file. Raises ChangeRefused."""
        path = self._home.module_file(module)
        try:
            return await self._in_thread(lambda: pair_files_io.read(path))
        except (OSError, ValueError) as error:
            raise ChangeRefused(f"{path} cannot be read: {_said(error)}") from error

    # ---- how

    def _refuse_second(self, change: Change) -> None:
        promise = self._promise
        if promise is None or promise.is_committed or promise.until < self._clock():
            return
        if promise.change.identity != change.identity:
            raise ChangeRefused(
                f"on {self._server}: another change is under way ({promise.change.kind.value} "
                f"{promise.change.module}): try again in a moment",
                is_state=True,
            )

    def _parsed(self, change: Change) -> Module:
        return parse_module(change.text, change.module, self._supervisor.cluster)

    def _configured(self, name: str) -> Module | None:
        try:
            return self._supervisor.configured(name)
        except UnknownModule:
            return None

    async def _modules(self) -> dict[str, Present]:
        known = [(said, self._supervisor.configured(said.module)) for said in self._supervisor.standings()]
        try:
            directories, files = await self._in_thread(
                lambda: ([real(self._home.below(one.directory)) for _, one in known], files_of(self._home))
            )
        except OSError as error:
            raise ChangeRefused(f"on {self._server}: {error.filename} cannot be read: {error.strerror}") from error
        found = {
            said.module: Present(
                directory=directory,
                mirror_port=one.mirror_port,
                state=None if said.state is None or said.problem else said.state.value,
                digest=digest(one).hex(),
                problem=said.problem,
            )
            for (said, one), directory in zip(known, directories, strict=True)
        }
        closed = "its file is wrong (see the service's log), or newer than hotpair run"
        for name in files:
            found.setdefault(name, Present("/nowhere", 0, "", "", closed))
        return found

    async def _facts(self, change: Change, configured: Module | None, others: tuple[str, ...]) -> Facts:
        modules = await self._modules()
        facts = Facts(self._server, modules, others, before=self._configured(change.module))
        if configured is None:
            return facts
        cluster, home, is_new = self._supervisor.cluster, self._home, change.kind is Kind.ADD
        seen: Looked = await self._in_thread(
            lambda: look(self._looks, configured, cluster, home, self._server, is_new=is_new)
        )
        return Facts(
            server=self._server,
            modules=modules,
            others=others,
            own=(real(home.configuration), real(home.state)),
            directory=seen.directory,
            found=seen.found,
            digest=digest(configured).hex(),
            before=facts.before,
            port=seen.port,
            driver=seen.driver,
            fuse=seen.fuse,
            disk=seen.disk,
        )

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Raises ChangeRefused after LOOK_S; the work goes on."""
        try:
            return await in_thread(self._threads, work, LOOK_S)
        except TimeoutError:
            text = f"on {self._server}: a disk or a driver has not answered within {LOOK_S:g} s"
            raise ChangeRefused(text, is_state=True) from None

    async def _carry_out(self, promise: _Promise) -> None:
        """All of it, or nothing."""
        act = {Kind.ADD: self._add, Kind.EDIT: self._edit, Kind.REMOVE: self._remove}[promise.change.kind]
        try:
            await act(promise)
        except (OSError, ModuleRefused, NotOpened) as error:
            await self._take_back(promise)
            raise ChangeRefused(f"on {self._server}: {_said(error)}", is_state=True) from error
        except BaseException:  # cancelled, or a mistake: not left half done
            await self._take_back(promise)
            raise

    async def _add(self, promise: _Promise) -> None:
        change, configured, home = promise.change, promise.configured, self._home
        assert configured is not None
        path = home.below(configured.directory)
        made = path if promise.facts.found is Found.MISSING else None
        overwrite = change.overwrite and configured.data_on != self._server and promise.facts.found is Found.FULL
        await self._write(
            lambda: pair_files_io.make(home, change.module, change.text, made, promise.files, overwrite=overwrite)
        )
        await self._supervisor.add(configured)

    async def _edit(self, promise: _Promise) -> None:
        change, configured = promise.change, promise.configured
        assert configured is not None
        await self._write(lambda: pair_files_io.replace(self._home, change.module, change.text, promise.files))
        await self._supervisor.remove(change.module)
        await self._supervisor.add(configured)

    async def _remove(self, promise: _Promise) -> None:
        name, home, before = promise.change.module, self._home, promise.before
        if before is not None:
            await self._supervisor.remove(name)
            self._forget(name)
            promise.notes += await self._in_thread(lambda: _forgotten(before, home, self._server))
        aside = await self._write(lambda: pair_files_io.remove(home, name, promise.files))
        if before is not None:
            promise.notes.append(f"on {self._server} the data is still in {home.below(before.directory)}")
        promise.notes.append(f"on {self._server} what was known of {name} is in {aside}")

    async def _write(self, work: Callable[[], T]) -> T:
        """To the end, however long the disk takes: what takes it back must know what was done."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _take_back(self, promise: _Promise) -> None:
        """As far as it goes: a module that was there is open again in any case. Raises ChangeFailed."""
        name, before = promise.change.module, promise.before
        problems = []
        try:
            if promise.change.kind is not Kind.REMOVE and self._configured(name) not in (None, before):
                await self._supervisor.remove(name)
                self._forget(name)
            await self._write(promise.files.run)
        except (OSError, ModuleRefused) as error:
            problems.append(_said(error))
        try:
            if before is not None and self._configured(name) is None:
                await self._supervisor.add(before)
        except (OSError, ModuleRefused, NotOpened) as error:
            problems.append(_said(error))
        if problems:
            raise ChangeFailed(
                f"on {self._server}: {promise.change.kind.value} {name} could not be taken back: {problems[0]}. "
                "Look with hotpair state, and repeat the command"
            )


def _forgotten(module: Module, home: Home, server: str) -> list[str]:
    """The hypervisor forgets the VM. What it refuses is for the operator: the module is gone all the same."""
    try:
        drivers_io.make(module.vm.driver, place_of(module, home, server)).remove()
    except DriverError as error:
        return [f"on {server} the driver {module.vm.driver} still knows {module.name}: {' '.join(str(error).split())}"]
    return []


def _said(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
