"""Keeps one module's VM through its driver: carries out orders, looks how it is, says when that has changed.

No Ray in here. Drivers block, so each order has a thread; a kill does not wait for an orderly stop that is under way.
`off` is reported only when the driver has proof that nothing can be written any more.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hotpair.actors.vm_checks import Seen
from hotpair.cluster.module_events import VmReported
from hotpair.cluster.module_values import HowToStop, Vm
from hotpair.hyperv.driver import Driver, Observation, TellsEnd, VmState
from hotpair.hyperv.errors import DriverError, StopTimedOut

log = logging.getLogger("hotpair.vm")

# Between two looks at a VM that nothing is being done to. Looking costs a few ms, once a second for each of 25 modules
# was a tenth of a processor and more: where the driver tells a VM's end, and starts it only when told to, what is
# looked for are its heartbeat and what should not happen.
LOOK_S = 1.0
LOOK_SELDOM_S = 5.0
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
        self._last_at = time.monotonic()
        self._problem = ""
        self._closed = threading.Event()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # the watch is to look again

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
        vm = self._look(None) or Vm.STOPPING
        with self._lock:
            if self._orders:
                return self._ordered
            self._told = vm
        return vm

    def close(self) -> None:
        """Look no more; the VM goes on."""
        self._closed.set()
        os.eventfd_write(self._woken, 1)

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

    def seen(self) -> Seen:
        """For checkers."""
        with self._lock:
            busy = self._orders > 0
        return Seen(self._last, time.monotonic() - self._last_at, busy, self._failed, self._problem)

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
            os.eventfd_write(self._woken, 1)

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
        while not self._closed.is_set():
            self._wait()
            self._tell()

    def _wait(self) -> None:
        """Until the next look: when the VM has ended, when an order was carried out, or when it is time."""
        with self._lock:
            told, is_sure = self._told, not self._problem
        ends, end = False, None
        try:
            driver = self._make()
            if isinstance(driver, TellsEnd):
                ends, end = True, driver.end_descriptor()
        except DriverError:
            is_sure = False  # the next look says it
        is_on = told is Vm.ON and end is not None
        limit_s = LOOK_SELDOM_S if is_sure and ends and (is_on or told is Vm.OFF) else LOOK_S
        try:
            poll = select.poll()
            for descriptor in (self._woken, *(() if end is None else (end,))):
                poll.register(descriptor, select.POLLIN)
            poll.poll(limit_s * 1000)
        finally:
            if end is not None:
                os.close(end)
        try:
            os.eventfd_read(self._woken)
        except BlockingIOError:
            return  # it was not that

    def _tell(self) -> None:
        with self._lock:
            if self._orders:
                return
            told = self._told
        vm = self._look(told)
        with self._lock:
            if vm is None or vm is told or self._told is not told or self._orders or self._closed.is_set():
                return  # after an order that came in between, it is looked again
            self._told = vm
        self._hear(VmReported(vm))

    def _look(self, told: Vm | None) -> Vm | None:
        """None: it cannot be found out. `told`: what was said last."""
        try:
            driver = self._make()
            seen = driver.observe()
            if seen.state is VmState.OFF and told is not Vm.OFF:  # what was said on proof is not proved again
                proof = driver.is_off()
                if not proof.off:
                    self._say(f"the VM seems off, but {proof.detail}")
                    return None
        except DriverError as error:
            self._say(str(error))
            return None
        self._last, self._last_at = seen, time.monotonic()
        return _VM[seen.state]

    def _say(self, problem: str) -> None:
        if problem != self._problem:
            log.error("%s: %s", self._facts.module, problem)
        self._problem = problem
