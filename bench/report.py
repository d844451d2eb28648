"""The report of a run: tables for people, JSON for programs."""

import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.reach import SUBJECT, Row, rows
from bench.results import DISTURBED, Results
from bench.workloads import MIB, WORKLOADS

WIDTH = 160  # where the output is not a terminal


def print_report(results: Results) -> None:
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if results.samples:
        console.print(_measurements(results))
    if results.memory:
        console.print(_memory(results))
    if results.resync:
        console.print(_resync(results.resync))
    console.print(_reach(rows(results)))
    if disturbed := sum(sample.disturbance > DISTURBED for sample in results.samples):
        console.print(
            f"[bold yellow]disturbed:[/] {disturbed} of {len(results.samples)} measurements: other processes used more"
            f" than {DISTURBED} processors, and on so few the ratios are not those of a quiet machine",
            highlight=False,
        )
    if results.verified:
        console.print(f"Verified by checksum, copies compared byte for byte: {', '.join(results.verified)}")
    for error in results.errors:
        console.print(f"[bold red]error:[/] {error}", highlight=False)


def write_json(results: Results, options: dict[str, Any], path: Path) -> None:
    summaries = results.summaries()
    report = {
        "machine": {
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "load_average": os.getloadavg(),
        },
        "options": options,
        "reach": [{**asdict(row), "reached": row.reached} for row in rows(results)],
        "summaries": [
            {"system": system, "workload": workload, **asdict(summary)}
            for (system, workload), summary in summaries.items()
        ],
        "samples": [asdict(sample) for sample in results.samples],
        "memory": results.memory,
        "resync": results.resync,
        "verified": results.verified,
        "errors": results.errors,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


def _measurements(results: Results) -> Table:
    table = Table(title="Medians over the rounds (lowest to highest); processor time without fio's")
    headings = ("system", "ops/s", "lowest", "highest", "MB/s", "p50 us", "p99 us", "p99.9 us", "CPU us/op")
    table.add_column("workload")
    for heading in (*headings, "cold reads/s", "others' CPUs", f"{SUBJECT} /"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    summaries = results.summaries()
    for workload in WORKLOADS:
        here = {system: each for (system, name), each in summaries.items() if name == workload.name}
        for number, (system, each) in enumerate(here.items()):
            table.add_row(
                workload.name if number == 0 else "",
                system,
                *(f"{value:,.0f}" for value in (each.iops, each.iops_low, each.iops_high, each.bytes_per_s / 1e6)),
                *(f"{value:,.0f}" for value in (each.p50_us, each.p99_us, each.p999_us)),
                f"{each.processor_us:.1f}" if each.processor_us else "",
                f"{each.readers_iops:,.0f}" if each.readers_iops else "",
                f"{each.disturbance:.2f}",
                f"{here[SUBJECT].iops / each.iops:.2f}x" if SUBJECT in here and system != SUBJECT else "",
                end_section=number == len(here) - 1,
            )
    return table


def _memory(results: Results) -> Table:
    table = Table(title="Memory of each process, MiB")
    table.add_column("system")
    table.add_column("process")
    for heading in ("idle RSS", "idle PSS", "used RSS", "used PSS"):
        table.add_column(heading, justify="right")
    for system, moments in results.memory.items():
        for process in moments.get("used", moments["idle"]):
            cells = [
                f"{moments[moment][process][kind] / MIB:.1f}" if process in moments.get(moment, {}) else ""
                for moment in ("idle", "used")
                for kind in ("rss_bytes", "pss_bytes")
            ]
            table.add_row(system, process, *cells)
    return table


def _resync(resync: dict[str, Any]) -> Table:
    table = Table(title="Synchronisation")
    table.add_column("what")
    table.add_column("figures")
    if full := resync.get("full_sync"):
        rates = ", ".join(f"{name} {rate / 1e6:.0f} MB/s" for name, rate in full["bytes_per_s"].items())
        table.add_row(f"full, {full['bytes'] / 2**30:.0f} GiB", rates)
    if back := resync.get("reintegration"):
        sent = ", ".join(f"{key.removesuffix('_bytes')} {back[key] / 1e6:.1f} MB" for key in back if key != "seconds")
        table.add_row("reintegration of 1 %", f"{sent}, in {back['seconds']:.2f} s")
    if p99 := resync.get("p99"):
        during = "not measured" if p99["during_us"] is None else f"{p99['during_us']:.0f} us"
        ends = ", ".join(p99["states_at_the_end"])
        table.add_row(
            "4k-qd1 p99", f"without {p99['without_us']:.0f} us, during {during} (when the writes ended: {ends})"
        )
    return table


def _reach(found: list[Row]) -> Table:
    table = Table(title="Targets: ratios within this run")
    for heading in ("what", "against", "wanted", "measured", "reached"):
        table.add_column(heading, justify="right" if heading in ("wanted", "measured") else "left")
    words = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: "[dim]not measured[/]"}
    for row in found:
        wanted = f"{'>=' if row.at_least else '<='} {row.limit:g} {row.unit}"
        measured = "" if row.value is None else f"{row.value:.2f} {row.unit}"
        table.add_row(row.what, row.against, wanted, measured, words[row.reached])
    return table
