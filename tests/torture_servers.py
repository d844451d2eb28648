"""A pair of servers and everything that may happen to it: minutes, so not a part of make test.

    make torture-servers

Each story of test_two_servers.py, and those that it has no time for.
"""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from tests import server_stories as stories
from tests.pair_of_servers import Pair, pair, pair_on_small_disks, tell

FIRST_PORT = 24000
MEBIBYTE = 1 << 20

# A child: who waits for a frozen mount cannot be ended. Says how many bytes were taken, and the error or 0.
FILL = """
import os, sys
opened = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
taken = 0
try:
    while taken < int(sys.argv[2]):
        taken += os.write(opened, os.urandom(1 << 16))
except OSError as error:
    print(taken, error.errno)
else:
    print(taken, 0)
"""

ALL = [
    stories.a_server_loses_its_power,
    stories.both_servers_lose_their_power,
    stories.each_actor_is_killed,
    stories.ray_is_killed,
    stories.a_mirror_is_killed,
    stories.a_vm_is_killed,
]
WITH_CABLES = [
    stories.a_network_of_pulses_only_is_cut,
    stories.the_mirrors_network_is_cut,
    stories.the_servers_hear_the_witness_only,
    stories.a_server_is_cut_off,
    stories.the_witness_is_gone_and_then_a_server,
]


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("story", [*ALL, *WITH_CABLES], ids=lambda story: story.__name__)
def test_one_story(story: stories.Story) -> None:
    with pair(FIRST_PORT) as made:
        if story in WITH_CABLES and not made.networks.can_cut:
            pytest.skip(made.networks.problem)
        tell([story], made)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_all_stories_one_after_the_other() -> None:
    with pair(FIRST_PORT) as made:
        tell([*ALL, *(WITH_CABLES if made.networks.can_cut else [])], made)


def fill(made: Pair, megabytes: int) -> tuple[int, int]:
    """Through the mount on a: bytes taken, and the error or 0."""
    path = made["a"].data("disk/data") / "filler"
    words = [sys.executable, "-c", FILL, str(path), str(megabytes * MEBIBYTE)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    taken, error = done.stdout.split()
    return int(taken), int(error)


def empty(made: Pair) -> None:
    subprocess.run(["rm", made["a"].data("disk/data") / "filler"], check=True, timeout=60)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_primarys_disk_is_full() -> None:
    """Whoever writes hears it, as from any disk; both copies stay equal."""
    with pair_on_small_disks(FIRST_PORT, 16 * MEBIBYTE, 64 * MEBIBYTE) as made:
        taken, error = fill(made, 32)
        assert error == errno.ENOSPC and taken > 8 * MEBIBYTE
        acknowledged = made.acknowledged()
        assert made["b"].state() == "SECOND green"
        empty(made)
        made.go_home()
        made.nothing_lost(acknowledged)
        made.cut_power("a")
        made.until_all("b", "ALONE green")
        made.nothing_lost(acknowledged)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_secondarys_disk_is_full() -> None:
    """The primary goes on alone; the other one is not green, and in sync again when there is room and it is tried."""
    with pair_on_small_disks(FIRST_PORT, 64 * MEBIBYTE, 16 * MEBIBYTE) as made:
        before = made.applications()
        assert fill(made, 32) == (32 * MEBIBYTE, 0)
        made.until_state("app", "a", "ALONE green")
        assert not made["b"].state().endswith("green")
        made.until_all_write()
        stories.same_processes(made, before)
        larger = f"remount,size={64 * MEBIBYTE}"
        subprocess.run(["mount", "-o", larger, made["b"].data("disk")], check=True)
        for name in ("a", "b"):  # either says why, in its own words
            assert "No space left on device" in made[name].modules()["app"].mirror_reason
        with made["a"].client() as client:
            client.retry("app")  # the second time in a row it waits for an operator
        made.go_home()
        stories.same_processes(made, before)
