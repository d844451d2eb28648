"""The product as a whole: two services, Ray, mirrors, an application; power cut, returned, swapped, Ray killed."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from hotpair.demo_servers_io import TwoServers, two_servers

FIRST_PORT = 23000


@pytest.fixture(scope="module")
def servers() -> Iterator[TwoServers]:
    with two_servers(FIRST_PORT) as made:
        yield made


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
    application = [one for one in servers["a"].processes() if "application.py" in " ".join(one.cmdline())]
    assert len(application) == 1
    runtime = next(one for one in servers["a"].processes() if one.name() in ("raylet", "gcs_server"))
    runtime.kill()
    servers.until(lambda: servers["a"].state() == "", "the supervisor has ended")
    servers.until_more()
    servers.until_states("PRIM green", "SECOND green", 120)
    assert application[0].is_running() and application[0].status() != psutil.STATUS_ZOMBIE
    assert servers.journal("a")[-1] > before
