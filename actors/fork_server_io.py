"""A process that has imported what Ray's workers need, and forks them: they start at once, and share its memory.

    python -P -m hotpair.actors.fork_server_io MODULE...

Its standard input is the socket that it listens on. Each connection asks for one process: a script with its arguments,
environment and directory as one JSON text behind its length, and standard input, output and error as descriptors
beside it (unix(7), SCM_RIGHTS). The answer is the number of the process, a child of this one in a process group of its
own. There is one thread, so that a fork copies all there is. It ends with its raylet.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotpair.actors.fork_client_io import LENGTH, LONGEST, PROCESS_ID

STANDARD = 3  # descriptors: input, output, error
ASK_S = 1.0  # for one who connects and says nothing
RAYLET = "RAY_RAYLET_PID"
# Ray reads these when it is imported: a worker in whose environment they are different is none that can be forked.
READ_ON_IMPORT = ("RAY_JOB_ID", RAYLET)


class CannotServe(Exception):
    """What was asked for is not what this process can be forked into; the text says why."""


@dataclass(frozen=True)
class Program:
    """A script with its arguments, and what it runs with."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    descriptors: Sequence[int]

    def check(self) -> None:
        """Raises CannotServe."""
        for name in READ_ON_IMPORT:
            if self.environment.get(name) != os.environ.get(name):
                raise CannotServe(f"{name} is {self.environment.get(name)} there, and {os.environ.get(name)} here")

    def run(self) -> None:
        """In this process, as if Python had been started for it. Raises what the script raises."""
        os.setpgid(0, 0)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, one in enumerate(self.descriptors):
            os.dup2(one, number)
        self.close()
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.directory)
        sys.argv[:] = self.arguments
        runpy.run_path(self.arguments[0], run_name="__main__")

    def close(self) -> None:
        for one in self.descriptors:
            os.close(one)


def main(modules: Sequence[str]) -> int:
    """Until the raylet has ended; or, in a process that was forked, what its program makes of it."""
    for name in modules:
        importlib.import_module(name)
    if len(os.listdir("/proc/self/task")) > 1:
        print(f"fork server: importing {', '.join(modules)} has started threads", file=sys.stderr)
        return 1
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel collects them
    gc.collect()
    gc.freeze()  # a collection in a child would write to every page
    try:
        raylet = os.pidfd_open(int(os.environ[RAYLET]))
    except ProcessLookupError:
        return 0
    with socket.socket(fileno=os.dup(0)) as listening:
        program = _serve(listening, raylet)
    os.close(raylet)
    if program is not None:
        program.run()
    return 0


def _serve(listening: socket.socket, raylet: int) -> Program | None:
    """What to be, in a process that was forked; None in the fork server, when the raylet has ended."""
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    poll.register(raylet, select.POLLIN)
    while raylet not in dict(poll.poll()):
        connection, _ = listening.accept()
        with connection:
            try:
                program = _asked(connection)
                if _is_forked(program, connection):
                    return program
            except (OSError, ValueError, CannotServe) as error:
                print(f"fork server: {error}", file=sys.stderr)  # who asks sees that the connection ends
    return None


def _is_forked(program: Program, connection: socket.socket) -> bool:
    """Whether this is the new process. Raises CannotServe and OSError: who asked starts it alone, so there is none."""
    process = None
    try:
        program.check()
        if not _waits(connection):
            raise CannotServe("who asked waits no longer")
        process = os.fork()
        if process:
            try:
                connection.sendall(PROCESS_ID.pack(process))
            except OSError:
                os.kill(process, signal.SIGKILL)
                raise
    finally:
        if process != 0:
            program.close()
    return process == 0


def _waits(connection: socket.socket) -> bool:
    """Whether the other end is still open: nothing more is to come from there."""
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True


def _asked(connection: socket.socket) -> Program:
    """Raises OSError and ValueError."""
    connection.settimeout(ASK_S)
    descriptors = array.array("i")
    head, beside, _, _ = connection.recvmsg(LENGTH.size, socket.CMSG_SPACE(STANDARD * descriptors.itemsize))
    for level, kind, data in beside:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    try:
        if len(head) != LENGTH.size or len(descriptors) != STANDARD:
            raise ValueError("a question without its length, or without its descriptors")
        (length,) = LENGTH.unpack(head)
        if length > LONGEST:
            raise ValueError(f"a question of {length} bytes, the limit is {LONGEST}")
        with connection.makefile("rb") as rest:
            question = json.loads(rest.read(length))
        arguments, environment, directory = question
        if not (isinstance(arguments, list) and isinstance(environment, dict) and isinstance(directory, str)):
            raise ValueError("a question of other types")
    except (OSError, TypeError, ValueError) as error:
        for one in descriptors:
            os.close(one)
        raise ValueError(f"no question: {error}") from error
    return Program(arguments, environment, directory, descriptors.tolist())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
