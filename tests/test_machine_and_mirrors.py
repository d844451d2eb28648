"""The state machine and the mirror processes together: what one says the others do, and what they report it takes.

The simulation proves the machine with a model of the mirror; these stories are the proof that the mirror is like it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from hotpair.cluster.arbitration import Kind
from hotpair.cluster.module_events import Agree, Command, FailTap, GoAlone, HandOver, Leave, Salvage
from hotpair.cluster.module_values import State
from hotpair.replication.unsalvage_io import read_index
from tests.machine_pair import Server, World, two_servers
from tests.mirror_pair import compare_copies, mounts_below

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def world() -> Iterator[World]:
    with two_servers(Kind.WITNESS) as made:
        yield made


def vm_writes(server: Server, name: str, content: str) -> None:
    """On the mount, by a child that can be left waiting."""
    assert mounts_below(server.directory), "the VM would write behind the mirror's back"
    code = f"open({os.path.join(server.directory, name)!r}, 'w').write({content!r})"
    result = subprocess.run([sys.executable, "-c", code], timeout=20, check=False)
    assert result.returncode == 0


def did(server: Server, effect: type) -> int:
    return sum(isinstance(one, effect) for one in server.done)


def start_both(world: World) -> None:
    for server in world.servers:
        server.command(Command.START)
    world.until_states(State.PRIM, State.SECOND)


def equal(world: World) -> None:
    world.stop()
    assert compare_copies(world.one.directory, world.two.directory) == []


def test_green_stop_start_and_swap(world: World) -> None:
    start_both(world)
    assert did(world.one, Agree) == 1, "it is green when both records have the arbiter's epoch"
    records = [server.record for server in world.servers]
    assert records[0] is not None and records[1] is not None
    assert records[0].epoch == records[1].epoch == world.standing.epoch == 1
    vm_writes(world.one, "first", "1")
    world.two.command(Command.STOP)
    world.until_states(State.ALONE, State.STOP)
    assert did(world.two, Leave) == 1 and did(world.one, GoAlone) == 0, "consent in the stream: no verdict is needed"
    gone = world.two.record
    assert gone is not None and gone.outdated
    vm_writes(world.one, "second", "2")
    world.two.command(Command.START)
    world.until_states(State.PRIM, State.SECOND)
    world.one.command(Command.SWAP)
    world.until_states(State.SECOND, State.PRIM)
    assert did(world.one, HandOver) == 1
    with open(f"{world.two.directory}/second") as file:
        assert file.read() == "2"
    vm_writes(world.two, "third", "3")
    equal(world)


def test_the_second_is_lost_and_comes_back(world: World) -> None:
    """The arbiter's grant is the record that the source goes on with."""
    start_both(world)
    epoch = world.standing.epoch
    world.cut()
    assert world.two.process is not None
    world.two.process.process.kill()
    world.until(lambda: world.one.module.state is State.ALONE and world.one.is_green, "alone")
    record = world.one.record
    assert did(world.one, GoAlone) == 1 and record is not None and record.solo
    assert record.epoch == world.standing.epoch > epoch and world.standing.holder == "one"
    vm_writes(world.one, "alone", "1")
    world.heal()
    world.until_states(State.PRIM, State.SECOND)
    equal(world)


def test_a_source_that_dies_comes_back_under_its_vm(world: World) -> None:
    start_both(world)
    assert world.one.process is not None
    killed = world.one.process.process.pid
    world.one.process.process.kill()

    def another() -> bool:
        return world.one.process is not None and world.one.process.process.pid != killed

    world.until(another, "started again")
    world.until_states(State.PRIM, State.SECOND)
    vm_writes(world.one, "after", "1")
    equal(world)


def test_the_primary_is_cut_off_and_gives_way(world: World) -> None:
    """The second is granted the module first; the primary's tap is failed, and it becomes the target."""
    start_both(world)
    vm_writes(world.one, "before", "1")
    world.without_arbiter.add("one")
    world.cut()
    world.until(lambda: world.two.module.state is State.ALONE and world.two.is_green, "taken over")
    vm_writes(world.two, "after", "2")
    assert world.one.module.state is State.PRIM and did(world.one, FailTap) == 0, "it holds its writes"
    world.without_arbiter.clear()
    world.until(lambda: did(world.one, FailTap) == 1 and world.one.process is None, "given way")
    world.heal()
    world.until_states(State.SECOND, State.PRIM)
    equal(world)


def test_a_split_brain_ends_by_the_policy() -> None:
    """Without an arbiter both went on; the loser's own changes are saved, then overwritten."""
    with two_servers(Kind.NONE, "server:one") as world:
        start_both(world)
        vm_writes(world.one, "both", "b")
        world.cut()
        world.until_states(State.ALONE, State.ALONE)
        vm_writes(world.one, "one", "1")
        vm_writes(world.two, "two", "2")
        world.heal()
        world.until_states(State.PRIM, State.SECOND)
        assert did(world.two, FailTap) == 1 and did(world.two, Salvage) >= 1 and did(world.one, FailTap) == 0
        index = read_index(world.two.salvaged[-1])
        assert b"two" in [file.path for file in index.files]
        equal(world)
        assert sorted(os.listdir(world.two.directory)) == [".hotpair", "both", "one"]
