"""The VM keeper: what it says of a VM, how soon, and how seldom it looks at one whose driver tells its end."""

from __future__ import annotations

import os
import queue
import time

from hotpair.actors.vm_keeper import LOOK_SELDOM_S, VmFacts, VmKeeper
from hotpair.cluster.module_events import VmReported
from hotpair.cluster.module_values import HowToStop, Vm
from hotpair.hyperv.driver import Observation, Proof, TellsEnd, VmState

FACTS = VmFacts("m01", "stop", 5.0, 5.0)
SOON_S = 0.9 * LOOK_SELDOM_S  # what is heard within it was not found by a look


class World:
    """One VM that lives in a pipe: it runs while somebody holds the writing end."""

    def __init__(self) -> None:
        self.held: int | None = None
        self.read: int | None = None
        self.looks = 0
        self.proofs = 0
        self.is_proved = True

    def start(self) -> None:
        self.read, self.held = os.pipe()

    def end(self) -> None:
        assert self.held is not None
        held, self.held = self.held, None
        os.close(held)


class Polled:
    """A driver without more than it must have."""

    def __init__(self, world: World) -> None:
        self.world = world

    def define(self) -> None: ...

    def start(self, time_limit_s: float) -> None:
        self.world.start()

    def stop(self, time_limit_s: float) -> None:
        self.world.end()

    def observe(self) -> Observation:
        self.world.looks += 1
        return Observation(VmState.OFF if self.world.held is None else VmState.ON)

    def is_off(self) -> Proof:
        self.world.proofs += 1
        return Proof(self.world.is_proved, "as it is")


class Telling(Polled):
    def end_descriptor(self) -> int | None:
        return None if self.world.held is None or self.world.read is None else os.dup(self.world.read)


def keeper_of(world: World, driver: type[Polled]) -> tuple[VmKeeper, queue.SimpleQueue[Vm]]:
    heard: queue.SimpleQueue[Vm] = queue.SimpleQueue()

    def hear(event: VmReported) -> None:
        heard.put(event.vm)

    return VmKeeper(FACTS, lambda: driver(world), hear), heard  # type: ignore[arg-type, return-value]


def test_what_tells_its_end_is_known_by_its_method() -> None:
    assert isinstance(Telling(World()), TellsEnd)
    assert not isinstance(Polled(World()), TellsEnd)


def test_the_end_of_a_vm_is_said_at_once_where_the_driver_tells_it() -> None:
    world = World()
    keeper, heard = keeper_of(world, Telling)
    try:
        assert keeper.find() is Vm.OFF
        keeper.start()
        assert heard.get(timeout=SOON_S) is Vm.ON
        began = time.monotonic()
        world.end()
        assert heard.get(timeout=SOON_S) is Vm.OFF
        assert time.monotonic() - began < SOON_S
    finally:
        keeper.close()


def test_it_is_looked_at_seldom_where_the_driver_tells_its_end() -> None:
    for driver, least, most in ((Telling, 0, 1), (Polled, 2, 4)):
        world = World()
        world.start()
        keeper, _ = keeper_of(world, driver)
        try:
            assert keeper.find() is Vm.ON
            first = world.looks
            time.sleep(3.3)
            assert least <= world.looks - first <= most, driver
        finally:
            keeper.close()


def test_an_end_that_nobody_ordered_is_found_by_looking_where_the_driver_tells_nothing() -> None:
    world = World()
    world.start()
    keeper, heard = keeper_of(world, Polled)
    try:
        assert keeper.find() is Vm.ON
        world.end()
        assert heard.get(timeout=SOON_S) is Vm.OFF
    finally:
        keeper.close()


def test_off_is_said_on_proof_only_and_proved_once() -> None:
    world = World()
    world.start()
    keeper, heard = keeper_of(world, Polled)
    try:
        keeper.find()
        world.is_proved = False
        world.end()
        deadline = time.monotonic() + 10.0
        while world.proofs == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert heard.empty() and world.proofs > 0
        world.is_proved = True
        assert heard.get(timeout=SOON_S) is Vm.OFF
        proofs, looks = world.proofs, world.looks
        while world.looks < looks + 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert world.looks >= looks + 2
        assert world.proofs == proofs
    finally:
        keeper.close()


def test_orders_are_carried_out_and_said() -> None:
    world = World()
    keeper, heard = keeper_of(world, Telling)
    try:
        keeper.find()
        keeper.start()
        assert heard.get(timeout=SOON_S) is Vm.ON
        keeper.stop(HowToStop.NORMAL)
        assert heard.get(timeout=SOON_S) is Vm.OFF
        assert world.proofs >= 2
    finally:
        keeper.close()
