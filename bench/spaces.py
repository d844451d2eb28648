"""A command of the benchmark, started again in its own namespaces: whatever happens to it, nothing stays."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
INSIDE = "--inside"  # not for people: how a command starts itself in its own namespaces

# When the process that starts this is killed, the kernel ends the one inside, and with it everything in its namespaces.
_SPACES = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
# The first process of a process namespace gets everybody's orphans: a shell takes their ends, the benchmark would not.
_REAPER = ("sh", "-c", '"$@"; exit $?', "sh")


def run_inside(module: str, arguments: Sequence[str], parent: str, *, reaps: bool = False) -> int:
    """Run `python -m module` where mounts, processes, networks and shared memory end with it; its exit code.

    It gets `--inside DIRECTORY`: a new one below `parent`, removed at the end. `reaps`: it leaves orphans behind.
    """
    directory = Path(tempfile.mkdtemp(prefix="hotpair-bench-", dir=parent))
    begin = [*_SPACES, *(_REAPER if reaps else ())]
    line = [*begin, sys.executable, "-m", module, *arguments, INSIDE, str(directory)]
    process: subprocess.Popen[bytes] | None = None

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)
    try:
        # A session of its own: one signal from Ctrl-C, through pass_on, and not two.
        process = subprocess.Popen(line, cwd=ROOT, start_new_session=True)
        return process.wait()
    finally:
        shutil.rmtree(directory)


def be_interrupted_once() -> None:
    """For the process inside: SIGTERM raises KeyboardInterrupt, once."""
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once: what follows is tidying up
    raise KeyboardInterrupt
