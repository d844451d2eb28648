"""A server's real supervisor behind the real API, in a thread of its own; only the module's helpers are made up.

The made-up mirror and VM do at once what they are told, and take nothing that the real ones would not: an order that
makes no sense is a mistake, kept until `close`, which raises it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from hotpair.access import Role as AccessRole
from hotpair.actors.groups import Found, Report
from hotpair.actors.home import Home
from hotpair.actors.supervisor import Supervisor
from hotpair.cluster import record_io
from hotpair.cluster.arbiter_io import NoArbiter
from hotpair.cluster.checks import Watch
from hotpair.cluster.configuration import Module as Configured
from hotpair.cluster.configuration_io import load_cluster, load_modules
from hotpair.cluster.module_events import MirrorReported, PeerHeard, PeerLost, VmReported
from hotpair.cluster.module_values import HowToStop, Mirror, MirrorMode, PeerView, Role, State, Vm
from hotpair.cluster.record import Record
from hotpair.cluster.settings import settings_of
from hotpair.cluster.simulation.world import BOOT, first_record
from hotpair.http_server_io import Api, serve
from hotpair.replication.errors import MirrorError
from hotpair.tokens_io import TOKENS_FILE, add

T = TypeVar("T")
ANSWER_S = 20.0

CLUSTER = """
name = "rack7"
[[servers]]
name = "alpha"
address = "127.0.0.1"
networks = {{ lan = "127.0.0.1" }}
[[servers]]
name = "beta"
address = "127.0.0.2"
networks = {{ lan = "127.0.0.2" }}
[arbitration]
kind = "none"
[security]
tls = {tls}
"""
MODULE = """
directory = "vm/{name}"
mirror_port = {port}
[vm]
driver = "command"
[vm.options]
start = "echo the-password-of-{name}"
"""


@dataclass
class Begin:
    """How a module is found when the server starts."""

    record: Record | None = None
    wanted: bool = False
    mirror: Mirror | None = None
    vm: Vm = Vm.OFF
    peer: PeerView | None = None
    checkers: str = ""  # tables of the module's configuration
    meanwhile: Record | None = None  # what the mirror stores and reports before its helper's answer is there


def stopped() -> Begin:
    """Not wanted; the copy went on alone before, so it may start by itself."""
    return Begin(replace(first_record(), solo=True, in_sync=False, last_role="ALONE"))


def prim() -> Begin:
    """Green, beside a green SECOND."""
    record = first_record()
    mirror = Mirror(Role.SOURCE, MirrorMode.PAIRED, True, True, True)
    return Begin(record, True, mirror, Vm.ON, PeerView(State.SECOND, True, replace(record, last_role="SECOND"), "b"))


def second() -> Begin:
    record = replace(first_record(), last_role="SECOND")
    mirror = Mirror(Role.TARGET, MirrorMode.PAIRED, True, True)
    return Begin(record, True, mirror, Vm.OFF, PeerView(State.PRIM, True, first_record(), "b"))


class Group:
    """Mirror, VM and pulses of one module."""

    def __init__(self, home: Home, module: str, begin: Begin, hear: Callable[[Report], None]) -> None:
        self.mirror = begin.mirror
        self.said: list[str] = []
        self.mistakes: list[str] = []
        self.details: dict[str, Any] = {"heartbeat": {}, "replication": {}, "vm": {}}
        self.hangs = False
        self.mirror_answers: asyncio.Event | None = None  # when it is set; None: at once
        self.watched = Watch(frozenset(), 0)
        self.hear = hear
        self.vm = _Vm(self, begin.vm)
        self.peer = _Peer()
        self._begin = begin
        self._record = os.path.join(home.mirror_state(module), "record")

    def order(self, word: str, *, allowed: bool) -> None:
        self.said.append(word)
        if not allowed:
            self.mistakes.append(f"{word}, with mirror {self.mirror} and vm {self.vm.now}")

    def report(self) -> None:
        self.hear(MirrorReported(self.mirror, record_io.load(self._record)))

    async def ask_mirror(self) -> None:
        if self.mirror_answers is not None:
            self.said.append("asked")
            await self.mirror_answers.wait()
        self.report()

    async def find(self) -> Found:
        if self._begin.peer is not None:
            self.hear(PeerHeard(self._begin.peer))
        found = Found(self.mirror, self.vm.now, None)
        if self._begin.meanwhile is not None:
            record_io.store(self._record, self._begin.meanwhile)
            self.report()
            await asyncio.sleep(0)
        return found

    async def status(self) -> Mapping[str, Any]:
        if self.hangs:
            await asyncio.Event().wait()
        return self.details

    async def close(self) -> None:
        self.said.append("close")

    def link(self, lives: bool) -> None:
        self.said.append(f"link {lives}")

    def check(self, watch: Watch) -> None:
        self.watched = watch

    def start(self, role: Role, *, alone: bool, salvage: bytes | None) -> None:
        self.order(f"start {role.value}", allowed=self.mirror is None and (role is Role.SOURCE or not alone))
        mode = MirrorMode.IDLE if role is Role.TARGET else MirrorMode.ALONE if alone else MirrorMode.FROZEN
        self.mirror = Mirror(role, mode)
        self.report()

    def stop(self) -> None:
        self.order("stop mirror", allowed=self.mirror is not None and self.vm.now is Vm.OFF)
        self.mirror = None
        self.report()

    def go_alone(self, based_on: Record, record: Record) -> None:
        source = self.mirror is not None and self.mirror.role is Role.SOURCE
        self.order("go alone", allowed=source and based_on == record_io.load(self._record))
        record_io.store(self._record, record)
        self.mirror = Mirror(Role.SOURCE, MirrorMode.ALONE)
        self.report()

    def fail_tap(self) -> None:
        self.order("fail tap", allowed=self.mirror is not None)

    def hand_over(self) -> None:
        self.order("hand over", allowed=self.mirror is not None and self.mirror.in_sync and self.vm.now is Vm.OFF)

    def leave(self) -> None:
        self.order("leave", allowed=self.mirror is not None and self.mirror.role is Role.TARGET)

    def agree(self, based_on: Record, epoch: int, *, mine_first: bool) -> None:
        self.order("agree", allowed=False)  # the arbitration of these tests keeps no epochs

    def lose_peer(self) -> None:
        """The link and all pulses are gone."""
        assert self.mirror is not None
        self.mirror = replace(self.mirror, linked=False, in_sync=False, mode=MirrorMode.FROZEN)
        self.report()
        self.hear(PeerLost())


class _Vm:
    def __init__(self, group: Group, now: Vm) -> None:
        self._group = group
        self.now = now

    def start(self) -> None:
        self._group.order("start vm", allowed=self.now is Vm.OFF and self._group.mirror is not None)
        self._is(Vm.ON)

    def stop(self, how: HowToStop) -> None:
        self._group.order("stop vm", allowed=self.now is Vm.ON)
        self._is(Vm.OFF)

    def _is(self, now: Vm) -> None:
        self.now = now
        self._group.hear(VmReported(now))


class _Peer:
    def __init__(self) -> None:
        self.told: PeerView | None = None

    def say(self, told: PeerView) -> None:
        self.told = told


class Groups:
    def __init__(self, home: Home, begins: Mapping[str, Begin]) -> None:
        self._home = home
        self._begins = begins
        self.open_ones: dict[str, Group] = {}

    async def open(self, module: Configured, hear: Callable[[Report], None]) -> Group:
        group = Group(self._home, module.name, self._begins[module.name], hear)
        self.open_ones[module.name] = group
        return group


@dataclass
class Mirrors:
    """Answers what the API asks of mirror processes. `refuses`: why; `blocks`: until it is set."""

    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    refuses: str = ""
    blocks: threading.Event | None = None

    def ask(self, module: str, command: str, given: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.blocks is not None:
            self.blocks.wait(ANSWER_S)
        self.asked.append((module, command, dict(given)))
        if self.refuses:
            raise MirrorError(self.refuses)
        return {}


class ApiServer:
    """Served when it has been made. `tokens`: one for each role."""

    def __init__(self, folder: Path, begins: Mapping[str, Begin], *, tls: bool = False) -> None:
        self.home = Home.at(str(folder))
        self.begins = dict(begins)
        self.mirrors = Mirrors()
        self._serves = True
        self.tls = tls
        self.boot = BOOT  # the host's
        self._configure(folder, tls)
        self.tokens = {role.word: add(self.home.below(TOKENS_FILE), role.word, role) for role in AccessRole}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="server")
        self._thread.start()
        try:
            self.supervisor, self.groups, self.api = self.run(self._begin())
        except BaseException:
            self._end_thread()
            raise

    def _configure(self, folder: Path, tls: bool) -> None:
        (folder / "cluster.toml").write_text(CLUSTER.format(tls=str(tls).lower()))
        (folder / "modules").mkdir()
        for number, (name, begin) in enumerate(self.begins.items()):
            (folder / "modules" / f"{name}.toml").write_text(
                MODULE.format(name=name, port=5600 + number) + begin.checkers
            )
            (folder / "vm" / name).mkdir(parents=True)
            os.makedirs(self.home.mirror_state(name))
            if begin.record is not None:
                record_io.store(os.path.join(self.home.mirror_state(name), "record"), begin.record)
            if begin.wanted:
                wishes = f'{{"version": 1, "wanted": true, "maintenance": false, "boot": "{BOOT}"}}'
                (Path(self.home.module_state(name)) / "wishes").write_text(wishes)

    async def _begin(self) -> tuple[Supervisor, Groups, Api]:
        cluster = load_cluster(self.home.configuration)
        groups = Groups(self.home, self.begins)
        supervisor = Supervisor(
            self.home,
            cluster,
            lambda module: settings_of(module, cluster, "alpha"),
            groups,
            NoArbiter(),
            boot=self.boot,
        )
        for module in load_modules(self.home.configuration, cluster).accepted.values():
            await supervisor.add(module)
        return (
            supervisor,
            groups,
            await serve(supervisor, self.home, server="alpha", port=0, mirrors=self.mirrors, again_s=0.1),
        )

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """In the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(ANSWER_S)

    def call(self, work: Callable[[], T]) -> T:
        """A function, in the server's thread; what it posts has been taken on return."""

        async def do() -> T:
            result = work()
            for _ in range(10):  # what follows from what follows
                await asyncio.sleep(0)
            return result

        return self.run(do())

    @property
    def url(self) -> str:
        host, port = self.api.address
        return f"http{'s' if self.tls else ''}://{host}:{port}"

    def group(self, module: str) -> Group:
        return self.groups.open_ones[module]

    def stop_serving(self) -> None:
        if self._serves:
            self._serves = False
            self.run(self.api.close())

    def close(self) -> None:
        """AssertionError for an order that made no sense."""
        self.stop_serving()
        self.run(self.supervisor.close())
        self._end_thread()
        assert {name: group.mistakes for name, group in self.groups.open_ones.items() if group.mistakes} == {}

    def _end_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ANSWER_S)
        self._loop.close()
