"""`python -m hotpair.hyperv.detach_io`: starts a program that goes on when hotpair ends, its output in a log.

Run as a program of its own, so that what it starts belongs to nobody but init. It prints one JSON object: the pid, or
the error; with "wait", the pid once the program has ended, and its code. The program gets a session of its own. Its
output goes through a process that writes the log, and ends when nobody can write to it any more.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotpair.hyperv.application_log_io import ApplicationLog
from hotpair.hyperv.commands_io import run_command
from hotpair.hyperv.errors import StartTimedOut, VmFailed
from hotpair.hyperv.processes_io import MARK

MODULE = "hotpair.hyperv.detach_io"
GATHER_S = 0.2  # of output, into one entry of the log
LARGEST_READ_BYTES = 64 << 10
DETACH_LIMIT_S = 30.0  # a new interpreter takes a tenth of a second on an idle machine


@dataclass(frozen=True)
class Detached:
    """`code` None: not waited for."""

    pid: int
    code: int | None


def start_detached(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    directory: str,
    log: str,
    source: str,
    *,
    wait_s: float | None = None,
    prefix: Sequence[str] = (),
) -> Detached:
    """Start it; with `wait_s`, wait for its end so long. Raises VmFailed, StartTimedOut when it does not end.

    `environment` must have the mark, so that the program can be found whatever happens from here on.
    """
    words = {
        "arguments": list(arguments),
        "environment": dict(environment),
        "directory": directory,
        "log": log,
        "source": source,
        "wait": wait_s is not None,
    }
    line = [*prefix, sys.executable, "-P", "-m", MODULE, "start", json.dumps(words)]
    limit_s = DETACH_LIMIT_S if wait_s is None else wait_s
    ended = run_command(line, limit_s, {**os.environ, MARK: environment[MARK]})
    if ended.code is None:
        raise StartTimedOut(f"{arguments[0]} did not end within {limit_s:.0f} s")
    try:
        answer = json.loads(ended.output)
    except ValueError as error:
        raise VmFailed(f"{arguments[0]} could not be started: {ended.said}") from error
    if "error" in answer:
        raise VmFailed(f"{arguments[0]} cannot be started: {answer['error']}")
    return Detached(answer["pid"], answer.get("code"))


def _start(words: dict[str, object]) -> dict[str, object]:
    reading, writing = os.pipe()
    _fork_log_writer(reading, str(words["log"]), str(words["source"]))
    os.close(reading)
    failed_reading, failed_writing = os.pipe()
    os.set_inheritable(failed_writing, False)
    pid = os.fork()
    if pid == 0:
        _become(words, writing, failed_writing)
    os.close(writing)
    os.close(failed_writing)
    with os.fdopen(failed_reading, encoding="utf-8") as failed:
        problem = failed.read()  # ends when the program begins
    if problem:
        return {"error": problem}
    if not words["wait"]:
        return {"pid": pid}
    return {"pid": pid, "code": os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}


def _become(words: dict[str, object], output: int, failed: int) -> None:
    """In the child: the program, or its error."""
    arguments, environment, directory = words["arguments"], words["environment"], words["directory"]
    assert isinstance(arguments, list) and isinstance(environment, dict) and isinstance(directory, str)
    try:
        os.setsid()
        os.chdir(directory)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        os.closerange(3, failed)
        os.closerange(failed + 1, failed + 64)
        os.execvpe(arguments[0], arguments, environment)
    except OSError as error:
        os.write(failed, f"{error.strerror}".encode())
    finally:
        os._exit(127)


def _fork_log_writer(reading: int, log: str, source: str) -> None:
    """Without the mark: it is not the application, and must not be taken for it."""
    if os.fork():
        return
    try:
        os.setsid()
        os.dup2(reading, 0)
        environment = {name: value for name, value in os.environ.items() if name != MARK}
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        os.closerange(3, 64)
        os.execve(sys.executable, [sys.executable, "-P", "-m", MODULE, "log", log, source], environment)
    finally:
        os._exit(127)


def _write_log(log: ApplicationLog, source: str) -> None:
    """Until the end of the input. A log that cannot be written must not hold the application: its lines are dropped."""
    rest, dropped = b"", 0
    while part := os.read(0, LARGEST_READ_BYTES):
        rest += part
        while len(rest) < LARGEST_READ_BYTES and select.select([0], [], [], GATHER_S)[0]:
            part = os.read(0, LARGEST_READ_BYTES)
            rest += part
            if not part or part.endswith(b"\n"):
                break
        whole, line_end, rest = rest.rpartition(b"\n")
        if len(rest) > LARGEST_READ_BYTES:  # a line without an end
            whole, rest = whole + line_end + rest, b""
        try:
            if dropped:
                log.append(source, f"({dropped} bytes of output could not be written here)")
                dropped = 0
            log.append(source, whole.decode(errors="replace"))
        except OSError:
            dropped += len(whole)
    if rest:
        log.append(source, rest.decode(errors="replace"))


if __name__ == "__main__":
    if sys.argv[1] == "log":
        _write_log(ApplicationLog(sys.argv[2]), sys.argv[3])
    else:
        json.dump(_start(json.loads(sys.argv[2])), sys.stdout)
