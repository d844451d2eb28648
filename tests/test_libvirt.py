"""The driver "libvirt": with a virsh that accepts only the words it should be given, and with the real libvirt.

The real one is started by the test, as another user, without systemd: `qemu:///session`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from hotpair.hyperv.driver import Heartbeat, Observation, Place, VmState
from hotpair.hyperv.errors import DriverUnusable, ForeignVm, StillRunning, StopTimedOut, VmFailed
from hotpair.hyperv.libvirt_io import LibvirtDriver
from hotpair.hyperv.libvirt_values import parse_domain, parse_state
from hotpair.hyperv.processes_io import with_words
from hotpair.hyperv.qemu_saved import DiskState, Saved, to_document
from tests.guest import APPEND, build, read_sign, wait_for_sign

UUID = "2b3c0f6e-51f0-4d0b-9b57-70b2b2a5f7a1"
DOMAIN = """<domain type='qemu'>
  <name>web</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{directory}/kernel</kernel>
    <initrd>{directory}/initrd</initrd>
    <cmdline>{append}</cmdline>
  </os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw' cache='none'/>
      <source file='{directory}/disk.raw'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>
"""
START_S = 60.0
STOP_S = 60.0


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="hotpair-libvirt-", dir="/var/tmp") as base:
        os.chmod(base, 0o755)
        directory = Path(base, "vm")
        directory.mkdir()
        (directory / "disk.raw").write_bytes(b"")
        os.truncate(directory / "disk.raw", 4 << 20)
        write_domain(directory)
        yield Place(
            module="web",
            directory=str(directory),
            state_directory=f"{base}/state",
            options={},
            application_log=f"{base}/application.log",
            lock=f"{base}/lock",
        )


def write_domain(directory: Path, more: str = "") -> None:
    content = DOMAIN.format(uuid=UUID, directory=directory, append=f"{APPEND} {more}".strip())
    (directory / "domain.xml").write_text(content)


# ---- a virsh that is strict

STRICT = """#!{python}
import json, os, sys
path = {script!r}
script = json.load(open(path))
words = sys.argv[1:]
if not script or ["--quiet", "--connect", "qemu:///system", *script[0][0]] != words or os.environ["LC_ALL"] != "C":
    open({wrong!r}, "a").write(f"{{words}} instead of {{script[:1]}}\\n")
    sys.exit("fake virsh: unexpected")
json.dump(script[1:], open(path, "w"))
code, output, errors = script[0][1]
print(output)
print(errors, file=sys.stderr)
sys.exit(code)
"""

Answer = tuple[int, str, str]
FINE: Answer = (0, "", "")
OFF: Answer = (0, "shut off (unknown)", "")
ON: Answer = (0, "running (booted)", "")
UNKNOWN: Answer = (1, "", "error: failed to get domain 'web'")
KNOWN: Answer = (0, UUID, "")
DOWN: Answer = (1, "", "error: failed to connect to the hypervisor\nerror: Failed to connect socket to '/x'")
NO_AGENT: Answer = (1, "", "error: Guest agent is not responding: QEMU guest agent is not connected")
STATE = ["domstate", "--reason", "web"]
WHOSE = ["domuuid", "web"]
AGENT = ["qemu-agent-command", "web", "--timeout", "1", '{"execute":"guest-ping"}']


@dataclass
class Script:
    """Plays virsh for a driver; `end` says whether all that was expected was asked, and nothing else."""

    place: Place

    def __post_init__(self) -> None:
        base = Path(self.place.lock).parent
        self._script, self._wrong = base / "script", base / "wrong"
        program = base / "virsh"
        program.write_text(STRICT.format(python=sys.executable, script=str(self._script), wrong=str(self._wrong)))
        program.chmod(0o755)
        self.driver = LibvirtDriver(replace(self.place, options={"program": str(program)}))

    def expect(self, *steps: tuple[list[str], Answer]) -> LibvirtDriver:
        self._script.write_text(json.dumps(steps))
        return self.driver

    def end(self) -> None:
        wrong = self._wrong.read_text() if self._wrong.exists() else ""
        assert (wrong, json.loads(self._script.read_text())) == ("", [])


@pytest.fixture
def script(place: Place) -> Script:
    return Script(place)


def define(script: Script) -> list[tuple[list[str], Answer]]:
    xml = f"{script.place.directory}/domain.xml"
    return [(WHOSE, UNKNOWN), (["define", xml], FINE), (["autostart", "--disable", "web"], FINE)]


def start(script: Script) -> LibvirtDriver:
    steps = [(STATE, UNKNOWN), *define(script), (["start", "--force-boot", "web"], FINE)]
    driver = script.expect(*steps)
    driver.start(5)
    script.end()
    return driver


def test_it_is_defined_and_started(script: Script) -> None:
    driver = start(script)
    script.expect((STATE, ON), (WHOSE, KNOWN)).start(5)  # is on already
    script.end()
    script.expect((STATE, ON), (WHOSE, KNOWN), (AGENT, NO_AGENT))
    assert driver.observe() == Observation(VmState.ON)
    script.expect((STATE, ON), (WHOSE, KNOWN), (AGENT, (0, '{"return":{}}', "")))
    assert driver.observe().heartbeat is Heartbeat.OK
    script.expect((STATE, ON), (WHOSE, KNOWN), (AGENT, NO_AGENT))
    lost = driver.observe()
    assert lost.heartbeat is Heartbeat.LOST and lost.heartbeat_age_s is not None
    script.end()


def test_it_is_asked_to_shut_down_and_found_off(script: Script) -> None:
    start(script)
    off: Answer = (0, "shut off (shutdown)", "")
    script.expect((STATE, ON), (["shutdown", "web"], FINE), (STATE, ON), (STATE, off)).stop(5)
    script.end()


def test_a_guest_that_does_not_shut_down_goes_on(script: Script) -> None:
    start(script)
    driver = script.expect((STATE, ON), (["shutdown", "web"], FINE), *[(STATE, ON)] * 30)
    with pytest.raises(StopTimedOut):
        driver.stop(0.5)


def test_it_is_turned_off_and_only_then_off(script: Script) -> None:
    driver = start(script)
    crashed: Answer = (0, "shut off (destroyed)", "")
    script.expect(
        (WHOSE, KNOWN), (STATE, ON), (["destroy", "web"], FINE), (WHOSE, KNOWN), (STATE, crashed), (STATE, crashed)
    ).turn_off(5)
    script.end()
    script.expect((WHOSE, KNOWN), (STATE, ON), (["destroy", "web"], FINE), *[(WHOSE, KNOWN), (STATE, ON)])
    with pytest.raises(StillRunning):
        driver.turn_off(0.5)


def test_a_libvirt_that_cannot_be_reached_proves_nothing(script: Script) -> None:
    driver = start(script)
    script.expect((STATE, DOWN))
    proof = driver.is_off()
    assert not proof.off and "start libvirtd" in proof.detail
    script.expect((STATE, DOWN))
    with pytest.raises(VmFailed, match="cannot be reached"):
        driver.observe()
    script.end()


def test_where_libvirt_does_not_answer_the_process_is_killed(script: Script) -> None:
    driver = start(script)
    qemu = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()", "qemu", "-uuid", UUID])
    try:
        script.expect((STATE, OFF))
        assert not driver.is_off().off  # whatever libvirt says
        script.expect((WHOSE, DOWN), (WHOSE, DOWN), (STATE, OFF))
        driver.turn_off(5)
        assert qemu.wait(5) == -signal.SIGKILL
    finally:
        qemu.kill()
        qemu.wait()
    script.end()


def test_another_domain_of_that_name_is_refused(script: Script) -> None:
    other: Answer = (0, "00000000-51f0-4d0b-9b57-70b2b2a5f7a1", "")
    driver = script.expect((STATE, OFF), (WHOSE, other))
    with pytest.raises(ForeignVm, match="another domain called web"):
        driver.start(5)
    script.expect((STATE, ON))
    with pytest.raises(ForeignVm):
        driver.observe()
    script.expect((WHOSE, other))
    with pytest.raises(ForeignVm):
        driver.turn_off(5)
    script.end()


def test_it_is_saved_and_restored_before_it_runs(script: Script) -> None:
    driver = start(script)
    directory = Path(script.place.directory)
    saving = ["save", "web", f"{directory}/saved-state.part"]
    running = [(["domjobabort", "web"], FINE), (["resume", "web"], (1, "", "error: already running")), (STATE, ON)]
    script.expect((STATE, ON), (saving, (1, "", "error: no space left")), *running)
    with pytest.raises(VmFailed, match="no space left; the guest goes on"):
        driver.save(5)
    script.end()
    (directory / "saved-state").write_text("memory")
    parsed, _ = parse_domain((directory / "domain.xml").read_text(), "web", str(directory), "domain.xml")
    assert parsed is not None
    disk = (directory / "disk.raw").stat()
    disks = (DiskState("disk.raw", disk.st_size, disk.st_mtime_ns),)
    document = to_document(Saved("web", parsed.digest, "qemu", len("memory"), disks))
    (directory / "saved-state.json").write_text(json.dumps(document))
    restore = ["restore", "--paused", f"{directory}/saved-state"]
    script.expect((STATE, OFF), *define(script), (restore, FINE), (["resume", "web"], FINE)).start(5)
    script.end()
    assert sorted(os.listdir(directory)) == ["disk.raw", "domain.xml"]


def test_it_is_forgotten_when_it_is_off(script: Script) -> None:
    driver = start(script)
    script.expect((STATE, ON))
    with pytest.raises(VmFailed, match="is not off"):
        driver.remove()
    undefine = ["undefine", "--keep-nvram", "web"]
    script.expect((STATE, OFF), (WHOSE, KNOWN), (STATE, OFF), (undefine, FINE)).remove()
    script.end()
    assert not os.path.exists(script.place.state_directory)


@pytest.mark.parametrize(
    ("replaced", "by", "found"),
    [
        ("<devices>", "<devics>", "line 20, column 5: this is not XML: mismatched tag"),
        ("<name>web</name>", "<name>mail</name>", "give the module's name, web"),
        (f"<uuid>{UUID}</uuid>", "", "give a <uuid>"),
        ("DIRECTORY/disk.raw", "/dev/null", "/dev/null is not in the module's directory"),
        ("DIRECTORY/disk.raw", "DIRECTORY/gone.raw", "gone.raw is missing"),
        ("DIRECTORY/disk.raw", "DIRECTORY/out.raw", "leads out of the module's directory"),
        ("type='file'", "type='block'", 'a <disk type="block"> would not be mirrored'),
    ],
)
def test_a_description_that_cannot_be_used(script: Script, replaced: str, by: str, found: str) -> None:
    directory = script.place.directory
    path = Path(directory, "domain.xml")
    Path(directory, "out.raw").symlink_to("/dev/zero")
    content = path.read_text()
    changed = content.replace(replaced.replace("DIRECTORY", directory), by.replace("DIRECTORY", directory))
    assert changed != content
    path.write_text(changed)
    problems = script.driver.check()
    assert found in "\n".join(problems)
    with pytest.raises(DriverUnusable):
        script.driver.start(5)


def test_what_virsh_says_of_a_state() -> None:
    found = {
        output: (state.state, state.detail) if (state := parse_state(output)) else None
        for output in [
            "running (booted)\n",
            "paused (saving)",
            "paused (user)",
            "in shutdown",
            "shut off (saved)",
            "läuft",
        ]
    }
    assert found == {
        "running (booted)\n": (VmState.ON, ""),
        "paused (saving)": (VmState.STOPPING, "the state is being saved"),
        "paused (user)": (VmState.ON, "the guest is held: user"),
        "in shutdown": (VmState.STOPPING, ""),
        "shut off (saved)": (VmState.OFF, ""),
        "läuft": None,
    }


# ---- the real libvirt


@pytest.fixture
def libvirt() -> Iterator[str]:
    """The address of a libvirt of its own; the whole of it is gone afterwards."""
    if shutil.which("libvirtd") is None or os.geteuid() != 0:
        pytest.skip("needs libvirtd, and root to start it as another user")
    with tempfile.TemporaryDirectory(prefix="hp-", dir="/var/tmp") as base:
        environment = {"PATH": os.environ["PATH"], "HOME": base}
        # Short names: there are sockets deep below them, and a socket's path has 107 characters at most.
        for name in ("RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME"):
            environment[f"XDG_{name}"] = f"{base}/{name[0:2]}"
            os.mkdir(f"{base}/{name[0:2]}", 0o700)
            shutil.chown(f"{base}/{name[0:2]}", "nobody")
        shutil.chown(base, "nobody")
        with open(f"{base}/log", "wb") as log:
            daemon = subprocess.Popen(
                ["libvirtd", "--timeout", "300"],
                env=environment,
                stdout=log,
                stderr=log,
                user="nobody",
                group="nogroup",
                extra_groups=[],
                cwd="/",
                start_new_session=True,
            )
        try:
            socket = Path(base, "RU", "libvirt", "libvirt-sock")
            end = time.monotonic() + 20
            while not socket.exists():
                assert daemon.poll() is None and time.monotonic() < end, Path(base, "log").read_text()
                time.sleep(0.05)
            yield f"qemu+unix:///session?socket={socket}"
        finally:
            daemon.terminate()
            daemon.wait(20)


@pytest.mark.timeout(300)
def test_a_guest_under_the_real_libvirt(libvirt: str, place: Place) -> None:
    guest = build(Path(tempfile.gettempdir()) / f"hotpair-guest-{os.getuid()}")
    directory = Path(place.directory)
    for name, source in (("kernel", guest.kernel), ("initrd", guest.initrd)):
        shutil.copyfile(source, directory / name)
    for path in (directory, *directory.iterdir()):
        shutil.chown(path, "nobody")
    place = replace(place, options={"uri": libvirt})
    driver, disk = LibvirtDriver(place), directory / "disk.raw"
    try:
        assert driver.check() == ()
        driver.define()
        assert driver.observe() == Observation(VmState.OFF)
        driver.start(START_S)
        first = wait_for_sign(disk)
        found = LibvirtDriver(place).observe()
        assert found.state is VmState.ON and found.identity
        assert not driver.is_off().off
        driver.save(STOP_S)
        assert driver.is_off().off and (directory / "saved-state.json").exists()
        saved = read_sign(disk)
        assert saved is not None and saved.boot == first.boot
        driver.start(START_S)
        assert wait_for_sign(disk, saved).boot == first.boot
        assert not (directory / "saved-state").exists()
        assert driver.observe().identity not in ("", found.identity)
        driver.stop(STOP_S)
        assert driver.is_off().off
        driver.start(START_S)
        driver.turn_off()
        assert driver.observe() == Observation(VmState.OFF)
        driver.remove()
        assert driver.is_off().off
    finally:
        for process in with_words("-uuid", UUID):
            os.kill(process.pid, signal.SIGKILL)
