"""The product as a whole: two services, Ray, mirrors, an application; power cut, returned, swapped, Ray killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from hotpair.demo_servers_io import TwoServers, two_servers

FIRST_PORT = 23000


CHECKERS = """
[checkers.health]
kind = "command"
command = ["/usr/bin/test", "!", "-e", "{sick}"]
timeout_s = 10
confirm_s = 12
start_s = 0
action = "restart"
[checkers.vm]
kind = "vm-state"
"""


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the application counts as sick."""
    return tmp_path_factory.mktemp("health") / "sick"


@pytest.fixture(scope="module")
def servers(sick: Path) -> Iterator[TwoServers]:
    with two_servers(FIRST_PORT, checkers=CHECKERS.format(sick=sick)) as made:
        yield made


def findings(servers: TwoServers, where: str) -> dict[str, str]:
    with servers[where].client() as client:
        return {one.name: one.finding for one in client.details("app").checkers}


def applications(servers: TwoServers, where: str) -> list[psutil.Process]:
    return [one for one in servers[where].processes() if "application.py" in " ".join(one.cmdline())]


def nothing_lost(servers: TwoServers, where: str) -> None:
    """Every acknowledged line is there, once, in its order."""
    acknowledged = servers.acknowledged()
    found = servers.journal(where)
    assert found[: len(found)] == list(range(1, len(found) + 1))
    assert len(found) >= acknowledged


@pytest.mark.timeout(300)
def test_a_power_cut_a_return_and_a_swap(servers: TwoServers) -> None:
    servers.until_more()
    servers["a"].cut_power()
    took_s = servers.until(lambda: servers["b"].state() == "ALONE green", "b goes on")
    assert took_s < 30, "the default detection takes 5 s; the rest is a busy machine's"
    servers.until_more()
    nothing_lost(servers, "b")
    servers["a"].start()
    servers.until_states("SECOND green", "PRIM green", 120)
    servers.until_more()
    servers.command("b", "swap")
    servers.until_states("PRIM green", "SECOND green")
    servers.until_more()
    nothing_lost(servers, "a")


@pytest.mark.timeout(300)
def test_ray_is_killed_and_nothing_happens_to_the_application(servers: TwoServers) -> None:
    servers.until_states("PRIM green", "SECOND green", 120)
    before = servers.journal("a")[-1]
    application = applications(servers, "a")
    assert len(application) == 1
    runtime = next(one for one in servers["a"].processes() if one.name() in ("raylet", "gcs_server"))
    runtime.kill()
    servers.until(lambda: servers["a"].state() == "", "the supervisor has ended")
    servers.until_more()
    servers.until_states("PRIM green", "SECOND green", 120)
    assert application[0].is_running() and application[0].status() != psutil.STATUS_ZOMBIE
    assert servers.journal("a")[-1] > before


@pytest.mark.timeout(300)
def test_a_checker_has_the_application_restarted(servers: TwoServers, sick: Path) -> None:
    """The check runs beside the VM's actor, the rules in the supervisor."""
    servers.until_states("PRIM green", "SECOND green", 120)
    servers.until(lambda: findings(servers, "a") == {"health": "up", "vm": "up"}, "both are up")
    assert findings(servers, "b") == {"health": "unknown", "vm": "unknown"}, "it does not run there"
    (before,) = applications(servers, "a")
    sick.touch()
    servers.until(lambda: not before.is_running() or before.status() == psutil.STATUS_ZOMBIE, "it is restarted")
    sick.unlink()
    servers.until_states("PRIM green", "SECOND green", 120)
    servers.until(lambda: findings(servers, "a") == {"health": "up", "vm": "up"}, "both are up again")
    servers.until_more()
    nothing_lost(servers, "a")
    with servers["a"].client() as client:
        texts = [entry["text"] for entry in client.events("app") if entry["kind"] == "checker"]
    assert any(text.startswith("restart: checker health has been down for") for text in texts), texts
