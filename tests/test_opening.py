"""Modules are opened a few at a time, however long each takes; one that is silent keeps no other waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from hotpair.actors.groups import Found, NotOpened
from hotpair.actors.home import Home
from hotpair.actors.supervisor import OPENED_AT_A_TIME, Supervisor
from hotpair.cluster.arbiter_io import NoArbiter
from hotpair.cluster.configuration import Module as Configured
from hotpair.cluster.configuration_io import load_cluster, load_modules
from hotpair.cluster.module_events import Event
from hotpair.cluster.module_values import State
from hotpair.cluster.settings import settings_of
from hotpair.cluster.simulation.world import BOOT
from tests import api_server

LIMIT_S = 20.0  # it is tried again after 5 s
MODULES = 9


class Slow(api_server.Group):
    """Its helpers say what runs when `may_answer` is set, or that they are silent."""

    silent = False

    def begin(self, groups: Groups) -> None:
        self.groups = groups
        self.may_answer = asyncio.Event()

    async def find(self) -> Found:
        self.groups.starting += 1
        self.groups.most = max(self.groups.most, self.groups.starting)
        try:
            await self.may_answer.wait()
        finally:
            self.groups.starting -= 1
        if self.silent:
            raise NotOpened("nobody answers")
        return await super().find()


class Groups:
    def __init__(self, home: Home) -> None:
        self._home = home
        self.opened: dict[str, Slow] = {}
        self.starting = self.most = 0

    async def open(self, module: Configured, hear: Callable[[Event], None]) -> Slow:
        group = Slow(self._home, module.name, api_server.Begin(), hear)
        group.begin(self)
        self.opened[module.name] = group
        return group


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.01)


async def opened(folder: Path) -> tuple[Supervisor, Groups]:
    (folder / "cluster.toml").write_text(api_server.CLUSTER.format(tls="false"))
    (folder / "modules").mkdir()
    for number in range(MODULES):
        text = api_server.MODULE.format(name=f"m{number}", port=5600 + number)
        (folder / "modules" / f"m{number}.toml").write_text(text)
    home = Home.at(str(folder))
    cluster = load_cluster(home.configuration)
    groups = Groups(home)
    made = Supervisor(
        home, cluster, lambda module: settings_of(module, cluster, "alpha"), groups, NoArbiter(), boot=BOOT
    )
    made.add_all(load_modules(home.configuration, cluster).accepted.values())
    return made, groups


def test_a_few_are_opened_at_a_time_and_the_supervisor_answers_meanwhile(tmp_path: Path) -> None:
    async def story() -> None:
        supervisor, groups = await opened(tmp_path)
        await until(lambda: groups.starting == OPENED_AT_A_TIME)
        shown = supervisor.standings()
        assert [one.state for one in shown] == [None] * OPENED_AT_A_TIME
        while len([one for one in supervisor.standings() if one.state is State.STOP]) < MODULES:
            for group in tuple(groups.opened.values()):
                group.may_answer.set()
            await asyncio.sleep(0.01)
        assert groups.most == OPENED_AT_A_TIME
        await supervisor.close()

    asyncio.run(asyncio.wait_for(story(), LIMIT_S))


def test_a_silent_module_says_so_is_tried_again_and_keeps_no_other_waiting(tmp_path: Path) -> None:
    async def story() -> None:
        supervisor, groups = await opened(tmp_path)
        await until(lambda: groups.starting == OPENED_AT_A_TIME)
        silent = groups.opened["m0"]
        silent.silent = True
        while len([one for one in supervisor.standings() if one.state is State.STOP]) < MODULES - 1:
            for group in tuple(groups.opened.values()):
                group.may_answer.set()
            await asyncio.sleep(0.01)
        assert supervisor.standing("m0").problem == "nobody answers"
        silent.silent = False
        await until(lambda: supervisor.standing("m0").state is State.STOP)
        assert supervisor.standing("m0").problem == ""
        await supervisor.close()

    asyncio.run(asyncio.wait_for(story(), LIMIT_S))
