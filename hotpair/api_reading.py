"""The API's values (api_values.py) from what somebody has sent as JSON. Pure.

Knows: dataclasses whose fields are text, numbers, true and false, lists, tables, words of a list, other such
dataclasses, and null. Must not know: what they mean. What a value does not name is ignored: fields may be added.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class NotReadable(Exception):
    """It is not such a value; the text says which part."""


def read(kind: type[T], given: object) -> T:
    """Raises NotReadable."""
    found: T = _read(kind, given, kind.__name__)
    return found


def _read(kind: Any, given: object, where: str) -> Any:
    if is_dataclass(kind):
        return _fields(kind, given, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is types.UnionType:  # of one kind and null
        (other,) = (one for one in arguments if one is not types.NoneType)
        return None if given is None else _read(other, given, where)
    if origin is list:
        if isinstance(given, list):
            return [_read(arguments[0], one, f"{where}[{number}]") for number, one in enumerate(given)]
    elif origin is Literal:
        if any(given == one and type(given) is type(one) for one in arguments):
            return given
    elif origin is dict:
        if isinstance(given, dict):
            return given
    elif type(given) is kind:
        return given
    elif kind is float and type(given) is int:
        return float(given)
    raise NotReadable(f"{where} is {given!r:.80}")


def _fields(kind: Any, given: object, where: str) -> Any:
    if not isinstance(given, dict):
        raise NotReadable(f"{where} is {given!r:.80}")
    values = {}
    for one in fields(kind):
        if one.name in given:
            values[one.name] = _read(_kinds(kind)[one.name], given[one.name], f"{where}.{one.name}")
        elif one.default is MISSING and one.default_factory is MISSING:
            raise NotReadable(f"{where} has no {one.name}")
    return kind(**values)


@functools.cache
def _kinds(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)
