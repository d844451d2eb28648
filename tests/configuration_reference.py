"""The tables of docs/configuration.md, rendered from the tables in the code.

`python tests/configuration_reference.py docs/configuration.md` writes them into the page, between its marks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from hotpair.cluster import configuration_tables as tables
from hotpair.cluster.configuration_keys import Derived, Key, Required, ip_address, shown

_HEADER = "| key | type | default | accepted | meaning |\n|---|---|---|---|---|\n"
_MARKED = re.compile(r"(<!-- begin ([a-z. -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def sections() -> dict[str, str]:
    """The rendered table of each section, by the name in its mark."""
    found = {
        "cluster": _keys(tables.CLUSTER),
        "servers": _keys(tables.SERVER)
        + _row("networks.NAME", "address", None, ip_address().accepted, tables.SERVER_NETWORKS_MEANING),
        "heartbeat": _keys(tables.HEARTBEAT),
        "arbitration": _keys(tables.ARBITRATION),
        "security": _keys(tables.SECURITY),
        "module": _keys(tables.MODULE),
        "mirror": _keys(tables.MIRROR),
        "vm": _keys(tables.VM)
        + _row("options", "table", "{}", "text, whole numbers, true, false, lists of these", tables.VM_OPTIONS_MEANING),
        "loop": _keys(tables.LOOP),
        "checkers": _keys((tables.CHECKER_KIND, *tables.CHECKER))
        + _row("start_s", "number", "of the kind", tables.START.accepted, tables.START_MEANING)
        + _row("action", "word", "of the kind", tables.ACTIONS.accepted, tables.ACTION_MEANING),
    }
    for kind, keys in tables.ARBITRATION_OPTIONS.items():
        found[f"arbitration.{kind}"] = _keys(keys)
    rendered = {name: _HEADER + rows for name, rows in found.items()}
    rendered["checker kinds"] = _checker_kinds()
    return rendered


def _keys(keys: Iterable[Key]) -> str:
    rows = ""
    for key in keys:
        default = None if isinstance(key.default, Required) else _default(key)
        rows += _row(key.name, key.kind.name, default, key.kind.accepted, key.meaning)
    return rows


def _default(key: Key) -> str:
    return key.default.text if isinstance(key.default, Derived) else shown(key.default)


def _row(name: str, kind: str, default: str | None, accepted: str, meaning: str) -> str:
    return f"| `{name}` | {kind} | {'required' if default is None else f'`{default}`'} | {accepted} | {meaning} |\n"


def _checker_kinds() -> str:
    rows = "| kind | up means | before a start | default action | default `start_s` | own keys |\n"
    rows += "|---|---|---|---|---|---|\n"
    for name, kind in tables.CHECKER_KINDS.items():
        own = "; ".join(_own_key(key) for key in kind.options)
        rows += f"| `{name}` | {kind.meaning} | {'yes' if kind.before_start else 'no'} | `{kind.action}` "
        rows += f"| `{kind.start_s:g}` | {own} |\n"
    return rows


def _own_key(key: Key) -> str:
    default = "required" if isinstance(key.default, Required) else f"`{shown(key.default)}`"
    return f"`{key.name}` ({default}): {key.kind.accepted}. {key.meaning}"


def marked(page: str) -> dict[str, str]:
    """The tables in the page, by the name in their mark."""
    return {match[2]: match[0].removeprefix(match[1]).removesuffix(match[3]) for match in _MARKED.finditer(page)}


def filled(page: str) -> str:
    """The page with the tables of the code."""
    rendered = sections()
    return _MARKED.sub(lambda match: match[1] + rendered[match[2]] + match[3], page)


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
