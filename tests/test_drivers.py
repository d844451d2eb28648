"""What the drivers share, and their pure parts: how drivers are found, QEMU's words, states, when a state fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from hotpair.cluster.configuration_keys import ConfigurationError
from hotpair.hyperv import qemu_acceleration_io
from hotpair.hyperv.command_options import Answer, answer_of
from hotpair.hyperv.commands_io import run_command
from hotpair.hyperv.driver import Driver, Place, VmState
from hotpair.hyperv.drivers_io import GROUP, installed, make, problem
from hotpair.hyperv.errors import Busy, UnknownDriver, VmFailed
from hotpair.hyperv.files_io import locked, read_document, write_document
from hotpair.hyperv.processes_io import identify, in_session, is_alive, kill_all, with_words
from hotpair.hyperv.qemu_arguments import Paths, qemu_arguments
from hotpair.hyperv.qemu_description import parse_description
from hotpair.hyperv.qemu_saved import DiskState, Saved, from_document, refusal, to_document
from hotpair.hyperv.qemu_states import state_of
from hotpair.hyperv.units_io import scope_prefix

ROOT = Path(__file__).resolve().parent.parent
PLACE = Place("web", "/vm/web", "/state/web", {}, "/log/web", "/lock/web")


# ---- finding drivers


def declared() -> list[EntryPoint]:
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][GROUP]
    return [EntryPoint(name, value, GROUP) for name, value in points.items()]


def test_our_drivers_are_declared_and_do_nothing_when_made(tmp_path: Path) -> None:
    assert installed(declared()) == ("command", "libvirt", "qemu")
    for name in installed(declared()):
        driver: Driver = make(name, PLACE, declared())
        for method in ("check", "define", "start", "stop", "save", "turn_off", "observe", "is_off", "remove"):
            assert callable(getattr(driver, method))
    assert not os.path.exists("/state/web")


def test_an_unknown_driver_is_one_message_with_those_installed() -> None:
    said = 'no driver "xen" is installed here: give one of command, libvirt, qemu'
    assert problem("xen", declared()) == said
    assert problem("qemu", declared()) is None
    with pytest.raises(UnknownDriver, match=said):
        make("xen", PLACE, declared())
    assert problem("xen", []) == 'no driver "xen" is installed here: give one of none, for none is installed'


def test_a_driver_that_cannot_be_loaded_says_why() -> None:
    with pytest.raises(UnknownDriver, match="cannot be loaded: No module named 'hotpair_xen'"):
        make("xen", PLACE, [EntryPoint("xen", "hotpair_xen:Driver", GROUP)])
    twice = [*declared(), EntryPoint("qemu", "hotpair_other:Driver", GROUP)]
    with pytest.raises(UnknownDriver, match='two drivers are called "qemu"'):
        make("qemu", PLACE, twice)


# ---- QEMU's description and words

DESCRIPTION = """
memory = "2g"
cpus = 2
display = "vnc"
arguments = ["-device", "usb-ehci"]

[[disks]]
file = "disk, one.raw"

[[disks]]
file = "two.qcow2"
format = "qcow2"
interface = "scsi"

[[disks]]
file = "setup.iso"
interface = "sata"
media = "cdrom"

[[nics]]
kind = "bridge"
name = "br0"

[[nics]]
kind = "user"
forward = ["tcp:127.0.0.1:2222-:22"]
"""


def words(text: str = DESCRIPTION, *, accelerator: str = "kvm", restoring: bool = False) -> list[str]:
    described = parse_description(text, "web", "vm.toml")
    return qemu_arguments("qemu", described, "web", "/vm/web", Paths("/s"), accelerator, restoring=restoring)


def values(option: str, given: list[str]) -> list[str]:
    return [given[i + 1] for i, word in enumerate(given) if word == option]


def test_disks_bypass_the_page_cache_and_need_no_escaping() -> None:
    nodes = [json.loads(value) for value in values("-blockdev", words())]
    assert [node["file"]["filename"] for node in nodes] == [
        "/vm/web/disk, one.raw",
        "/vm/web/two.qcow2",
        "/vm/web/setup.iso",
    ]
    for node in nodes:
        assert node["cache"] == node["file"]["cache"] == {"direct": True, "no-flush": False}
        assert node["file"]["aio"] == "threads"
    assert [node["read-only"] for node in nodes] == [False, False, True]
    devices = values("-device", words())
    assert "virtio-blk-pci,drive=disk0,bootindex=1,write-cache=on" in devices
    assert "scsi-hd,bus=scsi.0,drive=disk1,bootindex=2,write-cache=on" in devices
    assert "ide-cd,bus=sata.2,drive=disk2,bootindex=3" in devices


def test_both_servers_make_the_same_machine() -> None:
    assert words() == words()
    other = parse_description(DESCRIPTION, "mail", "vm.toml")
    mine = parse_description(DESCRIPTION, "web", "vm.toml")
    addresses = [nic.mac for nic in (*mine.nics, *other.nics)]
    assert len(set(addresses)) == 4 and all(mac.startswith("52:54:00:") for mac in addresses)
    assert mine.uuid != other.uuid
    assert mine.digest == other.digest != parse_description(DESCRIPTION + "\n", "web", "vm.toml").digest


def test_the_processor_is_the_servers_where_nothing_else_is_said() -> None:
    assert values("-cpu", words()) == ["host"]
    assert values("-cpu", words(accelerator="tcg")) == ["max"]
    assert values("-cpu", words('cpu = "EPYC"\n' + DESCRIPTION)) == ["EPYC"]


def test_a_guest_that_is_restored_waits() -> None:
    assert {"-S", "-incoming"} <= set(words(restoring=True))
    assert not {"-S", "-incoming"} & set(words())
    assert words()[-2:] == ["-device", "usb-ehci"]
    assert "user,hostfwd=tcp:127.0.0.1:2222-:22,id=net1" in values("-netdev", words())


@pytest.mark.parametrize(
    ("changed", "by", "found"),
    [
        ('interface = "sata"', 'interface = "virtio"', 'disks[3].interface: a cdrom cannot be "virtio"'),
        ('"two.qcow2"', '"disk, one.raw"', "disks[2].file: another disk has the same file"),
        ('kind = "bridge"\nname = "br0"', 'kind = "bridge"', "nics[1].name: give the interface's name"),
        ('kind = "user"', 'kind = "tap"\nname = "tap0"', "nics[2].forward: ports are forwarded"),
        ("cpus = 2", 'append = "quiet"', "append: it needs a kernel"),
        ("cpus = 2", 'firmware_variables = "vars.fd"', "firmware_variables: they need a firmware"),
        ("cpus = 2", 'kernel = "../kernel"', "kernel: "),
        ("cpus = 2", 'uuid = "1"', "uuid: "),
        ('"disk, one.raw"', '"/dev/sda"', "disks[1].file: "),
    ],
)
def test_what_does_not_fit_together(changed: str, by: str, found: str) -> None:
    text = DESCRIPTION.replace(changed, by, 1)
    assert text != DESCRIPTION
    with pytest.raises(ConfigurationError) as caught:
        parse_description(text, "web", "vm.toml")
    (said,) = caught.value.problems
    assert said.line is not None and found in str(said)


# ---- states


def test_what_qemus_states_mean() -> None:
    assert state_of("running", "running") == (VmState.ON, "")
    assert state_of("running", "stopping")[0] is VmState.STOPPING
    assert state_of("paused", "restoring")[0] is VmState.STARTING
    assert state_of("paused", "saving")[0] is VmState.STOPPING
    assert state_of("paused", "running") == (VmState.ON, "the guest is held: somebody paused it")
    assert state_of("io-error", "running")[0] is VmState.ON
    assert state_of("postmigrate", "saving")[0] is VmState.STOPPING
    assert state_of("brand-new", "running") == (VmState.ON, 'QEMU says "brand-new", which this driver does not know')


def test_what_a_check_command_says() -> None:
    assert [answer_of(code) for code in (0, 1, 3)] == [Answer.UP, Answer.DOWN, Answer.DOWN]
    assert {answer_of(code) for code in (4, 126, 127, -9, None)} == {Answer.UNKNOWN}


# ---- saved states

SAVED = Saved("web", "digest", "kvm", 1000, (DiskState("a", 10, 5), DiskState("b", 20, 6)))


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        (SAVED, None),
        (replace(SAVED, disks=SAVED.disks[::-1]), None),
        (replace(SAVED, module="mail"), "of the module web"),
        (replace(SAVED, description="other"), "description was changed"),
        (replace(SAVED, accelerator="tcg"), "saved with kvm, and here is tcg"),
        (replace(SAVED, size=999), "999 bytes and not 1000"),
        (replace(SAVED, disks=(SAVED.disks[0], DiskState("b", 20, 7))), "disk was changed since it was saved (b)"),
        (replace(SAVED, disks=(SAVED.disks[0], DiskState("b", 21, 6))), "disk was changed since it was saved (b)"),
        (replace(SAVED, disks=SAVED.disks[:1]), "disk was changed since it was saved (b)"),
        (replace(SAVED, disks=(*SAVED.disks, DiskState("c", 1, 1))), "another number of disks"),
    ],
)
def test_when_a_saved_state_fits(found: Saved, problem: str | None) -> None:
    said = refusal(SAVED, found)
    assert said is None if problem is None else said is not None and problem in said


def test_a_saved_states_document_is_read_back_or_refused() -> None:
    document = json.loads(json.dumps(to_document(SAVED)))
    assert from_document(document) == SAVED
    for key in document:
        assert from_document({name: value for name, value in document.items() if name != key}) is None
    assert from_document({**document, "format": 2}) is None


# ---- the machine


def test_a_lock_excludes_another_and_waits_so_long(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    with locked(path, "web"):
        with pytest.raises(Busy, match="web is being started"), locked(path, "web", 0.1):
            pass
        waiting: list[str] = []

        def wait() -> None:
            with locked(path, "web", 10):
                waiting.append("got it")

        other = threading.Thread(target=wait)
        other.start()
    other.join()
    assert waiting == ["got it"]
    with pytest.raises(VmFailed, match="make its directory writable"), locked(f"{tmp_path}/no/lock", "web"):
        pass


def test_a_damaged_document_is_not_taken_for_none(tmp_path: Path) -> None:
    path = str(tmp_path / "run.json")
    assert read_document(path) is None
    write_document(path, {"a": 1})
    assert read_document(path) == {"a": 1}
    for damaged in (b"", b'{"a', b"[1]"):
        Path(path).write_bytes(damaged)
        with pytest.raises(VmFailed, match="damaged"):
            read_document(path)


def test_a_process_whose_first_thread_has_left_is_alive() -> None:
    """The table of processes shows it as a zombie, and it goes on writing."""
    code = "import threading, ctypes, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
    code += "print('ready', flush=True)\nctypes.CDLL(None).pthread_exit(None)\n"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        try:
            status = Path(f"/proc/{process.pid}/status")
            while "State:\tZ" not in status.read_text():
                pass
            identity = identify(process.pid)
            assert identity is not None and is_alive(identity)
            assert [one.pid for one in in_session(identity)] == [process.pid]
            assert kill_all(lambda: in_session(identity), 5) and not is_alive(identity)
        finally:
            process.kill()


def test_words_are_found_as_a_whole_only() -> None:
    line = ["/bin/sh", "-c", "echo ready; read x", "hotpair-test", "-uuid", "4711"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        assert [one.pid for one in with_words("-uuid", "4711")] == [process.pid]
        assert with_words("-uuid", "471") == with_words("uuid", "4711") == []
        process.kill()


def test_each_vm_gets_a_scope_of_its_own_where_systemd_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "systemd-run"
    program.write_text('#!/bin/sh\nwhile [ "$1" != -- ]; do echo "$1"; shift; done; shift; exec "$@"\n')
    program.chmod(0o755)
    assert scope_prefix("web", "/state/web", str(tmp_path / "not booted")) == []
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if os.geteuid() != 0:
        assert scope_prefix("web", "/state/web", str(tmp_path)) == []
        return
    prefix = scope_prefix("web", "/state/web", str(tmp_path))
    said = run_command([*prefix, "echo", "started"], 5).output.split()
    assert [*said[:3], *said[4:]] == [
        "--scope",
        "--quiet",
        "--collect",
        "--slice=hotpair-vms.slice",
        "--property=Before=hotpair-modules.service",
        "started",
    ]
    assert said[3].startswith("--unit=hotpair-vm-web-")
    assert prefix != scope_prefix("web", "/other/web", str(tmp_path))


def test_kvm_is_used_only_where_a_guest_runs_with_it(tmp_path: Path) -> None:
    """A QEMU that ends without its BIOS having run says nothing for KVM, whatever its exit code."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("no /dev/kvm")
    program = tmp_path / "qemu"
    program.write_text("#!/bin/sh\necho no such processor >&2\n")
    program.chmod(0o755)
    accelerator, note = qemu_acceleration_io.choose("auto", str(program), "host")
    assert accelerator == "tcg" and "no such processor" in note
    assert qemu_acceleration_io.choose("kvm", str(program), "host") == ("kvm", "")
