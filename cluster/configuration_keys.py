"""How a configuration file is read: keys with their kinds, problems that say where, what, and what is accepted.

Knows: TOML values, lines of a text. Must not know: which keys there are (configuration_tables.py), files.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from hotpair.cluster.admission import NAME_RULE, is_name

TEXT_CHARACTERS = 1024  # far more than a path or an address has
LIST_ENTRIES = 64  # of a command or of addresses
SHOWN_CHARACTERS = 60  # of a value in an error

Path = tuple[str | int, ...]  # of a key: names, and the number of a table in an array of tables


class NotAccepted(Exception):
    """A value that is none of this kind."""


@dataclass(frozen=True)
class Kind:
    """`name`: the type, in a word or two. `accepted`: completes "give ...". `read` raises NotAccepted."""

    name: str
    accepted: str
    read: Callable[[object], object]


class Required:
    """The default of a key that has none."""


REQUIRED = Required()


@dataclass(frozen=True)
class Derived:
    """The default of a key that follows from other values: whoever reads the table fills it in. `text` says how."""

    text: str


@dataclass(frozen=True)
class Key:
    """One line of the reference. `default` is as it would be written in the file."""

    name: str
    kind: Kind
    default: object
    meaning: str


@dataclass(frozen=True)
class Problem:
    """`line` None where it is not known, for example for a key that is missing in a missing table."""

    file: str
    line: int | None
    key: str
    text: str

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{where}: {self.key + ': ' if self.key else ''}{self.text}"


class ConfigurationError(Exception):
    """A configuration that cannot be used, with everything that is wrong with it."""

    def __init__(self, problems: Collection[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)

    @property
    def brief(self) -> str:
        """The first problem, and how many there are besides."""
        more = len(self.problems) - 1
        return str(self.problems[0]) + (f" (and {more} more)" if more else "")


@dataclass
class Report:
    """The problems of one file, found while it is read."""

    file: str
    text: str
    problems: list[Problem] = field(default_factory=list)

    def say(self, path: Path, text: str) -> None:
        self.problems.append(Problem(self.file, line_of(self.text, path), dotted(path), text))

    def end(self) -> None:
        """Raises ConfigurationError if there was a problem."""
        if self.problems:
            raise ConfigurationError(self.problems)


def dotted(path: Path) -> str:
    """As the user would write it: servers[2].networks.lan, the tables of an array counted from 1."""
    text = ""
    for part in path:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text


# ---- tables


def read_table(
    keys: Collection[Key], table: object, path: Path, report: Report, tables: Collection[str] = ()
) -> dict[str, Any]:
    """The values of `keys`, defaults filled in; what is wrong goes into `report` and is left out.

    Left out too is a key that is not given and whose default is derived.

    `tables`: names that may stand here besides, and are read by the caller.
    """
    if not isinstance(table, dict):
        report.say(path, f"this is {shown(table)}: give a table of keys")
        return {}
    known = [*(key.name for key in keys), *tables]
    for name in table:
        if name not in known:
            report.say((*path, name), f"there is no such key{did_you_mean(name, known)}")
    values: dict[str, Any] = {}
    for key in keys:
        if key.name not in table and isinstance(key.default, Required):
            report.say((*path, key.name), f"it is missing: give {key.kind.accepted}")
            continue
        if key.name not in table and isinstance(key.default, Derived):
            continue
        value = table.get(key.name, key.default)
        try:
            values[key.name] = key.kind.read(value)
        except NotAccepted:
            report.say((*path, key.name), f"{shown(value)} is not accepted: give {key.kind.accepted}")
    return values


def did_you_mean(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    if close:
        return f": did you mean {close[0]}?"
    return f": the keys here are {', '.join(sorted(known))}" if known else ""


def shown(value: object) -> str:
    """A value as TOML writes it, more or less, and not too long."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = '"' + value.encode("unicode_escape").decode() + '"'
    elif isinstance(value, dict):
        return "a table"
    else:
        text = str(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"'-]+)\s*=")


def line_of(text: str, path: Path) -> int | None:
    """The line of a key, or of the innermost table around it that has one; None if there is nothing.

    tomllib gives no positions, so this looks for headers and for `key =` at the beginning of a line. Keys within
    inline tables get the line of the inline table.
    """
    places = _places(text)
    for length in range(len(path), 0, -1):
        if (line := places.get(path[:length])) is not None:
            return line
    return None


def _places(text: str) -> Mapping[Path, int]:
    places: dict[Path, int] = {}
    arrays: dict[Path, int] = {}
    table: Path = ()
    quotes: str | None = None  # of a multi-line string that is open
    for number, line in enumerate(text.splitlines(), 1):
        if quotes is None and (header := _HEADER.match(line)):
            table = ()
            for name in _parts(header[2]):
                table = (*table, name)
                if table in arrays and (header[1] == "[" or table != _parts(header[2])):
                    table = (*table, arrays[table])
            if header[1] == "[[":
                arrays[table] = arrays.get(table, -1) + 1
                places.setdefault(table, number)
                table = (*table, arrays[table])
            places.setdefault(table, number)
        elif quotes is None and (found := _KEY.match(line)):
            key: Path = table
            for name in _parts(found[1]):
                key = (*key, name)
                places.setdefault(key, number)
        for mark in ('"""', "'''"):
            if quotes in (None, mark) and line.count(mark) % 2:
                quotes = mark if quotes is None else None
    return places


def _parts(dotted_key: str) -> Path:
    return tuple(part.strip().strip("\"'") for part in dotted_key.split("."))


# ---- kinds


def _text(value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_CHARACTERS or not value.isprintable():
        raise NotAccepted
    return value


def text(accepted: str, pattern: str = ".*") -> Kind:
    return Kind("text", accepted, lambda value: _checked(_text(value), lambda given: re.fullmatch(pattern, given)))


def host() -> Kind:
    return Kind("address", "an IP address or a host name", lambda value: _checked(_text(value), _is_host))


def path() -> Kind:
    def is_accepted(given: str) -> bool:
        return not {".", ".."} & set(given.split("/"))

    accepted = 'a path without "." and "..", absolute or below the home directory'
    return Kind("path", accepted, lambda value: _checked(_text(value), is_accepted))


def name(accepted: str = NAME_RULE) -> Kind:
    return Kind("name", accepted, lambda value: _checked(_text(value), is_name))


def name_or_none(accepted: str) -> Kind:
    return Kind("name", f'{accepted}, or ""', lambda value: "" if value == "" else _checked(_text(value), is_name))


def choice(*words: str) -> Kind:
    return Kind("word", " or ".join(f'"{word}"' for word in words), lambda value: _checked(value, words.__contains__))


def word_or_server(*words: str) -> Kind:
    """One of the words, or server:NAME."""

    def is_accepted(given: str) -> bool:
        return given in words or (given.startswith("server:") and is_name(given.removeprefix("server:")))

    accepted = f'{choice(*words).accepted} or "server:NAME" with the name of one of the two servers'
    return Kind("word", accepted, lambda value: _checked(_text(value), is_accepted))


def flag() -> Kind:
    return Kind("truth", "true or false", lambda value: _checked(value, lambda given: isinstance(given, bool)))


def number(least: float, most: float, unit: str = "seconds") -> Kind:
    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise NotAccepted
        return float(value)

    return Kind("number", f"a number of {unit} from {least:g} to {most:.10g}", read)


def whole(least: int, most: int) -> Kind:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise NotAccepted
        return value

    return Kind("whole number", f"a whole number from {least} to {most}", read)


def size(least: int, most: int, *, power_of_two: bool = False) -> Kind:
    """A number of bytes, or text with k, m or g behind it. Read as bytes."""
    units = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

    def read(value: object) -> int:
        if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,15})([kmg]?)", value)):
            value = int(match[1]) * units.get(match[2], 1)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise NotAccepted
        if power_of_two and value & (value - 1):
            raise NotAccepted
        return value

    what = "a power of two, in bytes or" if power_of_two else "a number of bytes, or"
    return Kind("size", f'{what} with k, m or g ("4m"), from {least} to {most}', read)


def ip_address() -> Kind:
    return Kind("address", "a numeric IPv4 or IPv6 address of one machine", lambda value: _ip_address(_text(value)))


def host_and_port() -> Kind:
    return Kind(
        "address", '"HOST:PORT", an IPv6 address in brackets', lambda value: _checked(_text(value), _is_host_and_port)
    )


def ip_and_port() -> Kind:
    """For ping: a name could not be resolved by a server that is cut off."""

    def read(value: object) -> str:
        given = _text(value)
        if _is_host_and_port(given):
            _ip_address(given.rpartition(":")[0].strip("[]"))
            return given
        return _ip_address(given)

    return Kind("address", "a numeric address, or one with :PORT (IPv6 then in brackets)", read)


def list_of(kind: Kind, least: int, most: int = LIST_ENTRIES) -> Kind:
    def read(value: object) -> tuple[object, ...]:
        if not isinstance(value, list) or not least <= len(value) <= most:
            raise NotAccepted
        return tuple(kind.read(entry) for entry in value)

    return Kind(f"list of {kind.name}", f"a list of {least} to {most}, each {kind.accepted}", read)


def command() -> Kind:
    return Kind(
        "command",
        f'a list of 1 to {LIST_ENTRIES} words, the program\'s absolute path first: ["/usr/local/bin/check", "web"]',
        lambda value: _checked(list_of(text(""), 1).read(value), _begins_with_a_path),
    )


def _begins_with_a_path(words: object) -> bool:
    return isinstance(words, tuple) and str(words[0]).startswith("/")


def _checked(value: object, is_accepted: Callable[[str], object]) -> str:
    """`value` if it is accepted; the kinds above know what it is then."""
    try:
        accepted = is_accepted(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise NotAccepted from error
    if not accepted:
        raise NotAccepted
    return value  # type: ignore[return-value]


def _ip_address(given: str) -> str:
    try:
        parsed = ipaddress.ip_address(given)
    except ValueError as error:
        raise NotAccepted from error
    if parsed.is_unspecified or parsed.is_multicast or given == "255.255.255.255":
        raise NotAccepted
    return str(parsed)


def _is_host_and_port(given: str) -> bool:
    host, colon, port = given.rpartition(":")
    if not (colon and re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536):
        return False
    if host.startswith("[") and host.endswith("]"):
        return _is_ipv6(host[1:-1])
    return _is_host(host) and ":" not in host


def _is_host(given: str) -> bool:
    """A host name's letters, which are also those of an IPv4 address, or an IPv6 address."""
    return re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})", given) is not None or _is_ipv6(given)


def _is_ipv6(given: str) -> bool:
    try:
        ipaddress.IPv6Address(given)
    except ValueError:
        return False
    return True
