"""The driver "libvirt": domains of libvirt's QEMU driver, whose XML lies in the module's directory."""

from __future__ import annotations

import posixpath
import shutil
import time
from dataclasses import replace

from hotpair.hyperv.application_log_io import ApplicationLog
from hotpair.hyperv.driver import TURN_OFF_LIMIT_S, Heartbeat, Observation, Place, Proof, VmState
from hotpair.hyperv.errors import (
    Busy,
    DriverUnusable,
    ForeignVm,
    StartTimedOut,
    StillRunning,
    StopTimedOut,
    VmFailed,
)
from hotpair.hyperv.files_io import locked, make_state_directory
from hotpair.hyperv.libvirt_check_io import OPTIONS, CheckedDomain, check
from hotpair.hyperv.libvirt_values import NO_AGENT, DomainState, says
from hotpair.hyperv.options import read_options
from hotpair.hyperv.processes_io import ProcessIdentity, kill_all, with_words
from hotpair.hyperv.qemu_saved_io import Fit, SavedState
from hotpair.hyperv.runs_io import LAUNCHING, RESTORING, RUNNING, SAVING, STOPPING, Run, Runs
from hotpair.hyperv.virsh_io import CALL_LIMIT_S, NoDomain, Virsh

LOCK_WAIT_S = 1.0
ASK_AGAIN_S = 5.0  # a guest that is still booting does not see the first request
LOOK_AGAIN_S = 0.2
AGENT_LIMIT_S = 1
PING = '{"execute":"guest-ping"}'


class LibvirtDriver:
    """One domain. See `Driver`; options: libvirt_check_io.py."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._name = place.module
        self._log = ApplicationLog(place.application_log)
        self._runs = Runs(place)
        self._saved = SavedState(place.directory, place.module)
        self._answered_at: float | None = None

    def check(self) -> tuple[str, ...]:
        return check(self._place).problems

    def define(self) -> None:
        with locked(self._place.lock, self._name, LOCK_WAIT_S):
            self._define(self._virsh(), self._checked())

    def _define(self, virsh: Virsh, checked: CheckedDomain) -> None:
        """Never started by libvirt itself: only hotpair knows where it may run."""
        self._refuse_foreign(virsh, checked.domain.uuid)
        virsh.call("define", checked.file)
        virsh.call("autostart", "--disable", self._name)

    def _refuse_foreign(self, virsh: Virsh, uuid: str) -> None:
        try:
            known = virsh.call("domuuid", self._name)
        except NoDomain:
            return
        if known.lower() != uuid:
            raise ForeignVm(f"libvirt has another domain called {self._name} ({known}): rename or undefine that one")

    def _refuse_unknown(self, virsh: Virsh, run: Run | None) -> None:
        if run is None and not self._proof(virsh, run).off:
            raise ForeignVm(f"libvirt runs a domain called {self._name} that was not started here: turn it off")

    def start(self, time_limit_s: float) -> None:
        end = time.monotonic() + time_limit_s
        checked, virsh = self._checked(), self._virsh()
        make_state_directory(self._place.state_directory)
        with locked(self._place.lock, self._name, LOCK_WAIT_S):
            run = self._runs.read()
            state = virsh.state(self._name)
            if state is not None and state.state is not VmState.OFF:
                self._refuse_foreign(virsh, checked.domain.uuid)
                if run is not None and run.phase == RESTORING:  # broken off: the guest has not run
                    virsh.call("destroy", self._name)
                else:
                    self._go_on(run, checked, virsh)
                    return
            self._define(virsh, checked)
            self._start(virsh, checked, end)

    def _go_on(self, run: Run | None, checked: CheckedDomain, virsh: Virsh) -> None:
        if run is None or run.description != checked.domain.digest:
            raise VmFailed(f"{self._name} runs with an older description: stop it before it is started again")
        if run.phase == SAVING:
            self._resume(virsh)
        self._runs.write(replace(run, phase=RUNNING, process=run.process or self._process(checked.domain.uuid)))

    def _start(self, virsh: Virsh, checked: CheckedDomain, end: float) -> None:
        domain, place = checked.domain, self._place
        usable, problem = self._saved.judge(self._fit(checked))
        run = Run(self._name, place.directory, domain.digest, LAUNCHING, domain.kind, uuid=domain.uuid)
        if usable:
            run = self._runs.write(replace(run, phase=RESTORING))
            ended = virsh.run("restore", "--paused", self._saved.state, limit_s=_left(end))
            if ended.code is None:
                raise StartTimedOut("the saved state could not be read in time; it is kept")
            if ended.code == 0:
                self._saved.invalidate()  # before the guest runs
                virsh.call("resume", self._name)
                self._saved.clear()
                self._started(run, "goes on from the saved state")
                return
            if self._runs.is_given_up():
                raise VmFailed("it was turned off while its saved state was read; the state is kept")
            problem = ended.said
            self._saved.set_aside()
        note = f"started without its saved state: {problem}" if problem else ""
        self._saved.invalidate()
        self._saved.clear()
        run = self._runs.write(replace(run, phase=LAUNCHING, note=note))
        ended = virsh.run("start", "--force-boot", self._name, limit_s=_left(end))
        if ended.code is None:
            raise StartTimedOut(f"libvirt did not start {self._name} in time")
        if ended.code != 0:
            raise VmFailed(f"virsh start: {ended.said}")
        self._started(run, note or "started")

    def _started(self, run: Run, text: str) -> None:
        self._runs.write(replace(run, phase=RUNNING, process=self._process(run.uuid)))
        self._log.append("libvirt", text)

    def stop(self, time_limit_s: float) -> None:
        end, virsh, run = time.monotonic() + time_limit_s, self._virsh(), self._runs.read()
        asked_at = -ASK_AGAIN_S
        self._refuse_unknown(virsh, run)
        while not self._proof(virsh, run).off:
            now = time.monotonic()
            if now >= end:
                if run is not None:
                    self._runs.phase(run, RUNNING)
                raise StopTimedOut(f"{self._name} did not shut down within {time_limit_s:g} s: it still runs")
            if now - asked_at >= ASK_AGAIN_S:
                asked_at = now
                if run is not None:
                    self._resume_if_saving(virsh, run)
                    self._runs.phase(run, STOPPING)
                self._ask_to_stop(virsh)
            time.sleep(LOOK_AGAIN_S)  # virsh event could miss what happened before it listened

    def _ask_to_stop(self, virsh: Virsh) -> None:
        ended = virsh.run("shutdown", self._name)
        state = virsh.state(self._name)
        if ended.code != 0 and state is not None and state.state is not VmState.OFF:
            raise VmFailed(f"virsh shutdown: {ended.said}")

    def _resume_if_saving(self, virsh: Virsh, run: Run) -> None:
        if run.phase == SAVING:
            self._resume(virsh)

    def _resume(self, virsh: Virsh) -> None:
        """After a save that was broken off."""
        virsh.run("domjobabort", self._name)
        ended = virsh.run("resume", self._name)
        state = virsh.state(self._name)
        if ended.code != 0 and (state is None or state.detail):
            raise VmFailed(f"virsh resume: {ended.said}")

    def save(self, time_limit_s: float) -> None:
        checked, virsh, run = self._checked(), self._virsh(), self._runs.read()
        if run is None or self._proof(virsh, run).off:
            raise VmFailed(f"{self._name} does not run: there is nothing to save")
        if run.description != checked.domain.digest:
            raise VmFailed("the description was changed since the VM was started: it can be stopped, but not saved")
        self._resume_if_saving(virsh, run)
        self._saved.invalidate()
        self._saved.clear()
        run = self._runs.phase(run, SAVING)
        ended = virsh.run("save", self._name, self._saved.part, limit_s=max(0.1, time_limit_s))
        if ended.code == 0 and self._proof(virsh, run).off:
            try:
                self._saved.flush()
            except OSError as error:
                raise VmFailed(f"the saved state could not be written: {error.strerror}") from error
            self._saved.commit(self._fit(checked))
            self._log.append("libvirt", f"saved in {self._place.directory}")
            return
        self._resume(virsh)
        self._saved.clear()
        self._runs.phase(run, RUNNING)
        if ended.code is None:
            raise StopTimedOut("the state could not be saved in time; the guest goes on")
        raise VmFailed(f"libvirt could not save: {ended.said}; the guest goes on")

    def turn_off(self, time_limit_s: float = TURN_OFF_LIMIT_S) -> None:
        """By libvirt; where it does not answer, the QEMU process is killed, for it must not write any more."""
        end, virsh, run = time.monotonic() + time_limit_s, self._virsh(), self._runs.read()
        self._runs.give_up_start()
        said = self._destroy(virsh, run, time_limit_s)
        try:
            with locked(self._place.lock, self._name, max(0.0, end - time.monotonic())):
                said = self._destroy(virsh, run, max(1.0, end - time.monotonic()))
                proof = self._proof(virsh, run)
        except Busy as error:
            raise StillRunning(f"{self._name} was turned off, but is being started: {error}") from error
        if not proof.off:
            raise StillRunning(f"{self._name}: {proof.detail}{': ' + said if said else ''}")

    def _destroy(self, virsh: Virsh, run: Run | None, limit_s: float) -> str:
        """What went wrong, if something did."""
        uuid = run.uuid if run is not None else self._described_uuid()
        try:
            self._refuse_foreign(virsh, uuid)
            state = virsh.state(self._name)
            if (state is None or state.state is VmState.OFF) and self._process(uuid) is None:
                return ""
            ended = virsh.run("destroy", self._name, limit_s=max(0.1, limit_s / 2))
            said = "" if ended.code == 0 else ended.said
        except ForeignVm:
            raise
        except VmFailed as error:
            said = str(error)
        if said and uuid:
            kill_all(lambda: with_words("-uuid", uuid), max(0.1, limit_s / 2))
        return said

    def _described_uuid(self) -> str:
        """Where the document of the run is lost; "" where the description is as well, which no domain has."""
        parsed = check(self._place).parsed
        return "" if parsed is None else parsed.uuid

    def observe(self) -> Observation:
        virsh, run = self._virsh(), self._runs.read()
        if run is None:
            self._refuse_unknown(virsh, run)
            return Observation(VmState.OFF)
        found = virsh.state(self._name)
        process = self._process(run.uuid)
        if found is None or found.state is VmState.OFF:
            if process is None:
                return Observation(VmState.OFF)
            return Observation(VmState.STOPPING, detail="libvirt says that it is off, but its QEMU process still runs")
        self._refuse_foreign(virsh, run.uuid)
        state, detail = _with_phase(found, run.phase)
        heartbeat, age_s = self._heartbeat(virsh, run)
        detail = "; ".join(filter(None, (detail, run.note)))
        return Observation(state, heartbeat, age_s, detail, str(process or run.process or ""))

    def _heartbeat(self, virsh: Virsh, run: Run) -> tuple[Heartbeat, float | None]:
        ended = virsh.run("qemu-agent-command", self._name, "--timeout", str(AGENT_LIMIT_S), PING)
        if ended.code == 0:
            self._answered_at = time.monotonic()
            self._runs.note_answer(run)
            return Heartbeat.OK, 0.0
        if not run.answered or not says(ended.errors, NO_AGENT):
            return Heartbeat.UNKNOWN, None
        return Heartbeat.LOST, None if self._answered_at is None else time.monotonic() - self._answered_at

    def is_off(self) -> Proof:
        try:
            with locked(self._place.lock, self._name):
                return self._proof(self._virsh(), self._runs.read())
        except ForeignVm:
            raise
        except (Busy, VmFailed, DriverUnusable) as error:
            return Proof(False, str(error))

    def remove(self) -> None:
        virsh = self._virsh()
        with locked(self._place.lock, self._name, LOCK_WAIT_S):
            run = self._runs.read()
            proof = self._proof(virsh, run)
            if not proof.off:
                raise VmFailed(f"{self._name} is not off: {proof.detail}")
            if run is not None:
                self._refuse_foreign(virsh, run.uuid)
            if virsh.state(self._name) is not None:
                virsh.call("undefine", "--keep-nvram", self._name)
            self._runs.remove()

    def _proof(self, virsh: Virsh, run: Run | None) -> Proof:
        """Both libvirt and the table of processes must say so: a libvirt that has lost its memory knows no domain."""
        if run is not None and (process := self._process(run.uuid)) is not None:
            return Proof(False, f"its QEMU process (pid {process.pid}) still runs")
        try:
            found = virsh.state(self._name)
        except VmFailed as error:
            return Proof(False, str(error))
        if found is not None and found.state is not VmState.OFF:
            return Proof(False, f"libvirt says that it runs{': ' + found.detail if found.detail else ''}")
        return Proof(True, f"libvirt runs no {self._name}, and there is no process of it")

    def _process(self, uuid: str) -> ProcessIdentity | None:
        return next(iter(with_words("-uuid", uuid)), None)

    def _virsh(self) -> Virsh:
        values, problems = read_options(OPTIONS, self._place.options)
        if problems:
            raise DriverUnusable(problems)
        return Virsh(shutil.which(values["program"]) or values["program"], values["uri"])

    def _checked(self) -> CheckedDomain:
        checked = check(self._place)
        if checked.problems:
            raise DriverUnusable(checked.problems)
        return checked

    def _fit(self, checked: CheckedDomain) -> Fit:
        files = tuple(posixpath.relpath(path, self._place.directory) for path in checked.domain.files)
        return Fit(checked.domain.digest, checked.domain.kind, files)


def _with_phase(found: DomainState, phase: str) -> tuple[VmState, str]:
    held = {RESTORING: VmState.STARTING, SAVING: VmState.STOPPING, STOPPING: VmState.STOPPING}
    if found.state is VmState.ON and phase in held:
        return held[phase], found.detail
    return found.state, found.detail


def _left(end: float) -> float:
    """Raises StartTimedOut."""
    left = end - time.monotonic()
    if left <= 0:
        raise StartTimedOut("the time for the start is over")
    return max(left, CALL_LIMIT_S / 100)
