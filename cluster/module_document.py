"""docs/states.md, made from the state machine itself. Pure code."""

from __future__ import annotations

from hotpair.cluster.module_events import EVENTS
from hotpair.cluster.module_machine import FORBIDDEN, IGNORED, TABLE
from hotpair.cluster.module_states import STATES, TRANSITIONS
from hotpair.cluster.module_values import State


def document() -> str:
    """The page, ending in a newline."""
    lines = [
        "# States of a module",
        "",
        "Made from `cluster/module_states.py` and the table in `module_machine.py`.",
        "",
    ]
    lines += ["```mermaid", "stateDiagram-v2", "    [*] --> STOP"]
    for (before, after), why in TRANSITIONS.items():
        if before is not after:
            lines.append(f"    {before.value} --> {after.value}: {why}")
    lines += ["```", ""]
    for state, sentence in STATES.items():
        lines.append(f"- **{state.value}**: {sentence}")
    lines += ["", "What is done about each event, in each state; afterwards the state's rule is applied.", ""]
    lines.append("| event | " + " | ".join(state.value for state in State) + " |")
    lines.append("|---" * (len(State) + 1) + "|")
    for event in EVENTS:
        names = (_name(state, event) for state in State)
        lines.append(f"| {event.__name__} | " + " | ".join(names) + " |")
    return "\n".join(lines) + "\n"


def _name(state: State, event: type) -> str:
    handler = TABLE[state][event]
    if handler is IGNORED:
        return "-"
    if handler is FORBIDDEN:
        return "forbidden"
    return handler.__name__.replace("_", " ")
