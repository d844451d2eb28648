"""Asks a fork server (fork_server_io.py) for a process. Whatever is imported here, each Ray worker waits for."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence

LENGTH = struct.Struct("!I")  # of the question, in bytes
LONGEST = 1 << 20
PROCESS_ID = struct.Struct("!I")  # the answer
ANSWER_S = 30.0  # it may still be importing what it is there for


class NotForked(Exception):
    """Nobody has made the process: it has to be started in the long way."""


def fork(path: str, arguments: Sequence[str], environment: Mapping[str, str], standard: tuple[int, int, int]) -> int:
    """The number of a process that runs what `python SCRIPT ...` would, in this one's directory; no child of this one.

    path      of the fork server's socket
    standard  descriptors that become its standard input, output and error

    Raises NotForked.
    """
    question = json.dumps([list(arguments), dict(environment), os.getcwd()]).encode()
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(path)
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", standard))
            connection.sendmsg([LENGTH.pack(len(question))], [rights])
            connection.sendall(question)
            answer = connection.recv(PROCESS_ID.size, socket.MSG_WAITALL)
    except OSError as error:
        raise NotForked(f"{path}: {error.strerror or error}") from error
    if len(answer) != PROCESS_ID.size:
        raise NotForked(f"{path}: it refuses, or has ended")
    number: int = PROCESS_ID.unpack(answer)[0]
    return number
