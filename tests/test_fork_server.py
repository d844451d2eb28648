"""The fork server: what it makes is as Python would have started it, and whoever it cannot serve hears of it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from hotpair.actors import fork_client_io, ray_worker
from hotpair.actors.fork_client_io import LENGTH, LONGEST, NotForked, fork

WAIT_S = 20.0
JOB = {"RAY_JOB_ID": "01000000"}

# Says what it runs with, and how it was told to end.
PROGRAM = """
import json, os, sys
print(json.dumps([__name__, sys.argv[1:], os.getcwd(), os.environ.get("COLOUR"), os.environ.get("RAY_JOB_ID"),
                  os.getpgrp() == os.getpid(), sorted(os.listdir("/proc/self/fd")), sys.stdin.read(),
                  "colorsys" in sys.modules]))
print("an error", file=sys.stderr)
sys.exit(3)
"""


@dataclass
class Served:
    path: str
    process: subprocess.Popen[bytes]
    raylet: subprocess.Popen[bytes]
    environment: dict[str, str]
    program: str


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """With a process in place of the raylet, which ends when its input does."""
    raylet = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    environment = os.environ | JOB | {"RAY_RAYLET_PID": str(raylet.pid)}
    path = str(tmp_path / "fork")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "hotpair.actors.fork_server_io", "colorsys"],
            env=environment,
            cwd="/",
            stdin=listening.fileno(),
            stderr=subprocess.PIPE,
        )
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    try:
        yield Served(path, process, raylet, environment, str(program))
    finally:
        raylet.kill()
        raylet.communicate()
        process.kill()
        process.communicate()


def ended(process: int) -> bool:
    """Whether it ends in time."""
    try:
        descriptor = os.pidfd_open(process)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], WAIT_S)[0])
    finally:
        os.close(descriptor)


def test_what_it_makes_is_as_python_would_have_started_it(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    files = [tmp_path / name for name in ("in", "out", "err")]
    files[0].write_text("what it reads")
    with files[0].open() as given, files[1].open("w") as said, files[2].open("w") as wrong:
        standard = (given.fileno(), said.fileno(), wrong.fileno())
        environment = served.environment | {"COLOUR": "green"}
        processes = [fork(served.path, [served.program, "a", "ü"], environment, standard)]
        assert ended(processes[0])
    words = json.loads(files[1].read_text())
    open_ones = words.pop(6)
    assert words == [
        "__main__", ["a", "ü"], str(tmp_path), "green", "01000000", True, "what it reads", True,
    ]  # fmt: skip
    assert len(open_ones) == 4  # the standard ones, and the directory that is listed
    assert files[2].read_text() == "an error\n"
    assert served.process.poll() is None


def test_one_that_fails_says_why_and_the_next_is_served(served: Served, tmp_path: Path) -> None:
    for _ in range(2):
        with open(tmp_path / "err", "w") as wrong:
            standard = (wrong.fileno(), wrong.fileno(), wrong.fileno())
            assert ended(fork(served.path, [str(tmp_path / "nothing.py")], served.environment, standard))
        assert "FileNotFoundError" in (tmp_path / "err").read_text()


@pytest.mark.parametrize("name", ["RAY_JOB_ID", "RAY_RAYLET_PID"])
def test_a_worker_of_another_job_or_raylet_is_refused(served: Served, name: str) -> None:
    with pytest.raises(NotForked, match="refuses"):
        fork(served.path, [served.program], served.environment | {name: "77"}, (0, 1, 2))
    assert served.process.poll() is None


@pytest.mark.parametrize(
    "words",
    [
        b"",
        b"\0",
        LENGTH.pack(5),
        LENGTH.pack(5) + b"hello",
        LENGTH.pack(LONGEST + 1),
        LENGTH.pack(1) + b"5",
        LENGTH.pack(2) + b"[]",
        LENGTH.pack(11) + b'[[],[],"/"]',
    ],
)
def test_nonsense_is_refused_and_the_next_is_served(served: Served, tmp_path: Path, words: bytes) -> None:
    for rights in (0, 3):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(served.path)
            if words:
                socket.send_fds(connection, [words], [0] * rights)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(WAIT_S)
            with contextlib.suppress(ConnectionResetError):  # it has not read everything
                assert connection.recv(100) == b""
    with open(tmp_path / "out", "w") as said, open(os.devnull) as nothing:
        standard = (nothing.fileno(), said.fileno(), said.fileno())
        assert ended(fork(served.path, [served.program], served.environment, standard))
    assert "__main__" in (tmp_path / "out").read_text()


def test_it_ends_with_its_raylet(served: Served) -> None:
    served.raylet.communicate()
    assert served.process.wait(WAIT_S) == 0


def test_without_a_fork_server_the_worker_is_started_all_the_same(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    for server in ({}, {ray_worker.FORK_SERVER: str(tmp_path / "nothing")}):
        done = subprocess.run(
            [sys.executable, ray_worker.__file__, str(program), "--language=PYTHON", "--worker-id=5"],
            env=os.environ | server,
            input="",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 3
        assert json.loads(done.stdout)[1] == ["--worker-id=5"]
        assert "not forked" in done.stderr


def test_an_end_without_an_answer_is_said(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "fork"))
        with pytest.raises(NotForked, match="refused"):
            fork(str(tmp_path / "fork"), [], {}, (0, 1, 2))
    assert fork_client_io.ANSWER_S < 60  # Ray's patience with a worker that starts


def test_who_has_given_up_gets_no_second_process(served: Served, tmp_path: Path) -> None:
    """It has started the worker itself by then. The server is held, as if it still imported."""
    os.kill(served.process.pid, signal.SIGSTOP)
    made = tmp_path / "made"
    question = json.dumps([[served.program, "late"], served.environment, "/"]).encode()
    with socket.socket(socket.AF_UNIX) as connection, open(made, "w") as said:
        connection.connect(served.path)
        socket.send_fds(connection, [LENGTH.pack(len(question)) + question], [said.fileno()] * 3)
    os.kill(served.process.pid, signal.SIGCONT)
    with open(tmp_path / "out", "w") as said, open(os.devnull) as nothing:
        standard = (nothing.fileno(), said.fileno(), said.fileno())
        assert ended(fork(served.path, [served.program, "next"], served.environment, standard))
    assert '"next"' in (tmp_path / "out").read_text()
    assert made.read_text() == ""
