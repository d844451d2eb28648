"""The driver "command": any application, by commands that start, stop and check it."""

from __future__ import annotations

import hashlib
import posixpath
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hotpair.hyperv.application_log_io import ApplicationLog
from hotpair.hyperv.command_options import Answer, CommandOptions, answer_of, read_command_options
from hotpair.hyperv.commands_io import Ended, run_command
from hotpair.hyperv.detach_io import MODULE as DETACH
from hotpair.hyperv.detach_io import start_detached
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
from hotpair.hyperv.processes_io import (
    ProcessIdentity,
    command_line,
    identify,
    in_session,
    is_alive,
    kill_all,
    marked,
    open_process,
    send,
    ticks_now,
    wait_for_end,
    wait_for_none,
)
from hotpair.hyperv.runs_io import LAUNCHING, RUNNING, STOPPING, Run, Runs
from hotpair.hyperv.units_io import scope_prefix

SETTLED_S = 1.0  # without a check: an application that lives so long has started
LOOK_AGAIN_S = 0.5  # a check has no event to wait for
LOCK_WAIT_S = 1.0


@dataclass(frozen=True)
class _Found:
    """`process`: the application's main one. `others`: where that does not live, whether something else of it does."""

    run: Run | None
    process: ProcessIdentity | None
    others: bool

    @property
    def phase(self) -> str:
        return RUNNING if self.run is None else self.run.phase


class CommandDriver:
    """One application. See `Driver`; options: command_options.py."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._runs = Runs(place)
        self._log = ApplicationLog(place.application_log)

    def check(self) -> tuple[str, ...]:
        options, problems = read_command_options(self._place.options)
        if options is None:
            return problems
        return tuple(
            f"[vm.options]: {name}: there is no program {words[0]}: install it, or correct the path"
            for name in ("start", "stop", "force_stop", "check")
            if (words := getattr(options, name)) and shutil.which(words[0]) is None
        )

    def define(self) -> None:
        make_state_directory(self._place.state_directory)

    def start(self, time_limit_s: float) -> None:
        end = time.monotonic() + time_limit_s
        options = self._options()
        make_state_directory(self._place.state_directory)
        with locked(self._place.lock, self._place.module, LOCK_WAIT_S):
            found = self._find(options)
            up = self._ask(options)[0] is Answer.UP if options.check else found.process is not None
            if up and found.phase != LAUNCHING:
                return
            if found.process is not None or found.others:
                raise VmFailed(f"something of an earlier run of {self._place.module} still runs: turn it off first")
            run = self._launch(options, end)
            self._wait_until_up(options, run, end)

    def _launch(self, options: CommandOptions, end: float) -> Run:
        place = self._place
        digest = hashlib.sha256(repr(sorted(place.options.items())).encode()).hexdigest()
        run = self._runs.write(Run(place.module, place.directory, digest, LAUNCHING, launched_ticks=ticks_now()))
        wait_s = None if options.foreground else max(0.1, end - time.monotonic())
        try:
            started = start_detached(
                options.start,
                self._environment(),
                place.directory,
                place.application_log,
                "application",
                wait_s=wait_s,
                prefix=scope_prefix(place.module, place.state_directory),
            )
        except StartTimedOut:
            kill_all(self._runs.processes, TURN_OFF_LIMIT_S)
            raise
        if started.code:
            raise VmFailed(f"the start command ended with {started.code}: see {place.application_log}")
        return self._runs.write(replace(run, process=identify(started.pid) if options.foreground else None))

    def _wait_until_up(self, options: CommandOptions, run: Run, end: float) -> None:
        """Raises VmFailed when it ends, StartTimedOut."""
        while True:
            process = self._main(options, run, marked(self._place.state_directory))
            if options.foreground and process is None:
                raise VmFailed(f"the application ended at once: see {self._place.application_log}")
            if options.check:
                answer, said = self._ask(options)
            else:
                answer, said = self._has_settled(options, process)
            if answer is Answer.UP:
                self._runs.write(replace(run, process=process, phase=RUNNING))
                return
            if time.monotonic() >= end:
                raise StartTimedOut(f"{self._place.module} was started, but is not up: {said}")
            if process is None:
                time.sleep(LOOK_AGAIN_S)
            else:
                wait_for_end(process, LOOK_AGAIN_S)

    def _has_settled(self, options: CommandOptions, process: ProcessIdentity | None) -> tuple[Answer, str]:
        if process is None:
            return Answer.DOWN, f"{options.pid_file} does not name a process of it"
        return (Answer.DOWN, "it ended") if wait_for_end(process, SETTLED_S) else (Answer.UP, "")

    def stop(self, time_limit_s: float) -> None:
        end = time.monotonic() + time_limit_s
        options = self._options()
        found = self._find(options)
        if found.run is not None and found.phase != STOPPING:
            self._runs.phase(found.run, STOPPING)
        if options.stop:
            self._say("stop", run_command(options.stop, time_limit_s, self._environment(mark=False)))
        elif found.process is not None:
            send(found.process, signal.SIGTERM)
        while True:
            gone = wait_for_none(self._runs.processes, end - time.monotonic())
            proof = self._proof(options)
            if gone and proof.off:
                self._runs.forget()
                return
            if time.monotonic() >= end:
                raise StopTimedOut(f"{self._place.module} did not stop within {time_limit_s:g} s: {proof.detail}")
            time.sleep(min(LOOK_AGAIN_S, max(0.0, end - time.monotonic())))

    def save(self, time_limit_s: float) -> None:
        raise VmFailed('an application cannot be saved: give normal_stop = "stop"')

    def turn_off(self, time_limit_s: float = TURN_OFF_LIMIT_S) -> None:
        """The command force_stop first; then whatever is left is killed."""
        end = time.monotonic() + time_limit_s
        options = self._options()
        self._runs.read()  # another module's application is left alone
        if options.force_stop:
            limit_s = min(float(options.force_stop_limit_s), time_limit_s)
            self._say("force_stop", run_command(options.force_stop, limit_s, self._environment(mark=False)))
        kill_all(self._runs.processes, time_limit_s)  # without the lock: a start may hang
        try:
            with locked(self._place.lock, self._place.module, max(0.0, end - time.monotonic())):
                kill_all(self._runs.processes, max(1.0, end - time.monotonic()))
                proof = self._proof(options)
        except Busy as error:
            raise StillRunning(f"{self._place.module} was killed, but is being started: {error}") from error
        if not proof.off:
            raise StillRunning(f"{self._place.module} was killed, and yet: {proof.detail}")
        self._runs.forget()

    def observe(self) -> Observation:
        """The check is the heartbeat."""
        options = self._options()
        found = self._find(options)
        answer, said = self._ask(options) if options.check else (Answer.UNKNOWN, "")
        if found.process is None and not found.others:
            if answer is Answer.UNKNOWN and options.check:
                raise VmFailed(f"whether {self._place.module} runs is not known: {said}")
            if answer is Answer.UP:
                return Observation(VmState.ON, Heartbeat.OK, 0.0, "found by its check only", self._launch_name(found))
            return Observation(VmState.OFF)
        if found.process is None:
            return Observation(VmState.STOPPING, detail="its main process has ended; others that it started still run")
        state = {LAUNCHING: VmState.STARTING, STOPPING: VmState.STOPPING}.get(found.phase, VmState.ON)
        heartbeat = {Answer.UP: Heartbeat.OK, Answer.DOWN: Heartbeat.LOST}.get(answer, Heartbeat.UNKNOWN)
        detail = f"it runs, but its check says {answer.value}: {said}" if options.check and answer != Answer.UP else ""
        return Observation(state, heartbeat, 0.0 if answer is Answer.UP else None, detail, str(found.process))

    def _launch_name(self, found: _Found) -> str:
        return "" if found.run is None else f"started {found.run.launched_ticks} ticks after boot"

    def end_descriptor(self) -> int | None:
        run = self._runs.read()
        return None if run is None or run.process is None else open_process(run.process)

    def is_off(self) -> Proof:
        try:
            with locked(self._place.lock, self._place.module):
                return self._proof(self._options())
        except ForeignVm:
            raise
        except (Busy, VmFailed, DriverUnusable) as error:
            return Proof(False, str(error))

    def remove(self) -> None:
        with locked(self._place.lock, self._place.module, LOCK_WAIT_S):
            proof = self._proof(self._options())
            if not proof.off:
                raise VmFailed(f"{self._place.module} is not off: {proof.detail}")
            self._runs.remove()

    # ---- what there is

    def _options(self) -> CommandOptions:
        options, problems = read_command_options(self._place.options)
        if options is None:
            raise DriverUnusable(problems)
        return options

    def _find(self, options: CommandOptions) -> _Found:
        run = self._runs.read()
        if run is not None and run.process is not None and is_alive(run.process):
            return _Found(run, run.process, others=False)  # all processes of the server need not be looked at
        with_mark = marked(self._place.state_directory)
        process = None if run is None else self._main(options, run, with_mark)
        if process is not None or run is None or run.process is None:
            return _Found(run, process, process is None and bool(with_mark))
        return _Found(run, None, bool(with_mark or in_session(run.process)))

    def _main(self, options: CommandOptions, run: Run, with_mark: Sequence[ProcessIdentity]) -> ProcessIdentity | None:
        """The application's main process, if it lives.

        In a pid file may stand anything: the other server's number, or one from before. It counts only with the mark:
        what is found here may be killed.
        """
        if run.process is not None and is_alive(run.process):
            return run.process
        found = [one for one in with_mark if DETACH not in command_line(one)]
        if options.foreground:
            return None if run.process is not None else min(found, key=lambda one: one.start_ticks, default=None)
        pid = self._pid_in_file(options) if found else None
        return next((one for one in found if one.pid == pid), None)

    def _pid_in_file(self, options: CommandOptions) -> int | None:
        if not options.pid_file:
            return None
        try:
            with open(posixpath.join(self._place.directory, options.pid_file), encoding="ascii") as file:
                return int(file.read(32))
        except (FileNotFoundError, ValueError):
            return None
        except OSError as error:
            raise VmFailed(f"{error.filename} cannot be read: {error.strerror}") from error

    def _proof(self, options: CommandOptions) -> Proof:
        found = self._runs.processes()
        if found:
            return Proof(False, f"pid {', '.join(str(process.pid) for process in found)} still runs")
        if options.check:
            answer, said = self._ask(options)
            if answer is not Answer.DOWN:
                return Proof(False, f"nothing that was started here runs, but its check says {answer.value}: {said}")
        return Proof(True, f"no process of {self._place.module} runs on this server")

    def _ask(self, options: CommandOptions) -> tuple[Answer, str]:
        ended = run_command(options.check, options.check_limit_s, self._environment(mark=False))
        if ended.code is None:
            return Answer.UNKNOWN, f"no answer within {options.check_limit_s} s"
        return answer_of(ended.code), f"it ended with {ended.code}: {ended.said}"

    def _environment(self, *, mark: bool = True) -> dict[str, str]:
        """The mark is for the application alone: a check that hangs is not a part of it."""
        place = self._place
        more = {
            "HOTPAIR_MODULE": place.module,
            "HOTPAIR_DIRECTORY": place.directory,
            "HOTPAIR_ROLE": place.role,
            "HOTPAIR_SERVER": place.server,
        }
        return self._runs.environment(more, mark=mark)

    def _say(self, which: str, ended: Ended) -> None:
        how = "did not end in time" if ended.code is None else f"ended with {ended.code}"
        self._log.append(which, f"{ended.output}{ended.errors}({how})")
