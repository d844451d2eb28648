"""Checkers through the real supervisor, and what people see of them: API, metrics, commands, event log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hotpair.actors.module_facts import facts_of
from hotpair.api_values import API
from hotpair.cluster.checks import Checked, Found, down, unknown, up
from hotpair.cluster.configuration_io import load_cluster, load_modules
from hotpair.cluster.loop_counter_io import LoopCounter, load, store
from hotpair.commands import main
from tests.api_server import ApiServer, prim, second, stopped

WEB = """
[loop]
max_loop = 1
[checkers.http]
kind = "tcp"
address = "10.0.0.80:80"
confirm_s = 0
start_s = 0
[checkers.space]
kind = "disk-space"
path = "vm"
confirm_s = 0
"""
ROUTER = '[checkers.router]\nkind = "ping"\naddress = "10.0.0.254"\n'
AFTER_WEB = '[checkers.web]\nkind = "module"\nmodule = "web"\nperiod_s = 1\ntimeout_s = 1\n'


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    begins = {
        "web": replace(prim(), checkers=WEB),
        "db": replace(stopped(), checkers=ROUTER),
        "later": replace(stopped(), checkers=AFTER_WEB),
        "copy": replace(second(), checkers=ROUTER),
    }
    made = ApiServer(tmp_path, begins)
    yield made
    made.close()


@pytest.fixture
def local(server: ApiServer) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=server.home.socket), base_url="http://hotpair") as client:
        yield client


def found(server: ApiServer, module: str, checker: str, what: Found) -> None:
    """As the module's prober reports it."""
    group = server.group(module)
    server.call(lambda: group.hear(Checked(checker, group.watched.run, what)))


def until(server: ApiServer, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        server.call(lambda: None)


def checkers(local: httpx.Client, module: str) -> dict[str, tuple[str, str]]:
    shown = local.get(f"{API}/modules/{module}").json()["checkers"]
    return {one["name"]: (one["finding"], one["detail"]) for one in shown}


def metric(local: httpx.Client) -> dict[tuple[str, str], float]:
    text = local.get("/metrics").text
    return {
        (sample.labels["module"], sample.labels["checker"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "hotpair_checker_up"
    }


def log(server: ApiServer, module: str) -> list[str]:
    return [entry["text"] for entry in server.supervisor.events(module) if entry["kind"] == "checker"]


def test_what_was_found_is_shown(server: ApiServer, local: httpx.Client) -> None:
    assert server.group("web").watched.names == {"http", "space"}
    assert checkers(local, "web") == {
        "http": ("unknown", "not looked at yet"), "space": ("unknown", "not looked at yet"),
    }  # fmt: skip
    found(server, "web", "http", up("10.0.0.80:80 takes connections"))
    found(server, "web", "space", unknown("vm: Permission denied"))
    one = local.get(f"{API}/modules/web").json()["checkers"][0]
    assert abs(one.pop("since") - time.time()) < 60
    assert one == {
        "name": "http", "kind": "tcp", "action": "restart", "finding": "up", "detail": "10.0.0.80:80 takes connections",
    }  # fmt: skip
    assert checkers(local, "web")["space"] == ("unknown", "vm: Permission denied")
    assert metric(local) == {("web", "http"): 1.0}, "what is not known is absent"
    found(server, "web", "space", down("0 MiB are left"))
    assert metric(local) == {("web", "http"): 1.0, ("web", "space"): 0.0}


def test_a_down_restarts_the_vm_and_the_next_one_stops_the_module_with_the_reason(
    server: ApiServer, local: httpx.Client
) -> None:
    found(server, "web", "http", down("no answer in time"))
    until(server, lambda: server.group("web").said[-2:] == ["stop vm", "start vm"])
    path = f"{server.home.module_state('web')}/loop"
    assert len(load(path).actions_at) == 1
    found(server, "web", "http", down("no answer in time"))
    until(server, lambda: server.group("web").said[-1] == "hand over")
    assert log(server, "web") == [
        "http is down: no answer in time",
        "restart: checker http has been down for 0 s: no answer in time",
        "http is down: no answer in time",
        "stop: checker http has been down for 0 s: no answer in time; this would be automatic action 2 within 86400 s, "
        "of which 1 are allowed. Repair the cause, then start the module",
    ]
    assert not server.supervisor.standing("web").wanted
    assert load(path).stopped.startswith("Stopped: checker http has been down for 0 s: no answer in time; ")


def test_what_holds_a_module_is_named(server: ApiServer, local: httpx.Client) -> None:
    local.post(f"{API}/modules/db/commands", json={"command": "start"})
    found(server, "db", "router", down("10.0.0.254: no answer in time"))
    module = local.get(f"{API}/modules/db").json()["module"]
    assert (module["state"], module["colour"]) == ("WAIT", "red")
    assert module["reason"] == "A checker holds the module. router: 10.0.0.254: no answer in time"
    assert server.group("db").said == []
    found(server, "db", "router", up("10.0.0.254 answers"))
    until(server, lambda: local.get(f"{API}/modules/db").json()["module"]["state"] == "ALONE")


def test_a_copy_that_would_have_to_wait_is_not_green(server: ApiServer, local: httpx.Client) -> None:
    for what, colour in ((up("it answers"), "green"), (down("no answer"), "magenta"), (up("it answers"), "green")):
        found(server, "copy", "router", what)
        module = local.get(f"{API}/modules/copy").json()["module"]
        assert (module["state"], module["colour"]) == ("SECOND", colour)


def test_a_module_starts_after_another_one(server: ApiServer, local: httpx.Client) -> None:
    local.post(f"{API}/modules/later/commands", json={"command": "start"})
    until(server, lambda: checkers(local, "later")["web"] == ("up", "it runs here"))
    until(server, lambda: local.get(f"{API}/modules/later").json()["module"]["state"] == "ALONE")


def test_the_checkers_are_in_hotpair_module_show(
    server: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    found(server, "web", "http", down("no answer in time"))
    assert main(["module", "show", "web", "--home", server.home.configuration]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines() if line.strip().startswith("checker.")]
    assert [line[:2] for line in lines] == [["checker.http", "tcp"], ["checker.space", "disk-space"]], shown
    assert "(action: none)" in shown
    assert main(["events", "web", "--home", server.home.configuration]) == 0
    assert "web: http is down: no answer in time" in capsys.readouterr().out


def test_a_counter_that_cannot_be_read_is_a_problem_and_not_an_empty_one(tmp_path: Path) -> None:
    made = ApiServer(tmp_path, {"web": replace(prim(), checkers=WEB)})
    path = Path(made.home.module_state("web")) / "loop"
    made.stop_serving()
    made.run(made.supervisor.close())
    store(str(path), LoopCounter((time.time() - 60,)))
    again = made.run(made._begin())
    made.supervisor, made.groups, made.api = again
    made._serves = True
    found(made, "web", "http", down("no answer"))
    until(made, lambda: made.group("web").said[-1:] == ["hand over"])  # the one of before counts: no second restart
    made.stop_serving()
    made.run(made.supervisor.close())
    path.write_text("?")
    made.supervisor, made.groups, made.api = made.run(made._begin())
    made._serves = True
    standing = made.supervisor.standing("web")
    assert standing.state is None and "loop is damaged" in standing.problem
    made.close()


def test_paths_of_checkers_are_below_the_home_directory(server: ApiServer) -> None:
    cluster = load_cluster(server.home.configuration)
    web = load_modules(server.home.configuration, cluster).accepted["web"]
    facts = facts_of(web, cluster, "alpha", server.home, key=b"k" * 32, boot="b")
    paths = {one.name: one.options.get("path") for one in facts.checkers}
    assert paths == {"http": None, "space": f"{server.home.configuration}/vm"}
    later = load_modules(server.home.configuration, cluster).accepted["later"]
    assert facts_of(later, cluster, "alpha", server.home, key=b"k" * 32, boot="b").checkers == ()
