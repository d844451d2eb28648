"""Runs fio and reads its JSON."""

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import prefer
from bench.process import BenchError

GRACE_S = 60.0
NBD_ENGINE = "--ioengine=nbd"
NBD_GRACE_S = 4.0
NBD_TRIES = 8
PERCENTILES = ("50.000000", "99.000000", "99.900000")


@dataclass(frozen=True)
class Result:
    """One direction (reads or writes) of one group of jobs: rates per second, times in microseconds."""

    operations: int
    iops: float
    bytes_per_s: float
    p50_us: float
    p99_us: float
    p999_us: float


@dataclass(frozen=True)
class Run:
    """What one fio process measured, by job name, and the processor time fio itself used."""

    reads: dict[str, Result]
    writes: dict[str, Result]
    processor_s: float


def run(arguments: list[str], directory: Path, expected_s: float) -> Run:
    """One fio process; raises BenchError when it fails, finds wrong content or does not end."""
    # fio's nbd engine (3.33) sleeps for ever when all its answers have come while it was still asking: its
    # getevents polls before it looks at what has been completed already. Such a run is thrown away.
    if NBD_ENGINE in arguments:
        for _ in range(NBD_TRIES - 1):
            try:
                return _run(arguments, directory, expected_s + NBD_GRACE_S)
            except subprocess.TimeoutExpired:
                continue
    limit_s = expected_s + GRACE_S
    try:
        return _run(arguments, directory, limit_s)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"fio did not end within {limit_s:.0f} s: {' '.join(arguments)}") from error


def _run(arguments: list[str], directory: Path, limit_s: float) -> Run:
    report = directory / "fio.json"
    # --thread: a job process of its own would make a session of its own, and could not be ended by its group.
    line = ["fio", "--thread", "--output-format=json", f"--output={report}", *arguments]
    before = os.times()
    process = subprocess.Popen(
        line,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=directory,
        start_new_session=True,
    )
    prefer([process.pid])
    try:
        words, _ = process.communicate(timeout=limit_s)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(GRACE_S)
    after = os.times()
    if process.returncode:
        raise BenchError(f"fio gave {process.returncode}: {words.strip()[-500:]} ({' '.join(line)})")
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return _parse(json.loads(_only_json(report.read_text())), used)


def _only_json(text: str) -> str:
    """fio prints its warnings before the JSON."""
    return text[text.index("{") :]


def _parse(report: dict[str, Any], used_s: float) -> Run:
    reads: dict[str, Result] = {}
    writes: dict[str, Result] = {}
    for job in report["jobs"]:
        if job["error"]:
            raise BenchError(f"fio's job {job['jobname']} failed with error {job['error']}")
        for direction, into in (("read", reads), ("write", writes)):
            if job[direction]["total_ios"]:
                into[job["jobname"]] = _result(job[direction])
    return Run(reads, writes, used_s)


def _result(part: dict[str, Any]) -> Result:
    percentiles = part["lat_ns"].get("percentile", {})
    p50, p99, p999 = (percentiles.get(key, 0) / 1000 for key in PERCENTILES)
    return Result(part["total_ios"], part["iops"], part["bw_bytes"], p50, p99, p999)
