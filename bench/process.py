"""Child processes: started in sessions of their own, watched until ready, ended by their process id."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.measure import prefer

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0


class BenchError(Exception):
    """A system under test did not do what it should; the text says what the user can look at."""


class Child:
    """One process of a system under test; its output goes to LOG.out and LOG.err."""

    def __init__(self, arguments: Sequence[str | Path], log: Path, directory: Path) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.output = log.with_suffix(".out")
        self.errors = log.with_suffix(".err")
        with self.output.open("wb") as output, self.errors.open("wb") as errors:
            try:
                # A session of its own: Ctrl-C reaches the benchmark only, which then stops its systems in order.
                self.process = subprocess.Popen(
                    self.arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    cwd=directory,
                    start_new_session=True,
                )
            except OSError as error:
                raise BenchError(f"cannot start {self.arguments[0]}: {error}") from error
        self.pid = self.process.pid
        prefer([self.pid])

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Until the line `ready` stands on its standard output."""
        wait_until(lambda: b"ready\n" in self.output.read_bytes(), f"`ready` from {self.describe()}", timeout_s, [self])

    def describe(self) -> str:
        return " ".join(self.arguments[:4])

    def last_words(self) -> str:
        return self.errors.read_text(errors="replace").strip()[-800:]

    def check_alive(self) -> None:
        if (code := self.process.poll()) is not None:
            raise BenchError(f"{self.describe()} ended with {code}: {self.last_words()}")

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int:
        """SIGTERM, then SIGKILL for its process group; returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                return self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL for the process group: at once and without a chance to tidy up."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


def wait_until(is_so: Callable[[], bool], what: str, timeout_s: float, children: Sequence[Child] = ()) -> None:
    """Poll until `is_so`; raises when that takes too long or when one of the children ends meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        for child in children:
            child.check_alive()
        if time.monotonic() > deadline:
            words = " | ".join(child.last_words() for child in children)
            raise BenchError(f"no {what} within {timeout_s:.0f} s. {words}")
        time.sleep(0.005)


def command(*arguments: str | Path, timeout_s: float = 60.0) -> str:
    """Run one short command; returns what it printed, raises with its errors."""
    texts = [str(argument) for argument in arguments]
    try:
        done = subprocess.run(
            texts, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"{' '.join(texts[:6])}: {error}") from error
    if done.returncode:
        raise BenchError(f"{' '.join(texts)} gave {done.returncode}: {(done.stderr + done.stdout).strip()[-800:]}")
    return done.stdout
