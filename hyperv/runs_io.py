"""What a driver that starts processes itself remembers of a run, and how its processes are found again.

The document is written before anything is started, and completed with the process once that is known. A crash of ours
in between costs nothing: the processes carry a mark in their environment.
"""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from hotpair.hyperv.driver import Place
from hotpair.hyperv.errors import ForeignVm, VmFailed
from hotpair.hyperv.files_io import make_state_directory, read_document, write_document
from hotpair.hyperv.processes_io import MARK, ProcessIdentity, in_session, is_alive, marked

DOCUMENT = "run.json"
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ", "HOME", "USER", "TMPDIR", "XDG_RUNTIME_DIR")

# Phases of a run.
LAUNCHING = "launching"
RESTORING = "restoring"
RUNNING = "running"
STOPPING = "stopping"
SAVING = "saving"


@dataclass(frozen=True)
class Run:
    """One run of a VM or an application.

    description     names what was started, so that a change of it is noticed
    note            for the operator, as long as it runs
    answered        the guest's agent has answered in this run
    launched_ticks  clock ticks after boot when it was about to be started
    uuid            the machine's id, where the hypervisor finds it by that
    """

    module: str
    directory: str
    description: str
    phase: str
    accelerator: str = ""
    note: str = ""
    process: ProcessIdentity | None = None
    answered: bool = False
    launched_ticks: int = 0
    uuid: str = ""


class Runs:
    """The run of one place."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._path = posixpath.join(place.state_directory, DOCUMENT)

    def read(self) -> Run | None:
        """The last run, whether it still goes on or not. Raises ForeignVm for another module's, VmFailed."""
        document = read_document(self._path)
        if document is None:
            return None
        run = _run(document, self._path)
        if (run.module, run.directory) != (self._place.module, self._place.directory):
            raise ForeignVm(
                f"{self._place.state_directory} is used for the module {run.module} in {run.directory}, and not for "
                f"{self._place.module} in {self._place.directory}: give each module a state directory of its own"
            )
        return run

    def write(self, run: Run) -> Run:
        """Durably. Raises VmFailed."""
        make_state_directory(self._place.state_directory)
        try:
            write_document(self._path, asdict(run))
        except OSError as error:
            raise VmFailed(f"{self._path} cannot be written: {error.strerror}") from error
        return run

    def phase(self, run: Run, phase: str) -> Run:
        return self.write(replace(run, phase=phase))

    def forget(self) -> None:
        """The run has ended with everything of it. Its pid, and the session of that number, will be others' one day.

        Raises VmFailed.
        """
        run = self.read()
        if run is not None and run.process is not None and not is_alive(run.process):
            self.write(replace(run, process=None))

    def give_up_start(self) -> None:
        """Before it is turned off: whoever is starting it must not take its end for a fault. Raises VmFailed."""
        run = self.read()
        if run is not None and run.phase in (LAUNCHING, RESTORING):
            self.phase(run, STOPPING)

    def is_given_up(self) -> bool:
        """For whoever is starting it. Raises VmFailed."""
        run = self.read()
        return run is None or run.phase not in (LAUNCHING, RESTORING)

    def note_answer(self, run: Run) -> None:
        """The guest has answered in this run. Another may have begun meanwhile. Raises VmFailed."""
        now = self.read()
        if now is not None and now.process == run.process and not now.answered:
            self.write(replace(now, answered=True))

    def processes(self) -> list[ProcessIdentity]:
        """Everything alive that was started for this place, in this or any earlier run. Raises ForeignVm, VmFailed."""
        run = self.read()
        found = {process.pid: process for process in marked(self._place.state_directory)}
        if run is not None and run.process is not None:
            found |= {process.pid: process for process in in_session(run.process)}
            if is_alive(run.process):
                found[run.process.pid] = run.process
        return list(found.values())

    def environment(self, more: Mapping[str, str] | None = None, *, mark: bool = True) -> dict[str, str]:
        """What is started gets this: little of ours, and the mark."""
        return passed_on() | dict(more or {}) | ({MARK: self._place.state_directory} if mark else {})

    def remove(self) -> None:
        """Empty the state directory. Raises VmFailed."""
        try:
            shutil.rmtree(self._place.state_directory)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise VmFailed(f"{error.filename} cannot be removed: {error.strerror}") from error


def passed_on() -> dict[str, str]:
    """What anything that is started for a module gets of this process's environment: none of its secrets."""
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


def _run(document: dict[str, Any], path: str) -> Run:
    try:
        process = document.pop("process")
        return Run(process=None if process is None else ProcessIdentity(**process), **document)
    except (KeyError, TypeError, AttributeError) as error:
        raise VmFailed(f"{path} is damaged: make sure that the VM is off, then remove the file") from error
