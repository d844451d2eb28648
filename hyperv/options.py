"""How a driver's option table and its description file are read. Pure code over the configuration's own kinds."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from hotpair.cluster.configuration_keys import Key, Kind, NotAccepted, Report, read_table, text

OPTIONS_TABLE = "[vm.options]"


def read_options(keys: Collection[Key], options: Mapping[str, object]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The values of `[vm.options]` with defaults, and what is wrong with them."""
    report = Report(OPTIONS_TABLE, "")
    values = read_table(keys, dict(options), (), report)
    return values, tuple(map(str, report.problems))


def inside() -> Kind:
    """A file in the module's directory, mirrored with it."""

    def read(value: object) -> str:
        path = text("").read(value)
        assert isinstance(path, str)
        if path.startswith("/") or {"", ".", ".."} & set(path.split("/")):
            raise NotAccepted
        return path

    return Kind("file", 'a file below the module\'s directory, without "." and ".."', read)


def text_or_none(accepted: str, pattern: str = ".*") -> Kind:
    """Text, or "" for none."""
    kind = text(accepted, pattern)
    return Kind("text", f'{accepted}, or ""', lambda value: "" if value == "" else kind.read(value))


def file_or_none() -> Kind:
    """Below the module's directory, or an absolute path, which both servers must have."""

    def read(value: object) -> str:
        return "" if value == "" else str(inside().read(str(text("").read(value)).removeprefix("/")) and value)

    return Kind("file", 'a file below the module\'s directory, an absolute path, or ""', read)
