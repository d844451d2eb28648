"""A source and a target of one mirror as real processes, for tests: start, stop, kill, and a clean-up that never hangs.

    with MirrorPair() as pair:
        pair.start()
        ... work below pair.mount ...
        pair.stop()
        assert pair.compare() == []

Nothing is left behind: every process carries a mark in its environment by which it and what it started are found
again, mounts below the base directory are aborted and taken away, and the port is held by a lock that the kernel
drops with the process. If the test itself is killed, a janitor process (this module as a program, one for all pairs of
a test process) does the rest.
"""

import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import cache
from types import TracebackType
from typing import IO

from tests import system_calls
from tests.tree_comparison import compare_copies

__all__ = ["MirrorPair", "MirrorProcess", "ReservedPort", "abort_mounts_below", "compare_copies"]

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 10.0
LOG_TAIL_BYTES = 6000
# Below the range from which the kernel takes ports for outgoing connections (32768 and up).
PORTS = range(20000, 30000)
BASE_PARENT = "/var/tmp"  # a real file system: trusted attributes and file handles are needed
MARK = "HOTPAIR_TEST_PAIR"


class ReservedPort:
    """A TCP port on 127.0.0.1 that no other test takes while this object is open.

    The reservation is the name of an abstract socket, unique in the system: the target can listen on the TCP port
    again and again, and a test that dies holds nothing.
    """

    def __init__(self) -> None:
        self._lock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        start = secrets.randbelow(len(PORTS))
        for number in (*PORTS[start:], *PORTS[:start]):
            if self._reserve(number):
                self.number = number
                return
        self._lock.close()
        raise RuntimeError(f"no free port in {PORTS}")

    def _reserve(self, number: int) -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
                self._lock.bind(f"\0hotpair-test-port-{number}")
            except OSError:  # in use: the next one
                return False
        return True

    def close(self) -> None:
        """Give the port back."""
        self._lock.close()


class MirrorProcess:
    """One side of a mirror in the foreground: its process, its log, and the moment it says ``ready``."""

    def __init__(
        self,
        role: str,
        arguments: Sequence[str],
        log_path: str,
        environment: dict[str, str],
        prefix: Sequence[str] = (),
    ) -> None:
        self.role = role
        self.log_path = log_path
        self._ready = threading.Event()  # set by ``ready`` and by the end of the output
        self.said: list[str] = []  # every line of its standard output
        with open(log_path, "ab") as log:
            log.write(f"--- {role}: {' '.join(arguments)}\n".encode())
            log.flush()
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-P", "-m", "hotpair.replication", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        self._identifier = os.pidfd_open(self.process.pid)
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._copy_output, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _copy_output(self, output: IO[bytes]) -> None:
        with open(self.log_path, "ab", buffering=0) as log:
            for line in output:
                log.write(line)
                self.said.append(line.decode(errors="replace").strip())
                if self.said[-1] == "ready":
                    self._ready.set()
        self._ready.set()

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when the process has printed ``ready``; RuntimeError when it ends or takes too long."""
        if not self._ready.wait(timeout_s):
            raise RuntimeError(f"{self.role} not ready within {timeout_s} s")
        if "ready" not in self.said:
            raise RuntimeError(f"{self.role} ended before it was ready")

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait_end(self, timeout_s: float) -> int | None:
        """The exit code, or None when the process still runs after that time."""
        if self.process.returncode is None:
            poll = select.poll()
            poll.register(self._identifier, select.POLLIN)
            if not poll.poll(timeout_s * 1000):
                return None
        return self.process.wait()

    def signal(self, number: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.running:
            self.process.send_signal(number)

    def close(self) -> None:
        """Release the descriptors of a process that has ended."""
        self._reader.join(KILL_TIMEOUT_S)
        os.close(self._identifier)


def mounts_below(directory: str) -> list[tuple[str, str, int]]:
    """(mount point, file system type, minor device number) of every mount at or below, the last mounted first."""
    found = []
    with open("/proc/self/mountinfo") as lines:
        for line in lines:
            fields = line.split()
            point = fields[4].encode().decode("unicode_escape")
            kind = fields[fields.index("-") + 1]
            if point == directory or point.startswith(directory + "/"):
                found.append((point, kind, int(fields[2].partition(":")[2])))
    return found[::-1]


def abort_connections(numbers: list[int]) -> None:
    """Abort FUSE connections, so that whoever waits for one gets an error instead of waiting for ever."""
    control = tempfile.mkdtemp(prefix="hotpair-fusectl-", dir="/tmp")
    try:
        system_calls.mount(b"fusectl", os.fsencode(control), b"fusectl")
        try:
            for number in numbers:
                path = f"{control}/{number}/abort"
                if os.path.exists(path):
                    with open(path, "w") as abort:
                        abort.write("1")
        finally:
            system_calls.umount_lazily(os.fsencode(control))
    finally:
        os.rmdir(control)


def abort_mounts_below(directory: str) -> None:
    """Take every mount at or below a directory away without ever waiting for one."""
    mounts = mounts_below(directory)
    connections = [minor for _, kind, minor in mounts if kind.startswith("fuse")]
    if connections:
        abort_connections(connections)
    for point, _, _ in mounts:
        system_calls.umount_lazily(os.fsencode(point))


def processes_marked(mark: str) -> list[int]:
    """Processes whose environment holds our mark: those we have started, and what they have started."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as environment:
                if wanted in environment.read().split(b"\0"):
                    found.append(int(name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it has ended, or is not ours
            continue
    return found


@cache
def janitor() -> IO[bytes]:
    """Started when it is needed first. What is written there is for it to read; it acts when we have ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.mirror_pair"],
        stdin=subprocess.PIPE,
        cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
        start_new_session=True,
    )
    assert process.stdin is not None
    return process.stdin


def tell_janitor(mark: str, base: str) -> None:
    """What it has to take away, should this process end now; an empty base when there is nothing any more."""
    janitor().write(f"{mark} {base}\n".encode())
    janitor().flush()


class MirrorPair:
    """The two sides of one mirror on this machine, each with a data and a state directory below ``base``.

    ``mount`` is where the source's applications work; ``source_dir`` is the same path, and shows the source's own
    data when nothing is mounted; ``target_dir`` is the target's copy.
    """

    def __init__(self, *, source_arguments: Sequence[str] = (), target_arguments: Sequence[str] = ()) -> None:
        self.mark = secrets.token_hex(8)
        self.base = tempfile.mkdtemp(prefix="hotpair-test-", dir=BASE_PARENT)
        os.chmod(self.base, 0o755)
        self.source_dir, self.source_state = f"{self.base}/source", f"{self.base}/source-state"
        self.target_dir, self.target_state = f"{self.base}/target", f"{self.base}/target-state"
        self.mount = self.source_dir
        for directory in (self.source_dir, self.target_dir, self.source_state, self.target_state):
            os.mkdir(directory)
        tell_janitor(self.mark, self.base)
        self._port = ReservedPort()
        self.source_arguments = list(source_arguments)
        self.target_arguments = list(target_arguments)
        self.target_prefix: list[str] = []  # of the target's command line: a program that runs it
        self.source: MirrorProcess | None = None
        self.target: MirrorProcess | None = None

    def environment(self) -> dict[str, str]:
        """The environment for processes that ``close`` is to end: ours, and those that use the mount."""
        return {**os.environ, MARK: self.mark, "PYTHONUNBUFFERED": "1"}

    def _start(self, role: str, arguments: Sequence[str]) -> MirrorProcess:
        prefix = self.target_prefix if role == "target" else []
        process = MirrorProcess(role, [role, *arguments], f"{self.base}/{role}.log", self.environment(), prefix)
        try:
            process.wait_ready()
        except RuntimeError as error:
            self._end(process)
            raise RuntimeError(f"{error}\n{self.logs()}") from None
        return process

    def start_target(self) -> None:
        """Start the target and wait until it is ready."""
        assert self.target is None
        directories = ["--dir", self.target_dir, "--state", self.target_state]
        address = f"127.0.0.1:{self._port.number}"
        self.target = self._start("target", [*directories, "--listen", address, *self.target_arguments])

    def start_source(self) -> None:
        """Start the source and wait until it is ready; then ``mount`` shows the mirror."""
        assert self.source is None
        directories = ["--dir", self.source_dir, "--state", self.source_state]
        address = f"127.0.0.1:{self._port.number}"
        self.source = self._start("source", [*directories, "--peer", address, *self.source_arguments])

    def start(self) -> None:
        """Start both sides, the target first."""
        self.start_target()
        self.start_source()

    @property
    def running(self) -> bool:
        """Whether both sides have been started and have not ended."""
        return all(process is not None and process.running for process in (self.source, self.target))

    def troubles(self) -> list[str]:
        """What the sides have said about a lost link since they were ready, or that they have ended."""
        found = []
        for process in (self.source, self.target):
            if process is not None:
                said = process.said[process.said.index("ready") :]
                found += [f"{process.role}: {line}" for line in said if line.startswith("link lost")]
                found += [] if process.running else [f"{process.role}: has ended"]
        return found

    def _stop(self, process: MirrorProcess) -> None:
        process.signal(signal.SIGTERM)
        code = process.wait_end(STOP_TIMEOUT_S)
        if code != 0:
            logs = self.logs()
            self._end(process)
            result = f"did not end within {STOP_TIMEOUT_S} s" if code is None else f"ended with {code}"
            raise RuntimeError(f"{process.role} {result} after SIGTERM\n{logs}")
        process.close()

    def stop_source(self) -> None:
        """SIGTERM: the source unmounts and ends. RuntimeError when it does not, or ends with an error."""
        process, self.source = self.source, None
        if process is not None:
            self._stop(process)
            left = mounts_below(self.source_dir)
            if left:
                raise RuntimeError(f"the source has ended and left mounts: {left}\n{self.logs()}")

    def stop_target(self) -> None:
        """SIGTERM: the target ends. RuntimeError when it does not, or ends with an error."""
        process, self.target = self.target, None
        if process is not None:
            self._stop(process)

    def stop(self) -> None:
        """Stop both sides cleanly, the source first."""
        self.stop_source()
        self.stop_target()

    def kill_source(self) -> None:
        """kill -9. What the mount does then is the mirror's business: it may freeze until ``abort``."""
        process, self.source = self.source, None
        if process is not None:
            self._end(process, abort=False)

    def kill_target(self) -> None:
        """kill -9 of the target."""
        process, self.target = self.target, None
        if process is not None:
            self._end(process, abort=False)

    def _end(self, process: MirrorProcess, *, abort: bool = True) -> None:
        """End a process for good. One that waits inside its own mount ends only after an abort."""
        process.signal(signal.SIGKILL)
        if process.wait_end(0 if abort else KILL_TIMEOUT_S) is None:
            abort_mounts_below(self.base)
            if process.wait_end(KILL_TIMEOUT_S) is None:
                raise RuntimeError(f"{process.role} (process {process.process.pid}) cannot be ended\n{self.logs()}")
        if abort:
            abort_mounts_below(self.source_dir)
        process.close()

    def abort(self) -> None:
        """Fail everything that waits for the mount, and take it away, as the supervisor would."""
        abort_mounts_below(self.source_dir)

    def compare(self, *, times_of: str = "all") -> list[str]:
        """Differences between the two copies; both sides must have been stopped."""
        assert self.source is None
        assert not mounts_below(self.source_dir), "still mounted: the source's own data cannot be seen"
        return compare_copies(self.source_dir, self.target_dir, times_of=times_of)

    def logs(self) -> str:
        """The end of both logs, for messages."""
        text = ""
        for role in ("source", "target"):
            path = f"{self.base}/{role}.log"
            if os.path.exists(path):
                with open(path, "rb") as log:
                    log.seek(max(0, os.path.getsize(path) - LOG_TAIL_BYTES))
                    text += f"--- log of the {role} ---\n{log.read().decode(errors='replace')}\n"
        return text

    def close(self) -> None:
        """End everything, whatever state it is in, and remove the base directory."""
        abort_mounts_below(self.base)
        for process in (self.source, self.target):
            if process is not None:
                self._end(process)
        self.source = self.target = None
        leave_nothing(self.mark, self.base)
        self._port.close()
        tell_janitor(self.mark, "")

    def __enter__(self) -> "MirrorPair":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.logs(), file=sys.stderr)  # pytest shows it with the failure
        self.close()


def end_process(number: int, timeout_s: float) -> None:
    """kill -9 one process and wait until it has gone; one that has gone already is no error."""
    try:
        identifier = os.pidfd_open(number)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(identifier, signal.SIGKILL)
        poll = select.poll()
        poll.register(identifier, select.POLLIN)
        poll.poll(timeout_s * 1000)
    except ProcessLookupError:
        return
    finally:
        os.close(identifier)


def leave_nothing(mark: str, base: str) -> None:
    """End the marked processes (a keeper, a helper), one by one, and remove mounts and files below the base."""
    abort_mounts_below(base)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    while processes := processes_marked(mark):
        for number in processes:
            end_process(number, KILL_TIMEOUT_S)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes that cannot be ended: {processes}")
    abort_mounts_below(base)
    assert not mounts_below(base)
    if os.path.exists(base):
        for entry in os.scandir(base):
            if entry.is_dir(follow_symlinks=False):  # the mount point of a protected directory cannot be removed
                system_calls.clear_immutable(entry.path)
        shutil.rmtree(base)


if __name__ == "__main__":
    left: dict[str, str] = {}
    for line in sys.stdin:  # ends with the test process, however it ends
        mark, _, base = line.rstrip("\n").partition(" ")
        left[mark] = base
    for mark, base in left.items():
        if base:
            leave_nothing(mark, base)
