"""The report of a run: tables for people, JSON for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.failover.figures import KINDS, Idle, Results, Row, Use, rows

WIDTH = 150  # where the output is not a terminal
MIB = 1 << 20
_WORDS = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: "[dim]not measured[/]"}


def print_report(results: Results, console: Console | None = None) -> None:
    console = console or Console(width=None if sys.stdout.isatty() else WIDTH)
    console.print(_times(rows(results.values)))
    if results.idle:
        console.print(_idle(results.idle))
    for error in results.errors:
        console.print(f"[bold red]error:[/] {error}", highlight=False)


def write_json(results: Results, options: Mapping[str, Any], path: Path) -> None:
    report = {
        "machine": {
            "kernel": platform.release(),
            "processors": os.cpu_count(),
            "python": platform.python_version(),
            "load_average": os.getloadavg(),
        },
        "options": dict(options),
        "figures": [
            {**asdict(row.target), "spread": None if row.spread is None else asdict(row.spread), "reached": row.reached}
            for row in rows(results.values)
        ],
        "runs": results.details,
        "idle": [asdict(one) for one in results.idle],
        "errors": results.errors,
    }
    path.write_text(json.dumps(report, indent=1) + "\n")


def _times(found: list[Row]) -> Table:
    table = Table(title="Failing over: the slowest run counts")
    table.add_column("what")
    for heading in ("runs", "least", "median", "most", "wanted"):
        table.add_column(heading, justify="right")
    table.add_column("reached")
    for row in found:
        target, spread = row.target, row.spread
        digits = 2 if target.scale == 1.0 and target.unit else 0
        values = () if spread is None else (spread.least, spread.median, spread.most)
        cells = [f"{value * target.scale:.{digits}f} {target.unit}".strip() for value in values] or ["", "", ""]
        runs = "" if spread is None else str(spread.runs)
        table.add_row(target.what, runs, *cells, f"<= {target.limit:g} {target.unit}".strip(), _WORDS[row.reached])
    return table


def _idle(steps: list[Idle]) -> Table:
    """One row for each kind of process, three columns for each number of modules."""
    table = Table(title="What is idle: one of the two servers (the mean of both)")
    table.add_column("processes")
    for step in steps:
        for heading in (f"{step.modules} modules" if step.modules != 1 else "1 module", "PSS MiB", "% of a CPU"):
            table.add_column(heading, justify="right")
    for kind in KINDS:
        if any(kind in step.uses for step in steps):
            table.add_row(kind, *(cell for step in steps for cell in _cells(step.uses.get(kind))))
    table.add_section()
    table.add_row("together", *(cell for step in steps for cell in _cells(step.whole)))
    table.add_section()
    for what, value in (
        ("until all are green", lambda step: f"{step.green_s:.0f} s"),
        ("pulses sent, lost", lambda step: f"{step.sent}, {step.lost}"),
        ("others' processors", lambda step: f"{step.others:.2f}"),
    ):
        table.add_row(what, *(cell for step in steps for cell in (value(step), "", "")))
    return table


def _cells(use: Use | None) -> tuple[str, str, str]:
    if use is None:
        return "", "", ""
    return str(use.processes), f"{use.pss_bytes / MIB:,.0f}", f"{use.processor * 100:.1f}"
