"""The driver "command" with a plain Python process as the application."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from hotpair.hyperv.application_log_io import ApplicationLog
from hotpair.hyperv.command_io import CommandDriver
from hotpair.hyperv.driver import Heartbeat, Observation, Place, VmState
from hotpair.hyperv.errors import DriverUnusable, ForeignVm, StartTimedOut, StillRunning, StopTimedOut, VmFailed
from hotpair.hyperv.processes_io import MARK, identify, is_alive, marked
from hotpair.hyperv.runs_io import Runs

# Says its pid and environment in files of the directory; MODE is how it behaves.
APPLICATION = """
import json, os, signal, subprocess, sys, time
mode = sys.argv[1]
print("application in", os.getcwd(), flush=True)
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("asked to stop")))
if mode == "ends":
    sys.exit("cannot go on")
if mode == "children":
    child = "import time, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
    one = subprocess.Popen([sys.executable, "-c", child])
    two = subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
    open("children", "w").write(f"{one.pid} {two.pid}")
if mode == "daemon" and os.fork():
    sys.exit()
if mode == "daemon":
    os.setsid()
    open("application.pid", "w").write(str(os.getpid()))
open("environment", "w").write(json.dumps(dict(os.environ)))
open("up.part", "w").write(str(os.getpid()))
os.rename("up.part", "up")
while True:
    time.sleep(0.05)
"""
START_S = 20.0
STOP_S = 20.0


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="hotpair-command-") as base:
        directory = Path(base, "data")
        directory.mkdir()
        Path(base, "application.py").write_text(APPLICATION)
        made = Place(
            module="web",
            directory=str(directory),
            state_directory=f"{base}/state",
            options={"start": application(base, "well")},
            application_log=f"{base}/application.log",
            lock=f"{base}/lock",
            server="one",
            role="ALONE",
        )
        try:
            yield made
        finally:
            for process in marked(made.state_directory):
                os.kill(process.pid, signal.SIGKILL)
                until(lambda process=process: not is_alive(process))


def application(base: str, mode: str) -> list[str]:
    return [sys.executable, f"{base}/application.py", mode]


def driver(place: Place, mode: str = "well", **options: object) -> CommandDriver:
    base = str(Path(place.lock).parent)
    given: Mapping[str, object] = {"start": application(base, mode), **options}
    return CommandDriver(replace(place, options=given))


def until(condition: object, timeout_s: float = 10.0) -> None:
    assert callable(condition)
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def log(place: Place) -> str:
    path = Path(place.application_log)
    return path.read_text() if path.exists() else ""


def pid_up(place: Place) -> int:
    path = Path(place.directory, "up")
    until(path.exists)
    return int(path.read_text())


def test_an_application_is_started_found_again_and_stopped(place: Place) -> None:
    first, second = driver(place), driver(place)
    assert first.check() == ()
    first.define()
    assert first.observe() == Observation(VmState.OFF) and first.is_off().off
    first.start(START_S)
    found = second.observe()
    assert (found.state, found.heartbeat) == (VmState.ON, Heartbeat.UNKNOWN)
    assert found.identity == str(identify(pid_up(place)))
    assert os.getsid(pid_up(place)) == pid_up(place)
    assert not second.is_off().off
    second.start(START_S)  # is up already
    assert second.observe().identity == found.identity
    with pytest.raises(VmFailed, match="cannot be saved"):
        second.save(STOP_S)
    second.stop(STOP_S)
    assert first.observe() == Observation(VmState.OFF) and first.is_off().off
    second.stop(STOP_S)
    until(lambda: "asked to stop" in log(place))
    assert re.search(r"^\d{4}-\d\d-\d\dT[\d:.]+Z application: application in ", log(place), re.MULTILINE)
    second.remove()
    assert not os.path.exists(place.state_directory)


def test_it_knows_where_it_is(place: Place) -> None:
    driver(place).start(START_S)
    pid_up(place)
    environment = json.loads(Path(place.directory, "environment").read_text())
    expected = {
        "HOTPAIR_MODULE": "web",
        "HOTPAIR_DIRECTORY": place.directory,
        "HOTPAIR_ROLE": "ALONE",
        "HOTPAIR_SERVER": "one",
        MARK: place.state_directory,
    }
    assert expected.items() <= environment.items()
    assert "PYTHONPATH" not in environment


def test_it_outlives_the_process_that_started_it(place: Place) -> None:
    code = "\n".join(
        [
            "import json, sys, os",
            "from hotpair.hyperv.driver import Place",
            "from hotpair.hyperv.command_io import CommandDriver",
            "CommandDriver(Place(**json.loads(sys.argv[1]))).start(20)",
            "os.killpg(0, 9)",
        ]
    )
    words = [sys.executable, "-c", code, json.dumps(vars(place))]
    ended = subprocess.run(words, cwd="/", start_new_session=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert driver(place).observe().state is VmState.ON
    parent = Path(f"/proc/{pid_up(place)}/stat").read_text().rpartition(")")[2].split()[1]
    assert parent != str(os.getpid())
    driver(place).turn_off()


def test_one_that_does_not_stop_goes_on_until_it_is_turned_off(place: Place) -> None:
    deaf = driver(place, "deaf")
    deaf.start(START_S)
    with pytest.raises(StopTimedOut, match="still runs"):
        deaf.stop(0.3)
    assert deaf.observe().state is VmState.STOPPING
    deaf.turn_off()
    assert deaf.is_off().off and deaf.observe() == Observation(VmState.OFF)


def test_children_and_children_that_went_away_are_killed(place: Place) -> None:
    """The second one has a session of its own: it is known by its mark alone."""
    parent = driver(place, "children")
    parent.start(START_S)
    os.kill(pid_up(place), signal.SIGKILL)
    children = [identify(int(pid)) for pid in Path(place.directory, "children").read_text().split()]
    until(lambda: identify(pid_up(place)) is None)
    assert all(child is not None and is_alive(child) for child in children)
    assert parent.observe().state is VmState.STOPPING
    assert not parent.is_off().off
    with pytest.raises(VmFailed, match="turn it off first"):
        parent.start(START_S)
    parent.turn_off()
    assert parent.is_off().off
    assert not any(child is not None and is_alive(child) for child in children)


def test_a_killed_application_is_off(place: Place) -> None:
    one = driver(place)
    one.start(START_S)
    os.kill(pid_up(place), signal.SIGKILL)
    until(lambda: one.observe() == Observation(VmState.OFF))
    one.start(START_S)
    assert one.observe().state is VmState.ON


def test_one_that_ends_at_once_has_not_started(place: Place) -> None:
    with pytest.raises(VmFailed, match="ended at once"):
        driver(place, "ends").start(START_S)
    until(lambda: "cannot go on" in log(place))
    assert driver(place).is_off().off


def test_a_program_that_cannot_be_run_says_why(place: Place) -> None:
    with pytest.raises(VmFailed, match="No such file"):
        driver(place, start=["/no/such/program"]).start(START_S)
    assert "no program /no/such/program" in driver(place, start=["/no/such/program"]).check()[0]


def test_a_daemon_is_found_by_its_pid_file(place: Place) -> None:
    daemon = driver(place, "daemon", foreground=False, pid_file="application.pid")
    Path(place.directory, "application.pid").write_text(str(os.getpid()))  # of the other server, for example
    assert daemon.observe() == Observation(VmState.OFF)
    daemon.start(START_S)
    assert daemon.observe().identity == str(identify(pid_up(place)))
    assert not daemon.is_off().off
    daemon.stop(STOP_S)
    assert daemon.is_off().off
    daemon.start(START_S)
    daemon.turn_off()
    assert daemon.is_off().off


def test_a_foreign_number_in_the_pid_file_is_left_alone(place: Place) -> None:
    """The file is mirrored: the other server's application writes it, with a number that somebody has here."""
    daemon = driver(place, "daemon", foreground=False, pid_file="application.pid")
    daemon.start(START_S)
    os.kill(pid_up(place), signal.SIGKILL)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:  # younger than the application
        Path(place.directory, "application.pid").write_text(str(other.pid))
        until(lambda: daemon.observe() == Observation(VmState.OFF))
        assert daemon.is_off().off
        daemon.turn_off()
        assert other.poll() is None


def test_what_has_ended_is_forgotten(place: Place) -> None:
    """Its pid, and the session of that number, belong to others one day."""
    one = driver(place)
    ends: list[Callable[[], None]] = [one.turn_off, lambda: one.stop(STOP_S)]
    for end in ends:
        one.start(START_S)
        end()
        run = Runs(place).read()
        assert run is not None and run.process is None


def test_the_check_is_the_heartbeat(place: Place) -> None:
    state = Path(place.lock).parent / "code"
    state.write_text("1")
    checked = driver(place, check=f"exit $(cat {shlex.quote(str(state))})")
    with pytest.raises(StartTimedOut, match="is not up"):
        checked.start(0.2)
    found = checked.observe()
    assert (found.state, found.heartbeat) == (VmState.STARTING, Heartbeat.LOST)
    checked.turn_off()
    state.write_text("0")
    with pytest.raises(StillRunning, match="its check says up"):
        checked.turn_off()
    assert not checked.is_off().off
    elsewhere = checked.observe()
    assert elsewhere.state is VmState.ON and "by its check only" in elsewhere.detail
    state.write_text("3")
    assert checked.is_off().off
    state.write_text("4")
    assert "says unknown" in checked.is_off().detail and not checked.is_off().off
    with pytest.raises(VmFailed, match="is not known"):
        checked.observe()


def test_a_check_decides_when_it_is_up(place: Place) -> None:
    checked = driver(place, check=["/bin/sh", "-c", 'test -e "$HOTPAIR_DIRECTORY/up"'])
    checked.start(START_S)
    found = checked.observe()
    assert (found.state, found.heartbeat, found.heartbeat_age_s) == (VmState.ON, Heartbeat.OK, 0.0)
    os.unlink(f"{place.directory}/up")
    found = checked.observe()
    assert (found.state, found.heartbeat) == (VmState.ON, Heartbeat.LOST)
    checked.stop(STOP_S)


def test_a_check_that_hangs_says_nothing(place: Place) -> None:
    hanging = driver(place, check="sleep 1000", check_limit_s=1)
    with pytest.raises(VmFailed, match="no answer within 1 s"):
        hanging.observe()
    assert not hanging.is_off().off


def test_commands_of_ones_own_stop_it(place: Place) -> None:
    stop = 'kill -9 $(cat "$HOTPAIR_DIRECTORY/up"); echo stopped by command'
    one = driver(place, "deaf", stop=stop, force_stop="echo forced")
    one.start(START_S)
    pid_up(place)
    one.stop(STOP_S)
    assert one.is_off().off
    one.turn_off()
    assert "stop: stopped by command" in log(place) and "force_stop: forced" in log(place)


def test_what_was_started_and_not_written_down_is_found(place: Place) -> None:
    one = driver(place)
    one.start(START_S)
    runs = Runs(place)
    run = runs.read()
    assert run is not None
    runs.write(replace(run, process=None))
    assert one.observe().identity == str(identify(pid_up(place)))
    os.unlink(f"{place.state_directory}/run.json")
    assert not one.is_off().off
    one.turn_off()
    assert one.is_off().off


def test_a_reused_pid_is_not_taken_for_it(place: Place) -> None:
    one = driver(place)
    one.start(START_S)
    runs = Runs(place)
    run = runs.read()
    assert run is not None and run.process is not None
    one.turn_off()
    runs.write(replace(run, process=replace(run.process, pid=os.getpid())))  # this very process has that pid now
    assert one.observe() == Observation(VmState.OFF) and one.is_off().off
    one.turn_off()  # and is not killed


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    identity = identify(child.pid)
    assert identity is not None and is_alive(identity)
    assert child.stdin is not None
    child.stdin.close()
    until(lambda: not is_alive(identity))
    assert ") Z " in Path(f"/proc/{child.pid}/stat").read_text()  # it is still there, until we ask for its code
    assert child.wait() == 0


def test_another_modules_place_is_refused(place: Place) -> None:
    one = driver(place)
    one.start(START_S)
    other = driver(replace(place, module="mail"))
    for action in (other.observe, other.turn_off, other.is_off, lambda: other.start(START_S), lambda: other.stop(1)):
        with pytest.raises(ForeignVm, match="used for the module web"):
            action()
    assert one.observe().state is VmState.ON


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "start: it is missing"),
        ({"start": []}, "start: [] is not accepted: give a list of 1 to 64 words, or a line for the shell"),
        ({"start": "true", "foreground": False}, "needs a pid_file or a check"),
        ({"start": "true", "pid_file": "a.pid"}, "it is for foreground = false"),
        ({"start": "true", "stopp": "true"}, "did you mean stop?"),
    ],
)
def test_options_that_cannot_be_used(place: Place, options: dict[str, object], found: str) -> None:
    wrong = CommandDriver(replace(place, options=options))
    assert found in wrong.check()[0]
    with pytest.raises(DriverUnusable):
        wrong.start(START_S)
    assert not wrong.is_off().off


def test_the_application_log_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "log"
    small = ApplicationLog(str(path), largest_bytes=1000)
    for number in range(100):
        small.append("x", f"line {number}\nwith \x1b[31mcolour")
    assert path.stat().st_size + (tmp_path / "log.1").stat().st_size < 2200
    assert "line 99" in path.read_text() + (tmp_path / "log.1").read_text()
    assert "\x1b" not in (tmp_path / "log.1").read_text()
