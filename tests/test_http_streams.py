"""Events and application logs: lists and streams, for listeners that come late, come back, or are too slow."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from hotpair.api_values import API
from hotpair.client import Client
from hotpair.event_hub import KEPT, LISTENERS, WAITING, Hub, TooManyListeners
from hotpair.log_tail_io import MOST_BYTES, Position, added, tail
from hotpair.refreshed import Refreshed
from tests.api_server import ApiServer, prim, stopped


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    made = ApiServer(tmp_path, {"web": prim(), "db": stopped()})
    yield made
    made.close()


@pytest.fixture
def local(server: ApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=server.home.socket), base_url="http://hotpair") as client:
        yield client


def start(client: httpx.Client, module: str, command: str = "start") -> None:
    assert client.post(f"{API}/modules/{module}/commands", json={"command": command}).status_code == 200


def blocks(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """The events of a stream, as a browser reads them."""
    event: dict[str, str] = {}
    for line in lines:
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif event:
            yield event
            event = {}


def data(stream: Iterator[dict[str, str]]) -> Iterator[tuple[str, Any]]:
    for event in stream:
        if "data" in event:
            yield event.get("id", event.get("event", "")), json.loads(event["data"])


def test_events_are_listed_oldest_first(local: httpx.Client) -> None:
    start(local, "db")
    start(local, "db", "stop")
    listed = local.get(f"{API}/events").json()
    assert [entry["at"] for entry in listed] == sorted(entry["at"] for entry in listed)
    assert {entry["module"] for entry in listed} == {"web", "db"}
    assert {entry["module"] for entry in local.get(f"{API}/events?module=db").json()} == {"db"}
    assert local.get(f"{API}/events?limit=1").json() == listed[-1:]
    assert local.get(f"{API}/events?limit=0").status_code == 400


def test_a_stream_gives_what_happens_and_goes_on_where_it_was_left(local: httpx.Client) -> None:
    with local.stream("GET", f"{API}/events/stream?module=db") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert next(lines).startswith("retry: ")  # it listens now
        start(local, "db")
        seen = data(blocks(lines))
        identity, entry = next(seen)
        assert entry["module"] == "db"
        rest = [next(seen)[1] for _ in range(2)]
    with local.stream("GET", f"{API}/events/stream?module=db", headers={"Last-Event-ID": identity}) as answer:
        again = data(blocks(answer.iter_lines()))
        assert [next(again)[1] for _ in range(2)] == rest


def test_a_stream_begins_with_the_past_and_nothing_is_lost_in_between(local: httpx.Client) -> None:
    start(local, "db")
    listed = local.get(f"{API}/events?module=db&limit=2").json()
    with local.stream("GET", f"{API}/events/stream?module=db&past=2") as answer:
        seen = data(blocks(answer.iter_lines()))
        assert [next(seen)[1] for _ in range(2)] == listed
        start(local, "db", "stop")
        assert next(seen)[1]["at"] >= listed[-1]["at"]


def test_a_listener_of_another_process_is_told_that_it_missed_something(local: httpx.Client) -> None:
    for identity in ("0000-1", "x", "-"):
        with local.stream("GET", f"{API}/events/stream", headers={"Last-Event-ID": identity}) as answer:
            assert next(data(blocks(answer.iter_lines()))) == ("missed", {})


def test_a_stream_ends_with_the_service(server: ApiServer, local: httpx.Client) -> None:
    with local.stream("GET", f"{API}/events/stream") as answer:
        lines = answer.iter_lines()
        next(lines)
        server.stop_serving()
        assert list(lines) == [""]


def test_the_log_is_shown_and_followed(server: ApiServer, local: httpx.Client) -> None:
    path = Path(server.home.application_log("db"))
    assert local.get(f"{API}/modules/db/log").json() == {"lines": []}
    path.write_text("".join(f"line {i}\n" for i in range(300)) + "half a line")
    assert local.get(f"{API}/modules/db/log?lines=2").json() == {"lines": ["line 298", "line 299"]}
    with Client.here(server.home) as client:
        followed = client.follow_log("db", lines=1)
        assert next(followed) == "line 299"
        with path.open("a") as opened:
            opened.write(", and the other\n")
        assert next(followed) == "half a line, and the other"
        os.replace(path, f"{path}.1")
        with open(f"{path}.1", "a") as opened:
            opened.write("the old one's last\n")
        path.write_text("the new one's first\n")
        assert [next(followed), next(followed)] == ["the old one's last", "the new one's first"]


def test_a_log_that_cannot_be_read_says_so(server: ApiServer, local: httpx.Client) -> None:
    os.mkdir(server.home.application_log("db"))
    for path in ("log", "log/stream"):
        answer = local.get(f"{API}/modules/db/{path}")
        assert answer.status_code == 503
        assert "cannot be read: Is a directory" in answer.json()["error"]


# ---- the parts


def test_the_tail_of_a_long_file_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    lines = [f"{i:07}" for i in range(MOST_BYTES // 8 + 1000)]
    path.write_text("\n".join(lines) + "\n")
    found, position = tail(str(path), 10**9)
    assert found == lines[-len(found) :]
    assert len(found) > 1000
    assert added(str(path), position) == ([], position)


@pytest.mark.parametrize("text", ["", "no end", "one\n", "one\ntwo", "one\n\n", "\n", "one\ntwo\nthree\n"])
def test_tail_and_what_is_added_are_the_whole_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log"
    path.write_text(text)
    before, position = tail(str(path), 100)
    path.write_text(text + "and\nmore\n")
    after, _ = added(str(path), position)
    assert before + after == (text + "and\nmore").split("\n")


def test_a_file_that_was_emptied_or_comes_later_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert added(str(path), Position(0, 0)) == ([], Position(0, 0))
    path.write_text("first\n")
    found, position = added(str(path), Position(0, 0))
    assert found == ["first"]
    path.write_text("x\n")
    assert added(str(path), position)[0] == ["x"]


def in_loop(test: Callable[[], Any]) -> None:
    asyncio.run(test())


def test_a_listener_that_is_too_slow_is_ended_and_the_others_are_not() -> None:
    async def test() -> None:
        hub = Hub()
        slow, quick = hub.listen(), hub.listen()
        for number in range(WAITING + KEPT + 5):
            hub.hear({"number": number})
            numbered = quick.queue.get_nowait()
            assert numbered is not None and numbered.entry["number"] == number
        got = [slow.queue.get_nowait() for _ in range(slow.queue.qsize())]
        assert got[-1] is None
        last = got[-2]
        assert last is not None
        back = hub.listen(last.identity)
        assert not back.missed
        assert back.queue.qsize() == 5
        assert hub.listen("x").missed

    in_loop(test)


def test_what_is_not_kept_any_more_is_missed() -> None:
    async def test() -> None:
        hub = Hub()
        hub.hear({})
        identity = next(iter(hub._kept)).identity
        for _ in range(KEPT):
            hub.hear({})
        assert not hub.listen(identity).missed  # the next one is the oldest that is kept
        hub.hear({})
        assert hub.listen(identity).missed

    in_loop(test)


def test_there_are_not_more_listeners_than_the_limit() -> None:
    async def test() -> None:
        hub = Hub()
        all_of_them = [hub.listen() for _ in range(LISTENERS)]
        with pytest.raises(TooManyListeners, match=str(LISTENERS)):
            hub.listen()
        hub.leave(all_of_them[0])
        hub.leave(all_of_them[0])
        hub.listen()

    in_loop(test)


def test_a_value_that_is_slow_comes_with_the_next_question() -> None:
    async def test() -> None:
        may_go, calls, now = asyncio.Event(), [0], [0.0]

        async def make() -> int:
            calls[0] += 1
            await may_go.wait()
            return calls[0]

        value = Refreshed(make, fresh_s=1.0, wait_s=0.02, clock=lambda: now[0])
        assert await value.get() is None
        assert await value.get() is None
        assert calls[0] == 1  # one at a time
        may_go.set()
        assert await value.get() == (1, 0.0)
        now[0] = 0.9
        assert await value.get() == (1, 0.9)
        now[0] = 1.1
        may_go.clear()
        began = time.monotonic()
        assert await value.get() == (1, 1.1)
        assert time.monotonic() - began < 5
        value.close()

    in_loop(test)


def test_a_mistake_in_getting_it_is_the_askers() -> None:
    async def test() -> None:
        async def make() -> int:
            raise ValueError("a mistake")

        with pytest.raises(ValueError, match="a mistake"):
            await Refreshed(make, fresh_s=1.0, wait_s=1.0).get()

    in_loop(test)
