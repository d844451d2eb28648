"""Probes: one look at something, for a checker. One function for each kind; the kinds: configuration_tables.py.

Each blocks a thread of its own for its time limit, and a little longer at most; what hangs in the kernel (a file system
that has gone) may keep its thread, which prober.py knows. Each says up, down, or that it cannot be said:

- Down is what was asked and answered with no, or with nothing in time.
- Unknown is what could not be asked: no such interface, no such path, no such command, a name that nobody resolves, no
  right to send. It is most likely a mistake in the configuration, and no reason to restart a VM.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Mapping

import psutil

from hotpair.cluster.checks import Found, down, unknown, up
from hotpair.cluster.configuration import Checker
from hotpair.cluster.connection_io import Address, Deadline, NotResolved, describe, parse_address, resolve
from hotpair.cluster.ping_io import Target, first_to_answer, may_ping
from hotpair.hyperv.commands_io import AFTER_KILL_S, run_command
from hotpair.hyperv.errors import VmFailed
from hotpair.hyperv.processes_io import kill_all, marked
from hotpair.hyperv.runs_io import passed_on

# One look; gets the seconds it may take.
Probe = Callable[[float], Found]

INTERFACES = "/sys/class/net"
_IFF_UP = 0x1  # linux/if.h: the administrator wants it up
_CARRIES = ("up", "unknown")  # operstate (RFC 2863); what has no notion of it, such as a bridge's tap, says unknown
_WORDS_LOOKED_AT = 2  # of a command line: the program, or the interpreter and its script
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES)
MARK = "HOTPAIR_CHECK"  # its value is new for each run: what a command has started is found by it


def probe_of(checker: Checker, module: str) -> Probe:
    """For the kinds that need nothing but this machine. `path` is absolute."""
    options = checker.options
    match checker.kind:
        case "tcp":
            return lambda timeout_s: tcp(options["address"], timeout_s)
        case "ping":
            return lambda timeout_s: ping(options["address"], timeout_s)
        case "process":
            return lambda timeout_s: process(options["process"])
        case "interface":
            return Interface(options["interface"])
        case "disk-space":
            return lambda timeout_s: disk_space(options["path"], options["least"])
        case "command":
            return lambda timeout_s: command(options["command"], {"HOTPAIR_MODULE": module}, timeout_s)
    raise AssertionError(f"{checker.kind} is looked at elsewhere")


# ---- the network


def tcp(address: str, timeout_s: float) -> Found:
    """Whether a connection is taken by one of the host's addresses; it is closed at once."""
    parsed = parse_address(address)
    return _answers(parsed, parsed.port, timeout_s, f"{address} takes connections")


def ping(host: str, timeout_s: float) -> Found:
    """Whether one of the host's addresses answers to ICMP echo, sent twice a second."""
    if not may_ping():
        return unknown("this process may not send ICMP echo (net.ipv4.ping_group_range)")
    return _answers(Address(host, 0), None, timeout_s, f"{host} answers")


def _answers(address: Address, port: int | None, timeout_s: float, yes: str) -> Found:
    deadline = Deadline.after(timeout_s)
    try:
        targets = [Target(where[0], port) for _, where in resolve(address, deadline)]
    except (NotResolved, ValueError) as error:
        return unknown(str(error))
    answered, reasons = first_to_answer(list(dict.fromkeys(targets)), deadline)
    if answered is not None:
        return up(yes)
    return down("; ".join(f"{target}: {reason}" for target, reason in reasons.items()))


class Interface:
    """Whether it is up and has its carrier. One that is not there was never there, as far as this process has seen:
    its name is wrong; or it has gone since, which is down."""

    def __init__(self, name: str, folder: str = INTERFACES) -> None:
        self._name = name
        self._folder = os.path.join(folder, name)
        self._seen = False

    def __call__(self, timeout_s: float) -> Found:
        try:
            flags = int(self._read("flags"), 16)
            state = self._read("operstate")
        except OSError as error:
            if self._seen:
                return down(f"{self._name} has gone: {describe(error)}")
            return unknown(f"there is no interface {self._name}: {describe(error)}")
        self._seen = True
        if not flags & _IFF_UP:
            return down(f"{self._name} is switched off")
        return up(f"{self._name} is up") if state in _CARRIES else down(f"{self._name} is {state}")

    def _read(self, name: str) -> str:
        with open(os.path.join(self._folder, name), encoding="ascii") as file:
            return file.read().strip()


# ---- this machine


def process(name: str) -> Found:
    """Whether a process of this name runs. The name of its executable, or of the script that an interpreter runs; with
    a "/" in it, the whole path. What has ended and was not waited for does not run."""
    for one in psutil.process_iter(["name", "cmdline", "status"]):
        about = one.info
        if about["status"] in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            continue
        words = [about["name"], *(about["cmdline"] or ())[:_WORDS_LOOKED_AT]]
        if name in (words if "/" in name else [os.path.basename(word or "") for word in words]):
            return up(f"{name} runs, pid {one.pid}")
    return down(f"no process {name} runs")


def disk_space(path: str, least: int) -> Found:
    """Whether so many bytes are left on the file system, for users without privileges."""
    try:
        about = os.statvfs(path)
    except OSError as error:
        found = unknown if error.errno in _NOT_THERE else down
        return found(f"{path}: {describe(error)}")
    left = about.f_bavail * about.f_frsize
    return (up if left >= least else down)(f"{left >> 20} MiB are left at {path}, {least >> 20} MiB are asked for")


def command(arguments: tuple[str, ...], more: Mapping[str, str], timeout_s: float) -> Found:
    """Whether it ends with 0. At its time limit it is killed with everything it started, sessions of their own or not;
    what it leaves behind when it ends in time goes on."""
    mark = secrets.token_hex(8)
    try:
        ended = run_command(arguments, timeout_s, passed_on() | dict(more) | {MARK: mark})
    except VmFailed as error:
        return unknown(str(error))
    if ended.code is None:
        killed = kill_all(lambda: marked(mark, MARK), AFTER_KILL_S)
        rest = "" if killed else "; something that it started cannot be killed"
        return down(f"{arguments[0]} did not end within {timeout_s:g} s: {ended.said}{rest}")
    return (up if ended.code == 0 else down)(f"{arguments[0]} ended with {ended.code}: {ended.said}")
