"""A supervisor is made again, and its modules' helpers are not: it is told how things are, not how they once were."""

from __future__ import annotations

import queue
import sys
from pathlib import Path

import pytest

from hotpair.actors.mirror_keeper import MirrorFacts, MirrorKeeper
from hotpair.actors.vm_keeper import VmFacts, VmKeeper
from hotpair.cluster.module_events import MirrorReported, VmReported
from hotpair.cluster.module_values import HowToStop, Role, Vm
from hotpair.hyperv.command_io import CommandDriver
from hotpair.hyperv.driver import Place
from tests.witness_process import free_port

LIMIT_S = 30.0
pytestmark = pytest.mark.timeout(120)


def keeper_of(folder: Path, heard: queue.SimpleQueue[MirrorReported]) -> MirrorKeeper:
    for name in ("data", "state"):
        (folder / name).mkdir()
    here = ("127.0.0.1", free_port())
    common = ("--durability", "memory", "--stall-timeout", "10", "--no-tls")
    paths = str(folder / "data"), str(folder / "state"), str(folder / "log")
    return MirrorKeeper(MirrorFacts("vm", *paths, here, ("127.0.0.1", free_port()), common), heard.put)


def end(keeper: MirrorKeeper, heard: queue.SimpleQueue[MirrorReported]) -> None:
    keeper.stop()
    while heard.get(timeout=LIMIT_S).mirror is not None:
        pass
    keeper.close()


def test_a_mirror_that_was_started_since_is_found(tmp_path: Path) -> None:
    heard: queue.SimpleQueue[MirrorReported] = queue.SimpleQueue()
    keeper = keeper_of(tmp_path, heard)
    assert keeper.find().mirror is None
    keeper.start(Role.TARGET, alone=False, salvage=None)
    found = keeper.now().mirror  # asked while it comes up
    assert found is not None and found.role is Role.TARGET
    end(keeper, heard)
    assert keeper.now().mirror is None


def test_an_order_that_is_repeated_starts_no_second_mirror(tmp_path: Path) -> None:
    """Who orders it again had not heard of the first: it is told of that, and not that there is none."""
    heard: queue.SimpleQueue[MirrorReported] = queue.SimpleQueue()
    keeper = keeper_of(tmp_path, heard)
    keeper.find()
    for _ in range(2):
        keeper.start(Role.TARGET, alone=False, salvage=None)
    assert heard.get(timeout=LIMIT_S).mirror is not None
    keeper.start(Role.TARGET, alone=False, salvage=None)
    assert heard.get(timeout=LIMIT_S).mirror is not None
    end(keeper, heard)
    assert heard.empty()


def test_a_vm_that_was_started_since_is_found(tmp_path: Path) -> None:
    start = (sys.executable, "-I", "-c", "import signal; signal.pause()")
    place = Place(
        module="vm",
        directory=str(tmp_path),
        state_directory=str(tmp_path / "state"),
        options={"start": list(start)},
        application_log=str(tmp_path / "log"),
        lock=str(tmp_path / "lock"),
    )
    heard: queue.SimpleQueue[VmReported] = queue.SimpleQueue()
    keeper = VmKeeper(VmFacts("vm", "stop", LIMIT_S, LIMIT_S), lambda: CommandDriver(place), heard.put)
    assert keeper.find() is Vm.OFF
    keeper.start()
    assert keeper.now() is Vm.STARTING
    assert heard.get(timeout=LIMIT_S) == VmReported(Vm.ON)
    assert keeper.now() is Vm.ON
    keeper.stop(HowToStop.NORMAL)
    assert keeper.now() is Vm.STOPPING
    assert heard.get(timeout=LIMIT_S) == VmReported(Vm.OFF)
    assert keeper.now() is Vm.OFF
    keeper.close()
