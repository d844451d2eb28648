"""Values as TOML: what commands write into configuration files. Pure.

Only what a configuration may hold: text, numbers, truth values, lists of these, tables of all that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


class NotWritable(Exception):
    """A value that no configuration has."""


def value_text(value: object) -> str:
    """One value on one line. Raises NotWritable."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case float():
            short = f"{value:g}"
            return short if float(short) == value else repr(value)
        case int():
            return str(value)
        case list():
            return "[" + ", ".join(map(value_text, value)) + "]"
    raise NotWritable(f"{value} is no text, number, truth value or list of these")


def table_text(table: Mapping[str, Any], path: tuple[str, ...] = ()) -> str:
    """A table's own keys first, then the tables in it. Raises NotWritable."""
    own = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping)}
    text = "".join(f"{_key(name)} = {value_text(value)}\n" for name, value in own.items())
    if path and (own or not inner):
        text = f"\n[{'.'.join(map(_key, path))}]\n{text}"
    return text + "".join(table_text(value, (*path, name)) for name, value in inner.items())


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else value_text(name)
