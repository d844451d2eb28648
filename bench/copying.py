"""How fast this machine copies without hotpair: a file on its disk, and bytes through loopback TCP."""

import os
import socket
import time
from pathlib import Path

from bench.compare import flush
from bench.process import command

PIECE_BYTES = 1 << 20


def disk_copy_s(source: Path, copy: Path) -> float:
    """Seconds for a cold plain copy up to stable storage, as a full synchronisation is; the copy is removed."""
    flush(source, forget=True)
    since = time.monotonic()
    command("dd", f"if={source}", f"of={copy}", "bs=1M", "conv=fsync", timeout_s=600)
    elapsed = time.monotonic() - since
    copy.unlink()
    return elapsed


def loopback_copy_s(size: int) -> float:
    """Seconds to move this many bytes of memory from one process to another through TCP on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = os.fork()
        if child == 0:
            _send(listener.getsockname(), size)
        connection, _ = listener.accept()
        with connection:
            buffer = bytearray(PIECE_BYTES)
            since = time.monotonic()
            received = 0
            while got := connection.recv_into(buffer):
                received += got
            elapsed = time.monotonic() - since
        os.waitpid(child, 0)
    if received != size:
        raise OSError(f"{received} of {size} bytes arrived")
    return elapsed


def _send(address: tuple[str, int], size: int) -> None:
    """The child's whole life."""
    try:
        piece = os.urandom(PIECE_BYTES)
        with socket.create_connection(address) as connection:
            for _ in range(size // PIECE_BYTES):
                connection.sendall(piece)
    finally:
        os._exit(0)
