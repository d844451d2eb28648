"""A real Ray cluster of one machine for the tests: own ports, own folder, own token; nothing is left of it."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.witness_process import free_port

START_S = 60.0
STOP_S = 20.0
STARTED = b"Ray runtime started."
OPTIONS = ["--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=1", "--object-store-memory=83886080"]
OPTIONS += ["--include-dashboard=false", "--include-log-monitor=false", "--no-monitor", "--disable-usage-stats"]
OPTIONS += ["--min-worker-port=0", "--max-worker-port=0"]
PROFILE = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_task_events_report_interval_ms": "0",
}


class RayCluster:
    """`environment` is what a program needs beside its own to connect to it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], port: int, environment: dict[str, str]) -> None:
        self.folder = folder
        self.address = f"127.0.0.1:{port}"
        self.environment = environment
        self._process = process

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self._process.pid).children(recursive=True)

    def at_work(self) -> list[psutil.Process]:
        """The processes that run a task: Ray gives them its name."""
        return [process for process in self.processes() if "ray::run" in _title(process)]

    def stop(self) -> list[str]:
        """What had to be killed."""
        everything = self.processes()
        self._process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(everything, STOP_S)
        titles = [_title(process) for process in left]
        for process in left:
            process.kill()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            titles.append("ray start")
            self._process.kill()
            self._process.wait()
        return titles


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just gone
        return ""


@contextmanager
def ray_cluster() -> Iterator[RayCluster]:
    # a short name: Ray makes sockets far below it, and their paths have to fit into 107 bytes
    with tempfile.TemporaryDirectory(prefix="hr-") as name:
        folder = Path(name)
        token = folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        environment = {**PROFILE, "RAY_AUTH_TOKEN_PATH": str(token)}
        port = free_port()
        ports = [f"--port={port}", f"--dashboard-agent-listen-port={free_port()}"]
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", *OPTIONS, *ports, f"--temp-dir={name}"],
            cwd=name,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        cluster = RayCluster(folder, process, port, environment)
        try:
            _wait_until_started(process)
            yield cluster
        finally:
            left = cluster.stop()
        assert left == []


def _wait_until_started(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    said: list[bytes] = []
    started = threading.Event()  # or it never will be

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                said.append(line)
                if STARTED in line:
                    started.set()
        started.set()

    threading.Thread(target=read, daemon=True).start()
    started.wait(START_S)
    assert any(STARTED in line for line in said), b"".join(said).decode()
