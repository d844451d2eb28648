"""The supervisor's own part, with made-up mirrors and VMs: the order of events, and the host's shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hotpair.actors import supervisor
from hotpair.actors.event_log_io import Note
from hotpair.cluster import wishes_io
from hotpair.cluster.module_events import Command, Event, PeerHeard, PeerLost, Reply
from hotpair.cluster.module_values import PeerView, State
from tests.api_server import ApiServer, Group, prim, second

OTHER = b"o" * 16  # a generation that nobody here has seen


def serve(folder: Path, **begins: object) -> ApiServer:
    return ApiServer(folder, begins)  # type: ignore[arg-type]


def another(view: PeerView | None) -> PeerView:
    """The same peer, whose record has changed."""
    assert view is not None and view.record is not None
    return replace(view, record=replace(view.record, generation=OTHER, ancestors=(view.record.generation,)))


def peers_seen(server: ApiServer, module: str, seen: list[PeerView | None]) -> asyncio.Event:
    """Notes what is known of the peer after each event; set at each. Called in the server's loop."""
    runner, noted = server.supervisor._open[module].runner, asyncio.Event()
    assert runner is not None
    take = runner.handle

    def handle(event: Event, replies: Callable[[Reply], None] | None = None) -> None:
        take(event, replies)
        seen.append(runner.module.peer)
        noted.set()

    runner.handle = handle  # type: ignore[method-assign]
    return noted


def test_a_pulse_with_another_record_waits_for_the_mirror(tmp_path: Path) -> None:
    server = serve(tmp_path, web=prim())
    try:
        group = server.group("web")
        before = server.supervisor.known("web")
        assert before is not None
        view = another(before.peer)
        seen: list[PeerView | None] = []

        async def hear() -> asyncio.Event:
            peers_seen(server, "web", seen)
            group.mirror_answers = asyncio.Event()
            group.hear(PeerHeard(view))
            group.hear(PeerLost())  # it comes after the pulse, whatever the mirror takes
            return group.mirror_answers

        answers = server.run(hear())
        server.call(lambda: None)
        assert "asked" in group.said and seen == []
        server.call(answers.set)
        assert seen[0] == before.peer, "the mirror's report came first"
        assert seen.index(view) < seen.index(None)
    finally:
        server.close()


def test_a_mirror_that_does_not_answer_holds_up_no_pulse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "MOMENT_S", 0.01)
    server = serve(tmp_path, web=prim())
    try:
        group = server.group("web")
        module = server.supervisor.known("web")
        assert module is not None
        view = another(module.peer)
        seen: list[PeerView | None] = []

        async def hear() -> None:
            noted = peers_seen(server, "web", seen)
            group.mirror_answers = asyncio.Event()
            group.hear(PeerHeard(view))
            await noted.wait()

        server.run(hear())
        assert "asked" in group.said and seen == [view]
    finally:
        server.close()


def test_what_is_reported_while_it_is_opened_is_not_lost(tmp_path: Path) -> None:
    """The helpers' answer is older: an agreement may have come in between."""
    begin = prim()
    assert begin.record is not None
    newer = replace(begin.record, epoch=begin.record.epoch + 1)
    server = serve(tmp_path, web=replace(begin, meanwhile=newer))
    try:
        server.call(lambda: None)
        module = server.supervisor.known("web")
        assert module is not None and module.record == newer
    finally:
        server.close()


def leaves(group: Group) -> Callable[[], None]:
    """A target's mirror that has left the stream when it is told to."""

    def leave() -> None:
        assert group.mirror is not None
        group.order("leave", allowed=True)
        group.mirror = replace(group.mirror, linked=False, in_sync=False)
        group.report()

    return leave


def note(group: Group, name: str, order: list[str]) -> None:
    """Have the orders of several groups noted in one list."""
    own = group.order

    def noted(word: str, *, allowed: bool) -> None:
        order.append(f"{name} {word}")
        own(word, allowed=allowed)

    group.order = noted  # type: ignore[method-assign]


def test_shutdown_stops_copies_first_and_all_stay_wanted(tmp_path: Path) -> None:
    server = serve(tmp_path, copy=second(), runs=prim())
    try:
        copy, runs = server.group("copy"), server.group("runs")
        order: list[str] = []
        note(copy, "copy", order)
        note(runs, "runs", order)
        copy.leave = leaves(copy)  # type: ignore[method-assign]
        runs.hand_over = lambda: runs.lose_peer()  # type: ignore[method-assign]  # nobody is there to take it

        async def stop() -> None:
            async with asyncio.timeout(20):
                await server.supervisor.stop_all()

        server.run(stop())
        assert order.index("copy stop mirror") < order.index("runs stop vm")
        for name in ("copy", "runs"):
            module = server.supervisor.known(name)
            assert module is not None and module.state is State.STOP
            assert wishes_io.load(f"{server.home.module_state(name)}/wishes").wanted
    finally:
        server.close()


def test_maintenance_is_remembered_during_a_shutdown_and_what_is_started_stays_started(tmp_path: Path) -> None:
    server = serve(tmp_path, runs=prim())
    try:
        shelf = server.supervisor._open["runs"].shelf
        shelf.going_down = True
        assert server.run(server.supervisor.command("runs", Command.MAINTENANCE_ON)).accepted
        stored = wishes_io.load(f"{server.home.module_state('runs')}/wishes")
        assert (stored.wanted, stored.maintenance) == (True, True)
    finally:
        server.close()


def test_a_note_of_a_helper_is_an_event_that_people_find(tmp_path: Path) -> None:
    server = serve(tmp_path, web=prim())
    try:
        server.call(lambda: server.group("web").hear(Note("salvaged: /somewhere")))  # type: ignore[arg-type]
        assert server.supervisor.events("web")[-1]["text"] == "salvaged: /somewhere"
    finally:
        server.close()
