"""The benchmark's own arithmetic: gaps, spreads, kinds of processes, targets, the table. Nothing is timed here."""

from __future__ import annotations

import importlib
import importlib.util
import io
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent


def part(name: str) -> Any:
    """A module of the benchmark, which is not installed."""
    if "bench" not in sys.modules:
        spec = PathFinder.find_spec("bench", [str(ROOT)])
        assert spec is not None and spec.loader is not None
        sys.modules["bench"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["bench"])
    return importlib.import_module(f"bench.failover.{name}")


figures = part("figures")
report = part("report")


def test_the_longest_gap_around_the_cut_is_found_and_the_usual_one_beside_it() -> None:
    before = [number * 0.002 for number in range(500)]  # up to 0.998, every 2 ms
    times = [*before, 1.048, 1.050, 1.052, 3.0]
    gap = figures.gap_around(times, cut=1.0, until=1.06)
    assert gap.longest == pytest.approx(1.948)  # it begins before `until`, though it ends much later
    gap = figures.gap_around(times, cut=1.0, until=1.051)
    assert (gap.longest, gap.usual) == (pytest.approx(0.050), pytest.approx(0.002))
    assert gap.began == pytest.approx(-0.002)  # the write before the cut was the last one
    assert gap.beyond == pytest.approx(0.048)


def test_a_gap_before_the_cut_does_not_count() -> None:
    gap = figures.gap_around([0.0, 0.9, 0.901, 0.902, 0.912, 0.913], cut=0.9025, until=1.0)
    assert gap.longest == pytest.approx(0.010)


@pytest.mark.parametrize("times", [[], [1.0], [0.1, 0.2], [1.1, 1.2]])
def test_without_writes_on_both_sides_there_is_no_gap(times: list[float]) -> None:
    with pytest.raises(ValueError, match="nothing was written"):
        figures.gap_around(times, cut=1.0, until=2.0)


def test_what_the_application_wrote_down_is_read() -> None:
    marks = figures.marks_of("started 10.5 a\nended 12.25 a\nstarted 12.5 b\nstarted 13.0 b\nend")
    assert [mark.what for mark in marks] == ["started", "ended", "started", "started"]
    assert figures.first_after(marks, "started", "b", 11.0) == 12.5
    assert figures.first_after(marks, "started", "b", 12.5) == 13.0
    assert figures.first_after(marks, "started", "a", 10.5) is None


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("ray::HeartbeatActor", "heartbeat actors"),
        ("ray::HeartbeatActor.status", "heartbeat actors"),
        ("ray::ReplicationActor", "replication actors"),
        ("ray::VmActor.start", "VM actors"),
        ("ray::SupervisorActor", "supervisor"),
        ("ray::m01/vm:VmActor.find", "VM actors"),
        ("ray::IDLE", "idle Ray workers"),
        ("ray::RuntimeEnvAgent", "Ray"),
        ("/x/ray/core/src/ray/gcs/gcs_server --log_dir=/run", "Ray"),
        ("/x/ray/core/src/ray/raylet/raylet --store_socket_name=/run", "Ray"),
        ("python -u /x/ray/_private/runtime_env/agent/main.py --node-id=1", "Ray"),
        ("python -P -m hotpair.actors.ray_start start --head --block", "Ray"),
        ("python -P -m hotpair.replication source --dir /a/m01 --peer 127.0.0.2:27000", "mirrors"),
        ("python -P -m hotpair.replication target --dir /a/m01 --listen 127.0.0.1:27000", "mirrors"),
        ("python -P -m hotpair.replication.helper 5", "mirrors' helpers"),
        ("python -I -S /x/hotpair/replication/keeper.py /a/keeper.sock", "mirrors' helpers"),
        ("python -P -m hotpair.hyperv.detach_io log /a/application.log application", "applications' logs"),
        ("python -P -c x run --home /a --server a --ray-port 1", "service"),
        ("python -I /var/tmp/application.py /var/tmp/marks idle", "applications"),
        ("python -P -m hotpair.actors.fork_server_io hotpair.actors.ray_actors", "Ray"),
        ("sleep 5", "other"),
        ("", "other"),
    ],
)
def test_a_process_is_known_by_its_command_line(line: str, kind: str) -> None:
    assert figures.kind_of(line.split()) == kind
    assert kind in figures.KINDS


def test_the_samples_of_a_metric_are_found_by_their_labels() -> None:
    text = (
        "# HELP hotpair_pulses_lost_total x\n# TYPE hotpair_pulses_lost_total counter\n"
        'hotpair_pulses_lost_total{module="a",network="lan"} 2.0\n'
        'hotpair_pulses_lost_total{module="b",network="lan"} 3.0\n'
        "hotpair_modules 2.0\n"
    )
    assert figures.samples_of(text, "hotpair_pulses_lost_total") == {
        '{module="a",network="lan"}': 2.0,
        '{module="b",network="lan"}': 3.0,
    }
    assert figures.samples_of(text, "hotpair_modules") == {"": 2.0}


def test_a_target_is_reached_when_the_slowest_run_is_within_it() -> None:
    found = {row.target.name: row for row in figures.rows({"failover": [5.5, 7.0, 6.0], "freeze": [0.01, 0.0501]})}
    assert found["failover"].spread == figures.Spread(3, 5.5, 6.0, 7.0)
    assert found["failover"].reached is True
    assert found["freeze"].reached is False  # 50.1 ms
    assert found["swap"].reached is None
    assert len(found) == len(figures.TARGETS)


def test_the_table_shows_measured_values_beside_the_targets() -> None:
    results = figures.Results()
    results.add("failover", 5.25)
    results.add("failover", 8.0, events=[])
    results.add("freeze", 0.0123)
    use = figures.Use(3, 150 << 20, 0.0421)
    results.idle.append(figures.Idle(5, 12.3, 20.0, {"VM actors": use, "Ray": use}, 0.5, 1000, 0))
    results.errors.append("something")
    out = io.StringIO()
    report.print_report(results, Console(file=out, width=200))
    lines = out.getvalue().splitlines()

    def line(begin: str) -> list[str]:
        return next(one for one in lines if begin in one).replace("│", " ").split()

    assert " ".join(line("defaults (5 s)")).endswith(" 2 5.25 s 6.62 s 8.00 s <= 7 s NO")
    assert "12 ms" in " ".join(line("its kernel says so")) and line("its kernel says so")[-1] == "yes"
    assert " ".join(line("timeout_s = 1")).endswith("<= 2.5 s not measured")
    assert line("VM actors")[-3:] == ["3", "150", "4.2"]
    assert line("together")[-3:] == ["6", "300", "8.4"]
    assert "error: something" in out.getvalue()
