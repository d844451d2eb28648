"""`hotpair run` itself, with its real Ray runtime: it ends when it is told to, also while it is still starting; and who
has not the runtime's token is refused."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hotpair.demo_servers_io import hotpair_command
from hotpair.run_command import FOLDERS
from tests.api_server import CLUSTER
from tests.witness_process import free_port

FIRST_RAY_PORT = 25200 + 300 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])  # workers do this at once
PROMPT_S = 20.0  # Ray's own processes may take some seconds, on a machine that others use too
START_S = 180.0
LOOK_S = 0.02

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="the runtime's folder is below /run"),
    pytest.mark.timeout(600),
]


class Service:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "cluster.toml").write_text(CLUSTER.format(tls="false"))
        (folder / "modules").mkdir()
        key = folder / "pair.key"
        key.touch(0o600)
        key.write_text("5" * 64)
        self.log = folder / "log"
        given = ["--home", str(folder), "--server", "alpha", "--ray-port", str(FIRST_RAY_PORT)]
        given += ["--api-port", str(free_port())]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                hotpair_command("run", *given), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """All but the service itself that have to do with this home, wherever they hang in the tree."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                words = [*process.cmdline(), *process.environ().values()]
                is_named = any(str(self.folder) in word or f"{FOLDERS}/{FIRST_RAY_PORT}" in word for word in words)
                if is_named and process.pid != self.process.pid and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not condition():
            assert self.process.poll() is None, f"it has ended by itself: {self.log.read_text()}"
            assert time.monotonic() < deadline, f"{what}: {self.log.read_text()}"
            time.sleep(LOOK_S)

    def is_up(self) -> bool:
        return "ready" in self.log.read_text().splitlines()

    def runs(self, *words: str) -> bool:
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = " ".join([process.name(), *process.cmdline()])
                if any(word in line for word in words):
                    return True
        return False


@pytest.fixture
def service() -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp(prefix="hotpair-run-", dir="/var/tmp"))
    made = Service(folder)
    yield made
    for process in [*made.processes(), made.process]:
        process.kill()
    made.process.wait()
    shutil.rmtree(folder)
    shutil.rmtree(f"{FOLDERS}/{FIRST_RAY_PORT}", ignore_errors=True)


MOMENTS: dict[str, Callable[[Service], bool]] = {
    "Ray is asked to start": lambda service: service.runs("ray_start"),
    "Ray's own services start": lambda service: service.runs("raylet/raylet", "gcs_server"),
    "the supervisor is made": lambda service: service.runs("ray_bootstrap"),
}
CONNECT = """
import sys, ray
ray.init(address=sys.argv[1], namespace="hotpair", log_to_driver=False, configure_logging=False)
print("connected to", ray.get_actor("supervisor", namespace="hotpair"))
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_it_ends_at_any_moment_and_leaves_nothing(service: Service, moment: str) -> None:
    service.until(lambda: MOMENTS[moment](service), moment)
    ends_and_leaves_nothing(service)
    assert not service.is_up()


def ends_and_leaves_nothing(service: Service) -> None:
    service.process.terminate()
    assert service.process.wait(PROMPT_S) == 0, service.log.read_text()
    left = [" ".join(process.cmdline())[:200] for process in service.processes()]
    assert left == [], left
    said = service.log.read_text()
    assert "Traceback" not in said and " ERROR " not in said, said


def test_ray_is_for_who_has_the_token_and_goes_with_the_service(service: Service) -> None:
    service.until(service.is_up, "it is up")
    token = Path(service.folder, "state", "ray", "token")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    given = {
        "nothing": {},
        "authentication switched off": {"RAY_AUTH_MODE": "disabled"},
        "another token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64},
        "the token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)},
    }
    drivers = {what: connect(plain | environment) for what, environment in given.items()}
    answers = {what: driver.communicate(timeout=START_S) for what, driver in drivers.items()}
    said, _ = answers.pop("the token")
    assert "connected to" in said, "or nothing of this shows anything"
    for what, (said, why) in answers.items():
        assert drivers[what].returncode != 0 and "connected to" not in said, what
        assert "token" in why, (what, why)
    ends_and_leaves_nothing(service)


def connect(environment: dict[str, str]) -> subprocess.Popen[str]:
    """A second driver."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", CONNECT, f"127.0.0.1:{FIRST_RAY_PORT}"], cwd="/", env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
