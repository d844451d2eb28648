"""`hotpair run` itself, with its real Ray runtime: it ends when it is told to, also while it is still starting."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hotpair.demo_servers_io import hotpair_command
from hotpair.run_command import FOLDERS
from tests.api_server import CLUSTER

FIRST_RAY_PORT = 25200
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
    "Ray is asked to start": lambda service: service.runs("ray.scripts.scripts"),
    "Ray's own services start": lambda service: service.runs("raylet/raylet", "gcs_server"),
    "the supervisor is made": lambda service: service.runs("ray_bootstrap"),
    "it is up": lambda service: "ready" in service.log.read_text().splitlines(),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_it_ends_at_any_moment_and_leaves_nothing(service: Service, moment: str) -> None:
    service.until(lambda: MOMENTS[moment](service), moment)
    service.process.terminate()
    assert service.process.wait(PROMPT_S) == 0, service.log.read_text()
    left = [" ".join(process.cmdline())[:200] for process in service.processes()]
    assert left == [], left
    said = service.log.read_text()
    assert "Traceback" not in said and " ERROR " not in said, said
    assert ("ready" in said.splitlines()) is (moment == "it is up")
