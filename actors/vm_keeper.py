"""Keeps one module's VM through its driver: carries out orders, looks how it is, says when that has changed.

No Ray in here. Drivers block, so each order has a thread; a kill does not wait for an orderly stop that is under way.
`off` is reported only when the driver has proof that nothing can be written any more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hotpair.cluster.module_events import VmReported
from hotpair.cluster.module_values import HowToStop, Vm
from hotpair.hyperv.driver import Driver, Observation, VmState
from hotpair.hyperv.errors import DriverError, StopTimedOut

log = logging.getLogger("hotpair.vm")

LOOK_S = 1.0  # between two looks at a VM that nothing is being done to
AGAIN_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)  # before a VM that could not be started is reported off, by how often
KILL_AGAIN_S = 1.0  # between two attempts to turn it off

_VM = {VmState.OFF: Vm.OFF, VmState.STARTING: Vm.STARTING, VmState.ON: Vm.ON, VmState.STOPPING: Vm.STOPPING}


@dataclass(frozen=True)
class VmFacts:
    """What does not change while a module is open. Times in seconds. `normal_stop`: "stop", "save" or "off"."""

    module: str
    normal_stop: str
    start_timeout_s: float
    stop_timeout_s: float


class VmKeeper:
    """`make` gives a new driver object each time: they hold nothing. Methods return at once."""

    def __init__(self, facts: VmFacts, make: Callable[[], Driver], hear: Callable[[VmReported], None]) -> None:
        self._facts = facts
        self._make = make
        self._hear = hear
        self._lock = threading.Lock()
        self._orders = 0  # under way: what is seen meanwhile is in between
        self._ordered = Vm.OFF  # what the last one is about
        self._failed = 0  # starts in a row
        self._told: Vm | None = None
        self._last: Observation | None = None
        self._problem = ""
        self._closed = threading.Event()

    # ---- at the beginning and the end

    def find(self) -> Vm:
        """How it is at the beginning; it is looked at from here on."""
        vm = self.now()
        threading.Thread(target=self._watch, name="vm", daemon=True).start()
        return vm

    def now(self) -> Vm:
        """Looked at anew. What cannot be found out counts as running; what is under way will be reported."""
        with self._lock:
            if self._orders:
                return self._ordered
        vm = self._look() or Vm.STOPPING
        with self._lock:
            if self._orders:
                return self._ordered
            self._told = vm
        return vm

    def close(self) -> None:
        """Look no more; the VM goes on."""
        self._closed.set()

    def status(self) -> Mapping[str, Any]:
        """For people."""
        seen = self._last
        found: dict[str, Any] = {"problem": self._problem}
        if seen is not None:
            found |= {
                "state": seen.state.value,
                "heartbeat": seen.heartbeat.value,
                "heartbeat_age_s": seen.heartbeat_age_s,
                "detail": seen.detail,
            }
        return found

    # ---- orders

    def start(self) -> None:
        self._begin(Vm.STARTING, self._start)

    def stop(self, how: HowToStop) -> None:
        self._begin(Vm.STOPPING, self._turn_off if how is HowToStop.KILL else self._stop)

    def _begin(self, ordered: Vm, work: Callable[[], None]) -> None:
        with self._lock:
            self._orders += 1
            self._ordered = ordered

        def run() -> None:
            try:
                work()
            finally:
                with self._lock:
                    self._orders -= 1
                    self._told = None  # whatever it is now is news
            self._tell()

        threading.Thread(target=run, name="vm order", daemon=True).start()

    def _start(self) -> None:
        try:
            driver = self._make()
            driver.define()
            driver.start(self._facts.start_timeout_s)
            self._failed, self._problem = 0, ""
        except DriverError as error:
            self._failed += 1
            self._say(f"the VM does not start: {error}")
            self._closed.wait(AGAIN_S[min(self._failed, len(AGAIN_S) - 1)])

    def _stop(self) -> None:
        facts = self._facts
        try:
            driver = self._make()
            if facts.normal_stop == "save":
                driver.save(facts.stop_timeout_s)
            elif facts.normal_stop == "stop":
                driver.stop(facts.stop_timeout_s)
            else:
                self._turn_off()
        except StopTimedOut as error:
            self._say(f"{error}: it is turned off")
            self._turn_off()
        except DriverError as error:
            self._say(f"the VM does not stop: {error}: it is turned off")
            self._turn_off()

    def _turn_off(self) -> None:
        while not self._closed.is_set():
            try:
                self._make().turn_off()
                return
            except DriverError as error:
                self._say(f"the VM cannot be turned off: {error}")
                self._closed.wait(KILL_AGAIN_S)

    # ---- looking

    def _watch(self) -> None:
        while not self._closed.wait(LOOK_S):
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            if self._orders:
                return
        vm = self._look()
        with self._lock:
            if vm is None or vm is self._told or self._orders or self._closed.is_set():
                return
            self._told = vm
        self._hear(VmReported(vm))

    def _look(self) -> Vm | None:
        """None: it cannot be found out."""
        try:
            driver = self._make()
            seen = driver.observe()
            if seen.state is VmState.OFF:
                proof = driver.is_off()
                if not proof.off:
                    self._say(f"the VM seems off, but {proof.detail}")
                    return None
        except DriverError as error:
            self._say(str(error))
            return None
        self._last = seen
        return _VM[seen.state]

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            log.error("%s: %s", self._facts.module, problem)
        self._problem = problem
