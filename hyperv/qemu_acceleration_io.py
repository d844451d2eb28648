"""Whether KVM really works here. Its device may be there, and even make a machine, and the guest then stands still."""

from __future__ import annotations

import os
import tempfile
import time

from hotpair.hyperv.commands_io import run_command
from hotpair.hyperv.qemu_arguments import NO_ACCELERATION

KVM = "kvm"
PROBE_LIMIT_S = 8.0
QUICK_S = 1.0  # it takes a tenth of this where KVM works and the server is not busy
_TIMES_SLOWER = 2.0  # than emulation, on a server that is busy: then KVM does not work
_FOUND_S = 3600.0  # a finding is used again for so long by this process
_LAST_WORDS = b"Attempting a hard reboot"  # of QEMU's BIOS, once it has run through its 16-bit and 32-bit code

_findings: dict[tuple[str, str], tuple[float, str | None]] = {}


def kvm_problem(program: str, processor: str) -> str | None:
    """Why KVM cannot be used for a guest with this processor; None when it can.

    Tried with QEMU itself and its BIOS, in a machine without disks, which ends when the BIOS finds nothing to start.
    """
    key = (program, processor)
    now = time.monotonic()
    if key not in _findings or now - _findings[key][0] > _FOUND_S:
        _findings[key] = (now, _probe(program, processor))
    return _findings[key][1]


def choose(wanted: str, program: str, processor_with_kvm: str) -> tuple[str, str]:
    """Accelerator, and what to say about it. `wanted`: "auto", "kvm" or "tcg"."""
    if wanted == NO_ACCELERATION:
        return NO_ACCELERATION, "without acceleration, as configured"
    if wanted == KVM:
        return KVM, ""
    problem = kvm_problem(program, processor_with_kvm)
    return (KVM, "") if problem is None else (NO_ACCELERATION, f"slow, without acceleration: {problem}")


def _probe(program: str, processor: str) -> str | None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is not there, or may not be used: load the kernel module kvm_intel or kvm_amd"
    took_s, said = _run_bios(program, KVM, processor)
    if took_s is None:
        return f"a guest with KVM does not run here: {said}"
    if took_s <= QUICK_S:
        return None
    emulated_s, _ = _run_bios(program, NO_ACCELERATION, "max")
    if emulated_s is None or took_s <= _TIMES_SLOWER * emulated_s:
        return None
    return f"a guest with KVM is slower here than without ({took_s:.1f} s against {emulated_s:.1f} s)"


def _run_bios(program: str, accelerator: str, processor: str) -> tuple[float | None, str]:
    """How long it took in seconds, None if it did not come to its end; and what QEMU said."""
    with tempfile.TemporaryDirectory(prefix="hotpair-kvm-") as directory:
        words = [program, "-accel", accelerator, "-cpu", processor, "-machine", "pc", "-m", "16", "-nodefaults"]
        words += ["-no-user-config", "-display", "none", "-boot", "reboot-timeout=0", "-no-reboot"]
        words += [
            "-chardev",
            f"file,id=said,path={directory}/said",
            "-device",
            "isa-debugcon,iobase=0x402,chardev=said",
        ]
        began = time.monotonic()
        ended = run_command(words, PROBE_LIMIT_S)
        took_s = time.monotonic() - began
        try:
            with open(f"{directory}/said", "rb") as file:
                complete = _LAST_WORDS in file.read()
        except FileNotFoundError:
            complete = False
    said = ended.said if ended.code is not None else f"it hangs ({PROBE_LIMIT_S:g} s)"
    return (took_s if complete and ended.code == 0 else None), said
