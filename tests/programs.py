"""Running real programs on a mount, for tests: time limits that hold even when the mount is frozen, and PostgreSQL.

A process that waits for a frozen mount cannot be killed; so whoever exceeds its time limit here gets its mount
aborted first, and the test itself never touches the mount but through child processes.
"""

import os
import select
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Protocol

import pytest

from tests.mirror_pair import BASE_PARENT, end_process

POSTGRES_PROGRAMS = "/usr/lib/postgresql/15/bin"
# What the programs need, as Debian packages; the Makefile installs them.
PACKAGES = {
    "fio": "fio",
    **dict.fromkeys(["initdb", "pg_ctl", "pg_amcheck", "pgbench"], "postgresql-15"),
    "psql": "postgresql-client-15",
}
END_TIMEOUT_S = 15.0


class Place(Protocol):
    """Where programs are tried: a ``MirrorPair``, or a ``PlainPlace`` to try the tests themselves."""

    base: str
    mount: str
    target_dir: str

    def environment(self) -> dict[str, str]:
        """Environment for the programs."""

    def stop(self) -> None:
        """End cleanly."""

    def kill_source(self) -> None:
        """Let the source crash."""

    def abort(self) -> None:
        """Fail what waits for the mount."""

    def stop_target(self) -> None:
        """End the target cleanly."""

    def compare(self) -> list[str]:
        """Differences between the two copies."""

    def logs(self) -> str:
        """For messages."""

    def close(self) -> None:
        """Leave nothing behind."""


class PlainPlace:
    """A plain directory that is both "copies" at once: whatever fails here is a mistake of the test."""

    def __init__(self) -> None:
        self.base = tempfile.mkdtemp(prefix="hotpair-test-", dir=BASE_PARENT)
        os.chmod(self.base, 0o755)
        self.mount = self.target_dir = f"{self.base}/data"
        os.mkdir(self.mount)

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def stop(self) -> None:
        pass

    def kill_source(self) -> None:
        pass

    def abort(self) -> None:
        pass

    def stop_target(self) -> None:
        pass

    def compare(self) -> list[str]:
        return []

    def logs(self) -> str:
        return ""

    def close(self) -> None:
        shutil.rmtree(self.base)


def program(name: str) -> str:
    """The path of a program, installed now if need be; skips the test, with the reason, if that fails."""
    path = f"{os.environ['PATH']}:{POSTGRES_PROGRAMS}"
    found = shutil.which(name, path=path)
    if found is None:
        install = ["apt-get", "install", "-y", "--no-install-recommends", PACKAGES[name]]
        result = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
        found = shutil.which(name, path=path)
        if found is None:
            pytest.skip(f"{name} is missing and {' '.join(install)} does not help: {result.stderr.strip()[-300:]}")
    return found


def wait_for_end(process: "subprocess.Popen[bytes]", timeout_s: float) -> bool:
    """Whether a process ends within that time."""
    identifier = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(identifier, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))
    finally:
        os.close(identifier)


def run(
    place: Place, command: Sequence[str], *, timeout_s: float = 120, user: str | None = None, given: str = ""
) -> str:
    """Run a program to its end and return what it prints; AssertionError when it fails or takes too long."""
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as standard_input:
        standard_input.write(given.encode())
        standard_input.seek(0)
        process = subprocess.Popen(
            command,
            stdin=standard_input,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=place.base,
            env=place.environment(),
            user=user,
            group=user,
            extra_groups=[] if user else None,
        )
        ended = wait_for_end(process, timeout_s)
        if not ended:
            place.abort()
            process.kill()
        process.wait(END_TIMEOUT_S)
        output.seek(0)
        text = output.read().decode(errors="replace")
    line = " ".join(command)
    assert ended, f"no end within {timeout_s} s: {line}\n{text}\n{place.logs()}"
    assert process.returncode == 0, f"exit code {process.returncode}: {line}\n{text}\n{place.logs()}"
    return text


class LedgerWriter:
    """A process that commits numbered transactions and prints each number once its commit is acknowledged.

    ``acknowledged`` is what it has printed so far. A last line without its end is not counted.
    """

    def __init__(self, place: Place, command: Sequence[str], given: str = "", user: str | None = None) -> None:
        self._log_path = tempfile.mkstemp(prefix="writer-", suffix=".log", dir=place.base)[1]
        self.acknowledged: list[int] = []
        self._enough = threading.Event()
        self._wanted = 1 << 62
        with open(self._log_path, "wb") as log, tempfile.TemporaryFile() as standard_input:
            standard_input.write(given.encode())
            standard_input.seek(0)
            self.process = subprocess.Popen(
                command,
                stdin=standard_input,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=place.base,
                env=place.environment(),
                user=user,
                group=user,
                extra_groups=[] if user else None,
            )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, output: IO[bytes]) -> None:
        for line in output:
            if line.endswith(b"\n") and line.strip().isdigit():
                self.acknowledged.append(int(line))
                if len(self.acknowledged) >= self._wanted:
                    self._enough.set()
        self._enough.set()

    def wait_for(self, count: int, timeout_s: float) -> None:
        """Return when that many transactions are acknowledged; AssertionError when they never are."""
        self._wanted = count
        if len(self.acknowledged) < count:
            self._enough.wait(timeout_s)
        assert len(self.acknowledged) >= count, f"{len(self.acknowledged)} of {count} transactions\n{self.log()}"

    def wait_end(self, timeout_s: float) -> None:
        """Return when the writer has ended without error."""
        assert wait_for_end(self.process, timeout_s), f"the writer does not end\n{self.log()}"
        assert self.process.wait() == 0, self.log()
        self._reader.join(END_TIMEOUT_S)

    def kill(self) -> None:
        """End the writer for good; a mount it may wait for must have been aborted."""
        self.process.kill()
        self.process.wait(END_TIMEOUT_S)
        self._reader.join(END_TIMEOUT_S)

    def log(self) -> str:
        """What the writer has complained about."""
        with open(self._log_path, errors="replace") as log:
            return log.read()[-3000:]


def ledger_errors(acknowledged: Sequence[int], found: Sequence[int]) -> list[str]:
    """What is wrong with a ledger: acknowledged numbers that it lacks, numbers it has twice."""
    there = set(found)
    lost = sorted(set(acknowledged) - there)
    errors = [f"{len(lost)} acknowledged transactions are lost: {lost[:10]}"] if lost else []
    if len(there) != len(found):
        errors.append("a transaction is there twice")
    return errors


class Postgres:
    """One PostgreSQL server: its directory, a private socket directory, no TCP."""

    def __init__(self, place: Place, data: str) -> None:
        self.place = place
        self.data = data
        self.sockets = tempfile.mkdtemp(prefix="pg-", dir=BASE_PARENT)
        shutil.chown(self.sockets, "postgres", "postgres")
        self.connection = ["-h", self.sockets, "-U", "postgres"]
        self._number: int | None = None

    def create(self) -> None:
        """initdb."""
        run(self.place, ["mkdir", "-m", "700", self.data])
        run(self.place, ["chown", "postgres:postgres", self.data])
        command = [program("initdb"), "-D", self.data, "-U", "postgres", "--auth=trust", "-E", "UTF8", "--no-locale"]
        run(self.place, command, user="postgres", timeout_s=180)

    def start(self) -> None:
        """pg_ctl start, and wait until it answers (after a crash: until it has recovered)."""
        options = f"-c listen_addresses='' -c unix_socket_directories='{self.sockets}' -c max_connections=20"
        log = f"{self.sockets}/server.log"
        command = [program("pg_ctl"), "-D", self.data, "-w", "-t", "90", "-l", log, "-o", options, "start"]
        try:
            run(self.place, command, user="postgres", timeout_s=100)
        except AssertionError as error:
            with open(log, errors="replace") as lines:
                error.add_note(f"the server's log:\n{lines.read()[-4000:]}")
            raise
        self._number = int(run(self.place, ["head", "-n", "1", f"{self.data}/postmaster.pid"]))

    def query(self, text: str, timeout_s: float = 60) -> list[str]:
        """The lines of a query's answer."""
        command = [program("psql"), "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", *self.connection]
        return run(self.place, command, given=text, timeout_s=timeout_s, user="postgres").splitlines()

    def stop(self) -> None:
        """A clean stop, with a checkpoint."""
        run(self.place, [program("pg_ctl"), "-D", self.data, "-w", "-t", "60", "-m", "fast", "stop"], user="postgres")
        self._number = None

    def end(self) -> None:
        """End it whatever its data directory does, without a checkpoint; a frozen mount must have been aborted."""
        number, self._number = self._number, None
        if number is not None:
            try:
                identifier = os.pidfd_open(number)
            except ProcessLookupError:  # it has ended by itself
                return
            try:
                signal.pidfd_send_signal(identifier, signal.SIGQUIT)
                poll = select.poll()
                poll.register(identifier, select.POLLIN)
                if not poll.poll(END_TIMEOUT_S * 1000):
                    end_process(number, END_TIMEOUT_S)
            finally:
                os.close(identifier)

    def close(self) -> None:
        """End it and remove the socket directory."""
        self.end()
        shutil.rmtree(self.sockets)
