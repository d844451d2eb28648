"""What the commands print as tables, in the product's colours. Pure, but for `show_table`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hotpair.api_values import Checker, Details, Module

BYTES = ("bytes", "KiB", "MiB", "GiB", "TiB")


def show_table(table: Table) -> None:
    """On standard output, as wide as the terminal is."""
    Console().print(table)


def modules_table(modules: Sequence[Module]) -> Table:
    """One row for each module; the peer's state is what it said last."""
    table = Table(show_edge=False, pad_edge=False, box=SIMPLE_HEAD)  # lines that scripts can cut
    here = modules[0].server if modules else "here"
    peer = modules[0].peer if modules else "peer"
    for column in ("module", f"{here} (here)", peer, "VM", "copy", "why"):
        table.add_column(column, no_wrap=column != "why", overflow="fold")
    for one in modules:
        notes = [one.problem or one.reason]
        if one.mirror_reason:
            notes.append(f"Mirror: {one.mirror_reason}.")
        if one.maintenance:
            notes.insert(0, "Maintenance.")
        if one.plan:
            notes.insert(0, f"Under way: {one.plan}.")
        table.add_row(
            one.module,
            state_text(one.state, one.colour),
            state_text(one.peer_state, one.peer_colour),
            one.vm,
            one.data,
            Text(" ".join(note for note in notes if note)),
        )
    return table


def state_text(state: str | None, colour: str) -> Text:
    return Text(state or "unknown", style=f"bold {colour}" if state else colour)


def details_text(details: Details) -> Table:
    """Names and values, level by level."""
    table = Table(show_header=False, show_edge=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    said = asdict(details)
    module = said.pop("module")
    del said["checkers"]
    table.add_row("state", state_text(details.module.state, details.module.colour))
    own = {name: value for name, value in module.items() if name not in ("state", "colour", "peer_colour")}
    for name, value in [*_flat(own), *_flat(said)]:
        table.add_row(name, escape(_shown(name, value)))
    for one in details.checkers:
        table.add_row(f"checker.{one.name}", checker_text(one))
    return table


def checker_text(one: Checker) -> Text:
    """The kind, what was found, since when, and what would be done."""
    colour = {"up": "green", "down": "red"}.get(one.finding, "magenta")
    since = datetime.fromtimestamp(one.since).astimezone().isoformat(sep=" ", timespec="seconds")
    rest = f" since {since}: {one.detail} (action: {one.action})"
    return Text.assemble(f"{one.kind} ", (one.finding, f"bold {colour}"), rest)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value))
    return rows


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if "bytes" in name and isinstance(value, int):
        return bytes_text(value)
    return str(value)


def bytes_text(count: int) -> str:
    """1536 is 1.5 KiB."""
    size, unit = float(count), 0
    while size >= 1024 and unit < len(BYTES) - 1:
        size, unit = size / 1024, unit + 1
    return f"{count} bytes" if unit == 0 else f"{size:.1f} {BYTES[unit]}"
