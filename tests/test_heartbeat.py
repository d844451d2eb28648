"""Two modules' heartbeats on loopback addresses: what they hear of each other, and what they make of silence."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from hotpair.actors.event_log_io import Note
from hotpair.actors.heartbeat import Heartbeat, HeartbeatFacts, boot_time, from_pulse, to_pulse
from hotpair.cluster.module_events import Doubted, Event, PeerHeard, PeerLost
from hotpair.cluster.module_values import PeerView, State
from hotpair.cluster.pulse_io import Network
from hotpair.cluster.simulation.world import first_record
from tests.witness_process import free_port

KEY = bytes(range(32))
LIMIT_S = 20.0
TOLD = PeerView(State.WAIT, False, first_record(), "boot of b", request=bytes(16), bytes_changed=3)


class Side:
    """One server's heartbeat and what it has heard; `until` waits for the next thing heard."""

    def __init__(
        self,
        name: str,
        peer: str,
        here: int,
        there: int,
        clock: Callable[[], float] = boot_time,
        key: bytes = KEY,
        digest: bytes = b"m",
    ) -> None:
        self.heard: list[Event] = []
        self.notes: list[str] = []
        self.new = asyncio.Event()
        network = Network("lan", ("127.0.0.1", here), ("127.0.0.1", there))
        facts = HeartbeatFacts("vm", name, peer, key, (network,), 0.05, 0.6, f"boot of {name}", b"c", digest)
        self.heartbeat = Heartbeat(facts, self._hear, clock=clock)
        self.task: asyncio.Task[None] | None = None

    def _hear(self, event: Event | Note) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)
        else:
            self.heard.append(event)
        self.new.set()

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.heartbeat.run())

    async def stop(self) -> None:
        assert self.task is not None
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def until(self, event: Event) -> None:
        await self.until_true(lambda: event in self.heard)

    async def until_true(self, what: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not what():
                self.new.clear()
                await self.new.wait()


def pair(story: Callable[[Side, Side], Coroutine[Any, Any, None]], **b: Any) -> None:
    async def tell() -> None:
        ports = free_port(), free_port()
        sides = Side("a", "b", *ports), Side("b", "a", *reversed(ports), **b)
        for side in sides:
            side.start()
        sides[0].heartbeat.say(replace(TOLD, boot="boot of a"))
        sides[1].heartbeat.say(TOLD)
        try:
            await story(*sides)
        finally:
            for side in sides:
                if side.task is not None and not side.task.done():
                    await side.stop()

    asyncio.run(tell())


def test_a_view_goes_to_a_pulse_and_back_unchanged() -> None:
    for told in (TOLD, replace(TOLD, record=None, bytes_changed=None, yields=bytes(16), keeps=bytes(16), ready=True)):
        assert from_pulse(to_pulse(told, "vm", b"m"), told.boot) == told


def test_they_hear_each_other_and_each_change_once() -> None:
    async def story(a: Side, b: Side) -> None:
        await a.until(PeerHeard(TOLD))
        await b.until(PeerHeard(replace(TOLD, boot="boot of a")))
        changed = replace(TOLD, state=State.SECOND)
        b.heartbeat.say(changed)
        await a.until(PeerHeard(changed))
        assert a.heard == [PeerHeard(TOLD), PeerHeard(changed)]
        assert a.heartbeat.status()["module_configurations_equal"] is True

    pair(story)


def test_a_module_that_is_configured_otherwise_at_the_peer_is_told_once() -> None:
    async def story(a: Side, b: Side) -> None:
        await a.until(PeerHeard(TOLD))
        b.heartbeat.say(replace(TOLD, state=State.SECOND))
        await a.until(PeerHeard(replace(TOLD, state=State.SECOND)))
        assert len(a.notes) == 1 and "modules/vm.toml here and at b differ" in a.notes[0]

    pair(story, digest=b"another")


def test_a_peer_with_another_key_is_told_once_and_never_heard() -> None:
    async def story(a: Side, b: Side) -> None:
        await a.until_true(lambda: bool(a.notes))
        await b.until_true(lambda: bool(b.notes))
        assert a.heartbeat.status()["networks"]["lan"]["refused"]["wrong key"]
        assert len(a.notes) == 1 and "over lan: pulse refused, wrong key" in a.notes[0]
        assert a.heard in ([], [PeerLost()])

    pair(story, key=bytes(32))


def test_silence_is_told_once_and_the_return_of_the_same_view_as_well() -> None:
    async def story(a: Side, b: Side) -> None:
        await a.until(PeerHeard(TOLD))
        await b.stop()
        await a.until(PeerLost())
        assert a.heartbeat.status()["peer"] == "lost"
        a.heard.clear()
        b.start()
        await a.until(PeerHeard(TOLD))
        assert a.heard == [PeerHeard(TOLD)]

    pair(story)


def test_a_peer_whose_mirror_is_connected_is_not_lost() -> None:
    async def story(a: Side, b: Side) -> None:
        await a.until(PeerHeard(TOLD))
        a.heartbeat.link(True)
        await b.stop()
        began = boot_time()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5):
                await a.until(PeerLost())
        a.heartbeat.link(False)
        await a.until(PeerLost())
        assert boot_time() - began > 1.5

    pair(story)


def test_a_server_that_was_suspended_doubts_before_it_believes_anything_old() -> None:
    jump = 0.0

    async def story(a: Side, b: Side) -> None:
        nonlocal jump
        await b.until(PeerHeard(replace(TOLD, boot="boot of a")))
        b.heard.clear()
        jump = 5.0
        await b.until(Doubted())
        await b.until(PeerHeard(replace(TOLD, boot="boot of a")))
        assert b.heard == [Doubted(), PeerHeard(replace(TOLD, boot="boot of a"))]

    pair(story, clock=lambda: boot_time() + jump)


def test_who_listens_anew_is_told_what_is_known() -> None:
    """A view that does not change, and a peer that stays lost, are said once: a new listener has not heard them."""

    async def story(a: Side, b: Side) -> None:
        await a.until(PeerHeard(TOLD))
        a.heard.clear()
        a.heartbeat.again()
        await a.until(PeerHeard(TOLD))
        await b.stop()
        await a.until(PeerLost())
        a.heard.clear()
        a.heartbeat.again()
        assert a.heard == [PeerLost()]

    pair(story)
