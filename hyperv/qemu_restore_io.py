"""Starting a VM from its saved state or without, and saving it. Why it is done in this order: qemu_saved.py."""

from __future__ import annotations

import os
import signal
import time

from hotpair.hyperv.application_log_io import ApplicationLog
from hotpair.hyperv.errors import StartTimedOut, StopTimedOut, VmFailed
from hotpair.hyperv.processes_io import ProcessIdentity, kill_all, send, wait_for_end, wait_for_none
from hotpair.hyperv.qemu_acceleration_io import KVM, choose
from hotpair.hyperv.qemu_arguments import processor
from hotpair.hyperv.qemu_check_io import Checked
from hotpair.hyperv.qemu_description import Description
from hotpair.hyperv.qemu_launch_io import Launcher
from hotpair.hyperv.qemu_saved_io import Fit, SavedState
from hotpair.hyperv.qmp_io import Qmp
from hotpair.hyperv.runs_io import RUNNING, SAVING, Run

CANCEL_LIMIT_S = 5.0
QUIT_LIMIT_S = 5.0  # it has nothing to write any more; then it is killed
_NO_LIMIT = 1 << 40  # bytes/s: the disk decides
_ENDS = ("completed", "failed", "cancelled")


class NotReadable(VmFailed):
    """QEMU cannot go on from this saved state."""


def fit(description: Description, accelerator: str) -> Fit:
    return Fit(description.digest, accelerator, tuple(disk.file for disk in description.disks))


def start(launcher: Launcher, saved: SavedState, checked: Checked, log: ApplicationLog, end: float) -> None:
    """Under the lock, nothing of the module running. `end`: as of time.monotonic(). Raises VmFailed, StartTimedOut."""
    accelerator, note = choose(checked.accelerator, checked.program, processor(checked.description, KVM))
    usable, problem = saved.judge(fit(checked.description, accelerator))
    if usable:
        try:
            _restore(launcher, saved, checked, accelerator, note, end)
            log.append("qemu", "goes on from the saved state")
            return
        except NotReadable as error:
            problem = str(error)
            saved.set_aside()
    if problem:
        log.append("qemu", f"the saved state is not used, the guest starts as after a power cut: {problem}")
        note = "; ".join(filter(None, (note, f"started without its saved state: {problem}")))
    saved.invalidate()
    saved.clear()
    run = launcher.launch(checked, accelerator, note, _left(end), restoring=False)
    with Qmp(launcher.paths.monitor) as qmp:
        launcher.verify(qmp)
    launcher.runs.phase(run, RUNNING)
    log.append("qemu", f"started with {accelerator}{': ' + note if note else ''}")


def _restore(launcher: Launcher, saved: SavedState, checked: Checked, accelerator: str, note: str, end: float) -> None:
    """Raises NotReadable after the QEMU that could not read it was ended, VmFailed, StartTimedOut."""
    try:
        run = launcher.launch(checked, accelerator, note, _left(end), restoring=True)
    except VmFailed as error:
        raise VmFailed(f"{error}. The saved state is kept") from error
    with Qmp(launcher.paths.monitor) as qmp:
        launcher.verify(qmp)
        _switch_events_on(qmp)
        qmp.call("migrate-incoming", uri=saved.reader)
        try:
            status = qmp.wait_for_migration(_ENDS, _left(end))
        except VmFailed:  # QEMU ends when it cannot read a state
            status = "failed"
        if status == "completed":
            saved.invalidate()  # before the guest runs
            qmp.call("cont")
            saved.clear()
            launcher.runs.phase(run, RUNNING)
            return
    if not kill_all(launcher.runs.processes, CANCEL_LIMIT_S):
        raise StartTimedOut("a QEMU that could not read the saved state does not end: turn it off")
    if launcher.runs.is_given_up():
        raise VmFailed("it was turned off while its saved state was read; the state is kept")
    if status is None:
        raise StartTimedOut("the saved state could not be read in time; it is kept")
    raise NotReadable("QEMU cannot read it: another version, another processor, or damaged")


def save(launcher: Launcher, saved: SavedState, run: Run, description: Description, end: float) -> None:
    """Raises StopTimedOut and VmFailed; the guest goes on then, unless QEMU itself ended."""
    process = run.process
    assert process is not None, "of a run that was found"
    if run.description != description.digest:
        raise VmFailed("the description was changed since the VM was started: it can be stopped, but not saved")
    saved.invalidate()
    saved.clear()
    launcher.runs.phase(run, SAVING)
    with Qmp(launcher.paths.monitor) as qmp:
        launcher.verify(qmp)
        if run.phase == SAVING:  # an earlier one was broken off
            go_on_after_saving(qmp)
        problem = _write_state(qmp, launcher, saved, process, end)
        if problem is not None:
            go_on_after_saving(qmp)
            launcher.runs.phase(run, RUNNING)
            saved.clear()
            raise problem
        qmp.call("quit")
    if not wait_for_end(process, QUIT_LIMIT_S):
        send(process, signal.SIGKILL)  # its disks are closed
        if not wait_for_end(process, QUIT_LIMIT_S):
            raise VmFailed("QEMU has saved the state but does not end: turn it off")
    saved.commit(fit(description, run.accelerator))


def _write_state(
    qmp: Qmp, launcher: Launcher, saved: SavedState, process: ProcessIdentity, end: float
) -> StopTimedOut | VmFailed | None:
    """What went wrong; None when the whole state is on disk."""
    late = StopTimedOut("the state could not be saved in time; the guest goes on")
    qmp.call("stop")
    _switch_events_on(qmp)
    qmp.call("migrate-set-parameters", **{"max-bandwidth": _NO_LIMIT})
    qmp.call("migrate", uri=saved.writer)
    status = qmp.wait_for_migration(_ENDS, end - time.monotonic())
    if status is None:
        qmp.call("migrate_cancel")
        qmp.wait_for_migration(_ENDS, CANCEL_LIMIT_S)
        return late
    if status != "completed":
        return VmFailed(
            f"QEMU could not save: {qmp.call('query-migrate').get('error-desc', status)}; the guest goes on"
        )

    def writers() -> list[ProcessIdentity]:
        return [one for one in launcher.runs.processes() if one.pid != process.pid]

    if not wait_for_none(writers, end - time.monotonic()):
        return late
    try:
        saved.flush()
    except OSError as error:
        return VmFailed(f"the state could not be written: {os.strerror(error.errno or 0)}; the guest goes on")
    return None


def go_on_after_saving(qmp: Qmp) -> None:
    """Whatever the guest is held for, it is not any more."""
    if qmp.call("query-status")["status"] != "running":
        qmp.call("cont")


def _switch_events_on(qmp: Qmp) -> None:
    qmp.call("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])


def _left(end: float) -> float:
    """Raises StartTimedOut."""
    left = end - time.monotonic()
    if left <= 0:
        raise StartTimedOut("the time for the start is over")
    return left
