"""Each probe before the real thing: listeners, processes, interfaces, file systems, commands that hang."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hotpair.actors.probes_io import Interface, command, disk_space, ping, probe_of, process, tcp
from hotpair.actors.vm_checks import Seen, guest_heartbeat, vm_state
from hotpair.cluster import configuration_tables as tables
from hotpair.cluster.checker_rules import Action
from hotpair.cluster.checks import HERE_ONLY, Finding
from hotpair.cluster.configuration import Checker
from hotpair.cluster.ping_io import may_ping
from hotpair.hyperv.driver import Heartbeat, Observation, VmState

LIMIT_S = 5.0
UP, DOWN, UNKNOWN = Finding.UP, Finding.DOWN, Finding.UNKNOWN

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
needs_icmp = pytest.mark.skipif(not may_ping(), reason="may not send ICMP echo")


# ---- tcp, ping


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_listened_on(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert tcp(f"{host}:{port}", LIMIT_S).finding is UP
    found = tcp(f"{host}:{port}", LIMIT_S)
    assert found.finding is DOWN and "Connection refused" in found.detail


def test_a_port_that_swallows_everything_is_down_in_time() -> None:
    with socket.socket() as listener:  # its queue is full: the kernel answers no more connections
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        for one in fillers:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        began = time.monotonic()
        found = tcp(f"127.0.0.1:{port}", 0.5)
        assert time.monotonic() - began < 3
        assert (found.finding, "no answer in time" in found.detail) == (DOWN, True)
        for one in fillers:
            one.close()


@pytest.mark.parametrize("look", [lambda host: tcp(f"{host}:80", 1.0), lambda host: ping(host, 1.0)])
def test_a_name_that_nobody_resolves_says_nothing_about_the_service(look: object) -> None:
    found = look("no-such-host.invalid")  # type: ignore[operator]
    assert found.finding is UNKNOWN and "resolved" in found.detail


@needs_icmp
def test_ping() -> None:
    assert ping("127.0.0.1", LIMIT_S).finding is UP
    assert ping("localhost", LIMIT_S).finding is UP
    assert ping("0.0.0.0", 0.6).finding is UNKNOWN


# ---- process


def test_a_process_by_its_name_its_script_and_its_path(tmp_path: Path) -> None:
    program = tmp_path / "a-daemon-with-a-long-name"
    program.symlink_to("/bin/sleep")
    script = tmp_path / "worker.py"
    script.write_text("import time; print('up', flush=True); time.sleep(600)")
    for words, names in (
        ([str(program), "600"], [program.name, str(program)]),
        ([sys.executable, str(script)], ["worker.py", str(script)]),
    ):
        running = subprocess.Popen(words, stdout=subprocess.PIPE)
        try:
            if words[0] == sys.executable:
                assert running.stdout is not None and running.stdout.readline() == b"up\n"
            for name in names:
                assert process(name).finding is UP, name
            assert process(names[0] + "x").finding is DOWN
        finally:
            running.kill()
            os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
        assert process(names[0]).finding is DOWN, "a zombie does not run"
        running.communicate()


# ---- interface


@pytest.fixture
def interface() -> Iterator[str]:
    name = f"hpc{os.getpid() % 100000}"
    if shutil.which("ip") is None:
        pytest.skip("there is no ip(8)")
    made = subprocess.run(["ip", "link", "add", name, "type", "bridge"], capture_output=True, check=False)
    if made.returncode:
        made = subprocess.run(["ip", "link", "add", name, "type", "dummy"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"no interface can be made here: {made.stderr.decode()}")
    yield name
    subprocess.run(["ip", "link", "del", name], capture_output=True, check=False)


@needs_root
def test_an_interface_is_up_down_and_gone(interface: str) -> None:
    look = Interface(interface)
    assert look(LIMIT_S).finding is DOWN and "switched off" in look(LIMIT_S).detail
    subprocess.run(["ip", "link", "set", interface, "up"], check=True)
    state = Path(f"/sys/class/net/{interface}/operstate").read_text().strip()
    assert look(LIMIT_S).finding is (UP if state in ("up", "unknown") else DOWN), state
    subprocess.run(["ip", "link", "del", interface], check=True)
    gone = look(LIMIT_S)
    assert gone.finding is DOWN and "has gone" in gone.detail
    never = Interface(interface)(LIMIT_S)
    assert never.finding is UNKNOWN and f"there is no interface {interface}" in never.detail


def test_the_loopback_interface_is_up() -> None:
    assert Interface("lo")(LIMIT_S).finding is UP


@needs_root
@needs_icmp
def test_an_address_that_does_not_answer(interface: str) -> None:
    """On a network of two addresses with nobody at the other one (RFC 2544: for such tests)."""
    for words in (["link", "set", interface, "up"], ["address", "add", "198.19.86.1/30", "dev", interface]):
        subprocess.run(["ip", *words], check=True)
    assert ping("198.19.86.1", LIMIT_S).finding is UP
    found = ping("198.19.86.2", 0.8)
    assert (found.finding, found.detail) == (DOWN, "198.19.86.2: no answer in time")


# ---- free space


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(tmp_path), b"tmpfs", 0, b"size=4m"):
        pytest.skip(f"no file system can be mounted here: {os.strerror(ctypes.get_errno())}")
    yield tmp_path
    libc.umount2(bytes(tmp_path), 2)


@needs_root
def test_space_that_is_used_up(small: Path) -> None:
    assert disk_space(str(small), 3 << 20).finding is UP
    (small / "file").write_bytes(bytes(2 << 20))
    found = disk_space(str(small), 3 << 20)
    assert found.finding is DOWN and found.detail == f"2 MiB are left at {small}, 3 MiB are asked for"


def test_a_path_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert disk_space(str(tmp_path / "nowhere"), 1).finding is UNKNOWN


# ---- command


def test_a_command_is_asked_by_its_exit_code() -> None:
    assert command(("/bin/sh", "-c", 'test "$HOTPAIR_MODULE" = web'), {"HOTPAIR_MODULE": "web"}, LIMIT_S).finding is UP
    found = command(("/bin/sh", "-c", "echo out of tapes >&2; exit 3"), {}, LIMIT_S)
    assert (found.finding, found.detail) == (DOWN, "/bin/sh ended with 3: out of tapes")


def test_a_command_that_cannot_be_started_says_nothing(tmp_path: Path) -> None:
    plain = tmp_path / "not-executable"
    plain.write_text("true")
    for path in (tmp_path / "nowhere", plain):
        found = command((str(path),), {}, LIMIT_S)
        assert found.finding is UNKNOWN and "cannot be started" in found.detail


def test_a_command_gets_none_of_this_process_s_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert command(("/bin/sh", "-c", 'test -z "$RAY_AUTH_TOKEN"'), {}, LIMIT_S).finding is UP


def test_a_command_that_hangs_is_killed_with_everything_it_started(tmp_path: Path) -> None:
    """A child of its own session, too, and one whose parent has left."""
    pids = tmp_path / "pids"
    script = f"setsid sleep 600 & echo $! >> {pids}; (sleep 600 & echo $! >> {pids}); echo $$ >> {pids}; sleep 600"
    began = time.monotonic()
    found = command(("/bin/sh", "-c", script), {}, 1.0)
    assert time.monotonic() - began < 5
    assert found.finding is DOWN and "did not end within 1 s" in found.detail and "cannot be killed" not in found.detail
    started = [int(line) for line in pids.read_text().split()]
    assert len(started) == 3
    for pid in started:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            os.kill(pid, signal.SIGKILL)
        assert state == "Z", pid


# ---- the VM


@pytest.mark.parametrize(
    ("seen", "state", "heartbeat"),
    [
        (Seen(None, 0.5, False, 0, ""), UNKNOWN, UNKNOWN),
        (Seen(Observation(VmState.ON), 0.5, False, 0, ""), UP, UP),
        (Seen(Observation(VmState.ON, Heartbeat.OK, 1.0), 0.5, False, 0, ""), UP, UP),
        (Seen(Observation(VmState.ON, Heartbeat.LOST, 40.0), 0.5, False, 0, ""), UP, DOWN),
        (Seen(Observation(VmState.ON, Heartbeat.LOST), 0.5, True, 0, ""), UNKNOWN, UNKNOWN),
        (Seen(Observation(VmState.ON, Heartbeat.LOST), 60.0, False, 0, "virsh does not answer"), UNKNOWN, UNKNOWN),
        (Seen(Observation(VmState.STARTING), 0.5, False, 0, ""), UNKNOWN, UNKNOWN),
        (Seen(Observation(VmState.OFF), 0.5, False, 0, ""), DOWN, UNKNOWN),
        (Seen(Observation(VmState.OFF), 0.5, True, 2, "the VM does not start: no image"), DOWN, UNKNOWN),
    ],
)
def test_the_vm(seen: Seen, state: Finding, heartbeat: Finding) -> None:
    assert (vm_state(seen, LIMIT_S).finding, guest_heartbeat(seen, LIMIT_S).finding) == (state, heartbeat)
    if seen.problem:
        assert seen.problem in vm_state(seen, LIMIT_S).detail


# ---- all of them


def test_every_kind_has_its_probe() -> None:
    options: dict[str, dict[str, object]] = {
        "tcp": {"address": "127.0.0.1:1"},
        "ping": {"address": "127.0.0.1"},
        "process": {"process": "nothing-of-this-name"},
        "interface": {"interface": "lo"},
        "disk-space": {"path": "/", "least": 1},
        "command": {"command": ("/bin/true",)},
    }
    for kind in tables.CHECKER_KINDS:
        if kind in HERE_ONLY or kind in ("vm-state", "guest-heartbeat"):
            continue
        checker = Checker("one", kind, 10.0, 5.0, 15.0, 0.0, Action.NONE, False, options[kind])
        assert probe_of(checker, "web")(LIMIT_S).detail
