"""Running one command to its end, with a limit in time and of output."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

from hotpair.hyperv.errors import VmFailed
from hotpair.hyperv.processes_io import identify, wait_for_end

OUTPUT_BYTES = 64 << 10  # the end of what was printed
AFTER_KILL_S = 0.5  # a killed command that does not end hangs in the kernel; it is left there


@dataclass(frozen=True)
class Ended:
    """`code` None: it did not end in time and was killed, with what it had started in its own session."""

    code: int | None
    output: str
    errors: str

    @property
    def said(self) -> str:
        """For a message: one line, from standard error if there is anything."""
        return " ".join((self.errors or self.output).split())[-400:] or "no output"


def run_command(
    arguments: Sequence[str], timeout_s: float, environment: Mapping[str, str] | None = None, directory: str = "/"
) -> Ended:
    """Run it with no input. What it leaves in the background may go on. Raises VmFailed when it cannot be started."""
    # Into files: a pipe would stay open as long as anything the command has left behind.
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=None if environment is None else dict(environment),
                cwd=directory,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise VmFailed(f"{arguments[0]} cannot be started: {error}") from error
        identity = identify(process.pid)
        if identity is not None and not wait_for_end(identity, timeout_s):
            os.killpg(process.pid, signal.SIGKILL)  # its leader is not reaped yet, so the group is still its own
            wait_for_end(identity, AFTER_KILL_S)
            process.poll()
            return Ended(None, _end_of(output), _end_of(errors))
        return Ended(process.wait(), _end_of(output), _end_of(errors))


def _end_of(file: IO[bytes]) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - OUTPUT_BYTES))
    return file.read(OUTPUT_BYTES).decode(errors="replace")
