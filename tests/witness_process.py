"""A real witness for the tests: its directory, its keys, its process."""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hotpair.cluster.arbitration import Claim, Purpose
from hotpair.cluster.connection_io import Address, ClientTls
from hotpair.cluster.witness_client_io import WitnessClient

START_S = 20.0
COMMAND = [sys.executable, "-P", "-m", "hotpair.cluster.witness_command"]
COMMAND_LINE = [
    sys.executable,
    "-P",
    "-c",
    "from hotpair.command_line import main; raise SystemExit(main())",
    "witness",
]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def claim(server: str = "a", epoch: int = 0, purpose: Purpose = Purpose.GO_ALONE, **names: str) -> Claim:
    pair, module = names.get("pair", "pair"), names.get("module", "vm")
    identifier = secrets.token_bytes(16)
    return Claim(request_id=identifier, pair=pair, module=module, server=server, epoch=epoch, purpose=purpose)


def wait_for(condition: Callable[[], bool]) -> None:
    """Of another process's log file, of whose change nobody tells us."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Witness:
    """One witness, that can be started, killed and started again on the same data."""

    def __init__(self, folder: Path, *options: str, pairs: tuple[str, ...] = ("pair",)) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.keys_path = folder / "keys.toml"
        self.keys: dict[str, bytes] = {}
        self.options = options
        self.address = Address("127.0.0.1", free_port())
        self.log_path = folder / "log"
        self.process: subprocess.Popen[bytes] | None = None
        self.command = COMMAND
        for pair in pairs:
            self.add_pair(pair)

    def add_pair(self, pair: str) -> None:
        self.keys[pair] = secrets.token_bytes(32)
        self.write_keys("".join(f'"{name}" = "{key.hex()}"\n' for name, key in self.keys.items()))

    def write_keys(self, text: str, mode: int = 0o600) -> None:
        self.keys_path.write_text(text)
        os.chmod(self.keys_path, mode)

    def arguments(self) -> list[str]:
        return ["--listen", str(self.address), "--data", str(self.data), "--keys", str(self.keys_path), *self.options]

    def start(self) -> None:
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                [*self.command, *self.arguments()], stdout=subprocess.PIPE, stderr=log, cwd="/"
            )
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        output = self.process.stdout
        assert output is not None
        threading.Thread(target=lambda: lines.put(output.readline()), daemon=True).start()
        assert lines.get(timeout=START_S) == b"ready\n", self.log()

    def refuses_to_start(self) -> str:
        """The one line with which it ends, with exit code 2."""
        done = subprocess.run(
            [*self.command, *self.arguments()], capture_output=True, text=True, cwd="/", timeout=START_S
        )
        assert done.returncode == 2 and done.stdout == "", (done.returncode, done.stdout, done.stderr)
        assert done.stderr.startswith("hotpair: ") and done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate(timeout=START_S)
            self.process = None

    def stop(self) -> int:
        self.signal(signal.SIGTERM)
        assert self.process is not None
        self.process.communicate(timeout=START_S)
        code, self.process = self.process.returncode, None
        return code

    def client(
        self, pair: str = "pair", *, tls: ClientTls | None = None, timeout_s: float = 10.0, key: bytes | None = None
    ) -> WitnessClient:
        return WitnessClient(self.address, self.keys[pair] if key is None else key, tls, timeout_s)

    def connect(self) -> socket.socket:
        return socket.create_connection((self.address.host, self.address.port), timeout=10)

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""
