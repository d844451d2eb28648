"""The driver "qemu": QEMU with KVM, or without acceleration where that does not work. No libvirt.

QEMU detaches itself into a session of its own and is found again by its pid file, its start time, the mark in its
environment, and its control socket, which must give the module's name.
"""

from __future__ import annotations

import os
import time

from hotpair.hyperv import guest_agent_io, qemu_restore_io
from hotpair.hyperv.application_log_io import ApplicationLog
from hotpair.hyperv.driver import TURN_OFF_LIMIT_S, Heartbeat, Observation, Place, Proof, VmState
from hotpair.hyperv.errors import Busy, DriverUnusable, ForeignVm, StillRunning, StopTimedOut, VmFailed
from hotpair.hyperv.files_io import locked, make_state_directory
from hotpair.hyperv.processes_io import (
    ProcessIdentity,
    is_alive,
    kill_all,
    open_process,
    wait_for_end,
    wait_for_none,
)
from hotpair.hyperv.qemu_check_io import Checked, check
from hotpair.hyperv.qemu_launch_io import Launcher
from hotpair.hyperv.qemu_saved_io import SavedState
from hotpair.hyperv.qemu_states import state_of
from hotpair.hyperv.qmp_io import NoMonitor, Qmp
from hotpair.hyperv.runs_io import LAUNCHING, RESTORING, RUNNING, SAVING, STOPPING, Run

PRESS_AGAIN_S = 5.0  # a guest that is still booting, or shows a dialog, does not see the first press
AFTER_END_S = 5.0  # helpers of a QEMU that has ended
OBSERVE_LIMIT_S = 2.0
LOCK_WAIT_S = 1.0  # others hold it for a moment only, unless they start


class QemuDriver:
    """One VM. See `Driver`. The description is vm.toml in the module's directory (qemu_description.py)."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._log = ApplicationLog(place.application_log)
        self._launcher = Launcher(place)
        self._runs = self._launcher.runs
        self._paths = self._launcher.paths
        self._saved = SavedState(place.directory, place.module)
        self._answered_at: float | None = None

    def check(self) -> tuple[str, ...]:
        return check(self._place).problems

    def define(self) -> None:
        """There is nothing that QEMU must know beforehand: the state directory is made."""
        make_state_directory(self._place.state_directory)

    def start(self, time_limit_s: float) -> None:
        end = time.monotonic() + time_limit_s
        checked = self._checked()
        make_state_directory(self._place.state_directory)
        with locked(self._place.lock, self._place.module, LOCK_WAIT_S):
            run = self._launcher.find()
            if run is not None and run.phase in (LAUNCHING, RESTORING):  # we have the lock: nobody carries it on
                self._kill(end - time.monotonic())
                run = None
            if run is not None:
                self._go_on(run, checked)
                return
            if self._runs.processes():
                raise VmFailed(f"something of an earlier run of {self._place.module} still runs: turn it off first")
            qemu_restore_io.start(self._launcher, self._saved, checked, self._log, end)

    def _go_on(self, run: Run, checked: Checked) -> None:
        """It runs already: that is what was wanted, if it is the same."""
        if run.description != checked.digest:
            raise VmFailed(f"{self._place.module} runs with an older description: stop it before it is started again")
        if run.phase == SAVING:  # and whoever saved it is gone
            with Qmp(self._paths.monitor) as qmp:
                self._launcher.verify(qmp)
                qemu_restore_io.go_on_after_saving(qmp)
        if run.phase != RUNNING:
            self._runs.phase(run, RUNNING)

    def stop(self, time_limit_s: float) -> None:
        """Presses the power button (ACPI) until the guest has shut down."""
        end = time.monotonic() + time_limit_s
        run = self._launcher.find()
        if run is None or run.process is None:
            self._wait_for_helpers()
            return
        was, run = run.phase, self._runs.phase(run, STOPPING)
        assert run.process is not None
        while (left := end - time.monotonic()) > 0:
            self._press(run.process, first_go_on=was == SAVING)
            if wait_for_end(run.process, min(PRESS_AGAIN_S, left)):
                self._wait_for_helpers()
                return
        self._runs.phase(run, RUNNING)
        raise StopTimedOut(f"{self._place.module} did not shut down within {time_limit_s:g} s: it still runs")

    def _press(self, process: ProcessIdentity, *, first_go_on: bool) -> None:
        try:
            with Qmp(self._paths.monitor) as qmp:
                self._launcher.verify(qmp)
                if first_go_on:
                    qemu_restore_io.go_on_after_saving(qmp)
                qmp.call("system_powerdown")
        except NoMonitor:
            if is_alive(process):
                raise

    def save(self, time_limit_s: float) -> None:
        end = time.monotonic() + time_limit_s
        run = self._launcher.find()
        if run is None:
            raise VmFailed(f"{self._place.module} does not run: there is nothing to save")
        description = self._checked().description
        qemu_restore_io.save(self._launcher, self._saved, run, description, end)
        self._log.append("qemu", f"saved in {self._place.directory}")

    def turn_off(self, time_limit_s: float = TURN_OFF_LIMIT_S) -> None:
        end = time.monotonic() + time_limit_s
        self._runs.give_up_start()
        self._kill(time_limit_s)  # without the lock: a start may hang
        try:
            with locked(self._place.lock, self._place.module, max(0.0, end - time.monotonic())):
                self._kill(max(1.0, end - time.monotonic()))
                self._runs.forget()
        except Busy as error:
            raise StillRunning(f"{self._place.module} was turned off, but is being started: {error}") from error

    def _kill(self, limit_s: float) -> None:
        """Raises StillRunning."""
        if not kill_all(self._runs.processes, limit_s):
            pids = ", ".join(str(process.pid) for process in self._runs.processes())
            raise StillRunning(
                f"{self._place.module} was killed but has not ended (pid {pids}): it waits in the kernel, as for a "
                "mirror that does not answer"
            )

    def observe(self) -> Observation:
        """Looks at the process and its sockets, at nothing in the directory: a mirror that hangs does not matter."""
        run = self._launcher.find()
        if run is None or run.process is None:
            if self._runs.processes():
                return Observation(VmState.STOPPING, detail="QEMU has ended; what it has started has not")
            return Observation(VmState.OFF)
        identity = str(run.process)
        try:
            with Qmp(self._paths.watch, OBSERVE_LIMIT_S) as qmp:
                self._launcher.verify(qmp)
                state, detail = state_of(qmp.call("query-status")["status"], run.phase)
        except NoMonitor as error:
            if not is_alive(run.process):
                return Observation(VmState.OFF)
            state = VmState.STARTING if run.phase in (LAUNCHING, RESTORING) else VmState.ON
            return Observation(state, detail=f"QEMU runs, but does not answer: {error}", identity=identity)
        heartbeat, age_s = self._heartbeat(run)
        return Observation(state, heartbeat, age_s, "; ".join(filter(None, (detail, run.note))), identity)

    def _heartbeat(self, run: Run) -> tuple[Heartbeat, float | None]:
        if not os.path.exists(self._paths.agent):
            return Heartbeat.UNKNOWN, None
        if guest_agent_io.answers(self._paths.agent):
            self._answered_at = time.monotonic()
            self._runs.note_answer(run)
            return Heartbeat.OK, 0.0
        if not run.answered:
            return Heartbeat.UNKNOWN, None
        return Heartbeat.LOST, None if self._answered_at is None else time.monotonic() - self._answered_at

    def end_descriptor(self) -> int | None:
        run = self._runs.read()
        return None if run is None or run.process is None else open_process(run.process)

    def is_off(self) -> Proof:
        try:
            with locked(self._place.lock, self._place.module):
                found = self._runs.processes()
        except ForeignVm:
            raise
        except (Busy, VmFailed) as error:
            return Proof(False, str(error))
        if found:
            return Proof(False, f"pid {', '.join(str(process.pid) for process in found)} still runs")
        return Proof(True, f"no process of {self._place.module} runs on this server")

    def remove(self) -> None:
        with locked(self._place.lock, self._place.module, LOCK_WAIT_S):
            if self._runs.processes():
                raise VmFailed(f"{self._place.module} is not off: turn it off before it is removed")
            self._runs.remove()

    def _checked(self) -> Checked:
        checked = check(self._place)
        if checked.problems:
            raise DriverUnusable(checked.problems)
        return checked

    def _wait_for_helpers(self) -> None:
        """Raises VmFailed."""
        if not wait_for_none(self._runs.processes, AFTER_END_S):
            raise VmFailed(f"QEMU has ended, but something it has started still runs for {self._place.module}")
        self._runs.forget()
