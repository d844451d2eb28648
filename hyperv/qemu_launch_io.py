"""Starting a QEMU process and finding it again."""

from __future__ import annotations

import os
from dataclasses import replace

from hotpair.hyperv.commands_io import run_command
from hotpair.hyperv.driver import Place
from hotpair.hyperv.errors import ForeignVm, StartTimedOut, VmFailed
from hotpair.hyperv.processes_io import ProcessIdentity, command_line, identify, is_alive, kill_all, marked
from hotpair.hyperv.qemu_arguments import Paths, qemu_arguments
from hotpair.hyperv.qemu_check_io import Checked
from hotpair.hyperv.qmp_io import Qmp
from hotpair.hyperv.runs_io import LAUNCHING, RESTORING, Run, Runs
from hotpair.hyperv.units_io import scope_prefix


class Launcher:
    """Of one place."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.runs = Runs(place)
        self.paths = Paths(place.state_directory)

    def find(self) -> Run | None:
        """The run whose QEMU lives; None when none does. Raises ForeignVm, VmFailed."""
        run = self.runs.read()
        if run is not None and run.process is not None and is_alive(run.process):
            return run
        process = self._unwritten()
        if process is None:
            return None
        if run is None:
            raise ForeignVm(
                f"QEMU runs for {self.place.module} (pid {process.pid}), but {self.paths.run} is missing: turn it off"
            )
        return replace(run, process=process)

    def _unwritten(self) -> ProcessIdentity | None:
        """A QEMU of which we could not write down the process. While it detaches itself there are two."""
        found = [one for one in marked(self.place.state_directory) if self._is_qemu(one)]
        named = [one for one in found if one.pid == self._pid_in_file()]
        return next(iter([*named, *found]), None)

    def _is_qemu(self, process: ProcessIdentity) -> bool:
        """Not what it has started, nor what starts it: these have other words, or more of them before QEMU's."""
        words = command_line(process)
        return self.paths.pid_file in words and not words[0].endswith("systemd-run")

    def _pid_in_file(self) -> int | None:
        try:
            with open(self.paths.pid_file, encoding="ascii") as file:
                return int(file.read())
        except (FileNotFoundError, ValueError):
            return None

    def launch(self, checked: Checked, accelerator: str, note: str, limit_s: float, *, restoring: bool) -> Run:
        """Returns when QEMU has opened its disks, and, unless `restoring`, runs the guest.

        Raises VmFailed with what QEMU said, StartTimedOut. Nothing runs then.
        """
        place = self.place
        phase = RESTORING if restoring else LAUNCHING
        run = self.runs.write(Run(place.module, place.directory, checked.digest, phase, accelerator, note))
        for path in (self.paths.monitor, self.paths.watch, self.paths.agent, self.paths.screen, self.paths.pid_file):
            if os.path.lexists(path):
                os.unlink(path)
        words = qemu_arguments(
            checked.program,
            checked.description,
            place.module,
            place.directory,
            self.paths,
            accelerator,
            restoring=restoring,
        )
        prefix = scope_prefix(place.module, place.state_directory)
        ended = run_command([*prefix, *words], limit_s, self.runs.environment())
        if ended.code != 0:
            gone = kill_all(self.runs.processes, limit_s)
            what = "" if gone else ", and still runs"
            if ended.code is None:
                raise StartTimedOut(f"QEMU did not start within {limit_s:.0f} s{what}: {ended.said}")
            raise VmFailed(f"QEMU did not start{what}: {ended.said}")
        pid = self._pid_in_file()
        process = None if pid is None else identify(pid)
        if process is None:
            raise VmFailed(f"QEMU ended right after its start: {ended.said}")
        return self.runs.write(replace(run, process=process))

    def verify(self, qmp: Qmp) -> None:
        """That it is this module's. Raises ForeignVm."""
        name = qmp.call("query-name").get("name")
        if name != self.place.module:
            raise ForeignVm(f"the QEMU at {self.paths.monitor} is called {name}, and not {self.place.module}")
