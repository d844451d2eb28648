"""The driver "qemu" with a real QEMU and a real guest, without acceleration."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hotpair.hyperv import qemu_saved_io
from hotpair.hyperv.driver import Heartbeat, Observation, Place, VmState
from hotpair.hyperv.errors import (
    Busy,
    DriverUnusable,
    ForeignVm,
    StartTimedOut,
    StopTimedOut,
    VmFailed,
)
from hotpair.hyperv.processes_io import marked
from hotpair.hyperv.qemu_io import QemuDriver
from hotpair.hyperv.runs_io import Runs
from tests.guest import APPEND, Guest, build, read_sign, wait_for_sign

DESCRIPTION = """
memory = "128m"
cpus = 1
kernel = "kernel"
initrd = "initrd"
append = "{append}"

[[disks]]
file = "disk.raw"
"""
START_S = 60.0
STOP_S = 60.0


@pytest.fixture(scope="session")
def guest() -> Guest:
    return build(Path(tempfile.gettempdir()) / f"hotpair-guest-{os.getuid()}")


@pytest.fixture
def place(guest: Guest) -> Iterator[Place]:
    """A place with a guest in it. Nothing of it is left running."""
    with tempfile.TemporaryDirectory(prefix="hotpair-qemu-", dir="/var/tmp") as base:
        directory = Path(base, "vm")
        directory.mkdir()
        (directory / "kernel").symlink_to(guest.kernel)
        (directory / "initrd").symlink_to(guest.initrd)
        with (directory / "disk.raw").open("xb") as disk:
            disk.truncate(4 << 20)
        describe(directory)
        made = Place(
            module="web",
            directory=str(directory),
            state_directory=f"{base}/state",
            options={"accelerator": "tcg"},
            application_log=f"{base}/application.log",
            lock=f"{base}/lock",
        )
        try:
            yield made
        finally:
            QemuDriver(made).turn_off(30)
            assert marked(made.state_directory) == []


def describe(directory: Path, more: str = "", kernel_line: str = "") -> None:
    (directory / "vm.toml").write_text(more + DESCRIPTION.format(append=f"{APPEND} {kernel_line}".strip()))


def disk(place: Place) -> Path:
    return Path(place.directory, "disk.raw")


def pid_of(place: Place) -> int:
    run = Runs(place).read()
    assert run is not None and run.process is not None
    return run.process.pid


def test_a_guest_is_started_found_again_and_shut_down(place: Place) -> None:
    first, second = QemuDriver(place), QemuDriver(place)
    assert first.check() == ()
    first.define()
    assert first.observe() == Observation(VmState.OFF)
    assert first.is_off().off
    first.start(START_S)
    wait_for_sign(disk(place))
    found = second.observe()
    assert (found.state, found.identity) == (VmState.ON, first.observe().identity)
    assert "without acceleration" in found.detail
    assert not second.is_off().off
    assert os.getsid(pid_of(place)) != os.getsid(0)
    second.start(START_S)  # is on already
    assert first.observe().identity == found.identity
    second.stop(STOP_S)
    assert first.observe() == Observation(VmState.OFF)
    assert first.is_off().off and marked(place.state_directory) == []
    second.stop(STOP_S)  # is off already
    second.remove()
    assert not os.path.exists(place.state_directory)


def test_it_outlives_the_process_that_started_it(place: Place) -> None:
    code = "\n".join(
        [
            "import json, sys, os",
            "from hotpair.hyperv.driver import Place",
            "from hotpair.hyperv.qemu_io import QemuDriver",
            "QemuDriver(Place(**json.loads(sys.argv[1]))).start(60)",
            "os.killpg(0, 9)",
        ]
    )
    words = [sys.executable, "-c", code, json.dumps(vars(place))]
    process = subprocess.run(words, cwd="/", start_new_session=True, check=False)
    assert process.returncode == -signal.SIGKILL
    before = wait_for_sign(disk(place))
    assert QemuDriver(place).observe().state is VmState.ON
    assert wait_for_sign(disk(place), before).boot == before.boot


def test_a_guest_that_ignores_the_button_goes_on(place: Place) -> None:
    describe(Path(place.directory), kernel_line="button=ignored")
    driver = QemuDriver(place)
    driver.start(START_S)
    before = wait_for_sign(disk(place))
    with pytest.raises(StopTimedOut, match="still runs"):
        driver.stop(0.5)
    assert driver.observe().state is VmState.ON
    assert wait_for_sign(disk(place), before).boot == before.boot
    driver.turn_off()
    assert driver.is_off().off


def test_a_killed_qemu_is_off(place: Place) -> None:
    driver = QemuDriver(place)
    driver.start(START_S)
    os.kill(pid_of(place), signal.SIGSTOP)
    hanging = driver.observe()
    assert hanging.state is VmState.ON and "does not answer" in hanging.detail
    os.kill(pid_of(place), signal.SIGKILL)
    driver.turn_off()
    assert driver.observe() == Observation(VmState.OFF)
    driver.start(START_S)
    assert driver.observe().state is VmState.ON


def test_a_saved_guest_goes_on_counting(place: Place) -> None:
    driver = QemuDriver(place)
    driver.start(START_S)
    saved = wait_for_sign(disk(place), more=3)
    driver.save(STOP_S)
    assert driver.is_off().off
    saved = read_sign(disk(place)) or saved
    names = {"vm.toml", "kernel", "initrd", "disk.raw"}
    assert set(os.listdir(place.directory)) == names | {"saved-state", "saved-state.json"}
    driver.start(START_S)
    now = wait_for_sign(disk(place), saved)
    assert now.boot == saved.boot and now.count > saved.count
    assert set(os.listdir(place.directory)) == names  # used up
    assert driver.observe().state is VmState.ON
    driver.save(STOP_S)  # and again
    QemuDriver(place).start(START_S)
    again = wait_for_sign(disk(place), now)
    assert again.boot == now.boot
    driver.stop(STOP_S)


def save(place: Place) -> str:
    """A saved guest; its boot."""
    driver = QemuDriver(place)
    driver.start(START_S)
    boot = wait_for_sign(disk(place)).boot
    driver.save(STOP_S)
    return boot


def test_a_state_does_not_fit_a_disk_that_was_changed(place: Place) -> None:
    boot = save(place)
    with disk(place).open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"from elsewhere")
    driver = QemuDriver(place)
    sign = read_sign(disk(place))
    driver.start(START_S)
    assert "started without its saved state: a disk was changed" in driver.observe().detail
    assert wait_for_sign(disk(place), sign).boot != boot
    assert "saved-state" not in os.listdir(place.directory)


def test_a_state_is_used_once_whatever_happens(place: Place) -> None:
    """The moment at which its document goes is before the guest runs: a copy of the rest is worth nothing."""
    boot = save(place)
    os.unlink(f"{place.directory}/saved-state.json")
    sign = read_sign(disk(place))
    QemuDriver(place).start(START_S)
    assert wait_for_sign(disk(place), sign).boot != boot


def test_a_damaged_state_is_set_aside(place: Place) -> None:
    boot = save(place)
    with open(f"{place.directory}/saved-state", "r+b") as file:
        file.seek(0)
        file.write(b"x" * 4096)
    driver = QemuDriver(place)
    sign = read_sign(disk(place))
    driver.start(START_S)
    assert "QEMU cannot read it" in driver.observe().detail
    assert wait_for_sign(disk(place), sign).boot != boot
    assert qemu_saved_io.REFUSED in os.listdir(place.directory)


def test_a_state_is_kept_when_it_is_turned_off_while_it_is_read(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = save(place)
    reader = Path(place.lock).parent / "cat"
    reader.write_text(f"#!/bin/sh\ntouch {reader}.reads\nexec sleep 1000\n")
    reader.chmod(0o755)
    monkeypatch.setenv("PATH", str(reader.parent), prepend=":")
    said: list[str] = []

    def start() -> None:
        try:
            QemuDriver(place).start(START_S)
        except VmFailed as error:
            said.append(str(error))

    thread = threading.Thread(target=start)
    thread.start()
    end = time.monotonic() + START_S
    while not Path(f"{reader}.reads").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    found = QemuDriver(place).observe()
    assert found.state is VmState.STARTING and "saved state is being read" in found.detail
    assert not QemuDriver(place).is_off().off
    QemuDriver(place).turn_off()
    thread.join()
    assert said == ["it was turned off while its saved state was read; the state is kept"]
    assert QemuDriver(place).is_off().off
    reader.unlink()
    sign = read_sign(disk(place))
    QemuDriver(place).start(START_S)
    assert wait_for_sign(disk(place), sign).boot == boot


@pytest.mark.parametrize("phase", ["saving", "restoring"])
def test_what_was_broken_off_is_gone_on_with(place: Place, phase: str) -> None:
    """hotpair died in the middle: the guest is held, and nobody lets it go on but the next order."""
    driver = QemuDriver(place)
    driver.start(START_S)
    before = wait_for_sign(disk(place))
    runs = Runs(place)
    run = runs.read()
    assert run is not None
    with_qmp(place, "stop")
    runs.phase(run, phase)
    assert driver.observe().state is (VmState.STOPPING if phase == "saving" else VmState.STARTING)
    driver.start(START_S)
    assert driver.observe().state is VmState.ON
    now = wait_for_sign(disk(place), before)
    assert (now.boot == before.boot) is (phase == "saving")  # one that was not restored completely starts anew
    if phase == "saving":
        with_qmp(place, "stop")
        runs.phase(run, phase)
        driver.stop(STOP_S)


@pytest.mark.parametrize("reads", ["head -c 1000 >/dev/null", "/bin/cat"])
def test_a_guest_that_cannot_be_saved_goes_on(place: Place, reads: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full, at once or at the very end: what writes the state fails."""
    writer = Path(place.lock).parent / "cat"
    writer.write_text(f"#!/bin/sh\n{reads}\nexit 1\n")
    writer.chmod(0o755)
    monkeypatch.setenv("PATH", str(writer.parent), prepend=":")
    driver = QemuDriver(place)
    driver.start(START_S)
    before = wait_for_sign(disk(place))
    with pytest.raises(VmFailed, match="the guest goes on"):
        driver.save(STOP_S)
    assert driver.observe().state is VmState.ON
    assert wait_for_sign(disk(place), before).boot == before.boot
    with pytest.raises(StopTimedOut, match="the guest goes on"):
        driver.save(0.0)
    assert wait_for_sign(disk(place), read_sign(disk(place))).boot == before.boot
    driver.stop(STOP_S)


def test_the_guests_agent_is_its_heartbeat(place: Place) -> None:
    driver = QemuDriver(place)
    driver.start(START_S)
    assert driver.observe().heartbeat is Heartbeat.UNKNOWN
    wait_for_sign(disk(place))
    for _ in range(20):  # each takes a second at most
        if (found := driver.observe()).heartbeat is Heartbeat.OK:
            break
    assert (found.heartbeat, found.heartbeat_age_s) == (Heartbeat.OK, 0.0)
    with_qmp(place, "stop")
    lost = driver.observe()
    assert lost.heartbeat is Heartbeat.LOST and lost.heartbeat_age_s is not None and lost.heartbeat_age_s > 0
    assert lost.state is VmState.ON and "paused" in lost.detail
    found_again = QemuDriver(place).observe()
    assert (found_again.heartbeat, found_again.heartbeat_age_s) == (Heartbeat.LOST, None)


def with_qmp(place: Place, command: str) -> None:
    from hotpair.hyperv.qmp_io import Qmp

    with Qmp(f"{place.state_directory}/qmp.sock") as qmp:
        qmp.call(command)


def test_two_starts_at_once(place: Place) -> None:
    results: list[str] = []

    def start() -> None:
        try:
            QemuDriver(place).start(START_S)
            results.append("started")
        except Busy:
            results.append("busy")

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "started" in results and set(results) <= {"started", "busy"}
    running = marked(place.state_directory)
    assert [process.pid for process in running] == [pid_of(place)]


def test_what_was_started_and_not_written_down_is_found(place: Place) -> None:
    """The process that started it died before it knew the pid."""
    driver = QemuDriver(place)
    driver.start(START_S)
    runs = Runs(place)
    run = runs.read()
    assert run is not None
    runs.write(replace(run, process=None))
    assert driver.observe().identity == str(run.process)
    assert not driver.is_off().off
    os.unlink(f"{place.state_directory}/run.json")
    with pytest.raises(ForeignVm, match="turn it off"):
        driver.observe()
    assert not driver.is_off().off
    driver.turn_off()
    assert driver.is_off().off


def test_another_modules_place_is_refused(place: Place) -> None:
    driver = QemuDriver(place)
    driver.start(START_S)
    other = QemuDriver(replace(place, module="mail"))
    for action in (other.observe, other.turn_off, other.is_off, lambda: other.start(START_S), lambda: other.stop(1)):
        with pytest.raises(ForeignVm, match="used for the module web"):
            action()
    assert driver.observe().state is VmState.ON
    runs = Runs(place)
    run = runs.read()
    assert run is not None
    runs.write(replace(run, module="mail"))  # now only QEMU itself knows better
    for action in (other.observe, lambda: other.stop(1), lambda: other.save(1)):
        with pytest.raises(ForeignVm, match="is called web, and not mail"):
            action()
    runs.write(run)
    assert driver.observe().state is VmState.ON


def test_a_changed_description_is_for_the_next_start(place: Place) -> None:
    driver = QemuDriver(place)
    driver.start(START_S)
    describe(Path(place.directory), "cpus = 2\n".replace("cpus", "# cpus"))
    with pytest.raises(VmFailed, match="older description"):
        driver.start(START_S)
    with pytest.raises(VmFailed, match="description was changed"):
        driver.save(STOP_S)
    assert driver.observe().state is VmState.ON


def test_what_qemu_says_is_handed_on(place: Place) -> None:
    describe(Path(place.directory), 'arguments = ["-device", "no-such-device"]\n')
    with pytest.raises(VmFailed, match="no-such-device"):
        QemuDriver(place).start(START_S)
    assert QemuDriver(place).is_off().off


def test_a_start_that_hangs_is_ended(place: Place) -> None:
    program = Path(place.lock).parent / "qemu"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    driver = QemuDriver(replace(place, options={"accelerator": "tcg", "program": str(program)}))
    with pytest.raises(StartTimedOut):
        driver.start(0.5)
    assert driver.is_off().off


def test_a_disk_in_use_is_refused(place: Place) -> None:
    driver = QemuDriver(place)
    driver.start(START_S)
    elsewhere = replace(place, state_directory=place.state_directory + "2", lock=place.lock + "2")
    with pytest.raises(VmFailed, match="lock"):
        QemuDriver(elsewhere).start(START_S)
    assert QemuDriver(elsewhere).is_off().off
    assert driver.observe().state is VmState.ON


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ('memory = "1g\n', ["vm.toml: this is not TOML", "line 1, column 13"]),
        ('memori = "1g"\nkernel = "kernel"\n', ["vm.toml, line 1: memori", "did you mean memory?"]),
        ('memory = "1x"\nkernel = "kernel"\n', ["line 1: memory", "is not accepted: give a number of bytes"]),
        ('memory = "1g"\n', ["disks: there is nothing to start from"]),
        ('memory = "1g"\n[[disks]]\nfile = "../x"\n', ["line 3: disks[1].file", "below the module's directory"]),
        ('memory = "1g"\n[[disks]]\nfile = "gone.raw"\n', ["gone.raw cannot be used: No such file"]),
        ('memory = "1g"\n[[disks]]\nfile = "out.raw"\n', ["leads out of the module's directory"]),
        ('memory = "1g"\nkernel="kernel"\n[[nics]]\nkind = "bridge"\n', ["nics[1].name: give the interface's name"]),
    ],
)
def test_a_description_that_cannot_be_used(place: Place, content: str, found: list[str]) -> None:
    Path(place.directory, "vm.toml").write_text(content)
    Path(place.directory, "out.raw").symlink_to("/etc/passwd")
    driver = QemuDriver(place)
    problems = "\n".join(driver.check())
    assert all(part in problems for part in found), problems
    with pytest.raises(DriverUnusable):
        driver.start(START_S)


def test_options_that_cannot_be_used(place: Place) -> None:
    for options, found in [
        ({"program": "no-qemu-here"}, "install QEMU"),
        ({"accelerator": "fast"}, "accelerator"),
        ({"description": "other.toml"}, "other.toml cannot be read"),
    ]:
        (problem,) = QemuDriver(replace(place, options=options)).check()
        assert found in problem
    (problem,) = QemuDriver(replace(place, state_directory="/tmp/" + "x" * 100)).check()
    assert "too long" in problem
