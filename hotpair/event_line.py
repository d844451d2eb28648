"""How an event is written in one line. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any


def event_line(entry: Mapping[str, Any]) -> str:
    """One line, the local time first."""
    at = datetime.fromtimestamp(entry["at"]).astimezone().isoformat(sep=" ", timespec="milliseconds")
    match entry["kind"]:
        case "state":
            because = f": {entry['because']}" if entry.get("because") else ""
            text = f"{entry['was']} -> {entry['state']}{because}"
        case "vm":
            text = f"VM {entry['was']} -> {entry['vm']}"
        case "command":
            answer = "accepted" if entry["accepted"] else f"refused: {entry['text']}"
            text = f"command {entry['command']}: {answer}"
        case "problem":
            text = f"PROBLEM: {entry['text']}"
        case _:
            rest = {name: value for name, value in entry.items() if name not in ("at", "module", "kind")}
            text = str(rest.get("text", rest))
    return f"{at} {entry['module']}: {text}"
