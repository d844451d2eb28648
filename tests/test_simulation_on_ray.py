"""`hotpair simulate --ray` on a real cluster: the same results, nothing lost in silence, nothing left running."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hotpair.actors.simulation_on_ray import ClusterRefused, chunk_of, lives_on_ray, not_heard
from hotpair.cluster.arbitration import Kind
from hotpair.cluster.simulation.batch import CHUNK
from hotpair.simulate_command import main
from tests.ray_cluster import RayCluster, ray_cluster
from tests.witness_process import free_port

COMMAND = [sys.executable, "-P", "-c", "from hotpair.command_line import main; raise SystemExit(main())", "simulate"]
WAIT_S = 20.0
LOOK_S = 0.1  # between looks at other processes; a task takes longer


@pytest.fixture(scope="module")
def running() -> Iterator[RayCluster]:
    with ray_cluster() as made:
        yield made


@pytest.fixture
def cluster(running: RayCluster, monkeypatch: pytest.MonkeyPatch) -> RayCluster:
    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    return running


def wait_for(condition: Callable[[], bool]) -> None:
    """Of other processes, of which nobody tells us."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(LOOK_S)


# ---- a run


def test_the_results_are_those_of_one_machine_even_when_a_process_dies(
    cluster: RayCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds = CHUNK + 8
    tables = []
    files = [tmp_path / "here.json", tmp_path / "there.json"]
    killed: list[int] = []

    def kill_one() -> None:
        wait_for(lambda: bool(cluster.at_work()))
        for process in cluster.at_work():
            killed.append(process.pid)
            process.kill()

    killer = threading.Thread(target=kill_one)
    for file, where in zip(files, (["--jobs", "1"], ["--ray", cluster.address]), strict=True):
        if "--ray" in where:
            killer.start()
        given = ["--seeds", str(seeds), "--from", "7", "--policy", "none", "--split-brain", "most-changes"]
        assert main([*given, "--json", str(file), *where]) == 0
        tables.append(capsys.readouterr().out.rpartition(" in ")[0])  # all but how long it took
    killer.join()
    assert len(killed) == 1
    assert tables[0] == tables[1] and f"{seeds} seeds" in tables[1]
    results = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    here, there = (sorted(lines, key=lambda line: line["seed"]) for lines in results)
    assert [line["seed"] for line in there] == list(range(7, 7 + seeds))
    assert {line["split_brain_policy"] for line in there} == {"most-changes"}
    assert here == there


def test_a_task_that_fails_for_good_is_told_with_its_seeds(
    cluster: RayCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = threading.Event()
    killed: set[int] = set()

    def kill() -> None:
        while not ended.wait(LOOK_S):
            for process in cluster.at_work():
                killed.add(process.pid)
                process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        code = main(["--seeds", "16", "--from", "7", "--ray", cluster.address, "--json", str(tmp_path / "lives.json")])
    finally:
        ended.set()
        killer.join()
    assert code == 3
    lost = [line for line in capsys.readouterr().out.splitlines() if line.startswith("LOST")]
    assert len(lost) == 1 and lost[0].startswith("LOST seeds 7 to 22: ")
    assert (tmp_path / "lives.json").read_text() == ""
    assert len(killed) == 4, "once, and three times more"


def test_after_ctrl_c_nothing_is_at_work(cluster: RayCluster) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--seeds", "100000", "--ray", cluster.address],
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        wait_for(lambda: bool(cluster.at_work()))
        drivers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=WAIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert b"interrupted" in said and b"Traceback" not in said
    assert len(drivers) == 1 and not drivers[0].is_running()
    wait_for(lambda: not cluster.at_work())


def test_another_version_on_a_machine_is_refused(
    cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "hotpair-9.9.9.dist-info"
    data.mkdir()
    (data / "METADATA").write_text("Metadata-Version: 2.1\nName: hotpair\nVersion: 9.9.9\n")
    file = tmp_path / "lives.json"
    file.write_text("of an earlier run")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")  # of the driver; the cluster runs already
    assert main(["--seeds", "5", "--ray", cluster.address, "--json", str(file)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "hotpair here is 9.9.9 (code" in said and "it is 0.1.0 (code" in said
    assert file.read_text() == "of an earlier run"


def test_a_cluster_that_asks_for_a_token_refuses_who_has_none(
    cluster: RayCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert main(["--seeds", "5", "--ray", cluster.address]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"no Ray cluster at {cluster.address}: " in said
    assert "token is missing" in said


# ---- no cluster


def test_where_nothing_listens_is_no_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    assert main(["--seeds", "5", "--ray", address]) == 2
    assert capsys.readouterr().err == f"hotpair simulate: no Ray cluster at {address}: Connection refused\n"


def test_who_listens_and_does_not_answer_is_no_cluster() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        began = time.monotonic()
        said = f"no Ray cluster at {address}: no answer within 1 s"
        with pytest.raises(ClusterRefused, match=said), lives_on_ray(address, Kind.NONE, range(5), start_s=1.0):
            pass
        assert time.monotonic() - began < 6.0


@pytest.mark.parametrize("address", ["local", "", "ray://127.0.0.1:10001", "127.0.0.1", ":6379", "127.0.0.1:70000"])
def test_what_is_no_address_is_refused(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seeds", "5", "--ray", address]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "HOST:PORT of its head, or auto" in said


@pytest.mark.parametrize("other", [["--jobs", "1"], ["--trace"], ["--seed", "0"]])
def test_what_does_not_go_with_a_cluster_is_refused(other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--ray", "auto", *other])
    assert ended.value.code == 2
    assert f"--ray does not go with {other[0]}" in capsys.readouterr().err


def test_ray_is_not_imported_without_a_cluster() -> None:
    check = (
        "import sys, hotpair.simulate_command as command; command.main(['--seeds', '1']); print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", check], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


# ---- what was not heard of


def test_what_was_not_heard_of_is_put_together() -> None:
    seeds = range(5, 5 + 5 * CHUNK + 3)
    firsts = list(range(5, seeds.stop, CHUNK))
    assert list(not_heard(seeds, set(firsts))) == []
    assert list(not_heard(seeds, set())) == [seeds]
    left = list(not_heard(seeds, {firsts[0], firsts[3]}))
    assert left == [range(firsts[1], firsts[3]), range(firsts[4], seeds.stop)]
    assert [len(chunk_of(seeds, first)) for first in firsts] == [CHUNK] * 5 + [3]
